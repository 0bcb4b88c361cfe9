"""Pictures of traces in the terminal, replayed as the page does: of one trace all, of a folder a sheet.

A terminal takes a picture by kitty's graphics protocol, as iTerm2's inline image, or as sixel.
"""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from distil.errors import DistilError, TraceError, error_text
from distil.records import Protocol
from distil.replay.recipe import FAILURES
from distil.store.summary import TraceSummary
from distil.terminal.terminal import Terminal
from distil.viewer.pictures import Pictures, View

MAX_ROWS = 16  # of text, for one picture
_CELL_PX = (9, 18)  # where a terminal does not say how large a letter is
_KITTY_CHUNK = 4096  # characters of base64 in one escape sequence
_NUM_COLOURS = 255  # of a sixel picture: terminals hold 256
_BAND_PX = 6  # rows of pixels that one row of sixels is
_ON_A_SHEET = 12
_SHEET_CELL_PX, _GAP_PX, _CAPTION_PX = (176, 132), 8, 18
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
            self._draw(_sheet(cells, max(1, width_px // (_SHEET_CELL_PX[0] + _GAP_PX))), _SHEET_ROWS)
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
    width, height = _SHEET_CELL_PX[0] + _GAP_PX, _SHEET_CELL_PX[1] + _CAPTION_PX + _GAP_PX
    sheet = Image.new("RGB", (a_row * width + _GAP_PX, -(-len(cells) // a_row) * height + _GAP_PX), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_CAPTION_PX * 0.7)
    for position, (image, caption) in enumerate(cells):
        left, top = _GAP_PX + position % a_row * width, _GAP_PX + position // a_row * height
        small = image.convert("RGB")
        small.thumbnail(_SHEET_CELL_PX, Image.Resampling.LANCZOS)
        sheet.paste(
            small,
            (left + (_SHEET_CELL_PX[0] - small.width) // 2, top + (_SHEET_CELL_PX[1] - small.height) // 2),
        )
        place = (left + _SHEET_CELL_PX[0] / 2, top + _SHEET_CELL_PX[1] + _CAPTION_PX / 2)
        draw.text(place, caption, _INK, font, "mm")
    return sheet


class Window(NamedTuple):
    """A terminal's size, and that of a letter in it."""

    columns: int
    cell_width_px: int
    cell_height_px: int


def window_of(file: IO[str], columns: int) -> Window:
    """The window that a file writes to; with usual letters where it does not say."""
    try:
        import fcntl  # noqa: PLC0415 - not on Windows
        import termios  # noqa: PLC0415

        reply = fcntl.ioctl(file.fileno(), termios.TIOCGWINSZ, bytes(8))
        rows, width, width_px, height_px = struct.unpack("HHHH", reply)
        cell = (width_px // width, height_px // rows)
    except (ImportError, OSError, ValueError, AttributeError, ZeroDivisionError):
        cell = (0, 0)
    return Window(columns, *(cell if all(cell) else _CELL_PX))


def picture_text(image: Image.Image, protocol: Protocol, window: Window, max_rows: int = MAX_ROWS) -> str:
    """What draws a picture, at most as wide as the window and so many rows high, where a line begins."""
    room = ((window.columns - 1) * window.cell_width_px, max_rows * window.cell_height_px)
    image = _fitted(image.convert("RGB"), room)
    if protocol is Protocol.SIXEL:
        return sixel_text(image)
    columns = max(1, round(image.width / window.cell_width_px))
    return (
        kitty_text(_png(image), columns) if protocol is Protocol.KITTY else iterm_text(_png(image), columns)
    )


def kitty_text(png: bytes, columns: int) -> str:
    """A PNG for kitty, that many letters wide; in chunks, as no escape sequence may be long."""
    text = base64.standard_b64encode(png).decode("ascii")
    chunks = [text[start : start + _KITTY_CHUNK] for start in range(0, len(text), _KITTY_CHUNK)]
    drawn = []
    for number, chunk in enumerate(chunks, start=1):
        # a=T: send and show; f=100: a PNG; q=2: the terminal answers nothing, which nobody would read.
        head = f"a=T,f=100,q=2,c={columns}," if number == 1 else ""
        drawn.append(f"\x1b_G{head}m={int(number < len(chunks))};{chunk}\x1b\\")
    return "".join(drawn)


def iterm_text(png: bytes, columns: int) -> str:
    """A PNG for iTerm2, that many letters wide."""
    text = base64.standard_b64encode(png).decode("ascii")
    size = f"size={len(png)};width={columns};preserveAspectRatio=1"
    return f"\x1b]1337;File=inline=1;{size}:{text}\x07"


def sixel_text(image: Image.Image) -> str:
    """An RGB picture as sixels: for each six rows of pixels and each colour in them a row of letters."""
    paletted = image.quantize(_NUM_COLOURS)
    palette = np.asarray(paletted.getpalette() or [], dtype=np.float64).reshape(-1, 3)
    pixels = np.asarray(paletted)
    used = np.unique(pixels)
    colours = "".join(
        f"#{number};2;{red};{green};{blue}"
        for number, (red, green, blue) in zip(used, np.round(palette[used] / 2.55).astype(int), strict=True)
    )
    bands = "-".join(_band(pixels[top : top + _BAND_PX]) for top in range(0, len(pixels), _BAND_PX))
    return f'\x1bP0;1q"1;1;{image.width};{image.height}{colours}{bands}\x1b\\'


def _band(rows: NDArray[np.uint8]) -> str:
    """Six rows or fewer; `$` goes back to their left for the next colour."""
    weights = (1 << np.arange(len(rows))).reshape(-1, 1)
    drawn = []
    for number in np.unique(rows):
        sixels = ((rows == number) * weights).sum(axis=0)
        drawn.append(f"#{number}" + "".join(_runs(sixels)))
    return "$".join(drawn)


def _runs(sixels: NDArray[np.int64]) -> Iterator[str]:
    """The letters of a row, those that repeat counted, without what is empty at the end."""
    starts = np.flatnonzero(np.diff(sixels, prepend=-1))
    lengths = np.diff(starts, append=len(sixels))
    for position, (start, length) in enumerate(zip(starts, lengths, strict=True), start=1):
        letter = chr(63 + int(sixels[start]))
        if letter == "?" and position == len(starts):
            return
        yield f"!{length}{letter}" if length > 3 else letter * int(length)


def _fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    fitted = image.copy()
    fitted.thumbnail(size, Image.Resampling.LANCZOS)
    return fitted


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
