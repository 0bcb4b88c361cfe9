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
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

NUM_BINS = 10
MAX_LAG = 64  # as many are in flight at the most
_KEPT = 0.5 ** (1 / 300)  # of an outcome with each later one: half after 300, as a teacher may change
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


def pass_rates(passed: Floats, ended: Floats) -> Floats:
    """At which rate the rows of each bin pass: a smooth curve over all bins, bent by what came of each."""
    rates: Floats = (passed + _WEIGHT_OF_CURVE * _curve(passed, ended)) / (ended + _WEIGHT_OF_CURVE)
    return rates


def _curve(passed: Floats, ended: Floats) -> Floats:
    """The logistic curve of second degree that fits best; by Newton's method, from a level line."""
    num_bins = len(passed)
    place = np.linspace(-1.0, 1.0, num_bins) if num_bins > 1 else np.zeros(1)
    powers = np.stack([np.ones(num_bins), place, place**2], axis=1)
    factors = np.zeros(3)
    for _ in range(_NEWTON_STEPS):
        rates = _shares(powers @ factors)
        slope = powers.T @ (passed - ended * rates) - _RIDGE * factors
        weights = ended * rates * (1 - rates)
        curvature = powers.T @ (weights[:, None] * powers) + np.diag(_RIDGE)
        factors = factors + np.linalg.solve(curvature, slope)
    return _shares(powers @ factors)


def hopeful(rates: Floats, ended: Floats, rate: float) -> Floats:
    """The rates as they may be at their nearest to a rate that all seem too far from.

    Without it a bin whose first few rows went ill by chance would never be tried again.
    """
    doubt = _DOUBTS * np.sqrt(rates * (1 - rates) / (ended + _WEIGHT_OF_CURVE))
    likely: Floats = np.clip(rates + (doubt if rate > rates.mean() else -doubt), 0, 1)
    return likely


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

    def __init__(self, target: float, num_draws: int, bins: Sequence[Sequence[int]], seed: int) -> None:
        """A bin's rows are drawn in their order."""
        self.target, self.num_draws = target, min(num_draws, sum(map(len, bins)))
        self.rows: list[int] = []  # drawn, in the order of their draws
        self._bins, self._seed = bins, seed
        self._undrawn = [iter(rows) for rows in bins]  # and perhaps some that are drawn
        self._num_left = np.array([len(rows) for rows in bins], float)  # of each bin
        self._passed, self._ended = np.zeros(len(bins)), np.zeros(len(bins))  # of each bin
        self._bin_of: dict[int, int] = {}  # of the rows that are drawn
        self._outcomes: dict[int, float | None] = {}  # by row; None for one that came to nothing
        self._num_ended = self._num_learned = 0  # of the first draws
        self._num_failed, self._sum_passed = 0, 0.0  # of those that are learned

    def go_on(self, rows: Sequence[int]) -> None:
        """Take rows as the first draws, which are decided already; raises KeyError for one of no bin."""
        places = dict.fromkeys(rows, -1)
        for place, of_bin in enumerate(self._bins):
            places |= dict.fromkeys(filter(places.__contains__, of_bin), place)
        if -1 in places.values():
            raise KeyError("a row of no bin")
        for row in rows[: self.num_draws]:
            self._take(row, places[row])

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
        row = next(row for row in self._undrawn[place] if row not in self._bin_of)
        self._take(row, place)
        return row

    def note(self, row: int, outcome: float | None) -> None:
        """What has come of a drawn row: which share of it passed; None for nothing, by a fault."""
        self._outcomes[row] = outcome
        while self._num_ended < len(self.rows) and self.rows[self._num_ended] in self._outcomes:
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
        rates = pass_rates(self._passed, self._ended)
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
        self._bin_of[row] = place
        self._num_left[place] -= 1
        self.rows.append(row)

    def _learn(self, number: int) -> None:
        """Take in what came of the first so many draws, in their order."""
        for row in self.rows[self._num_learned : number]:
            outcome = self._outcomes[row]
            if outcome is None:
                self._num_failed += 1
                continue
            self._sum_passed += outcome
            self._passed *= _KEPT
            self._ended *= _KEPT
            self._passed[self._bin_of[row]] += outcome
            self._ended[self._bin_of[row]] += 1
        self._num_learned = max(self._num_learned, number)

    def _chosen_bin(self, number: int) -> int:
        rates, num_left = pass_rates(self._passed, self._ended), self._num_left
        num_draws = self.num_draws - number
        not_learned = [self._bin_of[row] for row in self.rows[self._num_learned :]]
        expected = float(rates[not_learned].sum())
        lacking = self.target * (self.num_draws - self._num_failed) - self._sum_passed - expected
        rate = lacking / num_draws
        drawn = mixture(num_left, rates, num_draws, rate)
        if abs(drawn @ rates / drawn.sum() - rate) > _OUT_OF_REACH:
            drawn = mixture(num_left, hopeful(rates, self._ended, rate), num_draws, rate)
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
