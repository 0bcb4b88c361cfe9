"""The index of traces: seconds to make and to update it, to a first page and to filtered ones, and its memory."""

from __future__ import annotations

import json
from pathlib import Path

from many_traces import make_traces
from measure import BYTES_A_MB, HERE, Bench, Row, Tree, run_child, say

TITLE = "The index: `distil view --where`, the viewer's list, exports"


def measure(bench: Bench) -> list[Row]:
    rows = []
    for num_traces in (100, 2_000) if bench.is_quick else (100, 10_000, 100_000):
        traces = folder_of_traces(bench.cache_dir, num_traces)
        for tree in bench.trees:
            say(f"{num_traces:,} traces, {tree.name}")
            rows.append(_row(bench, tree, traces, num_traces))
    return rows


def folder_of_traces(cache_dir: Path, num_traces: int) -> Path:
    """A folder of so many made traces, kept for the next time."""
    folder = cache_dir / f"traces_{num_traces}"
    make_traces(folder, num_traces)
    return folder


def _row(bench: Bench, tree: Tree, traces: Path, num_traces: int) -> Row:
    """The index lies in a folder of its own that has links to the files: one made before counts for nothing."""
    with bench.folder() as folder:
        own = folder / "traces"
        own.mkdir()
        for file in traces.glob("t*.json*"):
            (own / file.name).hardlink_to(file)
        usage = run_child(
            [tree.python, str(HERE / "trace_index_steps.py"), str(own)], tree.environment(), folder
        )
        found = json.loads(usage.output.splitlines()[-1])
        megabytes = (own / "index.sqlite").stat().st_size / BYTES_A_MB
    peak_mb = usage.peak_bytes / BYTES_A_MB
    return {
        "contestant": bench.label("index", tree),
        "traces": num_traces,
        **found,
        "peak_mb": peak_mb,
        "mb": megabytes,
    }
