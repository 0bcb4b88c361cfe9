"""How near `--target_acc` comes to its target, in a simulation of the draws alone: no request, no picture.

Next to drawing blindly, and to shares of easy and hard rows that are fixed beforehand by what the score promises
and never corrected.
"""

from __future__ import annotations

import heapq
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean

import numpy as np
from measure import Bench, Row, say

sys.path.append(str(Path(__file__).absolute().parent.parent))

from distil.run.aim import Aim, quantile_bins

TITLE = "Aiming at an accuracy (a simulation of the draws)"
NUM_ROWS = 4000
TARGETS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # of these those between what is possible, by a margin
Rate = Callable[[float, float], float]  # of a row of this difficulty, so far into the run (both 0 to 1)


def usual(score: float, _: float) -> float:
    """Rows from hopeless to easy, which the score tells."""
    return 0.08 + 0.84 * score


def weak(score: float, _: float) -> float:
    """A score that tells less."""
    return 0.2 + 0.7 * score**2


def drifting(score: float, time: float) -> float:
    """A teacher that becomes worse by a fifth while the run goes on."""
    return (0.08 + 0.9 * score) * (1 - 0.2 * time)


def jumping(score: float, time: float) -> float:
    """One that is replaced by a better one after half of the run."""
    return (0.05 + 0.75 * score) if time < 0.5 else (0.15 + 0.84 * score)


def bent(score: float, _: float) -> float:
    """A score that is easiest in the middle."""
    return 0.9 - 1.6 * abs(score - 0.5)


WORLDS: dict[str, Rate] = {
    "usual": usual,
    "weak score": weak,
    "drifting": drifting,
    "jumping": jumping,
    "easiest in the middle": bent,
}


class World:
    """Rows with a score, and what comes of each when it is asked."""

    def __init__(self, rate: Rate, num_draws: int, seed: int) -> None:
        chance = random.Random(f"world {seed}")
        self.scores = [chance.random() for _ in range(NUM_ROWS)]
        self._lots = [chance.random() for _ in range(NUM_ROWS)]
        self._rate, self._num_draws = rate, num_draws

    def passes(self, row: int, number: int) -> float:
        return float(self._lots[row] < self._rate(self.scores[row], number / self._num_draws))


def ours(world: World, target: float, num_draws: int, in_flight: int, seed: int) -> float:
    """Rows drawn by `Aim`, so many in flight, which end in any order."""
    chance = random.Random(f"ours {seed}")
    rows = list(range(NUM_ROWS))
    chance.shuffle(rows)
    aim = Aim(target, num_draws, quantile_bins(rows, np.array([world.scores[row] for row in rows])), seed)
    flying: list[tuple[float, int, float]] = []
    now = 0.0
    while True:
        while len(flying) < in_flight and (row := aim.draw()) is not None:
            outcome = world.passes(row, len(aim.rows) - 1)
            heapq.heappush(flying, (now + chance.expovariate(1), row, outcome))
        if not flying:
            break
        now, row, outcome = heapq.heappop(flying)
        aim.note(row, outcome)
    assert len(set(aim.rows)) == num_draws and aim.reached is not None
    return aim.reached


def blind(world: World, _: float, num_draws: int, __: int, seed: int) -> float:
    """Any rows."""
    rows = random.Random(f"blind {seed}").sample(range(NUM_ROWS), num_draws)
    return fmean(world.passes(row, number) for number, row in enumerate(rows))


def fixed_shares(world: World, target: float, num_draws: int, _: int, seed: int) -> float:
    """Easy and hard rows, mixed beforehand as if they passed at the rates that their scores promise."""
    chance = random.Random(f"fixed {seed}")
    easy = [row for row in range(NUM_ROWS) if world.scores[row] >= 0.5]
    hard = [row for row in range(NUM_ROWS) if world.scores[row] < 0.5]
    chance.shuffle(easy)
    chance.shuffle(hard)
    share = min(1.0, max(0.0, (target - 0.25) / 0.5))  # the halves are taken to pass at 0.25 and 0.75
    num_easy = min(round(share * num_draws), len(easy))
    rows = easy[:num_easy] + hard[: num_draws - num_easy]
    chance.shuffle(rows)
    return fmean(world.passes(row, number) for number, row in enumerate(rows))


CONTESTANTS = {"distil": ours, "blindly": blind, "shares fixed beforehand": fixed_shares}


def lowest_and_highest(rate: Rate, num_draws: int) -> tuple[float, float]:
    """What the hardest and the easiest so many rows pass at, over a run of the world at its worst."""
    rates = [
        sorted(rate((row + 0.5) / NUM_ROWS, time) for row in range(NUM_ROWS)) for time in (0.0, 0.5, 0.999)
    ]
    lowest = max(fmean(each[:num_draws]) for each in rates)
    return lowest, min(fmean(each[-num_draws:]) for each in rates)


def measure(bench: Bench) -> list[Row]:
    rows = []
    for name in WORLDS:
        say(name)
        rows += list(_rows(name, 2 if bench.is_quick else 20))
    return rows


def _rows(name: str, num_runs: int) -> Iterator[Row]:
    rate = WORLDS[name]
    for num_draws, in_flight, margin in ((200, 2, 0.12), (1000, 64, 0.06)):
        lowest, highest = lowest_and_highest(rate, num_draws)
        targets = [target for target in TARGETS if lowest + margin <= target <= highest - margin]
        for contestant, draw in CONTESTANTS.items():
            misses = [
                draw(World(rate, num_draws, seed), target, num_draws, in_flight, seed) - target
                for target in targets
                for seed in range(max(1, num_runs * 200 // num_draws))
            ]
            sizes = sorted(map(abs, misses))
            yield {
                "world": name,
                "lowest": lowest,
                "highest": highest,
                "num_draws": num_draws,
                "in_flight": in_flight,
                "contestant": contestant,
                "targets": f"{targets[0]:g} to {targets[-1]:g}",
                "num_runs": len(misses),
                "mean_miss": fmean(sizes),
                "p95_miss": sizes[int(0.95 * len(sizes))],
                "worst_miss": sizes[-1],
                "share_within": fmean(size <= 0.02 + 1e-9 for size in sizes),
            }
