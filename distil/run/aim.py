"""`--target_acc`: rows drawn so that the share of them that pass comes to a target.

Rows lie in bins by difficulty. Of each bin it is learned at which rate its rows pass, and the next row is
drawn from a mixture of all bins under which the rows still to be drawn make up for what is lacking: of all
such mixtures the one that is nearest to drawing blindly, so that every difficulty stays among what is asked
and none is used up that is needed later.

A draw depends on what came of the draws some places before it and of none after these, however many workers
there are and whoever ends first. Of a few hundred draws that lag is short at first, when little is known, and
at the end, when nothing makes up for what is not known.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

NUM_BINS = 10
MAX_LAG = 64  # as many are in flight at the most
_HALF_LIFE = 300  # outcomes, after which one counts half: a teacher may change
_WEIGHT_OF_CURVE = 40.0  # as so many outcomes of the bin itself
_RIDGE = np.array([0.2, 0.2, 1.0])  # what holds the curve's level, slope and bend near 0
_NEWTON_STEPS = 6
_DOUBTS = 0.5  # standard deviations
_OUT_OF_REACH = 0.001  # of the rate that is lacking
_TILTS = np.sinh(np.linspace(-6.0, 6.0, 17))  # from the hardest rows alone to the easiest
_HALVINGS = 26
_MAX_MISS = 0.02  # of what is reached: more is told
_MAX_MISS_ROWS = 2.0  # of few rows

Floats = npt.NDArray[np.float64]


class Rates:
    """At which rate the rows of each bin pass: a smooth curve over all bins, bent by what came of each."""

    def __init__(self, num_bins: int) -> None:
        place = np.linspace(-1.0, 1.0, num_bins) if num_bins > 1 else np.zeros(1)
        self._powers = np.stack([np.ones(num_bins), place, place**2], axis=1)
        self._passed, self._ended = np.zeros(num_bins), np.zeros(num_bins)

    def add(self, place: int, outcome: float) -> None:
        """Learn what came of a row of a bin."""
        kept = 0.5 ** (1 / _HALF_LIFE)
        self._passed *= kept
        self._ended *= kept
        self._passed[place] += outcome
        self._ended[place] += 1

    @property
    def estimates(self) -> Floats:
        """The rate of each bin."""
        found: Floats = (self._passed + _WEIGHT_OF_CURVE * self._curve()) / (self._ended + _WEIGHT_OF_CURVE)
        return found

    def hopeful(self, rate: float) -> Floats:
        """The rates as they may be at their nearest to a rate that all seem too far from.

        Without it a bin whose first few rows went ill by chance would never be tried again.
        """
        found = self.estimates
        doubt = _DOUBTS * np.sqrt(found * (1 - found) / (self._ended + _WEIGHT_OF_CURVE))
        likely: Floats = np.clip(found + (doubt if rate > found.mean() else -doubt), 0, 1)
        return likely

    def _curve(self) -> Floats:
        """The logistic curve of second degree that fits best; by Newton's method, from a level line."""
        factors = np.zeros(3)
        for _ in range(_NEWTON_STEPS):
            rates = _shares(self._powers @ factors)
            slope = self._powers.T @ (self._passed - self._ended * rates) - _RIDGE * factors
            weights = self._ended * rates * (1 - rates)
            factors = factors + np.linalg.solve(
                self._powers.T @ (weights[:, None] * self._powers) + np.diag(_RIDGE), slope
            )
        return _shares(self._powers @ factors)


def mixture(num_left: Floats, rates: Floats, num_draws: int, rate: float) -> Floats:
    """How many rows of each bin to draw so that so many draws, none twice, pass at a rate.

    The nearest that there is where none does. Each bin's share is `1 / (1 + exp(-(a + b * rate)))`: with the
    same sum and the same mean, nothing is nearer to equal shares.
    """
    if num_draws >= num_left.sum():
        return num_left
    tilted = _TILTS[:, None] * (rates - rates.mean())
    share = num_draws / num_left.sum()
    width = np.abs(tilted).max(axis=1)
    low = np.log(share / (1 - share)) - width
    high = low + 2 * width
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        is_too_many = (_shares(tilted + middle[:, None]) @ num_left) > num_draws
        low, high = np.where(is_too_many, low, middle), np.where(is_too_many, middle, high)
    drawn = _shares(tilted + ((low + high) / 2)[:, None]) * num_left
    means = (drawn @ rates) / drawn.sum(axis=1)
    for place, (lower, upper) in enumerate(pairwise(means)):
        if lower <= rate <= upper:
            part = (rate - lower) / (upper - lower) if upper > lower else 0.5
            mixed: Floats = drawn[place] * (1 - part) + drawn[place + 1] * part
            return mixed
    extreme: Floats = drawn[0] if rate < means[0] else drawn[-1]
    return extreme


def _shares(odds: Floats) -> Floats:
    shares: Floats = 1 / (1 + np.exp(-np.clip(odds, -500, 500)))
    return shares


