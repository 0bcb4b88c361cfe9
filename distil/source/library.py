"""Whatever only the `datasets` library can open: files, folders of pictures, the hub, unusual saved folders.

It takes longer to import than all else that a run needs, so this module is imported where it is needed.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa

from distil.errors import SourceError
from distil.records import DatasetIdentity, Json
from distil.source.picture_paths import TEXT_TYPES
from distil.source.reopenable import (
    check_cache,
    holds_pictures,
    is_list_of_pictures,
    no_room,
    recipe_path,
)
from distil.source.saved import HUB, IMAGE_COLUMN, StoredRows, split_path

_BRACES = re.compile(r"\{(?:(?P<first>\d+)\.\.(?P<last>\d+)|(?P<choices>[^{}]*,[^{}]*))\}")
_MAX_SHARDS = 100_000
_FILE_BUILDERS: Mapping[str, tuple[str, Mapping[str, Json]]] = {
    ".parquet": ("parquet", {}),
    ".jsonl": ("json", {}),
    ".ndjson": ("json", {}),
    ".json": ("json", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".tar": ("webdataset", {}),
}
_LOADERS_OWN = {"webdataset": ("__url__",)}  # columns that name the place of a file
_PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
_METADATA_NAMES = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}
_DESCRIPTIONS = {"dataset_infos.json", "dataset_info.json", "config.json"}  # of a dataset, no rows of one
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_NAMES_TOLD = 3
# Lower case, letters alone. A name of the second kind is believed of a column of text only.
_PICTURES = re.compile(r"(the)?(image|img|photo|photograph|picture|pic|jpg|jpeg|png|webp)(bytes|base64|b64)?")
_PATHS = re.compile(r"(image|img|photo|picture|pic)?(path|file|filename|filepath|dataurl|datauri)")

# Else the name of the loader is sent to a server that counts, whatever lies on this disk is opened with it.
datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False

Opened = tuple[StoredRows, DatasetIdentity]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class _Found:
    """A table, and where it was found; `folder` is what relative paths in it begin at.

    `left_out` are columns that the loader made of the place, not of the dataset.
    """

    table: datasets.Dataset
    source: str
    kind: str
    split: str | None = None
    folder: Path | None = None
    left_out: tuple[str, ...] = ()


def open_dataset(dataset_path: str, tell: Tell | None = None, image_column: str | None = None) -> Opened:
    """Open what `distil.source.rows.open_source` is given; raises SourceError."""
    tell = tell or (lambda _: None)
    try:
        return _opened(_find(dataset_path, tell), image_column, tell)
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
        text = f"cannot open the dataset {dataset_path!r}: {_one_line(error)}"
        raise no_room(error) or SourceError(text) from error


def _find(dataset_path: str, tell: Tell) -> _Found:
    path_text, split = split_path(dataset_path)
    if path_text.startswith(HUB):
        return _open_hub(path_text, split, tell)
    path = Path(path_text).expanduser()
    if (path / "dataset_dict.json").is_file():
        return _open_saved_dict(path, split)
    files = [path] if path.is_file() else _globbed(path)
    if split is not None and (files or (path / "state.json").is_file()):
        raise SourceError(f"{path} has no splits: leave out {':' + split!r}")
    if (path / "state.json").is_file():
        return _open_saved(path, None)
    if files:
        return _open_files(path, files)
    if path.is_dir():
        return _open_folder(_snapshot(path), split, tell)
    raise SourceError(f"there is no folder or file {path_text!r}{_advice(path_text)}")


def _advice(path_text: str) -> str:
    """What is said of the hub where a path may have been meant as a name there."""
    if path_text.startswith((".", "/", "~")) or path_text.count("/") > 1:
        return ""
    return f"; for a dataset of the Hugging Face hub say {HUB}{path_text}"


def _open_saved(path: Path, split: str | None) -> _Found:
    if not json.loads((path / "state.json").read_text(encoding="utf-8"))["_data_files"]:
        raise SourceError(f"{path} has no rows")  # `datasets` saves such a folder and cannot load it
    return _Found(datasets.load_from_disk(str(path)), str(path.resolve()), "saved", split)


def _open_saved_dict(path: Path, split: str | None) -> _Found:
    splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
    chosen = _choose_split(str(path), splits, split)
    return _open_saved(path / chosen, chosen)  # a split is a saved dataset itself: the recipe can open it


def _globbed(pattern: Path) -> list[Path]:
    """The files that a pattern with `*`, `?`, `[…]`, `{a,b}` or `{000..010}` names, in the names' order.

    Raises SourceError where a file that braces name is not there: of shards none may be left out unsaid.
    """
    if pattern.exists():
        return []
    found: set[Path] = set()
    named = _without_braces(str(pattern))
    for name in named:
        if glob.has_magic(name):
            paths = glob.glob(name, recursive=True)  # noqa: PTH207 - it may begin anywhere
            found |= {Path(path) for path in paths if Path(path).is_file()}
        elif Path(name).is_file():
            found.add(Path(name))
        elif len(named) > 1:
            raise SourceError(f"there is no file {name!r}, which {str(pattern)!r} names")
    return sorted(found)


def _without_braces(pattern: str) -> list[str]:
    """What a pattern with braces stands for, as in a shell and in webdataset; another pattern itself."""
    braces = _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    if braces["first"] is None:
        choices = braces["choices"].split(",")
    else:
        first, last, width = int(braces["first"]), int(braces["last"]), len(braces["first"])
        if abs(last - first) >= _MAX_SHARDS:
            raise SourceError(f"{braces[0]} in {pattern!r} names more than {_MAX_SHARDS:,} files")
        step = 1 if first <= last else -1
        choices = [f"{number:0{width}d}" for number in range(first, last + step, step)]
    before, after = pattern[: braces.start()], _without_braces(pattern[braces.end() :])
    return [f"{before}{choice}{rest}" for choice in choices for rest in after]


def _open_files(path: Path, files: Sequence[Path]) -> _Found:
    """One file, or all that a pattern names: they are one table."""
    suffixes = {file.suffix.lower() for file in files}
    builders = [_FILE_BUILDERS[suffix] for suffix in suffixes if suffix in _FILE_BUILDERS]
    if len(suffixes) > 1 or not builders:
        kinds = ", ".join(_FILE_BUILDERS)
        raise SourceError(f"{path}: not a {kinds} file or several of one kind, nor a dataset folder")
    builder, options = builders[0]
    check_cache()
    names = [glob.escape(str(file.resolve())) for file in files]
    table = datasets.load_dataset(builder, data_files=names, split="train", **options)
    source = path.resolve() if path.is_file() else path.absolute()
    folder = _only_parent(file.resolve() for file in files)
    return _Found(table, str(source), "file", None, folder, _LOADERS_OWN.get(builder, ()))


def _only_parent(files: Iterable[Path]) -> Path | None:
    parents = {file.parent for file in files}
    return parents.pop() if len(parents) == 1 else None


def _snapshot(path: Path) -> Path:
    """What the hub's cache holds of a dataset: the snapshot that `main` names, or the only one."""
    if not (path / "snapshots").is_dir():
        return path
    main = path / "refs" / "main"
    if main.is_file():
        return path / "snapshots" / main.read_text(encoding="utf-8").strip()
    names = sorted(entry.name for entry in (path / "snapshots").iterdir())
    return path / "snapshots" / names[0] if len(names) == 1 else path


