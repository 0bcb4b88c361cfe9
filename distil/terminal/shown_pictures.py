"""Pictures of traces in the terminal, replayed as the page does: of one trace all, of a folder a sheet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from distil.errors import DistilError, TraceError, error_text
from distil.replay.recipe import FAILURES
from distil.store.summary import TraceSummary
from distil.terminal.inline_pictures import picture_text, window_of
from distil.terminal.picture_protocol import Protocol
from distil.terminal.terminal import Terminal
from distil.viewer.pictures import Pictures, View

_ON_A_SHEET = 12
_CELL_PX, _GAP_PX, _CAPTION_PX = (176, 132), 8, 18
_SHEET_ROWS = 36  # of text, at most
_PAPER, _INK = "white", "black"


class ShownPictures:
    """Draws pictures of traces into a terminal by its protocol; a context manager."""

    def __init__(self, protocol: Protocol, terminal: Terminal, dataset_path: str | None = None) -> None:
        self._protocol, self._terminal = protocol, terminal
        self._dataset_path = dataset_path
        self._pictures: Pictures | None = None
        self._problem = ""  # that was said last

    def __enter__(self) -> ShownPictures:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pictures is not None:
            self._pictures.close()

    def show(self, path: Path, number: int) -> None:
        """A picture of a trace, 0 for the photo; where there is none a line says why, once a reason."""
        try:
            image = self._picture(path, number)
        except DistilError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                self._terminal.say(f"No picture: {error}", "dim")
            return
        self._draw(image)

    def draw(self, data: bytes) -> None:
        """A picture's file; one that cannot be read is left out."""
        try:
            with Image.open(io.BytesIO(data)) as image:
                self._draw(image.convert("RGB"))
        except FAILURES as error:
            self._terminal.say(f"No picture: {error_text(error)}", "dim")

    def show_sheet(self, traces: Sequence[tuple[Path, TraceSummary]]) -> None:
        """The photos of the first traces of a folder side by side, each with its row and its score."""
        cells = []
        for path, facts in traces[:_ON_A_SHEET]:
            try:
                photo = self._picture(path, 0)
            except DistilError as error:
                self._problem = str(error)
                continue
            cells.append((photo, f"{facts.sample_id} · {facts.score:.3f}"))
        if cells:
            window = window_of(self._terminal.file, self._terminal.columns)
            width_px = (window.columns - 1) * window.cell_width_px
            self._draw(_sheet(cells, max(1, width_px // (_CELL_PX[0] + _GAP_PX))), _SHEET_ROWS)
        else:
            self._terminal.say(f"No pictures: {self._problem}", "dim")

    def _picture(self, path: Path, number: int) -> Image.Image:
        """A picture as the teacher got it; raises DistilError."""
        if self._pictures is None:
            self._pictures = Pictures(self._dataset_path)
        data = self._pictures.file(path, number, View.SENT)
        try:
            with Image.open(io.BytesIO(data)) as image:
                return image.convert("RGB")
        except FAILURES as error:  # a trace may keep half a file
            raise TraceError(error_text(error)) from None

    def _draw(self, image: Image.Image, max_rows: int | None = None) -> None:
        window = window_of(self._terminal.file, self._terminal.columns)
        text = picture_text(image, self._protocol, window, *(() if max_rows is None else (max_rows,)))
        self._terminal.draw(text)


def _sheet(cells: Sequence[tuple[Image.Image, str]], a_row: int) -> Image.Image:
    """Pictures with a line below each, in rows."""
    a_row = min(a_row, len(cells))
    width, height = _CELL_PX[0] + _GAP_PX, _CELL_PX[1] + _CAPTION_PX + _GAP_PX
    sheet = Image.new("RGB", (a_row * width + _GAP_PX, -(-len(cells) // a_row) * height + _GAP_PX), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_CAPTION_PX * 0.7)
    for position, (image, caption) in enumerate(cells):
        left, top = _GAP_PX + position % a_row * width, _GAP_PX + position // a_row * height
        small = image.convert("RGB")
        small.thumbnail(_CELL_PX, Image.Resampling.LANCZOS)
        sheet.paste(small, (left + (_CELL_PX[0] - small.width) // 2, top + (_CELL_PX[1] - small.height) // 2))
        place = (left + _CELL_PX[0] / 2, top + _CELL_PX[1] + _CAPTION_PX / 2)
        draw.text(place, caption, _INK, font, "mm")
    return sheet
