"""A dataset on disk or on the hub → samples, one row at a time.

A row is decoded when its turn comes and nothing of it is kept: memory does not grow with the dataset.
The row number is the identity of a sample: an order or a selection is a list of row numbers.
"""

from __future__ import annotations

import ctypes
import glob
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from PIL import Image

from distil.errors import SampleError, SourceError, error_text
from distil.pictures import decode_stored
from distil.records import DatasetIdentity, Json, Sample, SampleId
from distil.source.json_values import has_labels, to_json, with_label_names
from distil.source.reopenable import is_relative, recipe_path

IMAGE_COLUMN = "image"
_FILE_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
_PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
_METADATA_NAMES = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}
_NAMES_TOLD = 3
_ROWS_BETWEEN_TRIMS = 32
_MADV_DONTNEED = 4  # asm-generic/mman-common.h


class Source:
    """The rows of one dataset; safe to load from many threads."""

    def __init__(self, table: datasets.Dataset, identity: DatasetIdentity) -> None:
        self.identity = identity
        self._mode = table.features[IMAGE_COLUMN].mode
        self._table = table.cast_column(IMAGE_COLUMN, datasets.Image(decode=False))
        self._rows = self._table.with_format("arrow")  # as stored: nothing is decoded, however nested
        self._labels = {name: feature for name, feature in table.features.items() if has_labels(feature)}
        self._trim = MappingTrimmer([file["filename"] for file in table.cache_files])

    def __len__(self) -> int:
        return self.identity.num_rows

    @property
    def columns(self) -> list[str]:
        """The names of the dataset's columns."""
        return list(self._table.column_names)

    def load(self, sample_id: SampleId, decoded: Image.Image | None = None) -> Sample:
        """Read and decode a sample's row; raises SampleError naming what is wrong with it.

        `decoded` is its picture where `datasets` itself has decoded it already.
        """
        return self.read(sample_id)(decoded)

    def read(self, sample_id: SampleId) -> Callable[[Image.Image | None], Sample]:
        """Read a sample's row and its picture file, from wherever it lies; what is returned decodes them.

        Both raise SampleError naming what is wrong with the row.
        """
        index = sample_id.index
        if not 0 <= index < len(self):
            raise SampleError(f"{self.identity.source} has {len(self)} rows and no row {index}")
        name = f"row {index} of {self.identity.source}"
        row = self._row(index)
        with _naming(name):
            file = _picture_bytes(row[IMAGE_COLUMN])
        data = {name: self._value(name, value) for name, value in row.items() if name != IMAGE_COLUMN}
        is_kept = _is_far(row.pop(IMAGE_COLUMN))

        def read_again() -> bytes:
            with _naming(name):
                return _picture_bytes(self._row(index)[IMAGE_COLUMN])

        def decode(decoded: Image.Image | None) -> Sample:
            with _naming(name):
                picture = decode_stored(file, self._mode, decoded, None if is_kept else read_again)
            return Sample(sample_id, name, data, picture)

        return decode

    def _row(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = self._rows[index].to_pylist()[0]
        self._trim.count_row()
        return row

    def select(self, order: str, num_samples: int, seed: int) -> list[int]:
        """Row numbers in an order: `dataset`, `random`, `COLUMN` or `COLUMN:desc`; 0 samples is all.

        A larger `num_samples` keeps the shorter selection as its beginning. Empty values come last.
        """
        rows = range(len(self))
        if order == "random":
            picked: Sequence[int] = sorted(
                rows, key=lambda row: hashlib.sha256(f"{seed}:{row}".encode()).digest()
            )
        elif order == "dataset":
            picked = rows
        else:
            picked = self._sorted_rows(order)
        return list(picked[: num_samples or len(self)])

    def _sorted_rows(self, order: str) -> list[int]:
        column, _, direction = order.partition(":")
        if (
            column not in self._table.column_names
            or column == IMAGE_COLUMN
            or direction not in ("", "asc", "desc")
        ):
            columns = ", ".join(name for name in self._table.column_names if name != IMAGE_COLUMN)
            raise SourceError(
                f"--order {order!r}: use dataset, random, or COLUMN or COLUMN:desc of: {columns}"
            )
        # As stored: in JSON, infinity and decimals are text, which sorts otherwise.
        values = self._rows.data.column(column).to_pylist()
        filled = [row for row, value in enumerate(values) if to_json(value) is not None]
        try:
            filled.sort(key=lambda row: values[row], reverse=direction == "desc")
        except TypeError:
            raise SourceError(f"--order {order!r}: the values of this column cannot be compared") from None
        return filled + [row for row, value in enumerate(values) if to_json(value) is None]

    def _value(self, column: str, value: Any) -> Json:
        labels = self._labels.get(column)
        return to_json(value if labels is None else with_label_names(value, labels))


def open_source(dataset_path: str, tell: Callable[[str], None] | None = None) -> Source:
    """Open a `save_to_disk` folder (`PATH:split` for a DatasetDict), a parquet, JSONL, JSON or CSV file,
    a folder of pictures, or a dataset of the hub (`NAME:split`); raises SourceError.

    `tell` gets a line on what is left out of it.
    """
    path_text, split = _split_path(dataset_path)
    path = Path(path_text).expanduser()
    try:
        if (path / "dataset_dict.json").is_file():
            return _open_saved_dict(path, split)
        if split is not None and (path.is_file() or (path / "state.json").is_file()):
            raise SourceError(f"{path} has no splits: leave out {':' + split!r}")
        if (path / "state.json").is_file():
            return _open_saved(path, None)
        if path.is_file():
            return _open_file(path)
        if path.is_dir():
            return _open_folder(path, split, tell)
        return _open_hub(path_text, split)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        LookupError,  # an empty saved folder
        StopIteration,  # an empty JSONL file
        pa.ArrowException,
        datasets.exceptions.DatasetsError,
    ) as error:
        raise SourceError(f"cannot open the dataset {dataset_path!r}: {_one_line(error)}") from error