def _open_folder(path: Path, split: str | None, tell: Tell) -> _Found:
    files = [Path(parent) / name for parent, _, names in os.walk(path, onerror=_raise) for name in names]
    files = [file for file in files if not _is_hidden(file.relative_to(path))]
    pictures = [file for file in files if file.suffix.lower() in _PICTURE_SUFFIXES]
    tables = [file for file in files if file.suffix.lower() in _FILE_BUILDERS]
    tables = [file for file in tables if file.name not in _METADATA_NAMES | _DESCRIPTIONS]
    if not pictures and tables:
        return _open_tables(path, tables, split)
    if not pictures:
        raise SourceError(
            f"{path} holds no dataset: expected state.json or dataset_dict.json (save_to_disk), pictures, or "
            f"{', '.join(_FILE_BUILDERS)} files"
        )
    check_cache()
    splits = datasets.load_dataset("imagefolder", data_dir=glob.escape(str(path.resolve())))
    chosen = _choose_split(str(path), list(splits), split)
    _tell_left_out(path.resolve(), splits, tell)
    if tables and not {file.name for file in files} & _METADATA_NAMES:
        tell(f"{path} holds a table too, which is not read: for its rows say --dataset_path {tables[0]}")
    return _Found(splits[chosen], str(path.resolve()), "imagefolder", chosen)


def _raise(error: OSError) -> None:
    raise error


