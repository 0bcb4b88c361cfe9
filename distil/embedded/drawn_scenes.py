"""Drawn scenes of coloured shapes with small print in them, and a question about one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from distil.embedded.drawn_signs import LATIN_FONT_PATH, Colour, add_noise, jpeg_bytes, load_font
from distil.embedded.shapes import CIRCLE, PALETTE, SHAPE_NAMES, SQUARE, TRIANGLE

IMAGE_SOURCE = "drawn-scene"
WIDTH_PX, HEIGHT_PX = 1600, 1200
CELL_PX = 400  # a shape stands in a cell of its own
MIN_SIDE_PX, MAX_SIDE_PX = 190, 280
MIN_SHAPES, MAX_SHAPES = 5, 9
MIN_TEXT_PX, MAX_TEXT_PX = 12, 24
TILTS_DEGREES = (0, 0, 90, 30, -20)  # never upside down: 6801 reads as 1089 then
JPEG_QUALITY = 85
NOISE_STEPS = 12

NUMBER, WORD = "number", "word"
WORDS = tuple(
    """
    anchor apple basket bridge bottle candle carpet castle cherry copper corner cotton desert dragon eagle
    engine falcon feather flower forest garden guitar hammer harbor island jacket kettle ladder lantern lemon
    marble market meadow mirror monkey needle orange oyster palace paper pencil pepper pillow planet pocket
    rabbit ribbon river rocket saddle salmon shadow silver spider spring summer temple thunder ticket tiger
    timber tunnel turtle valley velvet violin wagon walnut window winter
    """.split()  # noqa: SIM905 - a page of quotes says no more
)
PAPER: Colour = (250, 250, 246)
INK: Colour = (20, 20, 24)


@dataclass(frozen=True, slots=True)
class Inscription:
    """A shape of a scene and what is written in it; `middle` and `side` in pixels of the picture."""

    colour: str
    shape: str
    middle: tuple[int, int]
    side_px: int
    kind: str
    text: str
    text_px: int
    tilt_degrees: int

    @property
    def question(self) -> str:
        """What is asked of it."""
        return f"What {self.kind} is written in the {self.colour} {self.shape}?"

    @property
    def box_px(self) -> tuple[int, int, int, int]:
        """Where it stands (x1, y1, x2, y2)."""
        (x, y), half = self.middle, self.side_px // 2
        return x - half, y - half, x + half, y + half


def draw_scene(seed: int, index: int) -> tuple[Image.Image, list[Inscription]]:
    """Draw picture `index` of the endless sequence that `seed` names; the first inscription is asked for."""
    rng = np.random.default_rng((seed, index, 1))  # 1: not the stream that a street of this number has
    inscriptions = pick_inscriptions(rng)
    picture = draw_ground(rng)
    for inscription in inscriptions:
        draw_inscription(picture, inscription)
    return add_noise(rng, picture, CELL_PX, NOISE_STEPS), inscriptions


def draw_row(seed: int, index: int) -> dict[str, Any]:
    """Draw one dataset row; the picture is stored as JPEG bytes."""
    picture, (asked, *_) = draw_scene(seed, index)
    return {
        "image": {"bytes": jpeg_bytes(picture, JPEG_QUALITY), "path": None},
        "question": asked.question,
        "answer": asked.text,
        "text_px": asked.text_px,
        "image_source": IMAGE_SOURCE,
    }


def pick_inscriptions(rng: np.random.Generator) -> list[Inscription]:
    """Pick shapes of different kinds for different cells; a colour may come with two shapes."""
    kinds = [(colour, shape) for colour in PALETTE for shape in SHAPE_NAMES]
    cells = [(x, y) for y in range(HEIGHT_PX // CELL_PX) for x in range(WIDTH_PX // CELL_PX)]
    number = int(rng.integers(MIN_SHAPES, MAX_SHAPES + 1))
    chosen = rng.choice(len(kinds), number, replace=False)
    places = rng.choice(len(cells), number, replace=False)
    return [
        pick_inscription(rng, kinds[kind], cells[cell]) for kind, cell in zip(chosen, places, strict=True)
    ]


def pick_inscription(rng: np.random.Generator, form: tuple[str, str], cell: tuple[int, int]) -> Inscription:
    """Pick size, place and text of one shape, whose colour and form are given."""
    side = int(rng.integers(MIN_SIDE_PX, MAX_SIDE_PX + 1))
    room = (CELL_PX - side) // 2 - 10
    shift_x, shift_y = (int(rng.integers(-room, room + 1)) for _ in range(2))
    kind = NUMBER if rng.random() < 0.5 else WORD
    text = str(rng.integers(1000, 10000)) if kind == NUMBER else WORDS[int(rng.integers(len(WORDS)))]
    middle = cell[0] * CELL_PX + CELL_PX // 2 + shift_x, cell[1] * CELL_PX + CELL_PX // 2 + shift_y
    text_px, tilt = int(rng.integers(MIN_TEXT_PX, MAX_TEXT_PX + 1)), int(rng.choice(TILTS_DEGREES))
    return Inscription(*form, middle, side, kind, text, text_px, tilt)


def draw_ground(rng: np.random.Generator) -> Image.Image:
    """Draw a grey ground with soft spots: no colour of the palette is in it."""
    coarse = rng.integers(150, 215, (HEIGHT_PX // 100, WIDTH_PX // 100), dtype=np.uint8)
    grey = Image.fromarray(coarse).resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.BICUBIC)
    return grey.filter(ImageFilter.GaussianBlur(8)).convert("RGB")


def draw_inscription(picture: Image.Image, inscription: Inscription) -> None:
    """Draw a shape and, on a small plate in it, its text."""
    pen = ImageDraw.Draw(picture)
    left, top, right, bottom = inscription.box_px
    fill = PALETTE[inscription.colour]
    if inscription.shape == CIRCLE:
        pen.ellipse((left, top, right, bottom), fill=fill)
    elif inscription.shape == SQUARE:
        pen.rectangle((left, top, right, bottom), fill=fill)
    elif inscription.shape == TRIANGLE:
        pen.polygon(((left, bottom), (right, bottom), ((left + right) // 2, top)), fill=fill)
    plate = draw_plate(inscription).rotate(inscription.tilt_degrees, Image.Resampling.BICUBIC, expand=True)
    x, y = inscription.middle
    if inscription.shape == TRIANGLE:
        y += inscription.side_px // 5  # where it is wide
    picture.paste(plate, (x - plate.width // 2, y - plate.height // 2), plate)


def draw_plate(inscription: Inscription) -> Image.Image:
    """Draw the level plate with the text."""
    font = load_font(LATIN_FONT_PATH, inscription.text_px)
    width = round(font.getlength(inscription.text)) + inscription.text_px
    height = inscription.text_px * 3 // 2
    plate = Image.new("RGBA", (width, height), (*PAPER, 255))
    ImageDraw.Draw(plate).text((width / 2, height / 2), inscription.text, fill=INK, font=font, anchor="mm")
    return plate