def _split_path(dataset_path: str) -> tuple[str, str | None]:
    if Path(dataset_path).exists():
        return dataset_path, None
    path, colon, split = dataset_path.rpartition(":")
    if colon and "/" not in split and "\\" not in split:
        return path, split
    return dataset_path, None


def _open_saved(path: Path, split: str | None) -> Source:
    if not json.loads((path / "state.json").read_text(encoding="utf-8"))["_data_files"]:
        raise SourceError(f"{path} has no rows")  # `datasets` saves such a folder and cannot load it
    table = datasets.load_from_disk(str(path))
    return _source(table, str(path.resolve()), "saved", split)


def _open_saved_dict(path: Path, split: str | None) -> Source:
    splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
    chosen = _choose_split(str(path), splits, split)
    return _open_saved(path / chosen, chosen)  # a split is a saved dataset itself: the recipe can open it


def _open_file(path: Path) -> Source:
    builder = _FILE_BUILDERS.get(path.suffix.lower())
    if builder is None:
        raise SourceError(f"{path}: not a {', '.join(_FILE_BUILDERS)} file, nor a dataset folder")
    table = datasets.load_dataset(builder, data_files=glob.escape(str(path.resolve())), split="train")
    return _source(table, str(path.resolve()), "file", None)


def _open_folder(path: Path, split: str | None, tell: Callable[[str], None] | None) -> Source:
    names = [entry.name for entry in path.iterdir()]
    if not any(Path(name).suffix.lower() in _PICTURE_SUFFIXES or (path / name).is_dir() for name in names):
        raise SourceError(
            f"{path} holds no dataset: expected state.json or dataset_dict.json (save_to_disk), or pictures"
        )
    splits = datasets.load_dataset("imagefolder", data_dir=glob.escape(str(path.resolve())))
    chosen = _choose_split(str(path), list(splits), split)
    source = _source(splits[chosen], str(path.resolve()), "imagefolder", chosen)
    if tell is not None:
        _tell_left_out(path.resolve(), splits, tell)
    return source


def _tell_left_out(folder: Path, splits: Mapping[str, datasets.Dataset], tell: Callable[[str], None]) -> None:
    """Count the pictures in the folder that its metadata does not name: they are in no row."""
    files = [Path(parent) / name for parent, _, names in os.walk(folder) for name in names]
    metadata = sorted({file.name for file in files} & _METADATA_NAMES)
    named = {path for table in splits.values() for path in _picture_paths(table)}
    pictures = [file.relative_to(folder) for file in files if file.suffix.lower() in _PICTURE_SUFFIXES]
    left_out = sorted(
        str(file) for file in pictures if str(folder / file) not in named and not _is_hidden(file)
    )
    if metadata and left_out:
        are = "picture in {} is" if len(left_out) == 1 else "pictures in {} are"
        names = ", ".join(left_out[:_NAMES_TOLD]) + (", …" if len(left_out) > _NAMES_TOLD else "")
        where = " or ".join(metadata)
        tell(f"{len(left_out):,} {are.format(folder)} not named in {where} and left out: {names}")


