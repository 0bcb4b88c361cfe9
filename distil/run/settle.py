"""What must be known before the first sample, asked and found: folder, model, profile, tool mode, prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from distil.commands.flags import AUTO, BudgetFlags, RunFlags, ToolFlags
from distil.errors import BudgetExceeded, UsageError
from distil.own_code import own_code
from distil.pictures import ResizeRule
from distil.records import Frame, OnChange, Prompt, ToolMode
from distil.run.plan import Plan, as_traces_say, code_limits, teacher_settings, urls_text
from distil.run.solver import Accept, dataset_path, open_budget
from distil.source.rows import Source
from distil.spending.budget import Budget
from distil.store.claim import Claim, first_free
from distil.store.trace_file import RunFacts, versions_now
from distil.store.trace_settings import TraceSettings
from distil.tasks import TASKS
from distil.tasks.base import Task
from distil.teacher.address import Address
from distil.teacher.client import TeacherSettings
from distil.teacher.models import ask_first_replica, unlisted_warning
from distil.teacher.profile import UNKNOWN, Profile, find_profile, with_frame, with_max_area
from distil.teacher.tool_mode import (
    ProbeResult,
    probe_replicas,
    probe_tool_mode,
    recalled_probe,
)
from distil.tools.base import BoxFrame
from distil.tools.toolbox import load_tools

PROBED = ("tool_mode", "temperature", "sends_seed", "token_field")  # settings that the probe may change
_NOT_ASKED = "(the server's only model)"


@contextmanager
def what_is_asked(flags: RunFlags, tell: Callable[[str], None]) -> Iterator[TraceSettings]:
    """The settings as far as they are known before the teacher is, own code at hand for as long.

    Raises UsageError.
    """
    with own_code(flags.task, flags.tool_module, flags.reward) as code:
        offered = load_tools(flags.tools.tools)
        names = [tool.name for tool in offered]
        idle = code.not_offered(names)
        if idle:
            tell(f"Not offered to the teacher, as --tools does not name them: {', '.join(idle)}")
        system_prompt = flags.teacher.system_prompt
        asked = TraceSettings(
            task=code.task.name,
            model="",
            profile="",
            tool_mode=ToolMode.NONE,
            coordinates=Frame.PIXEL,
            crop_from=flags.tools.crop_from,
            temperature=flags.teacher.temperature,
            max_tokens=flags.teacher.max_tokens,
            max_turns=flags.tools.max_turns,
            seed=flags.samples.seed,
            sends_seed=True,
            view_rule=ResizeRule(),
            states_size=False,
            system_prompt=code.task.system_prompt if system_prompt is None else system_prompt,
            user_prompt=read_user_prompt(flags.teacher.user_prompt_file, code.task),
            tool_schemas=(),
            keep_pictures=flags.keep_pictures,
            code=code_limits(flags.code) if any(tool.runs_code for tool in offered) else None,
            own_code=code.as_json(names),
        )
        yield settings_for(asked, flags.tools, chosen_profile("", flags.tools))


def settings_for(asked: TraceSettings, flags: ToolFlags, profile: Profile, model: str = "") -> TraceSettings:
    """The settings with what follows from the family of the model that is asked."""
    offered = load_tools(flags.tools)
    boxes = BoxFrame(profile.frame, asked.crop_from)
    return replace(
        asked,
        model=model,
        profile=profile.name,
        coordinates=profile.frame,
        temperature=asked.temperature if profile.sends_temperature else None,
        view_rule=profile.rule,
        states_size=profile.states_size and bool(offered),
        tool_schemas=tuple(tool.schema(boxes) for tool in offered),
        token_field=profile.token_field,
    )


def read_user_prompt(path: str | None, task: Task) -> str:
    """What is asked of every row: the text of a file, else the task's own; raises UsageError."""
    if path is None:
        return task.user_prompt
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise UsageError(f"--user_prompt_file {path}: {error}") from None
    if not text:
        raise UsageError(f"--user_prompt_file {path} is empty")
    missing = [f"{{{name}}}" for name in task.needed_in_prompt if f"{{{name}}}" not in text]
    if missing:
        raise UsageError(
            f"--user_prompt_file {path}: it has no {missing[0]}, where each row's own text stands"
        )
    return text


