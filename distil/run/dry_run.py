"""`--dry_run`: all that a run checks before it asks its teacher, and the first request that it would send."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from distil.commands.flags import RunFlags
from distil.errors import UsageError
from distil.records import Json, OnChange, ToolMode
from distil.rollout import Conversation, turn_seed
from distil.run.draws import Bins, open_bins
from distil.run.plan import teacher_settings, urls_text
from distil.run.schedule import Rollouts
from distil.run.settle import (
    PROBED,
    Asked,
    chosen_profile,
    open_acceptance,
    settle_folder,
    told_tool_mode,
    unasked_settings,
    what_is_asked,
)
from distil.run.solver import open_budget, open_rows, open_sandbox, rollout_settings
from distil.store.claim import Claim, SpendingFile
from distil.store.trace_file import trace_name
from distil.store.trace_settings import TraceSettings
from distil.teacher.address import Address, find_teacher
from distil.teacher.client import TeacherSettings, request_body

_NOT_ASKED = "(the server's only model)"
_DATA_URL = "data:"


def show_first_request(flags: RunFlags, tell: Callable[[str], None]) -> None:
    """Check it all and tell the first request, its pictures as sizes; nobody is asked anything.

    Raises what a run would: UsageError, SourceError, SandboxUnavailable.
    """
    address = find_teacher(flags.teacher.api_base)
    with what_is_asked(flags, tell) as asked, open_sandbox(flags, tell):
        source, indices = open_rows(flags.samples, asked.task, tell)
        bins = open_bins(flags, asked.task, source, indices)
        open_acceptance(flags, asked, source, indices)
        if bins is not None:
            indices = _first_drawn(bins, flags)
            tell(f"--target_acc: {len(indices)} rows are drawn at once, the others by what comes of these")
        folder = Path(flags.samples.output_dir)
        claim = _claimed(folder)
        model = flags.teacher.model or _model_before(claim) or _NOT_ASKED
        teacher, settings = _expected(flags, asked, address, model)
        settings = replace(settings, columns=source.chosen or None)
        if claim is not None:
            on_change = OnChange(flags.samples.on_change)
            fingerprint = source.identity.fingerprint
            claim = settle_folder(claim, settings, PROBED, fingerprint=fingerprint, on_change=on_change)
            folder = claim.path
        open_budget(flags.budget, teacher, SpendingFile(folder))
        wanted = Rollouts(indices, flags.rollouts.rollouts_per_sample)
        is_left = [not (folder / trace_name(each)).exists() for each in wanted]
        tell(
            f"Dry run: nothing is sent. {_wanted_text(wanted)} are selected, {is_left.count(False)} of them "
            f"have a trace in {folder}."
        )
        if True not in is_left:
            tell("Nothing is left to ask.")
            return
        sample_id = wanted[is_left.index(True)]
        sample = source.read(sample_id)(None)
        conversation = Conversation.start(sample, rollout_settings(settings, None))
    tools = settings.prompt().native_tools
    seed = turn_seed(settings.seed, sample_id, 1)
    body = request_body(teacher, tools, conversation.messages, seed)
    urls = address.note or urls_text(teacher, address.api_bases)
    tell(f"The first request, of sample {sample_id} to {urls}, {len(body):,} bytes:")
    for line in _pretty(body, conversation.sent.size).splitlines():
        tell(line)


def _first_drawn(bins: Bins, flags: RunFlags) -> list[int]:
    """The rows that a new folder's run draws before anything came of one."""
    aim = bins.aim(flags)
    while aim.draw() is not None:
        pass
    return aim.rows


def _wanted_text(wanted: Rollouts) -> str:
    """How many samples are selected, and of how many rows where those have several."""
    of_rows = f" ({len(wanted.rows)} rows, each up to {wanted.num_each} times)" if wanted.num_each > 1 else ""
    return f"{len(wanted)} samples{of_rows}"


def _expected(
    flags: RunFlags, asked: Asked, address: Address, model: str
) -> tuple[TeacherSettings, TraceSettings]:
    """How the teacher is asked where it takes all request fields; in auto mode by native calls."""
    teacher = replace(teacher_settings(flags.teacher, address.api_base, address.api_key), model=model)
    profile = chosen_profile(teacher.model, flags.tools)
    teacher = replace(teacher, token_field=profile.token_field, sends_temperature=profile.sends_temperature)
    settings = unasked_settings(flags, asked, profile, teacher)
    told = told_tool_mode(flags.tools, settings.prompt())
    mode = ToolMode.NATIVE if told is None else told[0]
    return teacher, replace(settings, tool_mode=mode, teacher_note=address.note)


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


def _pretty(body: bytes, size: tuple[int, int]) -> str:
    request = json.loads(body)
    return json.dumps(_with_sizes(request, size), ensure_ascii=False, indent=2)


def _with_sizes(value: Json, size: tuple[int, int]) -> Json:
    """The request with what its picture is in place of the picture itself."""
    if isinstance(value, dict):
        return {name: _with_sizes(item, size) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_sizes(item, size) for item in value]
    if isinstance(value, str) and value.startswith(_DATA_URL) and ";base64," in value:
        kind, _, data = value.partition(";base64,")
        num_bytes = len(data) * 3 // 4 - data[-2:].count("=")
        return f"<{kind.removeprefix(_DATA_URL)}, {size[0]}×{size[1]}, {num_bytes:,} bytes>"
    return value
