"""A drawn sign with one word, and the question for it: whether a teacher sees what it is sent."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from distil.records import Size

SIGN_WORD = "OSLO"  # read, not guessed; the embedded sign reader knows place names only
SIGN_QUESTION = "Which word is written in the image? Answer with that word alone."
_BACKGROUND = (190, 190, 190)


def draw_sign(word: str, size: Size = (640, 480)) -> Image.Image:
    """A white sign with one word on it."""
    image = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(image)
    draw.rectangle((size[0] // 8, size[1] // 4, size[0] * 7 // 8, size[1] * 3 // 4), fill="white")
    font = ImageFont.load_default(size[1] // 5)
    draw.text((size[0] // 2, size[1] // 2), word, fill="black", font=font, anchor="mm")
    return image
