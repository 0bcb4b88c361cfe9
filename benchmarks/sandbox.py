"""Calls of the code tool: the sandbox next to plain `exec`, to a fork server without a jail, to a new interpreter."""

from __future__ import annotations

import json

from measure import HERE, Bench, Row, run_child, say

TITLE = "The code tool: rotate and crop of a 1280×960 picture"


def measure(bench: Bench) -> list[Row]:
    rows = []
    for tree in bench.trees:
        say(f"calls, {tree.name}")
        command = [tree.python, str(HERE / "sandbox_calls.py"), "--calls", "40" if bench.is_quick else "160"]
        with bench.folder() as folder:
            usage = run_child(command, tree.environment(), folder)
        found = json.loads(usage.output.splitlines()[-1])
        rows += [{**row, "contestant": bench.label(row["contestant"], tree)} for row in found]
    return rows
