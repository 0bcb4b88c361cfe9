"""What a whole selection will take, by what a run of a few of its samples took."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from distil.records import SampleId
from distil.spending.budget import Bill, Spent

# The standard table of Student's t: its 0.975 quantiles for 1 to 30 degrees of freedom; then the normal's.
_T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_NORMAL_QUANTILE = 1.96

_OfBill = Callable[[Bill], float]


@dataclass
class Spread:
    """How far values lie apart, by Welford's way, which keeps none of them: equal ones have none."""

    number: int = 0
    mean: float = 0.0
    squares: float = 0.0  # of the values' distances from the mean, summed

    def add(self, value: float | None) -> None:
        """Count a value, if it is known."""
        if value is None:
            return
        self.number += 1
        before = value - self.mean
        self.mean += before / self.number
        self.squares += before * (value - self.mean)

    @property
    def margin_share(self) -> float | None:
        """How far the true mean may lie from the values', as a share of it, at 95 %; None for too few."""
        if self.number < 2:
            return None
        degrees = self.number - 1
        quantile = _T_QUANTILES[degrees - 1] if degrees <= len(_T_QUANTILES) else _NORMAL_QUANTILE
        deviation = math.sqrt(self.squares / degrees)
        return quantile * deviation / math.sqrt(self.number) / self.mean if self.mean else 0.0


@dataclass(frozen=True, slots=True)
class Selection:
    """What is to be estimated; those without a trace are counted as they were before the measured run."""

    num_samples: int
    num_without_trace: int
    max_workers: int


@dataclass
class Measured:
    """What a run of some samples took, added up as they end; what it asked before its first is not in it."""

    spent_before: Spent
    spent_after: Spent
    num_resumed: int = 0  # that went on from turns of an earlier run
    num_failed: int = 0
    is_stopped: bool = False  # by its budget
    seconds: float = 0.0
    started: float = field(default_factory=time.monotonic)
    sample_seconds: Spread = field(default_factory=Spread)  # of those that finished, as the next two
    sample_tokens: Spread = field(default_factory=Spread)
    sample_costs_usd: Spread = field(default_factory=Spread)

    def add(self, seconds: float | None, tokens: float | None, cost_usd: float | None) -> None:
        """Count a sample that finished; None where the server does not say."""
        self.sample_seconds.add(seconds)
        self.sample_tokens.add(tokens)
        self.sample_costs_usd.add(cost_usd)

    def end(self, spent: Spent, is_stopped: bool) -> None:
        """No sample follows."""
        self.seconds = time.monotonic() - self.started
        self.spent_after, self.is_stopped = spent, is_stopped

    @property
    def num_finished(self) -> int:
        """The samples that have a trace of this run."""
        return self.sample_seconds.number

    @property
    def num_ended(self) -> int:
        """The samples that finished or failed."""
        return self.num_finished + self.num_failed

    @property
    def tokens(self) -> float | None:
        """The tokens of all its requests that report them, None where none does."""
        return self._added(_tokens, _num_without_tokens)

    @property
    def cost_usd(self) -> float | None:
        """The cost of all its requests that report their tokens, None where it is known of none."""
        return self._added(lambda bill: bill.cost_usd or 0.0, lambda bill: bill.without_cost)

    @property
    def num_without_tokens(self) -> int:
        """Its requests that do not report their tokens."""
        return round(self._since(_num_without_tokens))

    def _added(self, amount: _OfBill, num_unknown: _OfBill) -> float | None:
        is_known = self._since(lambda bill: bill.requests - num_unknown(bill)) > 0
        return self._since(amount) if is_known else None

    def _since(self, amount: _OfBill) -> float:
        """Over all that is or may be billed: a reply that could not be used may be billed all the same."""
        after, before = self.spent_after, self.spent_before
        return sum(map(amount, after.bills)) - sum(map(amount, before.bills))


def _tokens(bill: Bill) -> int:
    return bill.tokens.known


def _num_without_tokens(bill: Bill) -> int:
    return bill.without_tokens


@dataclass(frozen=True, slots=True)
class Estimate:
    """One figure's estimate; without a range where one sample, or none, says how much they differ."""

    sample: float
    whole: float
    whole_range: tuple[float, float] | None
    to_do: float


def choose_samples(
    left: Sequence[SampleId], with_journal: Collection[SampleId], num_samples: int
) -> list[SampleId]:
    """The samples to measure: first those without a journal, as those that go on from one take less."""
    return sorted(left, key=lambda sample_id: sample_id in with_journal)[:num_samples]


