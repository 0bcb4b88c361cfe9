"""Depth before width: what is left of a limit finishes the samples that were begun, before another is."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class Begun:
    """A sample that is being solved: the requests it has had, over all runs; and whether one is in flight."""

    num_requests: int
    is_asking: bool = False

    @property
    def place(self) -> int:
        """How far it has come."""
        return self.num_requests + self.is_asking


class Depth:
    """The samples that are being solved, and how many requests one takes; whoever calls holds a lock.

    A sample is taken to need as many requests as the finished ones did in the mean, and `max_turns` before
    the first of them has finished.
    """

    def __init__(self) -> None:
        self._max_turns = 1
        self._begun: dict[int, Begun] = {}  # by thread, each of which solves one at a time
        self._waiting: deque[int] = deque()  # threads, in the order of their samples
        self._num_finished = self._num_requests = 0

    @property
    def mean(self) -> float | None:
        """The requests of a finished sample, None before there is one."""
        return self._num_requests / self._num_finished if self._num_finished else None

    @property
    def is_idle(self) -> bool:
        """Whether no sample is being solved."""
        return not self._begun

    def queue(self, thread: int, max_turns: int) -> None:
        """A thread has a sample to begin, of so many turns at the most."""
        self._max_turns = max_turns
        self._waiting.append(thread)

    def may_begin(self, thread: int, num_paid: int, num_left: float) -> bool:
        """Whether a thread's sample, with so many paid requests, can be finished with `num_left` requests.

        Beside those that are being solved; alone, one may be tried as long as none has finished, and one
        that has paid requests may always go on.
        """
        if self._waiting[0] != thread:
            return False
        if self.is_idle and (num_paid or (self.mean is None and num_left >= 1)):
            return True
        return self._need(Begun(num_paid)) + sum(map(self._need, self._begun.values())) <= num_left

    def has_no_chance(self, thread: int) -> bool:
        """Whether a thread's sample that may not begin never will: nothing that ends makes room for it."""
        return self.is_idle and self._waiting[0] == thread

    def begin(self, thread: int, num_paid: int) -> None:
        """The thread's sample, the next one, is being solved from now on."""
        self._waiting.popleft()
        self._begun[thread] = Begun(num_paid)

    def leave_queue(self, thread: int) -> None:
        """The thread's sample is not begun."""
        self._waiting.remove(thread)

    def ask(self, thread: int) -> None:
        """A request of the thread's sample, if it has one, is in flight."""
        if thread in self._begun:
            self._begun[thread].is_asking = True

    def count(self, thread: int, is_billed: bool) -> None:
        """It has ended."""
        if thread in self._begun:
            self._begun[thread].num_requests += is_billed
            self._begun[thread].is_asking = False

    def end(self, thread: int, is_finished: bool) -> None:
        """The thread's sample has ended."""
        begun = self._begun.pop(thread)
        if is_finished and begun.num_requests:
            self._num_finished += 1
            self._num_requests += begun.num_requests

    def must_wait(self, thread: int, num_left: float) -> bool:
        """Whether what is left may all be needed by samples that are further on than the thread's."""
        own = self._begun.get(thread)
        if own is None:
            return False
        ahead, earlier = 0.0, True
        for each in self._begun.values():  # in the order in which they were begun
            earlier = earlier and each is not own
            if each.place > own.place or (earlier and each.place == own.place):
                ahead += self._need(each)
        return ahead > 0 and num_left - ahead < 1

    def _need(self, begun: Begun) -> float:
        """How many requests beyond that in flight a sample takes; past the mean, perhaps all there may be."""
        mean = self.mean or self._max_turns
        expected = mean if begun.num_requests < mean else self._max_turns
        return max(expected - begun.place, 0.0 if begun.is_asking else 1.0)
