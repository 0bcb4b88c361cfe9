"""A `save_to_disk` folder, read by pyarrow alone: the rows that `datasets` gives, without its import.

`datasets` brings pandas and fsspec along and takes longer to import than all else that a run needs. So a
folder whose every part is known here, and which `datasets` would give as it is stored, is read without it.
Anything else (another format, features that are cast or not known, a damaged file) is left to `datasets`,
and so is every error message.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import pickle
import re
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa

from distil.records import DatasetIdentity, Json
from distil.source.picture_paths import check_paths

IMAGE_COLUMN = "image"
HUB = "hf://"  # begins the name of a dataset of the hub: nothing else is looked up there
STORED_PICTURE = pa.struct({"bytes": pa.binary(), "path": pa.string()})  # what `datasets.Image` stores
_DTYPES = {  # of `datasets`, where Arrow spells the type otherwise
    "halffloat": "float16",
    "float": "float32",
    "double": "float64",
    "date32[day]": "date32",
    "date64[ms]": "date64",
}
_PLAIN_TYPE = re.compile(
    r"null|bool|u?int(8|16|32|64)|float(16|32|64)|date(32|64)|(large_)?(string|binary)|(string|binary)_view"
    r"|time(32|64)\[(s|ms|us|ns)\]|duration\[(s|ms|us|ns)\]|timestamp\[(s|ms|us|ns)(, tz=[\w/+:-]+)?\]"
    r"|decimal(128|256)\(\d+, \d+\)"
)
# The versions of `datasets`, first and last, that hash and store as is said here.
_KNOWN_VERSIONS = ((4, 0), (5, 2))
_TRANSFORM = "datasets.arrow_dataset.Dataset.set_format"
_MAX_COLUMNS, _MAX_TEXT_BYTES = 200, 255  # beyond these a pickle has other forms
_SPLIT_NAME = re.compile(r"\w+(\.\w+)*")
_BATCHES_BETWEEN_TRIMS = 64
_PLAIN_STATE: Mapping[str, Json] = {  # what a dataset without a format of its own has
    "_format_type": None,
    "_format_kwargs": {},
    "_output_all_columns": False,
}
_INFO_FIELDS: Mapping[str, tuple[type, ...]] = {  # of dataset_info.json beside its features
    **dict.fromkeys(("description", "citation", "homepage", "license"), (str,)),
    **dict.fromkeys(("builder_name", "config_name", "dataset_name"), (str, type(None))),
    **dict.fromkeys(
        ("dataset_size", "download_size", "size_in_bytes", "post_processing_size"), (int, type(None))
    ),
    **dict.fromkeys(("splits", "version", "download_checksums"), (dict, type(None))),
}


class StoredRows:
    """The rows of a dataset as they are stored, in batches; `features` as `Features.to_dict` writes them.

    `files` are those that others have mapped into memory, `mappings` what was mapped here. The picture is in
    the column `image`; `image_column` is its name where the dataset lies, `left_out` are columns that say
    nothing of a row.
    """

    image_column = IMAGE_COLUMN
    left_out: tuple[str, ...] = ()

    def __init__(
        self,
        batches: Sequence[pa.RecordBatch],
        features: Mapping[str, Json],
        files: Sequence[str] = (),
        mappings: Sequence[pa.Buffer] = (),
    ) -> None:
        self.features, self.files, self._mappings = features, files, mappings
        self._batches = batches
        self._ends = array("q", accumulate(batch.num_rows for batch in batches))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def row(self, index: int) -> dict[str, Any]:
        """The values of one row; no other is read, however many there are."""
        number = bisect_right(self._ends, index)
        batch = self._batches[number]
        row: dict[str, Any] = batch.slice(index - self._ends[number] + batch.num_rows, 1).to_pylist()[0]
        return row

    def chunks(self, name: str) -> Iterator[pa.Array]:
        """One column, batch by batch."""
        number = list(self.features).index(name)
        return (batch.column(number) for batch in self._batches)

    def slices(self, names: Sequence[str], num_rows: int) -> Iterator[Sequence[pa.Array]]:
        """Some columns side by side, at most so many rows at a time; no other column is read."""
        places = [list(self.features).index(name) for name in names]
        for number, batch in enumerate(self._batches):
            for start in range(0, batch.num_rows, num_rows):
                yield [batch.column(place).slice(start, num_rows) for place in places]
            if number % _BATCHES_BETWEEN_TRIMS == 0:
                self.trim()

    def kind(self, name: str) -> pa.DataType:
        """The type of a column."""
        return next(self.chunks(name)).type

    def pieces(self, name: str) -> Iterator[Sequence[pa.Array]]:
        """One column, to be copied piece by piece: what lies between in a file does not stay in memory."""
        chunks = list(self.chunks(name))
        for start in range(0, len(chunks), _BATCHES_BETWEEN_TRIMS):
            yield chunks[start : start + _BATCHES_BETWEEN_TRIMS]
            self.trim()

    def trim(self) -> None:
        """Give the pages of the files that were mapped here back to the kernel."""
        for mapping in self._mappings:
            advise(mapping.address, mapping.size, "MADV_DONTNEED")


def read_saved(dataset_path: str) -> tuple[StoredRows, DatasetIdentity] | None:
    """The dataset of a folder that the restore recipe can use as it is; None for one to open by `datasets`.

    So too where it is damaged: `datasets` has the words for that. Raises SourceError where all its pictures
    are named by relative paths.
    """
    try:
        folder, split = _split_folder(*split_path(dataset_path))
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
        if not (_is_local(dataset_path) and _is_local(str(folder)) and _is_plain(state, info)):
            return None
        fingerprint = _loaded_fingerprint(state["_fingerprint"], state["_format_columns"])
        files = [folder / file["filename"] for file in state["_data_files"]]
        rows = _mapped_rows(files, info["features"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, pa.ArrowException):
        return None
    if rows is None or not len(rows) or fingerprint is None:
        return None
    check_paths(rows.chunks(IMAGE_COLUMN), IMAGE_COLUMN)
    path = str(folder)
    return rows, DatasetIdentity(path, path, "saved", split, fingerprint, len(rows))


def split_path(dataset_path: str) -> tuple[str, str | None]:
    """A dataset's path and its split, None where none is named."""
    if Path(dataset_path).exists():
        return dataset_path, None
    path, colon, split = dataset_path.rpartition(":")
    if colon and "/" not in split and "\\" not in split:
        return path, split
    return dataset_path, None


