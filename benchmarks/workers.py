"""Throughput, CPU, context switches and speed-up against workers: a teacher of 0.2 s a call that never queues."""

from __future__ import annotations

from measure import Bench, Job, Row, say
from teacher_server import Capacity

TITLE = "Throughput against workers (0.2 s a call, 3 turns, 640×480 and 1280×960)"
SECONDS_PER_CALL = 0.2
NUM_SAMPLES = {1: 16, 4: 64, 8: 400, 32: 400, 128: 400, 256: 512, 512: 1024}  # by workers
JUDGED = (8, 128)  # what the targets compare: the same samples, and repeats
MAX_EARLIER = 256  # workers; more need several GB of it
NUM_ROWS = 1024


def measure(bench: Bench) -> list[Row]:
    rows = []
    for workers, full_samples in NUM_SAMPLES.items():
        if bench.is_quick and workers not in JUDGED:
            continue
        names = ["raw", "openai_post", "earlier", "distil_fixed", "distil"]
        if bench.is_quick and workers == JUDGED[0]:
            names = ["raw", "openai_post", "distil_fixed"]
        if workers == 128:
            names.insert(2, "openai_post_hashed")
        if workers > MAX_EARLIER:
            names.remove("earlier")
        num_samples = 128 if bench.is_quick else full_samples
        num_repeats = bench.num_repeats if workers in JUDGED else 1
        say(f"{workers} workers, {num_samples} samples")
        job = Job("mixed", NUM_ROWS, num_samples, workers, Capacity(SECONDS_PER_CALL))
        rows += bench.compare(bench.contestants(*names), job, num_repeats)
    one = {row["contestant"]: row["calls_a_second"] for row in rows if row["workers"] == 1}
    for row in rows:
        if row["contestant"] in one:
            row["speed_up"] = row["calls_a_second"] / one[row["contestant"]]
    return rows
