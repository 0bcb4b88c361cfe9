"""Small real things for tests: pictures, picture files, datasets on disk."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from hypothesis import settings
from PIL import Image

from distil.commands.flags import TeacherFlags
from distil.teacher.availability import Patience
from distil.teacher.client import TeacherSettings

settings.register_profile("no_deadline", deadline=None)  # a busy machine is no failure
settings.load_profile("no_deadline")

ORIENTATION_TAG = 0x0112


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A picture in which every crop, turn and flip shows."""
    random = np.random.default_rng(seed)
    grey = random.integers(0, 256, (height, width), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(random.integers(0, 65536, (height, width), dtype=np.uint16))
    if mode == "F":
        return Image.fromarray(random.random((height, width), dtype=np.float32))
    if mode in ("LA", "RGBA"):
        picture = noise(width, height, "L" if mode == "LA" else "RGB", seed + 1)
        picture = picture.convert(mode)
        picture.putalpha(Image.fromarray(grey))
        return picture
    if mode == "L":
        return Image.fromarray(grey)
    picture = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return picture if mode == "RGB" else picture.convert(mode)


def smooth(width: int, height: int) -> Image.Image:
    """An RGB gradient: survives JPEG with small errors."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=2).astype(np.uint8))


def file_bytes(picture: Image.Image, file_format: str = "JPEG", **options: Any) -> bytes:
    """The picture as a file of this format."""
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def jpeg_with_orientation(picture: Image.Image, orientation: int) -> bytes:
    """A JPEG whose EXIF says how it is turned."""
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    return file_bytes(picture, "JPEG", exif=exif, quality=95)


def png_header_only(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def same_pixels(a: Image.Image, b: Image.Image) -> bool:
    """Whether two pictures have the same mode, size, palette and pixels."""
    same_palette = a.mode != "P" or a.getpalette() == b.getpalette()
    return (a.mode, a.size) == (b.mode, b.size) and same_palette and a.tobytes() == b.tobytes()


def stored_picture(data: bytes | None, path: str | None = None) -> dict[str, Any]:
    """A cell of a picture column as Arrow keeps it."""
    return {"bytes": data, "path": path}


def row(data: bytes | None = None, **columns: Any) -> dict[str, Any]:
    """A row of a photo dataset; a small JPEG where no file is given."""
    photo = file_bytes(noise(32, 24)) if data is None else data
    return {"image": stored_picture(photo), "lat": 48.5, "lon": 2.25, **columns}


def dataset_of(
    rows: Sequence[Mapping[str, Any]], features: Mapping[str, Any] | None = None
) -> datasets.Dataset:
    """A dataset of these rows; `features` are the columns beside (or instead of) image, lat and lon."""
    columns = {
        "image": datasets.Image(),
        "lat": datasets.Value("float64"),
        "lon": datasets.Value("float64"),
        **(features or {}),
    }
    used = {name: feature for name, feature in columns.items() if not rows or name in rows[0]}
    cells = {name: [one[name] for one in rows] for name in used}
    return datasets.Dataset.from_dict(cells, features=datasets.Features(used))


def saved(folder: Path, rows: Sequence[Mapping[str, Any]], features: Mapping[str, Any] | None = None) -> Path:
    """The rows as a `save_to_disk` folder."""
    dataset_of(rows, features).save_to_disk(str(folder))
    return folder


def teacher_settings(
    api_base: str, api_key: str = "EMPTY", model: str = "", **changes: Any
) -> TeacherSettings:
    """How a run without flags asks, but for the changes, those of its patience among them."""
    flags = TeacherFlags()
    names = {item.name for item in fields(Patience)}
    settings = {
        "temperature": flags.temperature,
        "max_tokens": flags.max_tokens,
        "patience": patience(**{name: changes.pop(name) for name in names & changes.keys()}),
    }
    return TeacherSettings(api_base, api_key, model, **(settings | changes))


def patience(**changes: Any) -> Patience:
    """How long a run without flags waits, but for the changes."""
    flags = TeacherFlags()
    of_flags = {
        "timeout_seconds": flags.request_timeout_seconds,
        "turn_timeout_seconds": flags.turn_timeout_seconds,
        "max_outage_seconds": flags.max_outage_seconds,
    }
    return Patience(**(of_flags | changes))
