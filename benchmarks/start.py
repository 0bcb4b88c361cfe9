"""Start-up: the help, and the time until the first request leaves, next to `import openai` alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

from measure import Bench, Row, Tree, cpu_seconds_of, open_child, run_child, say
from teacher_server import MODEL, Capacity, serving

TITLE = "Start-up"
NUM_ROWS = 1_000_000


def measure(bench: Bench) -> list[Row]:
    many = 50_000 if bench.is_quick else NUM_ROWS
    num_repeats = 2 if bench.is_quick else 7
    rows = []
    measured: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(num_repeats):
        for tree in bench.trees:
            for what, seconds_of in _parts(bench, tree, many).items():
                measured.setdefault((what, tree.name), []).append(seconds_of())
    for (what, name), values in measured.items():
        seconds, cpu_seconds = (statistics.median(column) for column in zip(*values, strict=True))
        say(f"{what}, {name}: {seconds:.2f} s, {cpu_seconds:.2f} s CPU")
        tree = next(tree for tree in bench.trees if tree.name == name)
        label = bench.label("distil", tree)
        rows.append({"contestant": label, "what": what, "seconds": seconds, "cpu_seconds": cpu_seconds})
    return rows


def _parts(bench: Bench, tree: Tree, many: int) -> dict[str, Callable[[], tuple[float, float]]]:
    """What is timed → how, to wall and CPU seconds until then."""
    few_flags = ["--dataset_path", bench.dataset("mixed", 1024)]
    many_flags = ["--dataset_path", bench.dataset("rows", many)]
    by_column = [*many_flags, "--order", "locatability_score:desc"]
    return {
        "import openai": partial(_whole, bench, tree, [tree.python, "-c", "import openai"]),
        "--help": partial(_whole, bench, tree, tree.distil("--help")),
        "run --help": partial(_whole, bench, tree, tree.distil("run", "--help")),
        "first request": partial(_first_request, bench, tree, few_flags),
        f"first request, {many:,} rows": partial(_first_request, bench, tree, many_flags),
        f"first request, {many:,} rows by a column": partial(_first_request, bench, tree, by_column),
    }


def _whole(bench: Bench, tree: Tree, command: list[str]) -> tuple[float, float]:
    with bench.folder() as folder:
        usage = run_child(command, tree.environment(), folder)
    return usage.wall_seconds, usage.cpu_seconds


def _first_request(bench: Bench, tree: Tree, flags: list[object]) -> tuple[float, float]:
    """A run whose first request gets no reply: what it has used by then, and then it is ended."""
    with bench.folder() as folder, serving(Capacity(seconds_per_probe=600.0)) as teacher:
        asked = ["--api_base", teacher.api_base, "--model", MODEL, "--tool_mode", "text", "--num_samples", 1]
        command = tree.distil("run", *asked, "--max_workers", 1, *flags)
        with open_child(command, tree.environment(), folder) as process:
            started_at = time.monotonic()
            first_request_at = None
            while first_request_at is None:
                time.sleep(0.02)
                first_request_at = teacher.seen().first_request_at
                if process.poll() is not None:
                    raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
            return first_request_at - started_at, cpu_seconds_of(process.pid)