def _split_folder(path: str, split: str | None) -> tuple[Path, str | None]:
    """The folder of a saved dataset or of a split; raises LookupError where the split is to be told about."""
    folder = Path(path).expanduser().resolve()
    if not (folder / "dataset_dict.json").is_file():
        if split is not None:
            raise LookupError(split)
        return folder, None
    splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
    chosen = splits[0] if split is None and len(splits) == 1 else split
    return (folder / splits[splits.index(chosen)]).resolve(), chosen


def _is_local(path: str) -> bool:
    """Whether `datasets` takes the path for one of this machine's files."""
    return "://" not in path and "::" not in path


def _is_plain(state: Mapping[str, Json], info: Mapping[str, Json]) -> bool:
    """Whether `datasets` would read it, and give the picture of each row decoded and nothing else."""
    split, columns, features = state["_split"], state["_format_columns"], info["features"]
    image = features[IMAGE_COLUMN]
    others = {name: feature for name, feature in features.items() if name != IMAGE_COLUMN}
    return (
        all(state[name] == value for name, value in _PLAIN_STATE.items())
        and (columns is None or sorted(columns) == sorted(features))
        and (split is None or _SPLIT_NAME.fullmatch(split) is not None)
        and isinstance(state["_fingerprint"], str)
        and image["_type"] == "Image"
        and image.get("decode", True) is True
        and not _decodes(others)
        and all(isinstance(info[name], kinds) for name, kinds in _INFO_FIELDS.items() if name in info)
    )


def _decodes(feature: Json) -> bool:
    """Whether a feature has pictures in it that are decoded with their row."""
    if isinstance(feature, dict):
        is_picture = feature.get("_type") == "Image" and feature.get("decode", True) is not False
        return is_picture or any(map(_decodes, feature.values()))
    return isinstance(feature, list) and any(map(_decodes, feature))


def _mapped_rows(files: Sequence[Path], features: Mapping[str, Json]) -> StoredRows | None:
    """The rows of Arrow stream files; None where the features are others than the files' types."""
    batches: list[pa.RecordBatch] = []
    mappings = []
    for file in files:
        # The file is closed at once: there may be more than a process may have open. The buffer stays mapped.
        with pa.memory_map(str(file)) as opened:
            mapping = opened.read_buffer()
        mappings.append(mapping)
        reader = pa.ipc.open_stream(pa.BufferReader(mapping))
        if not _is_struct_of(features, list(reader.schema)):
            return None
        batches += _trimmed(reader, mapping)
    return StoredRows(batches, features, mappings=mappings)


def _trimmed(batches: Iterable[pa.RecordBatch], mapping: pa.Buffer) -> Iterator[pa.RecordBatch]:
    """The batches; what was read of their file to find them does not stay in memory."""
    # Else a part of every batch's pictures is read ahead from the disk.
    advise(mapping.address, mapping.size, "MADV_RANDOM")
    for number, batch in enumerate(batches):
        yield batch
        if number % _BATCHES_BETWEEN_TRIMS == 0:
            advise(mapping.address, mapping.size, "MADV_DONTNEED")
    advise(mapping.address, mapping.size, "MADV_DONTNEED")
    advise(mapping.address, mapping.size, "MADV_NORMAL")


def advise(address: int, num_bytes: int, advice: str) -> None:
    """Advise the kernel on a part of a mapped file, on Linux."""
    if sys.platform == "linux":
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        madvise(address, num_bytes, getattr(mmap, advice))


