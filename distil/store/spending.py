"""What was spent in a run's folder, a line a request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from distil.records import Json
from distil.spending.budget import RequestState
from distil.store.json_lines import LineFile, read_lines

SPENDING = "spending.jsonl"
_STATES = frozenset(RequestState)
_MAX_COST_USD = 1e12  # of a request: what says more, or no number, is no entry of ours


class SpendingFile(LineFile):
    """A line as a request is sent and a line as it ends, over all runs into a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / SPENDING)

    def record(self, entry: Mapping[str, Json]) -> None:
        """Add an entry; raises FolderError.

        The kernel has that of a request that leaves when this returns, so that a killed process loses none.
        That of an answered one goes with its turn into the journal, or with another entry before.
        """
        if entry["state"] == RequestState.ANSWERED:
            self.append_later(entry)
        else:
            self.append(entry)

    def entries(self) -> Iterator[Mapping[str, Json]]:
        """The whole entries; a line that a crash cut off is passed over, as its request has another line."""
        return (entry for entry, _ in read_lines(self._path) if entry is not None and _is_entry(entry))


def _is_entry(entry: Mapping[str, Json]) -> bool:
    state, cost_usd = entry.get("state"), entry.get("cost_usd")
    is_number = cost_usd is None or (type(cost_usd) in (int, float) and abs(cost_usd) < _MAX_COST_USD)
    return type(entry.get("request")) is int and isinstance(state, str) and state in _STATES and is_number
