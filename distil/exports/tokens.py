"""How long a row will be for a student, estimated without a tokenizer and rather too high."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from distil.commands.flags import FormFlags
from distil.errors import UsageError
from distil.exports.conversation import Message
from distil.exports.pictures import student_rule
from distil.pictures import sent_size
from distil.records import Size

_CHARS_A_TOKEN = 3  # of a word; English has more, names and other languages have fewer
_WORD = re.compile(r"[A-Za-z]+")
TOKENS_A_MESSAGE = 5  # <|im_start|>, role, newline, <|im_end|>, newline
_TOKENS_A_PICTURE = 2  # its first and its last, beside its patches
ESTIMATED = "estimated, rather too high"
NO_LIBRARY = f"{ESTIMATED}: tokenizers is not installed"
_TOKENIZER_FILE = "tokenizer.json"


def text_tokens(text: str) -> int:
    """Tokens of a text, at most: a digit, a sign, a run of spaces is one, a foreign letter its bytes but one.

    Qwen's tokenizers need fewer for nearly every text.
    """
    words = sum(-(-len(word) // _CHARS_A_TOKEN) for word in _WORD.findall(text))
    others = _WORD.sub("", text)
    signs = sum(character.isascii() and not character.isspace() for character in others)
    foreign = sum(max(1, len(character.encode()) - 1) for character in others if not character.isascii())
    return words + signs + foreign + len(re.findall(r"\n+|  +|\t+", text))


def picture_tokens(size: Size, form: FormFlags) -> int:
    """Tokens of a picture for the student: one for each patch of the size that its processor makes of it.

    A trainer that is told of `image_max_pixels` may leave small pictures smaller; others do not.
    """
    rule = student_rule(form)
    width, height = sent_size(size, rule)
    return width * height // rule.factor_px**2 + _TOKENS_A_PICTURE


def row_tokens(messages: Sequence[Message], form: FormFlags) -> int:
    """Tokens of a whole row."""
    texts = sum(text_tokens(message.text("")) for message in messages)
    pictures = sum(picture_tokens(part.size, form) for message in messages for part in message.pictures)
    return texts + pictures + TOKENS_A_MESSAGE * len(messages)


# --- by a model's own tokenizer, where a library that reads it is installed ---


def token_counter(folder: Path | None) -> tuple[Callable[[str], int], str]:
    """What counts tokens, and how it is said; raises UsageError where the folder has no tokenizer."""
    if folder is None:
        return text_tokens, ESTIMATED
    if not folder.is_dir():
        raise UsageError(f"--tokenizer {folder} is no folder")
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415
    except ImportError:
        return text_tokens, NO_LIBRARY
    path = folder / _TOKENIZER_FILE
    if not path.is_file():
        raise UsageError(f"--tokenizer {folder}: there is no {_TOKENIZER_FILE} in it")
    tokenizer = Tokenizer.from_file(str(path))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids), f"counted by {folder}"
