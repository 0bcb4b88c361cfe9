"""`distil import`: conversations of others as traces, and what became of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distil.exports.importing import import_rows
from distil.records import Frame
from distil.terminal.terminal import Terminal

_SHOWN = 20


def import_files(files: Sequence[Path], out: Path, frame: Frame, terminal: Terminal) -> int:
    """Import files of chat messages into a new folder; returns 0, or 1 where a row was refused.

    Raises UsageError where nothing can be imported.
    """
    num_told = 0

    def tell(line: str) -> None:
        nonlocal num_told
        num_told += 1
        if num_told <= _SHOWN:
            terminal.say(line, "red")

    done = import_rows(files, out, frame, tell)
    terminal.say(
        f"{done.num_traces:,} traces of {done.num_photos:,} photos: {out}. Of {done.num_calls:,} calls "
        f"{done.num_verified:,} give their pictures again, {done.num_kept:,} pictures are kept as they came"
    )
    if done.refused:
        terminal.say(f"{done.refused.total():,} rows are not imported")
    if terminal.gives_json:
        terminal.give({"out": str(out), **done.as_json()})
    return 1 if done.refused else 0
