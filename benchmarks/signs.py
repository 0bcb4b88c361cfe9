"""The embedded sign reader on this machine: what a trace takes on disk, and speed-up where the teacher is the limit."""

from __future__ import annotations

import importlib.util
import json
import statistics
from pathlib import Path

from measure import Bench, Row, run_child, say

TITLE = "The embedded sign reader: storage and speed-up"
NUM_SAMPLES = 40
WORKERS = (1, 2, 4, 8)


def measure(bench: Bench) -> list[Row]:
    if importlib.util.find_spec("rapidocr") is None:
        say("left out: the sign reader needs the extra 'local'")
        return []
    with bench.folder() as folder:
        kept = _run(bench, folder, "with-tools", 1)
        rows = [_run(bench, folder, "run", workers) for workers in WORKERS]
    for row in rows:
        row["speed_up"] = rows[0]["seconds"] / row["seconds"]
    return [
        {**kept, "saved": 0.0},
        *({**row, "saved": 1 - row["trace_kb"] / kept["trace_kb"]} for row in rows),
    ]


def _run(bench: Bench, folder: Path, command: str, workers: int) -> Row:
    """A door's run; its seconds are those of its samples, as its run record has them."""
    tree = bench.trees[-1]
    name = f"{command}_{workers}"
    flags = ["--api_base", "embedded", "--num_samples", NUM_SAMPLES, "--output_dir", name]
    if command == "run":
        flags += ["--max_workers", workers]
    say(f"distil {command}, {workers} workers")
    run_child(tree.distil(command, *flags), tree.environment(), folder)
    record = json.loads((folder / name / "run_record.json").read_text(encoding="utf-8"))
    sizes = [path.stat().st_size for path in (folder / name).glob("trace_*.json")]
    return {
        "contestant": f"distil {command}",
        "workers": workers,
        "seconds": float(record["runs"][-1]["seconds"]),
        "trace_kb": statistics.fmean(sizes) / 1000,
    }
