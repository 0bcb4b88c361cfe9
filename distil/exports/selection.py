"""Which traces are exported, in which order, and into which split."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from distil.errors import UsageError
from distil.index.index import TraceIndex
from distil.index.query import Query
from distil.store.folder import find_trace_files

TRAIN = "train"


@dataclass(frozen=True, slots=True)
class Pick:
    """A trace that is to be exported, and the split that its row goes into."""

    path: Path
    split: str = TRAIN


def find_picks(paths: Sequence[Path], where: str | None = None) -> list[Pick]:
    """The traces of folders, and trace files, in their order; `where` is SQL over the columns of the index.

    Raises UsageError where there is none, where SQL is no expression, and for SQL over single files.
    """
    if where is not None:
        return _picks_where(paths, where)
    picks: list[Pick] = []
    for path in paths:
        found = [path] if path.is_file() else find_trace_files(path)
        if not found:
            raise UsageError(f"{path} is no trace file and holds no trace_*.json")
        picks += map(Pick, found)
    return picks


def _picks_where(paths: Sequence[Path], where: str) -> list[Pick]:
    files = [path for path in paths if path.is_file()]
    if files:
        raise UsageError(f"--where chooses among the traces of folders, and {files[0]} is a file")
    with closing(TraceIndex.open(paths)) as index:
        found = index.rows(Query(where=where), ("run", "file"))
        picks = [Pick(paths[run] / str(file)) for run, file in found]
    if not picks:
        raise UsageError(f"--where {where!r}: no trace is so")
    return picks
