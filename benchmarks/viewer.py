"""The viewer's server: seconds to its first page, milliseconds of pages and filters, and its memory."""

from __future__ import annotations

import json

from measure import HERE, Bench, Row, Tree, run_child, say
from trace_index import folder_of_traces

TITLE = "The viewer: `distil view --serve`, once the index is there"


def measure(bench: Bench) -> list[Row]:
    rows = []
    for num_traces in (100, 2_000) if bench.is_quick else (100, 10_000, 100_000):
        traces = folder_of_traces(bench.cache_dir, num_traces)
        for tree in bench.trees:
            say(f"{num_traces:,} traces, {tree.name}")
            rows.append(_row(bench, tree, str(traces), num_traces))
    return rows


def _row(bench: Bench, tree: Tree, traces: str, num_traces: int) -> Row:
    with bench.folder() as folder:
        usage = run_child([tree.python, str(HERE / "viewer_steps.py"), traces], tree.environment(), folder)
    found = json.loads(usage.output.splitlines()[-1])
    return {"contestant": bench.label("viewer", tree), "traces": num_traces, **found}
