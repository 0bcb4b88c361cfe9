"""`--dry_run`: all that a run checks before it asks its teacher, and the first request that it would send."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from distil.commands.flags import RunFlags
from distil.errors import UsageError
from distil.records import Size, ToolMode
from distil.rollout import Conversation, turn_seed
from distil.run.draws import open_draws
from distil.run.plan import as_traces_say, teacher_settings, urls_text
from distil.run.schedule import Rollouts
from distil.run.settle import (
    PROBED,
    open_acceptance,
    settings_for,
    settle_folder,
    told_tool_mode,
    what_is_asked,
)
from distil.run.solver import open_budget, open_rows, open_sandbox, rollout_settings
from distil.store.folder import Claim
from distil.store.spending import SpendingFile
from distil.store.trace_file import trace_name
from distil.store.trace_settings import TraceSettings
from distil.tasks import TASKS
from distil.teacher.address import find_teacher
from distil.teacher.client import request_body

_NOT_ASKED = "(the server's only model)"
_DATA_URL = re.compile(r'"data:([^"\\]*?);base64,([^"\\]*)"')


def show_first_request(flags: RunFlags, tell: Callable[[str], None]) -> None:
    """Check it all and tell the first request, its pictures as sizes; nobody is asked anything.

    Raises what a run would: UsageError, SourceError, SandboxUnavailable.
    """
    address = find_teacher(flags.teacher.api_base)
    with what_is_asked(flags, tell) as asked, open_sandbox(flags, tell):
        task = TASKS[asked.task]
        source, indices = open_rows(flags.samples, task, tell)
        draws = open_draws(flags, task, source, indices)
        open_acceptance(flags, asked, source, indices)
        if draws is not None:
            indices = draws.first()
            tell(f"--target_acc: {len(indices)} rows are drawn at once, the others by what comes of these")
        folder = Path(flags.samples.output_dir)
        claim = _claimed(folder)
        model = flags.teacher.model or _model_before(claim) or _NOT_ASKED
        settings = _expected(flags, asked, model)
        settings = replace(settings, teacher_note=address.note, columns=source.chosen or None)
        teacher = teacher_settings(flags.teacher, address.api_base, address.api_key)
        teacher = as_traces_say(teacher, settings)
        if claim is not None:
            claim = settle_folder(claim, settings, flags, source.identity.fingerprint, PROBED)
            folder = claim.path
        open_budget(flags.budget, teacher, SpendingFile(folder))
        wanted = Rollouts(indices, flags.rollouts.rollouts_per_sample)
        left = [each for each in wanted if not (folder / trace_name(each)).exists()]
        tell(
            f"Dry run: nothing is sent. {_wanted_text(wanted)} are selected, {len(wanted) - len(left)} of "
            f"them have a trace in {folder}."
        )
        if not left:
            tell("Nothing is left to ask.")
            return
        sample_id = left[0]
        sample = source.read(sample_id)(None)
        conversation = Conversation.start(sample, rollout_settings(settings, None))
    tools = settings.prompt().native_tools
    seed = turn_seed(settings.seed, sample_id, 1)
    body = request_body(teacher, tools, conversation.messages, seed)
    urls = address.note or urls_text(teacher, address.api_bases)
    tell(f"The first request, of sample {sample_id} to {urls}, {len(body):,} bytes:")
    for line in _pretty(body, conversation.sent.size).splitlines():
        tell(line)


def _wanted_text(wanted: Rollouts) -> str:
    """How many samples are selected, and of how many rows where those have several."""
    of_rows = f" ({len(wanted.rows)} rows, each up to {wanted.num_each} times)" if wanted.num_each > 1 else ""
    return f"{len(wanted)} samples{of_rows}"


def _expected(flags: RunFlags, asked: TraceSettings, model: str) -> TraceSettings:
    """The settings where the teacher takes all request fields; in auto mode by native calls."""
    settings = settings_for(asked, flags, model)
    told = told_tool_mode(flags.tools, settings.prompt())
    return replace(settings, tool_mode=ToolMode.NATIVE if told is None else told[0])


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


def _pretty(body: bytes, size: Size) -> str:
    """The request with what its picture is in place of the picture itself."""

    def stated(match: re.Match[str]) -> str:
        kind, data = match.groups()
        num_bytes = len(data) * 3 // 4 - data[-2:].count("=")
        return f'"<{kind}, {size[0]}×{size[1]}, {num_bytes:,} bytes>"'

    return _DATA_URL.sub(stated, json.dumps(json.loads(body), ensure_ascii=False, indent=2))
