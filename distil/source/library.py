"""Whatever only the `datasets` library can open: files, folders of pictures, the hub, unusual saved folders.

It takes longer to import than all else that a run needs, so this module is imported where it is needed.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import datasets
import pyarrow as pa

from distil.errors import SourceError
from distil.records import DatasetIdentity, Json
from distil.source.reopenable import recipe_path
from distil.source.saved import IMAGE_COLUMN, StoredRows, split_path

_FILE_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
_PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
_METADATA_NAMES = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}
_NAMES_TOLD = 3

Opened = tuple[StoredRows, DatasetIdentity]


def open_dataset(dataset_path: str, tell: Callable[[str], None] | None = None) -> Opened:
    """Open what `distil.source.rows.open_source` is given; raises SourceError."""
    path_text, split = split_path(dataset_path)
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
        AttributeError,  # dataset_info.json that holds something else
        LookupError,  # an empty saved folder
        StopIteration,  # an empty JSONL file
        pa.ArrowException,
        datasets.exceptions.DatasetsError,
    ) as error:
        raise SourceError(f"cannot open the dataset {dataset_path!r}: {_one_line(error)}") from error


def _open_saved(path: Path, split: str | None) -> Opened:
    if not json.loads((path / "state.json").read_text(encoding="utf-8"))["_data_files"]:
        raise SourceError(f"{path} has no rows")  # `datasets` saves such a folder and cannot load it
    table = datasets.load_from_disk(str(path))
    return _opened(table, str(path.resolve()), "saved", split)


def _open_saved_dict(path: Path, split: str | None) -> Opened:
    splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
    chosen = _choose_split(str(path), splits, split)
    return _open_saved(path / chosen, chosen)  # a split is a saved dataset itself: the recipe can open it


def _open_file(path: Path) -> Opened:
    builder = _FILE_BUILDERS.get(path.suffix.lower())
    if builder is None:
        raise SourceError(f"{path}: not a {', '.join(_FILE_BUILDERS)} file, nor a dataset folder")
    table = datasets.load_dataset(builder, data_files=glob.escape(str(path.resolve())), split="train")
    return _opened(table, str(path.resolve()), "file", None)


def _open_folder(path: Path, split: str | None, tell: Callable[[str], None] | None) -> Opened:
    names = [entry.name for entry in path.iterdir()]
    if not any(Path(name).suffix.lower() in _PICTURE_SUFFIXES or (path / name).is_dir() for name in names):
        raise SourceError(
            f"{path} holds no dataset: expected state.json or dataset_dict.json (save_to_disk), or pictures"
        )
    splits = datasets.load_dataset("imagefolder", data_dir=glob.escape(str(path.resolve())))
    chosen = _choose_split(str(path), list(splits), split)
    opened = _opened(splits[chosen], str(path.resolve()), "imagefolder", chosen)
    if tell is not None:
        _tell_left_out(path.resolve(), splits, tell)
    return opened


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


def _open_hub(name: str, split: str | None) -> Opened:
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise SourceError(f"there is no dataset at {name!r}")
    try:
        splits = datasets.get_dataset_split_names(name)
        chosen = _choose_split(name, splits, split)
        return _opened(datasets.load_dataset(name, split=chosen), name, "hub", chosen)
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


def _opened(table: datasets.Dataset, source: str, kind: str, split: str | None) -> Opened:
    if IMAGE_COLUMN not in table.column_names:
        columns = ", ".join(table.column_names)
        raise SourceError(f"{source} has no column {IMAGE_COLUMN!r}; its columns: {columns}")
    if len(table) == 0:
        raise SourceError(f"{source} has no rows")
    saved = Path(source) if kind == "saved" else None
    folder = Path(source).parent if kind == "file" else None
    path = str(recipe_path(table, IMAGE_COLUMN, saved, folder))
    identity = DatasetIdentity(path, source, kind, split, table._fingerprint, len(table))
    return _stored_rows(datasets.load_from_disk(path)), identity  # read where the recipe reads them


def _stored_rows(table: datasets.Dataset) -> StoredRows:
    """The rows as they are stored: nothing is decoded, however nested."""
    files = [str(file["filename"]) for file in table.cache_files]
    return StoredRows(table.data.to_batches(), table.features.to_dict(), files)


def _one_line(error: BaseException) -> str:
    if isinstance(error, StopIteration) or "corresponds to no data" in str(error):
        return "it has no rows"
    if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__  # its own text says only that an error occurred
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]
