"""Where a reply says that its answer stands: `\\boxed{…}` or `<answer>…</answer>`."""

from __future__ import annotations

import re

from distil.messages.tags import text_outside

MAX_ANSWER_CHARS = 300  # an answer is short; a longer box is prose
_BRACE = re.compile(r"[{}]")


def stated_answers(response: str) -> tuple[list[str], list[str]]:
    """What stands in the boxes of a reply, and in its tags; thinking and tool calls are not looked at."""
    text = text_outside(response, thinking=True, tool_calls=True)
    return _boxed_bodies(text), _answer_bodies(text)


def _boxed_bodies(text: str) -> list[str]:
    """What stands in each innermost `\\boxed{…}`, braces matched; one longer than an answer is left out."""
    bodies = []
    for start in re.finditer(r"\\boxed[ \t]{0,4}\{", text):
        body = _braced(text, start.end())
        if body is not None and "\\boxed" not in body:
            bodies.append(body)
    return bodies


def _braced(text: str, start: int) -> str | None:
    depth = 1
    for brace in _BRACE.finditer(text, start, start + MAX_ANSWER_CHARS):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[start : brace.start()]
    return None


def _answer_bodies(text: str) -> list[str]:
    """What stands in each `<answer>…</answer>`; one longer than an answer is left out."""
    bodies = []
    position = text.find("<answer>")
    while position >= 0:
        start = position + len("<answer>")
        end = text.find("</answer>", start)
        if end < 0:
            break
        if end - start <= MAX_ANSWER_CHARS:
            bodies.append(text[start:end])
        position = text.find("<answer>", end)
    return bodies
