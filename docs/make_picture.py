"""Draw a trace as the README shows one: the photo, what each call made of it, and the answer on a map.

Takes any trace of zooms and rotations. The README's is the fourth that its first line makes:

    python docs/make_picture.py distil/traces_concurrent/trace_00003.json docs/trace.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import datasets
from PIL import Image, ImageDraw, ImageFont

from distil.embedded.drawn_signs import LATIN_FONT_PATH
from distil.viewer.pages import LAND_FILE

MAP_SOUTH_DEGREES, MAP_NORTH_DEGREES = -57, 80

OVERSAMPLING = 2  # drawn this much larger, then reduced: PIL's lines have no smooth edges
WIDTH_PX, MARGIN_PX, GAP_PX, MAP_WIDTH_PX = 1500, 24, 40, 770
LINE_PX, TEXT_PX, HEADING_PX = 34, 20, 21
NUM_COLOURS = 200

PAPER, INK, QUIET, ACCENT = "#ffffff", "#1f2933", "#6b7885", "#e4472b"
CARD, SEA, COUNTRY = "#f3f5f7", "#dfe9f1", "#b4c3a6"

Trace = dict[str, Any]
Call = dict[str, Any]
Point = tuple[float, float]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path)
    parser.add_argument("picture", type=Path, help="the PNG to write")
    options = parser.parse_args()
    picture = draw_trace(json.loads(options.trace.read_text(encoding="utf-8")))
    picture.quantize(NUM_COLOURS, dither=Image.Dither.NONE).save(options.picture, optimize=True)


def draw_trace(trace: Trace) -> Image.Image:
    """The whole picture: a strip of what the teacher saw, under it the stored calls and the map."""
    calls = [call for call in trace["tool_calls_log"] if call["success"]]
    pictures = restore(trace, calls)
    row_px = (WIDTH_PX - 2 * MARGIN_PX - GAP_PX * len(calls)) / sum(p.width / p.height for p in pictures)
    map_px = MAP_WIDTH_PX * (MAP_NORTH_DEGREES - MAP_SOUTH_DEGREES) / 360
    top_px = MARGIN_PX + row_px + 2 * LINE_PX
    sheet = Sheet(WIDTH_PX, round(top_px + map_px + MARGIN_PX))
    draw_strip(sheet, pictures, calls, row_px)
    card_width = WIDTH_PX - 2 * MARGIN_PX - MAP_WIDTH_PX - GAP_PX
    draw_card(sheet, trace, calls, (MARGIN_PX, top_px, card_width, map_px))
    draw_map(sheet, trace, (WIDTH_PX - MARGIN_PX - MAP_WIDTH_PX, top_px, MAP_WIDTH_PX, map_px))
    return sheet.reduced()


def restore(trace: Trace, calls: list[Call]) -> list[Image.Image]:
    """The photo and the picture that each call gave, by the restore recipe of the README."""
    image = datasets.load_from_disk(trace["dataset_path"])[trace["sample_index"]]["image"]
    pictures = [image]
    for call in calls:
        if call["tool_name"] == "image_zoom_in_tool":
            image = image.crop(call["tool_arguments"]["bbox_2d"])
        else:
            image = image.rotate(call["tool_arguments"]["angle"], expand=True)
        pictures.append(image)
    return pictures


class Sheet:
    """Paper to draw on in the pixels of the finished picture."""

    def __init__(self, width_px: int, height_px: int, colour: str = PAPER) -> None:
        self.image = Image.new("RGB", (width_px * OVERSAMPLING, height_px * OVERSAMPLING), colour)
        self.draw = ImageDraw.Draw(self.image)

    def reduced(self) -> Image.Image:
        return self.image.reduce(OVERSAMPLING)

    def paste(self, picture: Image.Image, x: float, y: float, width: float, height: float) -> None:
        size = (round(width * OVERSAMPLING), round(height * OVERSAMPLING))
        place = (round(x * OVERSAMPLING), round(y * OVERSAMPLING))
        self.image.paste(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS), place)

    def polygon(self, points: list[Point], fill: str) -> None:
        self.draw.polygon([(x * OVERSAMPLING, y * OVERSAMPLING) for x, y in points], fill=fill)

    def frame(self, x: float, y: float, width: float, height: float) -> None:
        corners = [value * OVERSAMPLING for value in (x, y, x + width, y + height)]
        self.draw.rounded_rectangle(corners, 3 * OVERSAMPLING, outline=ACCENT, width=4 * OVERSAMPLING)

    def panel(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        self.draw.rectangle([value * OVERSAMPLING for value in (x, y, x + width, y + height)], fill=fill)

    def dot(self, x: float, y: float, radius: float, fill: str) -> None:
        corners = [value * OVERSAMPLING for value in (x - radius, y - radius, x + radius, y + radius)]
        self.draw.ellipse(corners, fill=fill)

    def text(self, x: float, y: float, words: str) -> None:
        self._write((x, y), words, ImageFont.load_default(TEXT_PX * OVERSAMPLING), INK, "lm")

    def heading(self, x: float, y: float, words: str) -> None:
        font = ImageFont.truetype(LATIN_FONT_PATH, HEADING_PX * OVERSAMPLING)
        self._write((x, y), words, font, INK, "lm")

    def caption(self, x: float, y: float, words: str) -> None:
        """Words in the middle under a picture."""
        self._write((x, y), words, ImageFont.load_default(TEXT_PX * OVERSAMPLING), QUIET, "mm")

    def _write(self, place: Point, words: str, font: Font, colour: str, anchor: str) -> None:
        self.draw.text((place[0] * OVERSAMPLING, place[1] * OVERSAMPLING), words, colour, font, anchor)


def draw_strip(sheet: Sheet, pictures: list[Image.Image], calls: list[Call], height: float) -> None:
    """Photo and tool pictures side by side; what the next call zooms into is framed."""
    x = float(MARGIN_PX)
    captions = [f"the photo, {pictures[0].width} by {pictures[0].height}", *map(action, calls)]
    for number, picture in enumerate(pictures):
        scale = height / picture.height
        width = picture.width * scale
        sheet.paste(picture, x, MARGIN_PX, width, height)
        if number < len(calls) and calls[number]["tool_name"] == "image_zoom_in_tool":
            x1, y1, x2, y2 = (value * scale for value in calls[number]["tool_arguments"]["bbox_2d"])
            sheet.frame(x + x1, MARGIN_PX + y1, x2 - x1, y2 - y1)
        sheet.caption(x + width / 2, MARGIN_PX + height + LINE_PX * 0.7, captions[number])
        x += width
        if number < len(calls):
            draw_arrow(sheet, x + GAP_PX / 2, MARGIN_PX + height / 2)
        x += GAP_PX


def draw_arrow(sheet: Sheet, x: float, y: float) -> None:
    sheet.polygon([(x - 8, y - 12), (x + 9, y), (x - 8, y + 12)], QUIET)


def action(call: Call) -> str:
    if call["tool_name"] == "image_zoom_in_tool":
        return "zoom"
    return f"rotate by {call['tool_arguments']['angle']}°"


def draw_card(sheet: Sheet, trace: Trace, calls: list[Call], place: tuple[float, ...]) -> None:
    """What of all this the trace holds."""
    left, top, width, height = place
    sheet.panel(left, top, width, height, CARD)
    x, y = left + LINE_PX * 0.8, top + LINE_PX
    sheet.heading(x, y, "What the trace keeps of the pictures")
    for call in calls:
        y += LINE_PX
        sheet.text(x, y, call["tool_name"])
        sheet.text(x + 215, y, json.dumps(call["tool_arguments"]).strip("{}").replace('"', ""))
    y += LINE_PX * 1.5
    sheet.heading(x, y, "What the teacher says")
    for line in trace["final_response"].replace(" (", "\n(").splitlines():
        if not line.startswith("("):
            y += LINE_PX
            sheet.text(x, y, line)


def draw_map(sheet: Sheet, trace: Trace, place: tuple[float, ...]) -> None:
    """The world, the answer on it, and how far that is from the truth."""
    left, top, width, height = place
    scale = width / 360

    def project(lon: float, lat: float) -> Point:
        return (lon + 180) * scale, (MAP_NORTH_DEGREES - lat) * scale

    world = Sheet(round(width), round(height), SEA)
    outlines = json.loads(LAND_FILE.read_text(encoding="utf-8"))
    for rings, colour in ((outlines["land"], COUNTRY), (outlines["lakes"], SEA)):
        for ring in rings:
            points = zip(ring[::2], ring[1::2], strict=True)
            world.polygon([project(lon, lat) for lon, lat in points], colour)
    answer = trace["metadata"]["answer"]
    x, y = project(answer["lon"], answer["lat"])
    draw_pin(world, x, y)
    world.heading(x + 24, y - 32, trace["sample_data"]["city"])
    world.text(x + 24, y - 8, f"{trace['reward_score']['distance@km']:.1f} km from the truth")
    sheet.image.paste(world.image, (round(left * OVERSAMPLING), round(top * OVERSAMPLING)))


def draw_pin(sheet: Sheet, x: float, y: float) -> None:
    """A pin whose tip stands at a point."""
    sheet.dot(x, y - 28, 15, PAPER)
    sheet.polygon([(x, y + 4), (x - 13, y - 22), (x + 13, y - 22)], PAPER)
    sheet.polygon([(x, y), (x - 10, y - 22), (x + 10, y - 22)], ACCENT)
    sheet.dot(x, y - 28, 12, ACCENT)
    sheet.dot(x, y - 28, 4, PAPER)


if __name__ == "__main__":
    main()
