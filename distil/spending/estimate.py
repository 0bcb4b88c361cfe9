"""What a whole selection will take, by what a run of a few of its samples took."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from distil.records import SampleId
from distil.spending.budget import Measure, Spent, calls_of, cost_of, tokens_of

# The standard table of Student's t: its 0.975 quantiles for 1 to 30 degrees of freedom; then the normal's.
_T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_NORMAL_QUANTILE = 1.96


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
class SampleSelection:
    """What is to be estimated: all that is selected, and what of it has no trace after the measured run."""

    num_samples: int
    num_to_do: int
    max_workers: int
    notes: tuple[str, ...] = ()  # what the estimate is to be read with


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

    def begin(self) -> None:
        """Time is counted from here on."""
        self.started = time.monotonic()

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
        return self._added(tokens_of)

    @property
    def cost_usd(self) -> float | None:
        """The cost of all its requests that report their tokens, None where it is known of none."""
        return self._added(cost_of)

    @property
    def num_without_tokens(self) -> int:
        """Its requests that do not report their tokens."""
        return self._since(tokens_of)[1]

    def _added(self, measure: Measure) -> float | None:
        amount, num_unknown = self._since(measure)
        return amount if self._since(calls_of)[0] > num_unknown else None

    def _since(self, measure: Measure) -> tuple[float, int]:
        amount, num_unknown = self.spent_after.billed(measure)
        amount_before, num_before = self.spent_before.billed(measure)
        return amount - amount_before, num_unknown - num_before


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
    total: float | None, values: Spread, measured: Measured, selection: SampleSelection
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
    return Estimate(mean, whole, whole_range, selection.num_to_do * mean)


def estimate_seconds(measured: Measured, selection: SampleSelection) -> Estimate:
    """Time by the throughput that was measured.

    At best all workers are as fast as those that were busy here. At worst no more samples are worked on at
    once than were here on the average, and that is the sum of their seconds by the run's (Little's law).
    """
    mean = measured.sample_seconds.mean
    a_sample = measured.seconds / measured.num_ended
    whole = selection.num_samples * a_sample
    to_do = max(selection.num_to_do * a_sample, mean) if selection.num_to_do else 0.0
    share = measured.sample_seconds.margin_share
    if share is None:
        return Estimate(mean, whole, None, to_do)
    most_at_once = min(selection.max_workers, selection.num_samples)
    best = max(selection.num_samples * mean * max(0.0, 1 - share) / most_at_once, mean)
    return Estimate(mean, whole, (min(best, whole), whole * (1 + share)), to_do)
