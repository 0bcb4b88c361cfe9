"""Keeps the index and where the runs stand current, while somebody looks."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distil.errors import DistilError
from distil.store.marks import MARKS
from distil.store.status import FolderStatus, read_status

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
