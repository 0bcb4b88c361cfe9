"""How the terminal says things: one rule for the words of others, one for figures."""

from __future__ import annotations

import unicodedata

NOT_REPORTED = "not reported"  # a figure that the server, or the trace, does not give
_SHORT_CHARS = 600


def printable(text: str) -> str:
    """The words of a teacher, a server or a dataset, without what would steer the terminal.

    New lines and tabs stay: for text that stands by itself, as in a panel.
    """
    return "".join(letter if letter in "\n\t" or _is_harmless(letter) else "�" for letter in text)


def one_line(text: str) -> str:
    """The same for words within a line of ours: none can begin a line that would look like ours."""
    return printable(text).replace("\n", " ").replace("\t", " ")


def _is_harmless(letter: str) -> bool:
    """Whether it is only shown; Python calls no space but the plain one printable, and paths have others."""
    return letter.isprintable() or unicodedata.category(letter) == "Zs"


def short(text: str) -> str:
    """The beginning of a long text, and how long it is."""
    if len(text) <= _SHORT_CHARS:
        return text
    return f"{text[:_SHORT_CHARS]} … ({len(text):,} characters; --verbose)"


def number(count: int, noun: str) -> str:
    """`1 request`, `1,234 requests`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def figure(count: int | None) -> str:
    """`1,234`, or that it is not reported."""
    return NOT_REPORTED if count is None else f"{count:,}"


def duration_text(seconds: float) -> str:
    """`12.3 s`, `2.5 min`, `1.7 h`."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