class Aim:
    """Draws rows from bins, none twice; it is told what comes of each. Used by one thread."""

    def __init__(
        self,
        target: float,
        num_draws: int,
        bins: Sequence[Sequence[int]],
        seed: int,
        drawn: Sequence[int] = (),
    ) -> None:
        """A bin's rows are drawn in their order; `drawn` are the first draws, which are decided already."""
        self.target, self.num_draws = target, min(num_draws, sum(map(len, bins)))
        self.rows: list[int] = []  # drawn, in the order of their draws
        self.rates = Rates(len(bins))
        self._bins, self._seed = bins, seed
        self._next_places = [0] * len(bins)
        self._bins_drawn: list[int] = []
        self._num_drawn: Counter[int] = Counter()
        self._places: dict[int, int] = {}  # of the rows that are drawn, by row
        self._outcomes: dict[int, float | None] = {}  # by draw; None for one that came to nothing
        self._num_ended = self._num_learned = 0  # of the first draws
        self._num_failed, self._sum_passed = 0, 0.0  # of those that are learned
        decided = set(drawn)
        bin_of = {row: place for place, rows in enumerate(bins) for row in rows if row in decided}
        for row in drawn[: self.num_draws]:
            self._take(row, bin_of[row])

    @property
    def is_over(self) -> bool:
        """Whether all rows are drawn."""
        return len(self.rows) >= self.num_draws

    def draw(self) -> int | None:
        """The next row; None where it depends on one that has not ended, and where all are drawn."""
        number = len(self.rows)
        known = max(0, number - self._lag(number))
        if self.is_over or self._num_ended < known:
            return None
        self._learn(known)
        place = self._chosen_bin(number)
        rows = self._bins[place]
        while rows[self._next_places[place]] in self._places:
            self._next_places[place] += 1
        row = rows[self._next_places[place]]
        self._take(row, place)
        return row

    def note(self, row: int, outcome: float | None) -> None:
        """What has come of a drawn row: which share of it passed; None for nothing, by a fault."""
        self._outcomes[self._places[row]] = outcome
        while self._num_ended in self._outcomes:
            self._num_ended += 1

    @property
    def reached(self) -> float | None:
        """The share of the rows that ended that passed, None where none has ended."""
        ended = [outcome for outcome in self._outcomes.values() if outcome is not None]
        return sum(ended) / len(ended) if ended else None

    @property
    def num_counted(self) -> int:
        """How many rows that share is of."""
        return sum(outcome is not None for outcome in self._outcomes.values())

    def why_missed(self) -> str | None:
        """Why the target is not reached by all draws together, None where it is."""
        reached = self.reached
        if reached is None:
            return "nothing came of any row"
        if abs(reached - self.target) <= max(_MAX_MISS, _MAX_MISS_ROWS / self.num_counted):
            return None
        if len(self.rows) < self.num_draws or len(self._outcomes) < len(self.rows):
            return f"{self.num_counted:,} of {self.num_draws:,} rows have ended"
        self._learn(self._num_ended)
        rates = self.rates.estimates
        is_low = reached < self.target
        best = float(rates.max() if is_low else rates.min())
        kind = "easiest" if is_low else "hardest"
        if best < self.target if is_low else best > self.target:
            return f"even the {kind} of the rows, by their difficulty, pass at {best:.2f}"
        is_of_use = rates >= self.target if is_low else rates <= self.target
        if not self._num_left[is_of_use].any():
            return f"the {'easier' if is_low else 'harder'} rows are used up"
        return "the rows pass otherwise than those before them did, or they are too few"

    def _lag(self, number: int) -> int:
        """How many draws before this one it does not know of."""
        of_all, left = self.num_draws, self.num_draws - number
        at_first = max(8, of_all // 16, number // 4)
        at_last = max(2, of_all**2 // 20_000, left // 8)  # whose outcomes, unknown at the end, move the mean
        return min(MAX_LAG, at_first, at_last)

    def _take(self, row: int, place: int) -> None:
        self._places[row] = len(self.rows)
        self._num_drawn[place] += 1
        self._bins_drawn.append(place)
        self.rows.append(row)

    def _learn(self, number: int) -> None:
        """Take in what came of the first so many draws, in their order."""
        for draw in range(self._num_learned, number):
            outcome = self._outcomes[draw]
            if outcome is None:
                self._num_failed += 1
            else:
                self._sum_passed += outcome
                self.rates.add(self._bins_drawn[draw], outcome)
        self._num_learned = max(self._num_learned, number)

    @property
    def _num_left(self) -> Floats:
        """How many rows of each bin are not drawn."""
        return np.array([len(rows) - self._num_drawn[place] for place, rows in enumerate(self._bins)], float)

    def _chosen_bin(self, number: int) -> int:
        rates, num_left, num_draws = self.rates.estimates, self._num_left, self.num_draws - number
        expected = float(rates[self._bins_drawn[self._num_learned :]].sum())  # of those not learned yet
        lacking = self.target * (self.num_draws - self._num_failed) - self._sum_passed - expected
        rate = lacking / num_draws
        drawn = mixture(num_left, rates, num_draws, rate)
        if abs(drawn @ rates / drawn.sum() - rate) > _OUT_OF_REACH:
            drawn = mixture(num_left, self.rates.hopeful(rate), num_draws, rate)
        drawn = np.where(num_left > 0, drawn, 0.0)
        ends = np.cumsum(drawn)
        place = int(np.searchsorted(ends, self._lot(number) * ends[-1], side="right"))
        return min(place, int(np.flatnonzero(drawn)[-1]))

    def _lot(self, number: int) -> float:
        """A number from 0 to 1 that a draw has by the seed."""
        digest = hashlib.sha256(f"draw:{self._seed}:{number}".encode()).digest()
        return int.from_bytes(digest[:6], "big") / 2**48


def quantile_bins(rows: Sequence[int], difficulties: Floats) -> list[Sequence[int]]:
    """Rows in bins of the same size by their difficulty; those that have none (NaN) are left out.

    In a bin the rows stay in their order. Fewer bins where there are fewer rows than bins.
    """
    order = np.argsort(difficulties, kind="stable")[: np.count_nonzero(~np.isnan(difficulties))]
    numbers = np.asarray(rows, np.int64)
    parts = np.array_split(order, min(NUM_BINS, len(order))) if len(order) else []
    return [array("q", numbers[np.sort(part)].tobytes()) for part in parts]
