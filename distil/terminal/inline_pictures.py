"""A picture as a terminal takes it: kitty's graphics protocol, iTerm2's inline images, or sixel."""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distil.terminal.picture_protocol import Protocol

MAX_ROWS = 16  # of text, for one picture
_CELL_PX = (9, 18)  # where a terminal does not say how large a letter is
_KITTY_CHUNK = 4096  # characters of base64 in one escape sequence
_NUM_COLOURS = 255  # of a sixel picture: terminals hold 256
_BAND_PX = 6  # rows of pixels that one row of sixels is


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
