"""The level, how many requests may be in flight at once: it finds itself, under a ceiling.

A server that queues (vLLM, SGLang) never refuses, so refusals alone cannot steer. The level goes by what
more requests in flight are worth: it rises while they raise the throughput by a fair part of their share,
and falls where they only wait longer, or where the server refuses (429, 503). A request that many later ones
have overtaken is stuck, or exceptionally long: it says nothing about the level and takes no room in it. Nor
does it say anything of the server where requests are slow because our own threads do not get to run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum

from distil.records import Json

_FIRST_LEVEL = 8
_WORTH = 0.15  # a share s of more requests must raise the throughput by 0.15 s, or they only queue
_MARGIN = 1.15  # over the knee: a request too many in the queue costs nothing, an idle slot does
_SECONDS_TO_DOUBLE = 0.2  # while next to nothing has come back: no sign of harm, and rounds may be long
_FEW_ENDED = 4  # next to nothing
_MOST_OF_RUNG, _MIN_TO_LAND = 0.75, 8  # of its requests tell what a rung gives; replies
_FINE_RISE, _FINE_FALL, _REFUSED_FALL = 1.4, 0.7, 0.7  # smaller trials drown in the noise
_CLIMBED = 1.5  # a latency that rose this much since the last window calls for a look at a lower level
_SATURATED = 0.8  # of the level must have been in flight, or a window says nothing about the server
_BUSY_SHARE = 0.05  # of the latency spent in one of its waits for our own processor: there are several
_MIN_WINDOW_SECONDS = 0.25
_PRECISION = 0.05  # the standard error of the mean latency at which a window is long enough
_MIN_ROUNDS, _MAX_ROUNDS = 2, 8  # the length of a window, in replies per level
_MAX_REPLIES = 48  # or this many, where the level is low
_REFUSED_SHARE = 0.2  # of the latest replies; fewer refusals are faults, not overload
_ODD_SHARE = 1 / 64  # less than this is left of a refusal after a while
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
    GAIN = "more gave more"
    QUEUE = "more only waited longer"  # more in flight gave nothing, or fewer gave the same
    NEEDED = "fewer gave less"  # a trial of a lower level lost throughput
    REFUSED = "refused"
    NO_DEMAND = "no more were asked for"
    CLIENT = "this machine is busy"  # our own threads do not get to run: that says nothing of the server


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
    """A request in flight: the epoch of levels it started in, and what had been going on by then.

    `lag_seconds` is how late its thread got to run once it was let in, for whoever runs it to set.
    """

    epoch: int
    started_at: float
    num_replies_before: int
    in_flight: int  # with it
    lag_seconds: float = 0.0
    is_overtaken: bool = False


@dataclass(frozen=True, slots=True)
class _Measured:
    """What a level gave: replies a second, and how long one took."""

    level: float
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
    lag_seconds: float = 0.0
    in_flight: int = 0  # as each left, summed

    def skip(self, now: float) -> None:
        """Pass over one reply; the measurement begins after the last of them."""
        self.num_to_skip -= 1
        self.opened_at = now

    def add(self, ticket: Ticket, seconds: float) -> None:
        """Count a reply and the time it took."""
        self.num_replies += 1
        self.seconds += seconds
        self.squares += seconds * seconds
        self.lag_seconds += ticket.lag_seconds
        self.in_flight += ticket.in_flight

    @property
    def latency_seconds(self) -> float:
        """The mean latency; a clock that cannot tell gives a very small one."""
        return max(self.seconds / self.num_replies, 1e-9)

    @property
    def relative_error(self) -> float:
        """The standard error of the mean latency, as a share of it."""
        variance = max(0.0, self.squares / self.num_replies - self.latency_seconds**2)
        return math.sqrt(variance / self.num_replies) / self.latency_seconds

    @property
    def mean_in_flight(self) -> float:
        """How many were in flight as a request left, itself among them."""
        return self.in_flight / self.num_replies

    @property
    def is_ours(self) -> bool:
        """Whether our own threads, not the server, made requests wait."""
        return self.lag_seconds > _BUSY_SHARE * self.seconds

    def by_latency(self) -> _Measured:
        """The throughput as Little's law has it: a round earlier than by counting."""
        throughput = self.mean_in_flight / self.latency_seconds
        return _Measured(self.mean_in_flight, throughput, self.latency_seconds)

    def by_count(self, level: int, now: float) -> _Measured:
        """The throughput of a level that was held."""
        return _Measured(level, self.num_replies / (now - self.opened_at), self.latency_seconds)


