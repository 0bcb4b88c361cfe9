"""`distil export --preview`: rows as the student will see them, with what is trained marked."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Sequence
from contextlib import closing
from functools import partial

from rich.cells import chop_cells
from rich.text import Text

from distil.errors import UsageError
from distil.exports.conversation import Conversation, Message
from distil.exports.export import Found, Refused, conversation_at
from distil.exports.options import ExportOptions
from distil.exports.preview import END, START, Preview, previews_of
from distil.exports.selection import Pick
from distil.exports.tokens import picture_tokens
from distil.records import SentPicture, ToolMode
from distil.replay.processes import each_trace
from distil.terminal.picture_protocol import Protocol, find_protocol
from distil.terminal.shown_pictures import ShownPictures
from distil.terminal.terminal import Terminal
from distil.terminal.words import one_line, printable

_TRAINED, _OTHER = "▌ ", "  "  # in front of a line: the sign is for who sees no colour
_STYLE = "green"


def preview(
    picks: Sequence[Pick],
    options: ExportOptions,
    num_rows: int,
    dataset_path: str | None,
    terminal: Terminal,
) -> int:
    """Show the first rows of an export, without writing it; 0, or 1 where a trace was refused before.

    Raises UsageError where no row is left.
    """
    protocol = Protocol.NONE
    if not terminal.gives_json:
        protocol = find_protocol(Protocol.AUTO, os.environ, sys.stdout.isatty())
    drawer = ShownPictures(protocol, terminal) if protocol is not Protocol.NONE else None
    shown: list[Preview] = []
    num_refused = 0
    with closing(_found(picks, options, dataset_path)) as found:
        for result in found:
            if not isinstance(result, Conversation):
                num_refused += isinstance(result, Refused)
                kind = "refused" if isinstance(result, Refused) else "left out"
                terminal.say(f"{result.path.name}: {kind}: {result.reason}", "red" if num_refused else "")
                continue
            for row in previews_of(result, options)[: num_rows - len(shown)]:
                shown.append(row)
                if not terminal.gives_json:
                    _show(row, options, terminal, drawer)
            if len(shown) == num_rows:
                break
    if not shown:
        raise UsageError("no trace is left to show: each was refused or left out, as said above")
    if terminal.gives_json:
        terminal.give({"format": options.format.value, "rows": [row.as_json() for row in shown]})
    else:
        terminal.say(_key(options), "dim")
    return 1 if num_refused else 0


def _found(
    picks: Sequence[Pick], options: ExportOptions, dataset_path: str | None
) -> Generator[Found, None, None]:
    """What became of each trace, one after another: no more are replayed than are shown."""
    work = partial(conversation_at, options=options)
    return each_trace(work, [pick.path for pick in picks], 1, dataset_path)


def _key(options: ExportOptions) -> str:
    native = "; native calls are rendered so by the student's chat template" if _is_native(options) else ""
    return f"{_TRAINED}is trained, all else is only read{native}. Nothing was written."


def _is_native(options: ExportOptions) -> bool:
    return options.call_form is ToolMode.NATIVE


def _show(row: Preview, options: ExportOptions, terminal: Terminal, drawer: ShownPictures | None) -> None:
    terminal.show(Text())
    terminal.say(
        f"{row.id}: {row.num_trained} of {sum(each.role == 'assistant' for each in row.messages)} assistant "
        f"messages trained, {row.num_pictures} pictures, about {row.num_tokens:,} tokens",
        "bold",
    )
    number = 0
    for message in row.messages:
        number = _show_message(message, number, options, terminal, drawer)


def _show_message(
    message: Message, number: int, options: ExportOptions, terminal: Terminal, drawer: ShownPictures | None
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
        written += _placeholder(part, number, options)
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


def _placeholder(picture: SentPicture, number: int, options: ExportOptions) -> str:
    width, height = picture.size
    return (
        f"[picture {number}: {width}×{height} pixels, {one_line(picture.media_type)}, "
        f"{picture.num_bytes:,} bytes, {picture_tokens(picture.size, options):,} tokens]"
    )
