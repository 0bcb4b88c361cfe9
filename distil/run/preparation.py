"""What a run needs before its first sample: dataset, tools, sandbox, teacher, prompts, settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.text import Text

from distil.embedded.launch import drawn_signs
from distil.errors import BudgetExceeded, UsageError
from distil.pictures import Frame
from distil.records import Json, Prompt, ToolMode
from distil.rollout import RolloutSettings
from distil.sandbox.sandbox import Sandbox
from distil.source.rows import Source, open_source
from distil.spending.budget import Budget, Limits
from distil.spending.prices import FixedPrices, find_prices
from distil.store.folder import OnChange, OutputFolder, RunFolder, first_free, open_run_folder
from distil.store.spending import SpendingFile
from distil.store.trace_file import RunFacts, versions_now
from distil.tasks import TASKS, Task
from distil.teacher.address import Address
from distil.teacher.availability import OutagePolicy
from distil.teacher.client import (
    OPENAI_URL,
    TeacherSettings,
    base_url_text,
)
from distil.teacher.models import ask_first_replica, unlisted_warning
from distil.teacher.profile import UNKNOWN, Profile, find_profile, with_frame, with_max_area
from distil.teacher.tool_mode import ProbeResult, probe_fields, probe_tool_mode, recalled_probe
from distil.tools.base import BoxFrame, CropFrom, Tool
from distil.tools.python_code import PythonCodeTool
from distil.tools.toolbox import Toolbox, load_tools

_PROBED = ("tool_mode", "temperature", "sends_seed", "token_field")  # settings that the probe may change


@dataclass(frozen=True)
class Options:
    """The command line of a run; the fields are the flags."""

    dataset_path: str | None
    output_dir: str
    num_samples: int
    max_turns: int
    temperature: float
    max_tokens: int
    max_workers: int
    fixed_workers: bool
    api_base: str | None
    model: str | None
    tool_mode: str
    coordinates: str
    crop_from: str
    order: str
    seed: int
    image_max_pixels: int | None
    tools: str
    system_prompt: str | None
    user_prompt_file: str | None
    request_timeout_seconds: float
    turn_timeout_seconds: float
    sample_timeout_seconds: float
    max_outage_seconds: float
    on_change: str
    retry_failed: bool
    keep_going: bool
    max_cost_usd: float | None
    max_total_tokens: int | None
    max_calls: int | None
    price_per_million: FixedPrices | None
    estimate_samples: int | None
    keep_pictures: bool
    code_timeout: float
    code_memory_mb: int
    sandbox_workers: int | None
    unsafe_exec: bool


@dataclass(frozen=True)
class Job:
    """What a run works on, before any teacher is asked."""

    options: Options
    task: Task
    tools: tuple[Tool, ...]
    sandbox: Sandbox | None
    user_prompt: str
    source: Source
    indices: Sequence[int]


@dataclass(frozen=True)
class Run:
    """A run that is set up: all that was asked for, found and chosen."""

    job: Job
    teacher: TeacherSettings
    api_bases: tuple[str, ...]
    profile: Profile
    probe: ProbeResult
    rollout: RolloutSettings
    facts: RunFacts
    folder: RunFolder


@contextmanager
def code_sandbox(options: Options, console: Console) -> Iterator[Sandbox | None]:
    """The started sandbox where the code tool is offered; raises SandboxUnavailable."""
    if not any(isinstance(tool, PythonCodeTool) for tool in load_tools(options.tools)):
        yield None
        return
    memory_bytes = options.code_memory_mb * 2**20
    bounds = (options.code_timeout, memory_bytes, options.sandbox_workers)
    with Sandbox(*bounds, unsafe=options.unsafe_exec) as sandbox:
        sandbox.start()
        style = "bold red" if options.unsafe_exec else ""
        console.print(Text(sandbox.layers.text, style=style), soft_wrap=True)
        yield sandbox


def read_job(options: Options, sandbox: Sandbox | None, console: Console) -> Job:
    """Open the dataset and read what the options name; raises UsageError or SourceError."""
    tools = load_tools(options.tools, sandbox)
    task = TASKS["geolocation"]
    user_prompt = _read_prompt(options.user_prompt_file, task.user_prompt)
    source = open_source(
        options.dataset_path or drawn_signs(),
        partial(console.print, highlight=False, markup=False, soft_wrap=True),
    )
    task.check_columns(source.columns)
    indices = source.select(options.order, options.num_samples, options.seed)
    if options.num_samples > len(source):
        console.print(f"The dataset has {len(source)} rows: all of them are taken.", highlight=False)
        if options.dataset_path is None:
            console.print("More street signs: distil signs --output_dir DIR --num_rows N", highlight=False)
    return Job(options, task, tools, sandbox, user_prompt, source, indices)


def _read_prompt(path: str | None, standard: str) -> str:
    if path is None:
        return standard
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise UsageError(f"--user_prompt_file {path}: {error}") from None
    if not text:
        raise UsageError(f"--user_prompt_file {path} is empty")
    return text


def set_up(job: Job, address: Address, console: Console) -> Run:
    """Settle folder, model, profile, tool mode and prompts; raises UsageError, TeacherRefused or FolderError.

    The cheap checks come first: nothing is paid for a run that could not start.
    """
    options = job.options
    output = OutputFolder(Path(options.output_dir))

    def tell(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    teacher = TeacherSettings(
        api_base=address.api_base,
        api_key=address.api_key,
        temperature=options.temperature,
        max_tokens=options.max_tokens,
        timeout_seconds=options.request_timeout_seconds,
        turn_timeout_seconds=options.turn_timeout_seconds,
        outage=OutagePolicy(max_outage_seconds=options.max_outage_seconds),
    )
    teacher, models = ask_first_replica(teacher, address.api_bases, tell)
    teacher = replace(teacher, model=options.model or models.only(teacher))
    profile = _profile(teacher.model, options)
    unlisted = unlisted_warning(teacher.model, models.names, profile)
    if unlisted is not None:
        console.print(Text(f"Warning: {unlisted}", style="yellow"), soft_wrap=True)
    teacher = replace(teacher, token_field=profile.token_field, sends_temperature=profile.sends_temperature)
    boxes = BoxFrame(profile.frame, CropFrom(options.crop_from))
    toolbox = Toolbox(job.tools, boxes, profile.rule, profile.states_size and bool(job.tools))
    prompt = Prompt(
        system=job.task.system_prompt if options.system_prompt is None else options.system_prompt,
        user=job.user_prompt,
        tools=toolbox.schemas(),
        states_size=toolbox.states_size,
    )
    unprobed = RolloutSettings(job.task, prompt, toolbox, options.max_turns, options.seed)
    settings = _trace_settings(job, teacher, profile, unprobed, address.note)
    if OnChange(options.on_change) is OnChange.REFUSE:
        output.refuse_changes(settings, job.source.identity.fingerprint, _PROBED)
    if OnChange(options.on_change) is OnChange.NEW:
        output = first_free(output, settings, job.source.identity.fingerprint, _PROBED)
    probe = _settle_asking(options, teacher, prompt, output, tell)
    teacher, prompt = probe.settings, replace(prompt, tool_mode=probe.tool_mode)
    rollout = RolloutSettings(job.task, prompt, toolbox, options.max_turns, options.seed)
    facts = RunFacts(
        dataset=job.source.identity,
        settings=_trace_settings(job, teacher, profile, rollout, address.note),
        versions=versions_now(),
        keeps_pictures=options.keep_pictures,
    )
    _print_choices(teacher, address.api_bases, profile, probe, console)
    folder = open_run_folder(output, facts, OnChange(options.on_change))
    return Run(job, teacher, address.api_bases, profile, probe, rollout, facts, folder)


def open_budget(options: Options, teacher: TeacherSettings, spending: SpendingFile) -> Budget:
    """The budget of a folder; raises UsageError for a cost limit without prices."""
    limits = Limits(options.max_cost_usd, options.max_total_tokens, options.max_calls)
    prices = find_prices(options.price_per_million, teacher.model, teacher.api_base or OPENAI_URL)
    return Budget(limits, prices, options.max_tokens, spending.entries(), spending.append)


def _profile(model: str, options: Options) -> Profile:
    frame = None if options.coordinates == "auto" else Frame(options.coordinates)
    return with_max_area(with_frame(find_profile(model), frame), options.image_max_pixels)


def _settle_asking(
    options: Options,
    teacher: TeacherSettings,
    prompt: Prompt,
    output: OutputFolder,
    tell: Callable[[str], None],
) -> ProbeResult:
    """The tool mode, and the settings without the request fields that the server refuses.

    In every mode the server is asked before the first sample, or remembered: a run never adapts.
    """
    budget = open_budget(options, teacher, output.spending)
    earlier = _earlier_probe(options, teacher, prompt, output)
    told = _told_tool_mode(options, prompt)
    try:
        if told is None:
            return earlier or probe_tool_mode(teacher, prompt, budget, tell)
        tool_mode, reason = told
        if earlier is not None:
            return replace(earlier, tool_mode=tool_mode, reason=reason)
        return probe_fields(teacher, replace(prompt, tool_mode=tool_mode), reason, budget, tell)
    except BudgetExceeded as error:
        raise UsageError(f"nothing can be asked within the budget, {error}") from None


def _told_tool_mode(options: Options, prompt: Prompt) -> tuple[ToolMode, str] | None:
    """The tool mode and why, None where the server has to be asked."""
    if not prompt.tools:
        return ToolMode.NONE, "no tools are offered"
    if options.tool_mode != "auto":
        return ToolMode(options.tool_mode), "as --tool_mode says"
    return None


def _earlier_probe(
    options: Options, teacher: TeacherSettings, prompt: Prompt, output: OutputFolder
) -> ProbeResult | None:
    """What the last run into the folder found out; the tool mode only if it asked, with the same tools."""
    for record in output.earlier_runs[-1:]:
        settings, asked = record.get("settings", {}), record.get("options", {})
        asked_alike = asked.get("tool_mode") == "auto" and settings.get("tool_schemas") == list(prompt.tools)
        if asked_alike or _told_tool_mode(options, prompt) is not None:
            return recalled_probe(teacher, record.get("probe", {}))
    return None


def _trace_settings(
    job: Job, teacher: TeacherSettings, profile: Profile, rollout: RolloutSettings, note: str | None
) -> dict[str, Json]:
    """Everything that shapes a trace, and nothing that depends on the machine or the clock."""
    options, prompt = job.options, rollout.prompt
    settings: dict[str, Json] = {
        "task": job.task.name,
        "model": teacher.model,
        "profile": profile.name,
        "tool_mode": prompt.tool_mode.value,
        "coordinates": profile.frame.value,
        "crop_from": options.crop_from,
        "temperature": teacher.temperature if teacher.sends_temperature else None,
        "max_tokens": options.max_tokens,
        "max_turns": options.max_turns,
        "seed": options.seed,
        "sends_seed": teacher.sends_seed,
        "view_rule": asdict(profile.rule),
        "states_size": prompt.states_size,
        "system_prompt": prompt.system,
        "user_prompt": prompt.user,
        "tool_schemas": list(prompt.tools),
        "keep_pictures": options.keep_pictures,
    }
    if teacher.token_field != "max_tokens":
        settings["token_field"] = teacher.token_field
    if job.sandbox is not None:
        limits = {"timeout_seconds": options.code_timeout, "memory_bytes": options.code_memory_mb * 2**20}
        settings["code"] = limits | {"unsafe_exec": options.unsafe_exec}
    if note is not None:
        settings["teacher_note"] = note
    return settings


def offered_natively(prompt: Prompt) -> Sequence[Json]:
    """The tools that go into the request's own field."""
    return prompt.tools if prompt.tool_mode is ToolMode.NATIVE else ()


def urls_text(teacher: TeacherSettings, api_bases: Sequence[str]) -> str:
    """The servers' addresses as they may be shown."""
    return ",".join(base_url_text(replace(teacher, api_base=api_base)) for api_base in api_bases)


def _print_choices(
    teacher: TeacherSettings,
    api_bases: Sequence[str],
    profile: Profile,
    probe: ProbeResult,
    console: Console,
) -> None:
    console.print(
        f"Model: {teacher.model} at {urls_text(teacher, api_bases)}; tool calls: {probe.tool_mode.value} "
        f"({probe.reason}); boxes: {profile.frame.value} (profile {profile.name})",
        highlight=False,
        soft_wrap=True,
    )
    if profile.name == UNKNOWN.name and probe.tool_mode is not ToolMode.NONE:
        console.print(
            "This model's family is not known: its boxes are taken as pixels (see --coordinates).",
            highlight=False,
            soft_wrap=True,
        )
    if probe.sight_warning is not None:
        console.print(Text(f"Warning: {probe.sight_warning}", style="yellow"), soft_wrap=True)
