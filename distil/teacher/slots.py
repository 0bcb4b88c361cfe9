"""The slots of the requests in flight: threads wait for one, first come first served.

Who waits sleeps until it is let in: a slot that is given back wakes one thread, whatever their number.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue

from distil.errors import RunHalted
from distil.teacher.climber import Climber, LevelState, Ticket

_LOOK_SECONDS = 0.5  # at what is stuck, while threads wait
_RISE_SECONDS = 0.02  # the same while the level rises by time
_UNLIMITED = 2**30


class Slots:
    """Slots for requests in flight, as many as the level is; safe for many threads, first come first."""

    def __init__(
        self, ceiling: int, is_fixed: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._climber = Climber(ceiling, clock(), is_fixed)
        self._lock = threading.Lock()
        self._waiters: deque[SimpleQueue[Ticket | None]] = deque()  # None: closed
        self._is_looked_after = self._is_closed = False

    @classmethod
    def unlimited(cls) -> Slots:
        """As many slots as anyone asks for."""
        return cls(_UNLIMITED, is_fixed=True)

    @contextmanager
    def slot(self) -> Iterator[Ticket]:
        """Around one request, which waits for its turn; raises RunHalted once closed."""
        ticket = self._acquire()
        is_measured = False
        try:
            yield ticket
            is_measured = True
        finally:
            self._release(ticket, is_measured)

    def refuse(self, ticket: Ticket) -> None:
        """Take in that the server has too many requests (429, 503): the slot is then left by an error."""
        with self._lock:
            self._climber.refuse(ticket, self._clock())

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
                self._waiters.popleft().put(None)

    def _acquire(self) -> Ticket:
        with self._lock:
            if self._is_closed:
                raise RunHalted("the run was given up")
            if not self._waiters and self._climber.has_room:
                return self._climber.start(self._clock())
            waiter: SimpleQueue[Ticket | None] = SimpleQueue()
            self._waiters.append(waiter)
            is_first = self._climber.is_steering and not self._is_looked_after
            self._is_looked_after |= is_first
        if is_first:
            threading.Thread(target=self._look_after, name="teacher-level", daemon=True).start()
        ticket = waiter.get()
        if ticket is None:
            raise RunHalted("the run was given up")
        ticket.lag_seconds = self._clock() - ticket.started_at
        return ticket

    def _release(self, ticket: Ticket, is_measured: bool) -> None:
        with self._lock:
            now = self._clock()
            self._climber.finish(ticket, now, now - ticket.started_at if is_measured else None)
            self._admit()

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
            self._waiters.popleft().put(self._climber.start(self._clock()))
