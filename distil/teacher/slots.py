"""The slots of the requests in flight: threads wait for one, first come first served.

Who waits sleeps until it is let in: a slot that is given back wakes one thread, whatever their number.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from distil.errors import RunHalted
from distil.teacher.climber import Climber, LevelState, Ticket

_LOOK_SECONDS = 0.5  # at what is stuck, while threads wait
_RISE_SECONDS = 0.02  # the same while the level rises by time
_UNLIMITED = 2**30


@dataclass(eq=False, slots=True)
class Slot:
    """The leave to have one request in flight; a context manager that waits for it and gives it back."""

    _slots: Slots
    _ticket: Ticket | None = None  # not let in
    _wake: threading.Lock | None = None  # held until it is let in, where it has to wait
    _was_refused: bool = False

    def __enter__(self) -> Slot:
        self._slots._acquire(self)
        return self

    def __exit__(self, error_class: type[BaseException] | None, *_: object) -> None:
        if self._ticket is not None:
            self._slots._release(self._ticket, error_class is None and not self._was_refused)

    def refused(self) -> None:
        """Tell that the server has too many requests (429, 503)."""
        self._was_refused = True
        if self._ticket is not None:
            self._slots._refuse(self._ticket)


class Slots:
    """Slots for requests in flight, as many as the level is; safe for many threads, first come first."""

    def __init__(
        self, ceiling: int, is_fixed: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._climber = Climber(ceiling, clock(), is_fixed)
        self._lock = threading.Lock()
        self._waiters: deque[Slot] = deque()
        self._is_looked_after = self._is_closed = False

    @classmethod
    def unlimited(cls) -> Slots:
        """As many slots as anyone asks for."""
        return cls(_UNLIMITED, is_fixed=True)

    def slot(self) -> Slot:
        """A slot for one request: `with slots.slot():` waits for its turn; RunHalted once closed."""
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
            while self._waiters:
                _wake(self._waiters.popleft())

    def _acquire(self, slot: Slot) -> None:
        with self._lock:
            if not self._is_closed and not self._waiters and self._climber.has_room:
                slot._ticket = self._climber.start(self._clock())
                return
            if not self._is_closed:
                slot._wake = threading.Lock()
                slot._wake.acquire()
                self._waiters.append(slot)
            is_first = not self._is_closed and self._climber.is_steering and not self._is_looked_after
            self._is_looked_after |= is_first
        if is_first:
            threading.Thread(target=self._look_after, name="teacher-level", daemon=True).start()
        if slot._wake is not None:
            slot._wake.acquire()
        if slot._ticket is None:
            raise RunHalted("the run was given up")
        slot._ticket.lag_seconds = self._clock() - slot._ticket.started_at

    def _release(self, ticket: Ticket, is_measured: bool) -> None:
        with self._lock:
            now = self._clock()
            self._climber.finish(ticket, now, now - ticket.started_at if is_measured else None)
            self._admit()

    def _refuse(self, ticket: Ticket) -> None:
        with self._lock:
            self._climber.refuse(ticket, self._clock())

    def _look_after(self) -> None:
        """Now and then, while threads wait: let in who may be by the time that has passed."""
        while True:
            time.sleep(_RISE_SECONDS if self._climber.rises_by_time else _LOOK_SECONDS)
            with self._lock:
                if self._is_closed or not self._waiters:
                    self._is_looked_after = False
                    return
                now = self._clock()
                self._climber.rise_by_time(now)
                self._climber.pass_over_stuck(now)
                self._admit()

    def _admit(self) -> None:
        """Let in those who wait longest while there is room; the lock is held."""
        while self._waiters and self._climber.has_room:
            slot = self._waiters.popleft()
            slot._ticket = self._climber.start(self._clock())
            _wake(slot)


def _wake(slot: Slot) -> None:
    """Let the thread that waits for the slot go on."""
    if slot._wake is not None:
        slot._wake.release()
