"""The level of requests in flight against servers of known capacity, next to every fixed level.

One server queues whatever comes, as vLLM and SGLang do; one also answers 429 above a number of requests in
flight; one shares its speed among all it serves, as a server that batches does. Pictures are thumbs, so that
the level is what limits a run.
"""

from __future__ import annotations

from dataclasses import dataclass

from measure import Bench, Job, Row, Tree, say
from teacher_server import Capacity

TITLE = "The level against queueing servers (ceiling 64)"
CEILING = 64
FIXED_LEVELS = (4, 8, 16, 32, 64)
SECONDS = 12.0  # of each run at the server's capacity


@dataclass(frozen=True)
class Server:
    """A server and the calls a second that it can serve at most."""

    name: str
    capacity: Capacity
    calls_a_second: float


SERVERS = (
    Server("8 slots, 100 ms, queues", Capacity(0.1, 8), 80),
    Server("8 slots, 100 ms, noisy", Capacity(0.1, 8, sigma=0.5), 80),
    Server("8 slots, 100 ms, 429 above 16", Capacity(0.1, 8, refuses_above=16), 80),
    Server("16 slots, 200 ms, 429 above 16", Capacity(0.2, 16, refuses_above=16, sigma=0.3), 80),
    Server("batches: 300 ms + 10 ms a neighbour", Capacity(0.3, sigma=0.3, seconds_per_neighbour=0.01), 75),
    Server("no limit, 800 ms", Capacity(0.8, sigma=0.3), 80),
)


def measure(bench: Bench) -> list[Row]:
    rows = []
    for server in SERVERS[:1] if bench.is_quick else SERVERS:
        say(server.name)
        for tree in bench.trees:
            rows += _rows(bench, server, tree)
    return rows


def _rows(bench: Bench, server: Server, tree: Tree) -> list[Row]:
    """Each fixed level, and the adaptive one next to the best of them."""
    fixed_name, name = (bench.label(name, tree) for name in ("distil_fixed", "distil"))
    fixed = [
        _row(bench, fixed_name, server, level) for level in ((8, 16) if bench.is_quick else FIXED_LEVELS)
    ]
    adaptive = _row(bench, name, server, CEILING)
    best = max(fixed, key=lambda row: row["calls_a_second_late"])
    shares = {
        "best_fixed": best["workers"],
        "share_of_best": adaptive["calls_a_second_late"] / best["calls_a_second_late"],
        "share_of_best_whole": adaptive["calls_a_second"] / best["calls_a_second"],
    }
    return [*fixed, {**adaptive, **shares}]


def _row(bench: Bench, contestant: str, server: Server, workers: int) -> Row:
    """A run as long as the server's capacity, or that of so few workers, makes it."""
    capacity = server.capacity
    calls_a_second = min(server.calls_a_second, workers / capacity.seconds_per_call)
    num_calls = int(calls_a_second * (SECONDS / 2 if bench.is_quick else SECONDS))
    job = Job("thumbs", 2048, max(2 * workers, num_calls // capacity.num_turns), workers, capacity)
    return {"server": server.name, "contestant": contestant, **bench.run(contestant, job)}
