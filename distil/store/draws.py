"""`draws.jsonl`: which rows a run has drawn, in their order, so that it is decided once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from distil.errors import UsageError
from distil.records import Json
from distil.store.json_lines import LineFile, read_lines
from distil.store.trace_settings import short_json

DRAWS = "draws.jsonl"


class DrawsFile:
    """The draws of a run's folder; the first line says what they are drawn from."""

    def __init__(self, folder: Path, drawn_from: Mapping[str, Json]) -> None:
        """Read those that there are; raises UsageError where they are drawn from something else."""
        self._path = folder / DRAWS
        lines = [line for line, _ in read_lines(self._path) if line is not None]
        stated = next(
            (line["drawn_from"] for line in lines if isinstance(line.get("drawn_from"), dict)), None
        )
        if stated is not None and stated != drawn_from:
            texts = [
                f"{name}: {short_json(stated.get(name))} then, {short_json(value)} now"
                for name, value in drawn_from.items()
                if stated.get(name) != value
            ]
            raise UsageError(
                f"{self._path} was drawn from other rows ({'; '.join(texts) or 'by another version'}); "
                "choose another --output_dir"
            )
        found = [line["sample_index"] for line in lines if type(line.get("sample_index")) is int]
        self.rows: list[int] = list(dict.fromkeys(found))
        self._file = LineFile(self._path)
        self._first = [] if stated is not None else [{"drawn_from": dict(drawn_from)}]

    def add(self, row: int) -> None:
        """Add a row that is drawn, before it is asked; raises FolderError."""
        self._file.append(*self._first, {"sample_index": row})
        self._first = []

    def close(self) -> None:
        """Close the file."""
        self._file.close()