def open_acceptance(
    flags: RunFlags, asked: TraceSettings, source: Source, rows: Sequence[int]
) -> Accept | None:
    """What `--accept` says, with `--target_acc` else what the task does; None where nothing is asked.

    Raises UsageError.
    """
    condition = flags.rollouts.accept
    if condition is None:
        return None if flags.samples.target_acc is None else _passing(TASKS[asked.task])
    from distil.run.conditions import accepting  # noqa: PLC0415 - the index, which few runs need

    return accepting(condition, RunFacts(source.identity, asked, versions_now()), source, rows)


def _passing(task: Task) -> Accept:
    """Whether a trace's answer counts as right to the task; raises UsageError where the task cannot say."""
    name = task.passed
    if name is None:
        raise UsageError(
            f"--target_acc: the task {task.name} does not say which answers pass: say it by --accept, as "
            '"score > 0.8"'
        )
    return lambda trace: trace["reward_score"].get(name) == 1


def settle(
    flags: RunFlags, asked: TraceSettings, source: Source, address: Address, tell: Callable[[str], None]
) -> tuple[Plan, Claim]:
    """The plan, and its folder, claimed; raises UsageError, TeacherRefused or FolderError.

    The cheap checks come first: nothing is paid for a run that could not start.
    """
    claim = Claim(Path(flags.samples.output_dir))
    teacher = teacher_settings(flags.teacher, address.api_base, address.api_key)
    teacher = replace(teacher, model=flags.teacher.model or "")
    teacher, names = ask_first_replica(teacher, address.api_bases, tell)
    profile = chosen_profile(teacher.model, flags.tools)
    unlisted = unlisted_warning(teacher.model, names, profile)
    if unlisted is not None:
        tell(f"Warning: {unlisted}")
    settings = settings_for(asked, flags.tools, profile, teacher.model)
    settings = replace(settings, teacher_note=address.note, columns=source.chosen or None)
    teacher = as_traces_say(teacher, settings)
    settle_claim = partial(
        settle_folder, fingerprint=source.identity.fingerprint, on_change=flags.samples.on_change
    )
    claim = settle_claim(claim, settings, ignored=PROBED)
    prompt = settings.prompt()
    with _setup_budget(flags.budget, teacher, claim) as budget:
        probe = _earlier_probe(flags.tools, teacher, prompt, claim)
        told = told_tool_mode(flags.tools, prompt)
        # In every mode the server is asked before the first sample, or remembered: a run never adapts.
        probe = probe or probe_tool_mode(teacher, prompt, budget, tell, told)
        probe = probe_replicas(probe, prompt, _replicas_after(teacher, address), budget, tell)
    settings = _asked_settings(settings, probe)
    _print_choices(probe, urls_text(address.api_bases), profile, tell)
    claim = settle_claim(claim, settings)
    plan = Plan(
        flags=flags,
        dataset_path=dataset_path(flags.samples, TASKS[asked.task]),
        dataset=source.identity,
        settings=settings,
        api_bases=address.api_bases,
        api_base=teacher.api_base,
        output_dir=str(claim.path),
        probe=probe.as_dict(),
    )
    return plan, claim


def foresee(flags: RunFlags, asked: TraceSettings, source: Source, address: Address) -> Plan:
    """The plan where the teacher takes all request fields, in auto mode native calls; nobody is asked.

    Raises UsageError where the folder cannot be used.
    """
    claim = _claimed(Path(flags.samples.output_dir))
    model = flags.teacher.model or _model_before(claim) or _NOT_ASKED
    settings = settings_for(asked, flags.tools, chosen_profile(model, flags.tools), model)
    told = told_tool_mode(flags.tools, settings.prompt())
    tool_mode = ToolMode.NATIVE if told is None else told[0]
    columns = source.chosen or None
    settings = replace(settings, tool_mode=tool_mode, teacher_note=address.note, columns=columns)
    if claim is not None:
        on_change, fingerprint = flags.samples.on_change, source.identity.fingerprint
        claim = settle_folder(claim, settings, PROBED, fingerprint=fingerprint, on_change=on_change)
    return Plan(
        flags=flags,
        dataset_path=dataset_path(flags.samples, TASKS[asked.task]),
        dataset=source.identity,
        settings=settings,
        api_bases=address.api_bases,
        api_base=address.api_base,
        output_dir=flags.samples.output_dir if claim is None else str(claim.path),
        probe={},
    )


