"""Which parts of a reply are thinking, tool calls or plain text; one pass over the tags."""

from __future__ import annotations

import re
from collections.abc import Iterator

THINK_TAGS = ("think", "thinking")
CALL_TAG = "tool_call"


def split_thinking(text: str) -> tuple[str, str]:
    """Split a reply into (thinking, the rest).

    Servers cut the opening tag (it stands in the prompt) or the closing one (the turn was cut off):
    before a lone closing tag and after a lone opening tag, all is thinking.
    """
    thinking: list[str] = []
    for tag in THINK_TAGS:
        inside, text = _split_tag(text, tag)
        thinking += inside
    return "\n".join(part.strip() for part in thinking if part.strip()), text


def _split_tag(text: str, tag: str) -> tuple[list[str], str]:
    inside: list[str] = []
    outside: list[str] = []
    position, is_open = 0, False
    for match in re.finditer(f"<(/?){tag}>", text):
        is_closing = bool(match[1])
        if is_closing and not is_open:  # its opening tag was cut: all before it is thinking
            inside += outside
            outside = []
        target = inside if is_open or is_closing else outside
        target.append(text[position : match.start()])
        position, is_open = match.end(), not is_closing
    (inside if is_open else outside).append(text[position:])
    return inside, "".join(outside)


def tool_call_bodies(text: str) -> Iterator[tuple[int, int, str]]:
    """Each `<tool_call>` of a text as (start, end, body); one may lack its closing tag.

    A missing closing tag is what a server leaves that stops at it.
    """
    opened: re.Match[str] | None = None
    for match in re.finditer(f"<(/?){CALL_TAG}>", text):
        if opened is not None:
            end = match.end() if match[1] else match.start()
            yield opened.start(), end, text[opened.end() : match.start()]
        opened = None if match[1] else match
    if opened is not None:
        yield opened.start(), len(text), text[opened.end() :]


def text_outside(text: str, *, thinking: bool, tool_calls: bool) -> str:
    """The text without its thinking and / or its tool calls."""
    if thinking:
        text = split_thinking(text)[1]
    if not tool_calls:
        return text
    kept, position = [], 0
    for start, end, _ in tool_call_bodies(text):
        kept.append(text[position:start])
        position = end
    return "".join([*kept, text[position:]])
