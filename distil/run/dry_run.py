"""`--dry_run`: all that a run checks before it asks its teacher, and the first request that it would send."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from distil.records import Size
from distil.rollout import Conversation, turn_seed
from distil.run.draws import Draws
from distil.run.plan import Plan
from distil.run.schedule import Rollouts
from distil.run.solver import open_budget, rollout_settings
from distil.source.rows import Source
from distil.store.spending import SpendingFile
from distil.store.trace_file import trace_name
from distil.teacher.client import request_body

_DATA_URL = re.compile(r'"data:([^"\\]*?);base64,([^"\\]*)"')


def show_first_request(plan: Plan, wanted: Rollouts, source: Source, tell: Callable[[str], None]) -> None:
    """Tell the first request of a plan, its pictures as sizes; raises UsageError where the budget bars it."""
    settings, folder, teacher = plan.settings, Path(plan.output_dir), plan.teacher("")
    open_budget(plan.flags.budget, teacher, SpendingFile(folder))
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
    urls = settings.teacher_note or plan.shown_urls
    tell(f"The first request, of sample {sample_id} to {urls}, {len(body):,} bytes:")
    for line in _pretty(body, conversation.sent.size).splitlines():
        tell(line)


def first_drawn(draws: Draws, tell: Callable[[str], None]) -> list[int]:
    """The rows that are drawn at once."""
    rows = draws.first()
    tell(f"--target_acc: {len(rows)} rows are drawn at once, the others by what comes of these")
    return rows


def _wanted_text(wanted: Rollouts) -> str:
    """How many samples are selected, and of how many rows where those have several."""
    of_rows = f" ({len(wanted.rows)} rows, each up to {wanted.num_each} times)" if wanted.num_each > 1 else ""
    return f"{len(wanted)} samples{of_rows}"


def _pretty(body: bytes, size: Size) -> str:
    """The request with what its picture is in place of the picture itself."""

    def stated(match: re.Match[str]) -> str:
        kind, data = match.groups()
        num_bytes = len(data) * 3 // 4 - data[-2:].count("=")
        return f'"<{kind}, {size[0]}×{size[1]}, {num_bytes:,} bytes>"'

    return _DATA_URL.sub(stated, json.dumps(json.loads(body), ensure_ascii=False, indent=2))
