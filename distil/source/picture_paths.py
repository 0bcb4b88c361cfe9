"""The pictures of a dataset that are named by a path instead of being stored in it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

import pyarrow as pa

from distil.errors import SourceError

TEXT_TYPES = (pa.null(), pa.string(), pa.large_string(), pa.string_view())
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_relative(path: str) -> bool:
    """Whether the picture that a path names depends on the current folder; a URL does not."""
    return not os.path.isabs(path) and _URL.match(path) is None  # noqa: PTH117 - called for every row


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
        yield from (path for path in pictures.to_pylist() if path)
    elif pa.types.is_struct(pictures.type) and pictures.type.get_field_index("path") >= 0:
        bare = _without_bytes(pictures) if pictures.type.get_field_index("bytes") >= 0 else pictures
        yield from (path for path in bare.field("path").to_pylist() if path)


def _without_bytes(pictures: pa.Array) -> pa.Array:
    data = pictures.field("bytes")
    if data.null_count == 0:  # told by the file: nothing of a picture is read
        return pictures.slice(0, 0)
    return pictures.filter(data.is_null())
