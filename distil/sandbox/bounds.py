"""What bounds a run of model-written code: time and memory where nothing else is said, and the layers found.

Apart from the rest, so that the flags and the terminal need not load it.
"""

from __future__ import annotations

from dataclasses import dataclass

TIMEOUT_SECONDS = 10.0
MEMORY_BYTES = 2 * 1024**3
UNSAFE_TEXT = (
    "sandbox: NONE (--unsafe_exec), only time and memory are bounded: "
    "model-written code can read, change and send everything that you can"
)


LayerRow = tuple[str, str, str]  # a layer's name, `on`, `partly` or `off`, and the reason or extent


@dataclass(frozen=True)
class Layers:
    """What protects a run, as found at start and in the order in which it was put on."""

    rows: tuple[LayerRow, ...]
    unsafe: bool = False

    @property
    def text(self) -> str:
        """One line for the terminal and the run's record."""
        if self.unsafe:
            return UNSAFE_TEXT
        parts = [name + ("" if status == "on" else f" {status}") for name, status, _ in self.rows]
        return "sandbox: " + ", ".join(parts)

    def as_dict(self) -> dict[str, str]:
        """Layer name to "status: detail", for a run's record."""
        rows = {name: f"{status}: {detail}" for name, status, detail in self.rows}
        return rows | ({"unsafe_exec": "yes"} if self.unsafe else {})


def read_row(line: str) -> LayerRow:
    """One line of the server's report; raises ValueError."""
    name, status, detail = line.split("\t", 2)
    return name, status, detail