def estimate_spending(
    total: float | None, values: Spread, measured: Measured, selection: Selection
) -> Estimate | None:
    """Tokens or cost by their `total` in the run, None where that is not known.

    `values` are those of the finished samples. The total has retries and failed samples in it too, so the
    range is the values' own, scaled to it.
    """
    if total is None:
        return None
    mean = total / measured.num_ended
    whole = selection.num_samples * mean
    share = values.margin_share
    whole_range = None if share is None else (whole * max(0.0, 1 - share), whole * (1 + share))
    return Estimate(mean, whole, whole_range, num_to_do(measured, selection) * mean)


def estimate_seconds(measured: Measured, selection: Selection) -> Estimate:
    """Time by the throughput that was measured.

    At best all workers are as fast as those that were busy here. At worst no more samples are worked on at
    once than were here on the average, and that is the sum of their seconds by the run's (Little's law).
    """
    mean = measured.sample_seconds.mean
    a_sample = measured.seconds / measured.num_ended
    whole = selection.num_samples * a_sample
    left = num_to_do(measured, selection)
    to_do = max(left * a_sample, mean) if left else 0.0
    share = measured.sample_seconds.margin_share
    if share is None:
        return Estimate(mean, whole, None, to_do)
    most_at_once = min(selection.max_workers, selection.num_samples)
    best = max(selection.num_samples * mean * max(0.0, 1 - share) / most_at_once, mean)
    return Estimate(mean, whole, (min(best, whole), whole * (1 + share)), to_do)


def num_to_do(measured: Measured, selection: Selection) -> int:
    """The samples that have no trace yet, after the measured run."""
    return selection.num_without_trace - measured.num_finished


def print_estimate(measured: Measured, selection: Selection, console: Console) -> None:
    """Print what the selection will take, with a 95 % range, and what of it is still to do."""
    left = num_to_do(measured, selection)
    if measured.num_finished:
        console.print(_table(measured, selection))
        for note in _notes(measured, selection):
            console.print(note, highlight=False, soft_wrap=True)
    elif left:
        console.print(_nothing_measured(measured, left), highlight=False, soft_wrap=True)
    if not left:
        text = f"All {selection.num_samples} samples have a trace: nothing is left to pay."
        console.print(text, highlight=False, soft_wrap=True)


def _table(measured: Measured, selection: Selection) -> Table:
    table = Table(box=None, pad_edge=False)
    left = num_to_do(measured, selection)
    whole = f"all {selection.num_samples} samples"
    for heading in ("", "a sample", whole, "95 % range", f"{left} still to do"):
        table.add_column(heading)
    tokens, costs = measured.sample_tokens, measured.sample_costs_usd
    rows: tuple[tuple[str, Estimate | None, Callable[[float], str]], ...] = (
        ("time", estimate_seconds(measured, selection), _duration_text),
        ("tokens", estimate_spending(measured.tokens, tokens, measured, selection), _tokens_text),
        ("cost", estimate_spending(measured.cost_usd, costs, measured, selection), _cost_text),
    )
    for name, estimate, text in rows:
        table.add_row(name, *_texts(estimate, text))
    return table


def _texts(estimate: Estimate | None, text: Callable[[float], str]) -> tuple[str, ...]:
    if estimate is None:
        return ("not known", "not known", "–", "not known")
    ends = estimate.whole_range
    whole_range = "–" if ends is None else f"{text(ends[0])} – {text(ends[1])}"
    return (text(estimate.sample), text(estimate.whole), whole_range, text(estimate.to_do))


def _notes(measured: Measured, selection: Selection) -> list[str]:
    """What the figures rest on, and what makes them too low or too high."""
    at_best = min(selection.max_workers, selection.num_samples)
    ended = f"{measured.num_finished} finished and {measured.num_failed} failed"
    notes = [
        f"From this run's {ended} in {_duration_text(measured.seconds)}; "
        f"the range's best time is for {at_best} samples at once, each as fast as these."
    ]
    if measured.num_resumed:
        notes.append(f"{measured.num_resumed} of them went on from turns paid before: all will take more.")
    if measured.is_stopped:
        notes.append("The budget cut samples off, and what they took is counted: all will take less.")
    if measured.num_without_tokens and measured.tokens is not None:
        notes.append(f"Not counted: {measured.num_without_tokens} requests that report no tokens.")
    return notes


def _nothing_measured(measured: Measured, num_left: int) -> str:
    if measured.num_failed:
        reason = f"none of this run's samples finished, {measured.num_failed} failed"
    elif measured.is_stopped:
        reason = "the budget stopped this run before a sample ended"
    else:
        reason = "this run had no sample to run; --retry_failed takes only those that failed before"
    return f"Nothing to estimate from: {reason}. Still to do: {num_left} samples."


def _duration_text(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def _tokens_text(tokens: float) -> str:
    return f"{tokens:,.0f}"


def _cost_text(cost_usd: float) -> str:
    return f"{cost_usd:,.4f} USD" if cost_usd < 1 else f"{cost_usd:,.2f} USD"
