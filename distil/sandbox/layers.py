"""What protects a run of model-written code, as found at start."""

from __future__ import annotations

from dataclasses import dataclass

UNSAFE_TEXT = (
    "sandbox: NONE (--unsafe_exec), only time and memory are bounded: "
    "model-written code can read, change and send everything that you can"
)


@dataclass(frozen=True)
class Layer:
    """One layer: its name, `on`, `partly` or `off`, and the reason or extent."""

    name: str
    status: str
    detail: str


@dataclass(frozen=True)
class Layers:
    """All layers of a started sandbox, in the order in which they were put on."""

    layers: tuple[Layer, ...]
    unsafe: bool = False

    def status(self, name: str) -> str:
        """`on`, `partly` or `off` of one layer; `off` for a name that is not there."""
        return next((layer.status for layer in self.layers if layer.name == name), "off")

    @property
    def text(self) -> str:
        """One line for the terminal and the run's record."""
        if self.unsafe:
            return UNSAFE_TEXT
        parts = [layer.name + ("" if layer.status == "on" else f" {layer.status}") for layer in self.layers]
        return "sandbox: " + ", ".join(parts)

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, status and detail of every layer, for a table."""
        return [(layer.name, layer.status, layer.detail) for layer in self.layers]

    def as_dict(self) -> dict[str, str]:
        """Layer name to "status: detail", for a run's record."""
        return {layer.name: f"{layer.status}: {layer.detail}" for layer in self.layers} | (
            {"unsafe_exec": "yes"} if self.unsafe else {}
        )


def read_layers(report: str, unsafe: bool = False) -> Layers:
    """The server's report, one layer a line, as Layers."""
    return Layers(tuple(Layer(*line.split("\t", 2)) for line in report.splitlines()), unsafe)
