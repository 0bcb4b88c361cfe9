"""Files of one JSON object a line that are only added to, with one rule for what a crash leaves.

A line counts where its newline is there and it holds an object. What follows the last newline is what a
crash left of a line: it is not read, and cut off before the next line is added.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import IO

from distil.records import Json

_BLOCK_BYTES = 4096


def read_lines(path: Path) -> Iterator[tuple[dict[str, Json] | None, int]]:
    """Each line's object, None for a line that does not count, and where it ends in the file, in bytes."""
    if not path.exists():
        return
    end = 0
    with path.open("rb") as file:
        for line in file:
            end += len(line)
            yield _object(line), end


def open_to_add(path: Path, good_bytes: int | None = None) -> IO[bytes]:
    """The file, made where there is none, cut off after `good_bytes`, or else after its last newline."""
    file = path.open("a+b", buffering=0)
    size = file.seek(0, os.SEEK_END)
    good_bytes = _end_of_last_line(file, size) if good_bytes is None else good_bytes
    if good_bytes < size:
        file.truncate(good_bytes)
    return file


def add_lines(file: IO[bytes], *values: Json) -> list[int]:
    """Add a line for each value in one write, unsynced; returns where each ends, raises OSError."""
    lines = [json.dumps(value, ensure_ascii=False).encode() + b"\n" for value in values]
    data = b"".join(lines)
    start = file.seek(0, os.SEEK_END)
    if file.write(data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return list(accumulate(map(len, lines), initial=start))[1:]


def _object(line: bytes) -> dict[str, Json] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _end_of_last_line(file: IO[bytes], size: int) -> int:
    """Where the last newline's line ends, searched for from the end, 0 where there is none."""
    end = size
    while end:
        start = max(0, end - _BLOCK_BYTES)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
