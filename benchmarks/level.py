"""The level of requests in flight against servers of known capacity, next to every fixed level.

One server queues whatever comes, as vLLM and SGLang do; one also answers 429 above a number of requests in
flight; one shares its speed among all it serves, as a server that batches does. Pictures are thumbs, so that
the level is what limits a run.
"""

from __future__ import annotations

from measure import Bench, Job, Row, say
from teacher_server import Capacity

TITLE = "The level against queueing servers (ceiling 64)"
CEILING = 64
FIXED_LEVELS = (1, 2, 4, 8, 16, 32, 64)
CAPACITIES = {  # name → capacity, calls a second that it can serve at most
    "8 slots, 100 ms, queues": (Capacity(0.1, 8), 80),
    "8 slots, 100 ms, noisy": (Capacity(0.1, 8, sigma=0.5), 80),
    "8 slots, 100 ms, 429 above 16": (Capacity(0.1, 8, refuses_above=16), 80),
    "16 slots, 200 ms, 429 above 16": (Capacity(0.2, 16, refuses_above=16, sigma=0.3), 80),
    "batches: 300 ms + 10 ms a neighbour": (Capacity(0.3, sigma=0.3, seconds_per_neighbour=0.01), 75),
    "no limit, 800 ms": (Capacity(0.8, sigma=0.3), 80),
}
QUICK = ("8 slots, 100 ms, queues",)
SECONDS = 20.0  # of each run at the server's capacity


def measure(bench: Bench) -> list[Row]:
    rows = []
    for name in QUICK if bench.is_quick else CAPACITIES:
        say(name)
        capacity, calls_a_second = CAPACITIES[name]
        rows += _level_rows(bench, name, capacity, calls_a_second)
    return rows


def _level_rows(bench: Bench, name: str, capacity: Capacity, calls_a_second: float) -> list[Row]:
    levels = (8, 16) if bench.is_quick else FIXED_LEVELS
    seconds = SECONDS / 4 if bench.is_quick else SECONDS
    rows = []
    for tree in bench.trees:
        fixed = [_row(bench, bench.label("distil_fixed", tree), level, capacity, calls_a_second, seconds) for level in levels]
        adaptive = _row(bench, bench.label("distil", tree), CEILING, capacity, calls_a_second, seconds)
        best = max(fixed, key=lambda row: row["calls_a_second_late"])
        adaptive["best_fixed"] = best["workers"]
        adaptive["share_of_best"] = adaptive["calls_a_second_late"] / best["calls_a_second_late"]
        adaptive["share_of_best_whole"] = adaptive["calls_a_second"] / best["calls_a_second"]
        rows += [{"server": name, **row} for row in (*fixed, adaptive)]
    return rows


def _row(bench: Bench, contestant: str, workers: int, capacity: Capacity, calls_a_second: float, seconds: float) -> Row:
    """A run as long as the server's capacity, or that of so few workers, makes it."""
    per_worker = 1 / capacity.seconds_per_call
    num_calls = int(min(calls_a_second, workers * per_worker) * seconds)
    job = Job("thumbs", 2048, max(2 * workers, num_calls // capacity.num_turns), workers, capacity)
    return {"contestant": contestant, **bench.run(contestant, job)}
