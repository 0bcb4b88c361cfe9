"""`spending.jsonl`: a line as a request is sent and a line as it ends, over all runs into a folder."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from distil.records import Json
from distil.spending.budget import RequestState
from distil.store.atomic import folder_errors

SPENDING = "spending.jsonl"
_STATES = frozenset(RequestState)


class SpendingFile:
    """Reads and adds to the file; its user sees to it that one thread does so at a time."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / SPENDING
        self._descriptor: int | None = None

    def entries(self) -> Iterator[Mapping[str, Json]]:
        """The whole entries; a line that a crash cut off is passed over, as its request has another line."""
        if not self._path.exists():
            return
        with self._path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                    cost_usd = entry.get("cost_usd")
                    is_number = cost_usd is None or type(cost_usd) in (int, float)
                    if type(entry["request"]) is int and entry["state"] in _STATES and is_number:
                        yield entry
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue

    def append(self, entry: Mapping[str, Json]) -> None:
        """Add an entry; raises FolderError.

        It is not synced: a killed process loses none, a machine that goes down perhaps the latest ones.
        """
        line = json.dumps(entry).encode() + b"\n"
        with folder_errors(self._path):
            if self._descriptor is None:
                self._descriptor = _open(self._path)
            if os.write(self._descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _open(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
    size = os.fstat(descriptor).st_size
    if size:
        os.lseek(descriptor, size - 1, os.SEEK_SET)
        if os.read(descriptor, 1) != b"\n":
            os.write(descriptor, b"\n")  # after a line that was cut off
    return descriptor
