"""`distil verify`: traces a second in one process' worth of workers and in all, the start not counted."""

from __future__ import annotations

import statistics
from pathlib import Path

from measure import Bench, Row, Tree, num_cores, run_child, say
from teacher_server import MODEL, Capacity, serving

TITLE = "Replay: `distil verify`"
NUM_FEW = 4  # traces of which a run is all start


def measure(bench: Bench) -> list[Row]:
    num_traces = 80 if bench.is_quick else 1000
    rows = []
    with bench.folder() as folder:
        for name, count in (("many", num_traces), ("few", NUM_FEW)):
            _make_traces(bench, folder, name, count)
        for tree in bench.trees:
            say(f"{num_traces} traces, {tree.name}")
            rows += [_row(bench, tree, folder, num_traces, workers) for workers in (1, None)]
    return rows


def _make_traces(bench: Bench, folder: Path, name: str, num_traces: int) -> None:
    tree = bench.trees[0]
    with serving(Capacity()) as teacher:
        flags = ["--api_base", teacher.api_base, "--model", MODEL, "--tool_mode", "text", "--max_workers", 8]
        flags += [
            "--dataset_path",
            bench.dataset("mixed", 1024),
            "--num_samples",
            num_traces,
            "--output_dir",
            name,
        ]
        run_child(tree.distil("run", *flags), tree.environment(), folder)


def _row(bench: Bench, tree: Tree, folder: Path, num_traces: int, workers: int | None) -> Row:
    flags = [] if workers is None else ["--max_workers", workers]
    seconds, cpu_seconds = {}, {}
    for name in ("few", "many"):
        runs = [
            run_child(tree.distil("verify", name, *flags), tree.environment(), folder)
            for _ in range(2 if bench.is_quick else 3)
        ]
        seconds[name] = statistics.median(run.wall_seconds for run in runs)
        cpu_seconds[name] = statistics.median(run.cpu_seconds for run in runs)
    return {
        "contestant": bench.label("distil verify", tree),
        "workers": "all cores" if workers is None else str(workers),
        "num_cores": num_cores(),
        "num_traces": num_traces,
        "traces_a_second": (num_traces - NUM_FEW) / (seconds["many"] - seconds["few"]),
        "cpu_ms_per_trace": 1000 * (cpu_seconds["many"] - cpu_seconds["few"]) / (num_traces - NUM_FEW),
        "start_seconds": seconds["few"],
    }
