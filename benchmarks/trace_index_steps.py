"""What is done with an index, step by step, in a process of its own; prints the CPU and wall time of each as JSON."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from many_traces import changed_traces

from distil.index.index import TraceIndex
from distil.index.query import Filter, Query

NUM_CHANGED = 100
PAGE = 50
QUERIES = {
    "first_page": Query(),
    "score_range": Query((Filter("score", ">", 0.5), Filter("score", "<", 0.6)), order=("-score",)),
    "country": Query((Filter("country", "=", "France"),)),
    "search": Query(search="facade bollard fence"),
    "where": Query(where="score > 0.9 and country = 'France' or turns > 4", order=("distance_km",)),
}


def main() -> None:
    folder = Path(sys.argv[1])
    found: dict[str, float] = {}

    def timed(name: str, step: Callable[[], object]) -> None:
        wall, cpu = time.monotonic(), time.process_time()
        step()
        found[f"{name}_seconds"] = time.monotonic() - wall
        found[f"{name}_cpu_seconds"] = time.process_time() - cpu

    timed("make", lambda: TraceIndex.open([folder]).close())
    index = TraceIndex.open([folder])
    timed("unchanged", index.update)
    for name, data in changed_traces(NUM_CHANGED):
        (folder / name).unlink()  # a link to a file that others have too
        (folder / name).write_bytes(data)
    timed("changed", index.update)
    for name, query in QUERIES.items():
        steps = [_cpu_and_wall(partial(_look, index, query)) for _ in range(5)]
        found[f"{name}_ms"], found[f"{name}_cpu_ms"] = (
            1000 * statistics.median(column) for column in zip(*steps, strict=True)
        )
    key = (0, "trace_00042.json")
    timed("neighbours", lambda: index.neighbours(QUERIES["first_page"], key))
    timed("next_neighbours", lambda: index.neighbours(QUERIES["first_page"], key))
    print(json.dumps(found))


def _look(index: TraceIndex, query: Query) -> None:
    index.count(query)
    index.page(query, PAGE)


def _cpu_and_wall(step: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.monotonic(), time.process_time()
    step()
    return time.monotonic() - wall, time.process_time() - cpu


if __name__ == "__main__":
    main()
