"""One run from options to exit code: dataset, teacher, tools, folder, samples, summary."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import datasets
import numpy as np
import openai
import PIL
from rich.console import Console
from rich.text import Text

from distil import __version__
from distil.address import Address, find_teacher, only_model, started
from distil.budget import Budget, FixedPrices, Limits, find_prices, read_tokens
from distil.concurrency import Level
from distil.embedded import drawn_signs
from distil.errors import UsageError
from distil.pictures import Frame
from distil.records import Failure, Json, Prompt, Reply, ToolMode
from distil.report import (
    BoxTally,
    Progress,
    RunTotals,
    SampleSpending,
    Solved,
    print_estimate,
    print_summary,
    solved_from_trace,
)
from distil.rollout import RolloutSettings, run_rollout
from distil.sampler import Outcome, run_samples
from distil.sandbox import Sandbox, UnsafeExecutor
from distil.source import Source, open_source
from distil.store import OnChange, RunFolder, free_folder
from distil.store.trace_file import RunFacts
from distil.tasks import TASKS, Task
from distil.teacher import (
    Deadline,
    OutagePolicy,
    ProbeResult,
    Profile,
    ReplicatedTeacher,
    TeacherSettings,
    check_reachable,
    find_profile,
    load_model_names,
    probe_tool_mode,
)
from distil.teacher.client import OPENAI_URL, base_url_text
from distil.teacher.profile import UNKNOWN, with_frame, with_max_area
from distil.tools import BoxFrame, CropFrom, Tool, Toolbox, load_tools
from distil.tools.python_code import PythonCodeTool
from distil.viewer.facts import TraceFacts, trace_facts


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


def run_distillation(options: Options, console: Console) -> int:
    """Run it; returns 0 where every sample has a trace, 1 where some failed.

    Raises UsageError, SourceError or TeacherRefused where nothing could be run.
    """
    named = find_teacher(options.api_base)  # before anything is opened or drawn
    with _code_sandbox(options, console) as sandbox, ExitStack() as stack:
        job = _read_job(options, sandbox, console)
        address = stack.enter_context(started(named, console))
        run = _set_up(job, address, console)
        level = Level(options.max_workers, options.fixed_workers)
        offered = _offered_natively(run.rollout.prompt)
        with ReplicatedTeacher(run.teacher, run.api_bases, offered, level) as teacher:
            return _run_samples(run, teacher, level, console)


@contextmanager
def _code_sandbox(options: Options, console: Console) -> Iterator[Sandbox | None]:
    """The started sandbox where the code tool is offered; raises SandboxUnavailable."""
    if not any(isinstance(tool, PythonCodeTool) for tool in load_tools(options.tools)):
        yield None
        return
    kind = UnsafeExecutor if options.unsafe_exec else Sandbox
    memory_bytes = options.code_memory_mb * 2**20
    with kind(options.code_timeout, memory_bytes, options.sandbox_workers) as sandbox:
        sandbox.start()
        style = "bold red" if options.unsafe_exec else ""
        console.print(Text(sandbox.levels.text, style=style), soft_wrap=True)
        yield sandbox


def _read_job(options: Options, sandbox: Sandbox | None, console: Console) -> Job:
    tools = load_tools(options.tools, sandbox)
    task = TASKS["geolocation"]
    user_prompt = _read_prompt(options.user_prompt_file, task.user_prompt)
    source = open_source(options.dataset_path or drawn_signs())
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


def _set_up(job: Job, address: Address, console: Console) -> Run:
    options = job.options
    teacher = TeacherSettings(
        api_base=address.api_base,
        api_key=address.api_key,
        temperature=options.temperature,
        max_tokens=options.max_tokens,
        timeout_seconds=options.request_timeout_seconds,
        turn_timeout_seconds=options.turn_timeout_seconds,
        outage=OutagePolicy(max_outage_seconds=options.max_outage_seconds),
    )
    teacher = replace(teacher, model=options.model or only_model(load_model_names(teacher), teacher))
    profile = _profile(teacher.model, options)
    teacher = replace(teacher, token_field=profile.token_field, sends_temperature=profile.sends_temperature)
    boxes = BoxFrame(profile.frame, CropFrom(options.crop_from))
    toolbox = Toolbox(job.tools, boxes, profile.rule, profile.states_size and bool(job.tools))
    prompt = Prompt(
        system=job.task.system_prompt if options.system_prompt is None else options.system_prompt,
        user=job.user_prompt,
        tools=toolbox.schemas(),
        states_size=toolbox.states_size,
    )
    probe = _settle_tool_mode(options, teacher, prompt)
    teacher, prompt = probe.settings, replace(prompt, tool_mode=probe.tool_mode)
    rollout = RolloutSettings(job.task, prompt, toolbox, options.max_turns, options.seed)
    facts = RunFacts(
        dataset=job.source.identity,
        settings=_trace_settings(job, teacher, profile, rollout, address.note),
        versions={"distil": __version__, "pillow": PIL.__version__, "numpy": np.__version__},
        keeps_pictures=options.keep_pictures,
    )
    _print_choices(teacher, address.api_bases, profile, probe, console)
    return Run(job, teacher, address.api_bases, profile, probe, rollout, facts)


def _profile(model: str, options: Options) -> Profile:
    frame = None if options.coordinates == "auto" else Frame(options.coordinates)
    return with_max_area(with_frame(find_profile(model), frame), options.image_max_pixels)


def _settle_tool_mode(options: Options, teacher: TeacherSettings, prompt: Prompt) -> ProbeResult:
    if not prompt.tools:
        check_reachable(teacher)
        return ProbeResult(ToolMode.NONE, "no tools are offered", 0, teacher)
    if options.tool_mode == "auto":
        return probe_tool_mode(teacher, prompt)
    check_reachable(teacher)
    return ProbeResult(ToolMode(options.tool_mode), "as --tool_mode says", 0, teacher)


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
    if job.sandbox is not None:
        limits = {"timeout_seconds": options.code_timeout, "memory_bytes": options.code_memory_mb * 2**20}
        settings["code"] = limits | {"unsafe_exec": options.unsafe_exec}
    if note is not None:
        settings["teacher_note"] = note
    return settings


def _offered_natively(prompt: Prompt) -> Sequence[Json]:
    return prompt.tools if prompt.tool_mode is ToolMode.NATIVE else ()


def _urls_text(teacher: TeacherSettings, api_bases: Sequence[str]) -> str:
    return ",".join(base_url_text(replace(teacher, api_base=api_base)) for api_base in api_bases)


def _print_choices(
    teacher: TeacherSettings,
    api_bases: Sequence[str],
    profile: Profile,
    probe: ProbeResult,
    console: Console,
) -> None:
    console.print(
        f"Model: {teacher.model} at {_urls_text(teacher, api_bases)}; tool calls: {probe.tool_mode.value} "
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


class RolloutSolver:
    """Solves one row at a time, in any thread, and writes its trace."""

    def __init__(self, run: Run, teacher: ReplicatedTeacher, folder: RunFolder, budget: Budget) -> None:
        self._run = run
        self._teacher = teacher
        self._folder = folder
        self._budget = budget
        self.spending: list[SampleSpending] = []

    def solve(self, index: int) -> Solved:
        """Load the row, run its rollout, write its trace."""
        started = time.perf_counter()
        turn_seconds: list[float] = []
        deadline = Deadline.after("sample", self._run.job.options.sample_timeout_seconds)
        sample = self._run.job.source.load(index, self._run.job.task)
        journal = self._folder.journals.of(index, sample.picture.file_sha256)
        with self._teacher.asking() as ask_teacher:

            def ask(messages: Sequence[bytes], seed: int) -> Reply:
                with self._budget.request() as usages:
                    asked = time.perf_counter()
                    reply = ask_teacher(messages, seed, deadline)
                    usages.append(reply.usage)
                turn_seconds.append(round(time.perf_counter() - asked, 4))
                return reply

            rollout = run_rollout(sample, journal.journaled(ask), self._run.rollout)
        trace = self._folder.write_trace(rollout)
        journal.remove()
        seconds = round(time.perf_counter() - started, 4)
        self._folder.write_timing(index, seconds, turn_seconds)
        self.spending.append(self._spending(trace, seconds))
        return solved_from_trace(trace, trace_facts(trace))

    def _spending(self, trace: Json, seconds: float) -> SampleSpending:
        tokens = [read_tokens(turn["usage"]) for turn in trace["conversation_log"]]
        costs = [self._budget.cost_usd(item) for item in tokens]
        return SampleSpending(seconds, _sum([item.total for item in tokens]), _sum(costs))

    def abort(self) -> None:
        """Close the teacher: requests in flight, pauses and waits for it end at once."""
        self._teacher.close()


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _run_samples(run: Run, teacher: ReplicatedTeacher, level: Level, console: Console) -> int:
    options = run.job.options
    on_change = OnChange(options.on_change)
    path = Path(options.output_dir)
    folder = RunFolder(free_folder(path, run.facts) if on_change is OnChange.NEW else path, run.facts)
    for note in folder.notes:
        console.print(note, highlight=False, soft_wrap=True)
    indices = run.job.indices[: options.estimate_samples]
    done = folder.finished(indices, on_change)
    todo = [index for index in indices if index not in done]
    if options.retry_failed:
        todo = [index for index in todo if index in folder.failed()]
    budget = _open_budget(run, folder)
    record = _start_record(run, len(done))
    folder.write_run_record(record)
    started = time.monotonic()
    facts: list[TraceFacts] = []
    failures: dict[int, Failure] = {}
    stops: list[str] = []
    tally = BoxTally(run.profile.frame, CropFrom(options.crop_from))
    solver = RolloutSolver(run, teacher, folder, budget)
    with Progress(len(indices), len(done), level) as progress:
        teacher.tell_by(progress.write)

        def on_done(outcome: Outcome[Solved]) -> None:
            if outcome.failure is not None:
                failures[outcome.sample_index] = folder.write_failure(outcome.failure)
            if outcome.stopped is not None:
                stops.append(outcome.stopped)
            else:
                progress.count(outcome)

        for outcome in run_samples(todo, solver, options.max_workers, on_done):
            if outcome.result is not None:
                facts.append(outcome.result.facts)
                tally.add(outcome.result)
    failed = [failures[index] for index in sorted(failures)]
    folder.write_failures(todo, failed)
    folder.journals.close()
    stop = stops[0] if stops else None
    totals = RunTotals(
        folder=folder.path,
        facts=facts,
        failures=failed,
        num_skipped=len(done),
        seconds=time.monotonic() - started,
        spent=budget.spent,
        has_prices=budget.has_prices,
        stopped_by=stop,
        level=level.state(),
    )
    folder.write_run_record(record | _end_record(totals, tally.warning()))
    print_summary(totals, tally.warning(), console)
    if options.estimate_samples is not None:
        print_estimate(totals, solver.spending, len(run.job.indices), options.max_workers, console)
    return 1 if failed or stop else 0


def _open_budget(run: Run, folder: RunFolder) -> Budget:
    options = run.job.options
    limits = Limits(options.max_cost_usd, options.max_total_tokens, options.max_calls)
    prices = find_prices(options.price_per_million, run.teacher.model, run.teacher.api_base or OPENAI_URL)
    budget = Budget(folder.path, limits, prices, options.max_tokens)
    for usage in run.probe.usages:
        budget.count(usage)
    return budget


def _start_record(run: Run, num_skipped: int) -> dict[str, Json]:
    """The run's record: the facts of the clock, the machine and the server, kept out of the traces."""
    options = asdict(run.job.options)
    return {
        "started_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "options": options | {"api_base": _urls_text(run.teacher, run.api_bases)},
        "dataset": asdict(run.job.source.identity),
        "tool_mode": {"chosen": run.probe.tool_mode.value, "reason": run.probe.reason},
        "num_probe_requests": run.probe.num_requests,
        "settings": dict(run.facts.settings),
        "settings_sha256": run.facts.settings_sha256,
        "versions": {**run.facts.versions, "openai": openai.__version__, "datasets": datasets.__version__},
        "sandbox": run.job.sandbox.levels.as_dict() if run.job.sandbox is not None else None,
        "num_samples": len(run.job.indices),
        "num_skipped": num_skipped,
    }


def _end_record(totals: RunTotals, warning: str | None) -> dict[str, Json]:
    return {
        "seconds": round(totals.seconds, 3),
        "num_finished": len(totals.facts),
        "num_failed": len(totals.failures),
        "spent": asdict(totals.spent) | ({} if totals.has_prices else {"cost_usd": None}),
        "stopped_by": totals.stopped_by,
        "requests_at_once": totals.level.as_dict(),
        "warning": warning,
    }
