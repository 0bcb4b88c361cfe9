"""Which traces are exported, in which order, and into which split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distil.errors import UsageError
from distil.store.folder import find_trace_files

TRAIN = "train"


@dataclass(frozen=True, slots=True)
class Pick:
    """A trace that is to be exported, and the split that its row goes into."""

    path: Path
    split: str = TRAIN


def find_picks(paths: Sequence[Path]) -> list[Pick]:
    """All traces of folders, and trace files, in their order; raises UsageError where there is none."""
    picks: list[Pick] = []
    for path in paths:
        found = [path] if path.is_file() else find_trace_files(path)
        if not found:
            raise UsageError(f"{path} is no trace file and holds no trace_*.json")
        picks += map(Pick, found)
    return picks
