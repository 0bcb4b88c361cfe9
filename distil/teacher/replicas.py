"""Several servers with the same model: samples spread over them, each with all its turns on one.

A replica keeps the prefix cache of the conversations it has seen. A sample moves on only where its
replica gives no reply; the replies so far stay good, as every request carries the whole conversation.
With one URL an outage is that teacher's own affair; of several, it takes all of them to make one.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from distil.errors import TeacherError, TeacherUnreachable
from distil.records import Json, Reply
from distil.spending.budget import Budget
from distil.teacher.attempts import Deadline, Timing
from distil.teacher.availability import NEVER, Availability, Sign
from distil.teacher.client import Teacher, TeacherSettings, base_url_text
from distil.teacher.slots import Slots

_REPLICA_RETRIES = 1  # of one replica that gives no reply: an idle connection breaks once
_MAX_MORE_ROUNDS = 4  # over all replicas, before a request that none replies to is given up

_FIRST_REST_SECONDS, _MAX_REST_SECONDS = 5.0, 300.0  # before a dead replica is given samples again


@dataclass(slots=True)
class _Replica:
    url: str
    num_samples: int = 0  # that it has now
    num_given: int = 0  # that it ever had
    rest_seconds: float = 0.0  # of its last death; 0 while it replies
    retry_at: float = 0.0


class Replicas:
    """Which replica a sample goes to: the live one with the fewest; safe for many threads."""

    def __init__(self, urls: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._replicas = {url: _Replica(url) for url in urls}

    @property
    def num_replicas(self) -> int:
        """How many there are, dead or alive."""
        return len(self._replicas)

    def take(self, without: Collection[str] = ()) -> str:
        """Give a sample to a replica that is not among `without`.

        A dead one is chosen only where no live one is left: then the one that rests least longer.
        """
        with self._lock:
            now = self._clock()
            choices = [replica for url, replica in self._replicas.items() if url not in without]
            chosen = min(
                choices,
                key=lambda one: (max(0.0, one.retry_at - now), one.num_samples, one.num_given),
            )
            chosen.num_samples += 1
            chosen.num_given += 1
            return chosen.url

    def give_back(self, url: str) -> None:
        """A sample is done with a replica."""
        with self._lock:
            self._replicas[url].num_samples -= 1

    def mark_dead(self, url: str) -> bool:
        """A replica gave no reply: no samples for it until it has rested, longer each time.

        Returns whether that is news.
        """
        with self._lock:
            replica, now = self._replicas[url], self._clock()
            if now < replica.retry_at:
                return False  # many requests meet one death
            rest = min(max(_FIRST_REST_SECONDS, 2 * replica.rest_seconds), _MAX_REST_SECONDS)
            is_news = replica.rest_seconds == 0
            replica.rest_seconds, replica.retry_at = rest, now + rest
            return is_news

    def mark_alive(self, url: str) -> None:
        """A replica replied."""
        with self._lock:
            replica = self._replicas[url]
            replica.rest_seconds = replica.retry_at = 0.0


class ReplicatedTeacher:
    """A teacher at one or more URLs; a context manager that closes all connections."""

    def __init__(
        self,
        settings: TeacherSettings,
        api_bases: Sequence[str],
        tools: Sequence[Mapping[str, Json]],
        slots: Slots,
        budget: Budget,
    ) -> None:
        self.slots, self.budget = slots, budget
        self._settings = settings
        self._replicas = Replicas(api_bases)
        of_replica = _of_several(settings) if len(api_bases) > 1 else settings
        self._teachers = {
            url: Teacher(replace(of_replica, api_base=url), tools, slots, budget) for url in api_bases
        }
        names = ", ".join(base_url_text(teacher.settings) for teacher in self._teachers.values())
        self._all = Availability(replace(settings.outage, num_failures=1), names)

    def __enter__(self) -> ReplicatedTeacher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tell_by(self, tell: Callable[[str], None]) -> None:
        """Have lines on servers that go and come back told this way."""
        self._all.tell = tell
        for teacher in self._teachers.values():
            teacher.availability.tell = tell

    @property
    def refuses_fields(self) -> bool:
        """Whether a server has come to refuse a request field that it was found to take."""
        return any(teacher.refuses_fields for teacher in self._teachers.values())

    def close(self) -> None:
        """Close every connection; requests in flight, pauses and waits for a slot end at once."""
        self._all.close()
        self.slots.close()
        for teacher in self._teachers.values():
            teacher.close()

    @contextmanager
    def asking(self) -> Iterator[_SampleTurns]:
        """What asks for one sample, always the same replica for as long as that replies."""
        turns = _SampleTurns(self._replicas, self._ask_replica, self._all, self._settings)
        try:
            yield turns
        finally:
            turns.close()

    def _ask_replica(
        self, url: str, messages: Sequence[bytes], seed: int, deadlines: tuple[Deadline, ...]
    ) -> Reply:
        teacher = self._teachers[url]
        try:
            reply = teacher.ask(messages, seed, deadlines)
        except TeacherUnreachable as error:
            self._all.check_open()  # else it is we who broke the connection
            if self._replicas.mark_dead(url) and self._replicas.num_replicas > 1:
                self._all.tell(f"A replica is left for the others: {error}")
            raise
        self._replicas.mark_alive(url)
        return reply


def _of_several(settings: TeacherSettings) -> TeacherSettings:
    """The settings of one replica: left soon where it gives no reply, and never waited for."""
    retries = min(settings.retry.max_unreachable_retries, _REPLICA_RETRIES)
    return replace(
        settings,
        retry=replace(settings.retry, max_unreachable_retries=retries),
        outage=replace(settings.outage, num_failures=NEVER),  # not an outage while there are others,
    )


@dataclass(eq=False, slots=True)
class _SampleTurns:
    """One sample's replica, taken at its first request; used by one thread."""

    _replicas: Replicas
    _ask_replica: Callable[[str, Sequence[bytes], int, tuple[Deadline, ...]], Reply]
    _all: Availability
    _settings: TeacherSettings
    _url: str | None = field(default=None, init=False)

    def __call__(self, messages: Sequence[bytes], seed: int, deadline: Deadline | None = None) -> Reply:
        """Ask the sample's replica, and where it gives no reply each other one.

        Where none replies it waits as for one server; raises as `Teacher.ask` does.
        """
        turn = Deadline.after("turn", self._settings.turn_timeout_seconds)
        deadlines = (turn, deadline) if deadline is not None else (turn,)
        if self._replicas.num_replicas == 1:
            return self._ask_each(messages, seed, deadlines)
        timing = Timing(self._all.sleep)
        num_attempts = 0
        for num_rounds in itertools.count():
            waited = self._all.wait_until_up(self)
            for one in deadlines:
                one.extend(waited)
            sign, reason = Sign.NOTHING, ""
            try:
                reply = self._ask_each(messages, seed, deadlines)
                sign = Sign.ALIVE
                return reply
            except TeacherUnreachable as error:
                # Perhaps it is this request that breaks every connection: it takes two samples to tell.
                sign, reason, last = Sign.BROKEN, str(error), error
                num_attempts += error.attempts
                error.attempts = num_attempts
                if not error.has_connected:
                    sign = Sign.NO_CONNECTION
            except TeacherError as error:
                sign = Sign.ALIVE if error.status is not None else Sign.NOTHING
                raise
            finally:
                is_down = self._all.note(self, sign, reason)
            if not is_down:
                retry = self._settings.retry
                if num_rounds >= min(retry.max_retries, _MAX_MORE_ROUNDS):
                    raise last
                timing.sleep(retry.pause_seconds(num_rounds, None, timing.chance()))
        raise AssertionError("not reached")

    def _ask_each(self, messages: Sequence[bytes], seed: int, deadlines: tuple[Deadline, ...]) -> Reply:
        """Ask one replica after another; raises the last error, as connected if any was."""
        tried: list[str] = []
        num_attempts, has_connected = 0, False
        while True:
            if self._url is None:
                self._url = self._replicas.take(tried)
            try:
                return self._ask_replica(self._url, messages, seed, deadlines)
            except TeacherUnreachable as error:
                has_connected = has_connected or error.has_connected
                num_attempts += error.attempts
                tried.append(self._url)
                self.close()
                if self._replicas.num_replicas == len(tried):
                    error.has_connected, error.attempts = has_connected, num_attempts
                    raise

    def close(self) -> None:
        """Give the replica back."""
        if self._url is not None:
            self._replicas.give_back(self._url)
        self._url = None
