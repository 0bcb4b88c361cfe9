"""Words that a trainer or a tokenizer takes for more than text, made harmless in what others wrote.

A zero-width space behind the first character is enough for each of them: no trainer finds its placeholder and
no tokenizer its control token, and a person reads the same.
"""

from __future__ import annotations

import json
import re

from distil.records import Json

_MARK = "\N{ZERO WIDTH SPACE}"
# Placeholders of LLaMA-Factory, verl and ms-swift, and what Qwen's tokenizers have as one token.
_PLACEHOLDERS = "image|video|audio|bbox|ref-object|cot-process|start-image"
_TAGS = "tool_call|tool_response|think|thinking"
_SPECIAL = re.compile(rf"<(?=\||(?:{_PLACEHOLDERS})>|/?(?:{_TAGS})>)|\{{(?=\{{idx\}}\}})")


def escaped(text: str) -> str:
    """The text without special words."""
    return _SPECIAL.sub(lambda first: first[0] + _MARK, text)


def escaped_json(value: Json) -> Json:
    """A JSON value whose texts have no special words."""
    return json.loads(escaped(json.dumps(value)))  # no word begins in one text and ends in another


def json_text(value: Json) -> str:
    """A value as a chat template writes it, without special words."""
    return escaped(json.dumps(value, ensure_ascii=False))
