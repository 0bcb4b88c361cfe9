"""What durability costs: the rate with it, without the disk's syncs, and without the journal of turns."""

from __future__ import annotations

from measure import Bench, Job, Row, say
from teacher_server import Capacity

TITLE = "What durability costs (0.2 s a call)"
NAMES = ("distil_fixed", "distil_fixed, without syncs", "distil_fixed, without journal")


def measure(bench: Bench) -> list[Row]:
    rows = []
    for workers in (32,) if bench.is_quick else (32, 128):
        say(f"{workers} workers")
        job = Job("mixed", 1024, 96 if bench.is_quick else 384, workers, Capacity(0.2))
        rows += bench.compare(bench.contestants(*NAMES), job)
    return rows
