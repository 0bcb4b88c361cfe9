"""The level, how many requests may be in flight at once: it finds itself, under a ceiling.

A server that queues (vLLM, SGLang) never refuses, so refusals alone cannot steer. The level goes by what
more requests in flight are worth: it rises while they raise the throughput by a fair part of their share,
and falls where they only wait longer, or where the server refuses (429, 503). A request that many later ones
have overtaken is stuck, or exceptionally long: it says nothing about the level and takes no room in it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum, StrEnum

from distil.records import Json

_FIRST_LEVEL = 4
_WORTH = 0.15  # a share s of more requests must raise the throughput by 0.15 s, or they only queue
_MARGIN = 1.15  # over the knee: a request too many in the queue costs nothing, an idle slot does
_FINE_RISE, _FINE_FALL, _REFUSED_FALL = 1.4, 0.7, 0.7  # smaller trials drown in the noise
_CLIMBED = 1.5  # a latency that rose this much since the last window calls for a look at a lower level
_SATURATED = 0.8  # of the level must have been in flight, or a window says nothing about the server
_MIN_WINDOW_SECONDS = 0.25
_PRECISION = 0.05  # the standard error of the mean latency at which a window is long enough
_MIN_ROUNDS, _MAX_ROUNDS, _MAX_FAST_ROUNDS = 2, 8, 3  # the length of a window, in replies per level
_MAX_REPLIES = 48  # or this many, where the level is low
_REFUSED_SHARE = 0.2  # of the latest replies; fewer refusals are faults, not overload
_MIN_LATEST = 32
_FIRST_PATIENCE, _CEILING_PATIENCE, _MAX_PATIENCE = 2, 8, 8  # windows between two trials
_FORGET_REFUSAL_WINDOWS = 32
_OVERTAKEN_ROUNDS, _MIN_OVERTAKEN = 4, 12  # replies per level to later requests, and at the least
_STUCK_LATENCIES, _MIN_STUCK_SECONDS = 20, 0.5  # where nothing is left to overtake
_LATENCY_WEIGHT = 1 / 16  # of the latest reply in the usual latency


class Reason(StrEnum):
    """Why the level is what it is."""

    START = "start"
    FIXED = "fixed"
    GAIN = "more throughput"  # more in flight gave more
    QUEUE = "longer waits, no more throughput"  # more in flight gave nothing, or fewer gave the same
    NEEDED = "fewer gave less"  # a trial of a lower level lost throughput
    REFUSED = "refused"
    NO_DEMAND = "no demand for more"


@dataclass(frozen=True, slots=True)
class LevelState:
    """The level now, its ceiling, the highest it was, and how often it was changed why."""

    level: int
    ceiling: int
    highest: int
    reason: Reason
    changes: Mapping[str, int]

    def as_dict(self) -> dict[str, Json]:
        """The state as the run record keeps it."""
        return asdict(self) | {"reason": self.reason.value}


@dataclass(eq=False, slots=True)
class Ticket:
    """A request in flight: the epoch of levels it started in, and how many replies had come by then."""

    epoch: int
    started_at: float
    num_replies_before: int
    is_overtaken: bool = False


class _Trial(Enum):
    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class _Measured:
    """What a level gave: replies a second, and how long one took."""

    level: int
    throughput: float
    latency_seconds: float

    def mean_with(self, other: _Measured) -> _Measured:
        throughput = (self.throughput + other.throughput) / 2
        return _Measured(self.level, throughput, (self.latency_seconds + other.latency_seconds) / 2)


@dataclass(slots=True)
class _Window:
    """The replies that one measurement is made of, after `num_to_skip` that met another level."""

    opened_at: float
    num_to_skip: int = 0
    num_replies: int = 0
    seconds: float = 0.0
    squares: float = 0.0
    in_flight_seconds: float = 0.0

    def skip(self, now: float) -> None:
        """Pass over one reply; the measurement begins after the last of them."""
        self.num_to_skip -= 1
        self.opened_at, self.in_flight_seconds = now, 0.0

    def add(self, seconds: float) -> None:
        """Count a reply and the time it took."""
        self.num_replies += 1
        self.seconds += seconds
        self.squares += seconds * seconds

    @property
    def latency_seconds(self) -> float:
        """The mean latency; a clock that cannot tell gives a very small one."""
        return max(self.seconds / self.num_replies, 1e-9)

    @property
    def relative_error(self) -> float:
        """The standard error of the mean latency, as a share of it."""
        variance = max(0.0, self.squares / self.num_replies - self.latency_seconds**2)
        return math.sqrt(variance / self.num_replies) / self.latency_seconds


class Climber:
    """The controller: told when requests start and end, it moves `level`; not safe for many threads.

    It doubles the level for as long as that pays, with one round of replies a step. Where it does not pay
    any more it lands at the knee, stays, and now and then tries a level a little above or below for long
    enough to tell gain from noise.
    """

    def __init__(self, ceiling: int, now: float, is_fixed: bool = False) -> None:
        self.ceiling = ceiling
        self.level = ceiling if is_fixed else min(_FIRST_LEVEL, ceiling)
        self.highest = self.level
        self.reason = Reason.FIXED if is_fixed else Reason.START
        self.changes: Counter[str] = Counter()
        self.in_flight = self.num_overtaken = 0  # those that were overtaken are not counted as in flight
        self._running: dict[Ticket, None] = {}  # they, the oldest first
        self._num_replies = 0
        self._usual_seconds = math.inf
        self._is_steering = not is_fixed and ceiling > 1
        self._epoch = 0  # counts the changes of level: a request belongs to the level it started at
        self._changed_at = now
        self._window = _Window(now)
        self._base: _Measured | None = None  # what the level that is held gave
        self._trial: _Trial | None = None
        self._next_trial = _Trial.UP
        self._is_fast = True  # doubling
        self._num_gains = self._num_held = 0
        self._patience = _CEILING_PATIENCE if self.level == ceiling else _FIRST_PATIENCE
        self._refused_share = 0.0  # of the latest replies at this level
        self._refused_at: int | None = None
        self._windows_since_refusal = 1

    @property
    def has_room(self) -> bool:
        """Whether one more request may leave."""
        return self.in_flight < self.level and self.in_flight + self.num_overtaken < self.ceiling

    def start(self, now: float) -> Ticket:
        """A request leaves; returns what `finish` and `refuse` are to be told of it."""
        self._pass_time(now)
        self.in_flight += 1
        ticket = Ticket(self._epoch, now, self._num_replies)
        self._running[ticket] = None
        return ticket

    def finish(self, ticket: Ticket, now: float, seconds: float | None) -> None:
        """A request ended after `seconds`; None for one that failed or was refused, which says nothing."""
        self._pass_time(now)
        if ticket.is_overtaken:
            self.num_overtaken -= 1
            return
        self.in_flight -= 1
        del self._running[ticket]
        if seconds is None or not self._is_steering:
            return
        self._num_replies += 1
        gap = 0.0 if self._usual_seconds == math.inf else self._usual_seconds - seconds
        self._usual_seconds = seconds + (1 - _LATENCY_WEIGHT) * gap
        self._pass_over_overtaken()
        if self._is_fast and ticket.epoch != self._epoch:
            return
        self._refused_share -= self._refused_share / max(_MIN_LATEST, self.level)
        if self._window.num_to_skip:
            self._window.skip(now)
            return
        self._window.add(seconds)
        if self._is_over(now):
            self._judge(now)

    def _pass_over_overtaken(self) -> None:
        limit = max(_MIN_OVERTAKEN, _OVERTAKEN_ROUNDS * self.level)
        while self._running:
            oldest = next(iter(self._running))
            if self._num_replies - oldest.num_replies_before <= limit:
                return
            self._pass_over(oldest)

    def pass_over_stuck(self, now: float) -> None:
        """Pass over what takes many times as long as usual: where all are stuck, none overtakes another.

        A server that stands still gets a level's requests in many times the usual time by this, no more.
        """
        limit_seconds = max(_MIN_STUCK_SECONDS, _STUCK_LATENCIES * self._usual_seconds)
        while self._is_steering and self._running:
            oldest = next(iter(self._running))
            if now - oldest.started_at <= limit_seconds:
                return
            self._pass_time(now)
            self._pass_over(oldest)

    def _pass_over(self, ticket: Ticket) -> None:
        ticket.is_overtaken = True
        self.num_overtaken += 1
        self.in_flight -= 1
        del self._running[ticket]

    def refuse(self, ticket: Ticket, now: float) -> None:
        """The server refused a request because it has too many."""
        if not self._is_steering or ticket.epoch != self._epoch or self.level == 1:
            return  # where it left before the level fell, that fall has answered it
        self._refused_share += (1 - self._refused_share) / max(_MIN_LATEST, self.level)
        if self._refused_share >= _REFUSED_SHARE:
            self._back_off(now)

    def _pass_time(self, now: float) -> None:
        self._window.in_flight_seconds += self.in_flight * (now - self._changed_at)
        self._changed_at = now

    def _is_over(self, now: float) -> bool:
        """Whether the window is long enough to be judged."""
        window = self._window
        rounds = window.num_replies / self.level
        is_longest = rounds >= _MAX_ROUNDS and window.num_replies >= _MAX_REPLIES
        if now - window.opened_at < _MIN_WINDOW_SECONDS:
            return False
        if self._is_fast:
            return rounds >= 1
        return rounds >= _MIN_ROUNDS and (window.relative_error <= _PRECISION or is_longest)

    def _judge(self, now: float) -> None:
        if self._mean_in_flight(now) < _SATURATED * self.level:
            self._learn_nothing(now)
            return
        measured = self._measure(now)
        self._forget_refusal()
        if self._trial is None:
            self._hold(measured, now)
        elif self._pays(measured):
            self._win(measured, now)
        elif not self._is_fast or self._window.num_replies >= _MAX_FAST_ROUNDS * self.level:
            self._lose(measured, now)

    def _mean_in_flight(self, now: float) -> float:
        return self._window.in_flight_seconds / (now - self._window.opened_at)

    def _measure(self, now: float) -> _Measured:
        """The window's result.

        While doubling, the throughput is told by the latency of this level's own requests (Little's
        law), a round earlier than by counting.
        """
        window = self._window
        throughput = (
            self._mean_in_flight(now) / window.latency_seconds
            if self._is_fast
            else window.num_replies / (now - window.opened_at)
        )
        return _Measured(self.level, throughput, window.latency_seconds)

    def _pays(self, measured: _Measured) -> bool:
        """Whether the tried level is the better one: the same test for a higher and a lower one.

        A small rise must stand out from the noise as well, or the level would drift up in a queue.
        """
        if self._base is None:
            return False
        gain = _WORTH * (measured.level / self._base.level - 1)
        if self._trial is _Trial.UP and not self._is_fast:
            gain += self._window.relative_error
        return measured.throughput >= self._base.throughput * (1 + gain)

    def _learn_nothing(self, now: float) -> None:
        """The samples did not fill the level: nothing can be learnt from this window."""
        if self._trial is not None and self._base is not None:
            self._stay(self._base.level, Reason.NO_DEMAND, now)
        else:
            self._window = _Window(now)

    def _hold(self, measured: _Measured, now: float) -> None:
        self._num_held += 1
        base, self._base = self._base, measured
        self._window = _Window(now)
        if self._is_fast:
            self._is_fast = self._try(_Trial.UP, now)
        elif base is not None and measured.latency_seconds > _CLIMBED * base.latency_seconds:
            self._patience, self._num_held, self._next_trial = _FIRST_PATIENCE, 1, _Trial.DOWN
        else:
            self._base = base.mean_with(measured) if base is not None else measured
            if self._num_held >= self._patience:
                self._try_in_turn(now)

    def _try_in_turn(self, now: float) -> None:
        first = self._next_trial
        second = _Trial.DOWN if first is _Trial.UP else _Trial.UP
        self._next_trial = second
        self._num_held = 0
        if not self._try(first, now):
            self._try(second, now)

    def _try(self, trial: _Trial, now: float) -> bool:
        """Go to a level above or below for one window; False where there is no room."""
        target = self._level_above() if trial is _Trial.UP else min(self.level - 1, self._scaled(_FINE_FALL))
        self._trial = None
        if target < 1 or (trial is _Trial.UP and target <= self.level):
            return False
        self._trial = trial
        self._move(target, now)
        return True

    def _level_above(self) -> int:
        factor = 2 if self._is_fast else _FINE_RISE
        top = self.ceiling if self._refused_at is None else min(self.ceiling, self._refused_at - 1)
        return min(top, max(self.level + 1, math.ceil(self.level * factor)))

    def _scaled(self, factor: float) -> int:
        return max(1, int(self.level * factor))

    def _win(self, measured: _Measured, now: float) -> None:
        """The tried level stays, and the next one in that direction is tried at once."""
        self._base, trial = measured, self._trial
        self._patience, self._num_held = _FIRST_PATIENCE, 0
        self._num_gains = self._num_gains + 1 if trial is _Trial.UP else 0
        self._count(Reason.GAIN if trial is _Trial.UP else Reason.QUEUE)
        self._is_fast = self._num_gains >= 2 or (self._is_fast and trial is _Trial.UP)
        self._window = _Window(now)
        if trial is not None and not self._try(trial, now):
            self._is_fast = False
            self._patience = _CEILING_PATIENCE

    def _lose(self, measured: _Measured, now: float) -> None:
        """The tried level is left: for the one before, or after a doubling for the knee between them."""
        base, trial, was_fast = self._base, self._trial, self._is_fast
        level = base.level if base is not None else self.level
        if base is not None and was_fast:
            knee = math.ceil(measured.throughput * base.latency_seconds * _MARGIN)
            level = min(max(knee, base.level), max(measured.level - 1, base.level))
        self._patience = _FIRST_PATIENCE if was_fast else min(2 * self._patience, _MAX_PATIENCE)
        self._stay(level, Reason.QUEUE if trial is _Trial.UP else Reason.NEEDED, now)

    def _back_off(self, now: float) -> None:
        # Refused twice with no good window between: what the server takes is not known.
        self._refused_at = self.level if self._windows_since_refusal else None
        self._windows_since_refusal = 0
        if self._trial is _Trial.UP and self._base is not None:
            self._patience = min(2 * self._patience, _MAX_PATIENCE)
            self._stay(self._base.level, Reason.REFUSED, now)
        else:
            self._patience, self._next_trial = _FIRST_PATIENCE, _Trial.UP
            self._stay(self._scaled(_REFUSED_FALL), Reason.REFUSED, now)

    def _stay(self, level: int, reason: Reason, now: float) -> None:
        """Leave a trial, or a level that was refused, for one to stay at."""
        if self._base is not None and self._base.level != level:
            self._base = None
        self._trial, self._is_fast, self._num_gains, self._num_held = None, False, 0, 0
        self._count(reason)
        self._move(level, now)

    def _forget_refusal(self) -> None:
        self._windows_since_refusal += 1
        if self._windows_since_refusal > _FORGET_REFUSAL_WINDOWS:
            self._refused_at = None

    def _count(self, reason: Reason) -> None:
        self.reason = reason
        self.changes[reason.value] += 1

    def _move(self, level: int, now: float) -> None:
        self.level = level
        self.highest = max(self.highest, level)
        self._epoch += 1
        self._refused_share = 0.0
        # While doubling, requests of an earlier level are told apart one by one.
        self._window = _Window(now, num_to_skip=0 if self._is_fast and self._trial else level)
