"""What the EXIF of a picture file says of its place."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import ExifTags, Image

from distil.errors import SampleError

EXIF = "exif:"  # begins the name of a tag where a column may be named
_NEGATIVE, _POSITIVE = ("S", "W"), ("N", "E")
# What a damaged file can raise in Pillow.
_FAILURES = (OSError, ValueError, LookupError, TypeError, AttributeError, SyntaxError, EOFError, struct.error)


def gps_names(file: bytes) -> Sequence[str]:
    """The tags of the GPS block that are angles, as `exif:NAME`; none where the file cannot be read."""
    tags = _gps_tags(file)
    return [f"{EXIF}{name}" for name in tags if _signed_degrees(tags, name) is not None]


def gps_degrees(file: bytes, column: str) -> float:
    """An angle of the GPS block in decimal degrees, negative in the south and west; raises SampleError."""
    name = column.removeprefix(EXIF)
    degrees = _signed_degrees(_gps_tags(file), name)
    if degrees is None:
        raise SampleError(f"the picture's EXIF has no {name}")
    return degrees


def _signed_degrees(tags: Mapping[str, Any], name: str) -> float | None:
    degrees, hemisphere = _degrees(tags.get(name)), str(tags.get(f"{name}Ref", "")).strip("\0 ").upper()
    if degrees is None or hemisphere not in (*_NEGATIVE, *_POSITIVE):
        return None
    return -degrees if hemisphere in _NEGATIVE else degrees


def _gps_tags(file: bytes) -> Mapping[str, Any]:
    try:
        with Image.open(io.BytesIO(file)) as picture:
            block = picture.getexif().get_ifd(ExifTags.IFD.GPSInfo)
    except (*_FAILURES, Image.DecompressionBombError):
        return {}
    return {ExifTags.GPSTAGS[tag]: value for tag, value in block.items() if tag in ExifTags.GPSTAGS}


def _degrees(value: Any) -> float | None:
    """Degrees, minutes and seconds as one number; None for what is none."""
    try:
        degrees, minutes, seconds = map(float, value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    total = degrees + minutes / 60 + seconds / 3600
    return total if math.isfinite(total) else None
