"""Drawn street scenes with one small place-name sign: a picture depends on (seed, index) and nothing else."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from distil.embedded.gazetteer import DATA_FOLDER, STOP_WORDS, PopulatedPlace, fold, load_gazetteer

LATIN_FONT_PATH = DATA_FOLDER / "sign_latin.ttf"
HAN_FONT_PATH = DATA_FOLDER / "sign_han.otf"

IMAGE_SOURCE = "drawn-sign"
WIDTH_PX, HEIGHT_PX = 1920, 1440
HORIZON_PX = 930
MIN_TEXT_PX, MAX_TEXT_PX = 12, 40
MAX_NAME_LETTERS = 18
MIN_POPULATION = 50_000
JPEG_QUALITY = 80
NOISE_TILE_PX = 480
NOISE_STEPS = 10

TILTS_DEGREES = (0, 90, 180, 30, -20)
HAN_SHARE = 1 / 3  # Latin and Han signs stand 2:1
SHOP_SHARE = 0.45
EXTRA_LINE_SHARE = 0.35

SHOP_WORDS = ("HOTEL", "OPEN", "BAR", "CAFE", "PIZZA", "TAXI", "MUSEUM", "酒店", "出口", "市場")
SIGN_EXTRAS = tuple(f"{distance} km" for distance in range(2, 60))

Colour = tuple[int, int, int]
SIGN_COLOURS: tuple[tuple[Colour, Colour], ...] = (
    ((20, 70, 150), (255, 255, 255)),
    ((0, 100, 60), (255, 255, 255)),
    ((250, 250, 245), (15, 15, 15)),
    ((250, 205, 20), (15, 15, 15)),
)
WALL_COLOURS: tuple[Colour, ...] = (
    (196, 178, 152),
    (170, 110, 90),
    (150, 155, 165),
    (205, 200, 190),
    (120, 105, 95),
)
LEAF_COLOURS: tuple[Colour, ...] = ((60, 100, 50), (85, 120, 55), (45, 85, 60))
METAL: Colour = (95, 98, 102)


@dataclass(frozen=True, slots=True)
class SignScene:
    """One drawn picture, the place its sign names, and where the sign stands (x1, y1, x2, y2)."""

    picture: Image.Image
    place: PopulatedPlace
    written: str
    text_px: int
    tilt_degrees: int
    sign_box_px: tuple[int, int, int, int]

    @property
    def locatability_score(self) -> float:
        """How easy the sign is to read, 0 to 1: large level text is easy, small tilted text is hard."""
        size = (self.text_px - MIN_TEXT_PX) / (MAX_TEXT_PX - MIN_TEXT_PX)
        return round(0.7 * size + 0.3 * (self.tilt_degrees == 0), 3)


def draw_scene(seed: int, index: int) -> SignScene:
    """Draw picture `index` of the endless sequence that `seed` names."""
    rng = np.random.default_rng((seed, index))
    place, written = pick_place(rng)
    text_px = int(rng.integers(MIN_TEXT_PX, MAX_TEXT_PX + 1))
    tilt_degrees = int(rng.choice(TILTS_DEGREES))
    picture = draw_street(rng)
    sign = draw_sign(rng, written, text_px).rotate(tilt_degrees, Image.Resampling.BICUBIC, expand=True)
    box = hang_sign(rng, picture, sign)
    noisy = add_noise(rng, picture, NOISE_TILE_PX, NOISE_STEPS)
    return SignScene(noisy, place, written, text_px, tilt_degrees, box)


def draw_row(seed: int, index: int) -> dict[str, Any]:
    """Draw one dataset row; the picture is stored as JPEG bytes."""
    scene = draw_scene(seed, index)
    return {
        "image": {"bytes": jpeg_bytes(scene.picture, JPEG_QUALITY), "path": None},
        "lat": scene.place.lat,
        "lon": scene.place.lon,
        "country": scene.place.country,
        "city": scene.place.name,
        "locatability_score": scene.locatability_score,
        "image_source": IMAGE_SOURCE,
    }


def pick_place(rng: np.random.Generator) -> tuple[PopulatedPlace, str]:
    """Pick a place and how its name is written on the sign."""
    latin, han = drawable_places()
    if rng.random() < HAN_SHARE:
        place = han[int(rng.integers(len(han)))]
        return place, place.han_name
    place = latin[int(rng.integers(len(latin)))]
    return place, place.name


@cache
def drawable_places() -> tuple[list[PopulatedPlace], list[PopulatedPlace]]:
    """List the places for Latin signs and those for Han signs; namesakes stay in, as in the world."""
    large = [place for place in load_gazetteer()[0] if place.population >= MIN_POPULATION]
    latin = [place for place in large if not place.han_name and len(place.name) <= MAX_NAME_LETTERS]
    telling = [place for place in latin if fold(place.name) not in STOP_WORDS]  # no word of any shop front
    return telling, [place for place in large if place.han_name]


@cache
def load_font(path: Path, size_px: int) -> ImageFont.FreeTypeFont:
    """Load a shipped font; the plain layout engine draws alike wherever Pillow runs."""
    return ImageFont.truetype(str(path), size_px, layout_engine=ImageFont.Layout.BASIC)


def font_for(text: str, size_px: int) -> ImageFont.FreeTypeFont:
    """Choose the font that has the letters of a text."""
    is_han = any(letter > "\u3000" for letter in text)
    return load_font(HAN_FONT_PATH if is_han else LATIN_FONT_PATH, size_px)


def draw_sign(rng: np.random.Generator, written: str, text_px: int) -> Image.Image:
    """Draw the level sign: the name, on some signs a distance below it."""
    ground, ink = SIGN_COLOURS[int(rng.integers(len(SIGN_COLOURS)))]
    lines = [(written, text_px)]
    if rng.random() < EXTRA_LINE_SHARE:
        lines.append((SIGN_EXTRAS[int(rng.integers(len(SIGN_EXTRAS)))], max(10, text_px * 3 // 5)))
    fonts = [font_for(text, size_px) for text, size_px in lines]
    length = max(font.getlength(text) for font, (text, _) in zip(fonts, lines, strict=True))
    width = math.ceil(length) + text_px * 2
    height = sum(size_px * 3 // 2 for _, size_px in lines) + text_px // 2
    sign = Image.new("RGBA", (width, height), (*ground, 255))
    pen = ImageDraw.Draw(sign)
    pen.rectangle((1, 1, width - 2, height - 2), outline=ink, width=max(1, text_px // 14))
    middle = text_px // 4
    for font, (text, size_px) in zip(fonts, lines, strict=True):
        middle += size_px * 3 // 4
        pen.text((width / 2, middle), text, fill=ink, font=font, anchor="mm")
        middle += size_px * 3 // 4
    return sign


def hang_sign(rng: np.random.Generator, picture: Image.Image, sign: Image.Image) -> tuple[int, int, int, int]:
    """Put the sign on a pole beside the road and return its box."""
    left = int(rng.integers(40, WIDTH_PX - sign.width - 40))
    top = int(rng.integers(360, max(361, HORIZON_PX - sign.height)))
    pole = left + sign.width // 2
    pen = ImageDraw.Draw(picture)
    pen.rectangle((pole - 4, top + sign.height // 2, pole + 4, HORIZON_PX + 60), fill=METAL)
    picture.paste(sign, (left, top), sign)
    return left, top, left + sign.width, top + sign.height


def draw_street(rng: np.random.Generator) -> Image.Image:
    """Draw sky, houses, trees and a road; a house may carry a shop word that is no place."""
    picture = draw_sky(rng)
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, HORIZON_PX, WIDTH_PX, HEIGHT_PX), fill=(118, 122, 104))
    draw_road(rng, pen)
    for left in range(-40, WIDTH_PX, 330):
        draw_house(rng, pen, left)
    for _ in range(int(rng.integers(2, 6))):
        draw_tree(rng, pen)
    if rng.random() < SHOP_SHARE:
        draw_shop_word(rng, pen)
    return picture


def draw_sky(rng: np.random.Generator) -> Image.Image:
    """Draw a sky that grows lighter towards the horizon."""
    top = rng.integers((90, 130, 180), (150, 180, 235))
    ramp = np.linspace(top, (225, 230, 235), HEIGHT_PX).astype(np.uint8)
    return Image.fromarray(ramp[:, None, :]).resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.NEAREST)


def draw_road(rng: np.random.Generator, pen: ImageDraw.ImageDraw) -> None:
    """Draw a road that runs to a vanishing point, with a dashed middle line."""
    vanishing = int(rng.integers(500, 1420))
    far_end = ((vanishing - 30, HORIZON_PX), (vanishing + 30, HORIZON_PX))
    pen.polygon((*far_end, (1700, HEIGHT_PX), (220, HEIGHT_PX)), fill=(82, 83, 86))
    for step in range(6):
        ends = step / 6, (step + 0.55) / 6  # of the way to the viewer
        points = [
            (vanishing + (960 - vanishing) * part, HORIZON_PX + (HEIGHT_PX - HORIZON_PX) * part)
            for part in ends
        ]
        pen.line(points, fill=(225, 225, 220), width=2 + 2 * step)


def draw_house(rng: np.random.Generator, pen: ImageDraw.ImageDraw, left: int) -> None:
    """Draw one house with a grid of windows."""
    wall = WALL_COLOURS[int(rng.integers(len(WALL_COLOURS)))]
    top, width = int(rng.integers(280, 640)), int(rng.integers(240, 325))
    pen.rectangle((left, top, left + width, HORIZON_PX), fill=wall)
    pane = tuple(int(part * 0.85) for part in wall)
    for row in range(top + 30, HORIZON_PX - 100, 130):
        for column in range(left + 24, left + width - 95, 150):
            pen.rectangle((column, row, column + 90, row + 70), fill=pane)


def draw_tree(rng: np.random.Generator, pen: ImageDraw.ImageDraw) -> None:
    """Draw a trunk and a crown of three circles."""
    x, height = int(rng.integers(0, WIDTH_PX)), int(rng.integers(160, 330))
    pen.rectangle((x - 9, HORIZON_PX - height, x + 9, HORIZON_PX + 20), fill=(85, 65, 50))
    leaf = LEAF_COLOURS[int(rng.integers(len(LEAF_COLOURS)))]
    for _ in range(3):
        dx, dy, radius = int(rng.integers(-50, 50)), int(rng.integers(-50, 50)), int(rng.integers(50, 90))
        middle = HORIZON_PX - height + dy
        pen.ellipse((x + dx - radius, middle - radius, x + dx + radius, middle + radius), fill=leaf)


def draw_shop_word(rng: np.random.Generator, pen: ImageDraw.ImageDraw) -> None:
    """Write a large shop word on the ground floor: readable at once, and no place."""
    word = SHOP_WORDS[int(rng.integers(len(SHOP_WORDS)))]
    size_px, x = int(rng.integers(64, 92)), int(rng.integers(100, WIDTH_PX - 460))
    font = font_for(word, size_px)
    left, top, right, bottom = pen.textbbox((x, HORIZON_PX - 110), word, font=font)
    pen.rectangle((left - 24, top - 16, right + 24, bottom + 16), fill=(60, 25, 25))
    pen.text((x, HORIZON_PX - 110), word, font=font, fill=(250, 235, 190))


def add_noise(rng: np.random.Generator, picture: Image.Image, tile_px: int, steps: int) -> Image.Image:
    """Add sensor-like grain, as one random tile laid over the picture: drawing all of it is the slow part."""
    tile = Image.fromarray(rng.integers(0, steps, (tile_px, tile_px, 3), dtype=np.uint8))
    cover = Image.new("RGB", picture.size)
    for top in range(0, picture.height, tile_px):
        for left in range(0, picture.width, tile_px):
            cover.paste(tile, (left, top))
    return ImageChops.add(picture, cover, offset=-steps // 2)


def jpeg_bytes(picture: Image.Image, quality: int) -> bytes:
    """Encode a picture as it is stored in the dataset."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
