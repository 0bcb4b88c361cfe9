"""What goes over a job's socket: frames with a fixed header, pictures as raw pixels.

Standard library and PIL only: both ends import this file, the server by path. Every number in a frame
that comes from a child is checked before it is used; nothing is unpickled, parsed or decoded.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from PIL import Image

# The bounds of everything that comes back.
RESULT_PIXELS_MAX = 64 * 1024 * 1024
STDOUT_BYTES_MAX = 64 * 1024
MESSAGE_BYTES_MAX = 8 * 1024
CODE_BYTES_MAX = 4 * 1024 * 1024
CUT_MARK = "\n… cut"

# Bits per pixel as `Image.tobytes()` gives them; rows of mode 1 are padded to whole bytes.
MODE_BITS = {
    "1": 1, "L": 8, "P": 8, "LA": 16, "La": 16, "PA": 16, "RGB": 24, "YCbCr": 24, "LAB": 24, "HSV": 24,
    "RGBA": 32, "RGBa": 32, "RGBX": 32, "CMYK": 32, "I": 32, "F": 32, "I;16": 16, "I;16L": 16, "I;16B": 16,
}  # fmt: skip
PALETTE_MODES = ("RGB", "RGBA")

FRAME = struct.Struct("<cI")  # kind, length of what follows in bytes
READY, OUTPUT, FAILURE, PICTURE = b"R", b"O", b"F", b"P"
JOB = struct.Struct("<4sII")  # magic, random seed, length of the code in bytes
JOB_MAGIC = b"job1"
HEADER = struct.Struct("<8sII4sHBHQ")  # mode, width, height, palette mode and length, transparency, pixels

# First byte of a FAILURE frame, and `ExecResult.kind`.
FAILURE_KINDS = {b"e": "error", b"m": "memory", b"n": "no_result", b"b": "bad_result"}

CHUNK_BYTES = 128 * 1024  # pixels are taken off the socket in pieces that stay in the processor's cache

ReadExactly = Callable[[int], "bytes | bytearray"]


class FrameError(ValueError):
    """A frame that no honest child sends."""


class PictureHeader(NamedTuple):
    """The fixed part of a picture, checked."""

    mode: str
    width: int
    height: int
    palette_mode: str
    palette_bytes: int
    transparency_kind: int
    transparency_bytes: int
    pixel_bytes: int


def pixel_bytes(mode: str, width: int, height: int) -> int:
    """How many bytes `tobytes()` gives for a mode and size; raises KeyError for an unknown mode."""
    return (MODE_BITS[mode] * width + 7) // 8 * height


def pack_transparency(value: object) -> tuple[int, bytes]:
    """`info["transparency"]` as a kind and bytes: none, one number, bytes, or a tuple of numbers."""
    if isinstance(value, bytes) and len(value) <= 1024:
        return 2, value
    numbers = value if isinstance(value, tuple) else (value,)
    if not 1 <= len(numbers) <= 4 or not all(isinstance(number, int) for number in numbers):
        return 0, b""
    if not all(abs(number) < 2**31 for number in numbers):
        return 0, b""
    return (3 if isinstance(value, tuple) else 1), struct.pack(f"<{len(numbers)}i", *numbers)


def unpack_transparency(kind: int, data: bytes) -> Any:
    """The value that `pack_transparency` packed; raises FrameError."""
    if kind == 2:
        return data
    if kind not in (1, 3) or len(data) not in (4, 8, 12, 16):
        raise FrameError("transparency")
    numbers = struct.unpack(f"<{len(data) // 4}i", data)
    return numbers if kind == 3 else numbers[0]


def is_plausible_transparency(mode: str, value: Any) -> bool:
    """Whether PIL's writers can use such a value with such a mode; a child may have sent any."""
    if isinstance(value, bytes):
        return mode == "P" and len(value) <= 256
    numbers = value if isinstance(value, tuple) else (value,)
    wanted = {"RGB": tuple, "1": int, "L": int, "I": int, "P": int}
    highest = 255 if mode == "P" else 65535
    in_range = all(0 <= number <= highest for number in numbers)
    return (
        isinstance(value, wanted.get(mode, ())) and in_range and len(numbers) == (3 if mode == "RGB" else 1)
    )


