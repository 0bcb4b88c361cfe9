"""Start-up: the help, and the time until the first request leaves, next to `import openai` alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from measure import Bench, Row, Tree, run_child, say
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
    """What is timed → how, to wall and CPU seconds. The CPU is of the whole process, also after a request."""
    few_flags = ["--dataset_path", bench.dataset("mixed", 1024)]
    many_flags = ["--dataset_path", bench.dataset("rows", many)]
    return {
        "import openai": lambda: _whole(bench, tree, [tree.python, "-c", "import openai; openai.OpenAI"]),
        "--help": lambda: _whole(bench, tree, tree.distil("--help")),
        "run --help": lambda: _whole(bench, tree, tree.distil("run", "--help")),
        "first request": lambda: _first_request(bench, tree, few_flags),
        f"first request, {many:,} rows": lambda: _first_request(bench, tree, many_flags),
        f"first request, {many:,} rows by a column": lambda: _first_request(
            bench, tree, [*many_flags, "--order", "locatability_score:desc"]
        ),
    }


def _whole(bench: Bench, tree: Tree, command: list[str]) -> tuple[float, float]:
    with bench.folder() as folder:
        usage = run_child(command, tree.environment(), folder)
    return usage.wall_seconds, usage.cpu_seconds


def _first_request(bench: Bench, tree: Tree, flags: list[object]) -> tuple[float, float]:
    with bench.folder() as folder, serving(Capacity(num_turns=1)) as teacher:
        asked = ["--api_base", teacher.api_base, "--model", MODEL, "--tool_mode", "text", "--num_samples", 1]
        usage = run_child(tree.distil("run", *asked, "--max_workers", 1, *flags), tree.environment(), folder)
        first = teacher.seen().first_request_at
    assert first is not None
    return first - usage.started_at, usage.cpu_seconds
