"""`spending.jsonl`: a line as a request is sent and a line as it ends, over all runs into a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from distil.records import Json
from distil.spending.budget import RequestState
from distil.store.atomic import folder_errors
from distil.store.json_lines import add_lines, open_to_add, read_lines

SPENDING = "spending.jsonl"
_STATES = frozenset(RequestState)


class SpendingFile:
    """Reads and adds to the file; its user sees to it that one thread does so at a time."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / SPENDING
        self._file: IO[bytes] | None = None

    def entries(self) -> Iterator[Mapping[str, Json]]:
        """The whole entries; a line that a crash cut off is passed over, as its request has another line."""
        return (entry for entry, _ in read_lines(self._path) if entry is not None and _is_entry(entry))

    def append(self, entry: Mapping[str, Json]) -> None:
        """Add an entry; raises FolderError.

        It is not synced: a killed process loses none, a machine that goes down perhaps the latest ones.
        """
        with folder_errors(self._path):
            if self._file is None:
                self._file = open_to_add(self._path)
            add_lines(self._file, dict(entry))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _is_entry(entry: Mapping[str, Json]) -> bool:
    state, cost_usd = entry.get("state"), entry.get("cost_usd")
    is_number = cost_usd is None or type(cost_usd) in (int, float)
    return type(entry.get("request")) is int and isinstance(state, str) and state in _STATES and is_number