@dataclass(slots=True)
class _Climb:
    """A quick rise from a level, which goes on with every reply while replies to earlier requests are judged.

    Rung 0 are the requests that left with at most `foot` in flight, each further rung those with up to twice
    as many as the one below.
    """

    foot: int
    base: _Measured | None  # what the foot gave, where it is known
    top_judged: int = 0  # it pays up to this rung
    is_held: bool = False  # our own threads are late: it goes on with replies to those that were not
    rungs: dict[int, _Window] = field(default_factory=dict)

    def rung_of(self, in_flight: int) -> int:
        return ((in_flight - 1) // self.foot).bit_length()

    def add(self, ticket: Ticket, seconds: float) -> tuple[int, _Window]:
        """Count a reply; the rung it belongs to."""
        number = self.rung_of(ticket.in_flight)
        rung = self.rungs.setdefault(number, _Window(ticket.started_at))
        rung.add(ticket, seconds)
        return number, rung

    def width(self, number: int) -> int:
        """How many levels a rung covers."""
        return self.foot << max(0, number - 1)

    def best(self) -> _Measured | None:
        """What the highest rung gave that pays, where enough is known of one."""
        rung = self.rungs.get(self.top_judged)
        if rung is None or rung.num_replies < _MOST_OF_RUNG * self.width(self.top_judged):
            return self.base
        return rung.by_latency()


class Climber:
    """The controller: told when requests start and end, it moves `level`; not safe for many threads.

    It rises with every reply, and at first with time, for as long as that pays, and lands at the knee where
    it does not pay any more. There it stays, and now and then tries a level a little above or below for long
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
        self._num_replies = self._num_ended = 0  # those that failed or were refused have ended too
        self._usual_seconds = math.inf
        self.is_steering = not is_fixed and ceiling > 1
        self._epoch = 0  # counts the changes of level: a request belongs to the level it started at
        self._full_since = now
        self._window = _Window(now)
        self._base: _Measured | None = None  # what the level that is held gave
        self._climb = _Climb(max(1, self.level // 2), None) if self.level < ceiling else None
        self._is_trying = False  # a level above or below the base
        self._is_next_up = True
        self._num_gains = self._num_held = 0
        self._patience = _CEILING_PATIENCE if self.level == ceiling else _FIRST_PATIENCE
        self._refused_share = 0.0  # of the latest replies at this level
        self._first_refused = 0  # how many were in flight, at the least, since refusals are no odd ones
        self._refused_at: int | None = None
        self._windows_since_refusal = 1

    @property
    def has_room(self) -> bool:
        """Whether one more request may leave."""
        return self.in_flight < self.level and self.in_flight + self.num_overtaken < self.ceiling

    @property
    def rises_by_time(self) -> bool:
        """Whether it waits for the first replies, and rises while none comes."""
        return self._climb is not None and self._num_ended < _FEW_ENDED and not self._refused_share

    def start(self, now: float) -> Ticket:
        """A request leaves; returns what `finish` and `refuse` are to be told of it."""
        self.in_flight += 1
        if self.in_flight == self.level:
            self._full_since = now
        ticket = Ticket(self._epoch, now, self._num_replies, self.in_flight)
        self._running[ticket] = None
        return ticket

    def finish(self, ticket: Ticket, now: float, seconds: float | None) -> None:
        """A request ended after `seconds`; None for one that failed or was refused, which says nothing."""
        if ticket.is_overtaken:
            self.num_overtaken -= 1
            return
        is_saturated = self.in_flight >= _SATURATED * self.level
        self.in_flight -= 1
        self._num_ended += 1
        del self._running[ticket]
        if seconds is None or not self.is_steering:
            return
        self._num_replies += 1
        gap = 0.0 if self._usual_seconds == math.inf else self._usual_seconds - seconds
        self._usual_seconds = seconds + (1 - _LATENCY_WEIGHT) * gap
        self._pass_over_overtaken()
        if self._climb is not None and ticket.epoch != self._epoch:
            return
        self._refused_share -= self._refused_share / max(_MIN_LATEST, self.level)
        if self._climb is not None:
            if is_saturated and not (self._climb.is_held and ticket.lag_seconds > _BUSY_SHARE * seconds):
                self._rise_to(self.level + 1)
            self._judge_rung(self._climb, *self._climb.add(ticket, seconds), now)
        elif self._window.num_to_skip:
            self._window.skip(now)
        else:
            self._window.add(ticket, seconds)
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
        while self.is_steering and self._running:
            oldest = next(iter(self._running))
            if now - oldest.started_at <= limit_seconds:
                return
            self._pass_over(oldest)

    def _pass_over(self, ticket: Ticket) -> None:
        ticket.is_overtaken = True
        self.num_overtaken += 1
        self.in_flight -= 1
        del self._running[ticket]

    def refuse(self, ticket: Ticket, now: float) -> None:
        """The server refused a request because it has too many."""
        if not self.is_steering or ticket.epoch != self._epoch or self.level == 1:
            return  # where it left before the level fell, that fall has answered it
        if self._refused_share < _ODD_SHARE:
            self._first_refused = ticket.in_flight
        self._first_refused = min(self._first_refused, ticket.in_flight)
        self._refused_share += (1 - self._refused_share) / max(_MIN_LATEST, self.level)
        if self._refused_share >= _REFUSED_SHARE:
            self._back_off(now)

    # --- the quick rise ---

    def rise_by_time(self, now: float) -> None:
        """Rise while all that may be in flight is, and next to nothing has come back; told now and then."""
        if not self.rises_by_time or self.in_flight < self.level:
            return
        doublings = min(1.0, (now - self._full_since) / _SECONDS_TO_DOUBLE)
        self._rise_to(int(self.level * 2**doublings))

    def _rise_to(self, level: int) -> None:
        """Rise within a climb, which is one epoch."""
        self.level = max(self.level, min(level, self._top))
        self.highest = max(self.highest, self.level)

    @property
    def _top(self) -> int:
        return self.ceiling if self._refused_at is None else min(self.ceiling, self._refused_at - 1)

    def _judge_rung(self, climb: _Climb, number: int, rung: _Window, now: float) -> None:
        """Go on where a rung pays, land where it does not, stay where there is nothing above it."""
        best = climb.best()
        if number <= climb.top_judged or best is None:
            return
        if rung.num_replies < _MOST_OF_RUNG * climb.width(number):
            return
        measured = rung.by_latency()
        if _is_worth(measured, best):
            climb.top_judged, climb.is_held = number, False
            self._count(Reason.GAIN)
            if self.level == self._top and number == climb.rung_of(self.level):
                self._climb, self._patience = None, _CEILING_PATIENCE
                self._move(self.level, now)
        elif rung.num_replies < max(_MIN_TO_LAND, climb.width(number)):
            return
        elif rung.is_ours:
            if not climb.is_held:
                self._count(Reason.CLIENT)
            climb.is_held = True
            climb.rungs[number] = _Window(now)
        else:
            knee = math.ceil(measured.throughput * best.latency_seconds * _MARGIN)
            self._patience = _FIRST_PATIENCE
            self._stay(max(1, min(max(knee, int(best.level)), int(measured.level))), Reason.QUEUE, now)

    # --- trials of a level a little above or below ---

    def _is_over(self, now: float) -> bool:
        """Whether the window is long enough to be judged."""
        window = self._window
        rounds = window.num_replies / self.level
        is_longest = rounds >= _MAX_ROUNDS and window.num_replies >= _MAX_REPLIES
        if now - window.opened_at < _MIN_WINDOW_SECONDS:
            return False
        return rounds >= _MIN_ROUNDS and (window.relative_error <= _PRECISION or is_longest)

    def _judge(self, now: float) -> None:
        if self._window.mean_in_flight < _SATURATED * self.level:
            self._learn_nothing(now)
            return
        measured = self._window.by_count(self.level, now)
        self._forget_refusal()
        if not self._is_trying or self._base is None:
            self._hold(measured, now)
        elif self._pays(measured, self._base):
            self._win(measured, self._base, now)
        else:
            self._lose(self._base, now)

    def _pays(self, measured: _Measured, base: _Measured) -> bool:
        """Whether the tried level is the better one: the same test for a higher and a lower one.

        A small rise must stand out from the noise as well, or the level would drift up in a queue. That
        fewer give the same says nothing of the server where our own threads are late.
        """
        is_up = measured.level > base.level
        noise = self._window.relative_error if is_up else 0.0
        return _is_worth(measured, base, noise) and (is_up or not self._window.is_ours)

    def _learn_nothing(self, now: float) -> None:
        """The samples did not fill the level: nothing can be learnt from this window."""
        if self._is_trying and self._base is not None:
            reason = Reason.CLIENT if self._window.is_ours else Reason.NO_DEMAND
            self._stay(int(self._base.level), reason, now)
        else:
            self._window = _Window(now)

    def _hold(self, measured: _Measured, now: float) -> None:
        self._num_held += 1
        base, self._base = self._base, measured
        is_ours, self._window = self._window.is_ours, _Window(now)
        if is_ours:
            self.reason, self._is_next_up = Reason.CLIENT, True
        elif base is not None and measured.latency_seconds > _CLIMBED * base.latency_seconds:
            self._patience, self._num_held, self._is_next_up = _FIRST_PATIENCE, 1, False
            return
        self._base = base.mean_with(measured) if base is not None else measured
        if self._num_held >= self._patience:
            self._try_in_turn(now)

    def _try_in_turn(self, now: float) -> None:
        is_up = self._is_next_up
        self._is_next_up = not is_up
        self._num_held = 0
        if not self._try(is_up, now):
            self._try(not is_up, now)

    def _try(self, is_up: bool, now: float) -> bool:
        """Go to a level above or below for one window; False where there is no room."""
        target = (
            min(self._top, max(self.level + 1, math.ceil(self.level * _FINE_RISE)))
            if is_up
            else min(self.level - 1, max(1, int(self.level * _FINE_FALL)))
        )
        self._is_trying = target > self.level if is_up else target >= 1
        if self._is_trying:
            self._move(target, now)
        return self._is_trying

    def _win(self, measured: _Measured, base: _Measured, now: float) -> None:
        """The tried level stays, and the next one in that direction is tried at once."""
        is_up = measured.level > base.level
        self._base, self._is_trying = measured, False
        self._patience, self._num_held = _FIRST_PATIENCE, 0
        self._num_gains = self._num_gains + 1 if is_up else 0
        self._count(Reason.GAIN if is_up else Reason.QUEUE)
        self._window = _Window(now)
        if is_up and self._num_gains >= 2 and self.level < self._top:
            self._climb = _Climb(self.level, measured)
            self._epoch += 1
        elif not self._try(is_up, now):
            self._patience = _CEILING_PATIENCE

    def _lose(self, base: _Measured, now: float) -> None:
        """The tried level is left for the one before."""
        self._patience = min(2 * self._patience, _MAX_PATIENCE)
        reason = Reason.QUEUE if self.level > base.level else Reason.NEEDED
        self._stay(int(base.level), Reason.CLIENT if self._window.is_ours else reason, now)

    def _back_off(self, now: float) -> None:
        # A climb goes on while it is refused, one by one: what was refused first tells what is taken.
        refused_at = self.level if self._climb is None else self._first_refused
        fallen = int(self.level * _REFUSED_FALL) if self._climb is None else self._first_refused - 1
        # Refused twice with no good window between: what the server takes is not known.
        self._refused_at = refused_at if self._windows_since_refusal else None
        self._windows_since_refusal = 0
        if self._is_trying and self._base is not None and self.level > self._base.level:
            self._patience = min(2 * self._patience, _MAX_PATIENCE)
            self._stay(int(self._base.level), Reason.REFUSED, now)
        else:
            self._patience, self._is_next_up = _FIRST_PATIENCE, True
            self._stay(max(1, fallen), Reason.REFUSED, now)

    def _stay(self, level: int, reason: Reason, now: float) -> None:
        """Leave a climb, a trial, or a level that was refused, for one to stay at."""
        if self._base is not None and self._base.level != level:
            self._base = None
        self._climb, self._is_trying, self._num_gains, self._num_held = None, False, 0, 0
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
        self._window = _Window(now, num_to_skip=max(level, self.in_flight))


def _is_worth(measured: _Measured, base: _Measured, noise: float = 0.0) -> bool:
    """Whether a level gave a fair part of its share more, or of its share less; and that beyond the noise."""
    gain = _WORTH * (measured.level / base.level - 1) + noise
    return measured.throughput >= base.throughput * (1 + gain)
