"""What many threads have to write, written in groups: whoever waits at one moment shares one write.

The first thread that comes writes what is there, its own included, and then makes the first of those that
came meanwhile the next to write. Each of the others waits on a lock of its own and is woken once, when its
item is written or it is its turn to write; no thread holds a lock that another one needs while it writes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from distil.errors import FolderError

ItemT = TypeVar("ItemT")


class _Waiting(Generic[ItemT]):
    """An item that is to be written, and the thread that waits for it."""

    __slots__ = ("error", "is_over", "item", "sleep")

    def __init__(self, item: ItemT) -> None:
        self.item = item
        self.is_over = False
        self.error: str | None = None
        self.sleep = threading.Lock()
        self.sleep.acquire()


class Groups(Generic[ItemT]):
    """Hands items of many threads to `write`, one group after the other; `write` raises FolderError."""

    def __init__(self, write: Callable[[Sequence[ItemT]], None]) -> None:
        self._write = write
        self._waiting: deque[_Waiting[ItemT]] = deque()
        self._writing = threading.Lock()  # held by whoever writes, and handed on with the task

    def add(self, item: ItemT) -> None:
        """Return when the item is written; raises FolderError where its group could not be."""
        mine = _Waiting(item)
        self._waiting.append(mine)
        if not self._writing.acquire(blocking=False):
            mine.sleep.acquire()
            if not mine.is_over:  # woken to write
                self._write_waiting()
        else:
            self._write_waiting()
        if mine.error is not None:
            raise FolderError(mine.error)

    def _write_waiting(self) -> None:
        """Write what is there, and hand on; it may be that another one has written all of it just now."""
        group = [self._waiting.popleft() for _ in range(len(self._waiting))]
        error: str | None = "what another thread was to write could not be written"
        try:
            if group:
                self._write([waiting.item for waiting in group])
            error = None
        except FolderError as failed:
            error = str(failed)
        finally:
            for waiting in group:
                waiting.error, waiting.is_over = error, True
            self._hand_on()
            for waiting in group:
                waiting.sleep.release()

    def _hand_on(self) -> None:
        """Wake the first that waits, to write; where there is none, the next to come finds the way free."""
        while not self._waiting:
            self._writing.release()
            # One that came between these two lines waits, and nobody writes: so look again.
            if not self._waiting or not self._writing.acquire(blocking=False):
                return
        self._waiting[0].sleep.release()
