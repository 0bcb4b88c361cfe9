"""The pictures of a dataset that are named by a path or written as text, not stored as bytes."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator
from pathlib import Path
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


def check_paths(pictures: pa.ChunkedArray, column: str, folder: Path | None) -> None:
    """Raise SourceError where all pictures are named by relative paths and there is no folder for them."""
    relative = [] if folder else [path for path in bare_paths(pictures) if is_relative(path)]
    if relative and len(relative) == len(pictures):
        raise SourceError(
            f"column {column!r} holds relative paths such as {relative[0]!r}, and this kind of dataset "
            "has no folder that they could be relative to: use absolute paths, or store the pictures in it"
        )


def bare_paths(pictures: pa.ChunkedArray) -> Iterator[str]:
    """The paths of the pictures whose bytes are not in the table."""
    if _holds_all_bytes(pictures):
        return
    for chunk in pictures.chunks:
        if chunk.type in TEXT_TYPES:
            for start in range(0, len(chunk), _TEXTS_AT_ONCE):  # they may be whole pictures
                texts = chunk.slice(start, _TEXTS_AT_ONCE).to_pylist()
                yield from (text for text in texts if text and not _is_picture(text))
        elif pa.types.is_struct(chunk.type) and chunk.type.get_field_index("path") >= 0:
            has_bytes = chunk.type.get_field_index("bytes") >= 0
            bare = chunk.filter(chunk.field("bytes").is_null()) if has_bytes else chunk
            yield from (path for path in bare.field("path").to_pylist() if path)


def _holds_all_bytes(pictures: pa.ChunkedArray) -> bool:
    """Whether no row is without its bytes: the files say so, nothing of a picture is read."""
    if not pa.types.is_struct(pictures.type) or pictures.type.get_field_index("bytes") < 0:
        return False
    return bool(pictures.flatten()[pictures.type.get_field_index("bytes")].null_count == 0)
