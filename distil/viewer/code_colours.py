"""Python code with its words told apart by classes, which `trace.css` gives colours."""

from __future__ import annotations

from markupsafe import Markup
from pygments.lexers.python import PythonLexer
from pygments.token import STANDARD_TYPES, Token

from distil.viewer.visible import visible

_LEXER = PythonLexer(stripnl=False, ensurenl=False)
_SHOWN = {"k", "kn", "kc", "ow", "s", "c", "m", "nf", "nc", "nb", "o", "nd"}  # Pygments' short names


def coloured(code: str) -> Markup:
    """The code as HTML."""
    return Markup("").join(_span(kind, text) for kind, text in _LEXER.get_tokens(code))


def _span(kind: type[Token] | object, text: str) -> Markup:
    name = _class_of(kind)
    return Markup('<span class="tok-{}">{}</span>').format(name, visible(text)) if name else visible(text)


def _class_of(kind: object) -> str:
    """The name of a kind of word, or of the nearest that it is a kind of; empty for plain text."""
    while kind is not Token and kind is not None:
        name = STANDARD_TYPES.get(kind, "")
        if name in _SHOWN:
            return str(name)
        kind = getattr(kind, "parent", None)
    return ""
