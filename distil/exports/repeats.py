"""Traces that say the same: what a teacher at temperature 0 makes of several rollouts."""

from __future__ import annotations

from pathlib import Path

from distil.errors import TraceError
from distil.replay.replay import Executors, Sources
from distil.store.summary import trace_calls, trace_turns, turn_text
from distil.store.trace_file import load_json
from distil.store.trace_settings import json_sha256


def said_sha256(path: Path, _: Sources, __: Executors) -> str | None:
    """A hash of all that a trace's teacher said, thought and called; None where it cannot be read."""
    try:
        trace = load_json(path)
    except TraceError:
        return None
    said = [[turn_text(turn), turn.get("reasoning")] for turn in trace_turns(trace)]
    called = [
        [call.get(name) for name in ("turn", "tool_name", "tool_arguments", "code")]
        for call in trace_calls(trace)
    ]
    return json_sha256({"said": said, "called": called})
