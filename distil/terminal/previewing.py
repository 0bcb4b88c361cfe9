"""`distil export --preview`: rows as the student will see them, with what is trained marked."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from rich.cells import chop_cells
from rich.text import Text

from distil.commands.flags import ExportFlags, FormFlags
from distil.errors import UsageError
from distil.exports.conversation import Message
from distil.exports.export import Found, NotExported, conversation_at
from distil.exports.preview import END, START, Preview, previews_of
from distil.exports.tokens import picture_tokens
from distil.records import Protocol, SentPicture, ToolMode
from distil.replay.processes import each_trace
from distil.terminal.pictures import ShownPictures
from distil.terminal.terminal import Terminal, find_protocol
from distil.terminal.words import one_line, printable

_TRAINED, _OTHER = "▌ ", "  "  # in front of a line: the sign is for who sees no colour
_STYLE = "green"


def preview(picked: Sequence[Path], asked: ExportFlags, terminal: Terminal) -> int:
    """Show the first rows of an export, `asked.preview` of them, without writing it.

    Returns 0, or 1 where a trace was refused before. Raises UsageError where no row is left.
    """
    protocol = Protocol.NONE
    if not terminal.gives_json:
        protocol = find_protocol(Protocol.AUTO, os.environ, sys.stdout.isatty())
    drawer = ShownPictures(protocol, terminal) if protocol is not Protocol.NONE else None
    shown: list[Preview] = []
    num_rows, num_refused = asked.preview or 1, 0
    with closing(_found(picked, asked)) as found:
        for result in found:
            if isinstance(result, NotExported):
                num_refused += result.is_refused
                kind = "refused" if result.is_refused else "left out"
                terminal.say(f"{result.path.name}: {kind}: {result.reason}", "red" if num_refused else "")
                continue
            for row in previews_of(result, asked)[: num_rows - len(shown)]:
                shown.append(row)
                if not terminal.gives_json:
                    _show(row, terminal, drawer)
            if len(shown) == num_rows:
                break
    if not shown:
        raise UsageError("no trace is left to show: each was refused or left out, as said above")
    if terminal.gives_json:
        terminal.give({"format": asked.format.value, "rows": [row.as_json() for row in shown]})
    else:
        terminal.say(_key(asked), "dim")
    return 1 if num_refused else 0


def _found(picked: Sequence[Path], asked: ExportFlags) -> Generator[Found, None, None]:
    """What became of each trace, one after another: no more are replayed than are shown."""
    return each_trace(partial(conversation_at, asked=asked), picked, 1, asked.dataset_path)


def _key(asked: ExportFlags) -> str:
    is_native = asked.form.call_form is ToolMode.NATIVE
    native = "; native calls are rendered so by the student's chat template" if is_native else ""
    return f"{_TRAINED}is trained, all else is only read{native}. Nothing was written."


def _show(row: Preview, terminal: Terminal, drawer: ShownPictures | None) -> None:
    terminal.show(Text())
    terminal.say(
        f"{row.id}: {row.num_trained} of {sum(each.role == 'assistant' for each in row.messages)} assistant "
        f"messages trained, {row.num_pictures} pictures, about {row.num_tokens:,} tokens",
        "bold",
    )
    number = 0
    for message in row.messages:
        number = _show_message(message, number, row.form, terminal, drawer)


def _show_message(
    message: Message, number: int, form: FormFlags, terminal: Terminal, drawer: ShownPictures | None
) -> int:
    """Show a message whose first picture comes after `number` others; how many there were then."""
    style = _STYLE if message.is_trained else ""
    sign = _TRAINED if message.is_trained else _OTHER
    terminal.show(Text(f"{_OTHER}{START}{message.role}", style="bold" if message.is_trained else "dim"))
    written = ""
    for part in message.parts:
        if isinstance(part, str):
            written += part
            continue
        number += 1
        written += _placeholder(part, number, form)
        if drawer is not None:
            _show_lines(written, sign, style, terminal)
            written = ""
            drawer.draw(part.data)
    _show_lines(f"{written}{END}", sign, style, terminal)
    return number


def _show_lines(text: str, sign: str, style: str, terminal: Terminal) -> None:
    width = max(20, terminal.columns - len(sign))
    for line in printable(text).expandtabs(4).split("\n"):
        for piece in chop_cells(line, width) or [""]:  # the sign is in front of what is wrapped, too
            terminal.show(Text(f"{sign}{piece}", style=style))


def _placeholder(picture: SentPicture, number: int, form: FormFlags) -> str:
    width, height = picture.size
    return (
        f"[picture {number}: {width}×{height} pixels, {one_line(picture.media_type)}, "
        f"{picture.num_bytes:,} bytes, {picture_tokens(picture.size, form):,} tokens]"
    )
