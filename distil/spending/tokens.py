"""What tokens a text and a picture take at the least, and what fewer of them mean."""

from __future__ import annotations

from collections.abc import Iterable

from distil.records import Size

# English has four to five characters a token; JSON, code
# and other scripts have fewer. The thriftiest teachers take 64 tokens for a picture, those that count pixels
# fewer for a tiny one (a token for 28×28 or 32×32 of them, as it is sent).
_MAX_CHARS_PER_TOKEN = 5
_MIN_PICTURE_TOKENS = 64
_MAX_PX_PER_TOKEN = 48 * 48

PICTURES_DROPPED = "the server seems to drop pictures: a text-only model, or a wrong chat template"


def fewest_prompt_tokens(texts: Iterable[str], pictures: Iterable[Size]) -> int:
    """Tokens that no teacher goes below for these texts and pictures (sizes in pixels, as sent)."""
    num_chars = sum(len(" ".join(text.split())) for text in texts)
    tokens = [min(_MIN_PICTURE_TOKENS, width * height // _MAX_PX_PER_TOKEN) for width, height in pictures]
    return num_chars // _MAX_CHARS_PER_TOKEN + sum(tokens)