def picture_parts(picture: Image.Image) -> tuple[int, Iterator[bytes]]:
    """A picture's length in bytes and its parts, made one by one; raises KeyError for an unknown mode."""
    picture.load()
    width, height = picture.size
    expected = pixel_bytes(picture.mode, width, height)
    palette_mode, palette = "", b""
    if picture.palette is not None and picture.mode in ("P", "PA"):
        palette_mode = picture.im.getpalettemode()
        palette = picture.im.getpalette(palette_mode, palette_mode)
    kind, transparency = pack_transparency(picture.info.get("transparency"))
    header = HEADER.pack(
        picture.mode.encode(),
        width,
        height,
        palette_mode.encode(),
        len(palette),
        kind,
        len(transparency),
        expected,
    )
    first = header + palette + transparency
    return len(first) + expected, itertools.chain([first], pixel_parts(picture))


def pixel_parts(picture: Image.Image) -> Iterator[bytes]:
    """What `tobytes()` gives, some rows at a time.

    One buffer for all pixels would cost a page fault for each of its pages, in the client and in the child.
    """
    encoder = Image._getencoder(picture.mode, "raw", picture.mode)
    encoder.setimage(picture.im, (0, 0, *picture.size))
    status = 0
    while not status:
        _, status, data = encoder.encode(max(CHUNK_BYTES, picture.width * 4))
        yield data
    if status < 0:
        raise FrameError("pixels")


def read_header(data: bytes | bytearray) -> PictureHeader:
    """Check a picture's header against itself; raises FrameError."""
    mode, width, height, palette_mode, palette, kind, transparency, pixels = HEADER.unpack(data)
    name = mode.rstrip(b"\0").decode("ascii", "replace")
    palette_name = palette_mode.rstrip(b"\0").decode("ascii", "replace")
    if name not in MODE_BITS:
        raise FrameError("mode")
    if width < 1 or height < 1 or pixels != pixel_bytes(name, width, height):
        raise FrameError("size")
    if palette and (palette_name not in PALETTE_MODES or palette > 1024 or name not in ("P", "PA")):
        raise FrameError("palette")
    if palette % max(1, len(palette_name)) or transparency > 1024:
        raise FrameError("palette")
    return PictureHeader(name, width, height, palette_name, palette, kind, transparency, pixels)


def read_pixels(read_exactly: ReadExactly, header: PictureHeader) -> Image.Image:
    """Fill a new picture some rows at a time, as `Image.frombytes` would at once; raises FrameError."""
    picture = Image.new(header.mode, (header.width, header.height), None)
    decoder = Image._getdecoder(header.mode, "raw", header.mode)
    decoder.setimage(picture.im, (0, 0, header.width, header.height))
    row_bytes = header.pixel_bytes // header.height
    rows_left = header.height
    while rows_left:
        rows = min(rows_left, max(1, CHUNK_BYTES // row_bytes))
        status = decoder.decode(read_exactly(rows * row_bytes))[1]
        rows_left -= rows
        if status:
            raise FrameError("pixels")
    return picture


def read_picture(read_exactly: ReadExactly, pixels_max: int | None = None) -> Image.Image:
    """Rebuild a picture from its parts, nothing allocated before it is checked; raises FrameError."""
    header = read_header(read_exactly(HEADER.size))
    if pixels_max is not None and header.width * header.height > pixels_max:
        raise FrameError("too many pixels")
    palette = bytes(read_exactly(header.palette_bytes))
    transparency = bytes(read_exactly(header.transparency_bytes))
    picture = read_pixels(read_exactly, header)
    if palette:
        picture.putpalette(palette, header.palette_mode)
        if picture.mode != header.mode:
            raise FrameError("palette")
    if header.transparency_kind:
        value = unpack_transparency(header.transparency_kind, transparency)
        if is_plausible_transparency(header.mode, value):
            picture.info["transparency"] = value
    return picture
