"""`distil doctor`: what this machine offers, found by trying it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from distil.sandbox import Sandbox


def show_sandbox(console: Console) -> int:
    """Start the sandbox, show its layers and return 0; raises SandboxUnavailable where there is none."""
    with Sandbox() as sandbox:
        sandbox.start()
        table = Table(box=None, pad_edge=False)
        for heading in ("layer", "status", "detail"):
            table.add_column(heading)
        for name, status, detail in sandbox.levels.rows():
            style = {"on": "green", "partly": "yellow"}.get(status, "red")
            table.add_row(name, Text(status, style=style), Text(detail))
        console.print(table)
    console.print("Model-written code can be contained here.")
    return 0
