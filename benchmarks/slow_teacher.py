"""Share of the ideal rate against workers, for teachers that take from 0.2 to 20 s a call.

The ideal: samples are dealt out evenly, and nobody does anything but wait for the teacher. Excludes the start,
includes how a run gets going and how it ends.
"""

from __future__ import annotations

from measure import Bench, Job, Row, say
from teacher_server import Capacity

TITLE = "Share of the ideal rate with slow teachers"
GRID = {  # seconds a call → samples a worker, workers
    0.2: (5, (32, 256, 512)),
    2.0: (5, (32, 256, 512)),
    5.0: (3, (256, 512)),
    20.0: (1, (512,)),
}
QUICK_GRID = {0.5: (3, (64,))}
NAMES = ("openai_post", "distil_fixed", "distil")


def measure(bench: Bench) -> list[Row]:
    rows = []
    for seconds_per_call, (samples_a_worker, all_workers) in (QUICK_GRID if bench.is_quick else GRID).items():
        for workers in all_workers:
            say(f"{seconds_per_call:g} s a call, {workers} workers, {samples_a_worker} samples each")
            num_samples = samples_a_worker * workers
            job = Job(
                "mixed", 192 if bench.is_quick else 2560, num_samples, workers, Capacity(seconds_per_call)
            )
            rows += bench.compare(bench.contestants(*NAMES), job, num_repeats=1)
    return rows
