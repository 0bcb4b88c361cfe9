"""The words of others on a page: cut where they are long, and nothing in them unseen.

A text may hold characters that show nothing and change what others show: a right-to-left override makes
`gpj.exe` read `exe.jpg`. They are shown by their numbers.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape
from pygments.lexers.python import PythonLexer
from pygments.token import STANDARD_TYPES, Token

from distil.records import Json

CUT_CHARS = 6000
LARGEST = 1e15  # numbers beyond are none that is measured: sums and squares of them may be no numbers
_SHORT_ITEMS, _SHORT_CHARS = 8, 88  # of a JSON value that is shown on one line
# Controls but new lines and tabs, marks of direction and of format, surrogates, private use; not what joins
# letters of several scripts and emoji (U+200C, U+200D, U+FE0F). `static/trace.js` has the same.
_UNSEEN = re.compile(
    r"[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u0600-\u0605\u061c\u06dd\u070f\u180e\u200b\u200e\u200f"
    r"\u2028-\u202e\u2060-\u206f\ufe00-\ufe0e\ufeff\ufff9-\ufffc\ud800-\udfff\ue000-\uf8ff\U000e0000-\U0010ffff]"
)
_LEXER = PythonLexer(stripnl=False, ensurenl=False)
_TOLD_APART = {"k", "kn", "kc", "ow", "s", "c", "m", "nf", "nc", "nb", "o", "nd"}  # Pygments' short names


@dataclass(frozen=True)
class CutText:
    """A text as a page shows it; `pointer` is where the whole stands in the trace (RFC 6901)."""

    text: str
    pointer: str
    num_chars: int

    @property
    def is_cut(self) -> bool:
        return len(self.text) < self.num_chars

    def __bool__(self) -> bool:
        return self.num_chars > 0


def shown(text: str, pointer: str = "", limit: int = CUT_CHARS) -> CutText:
    """The text, or its beginning."""
    return CutText(text[:limit], pointer, len(text))


def pointer_to(*path: str | int) -> str:
    """A place in a JSON value, as RFC 6901 writes it."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def value_at(value: Json, pointer: str) -> Json:
    """What stands at a place in a JSON value; raises LookupError where there is none."""
    for part in pointer.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, list):
            if not name.isdecimal() or len(name) > 12:
                raise LookupError(pointer)
            value = value[int(name)]
        elif isinstance(value, dict):
            value = value[name]
        else:
            raise LookupError(pointer)
    return value


def visible(text: object) -> Markup:
    """The text as HTML, with a mark for each character that shows nothing by itself."""
    parts: list[str] = []
    start = 0
    letters = str(text)
    for match in _UNSEEN.finditer(letters):
        parts += [str(escape(letters[start : match.start()])), _mark(match[0])]
        start = match.end()
    return Markup("".join([*parts, str(escape(letters[start:]))]))  # noqa: S704 - all of it is escaped


def _mark(letter: str) -> str:
    number = f"U+{ord(letter):04X}"
    name = unicodedata.name(letter, "control character")
    return f'<span class="unseen-letter" title="{escape(name.lower())}">{number}</span>'


def coloured(code: str) -> Markup:
    """Python code as HTML, its words told apart by classes that `trace.css` gives colours."""
    return Markup("").join(_span(kind, text) for kind, text in _LEXER.get_tokens(code))


def _span(kind: type[Token] | object, text: str) -> Markup:
    name = _class_of(kind)
    return Markup('<span class="tok-{}">{}</span>').format(name, visible(text)) if name else visible(text)


def _class_of(kind: object) -> str:
    """The name of a kind of word, or of the nearest that it is a kind of; empty for plain text."""
    while kind is not Token and kind is not None:
        name = STANDARD_TYPES.get(kind, "")
        if name in _TOLD_APART:
            return str(name)
        kind = getattr(kind, "parent", None)
    return ""


def plain(text: str) -> str:
    """The text with the numbers of unseen characters in their place, as plain text that UTF-8 can hold."""
    return _UNSEEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text)


def json_text(value: Json, limit: int = 0) -> str:
    """A value as indented JSON, short lists of plain values on one line; cut at `limit` characters."""
    try:
        text = _indented(value, 0)
    except RecursionError:
        text = "(nested too deeply to be shown)"
    return text[:limit] if limit else text


def _indented(value: Json, depth: int) -> str:
    if isinstance(value, list | dict) and value and depth < 40 and not _is_short(value):
        inside, end = "\n" + "  " * (depth + 1), "\n" + "  " * depth
        if isinstance(value, list):
            items = [_indented(item, depth + 1) for item in value]
            return f"[{inside}{(',' + inside).join(items)}{end}]"
        pairs = [f"{_compact(name)}: {_indented(item, depth + 1)}" for name, item in value.items()]
        return f"{{{inside}{(',' + inside).join(pairs)}{end}}}"
    return _compact(value)


def _is_short(value: Json) -> bool:
    items: Sequence[Json] = list(value.values()) if isinstance(value, dict) else value
    return len(items) <= _SHORT_ITEMS and len(_compact(value)) <= _SHORT_CHARS


def _compact(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False)


def finite(value: Json) -> float | None:
    """A number that can be shown and drawn, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and abs(number) < LARGEST else None
