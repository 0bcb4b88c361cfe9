"""Tokens of a text by a model's own tokenizer, where a library that reads it is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from distil.errors import UsageError
from distil.exports.tokens import text_tokens

ESTIMATED = "estimated, rather too high"
NO_LIBRARY = f"{ESTIMATED}: neither tokenizers nor transformers is installed"
FILE = "tokenizer.json"


def token_counter(folder: Path | None) -> tuple[Callable[[str], int], str]:
    """What counts tokens, and how it is said; raises UsageError where the folder has no tokenizer."""
    if folder is None:
        return text_tokens, ESTIMATED
    if not folder.is_dir():
        raise UsageError(f"--tokenizer {folder} is no folder")
    return _by_tokenizers(folder) or _by_transformers(folder) or (text_tokens, NO_LIBRARY)


def _by_tokenizers(folder: Path) -> tuple[Callable[[str], int], str] | None:
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415
    except ImportError:
        return None
    path = folder / FILE
    if not path.is_file():
        raise UsageError(f"--tokenizer {folder}: there is no {FILE} in it")
    tokenizer = Tokenizer.from_file(str(path))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids), f"counted by {folder}"


def _by_transformers(folder: Path) -> tuple[Callable[[str], int], str] | None:
    try:
        from transformers import AutoTokenizer  # noqa: PLC0415
    except ImportError:
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"--tokenizer {folder}: {error}") from None
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False)), f"counted by {folder}"
