"""The slots of the requests in flight: threads wait for one, first come first served."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from distil.errors import TeacherError
from distil.teacher.climber import Climber, LevelState, Ticket

_WAKE_SECONDS = 0.5
_UNLIMITED = 2**30


@dataclass(slots=True)
class Slot:
    """The leave to have one request in flight; a context manager that waits for it and gives it back."""

    _slots: Slots
    _ticket: Ticket | None = None
    _started_at: float = 0.0
    _was_refused: bool = False

    def __enter__(self) -> Slot:
        self._ticket, self._started_at = self._slots._acquire()
        return self

    def __exit__(self, error_class: type[BaseException] | None, *_: object) -> None:
        is_measured = error_class is None and not self._was_refused
        if self._ticket is not None:
            self._slots._release(self._ticket, self._started_at if is_measured else None)

    def refused(self) -> None:
        """Tell that the server has too many requests (429, 503)."""
        self._was_refused = True
        if self._ticket is not None:
            self._slots._refuse(self._ticket)


@dataclass(slots=True)
class _Waiter:
    admitted: threading.Event = field(default_factory=threading.Event)
    ticket: Ticket | None = None  # not let in
    started_at: float = 0.0


class Slots:
    """Slots for requests in flight, as many as the level is; safe for many threads, first come first."""

    def __init__(
        self, ceiling: int, is_fixed: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._climber = Climber(ceiling, clock(), is_fixed)
        self._lock = threading.Lock()
        self._waiters: deque[_Waiter] = deque()
        self._is_closed = False

    @classmethod
    def unlimited(cls) -> Slots:
        """As many slots as anyone asks for."""
        return cls(_UNLIMITED, is_fixed=True)

    def slot(self) -> Slot:
        """A slot for one request: `with slots.slot():` waits for its turn; TeacherError once closed."""
        return Slot(self)

    def state(self) -> LevelState:
        """The level as it is now."""
        with self._lock:
            climber = self._climber
            return LevelState(
                climber.level, climber.ceiling, climber.highest, climber.reason, dict(climber.changes)
            )

    def close(self) -> None:
        """Let nobody in any more, and wake all who wait."""
        with self._lock:
            self._is_closed = True
            waiters, self._waiters = list(self._waiters), deque()
        for waiter in waiters:
            waiter.admitted.set()

    def _acquire(self) -> tuple[Ticket, float]:
        waiter = _Waiter()
        with self._lock:
            self._waiters.append(waiter)
            self._admit()
        while not waiter.admitted.wait(_WAKE_SECONDS):
            with self._lock:
                self._climber.pass_over_stuck(self._clock())
                self._admit()
        if waiter.ticket is None:
            raise TeacherError("the run was given up")
        return waiter.ticket, waiter.started_at

    def _release(self, ticket: Ticket, started_at: float | None) -> None:
        with self._lock:
            now = self._clock()
            self._climber.finish(ticket, now, None if started_at is None else now - started_at)
            self._admit()

    def _refuse(self, ticket: Ticket) -> None:
        with self._lock:
            self._climber.refuse(ticket, self._clock())

    def _admit(self) -> None:
        """Let in those who wait longest while there is room; the lock is held."""
        if self._is_closed:
            for waiter in self._waiters:
                waiter.admitted.set()
            self._waiters.clear()
        while self._waiters and self._climber.has_room:
            waiter = self._waiters.popleft()
            waiter.started_at = self._clock()
            waiter.ticket = self._climber.start(waiter.started_at)
            waiter.admitted.set()
