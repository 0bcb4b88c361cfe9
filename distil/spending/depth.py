"""Depth before width: what is left of a limit finishes the samples that were begun, before another is."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class Begun:
    """A sample that is being solved: the requests it has had, over all runs; and whether one is in flight."""

    num_requests: int
    max_turns: int
    is_asking: bool = False

    @property
    def place(self) -> int:
        """How far it has come."""
        return self.num_requests + self.is_asking


class Depth:
    """The samples that are being solved, and how many requests one takes; whoever calls holds a lock.

    A sample is taken to need as many requests as the finished ones did in the mean, and `max_turns` before
    the first of them has finished. Those that may have other numbers of turns are other samples: one without
    tools says nothing of one with tools.
    """

    def __init__(self) -> None:
        self._begun: dict[int, Begun] = {}  # by thread, each of which solves one at a time
        self._waiting: deque[tuple[int, int]] = deque()  # threads and turns, in the order of their samples
        self._num_finished: Counter[int] = Counter()  # by the most turns that they may have
        self._num_requests: Counter[int] = Counter()

    @property
    def next_mean(self) -> float | None:
        """The requests of a finished sample of the kind that is to begin next, None before there is one."""
        return self._mean(self._waiting[0][1]) if self._waiting else None

    def _mean(self, max_turns: int) -> float | None:
        num_finished = self._num_finished[max_turns]
        return self._num_requests[max_turns] / num_finished if num_finished else None

    @property
    def is_idle(self) -> bool:
        """Whether no sample is being solved."""
        return not self._begun

    def queue(self, thread: int, max_turns: int) -> None:
        """A thread has a sample to begin, of so many turns at the most."""
        self._waiting.append((thread, max_turns))

    def may_begin(self, thread: int, num_paid: int, num_left: float) -> bool:
        """Whether a thread's sample, with so many paid requests, can be finished with `num_left` requests.

        Beside those that are being solved; alone, one may be tried as long as none has finished, and one
        that has paid requests may always go on.
        """
        first, max_turns = self._waiting[0]
        if first != thread:
            return False
        if self.is_idle and (num_paid or (self.next_mean is None and num_left >= 1)):
            return True
        return self._need(Begun(num_paid, max_turns)) + sum(map(self._need, self._begun.values())) <= num_left

    def has_no_chance(self, thread: int) -> bool:
        """Whether a thread's sample that may not begin never will: nothing that ends makes room for it."""
        return self.is_idle and self._waiting[0][0] == thread

    def begin(self, thread: int, num_paid: int) -> None:
        """The thread's sample, the next one, is being solved from now on."""
        _, max_turns = self._waiting.popleft()
        self._begun[thread] = Begun(num_paid, max_turns)

    def leave_queue(self) -> None:
        """The next sample is not begun."""
        self._waiting.popleft()

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
            self._num_finished[begun.max_turns] += 1
            self._num_requests[begun.max_turns] += begun.num_requests

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
        mean = self._mean(begun.max_turns) or begun.max_turns
        expected = mean if begun.num_requests < mean else begun.max_turns
        return max(expected - begun.place, 0.0 if begun.is_asking else 1.0)
