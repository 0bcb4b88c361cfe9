"""The pictures of a dataset that are named by a path or written as text, not stored as bytes."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Iterator
from urllib.parse import unquote_to_bytes

import pyarrow as pa

from distil.errors import SourceError

TEXT_TYPES = (pa.null(), pa.string(), pa.large_string(), pa.string_view())
_TEXTS_AT_ONCE = 1000
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# How the files of JPEG, PNG, GIF, WebP, BMP and TIFF begin in base64, which has no point.
_BASE64 = re.compile(r"\s*(?:/9j/|_9j_|iVBORw0KGgo|R0lGOD|UklGR|Qk|SUkq|TU0A)[A-Za-z0-9+/_\-\s]{60}")
_STANDARD_BASE64 = bytes.maketrans(b"-_", b"+/")
_DATA_URL = re.compile(r"\s*data:[^,]{0,200},", re.IGNORECASE)


def is_relative(path: str) -> bool:
    """Whether the picture that a path names depends on the current folder; a URL does not."""
    return not os.path.isabs(path) and _URL.match(path) is None  # noqa: PTH117 - called for every row


def picture_in(text: str) -> bytes | None:
    """The file that a text holds as a data URL or in base64, whatever it is worth; None for a path."""
    if not _is_picture(text):
        return None
    url = _DATA_URL.match(text)
    body = "".join((text if url is None else text[url.end() :]).split())
    plain = unquote_to_bytes(body).translate(_STANDARD_BASE64)
    if url is not None and "base64" not in url[0].lower():
        return unquote_to_bytes(text[url.end() :])
    try:
        return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except ValueError:
        return b""


def _is_picture(text: str) -> bool:
    """Whether a text holds a picture itself, by how it begins."""
    return _DATA_URL.match(text) is not None or (_BASE64.match(text) is not None and "." not in text)


def check_paths(pictures: Iterable[pa.Array], column: str) -> None:
    """Raise SourceError where all pictures of a dataset without a folder are named by relative paths."""
    example = None
    for chunk in pictures:
        relative = [path for path in bare_paths(chunk) if is_relative(path)]
        if len(relative) < len(chunk):
            return  # as a rule the first chunk ends it
        example = example or next(iter(relative), None)
    if example is not None:
        raise SourceError(
            f"column {column!r} holds relative paths such as {example!r}, and this kind of dataset "
            "has no folder that they could be relative to: use absolute paths, or store the pictures in it"
        )


def bare_paths(pictures: pa.Array) -> Iterator[str]:
    """The paths of the pictures whose bytes are not in the table."""
    if pictures.type in TEXT_TYPES:
        for start in range(0, len(pictures), _TEXTS_AT_ONCE):  # they may be whole pictures
            texts = pictures.slice(start, _TEXTS_AT_ONCE).to_pylist()
            yield from (text for text in texts if text and not _is_picture(text))
    elif pa.types.is_struct(pictures.type) and pictures.type.get_field_index("path") >= 0:
        bare = _without_bytes(pictures) if pictures.type.get_field_index("bytes") >= 0 else pictures
        yield from (path for path in bare.field("path").to_pylist() if path)


def _without_bytes(pictures: pa.Array) -> pa.Array:
    data = pictures.field("bytes")
    if data.null_count == 0:  # told by the file: nothing of a picture is read
        return pictures.slice(0, 0)
    return pictures.filter(data.is_null())
