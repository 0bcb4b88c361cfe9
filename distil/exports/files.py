"""The files that formats are made of: pictures by their content, lines of JSON, and Parquet in pieces."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from distil.records import Json, SentPicture

PICTURES = "images"
_SUFFIXES = {"image/jpeg": "jpg", "image/png": "png"}
_GROUP_ROWS = 100  # of Parquet: what a reader loads at once, and a writer holds
_GROUP_BYTES = 32 * 2**20


def picture_name(picture: SentPicture) -> str:
    """The path of a picture within an export: the same picture has one file."""
    return f"{PICTURES}/{picture.sha256}.{_SUFFIXES[picture.media_type]}"


def write_picture(folder: Path, picture: SentPicture) -> str:
    """Write a picture where it is not there yet; its path within the folder."""
    name = picture_name(picture)
    path = folder / name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture.data)
    return name


class JsonLines:
    """A file `SPLIT.jsonl` for each split."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, IO[str]] = {}

    def add(self, row: Mapping[str, Json], split: str) -> None:
        """Add a row."""
        if split not in self._files:
            self._files[split] = (self._folder / f"{split}.jsonl").open("w", encoding="utf-8", newline="\n")
        self._files[split].write(json.dumps(row, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Write what is left."""
        for file in self._files.values():
            file.close()


class Tables:
    """A file of Parquet for each split, which `datasets` loads with these features."""

    def __init__(self, folder: Path, features: Mapping[str, Any], file: str) -> None:
        self._folder, self._file = folder, file
        self._schema = datasets.Features(dict(features)).arrow_schema
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._waiting: dict[str, list[Mapping[str, Json]]] = {}
        self._waiting_bytes: dict[str, int] = {}

    def add(self, row: Mapping[str, Json], split: str) -> None:
        """Add a row."""
        self._waiting.setdefault(split, []).append(row)
        self._waiting_bytes[split] = self._waiting_bytes.get(split, 0) + _num_bytes(row)
        if len(self._waiting[split]) >= _GROUP_ROWS or self._waiting_bytes[split] >= _GROUP_BYTES:
            self._write(split)

    def close(self) -> None:
        """Write what is left."""
        for split in self._waiting:
            self._write(split)
        for writer in self._writers.values():
            writer.close()

    def _write(self, split: str) -> None:
        rows, self._waiting[split], self._waiting_bytes[split] = self._waiting[split], [], 0
        if split not in self._writers:
            path = self._folder / self._file.format(split=split)
            path.parent.mkdir(exist_ok=True)
            self._writers[split] = pq.ParquetWriter(path, self._schema, compression="zstd")
        if rows:
            self._writers[split].write_table(pa.Table.from_pylist(rows, schema=self._schema))


def _num_bytes(row: Mapping[str, Json]) -> int:
    """The size of a row's pictures."""
    return sum(len(cell["bytes"]) for cell in row["images"])


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