def _claimed(path: Path) -> Claim | None:
    """The folder if it is there; raises UsageError where it is in use, or none could be made."""
    if path.exists():
        return Claim(path)
    there = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with TemporaryDirectory(prefix=".distil-", dir=there):
            return None
    except OSError as error:
        raise UsageError(f"--output_dir {path}: {error.strerror or error}") from None


def _model_before(claim: Claim | None) -> str | None:
    """The model of the last run into a folder."""
    runs = claim.earlier_runs[-1:] if claim is not None else []
    return next((run.get("settings", {}).get("model") for run in runs), None)


def _replicas_after(teacher: TeacherSettings, address: Address) -> Sequence[str]:
    """The replicas after the one that is asked first; those before it are not there."""
    urls = address.api_bases
    return urls[urls.index(teacher.api_base) + 1 :] if teacher.api_base in urls else ()


def chosen_profile(model: str, flags: ToolFlags) -> Profile:
    """The profile of a model's family, as the flags change it."""
    frame = None if flags.coordinates == AUTO else flags.coordinates
    return with_max_area(with_frame(find_profile(model), frame), flags.image_max_pixels)


def _asked_settings(settings: TraceSettings, probe: ProbeResult) -> TraceSettings:
    """The settings with what the teacher was found to take."""
    asked = probe.settings
    return replace(
        settings,
        tool_mode=probe.tool_mode,
        temperature=asked.temperature if asked.sends_temperature else None,
        sends_seed=asked.sends_seed,
        token_field=asked.token_field,
    )


def settle_folder(
    claim: Claim,
    settings: TraceSettings,
    ignored: Sequence[str] = (),
    *,
    fingerprint: str,
    on_change: OnChange,
) -> Claim:
    """The folder to write to: for NEW the first of it, `PATH-2`, `PATH-3` … that is free.

    Raises UsageError where what it holds was made with other settings and nothing was said about it.
    """
    if on_change is OnChange.REFUSE:
        claim.refuse_changes(settings, fingerprint, ignored)
    if on_change is OnChange.NEW:
        return first_free(claim, settings, fingerprint, ignored)
    return claim


@contextmanager
def _setup_budget(flags: BudgetFlags, teacher: TeacherSettings, claim: Claim) -> Iterator[Budget]:
    """The budget of the requests before the first sample; raises UsageError where they do not fit it."""
    try:
        yield open_budget(flags, teacher, claim.spending)
    except BudgetExceeded as error:
        raise UsageError(f"nothing can be asked within the budget, {error}") from None
    finally:
        claim.spending.flush()


def told_tool_mode(flags: ToolFlags, prompt: Prompt) -> tuple[ToolMode, str] | None:
    """The tool mode and why, None where the server has to be asked."""
    if not prompt.tools:
        return ToolMode.NONE, "no tools are offered"
    if flags.tool_mode != AUTO:
        return flags.tool_mode, "as --tool_mode says"
    return None


def _earlier_probe(
    flags: ToolFlags, teacher: TeacherSettings, prompt: Prompt, claim: Claim
) -> ProbeResult | None:
    """What the last run into the folder found out; the tool mode only if it asked, with the same tools."""
    for record in claim.earlier_runs[-1:]:
        settings, asked = record.get("settings", {}), record.get("options", {})
        asked_alike = asked.get("tool_mode") == AUTO and settings.get("tool_schemas") == list(prompt.tools)
        told = told_tool_mode(flags, prompt)
        if asked_alike or told is not None:
            earlier = recalled_probe(teacher, record.get("probe", {}))
            if earlier is None or told is None:
                return earlier
            return replace(earlier, tool_mode=told[0], reason=told[1])
    return None


def _bound_text(profile: Profile) -> str:
    """How large pictures are sent to a family that is not known."""
    if profile.name != UNKNOWN.name:
        return ""
    return f", pictures of at most {profile.rule.max_area_px or math.inf:,} pixels: --image_max_pixels"


def _print_choices(
    probe: ProbeResult,
    urls: str,
    profile: Profile,
    tell: Callable[[str], None],
) -> None:
    tell(
        f"Model: {probe.settings.model} at {urls}; tool calls: {probe.tool_mode.value} "
        f"({probe.reason}); boxes: {profile.frame.value} (profile {profile.name}{_bound_text(profile)})"
    )
    if profile.name == UNKNOWN.name and probe.tool_mode is not ToolMode.NONE:
        tell("This model's family is not known: its boxes are taken as pixels (see --coordinates).")
    if probe.sight_warning is not None:
        tell(f"Warning: {probe.sight_warning}")
