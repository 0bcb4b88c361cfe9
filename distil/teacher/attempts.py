"""The one owner of retries: which attempts are repeated, when, and for how long.

Pure: the clock, the sleep and the chance are given, so that tests need no time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from distil.errors import ContextOverflow, DeadlinePassed, TeacherError
from distil.teacher.availability import Availability, Patience, Sign
from distil.teacher.refusals import Means, meaning
from distil.teacher.replicas import SampleReplica


class AttemptFailed(Exception):
    """One attempt came to nothing; `error` is what to raise if it is the last one."""

    def __init__(
        self, error: TeacherError, is_retried: bool, sign: Sign, advised_seconds: float | None = None
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.is_retried = is_retried
        self.sign = sign
        self.advised_seconds = advised_seconds
        self.seconds = 0.0  # that it took, from the sending on


@dataclass(eq=False)
class Attempts:
    """The attempts for one sample, each at its replica of then: in a turn up to the first that succeeds.

    In a loop after `begin_turn`, `with attempts as seconds:` is one attempt, which may take so long. A
    failure that another one may mend is swallowed, after the pause that is due. Raises TeacherError, with the
    number of attempts, where there is no other one, and DeadlinePassed where the time is over.
    """

    patience: Patience
    availability: Availability
    replica: SampleReplica
    sample_seconds: float  # for all turns, those left out that are not the teacher's
    sleep: Callable[[float], None]
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random  # the jitter reaches no trace
    count: int = field(default=0, init=False)
    retries: int = field(default=0, init=False)  # at this replica
    rounds: int = field(default=0, init=False)  # in which no replica replied

    def __post_init__(self) -> None:
        self._sample_ends_at = self.clock() + self.sample_seconds
        self.begin_turn()

    def begin_turn(self) -> None:
        """Count anew, and give the turn its time."""
        self.count = self.retries = self.rounds = 0
        self._turn_ends_at = self.clock() + self.patience.turn_timeout_seconds

    def __enter__(self) -> float:
        self.extend(self.availability.wait_until_up(self))
        try:
            seconds = min(self.patience.timeout_seconds, self._seconds_left())
        except DeadlinePassed:
            self.availability.note(self, Sign.NOTHING)  # it may be the one that tries
            raise
        self.count += 1
        return seconds

    def __exit__(self, error_class: object, error: BaseException | None, traceback: object) -> bool:
        failed = error if isinstance(error, AttemptFailed) else None
        sign = self._sign(failed) if error is not None else Sign.ALIVE
        is_down = self.availability.note(self, sign, str(failed or ""))
        if error is None:
            self.replica.note_reply()
            self.availability.has_replied = True
        if failed is None:
            return False
        self._prepare_next(failed, sign, is_down)
        return True

    def extend(self, seconds: float) -> None:
        """Leave out time that is not the teacher's: an outage, a pause as advised."""
        self._turn_ends_at += seconds
        self._sample_ends_at += seconds

    def _sign(self, failed: AttemptFailed | None) -> Sign:
        """What the end of an attempt tells about all replicas together."""
        if failed is None:
            return Sign.NOTHING
        if failed.sign is Sign.ALIVE:
            return Sign.ALIVE
        if self.clock() >= self._ends_at:
            return Sign.NOTHING  # cut short by the turn's end
        is_advised = failed.advised_seconds is not None and self.retries < self.patience.max_retries
        return self.replica.note_silence(failed.sign, str(failed), is_advised)

    def _prepare_next(self, failed: AttemptFailed, sign: Sign, is_down: bool) -> None:
        """Wait as long as the next attempt has to; raises where there is none, or no point in one."""
        self.availability.check_open()
        if Means.GAVE_UP in meaning(failed.error.status):
            self.availability.note_gave_up(failed.seconds, str(failed))
        if not failed.is_retried:
            raise self._ended(failed.error)
        if sign is Sign.OTHERS:
            self.retries = 0
        if is_down or sign is Sign.OTHERS:
            return
        # One that says when to come back is there.
        self.rounds += sign in (Sign.NO_CONNECTION, Sign.BROKEN) and failed.advised_seconds is None
        if self.retries >= self.patience.max_retries or self.rounds > self.patience.max_unreachable_retries:
            raise self._ended(failed.error)
        advised = failed.advised_seconds or 0.0
        if advised > self.patience.max_advised_seconds:
            raise self._ended(failed.error)
        num_pauses = max(self.retries, self.rounds - 1)
        pause = self.patience.pause_seconds(num_pauses, advised, self.chance())
        self.retries += 1
        if pause - advised >= self._seconds_left(failed):
            raise self._passed(failed)
        self.availability.note_advice(self.replica.name, advised)
        self.sleep(pause)
        self.extend(advised)

    def _seconds_left(self, failed: AttemptFailed | None = None) -> float:
        left = self._ends_at - self.clock()
        if left <= 0:
            raise self._passed(failed)
        return left

    @property
    def _ends_at(self) -> float:
        return min(self._turn_ends_at, self._sample_ends_at)

    def _passed(self, failed: AttemptFailed | None) -> DeadlinePassed:
        whose, seconds = "turn's", self.patience.turn_timeout_seconds
        if self._sample_ends_at < self._turn_ends_at:
            whose, seconds = "sample's", self.sample_seconds
        text = f"the {whose} {seconds:g} s are over after {self.count} attempts"
        status = failed.error.status if failed else None
        return DeadlinePassed(f"{text}; the last: {failed}" if failed else text, status, self.count)

    def _ended(self, error: TeacherError) -> TeacherError:
        error.attempts = self.count
        if self.count > 1 and not isinstance(error, ContextOverflow):
            error.args = (f"{error} (after {self.count} attempts)",)
        return error