def _is_stored_as(feature: Json, kind: pa.DataType) -> bool:  # noqa: PLR0911 - a line for each kind
    """Whether a feature is known, and an array of this type is what `datasets` stores for it."""
    if not isinstance(feature, dict):
        return False
    match feature:
        case {"_type": "Value", "dtype": str(dtype)} if _has_only(feature, "dtype"):
            spelt = _DTYPES.get(str(kind), str(kind))
            return dtype == spelt and _PLAIN_TYPE.fullmatch(dtype) is not None
        case {"_type": "ClassLabel", "names": list(names)} if _has_only(feature, "names", "num_classes"):
            are_names = all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
            return are_names and feature.get("num_classes", len(names)) == len(names) and kind == pa.int64()
        case {"_type": "Image"} if _has_only(feature, "mode", "decode"):
            return kind == STORED_PICTURE and isinstance(feature.get("mode"), str | None)
        case {"_type": "List" | "Sequence", "feature": inner} if _has_only(feature, "feature", "length"):
            return _is_list_of(inner, feature, kind)
        case {"_type": "LargeList", "feature": inner} if _has_only(feature, "feature"):
            return pa.types.is_large_list(kind) and _is_field_of(inner, kind.value_field)
        case {"_type": _}:
            return False
    return pa.types.is_struct(kind) and _is_struct_of(feature, list(kind))


def _is_list_of(inner: Json, feature: Mapping[str, Json], kind: pa.DataType) -> bool:
    if feature["_type"] == "Sequence" and "_type" not in inner:
        return False  # a list of structs may be kept as a struct of lists
    length = feature.get("length", -1)
    fits = pa.types.is_list(kind) if length == -1 else _is_of_length(kind, length)
    return fits and _is_field_of(inner, kind.value_field)


def _is_of_length(kind: pa.DataType, length: Json) -> bool:
    return bool(pa.types.is_fixed_size_list(kind) and kind.list_size == length)


def _is_struct_of(features: Mapping[str, Json], fields: Sequence[pa.Field]) -> bool:
    """Whether the fields are those of the features, in their order."""
    if [field.name for field in fields] != list(features):
        return False
    return all(_is_field_of(features[field.name], field) for field in fields)


def _is_field_of(feature: Json, field: pa.Field) -> bool:
    return bool(field.nullable) and _is_stored_as(feature, field.type)


def _has_only(feature: Mapping[str, Json], *names: str) -> bool:
    """Whether all else that a feature states is nothing."""
    return all(value is None for name, value in feature.items() if name not in ("_type", *names))


# --- the fingerprint that `datasets.load_from_disk` gives


def _loaded_fingerprint(saved: str, columns: Sequence[str] | None) -> str | None:
    """The fingerprint after loading of a dataset saved with this one; None where only `datasets` can tell.

    Loading sets the dataset's format, and that counts as a change: its fingerprint is hashed anew. Traces and
    run records hold the result, so it must not depend on how a dataset was read. `columns` are those that the
    saved format states.
    """
    texts = [saved, *(columns or ())]
    is_plain = len(texts) <= _MAX_COLUMNS and all(len(text.encode()) <= _MAX_TEXT_BYTES for text in texts)
    if not (saved and is_plain and _is_known(version("datasets"))):
        return None
    try:
        from xxhash import xxh64  # noqa: PLC0415 - `datasets` brings it along
    except ImportError:
        return None
    parts = [("str", _pickled(_pickled_text(saved))), ("str", _pickled(_pickled_text(_TRANSFORM)))]
    if columns is not None:
        parts += [("str", _pickled(_pickled_text("columns"))), ("list", _pickled(_pickled_list(columns)))]
    parts += [("str", _pickled(_pickled_text("format_kwargs"))), ("dict", _pickled(b"}\x94"))]
    hashed = [f"==<class '{kind}'>=={xxh64(data).hexdigest()}" for kind, data in parts]
    return str(xxh64("".join(hashed).encode()).hexdigest())


def _is_known(version_text: str) -> bool:
    match = re.match(r"(\d+)\.(\d+)", version_text)
    first, last = _KNOWN_VERSIONS
    return match is not None and first <= (int(match[1]), int(match[2])) <= last


# --- pickles as `datasets` makes them: no text is remembered, so that one that comes twice is written twice


def _pickled(body: bytes) -> bytes:
    head, body = b"\x80" + bytes([pickle.DEFAULT_PROTOCOL]), body + b"."
    is_framed = len(body) >= 4
    return head + (b"\x95" + len(body).to_bytes(8, "little") if is_framed else b"") + body


def _pickled_text(text: str) -> bytes:
    data = text.encode()
    return b"\x8c" + bytes([len(data)]) + data


def _pickled_list(texts: Sequence[str]) -> bytes:
    items = b"".join(map(_pickled_text, texts))
    if not texts:
        return b"]\x94"
    return b"]\x94" + (items + b"a" if len(texts) == 1 else b"(" + items + b"e")
