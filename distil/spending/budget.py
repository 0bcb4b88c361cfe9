"""What a run has spent, over all its resumes, and the limits that it must not pass.

Before a request leaves, the most that it can come to is reserved, and it is recorded as sent; what is in
flight counts as spent until it is answered. So spending passes a limit at most by what a server bills beyond
the reservation of requests that were already sent, and a request that a kill cut off is not forgotten.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from types import MappingProxyType

from distil.errors import BudgetExceeded, UsageError
from distil.records import Json
from distil.spending.depth import Depth
from distil.spending.prices import CostUsd, Tokens, read_tokens, stored_tokens

_FIRST_PROMPT_TOKENS = 4_000  # reserved for a prompt before any is known: a photo and the question
_MIN_UNREPORTED = 3  # answered requests, none with figures, that tell of a server that never reports any
_UNREPORTED = "cannot be kept, as the server does not report its tokens: use --max_calls"
_RAISE = "raise it and run again, nothing is lost"


class RequestState(StrEnum):
    """What became of a request, as far as money goes."""

    SENT = "sent"  # in flight; or cut off with the process that sent it
    ANSWERED = "answered"
    RETRIED = "retried"  # sent, and no usable reply came: a provider may bill it all the same
    REFUSED = "refused"  # not connected, or refused with a status: free


@dataclass(slots=True)
class Request:
    """The leave to send one request, which is told when it is sent and what becomes of it."""

    _number_of_next: Callable[[], int] = lambda: 0
    state: RequestState = RequestState.RETRIED  # unless told otherwise
    tokens: Tokens = field(default_factory=Tokens)
    number: int | None = None  # not sent

    def sent(self) -> None:
        """It leaves now."""
        self.number = self._number_of_next()

    def answered(self, usage: Mapping[str, Json] | None) -> None:
        """A usable reply came, with this `usage`."""
        self.state, self.tokens = RequestState.ANSWERED, read_tokens(usage)

    def unusable(self, usage: Mapping[str, Json] | None) -> None:
        """A reply came that cannot be used, with this `usage`."""
        self.state, self.tokens = RequestState.RETRIED, read_tokens(usage)

    def refused(self) -> None:
        """The server did not take it."""
        self.state = RequestState.REFUSED


@dataclass(frozen=True, slots=True)
class Bill:
    """What some requests came to: sums over those that report a figure, None where none does."""

    requests: int = 0
    tokens: Tokens = field(default_factory=Tokens)
    cost_usd: float | None = None
    without_tokens: int = 0  # requests that do not say how many prompt and completion tokens they took
    without_cost: int = 0

    def plus(self, tokens: Tokens, cost_usd: float | None) -> Bill:
        """With one more request."""
        so_far = self.tokens
        return Bill(
            self.requests + 1,
            Tokens(
                _sum(so_far.prompt, tokens.prompt),
                _sum(so_far.cached, tokens.cached),
                _sum(so_far.completion, tokens.completion),
                _sum(so_far.reasoning, tokens.reasoning),
            ),
            _sum(self.cost_usd, cost_usd),
            self.without_tokens + (tokens.total is None),
            self.without_cost + (cost_usd is None),
        )


def _sum(sum_so_far: float | None, value: float | None) -> Json:
    return sum_so_far if value is None else value + (sum_so_far or 0)


Measure = Callable[[Bill], tuple[float, int]]  # how much some requests took, and how many do not say


def calls_of(bill: Bill) -> tuple[float, int]:
    """How many requests there were."""
    return bill.requests, 0


def tokens_of(bill: Bill) -> tuple[float, int]:
    """How many tokens they took."""
    return bill.tokens.known, bill.without_tokens


def cost_of(bill: Bill) -> tuple[float, int]:
    """What they cost, in USD."""
    return bill.cost_usd or 0.0, bill.without_cost


@dataclass(frozen=True, slots=True)
class Spent:
    """What all requests came to, by what became of them."""

    answered: Bill = field(default_factory=Bill)
    retried: Bill = field(default_factory=Bill)
    refused: int = 0

    @property
    def bills(self) -> tuple[Bill, Bill]:
        """Those of the requests that are or may be billed."""
        return self.answered, self.retried

    def billed(self, measure: Measure) -> tuple[float, int]:
        """All that is or may be billed: a reply that could not be used may be billed all the same."""
        amounts, nums_unknown = zip(*map(measure, self.bills), strict=True)
        return sum(amounts), sum(nums_unknown)

    @property
    def calls(self) -> int:
        """The requests that are or may be billed."""
        return self.answered.requests + self.retried.requests

    def plus(self, state: RequestState, tokens: Tokens, cost_usd: float | None) -> Spent:
        """With one more request."""
        if state is RequestState.REFUSED:
            return Spent(self.answered, self.retried, self.refused + 1)
        if state is RequestState.ANSWERED:
            return Spent(self.answered.plus(tokens, cost_usd), self.retried, self.refused)
        return Spent(self.answered, self.retried.plus(tokens, cost_usd), self.refused)


_WORDS: Mapping[Measure, tuple[str, str]] = {  # of the flag that limits it, and of an amount
    calls_of: ("--max_calls", "{} made"),
    tokens_of: ("--max_total_tokens", "{:,.0f} tokens"),
    cost_of: ("--max_cost_usd", "{:.4f} USD"),
}


class Budget:
    """Counts and bounds a run folder's requests, over all its resumes; safe from many threads.

    Its lock is held for sums alone: what is recorded is recorded outside it, or whoever writes would make all
    others wait.
    """

    def __init__(
        self,
        max_tokens: int = 0,
        cost_usd: CostUsd | None = None,
        limits: Mapping[Measure, float | None] = MappingProxyType({}),
        record: Callable[[Mapping[str, Json]], None] = lambda _: None,
    ) -> None:
        """`max_tokens` is the most that one reply can have; a measure's limit is None for none.

        `record` is given an entry as a request is sent and one as it ends, by many threads at once. Raises
        UsageError for a limit without a price.
        """
        if limits.get(cost_of) is not None and cost_usd is None:
            raise UsageError(
                "--max_cost_usd needs prices, and this model's at this address are not known: state them by "
                "--price_per_million IN,OUT[,CACHED_IN] (providers' prices: pip install -e '.[prices]')"
            )
        self._max_tokens, self._record = max_tokens, record
        self.cost_usd: CostUsd = cost_usd or (lambda _: None)  # what tokens cost, None where it is not known
        self._limits = {measure: limit for measure, limit in limits.items() if limit is not None}
        self.spent = Spent()
        self._most = self._largest_bill(_FIRST_PROMPT_TOKENS)  # that one request may come to
        self._in_flight = self._num_waiting = 0  # where there are limits
        self._depth = Depth()
        lock = threading.Lock()
        self._changed, self._sample_ended = threading.Condition(lock), threading.Condition(lock)
        self._numbers = itertools.count(1)

    @contextmanager
    def request(self) -> Iterator[Request]:
        """Around one request, which is told what became of it.

        Waits while requests in flight could use up what is left; raises BudgetExceeded when none is in
        flight and one more does not fit.
        """
        self._reserve()
        request = Request(self._send)
        try:
            yield request
        finally:
            self._end(request)

    @contextmanager
    def sample(self, num_paid: int, max_turns: int) -> Iterator[None]:
        """Around one sample, solved by this thread: of at most `max_turns`, of which `num_paid` are paid.

        Waits until what is left of a limit can finish it beside those that are being solved, first come
        first served; raises BudgetExceeded where it cannot.
        """
        if not self._limits:
            yield
            return
        thread = threading.get_ident()
        self._begin(thread, num_paid, max_turns)
        is_finished = False
        try:
            yield
            is_finished = True
        finally:
            with self._changed:
                self._depth.end(thread, is_finished)
                self._changed.notify_all()
                self._sample_ended.notify_all()

    def _begin(self, thread: int, num_paid: int, max_turns: int) -> None:
        depth = self._depth
        with self._changed:
            depth.queue(thread, max_turns)
            while not depth.may_begin(thread, num_paid, self._num_left()):
                if depth.has_no_chance(thread):
                    told = self._passed_limit() or self._too_little_left()
                    depth.leave_queue()
                    self._sample_ended.notify_all()
                    raise BudgetExceeded(told)
                self._sample_ended.wait()
            depth.begin(thread, num_paid)
            self._sample_ended.notify_all()  # the next one may fit too

    def _reserve(self) -> None:
        """Wait until one more request fits; whoever has waited wakes the next, which may fit or fail too."""
        if not self._limits:
            return
        with self._changed:
            while True:
                limit = self._passed_limit()
                if limit is not None and self._in_flight == 0:
                    self._wake_all()
                    raise BudgetExceeded(limit)
                if limit is None and not self._depth.must_wait(threading.get_ident(), self._num_left()):
                    break
                self._wait()
            self._in_flight += 1
            self._depth.ask(threading.get_ident())

    def _wait(self) -> None:
        self._num_waiting += 1
        self._changed.wait()
        self._num_waiting -= 1

    def _wake_all(self) -> None:
        """Wake all who wait, each for something else."""
        if self._num_waiting:
            self._changed.notify_all()

    def _num_left(self) -> float:
        """How many more requests the limits have room for, of the mean size, beside those in flight."""
        return min(map(self._num_fitting, self._limits), default=math.inf)

    def _num_fitting(self, measure: Measure) -> float:
        """How many requests of the mean amount fit, the last of which reserves the most."""
        used, held, mean, most = self._amounts(measure)
        room = self._limits[measure] - used - held - self._in_flight * mean - most
        return 0.0 if room < 0 else 1 + (room / mean if mean else math.inf)

    def _too_little_left(self) -> str:
        """Why no other sample is begun though a request would fit, in words."""
        limits = ", ".join(map(self._limit_text, self._limits))
        return (
            f"{limits}: {self.spent.calls} requests made, and what is left does not finish another sample, "
            f"which takes {self._depth.next_mean or 0.0:.1f} in the mean; {_RAISE}"
        )

    def _limit_text(self, measure: Measure) -> str:
        """A limit as the user stated it."""
        return f"{_WORDS[measure][0]} {self._limits[measure]:.15g}"

    def _passed_limit(self) -> str | None:
        """Which limit one more request could pass, in words, or None."""
        return next((told for measure in self._limits if (told := self._passed(measure)) is not None), None)

    def _passed(self, measure: Measure) -> str | None:
        """Why one more request could pass the limit, in words, or None."""
        _, num_silent = measure(self.spent.answered)
        if num_silent == self.spent.answered.requests >= _MIN_UNREPORTED:
            return f"{self._limit_text(measure)} {_UNREPORTED}"
        used, held, _, most = self._amounts(measure)
        if used + held + (self._in_flight + 1) * most <= self._limits[measure]:
            return None
        limit, text = self._limit_text(measure), _WORDS[measure][1].format
        if measure is calls_of:
            return f"{limit}: {text(used)}; {_RAISE}"
        _, num_unknown = self.spent.billed(measure)
        told = f", {text(held)} held for {num_unknown} requests without figures" if num_unknown else ""
        return f"{limit}: {text(used)} used{told}, up to {text(most)} a request; {_RAISE}"

    def _amounts(self, measure: Measure) -> tuple[float, float, float, float]:
        """What is used, what is held for requests without figures, a request's mean and its most.

        For each of those without figures the mean of the others is held, or the most where there are none.
        """
        most, _ = measure(self._most)
        answered, num_silent = measure(self.spent.answered)
        num_told = self.spent.answered.requests - num_silent
        mean = answered / num_told if num_told else most
        used, num_unknown = self.spent.billed(measure)
        return used, mean * num_unknown, mean, most

    def _largest_bill(self, prompt_tokens: int) -> Bill:
        """The most that a request with so long a prompt can come to."""
        tokens = Tokens(prompt=prompt_tokens, completion=self._max_tokens)
        return Bill().plus(tokens, self.cost_usd(tokens))

    def _send(self) -> int:
        number = next(self._numbers)
        self._record({"request": number, "state": RequestState.SENT.value})
        return number

    def _end(self, request: Request) -> None:
        number, state, tokens = request.number, request.state, request.tokens
        cost_usd = None if number is None or state is RequestState.REFUSED else self.cost_usd(tokens)
        with self._changed:
            if self._limits:
                self._in_flight -= 1
                is_billed = number is not None and state is not RequestState.REFUSED
                self._depth.count(threading.get_ident(), is_billed)
                self._wake_all()
            if number is not None:
                self._add(state, tokens, cost_usd)
        if number is not None:
            billed = {} if state is RequestState.REFUSED else asdict(tokens) | {"cost_usd": cost_usd}
            self._record({"request": number, "state": state.value, **billed})

    def _add(self, state: RequestState, tokens: Tokens, cost_usd: float | None) -> None:
        self.spent = self.spent.plus(state, tokens, cost_usd)
        if (tokens.prompt or 0) > (self._most.tokens.prompt or 0):
            self._most = self._largest_bill(tokens.prompt or 0)

    def read(self, entries: Iterable[Mapping[str, Json]]) -> None:
        """Take in what earlier runs recorded; a request that was sent and never ended may be billed."""
        in_flight: set[int] = set()
        largest = 0
        for entry in entries:
            number, state = entry["request"], RequestState(entry["state"])
            largest = max(largest, number)
            if state is RequestState.SENT:
                in_flight.add(number)
                continue
            in_flight.discard(number)
            tokens, cost_usd = stored_tokens(entry), entry.get("cost_usd")
            if cost_usd is None:  # the earlier run had no prices
                cost_usd = self.cost_usd(tokens)
            self._add(state, tokens, cost_usd)
        for _ in in_flight:
            self._add(RequestState.RETRIED, Tokens(), None)
        self._numbers = itertools.count(largest + 1)
