"""Several servers with the same model: samples spread over them, each with all its turns on one.

A replica keeps the prefix cache of the conversations it has seen. A sample moves on only where its
replica gives no reply; the replies so far stay good, as every request carries the whole conversation.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from distil.concurrency import Level
from distil.errors import TeacherUnreachable
from distil.records import Json, Reply
from distil.teacher.client import Teacher, TeacherSettings

Ask = Callable[[Sequence[bytes], int], Reply]  # encoded messages and a seed to a reply

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

    def mark_dead(self, url: str) -> None:
        """A replica gave no reply: no samples for it until it has rested, longer each time."""
        with self._lock:
            replica, now = self._replicas[url], self._clock()
            if now < replica.retry_at:
                return  # many requests meet one death
            rest = min(max(_FIRST_REST_SECONDS, 2 * replica.rest_seconds), _MAX_REST_SECONDS)
            replica.rest_seconds, replica.retry_at = rest, now + rest

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
        level: Level,
    ) -> None:
        self._level = level
        self._replicas = Replicas(api_bases)
        self._is_closed = False
        self._teachers = {
            url: Teacher(replace(settings, api_base=url), tools, self._level) for url in api_bases
        }

    def __enter__(self) -> ReplicatedTeacher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection; requests in flight and those that wait for a slot fail at once."""
        self._is_closed = True
        self._level.close()
        for teacher in self._teachers.values():
            teacher.close()

    @contextmanager
    def asking(self) -> Iterator[Ask]:
        """What asks for one sample, always the same replica for as long as that replies."""
        turns = _SampleTurns(self._replicas, self._ask_replica)
        try:
            yield turns.ask
        finally:
            turns.close()

    def _ask_replica(self, url: str, messages: Sequence[bytes], seed: int) -> Reply:
        try:
            reply = self._teachers[url].ask(messages, seed)
        except TeacherUnreachable:
            if not self._is_closed:  # else it is we who broke the connection
                self._replicas.mark_dead(url)
            raise
        self._replicas.mark_alive(url)
        return reply


@dataclass(slots=True)
class _SampleTurns:
    """One sample's replica, taken at its first request; used by one thread."""

    _replicas: Replicas
    _ask_replica: Callable[[str, Sequence[bytes], int], Reply]
    _url: str | None = None

    def ask(self, messages: Sequence[bytes], seed: int) -> Reply:
        """Ask the sample's replica, and where it gives no reply each other one; raises the last error."""
        tried: list[str] = []
        while True:
            if self._url is None:
                self._url = self._replicas.take(tried)
            try:
                return self._ask_replica(self._url, messages, seed)
            except TeacherUnreachable:
                tried.append(self._url)
                self.close()
                if self._replicas.num_replicas == len(tried):
                    raise

    def close(self) -> None:
        """Give the replica back."""
        if self._url is not None:
            self._replicas.give_back(self._url)
        self._url = None
