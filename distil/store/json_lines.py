"""Files of one JSON object a line that are only added to, with one rule for what a crash leaves.

A line counts where its newline is there and it holds an object. What follows the last newline is what a
crash left of a line: it is not read, and cut off before the next line is added.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from distil.records import Json
from distil.store.atomic import folder_errors, write_all

_BLOCK_BYTES = 4096
_encode = json.JSONEncoder(ensure_ascii=False).encode  # `json.dumps` makes an encoder for each value


def read_lines(path: Path) -> Iterator[tuple[dict[str, Json] | None, int]]:
    """Each line's object, None for a line that does not count, and where it ends in the file, in bytes.

    Raises FolderError for a pipe or a device.
    """
    if not path.exists():
        return
    with folder_errors(path, "read"):
        file = open_regular(path)
    end = 0
    with file:
        for line in file:
            end += len(line)
            yield parse_line(line), end


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read it; raises OSError, for a pipe or a device too: what they give may never end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return path.open("rb")


def line_bytes(value: Json) -> bytes:
    """A value's line; raises ValueError for what JSON or UTF-8 lacks."""
    return _encode(value).encode() + b"\n"


class LineFile:
    """A file of one object a line that many threads add to at once; made at its first line.

    What is written is not synced: a killed process loses none, a machine that goes down perhaps the latest
    lines. No lock is held while it is written, as the kernel puts what is appended in one write behind what
    is there: whoever waits for a file with a lock in hand makes all others wait too.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: FileIO | None = None
        self._later: deque[bytes] = deque()
        self._is_torn = False  # what is there may end with half a line
        self._opening = threading.Lock()

    def append(self, *values: Json) -> None:
        """Add a line for each value, which the kernel has when this returns; raises FolderError."""
        self._write([*self._taken(), *map(line_bytes, values)])

    def append_later(self, *values: Json) -> None:
        """Add a line for each value, with the next that is written."""
        self._later.extend(map(line_bytes, values))

    def flush(self) -> None:
        """Write what is to be written; raises FolderError."""
        lines = self._taken()
        if lines:
            self._write(lines)

    def close(self) -> None:
        """Write what is to be written, and close the file; raises FolderError."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _taken(self) -> list[bytes]:
        """The lines that were to be written later; each is taken by one thread."""
        lines = []
        with suppress(IndexError):
            while True:
                lines.append(self._later.popleft())
        return lines

    def _write(self, lines: Sequence[bytes]) -> None:
        with folder_errors(self._path):
            file = self._file or self._open()
            start = b"\n" if self._is_torn else b""  # ends what does not count, or is an empty line
            try:
                write_all(file.fileno(), start + b"".join(lines))
            except OSError:
                self._is_torn = True
                raise
            if start:
                self._is_torn = False

    def _open(self) -> FileIO:
        """The file, cut off after its last newline."""
        with self._opening:
            if self._file is None:
                file = FileIO(self._path, "a+")
                size = file.seek(0, os.SEEK_END)
                good_bytes = _end_of_last_line(file, size)
                if good_bytes < size:
                    file.truncate(good_bytes)
                self._file = file
            return self._file


def parse_line(line: bytes) -> dict[str, Json] | None:
    """A line's object, None for a line that does not count."""
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _end_of_last_line(file: FileIO, size: int) -> int:
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