def _open_tables(path: Path, tables: Sequence[Path], split: str | None) -> _Found:
    """A folder of tables, such as a snapshot of the hub: splits as its README or the files' names say."""
    check_cache()
    folder = path.resolve()
    suffixes = Counter(table.suffix.lower() for table in tables)
    suffix = max(suffixes, key=lambda suffix: suffixes[suffix])
    builder, options = _FILE_BUILDERS[suffix]
    if glob.has_magic(str(folder)):  # such names no loader of whole folders can take
        names = sorted(
            glob.escape(str(table.absolute())) for table in tables if table.suffix.lower() == suffix
        )
        splits = datasets.load_dataset(builder, data_files=names, **options)
    else:
        splits = datasets.load_dataset(str(folder))
    chosen = _choose_split(str(path), list(splits), split)
    parent = _only_parent(table.absolute() for table in tables if table.suffix.lower() == suffix)
    return _Found(splits[chosen], str(folder), "folder", chosen, parent, _LOADERS_OWN.get(builder, ()))


def _tell_left_out(folder: Path, splits: Mapping[str, datasets.Dataset], tell: Tell) -> None:
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


def _open_hub(path_text: str, split: str | None, tell: Tell) -> _Found:
    name = path_text.removeprefix(HUB).removeprefix("datasets/")
    if _HUB_NAME.fullmatch(name) is None:
        raise SourceError(
            f"{path_text!r} is no name of a dataset of the hub: say {HUB}NAME or {HUB}OWNER/NAME"
        )
    check_cache()
    tell(f"Asking the Hugging Face hub for the dataset {name}")
    try:
        chosen = _choose_split(path_text, datasets.get_dataset_split_names(name), split)
        return _Found(datasets.load_dataset(name, split=chosen), name, "hub", chosen)
    except (OSError, ValueError) as error:
        raise SourceError(
            f"the hub has no dataset {name!r}, or cannot be reached: {_one_line(error)}"
        ) from error


def _choose_split(path: str, splits: Sequence[str], wanted: str | None) -> str:
    if wanted is None and len(splits) == 1:
        return splits[0]
    if wanted not in splits:
        raise SourceError(f"{path} has the splits {', '.join(splits)}: choose one as {path}:{splits[0]}")
    return str(wanted)


def _opened(found: _Found, image_column: str | None, tell: Tell) -> Opened:
    table = found.table
    column = _choose_image_column(table, found.source, image_column)
    if len(table) == 0:
        raise SourceError(f"{found.source} has no rows")
    saved = Path(found.source) if found.kind == "saved" else None
    path = str(recipe_path(table, column, saved, found.folder, tell))
    identity = DatasetIdentity(path, found.source, found.kind, found.split, table._fingerprint, len(table))
    rows = _stored_rows(datasets.load_from_disk(path))  # read where the recipe reads them
    rows.image_column, rows.left_out = column, found.left_out
    return rows, identity


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


# --- which column holds the picture of each row


def _choose_image_column(table: datasets.Dataset, source: str, asked: str | None) -> str:
    """The column that was asked for, `image`, or the only one that is one by name and type.

    Raises SourceError where there is none, or several that may be meant.
    """
    names = table.column_names
    if asked is not None and asked not in names:
        raise SourceError(f"--image_column {asked!r}: {source} has the columns {', '.join(names)}")
    if asked is not None or IMAGE_COLUMN in names:
        return asked or IMAGE_COLUMN
    fitting = _fitting(table)
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise SourceError(
            f"{source} has no column {IMAGE_COLUMN!r}, and several that may be meant: {', '.join(fitting)}; "
            "name one by --image_column"
        )
    lists = [name for name in names if is_list_of_pictures(_type(table, name))]
    note = f"; {lists[0]!r} holds a list of pictures, and one picture a row is needed" if lists else ""
    raise SourceError(
        f"{source} has no column {IMAGE_COLUMN!r}, name it by --image_column; its columns: "
        f"{', '.join(names)}{note}"
    )


def _fitting(table: datasets.Dataset) -> list[str]:
    """The columns that may hold the picture: those of the first rule that fits any."""
    names = [name for name in table.column_names if holds_pictures(_type(table, name))]
    images = [name for name in names if isinstance(table.features[name], datasets.Image)]
    called = [name for name in names if _PICTURES.fullmatch(_letters(name))]
    paths = [name for name in names if _PATHS.fullmatch(_letters(name)) and _type(table, name) in TEXT_TYPES]
    rules = (
        [name for name in images if name in called],
        called,
        images + paths,  # an image that is not called so may be a mask of the picture that a path names
    )
    return next((fitting for fitting in rules if fitting), [])


def _type(table: datasets.Dataset, name: str) -> pa.DataType:
    return table.data.schema.field(name).type


def _letters(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())
