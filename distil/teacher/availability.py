"""Whether the server is there: while it is down threads wait, and one at a time tries its own request.

Of several replicas, it takes all of them to be gone.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from distil.errors import RunHalted, TeacherRefused

NEVER = 2**31  # failures in a row before a server counts as down
_LONGEST_WAIT_SECONDS = 3600.0  # of one wait on a lock, which does not take every number
_NUM_GAVE_UP = 4  # time-outs of one length that are no accident where nothing was ever answered
_MIN_GAVE_UP_SECONDS = 1.0  # a proxy that says so sooner has nobody to wait for
_SAME_SECONDS, _SAME_SHARE = 0.5, 0.1  # how far equal time limits seem to lie apart: sending takes time too
RAISE_TIME_OUT = "raise its read time-out above what a turn takes (nginx: proxy_read_timeout)"
_TOLD_ADVICE_SECONDS = 10.0  # a pause that a person who watches would wonder about


class Sign(Enum):
    """What an attempt tells about the server."""

    ALIVE = auto()  # it replied, if only to refuse
    NO_CONNECTION = auto()
    BROKEN = auto()  # connected, but no whole reply, or a 5xx: perhaps only this request's fault
    OTHERS = auto()  # no whole reply, and other replicas are left, which this caller goes on to ask
    NOTHING = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a teacher is waited for, how soon it is asked again, and when it counts as down."""

    timeout_seconds: float  # of one attempt
    turn_timeout_seconds: float  # of all attempts at one reply
    max_outage_seconds: float  # then the run is given up
    max_retries: int = 12  # of one turn; attempts during an outage are not counted
    first_pause_seconds: float = 1.0  # at most; doubles from one retry to the next
    max_pause_seconds: float = 60.0
    max_advised_seconds: float = math.inf  # a server that asks for a longer pause is given up
    max_unreachable_retries: float = math.inf  # of the retries, where no replica gave a reply
    num_failures: int = 5  # in a row, over all threads: it counts as down
    probe_pause_seconds: float = 1.0  # before the first probe of one that is down; doubles likewise
    max_probe_pause_seconds: float = 30.0

    def pause_seconds(self, num_retries: int, advised_seconds: float | None, chance: float) -> float:
        """The pause before a retry, `num_retries` having been made: full jitter, never before the advice.

        `chance` is from 0 to 1. The jitter comes on top of the advice, or all threads come back at once.
        """
        ceiling = min(self.max_pause_seconds, self.first_pause_seconds * 2.0 ** min(num_retries, 30))
        return (advised_seconds or 0.0) + chance * ceiling


