"""Where a person reads along: the one way to a line or a table in the terminal."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cached_property
from typing import IO, TYPE_CHECKING

from distil.sandbox.layers import UNSAFE_TEXT
from distil.terminal.words import one_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_STYLES = {  # of a line that begins so
    "Warning: ": "yellow",
    "Stopped: ": "yellow",
    UNSAFE_TEXT: "bold red",
}


class Terminal:
    """Writes to standard output, or to `file`; `width` in columns, None for what there is.

    What draws is imported for the first line: a run asks its teacher before it has anything to say.
    """

    def __init__(self, file: IO[str] | None = None, width: int | None = None) -> None:
        self._file, self._width = file, width

    @cached_property
    def _console(self) -> Console:
        from rich.console import Console  # noqa: PLC0415

        return Console(file=self._file, width=self._width)

    def say(self, line: str, style: str = "") -> None:
        """A line, whole and as it is, however long; of what kind it is shows in its first word."""
        from rich.text import Text  # noqa: PLC0415

        style = style or next((style for start, style in _STYLES.items() if line.startswith(start)), "")
        self._console.print(Text(one_line(line), style=style), soft_wrap=True)

    def show(self, content: RenderableType) -> None:
        """A table or a panel."""
        self._console.print(content)

    def waiting(self, text: str) -> AbstractContextManager[object]:
        """Shows that something is being done."""
        return self._console.status(text)
