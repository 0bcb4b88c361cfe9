"""What durability costs: turns a second with and without the journal, from many threads at once.

    python benchmarks/bench_journal.py [--max_workers 64] [--num_turns 2000]

Against teachers that take 0, 0.1 and 1 s a turn. At 0 s it is the disk alone that is measured. With and
without are run in turns, three times each; the median counts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from distil.records import Reply, SampleId, ToolMode
from distil.store.journal import Ask, Journal

TURNS_A_SAMPLE = 4
MESSAGES = [b"x" * 300_000] + [b"y" * 60_000] * 3  # a photo and crops, base64
TURN_SECONDS = (0.0, 0.1, 1.0)
NUM_ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--max_workers", type=int, default=64)
    parser.add_argument("--num_turns", type=int, default=2000)
    options = parser.parse_args()
    print(f"{options.max_workers} workers; turns a second")
    for turn_seconds in TURN_SECONDS:
        num_samples = options.num_turns // TURNS_A_SAMPLE
        rates: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(NUM_ROUNDS):
            for is_durable, measured in rates.items():
                measured.append(_rate(num_samples, turn_seconds, options.max_workers, is_durable))
        with_journal, without = (statistics.median(rates[is_durable]) for is_durable in (True, False))
        ratio = 100 * with_journal / without
        print(f"{turn_seconds:g} s a turn: {with_journal:.0f} with, {without:.0f} without ({ratio:.1f} %)")


def _rate(num_samples: int, turn_seconds: float, num_workers: int, is_durable: bool) -> float:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        whole = Journal(Path(folder), "settings")

        def solve(index: int) -> None:
            journal = whole.of(SampleId(index), "file")
            ask = (
                journal.journaled(_answer_after(turn_seconds)) if is_durable else _answer_after(turn_seconds)
            )
            for turn in range(TURNS_A_SAMPLE):
                ask(MESSAGES[: turn + 1], 0)
            whole.drop([SampleId(index)])

        started = time.perf_counter()
        with ThreadPoolExecutor(num_workers) as pool:
            list(pool.map(solve, range(num_samples)))
        return num_samples * TURNS_A_SAMPLE / (time.perf_counter() - started)


def _answer_after(seconds: float) -> Ask:
    usage = {"prompt_tokens": 3000, "completion_tokens": 200}

    def ask(messages: Sequence[bytes], seed: int) -> Reply:
        time.sleep(seconds)
        return Reply("I see a sign. " * 60, None, None, "tool_calls", (), ToolMode.NATIVE, usage)

    return ask


if __name__ == "__main__":
    main()
