"""The pictures of a dataset that are named by a path instead of being stored in it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from distil.errors import SourceError

TEXT_TYPES = (pa.null(), pa.string(), pa.large_string(), pa.string_view())
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_relative(path: str) -> bool:
    """Whether the picture that a path names depends on the current folder; a URL does not."""
    return not os.path.isabs(path) and _URL.match(path) is None  # noqa: PTH117 - called for every row


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
            yield from (path for path in chunk.to_pylist() if path)
        elif pa.types.is_struct(chunk.type) and chunk.type.get_field_index("path") >= 0:
            has_bytes = chunk.type.get_field_index("bytes") >= 0
            bare = chunk.filter(chunk.field("bytes").is_null()) if has_bytes else chunk
            yield from (path for path in bare.field("path").to_pylist() if path)


def _holds_all_bytes(pictures: pa.ChunkedArray) -> bool:
    """Whether no row is without its bytes: the files say so, nothing of a picture is read."""
    if not pa.types.is_struct(pictures.type) or pictures.type.get_field_index("bytes") < 0:
        return False
    return bool(pictures.flatten()[pictures.type.get_field_index("bytes")].null_count == 0)
