"""What every page needs to know: the folders, their index, where they stand, and where the dataset is."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from starlette.requests import Request

from distil.errors import DistilError
from distil.index.index import TraceIndex
from distil.index.query import Query
from distil.store.marks import MARKS
from distil.store.status import FolderStatus, read_status
from distil.tasks import TASKS

_SHORTEST_PAUSE_SECONDS = 1.0
_REST = 9  # times as long as a round took: it takes no more than a tenth of a core
_ERRORS = (DistilError, OSError, sqlite3.Error)


@dataclass(frozen=True)
class Now:
    """What is known of the folders; `generation` is another as soon as a trace, a mark or a state is."""

    generation: int = 0
    statuses: tuple[FolderStatus | None, ...] = ()  # None where a folder is no run's, or not read yet
    is_read: bool = False
    problem: str | None = None  # why it could not be read again
    marks: tuple[object, ...] = ()


class Keeper:
    """Reads anew what has changed, in one thread of its own, each time after somebody has asked."""

    def __init__(self, folders: Sequence[Path], update: Callable[[], int]) -> None:
        """`update` brings the index up to date and says how many files it has read."""
        self._folders, self._update = folders, update
        self._wanted, self._first = threading.Event(), threading.Event()
        self._now = Now(statuses=(None,) * len(folders))
        self._thread: threading.Thread | None = None
        self._start, self._reading = threading.Lock(), threading.Lock()

    def now(self, wait_seconds: float = 0.0) -> Now:
        """What is known; asks for it to be read anew. Only the first time is waited for, and not for long."""
        with self._start:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="keeper", daemon=True)
                self._thread.start()
        self._wanted.set()
        if wait_seconds:
            self._first.wait(wait_seconds)
        return self._now

    def refresh(self) -> Now:
        """What is known once all has been read anew."""
        return self._refresh(self._update)

    def _refresh(self, update: Callable[[], int]) -> Now:
        with self._reading:
            self._now = self._read(self._now, update)
        self._first.set()
        return self._now

    def _work(self) -> None:
        self._refresh(lambda: 0)  # the index was made a moment ago
        while True:
            self._wanted.wait()
            self._wanted.clear()
            began = time.monotonic()
            self._refresh(self._update)
            time.sleep(max(_SHORTEST_PAUSE_SECONDS, _REST * (time.monotonic() - began)))

    def _read(self, before: Now, update: Callable[[], int]) -> Now:
        try:
            num_read = update()
            statuses = tuple(map(_status, self._folders))
        except _ERRORS as error:
            return replace(before, is_read=True, problem=str(error))
        marks = tuple(map(_marks_stamp, self._folders))
        is_other = num_read > 0 or marks != before.marks or _states(statuses) != _states(before.statuses)
        return Now(before.generation + (is_other and before.is_read), statuses, True, marks=marks)


def _status(folder: Path) -> FolderStatus | None:
    try:
        return read_status(folder)
    except DistilError:
        return None


def _marks_stamp(folder: Path) -> object:
    try:
        facts = (folder / MARKS).stat()
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns


def _states(statuses: Sequence[FolderStatus | None]) -> list[object]:
    return [status and (status.state, status.num_done, dict(status.failed)) for status in statuses]


@dataclass(frozen=True)
class Viewer:
    """The folders that are shown, in the order given, and the index over them."""

    folders: tuple[Path, ...]
    index: TraceIndex
    token: str | None = None
    dataset_override: str | None = None
    _cache: dict[str, tuple[int, Any]] = field(default_factory=dict, repr=False)
    _making: defaultdict[str, threading.Lock] = field(
        default_factory=lambda: defaultdict(threading.Lock), repr=False
    )

    @cached_property
    def names(self) -> Sequence[str]:
        """What the folders are called: by as much of their paths as tells them apart."""
        return short_names(self.folders)

    @cached_property
    def keeper(self) -> Keeper:
        """Who reads anew what has changed."""
        return Keeper(self.folders, self.index.update)

    @property
    def metric_columns(self) -> list[str]:
        """The columns of what the traces' tasks measure beside the score."""
        headings = {metric.heading for task in TASKS.values() for metric in task.metrics}
        metrics = (column for column in self.index.columns if column.source == "metric")
        return [column.name for column in metrics if column.heading in headings and column.name != "score"]

    @property
    def tasks(self) -> list[str]:
        """The tasks that the traces were made for."""
        tasks = self.index.rows(Query(order=()), ["task"])
        return sorted({task for (task,) in tasks if isinstance(task, str)})

    def cached(self, name: str, generation: int, make: Callable[[], Any]) -> Any:
        """What `make` gave for a generation of the index; of each name the last is kept."""
        with self._making[name]:
            kept = self._cache.get(name)
            if kept is None or kept[0] != generation:
                kept = self._cache[name] = (generation, make())
            return kept[1]


def viewer_of(request: Request) -> Viewer:
    """That of the app that answers a request."""
    return cast(Viewer, request.app.state.viewer)


def short_names(folders: Sequence[Path]) -> list[str]:
    """Each folder's last name, with those before it where others end alike."""
    paths = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, paths), default=1)):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def part_of(file: str) -> str:
    """What tells a trace's file from others of its folder."""
    return file.removeprefix("trace_").removesuffix(".json")


def trace_link(run: int, file: str, link_query: str = "") -> str:
    """The address of a trace's page."""
    part = quote(part_of(file), safe="")
    return f"/trace/{run}/{part}" + (f"?{link_query}" if link_query else "")
