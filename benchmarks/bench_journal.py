"""What durability costs: turns a second with and without the journal, from many threads at once.

    python benchmarks/bench_journal.py [--max_workers 64] [--num_turns 4000]

The teacher answers at once, so this is the worst case; behind a teacher that takes a second a turn, 64
workers make 64 turns a second.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from distil.records import Reply, ToolMode
from distil.store.journal import Ask, Journals

TURNS_A_SAMPLE = 4
MESSAGES = [b"x" * 300_000] + [b"y" * 60_000] * 3  # a photo and crops, base64


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--max_workers", type=int, default=64)
    parser.add_argument("--num_turns", type=int, default=4000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        journals = Journals(Path(folder), "settings")
        seconds: list[float] = []

        def solve(index: int) -> None:
            journal = journals.of(index, "file")
            ask = journal.journaled(_answer)
            for turn in range(TURNS_A_SAMPLE):
                seconds.append(_timed(ask, MESSAGES[: turn + 1]))
            journal.remove()

        started = time.perf_counter()
        with ThreadPoolExecutor(options.max_workers) as pool:
            list(pool.map(solve, range(options.num_turns // TURNS_A_SAMPLE)))
        taken = time.perf_counter() - started
    print(f"{options.max_workers} workers: {len(seconds) / taken:.0f} durable turns a second")
    cuts = statistics.quantiles(seconds, n=20)
    print(f"a turn waits {1000 * cuts[9]:.1f} ms for the disk (median), {1000 * cuts[18]:.1f} ms (95 %)")


def _timed(ask: Ask, messages: Sequence[bytes]) -> float:
    started = time.perf_counter()
    ask(messages, 0)
    return time.perf_counter() - started


def _answer(messages: Sequence[bytes], seed: int) -> Reply:
    usage = {"prompt_tokens": 3000, "completion_tokens": 200}
    return Reply("I see a sign. " * 60, None, None, "tool_calls", (), ToolMode.NATIVE, usage)


if __name__ == "__main__":
    main()