class Availability:
    """What all threads together know of the server; `tell` gets a line when it goes and when it is back.

    `has_replied`: to any request, with more than a refusal.
    """

    def __init__(
        self,
        patience: Patience,
        name: str,
        tell: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tell = tell
        self._patience = patience
        self._name = name
        self._clock = clock
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self.has_replied = False
        self._gave_up_seconds: deque[float] = deque(maxlen=_NUM_GAVE_UP)
        self._told_until: dict[str, float] = {}  # by server
        self._reset()

    def _reset(self) -> None:
        self._is_down = False
        self._since = self._give_up_at = 0.0
        self._since_text = ""
        self._num_failures = self._num_probes = 0
        self._failed_callers: set[object] = set()
        self._prober: object = None
        self._next_probe = 0.0

    def wait_until_up(self, caller: object) -> float:
        """Wait while the server is down, unless it is for this caller to try; returns the seconds waited.

        Raises TeacherRefused when it has been down for too long.
        """
        self.check_open()
        if not self._is_down:  # no lock for a server that is there
            return 0.0
        with self._changed:
            started = self._clock()
            while self._is_down and not self._may_probe(caller):
                self._wait(
                    self._next_probe - self._clock() if self._prober is None else _LONGEST_WAIT_SECONDS
                )
            self.check_open()
            return self._clock() - started

    def sleep(self, seconds: float) -> None:
        """Sleep, but no longer than until `close`, which raises RunHalted here."""
        until = self._clock() + seconds
        while not self._closed.is_set() and (left := until - self._clock()) > 0:
            self._closed.wait(min(left, _LONGEST_WAIT_SECONDS))
        self.check_open()

    def note_advice(self, server: str, seconds: float) -> None:
        """Tell of a long pause that a server asks for, once for all threads."""
        with self._changed:
            now = self._clock()
            is_news = seconds >= _TOLD_ADVICE_SECONDS and now >= self._told_until.get(server, now)
            if is_news:
                self._told_until[server] = now + seconds
        if is_news:
            self.tell(f"The teacher at {server} asks to wait {seconds:.0f} s before the next request.")

    def note(self, caller: object, sign: Sign, reason: str = "") -> bool:
        """Take in how an attempt of a caller ended; returns whether the server is down."""
        if sign is Sign.OTHERS or (sign in (Sign.ALIVE, Sign.NOTHING) and not self._num_failures):
            return False  # no news of a server that is there, and no lock for it
        line = ""
        with self._changed:
            if caller is self._prober:
                self._prober = None
                self._num_probes += 1
            if sign is Sign.ALIVE:
                if self._is_down:
                    line = f"The teacher answers again after {self._clock() - self._since:.0f} s."
                self._reset()
            elif sign is not Sign.NOTHING:
                line = self._count_failure(caller, sign, reason)
            is_down = self._is_down
            self._changed.notify_all()  # those who wait, if the server was down
        if line:
            self.tell(line)
        return is_down

    def note_gave_up(self, seconds: float, reason: str) -> None:
        """Take in that a proxy may have given up waiting for the server after so many seconds.

        Raises TeacherRefused where it does so every time: what waits for it is no outage that ends, and each
        time the whole generation may be billed.
        """
        if self.has_replied or seconds < _MIN_GAVE_UP_SECONDS:
            return
        with self._changed:
            self._gave_up_seconds.append(seconds)
            longest, shortest = max(self._gave_up_seconds), min(self._gave_up_seconds)
            num_given_up = len(self._gave_up_seconds)
        if num_given_up == _NUM_GAVE_UP and longest - shortest <= max(_SAME_SECONDS, _SAME_SHARE * longest):
            raise TeacherRefused(
                f"the gateway at {self._name} gives up after {shortest:.3g} s: {num_given_up} requests ended "
                f"then, none was answered yet, and they may be billed all the same: {RAISE_TIME_OUT}, or "
                f"lower --max_tokens (the last: {reason})"
            )

    def close(self) -> None:
        """Wake every thread that waits or sleeps."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()

    def check_open(self) -> None:
        """Raise RunHalted if closed."""
        if self._closed.is_set():
            raise RunHalted("the run was given up")

    def _count_failure(self, caller: object, sign: Sign, reason: str) -> str:
        """Count one more failure in a row; returns the line that tells of an outage when it begins."""
        if self._num_failures == 0:
            self._since, self._since_text = self._clock(), time.strftime("%H:%M:%S")
        self._num_failures += 1
        if self._num_failures <= self._patience.num_failures:
            self._failed_callers.add(caller)
        pause = self._patience.probe_pause_seconds * 2.0 ** min(self._num_probes, 30)
        self._next_probe = self._clock() + min(pause, self._patience.max_probe_pause_seconds)
        # One request that breaks its connection each time must not stop the others: it takes two to tell.
        is_general = sign is Sign.NO_CONNECTION or len(self._failed_callers | {caller}) > 1
        if self._is_down or self._num_failures < self._patience.num_failures or not is_general:
            return ""
        self._is_down = True
        self._give_up_at = self._clock() + self._patience.max_outage_seconds
        return (
            f"The teacher does not answer since {self._since_text} ({reason}); waiting, "
            f"up to {self._patience.max_outage_seconds:g} s (--max_outage_seconds)"
        )

    def _may_probe(self, caller: object) -> bool:
        """Whether this caller is the prober, or becomes it; raises where waiting has lasted too long."""
        self.check_open()
        if self._clock() >= self._give_up_at:
            raise TeacherRefused(
                f"the teacher at {self._name} does not answer since {self._since_text}: given up after "
                f"{self._patience.max_outage_seconds:g} s (--max_outage_seconds)"
            )
        if self._prober is None and self._clock() >= self._next_probe:
            self._prober = caller
        return self._prober is caller

    def _wait(self, seconds: float) -> None:
        left = self._give_up_at - self._clock()
        self._changed.wait(max(0.0, min(seconds, left, _LONGEST_WAIT_SECONDS)))
