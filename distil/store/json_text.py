"""JSON for people to read, faster than the standard library, which indents in pure Python generators.

The same text as `json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False)`, in a third of the time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable

from distil.records import Json

_quoted = json.encoder.encode_basestring  # in C
_int_text, _float_text = int.__repr__, float.__repr__  # those of a number's own class may differ
_CONSTANTS = {None: "null", True: "true", False: "false"}
# Of most values, looked up by their very class; others, and floats, take the longer way.
_TEXTS: dict[type, Callable[..., str]] = {str: _quoted, int: _int_text, bool: _CONSTANTS.__getitem__}


def indented(value: Json) -> str:
    """A value as JSON with an indent of one; raises ValueError or TypeError for what JSON lacks."""
    parts: list[str] = []
    _add(value, "\n", parts.append)
    return "".join(parts)


def _add(value: Json, newline: str, add: Callable[[str], None]) -> None:
    """Add the parts of a value whose line begins with `newline`, which has its indent."""
    if isinstance(value, dict) and value:
        separator, inner = "{" + newline + " ", newline + " "
        for key, item in value.items():
            name = _quoted(key if isinstance(key, str) else _scalar(key))
            if (text_of := _TEXTS.get(type(item))) is not None:
                add(f"{separator}{name}: {text_of(item)}")
            elif isinstance(item, (dict, list, tuple)):
                add(f"{separator}{name}: ")
                _add(item, inner, add)
            else:
                add(f"{separator}{name}: {_scalar(item)}")
            separator = "," + inner
        add(newline + "}")
    elif isinstance(value, (list, tuple)) and value:
        separator, inner = "[" + newline + " ", newline + " "
        for item in value:
            if (text_of := _TEXTS.get(type(item))) is not None:
                add(separator + text_of(item))
            else:
                add(separator)
                _add(item, inner, add)
            separator = "," + inner
        add(newline + "]")
    else:
        add("{}" if isinstance(value, dict) else "[]" if isinstance(value, (list, tuple)) else _scalar(value))


def _scalar(value: Json) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if value is None or value is True or value is False:
        return _CONSTANTS[value]
    if isinstance(value, int):
        return _int_text(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"Out of range float values are not JSON compliant: {value!r}")
        return _float_text(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
