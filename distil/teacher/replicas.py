"""Several servers with the same model: samples spread over them, each with all its turns on one.

A replica keeps the prefix cache of the conversations it has seen. A sample moves on only where its
replica gives no reply; the replies so far stay good, as every request carries the whole conversation.
A single server is the only replica: it is never left.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from distil.teacher.availability import Sign
from distil.teacher.connection import shown_url

_RETRIES = 1  # of one replica that gives no reply: an idle connection breaks once

_FIRST_REST_SECONDS, _MAX_REST_SECONDS = 5.0, 300.0  # before a dead replica is given samples again


@dataclass(slots=True)
class _Replica:
    url: str
    num_samples: int = 0  # that it has now
    num_given: int = 0  # that it ever had
    rest_seconds: float = 0.0  # of its last death; 0 while it replies
    retry_at: float = 0.0


class Replicas:
    """Which replica a sample goes to: the live one with the fewest; safe for many threads.

    `tell` gets a line when one dies.
    """

    def __init__(self, urls: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.tell: Callable[[str], None] = lambda _: None
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

    def is_dead(self, url: str) -> bool:
        """Whether a replica has given no reply since it was marked dead."""
        with self._lock:
            return self._replicas[url].rest_seconds > 0

    def mark_dead(self, url: str, reason: str = "") -> None:
        """A replica gave no reply: no samples for it until it has rested, longer each time."""
        with self._lock:
            replica, now = self._replicas[url], self._clock()
            if now < replica.retry_at:
                return  # many requests meet one death
            rest = min(max(_FIRST_REST_SECONDS, 2 * replica.rest_seconds), _MAX_REST_SECONDS)
            is_news = replica.rest_seconds == 0
            replica.rest_seconds, replica.retry_at = rest, now + rest
        if is_news:
            self.tell(f"A replica is left for the others: {reason}")

    def mark_alive(self, url: str) -> None:
        """A replica replied."""
        replica = self._replicas[url]
        if replica.rest_seconds or replica.retry_at:  # no lock for one that was alive
            with self._lock:
                replica.rest_seconds = replica.retry_at = 0.0


@dataclass(eq=False, slots=True)
class SampleReplica:
    """The replica that one sample is at, from its first request on; used by one thread."""

    _replicas: Replicas
    _url: str | None = field(default=None, init=False)
    _num_silences: int = field(default=0, init=False)  # of this replica, since its last reply
    _has_connected: bool = field(default=False, init=False)  # any of those that were left
    _left: list[str] = field(default_factory=list, init=False)  # one after another, since the last reply

    @property
    def url(self) -> str:
        """Its address; one is taken where the sample has none."""
        if self._url is None:
            self._url = self._replicas.take(self._left)
        return self._url

    @property
    def name(self) -> str:
        """Its address as it may be shown."""
        return shown_url(self.url)

    def note_reply(self) -> None:
        """It replied: those that were left may be asked again."""
        self._replicas.mark_alive(self.url)
        self._num_silences, self._has_connected = 0, False
        self._left.clear()

    def note_silence(self, sign: Sign, reason: str, is_advised: bool) -> Sign:
        """Take in an attempt without a reply; returns what it tells about all replicas together.

        The replica is left for the next one where it gives none again, or had given none to others before.
        `is_advised`: it said when to come back, and is waited for.
        """
        if self._replicas.num_replicas == 1:
            return sign
        self._num_silences += not is_advised
        if not self._replicas.is_dead(self.url) and (is_advised or self._num_silences <= _RETRIES):
            return Sign.NOTHING
        self._replicas.mark_dead(self.url, reason)
        self._has_connected |= sign is not Sign.NO_CONNECTION
        self._left.append(self.url)
        self.close()
        if len(self._left) < self._replicas.num_replicas:
            return Sign.OTHERS
        sign = Sign.BROKEN if self._has_connected else Sign.NO_CONNECTION
        self._left.clear()
        self._has_connected = False
        return sign

    def close(self) -> None:
        """Give the replica back."""
        if self._url is not None:
            self._replicas.give_back(self._url)
        self._url, self._num_silences = None, 0
