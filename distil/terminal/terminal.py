"""Where a person reads along: the one way to a line or a table in the terminal, and to a log of them."""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import IO, TYPE_CHECKING

from distil.errors import DistilError, UsageError
from distil.records import Json, Protocol
from distil.sandbox.bounds import UNSAFE_TEXT
from distil.terminal.words import one_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_STYLES = {  # of a line that begins so; those lines are said to who wants to hear nothing else, too
    "Warning: ": "yellow",
    "Stopped: ": "yellow",
    UNSAFE_TEXT: "bold red",
}
_LOG_COLUMNS = 100


class Terminal:
    """Writes to standard output, or to `file`; `width` in columns, None for what there is.

    What draws is imported for the first line: a run asks its teacher before it has anything to say.
    """

    def __init__(
        self,
        file: IO[str] | None = None,
        width: int | None = None,
        *,
        is_quiet: bool = False,
        gives_json: bool = False,
        ends_with_reader: bool = False,
    ) -> None:
        """`is_quiet` for warnings alone; `gives_json` where standard output is for a JSON document alone.

        In both cases lines go to standard error. With `ends_with_reader` BrokenPipeError is raised where
        nobody reads what is shown any more; without it the command goes on unheard.
        """
        self._file = sys.stderr if file is None and (is_quiet or gives_json) else file
        self._width = width
        self.is_quiet, self._ends_with_reader = is_quiet, ends_with_reader
        self.gives_json = gives_json
        self._log: Callable[[str], None] = lambda _: None

    @cached_property
    def _console(self) -> Console:
        from rich.console import Console  # noqa: PLC0415

        console = Console(file=self._file, width=self._width)
        # The command knows what a reader who has gone means; rich would end with exit code 1.
        console.on_broken_pipe = self._go_on_unheard  # type: ignore[method-assign]
        return console

    def _go_on_unheard(self) -> None:
        if self._ends_with_reader:
            raise BrokenPipeError
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())

    @property
    def file(self) -> IO[str]:
        """Where lines go."""
        return self._file or sys.stdout

    def say(self, line: str, style: str = "") -> None:
        """A line, whole and as it is, however long; of what kind it is shows in its first word."""
        kind = next((style for start, style in _STYLES.items() if line.startswith(start)), None)
        self._log(one_line(line))
        if self.is_quiet and kind is None:
            return
        from rich.text import Text  # noqa: PLC0415

        self._console.print(Text(one_line(line), style=style or kind or ""), soft_wrap=True)

    def say_above(self, write: Callable[[str], object], line: str) -> None:
        """A line written by what draws a bar beneath; from any thread."""
        self._log(one_line(line))
        if not self.is_quiet or line.startswith(tuple(_STYLES)):
            try:
                write(one_line(line))
            except BrokenPipeError:
                self._go_on_unheard()

    def show(self, content: RenderableType) -> None:
        """A table or a panel."""
        self._log_drawn(content)
        if not self.is_quiet:
            self._console.print(content)

    @property
    def columns(self) -> int:
        """How wide it is."""
        return self._console.width

    def draw(self, text: str) -> None:
        """A picture, as what the terminal takes for one; it has no place in a log."""
        try:
            self.file.write(text + "\n")
            self.file.flush()
        except BrokenPipeError:
            self._go_on_unheard()

    def give(self, document: Mapping[str, Json]) -> None:
        """The JSON document that the command is for, on standard output."""
        print(json.dumps(document, ensure_ascii=True, indent=1))

    def waiting(self, text: str) -> AbstractContextManager[object]:
        """Shows that something is being done."""
        return nullcontext() if self.is_quiet else self._console.status(text)

    @contextmanager
    def logging_to(self, path: str | None) -> Iterator[None]:
        """While inside, all that is said, and the error that ends it, is added to a file too, with the time.

        Raises UsageError where the file cannot be opened; one that is full later is given up with a warning.
        """
        if path is None:
            yield
            return
        try:
            file = open(path, "ab", buffering=0)  # noqa: PTH123, SIM115 - closed below; a line is one write
        except OSError as error:
            raise UsageError(f"--log_file {path}: {error.strerror}") from None

        def log(line: str) -> None:
            now = dt.datetime.now().astimezone().isoformat(timespec="seconds")
            try:
                file.write(f"{now} {line}\n".encode(errors="replace"))
            except OSError as error:
                self._log = lambda _: None
                self.say(f"Warning: --log_file {path} is given up: {error.strerror}")

        self._log = log
        with file:
            try:
                yield
            except DistilError as error:
                self._log(one_line(f"Error: {error}"))
                raise
            except KeyboardInterrupt:
                self._log("Interrupted.")
                raise
            finally:
                self._log = lambda _: None

    def _log_drawn(self, content: RenderableType) -> None:
        from rich.console import Console  # noqa: PLC0415

        drawn = io.StringIO()
        Console(file=drawn, width=_LOG_COLUMNS).print(content)
        for line in drawn.getvalue().splitlines():
            self._log(line.rstrip())


def find_protocol(asked: Protocol, environment: Mapping[str, str], is_terminal: bool) -> Protocol:
    """How pictures are shown here; NONE where they cannot be, or where that is not known.

    Only what a terminal says of itself in the environment counts: asking it would read what a person types.
    """
    if asked is not Protocol.AUTO:
        return asked
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    is_inside_another = "TMUX" in environment or term.startswith(("screen", "tmux"))
    if not is_terminal or term == "dumb" or is_inside_another:
        return Protocol.NONE
    if "KITTY_WINDOW_ID" in environment or re.search("kitty|ghostty", f"{term} {program}"):
        return Protocol.KITTY
    if program in ("iTerm.app", "WezTerm", "mintty") or environment.get("LC_TERMINAL") == "iTerm2":
        return Protocol.ITERM
    if re.match("foot|mlterm|contour|yaft|.*sixel", term) or "WT_SESSION" in environment:
        return Protocol.SIXEL
    # Versions are YYMMPP: it shows pictures since 22.04.
    return Protocol.SIXEL if environment.get("KONSOLE_VERSION", "")[:4] >= "2204" else Protocol.NONE