def _picture_paths(table: datasets.Dataset) -> Iterator[str]:
    """Every path that a picture of any column names."""
    for column in table.data.columns:
        yield from _paths_in(column.to_pylist())


def _paths_in(value: Json) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _paths_in(item)
    elif isinstance(value, dict):
        if isinstance(value.get("path"), str):
            yield value["path"]
        for item in value.values():
            yield from _paths_in(item)


def _is_hidden(file: Path) -> bool:
    """Whether `datasets` passes over the file."""
    return file.name.startswith(".") or any(part.startswith((".", "__")) for part in file.parent.parts)


def _open_hub(name: str, split: str | None) -> Source:
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise SourceError(f"there is no dataset at {name!r}")
    try:
        splits = datasets.get_dataset_split_names(name)
        chosen = _choose_split(name, splits, split)
        return _source(datasets.load_dataset(name, split=chosen), name, "hub", chosen)
    except (OSError, ValueError) as error:
        raise SourceError(
            f"there is no folder or file {name!r}, and the hub has no such dataset or cannot be reached: "
            f"{_one_line(error)}"
        ) from error


def _choose_split(path: str, splits: Sequence[str], wanted: str | None) -> str:
    if wanted is None and len(splits) == 1:
        return splits[0]
    if wanted not in splits:
        raise SourceError(f"{path} has the splits {', '.join(splits)}: choose one as {path}:{splits[0]}")
    return str(wanted)


def _source(table: datasets.Dataset, source: str, kind: str, split: str | None) -> Source:
    if IMAGE_COLUMN not in table.column_names:
        columns = ", ".join(table.column_names)
        raise SourceError(f"{source} has no column {IMAGE_COLUMN!r}; its columns: {columns}")
    if len(table) == 0:
        raise SourceError(f"{source} has no rows")
    saved = Path(source) if kind == "saved" else None
    folder = Path(source).parent if kind == "file" else None
    path = str(recipe_path(table, IMAGE_COLUMN, saved, folder))
    identity = DatasetIdentity(path, source, kind, split, table._fingerprint, len(table))
    return Source(datasets.load_from_disk(path), identity)  # the rows are read where the recipe reads them


def _one_line(error: BaseException) -> str:
    if isinstance(error, StopIteration) or "corresponds to no data" in str(error):
        return "it has no rows"
    if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__  # its own text says only that an error occurred
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Say of which row a SampleError is."""
    try:
        yield
    except SampleError as error:
        raise SampleError(f"{name}: {error}") from None


def _is_far(value: Mapping[str, Json]) -> bool:
    """Whether a picture has to be fetched over a network, which nobody wants to do for it twice."""
    return value.get("bytes") is None and not Path(str(value["path"])).is_absolute()


def _picture_bytes(value: Mapping[str, Json] | None) -> bytes:
    if not value or (value.get("bytes") is None and not value.get("path")):
        raise SampleError(f"column {IMAGE_COLUMN!r} is empty")
    data = value.get("bytes")
    if data is not None:
        return bytes(data)
    path = str(value["path"])
    if is_relative(path):
        raise SampleError(
            f"the picture's path {path!r} is relative, and this kind of dataset has no folder that it could "
            "be relative to: use absolute paths, or store the pictures in the dataset"
        )
    try:
        if Path(path).is_absolute():
            return Path(path).read_bytes()
        with datasets.utils.file_utils.xopen(path, "rb") as file:  # a URL
            return bytes(file.read())
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        raise SampleError(f"the picture file cannot be read: {error_text(error)}") from None


class MappingTrimmer:
    """Gives pages of the dataset's mapped files back to the kernel every few rows.

    Arrow files are mapped into memory, and every page that was ever read counts as the process's own
    until it is let go: 2,000 photos would look like, and be limited as, half a gigabyte. Letting go of a
    read-only file mapping loses nothing: the page is read again when needed. Linux only; elsewhere no-op.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self._files = {str(Path(file).resolve()) for file in files}
        self._rows = 0
        self._lock = threading.Lock()

    def count_row(self) -> None:
        """Count one read row, and trim when it is time."""
        with self._lock:
            self._rows += 1
            due = self._rows % _ROWS_BETWEEN_TRIMS == 0
        if due and self._files:
            self._trim()

    def _trim(self) -> None:
        try:
            maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for line in maps.splitlines():
            fields = line.split(maxsplit=5)  # address range, permissions, offset, device, inode, path
            if len(fields) == 6 and fields[1].startswith("r--") and fields[5] in self._files:
                start, stop = (int(address, 16) for address in fields[0].split("-"))
                madvise(start, stop - start, _MADV_DONTNEED)
