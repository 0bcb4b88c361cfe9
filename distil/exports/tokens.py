"""How long a row will be for a student, estimated without a tokenizer and rather too high."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from distil.exports.conversation import Message
from distil.exports.options import ExportOptions
from distil.pictures import sent_size
from distil.records import Json, Size

_CHARS_A_TOKEN = 3  # of a word; English has more, names and other languages have fewer
_WORD = re.compile(r"[A-Za-z]+")
TOKENS_A_MESSAGE = 5  # <|im_start|>, role, newline, <|im_end|>, newline
_TOKENS_A_PICTURE = 2  # its first and its last, beside its patches
_ROUNDED_TO = 1024
_MARGIN = 20  # a twentieth more: trainers make small pictures larger, each a little otherwise


def text_tokens(text: str) -> int:
    """Tokens of a text, at most: a digit, a sign, a run of spaces is one, a foreign letter its bytes but one.

    Qwen's tokenizers need fewer for nearly every text.
    """
    words = sum(-(-len(word) // _CHARS_A_TOKEN) for word in _WORD.findall(text))
    others = _WORD.sub("", text)
    signs = sum(character.isascii() and not character.isspace() for character in others)
    foreign = sum(max(1, len(character.encode()) - 1) for character in others if not character.isascii())
    return words + signs + foreign + len(re.findall(r"\n+|  +|\t+", text))


def picture_tokens(size: Size, options: ExportOptions) -> int:
    """Tokens of a picture for the student: one for each patch of the size that its processor makes of it.

    A trainer that is told of `image_max_pixels` may leave small pictures smaller; others do not.
    """
    rule = options.student_rule
    width, height = sent_size(size, rule)
    return width * height // rule.factor_px**2 + _TOKENS_A_PICTURE


def row_tokens(messages: Sequence[Message], options: ExportOptions) -> int:
    """Tokens of a whole row."""
    texts = sum(text_tokens(message.text("")) for message in messages)
    pictures = sum(picture_tokens(part.size, options) for message in messages for part in message.pictures)
    return texts + pictures + TOKENS_A_MESSAGE * len(messages)


@dataclass
class Lengths:
    """The lengths of all rows of an export, in tokens."""

    counts: list[int] = field(default_factory=list)

    @property
    def to_set(self) -> int:
        """The length to set in a trainer so that no row is cut."""
        longest = max(self.counts, default=0)
        longest += longest // _MARGIN
        return -(-longest // _ROUNDED_TO) * _ROUNDED_TO

    def as_json(self) -> dict[str, Json]:
        """As the manifest has them."""
        ordered = sorted(self.counts)
        middle = ordered[len(ordered) // 2] if ordered else 0
        return {
            "shortest": ordered[0] if ordered else 0,
            "median": middle,
            "longest": ordered[-1] if ordered else 0,
            "to_set": self.to_set,
        }
