"""A folder whose every row the restore recipe can load, whatever the dataset was given as.

The recipe begins with `load_from_disk(trace['dataset_path'])[trace['sample_index']]['image']`, in a process
of its own and in any folder. So it needs a `save_to_disk` folder in its plain format, decoded pictures in the
image column, paths that do not depend on the current folder, and, since it decodes whole rows, no other
column whose decoding may fail. A saved dataset that has all that is used as it is. For any other there is a
view in the cache of `datasets`: two small files that point at the Arrow files there are, with features that
decode the image and nothing else. Only where the image column itself must change (text, bare bytes, relative
paths, another name) are the rows written anew: bytes as they are, file names as absolute paths.
"""

from __future__ import annotations

import errno
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from distil.errors import SourceError
from distil.records import Json
from distil.source.picture_paths import TEXT_TYPES, bare_paths, check_paths, is_relative, picture_in
from distil.source.saved import IMAGE_COLUMN, STORED_PICTURE

_BYTES = (pa.null(), pa.binary(), pa.large_binary(), pa.binary_view())
_ROWS_A_BATCH = 100  # an Arrow batch of pictures must stay below 2 GiB
_TRIES_TO_RENAME = 3
_TOLD_BYTES = 2**28  # a copy of so much takes a while
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def recipe_path(
    table: datasets.Dataset,
    image_column: str,
    saved: Path | None,
    folder: Path | None,
    tell: Callable[[str], None] = lambda _: None,
) -> Path:
    """Where the recipe finds the rows of a table: `saved`, its own folder, or a view of it.

    `saved` is None for a table that `save_to_disk` did not write, `folder` what bare file names in the image
    column are relative to; `tell` gets a line where much is copied. Raises SourceError where the column does
    not hold a picture a row, or where the cache of `datasets` cannot be written.
    """
    _check_type(table.data.schema.field(image_column).type, image_column)
    if folder is None:
        check_paths(table.data.column(image_column).chunks, image_column)
    is_renamed = image_column != IMAGE_COLUMN
    if is_renamed:
        table = _with_image_named(table, image_column)
    features = _recipe_features(table)
    is_plain = table.format["type"] is None and len(table.format["columns"]) == len(table.column_names)
    if saved is not None and is_plain and features == table.features and not is_renamed:
        return saved
    views = Path(datasets.config.HF_DATASETS_CACHE).resolve() / "distil"
    view = views / _view_name(table, saved)
    state = _state(table, features, folder, is_renamed)
    if not _fits(view, state):
        check_cache()
        if state["_distil"]["written"] and table.data.nbytes > _TOLD_BYTES:
            size = f"{table.data.nbytes / 2**30:,.1f} GiB"
            tell(f"Copying {len(table):,} rows, {size}, as the restore recipe needs them, once: {view}")
        _make_view(table, features, folder, view, state)
    return view


def check_cache() -> None:
    """Raise SourceError where the cache of `datasets` cannot be written."""
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError as error:
        raise _unwritable(error) from None


def no_room(error: BaseException | None) -> SourceError | None:
    """What is said where an error, or what it came of, is that the cache takes no more; None for another."""
    while error is not None and not (isinstance(error, OSError) and error.errno in _NO_ROOM):
        error = error.__cause__ or error.__context__
    return None if error is None else _unwritable(error)


def _unwritable(error: OSError) -> SourceError:
    return SourceError(
        f"the cache of datasets, {datasets.config.HF_DATASETS_CACHE}, cannot be written ({error.strerror}): "
        "name a folder that can be by $HF_DATASETS_CACHE"
    )


def _with_image_named(table: datasets.Dataset, column: str) -> datasets.Dataset:
    """The table with this column as `image`; one that had this name is `image_2`, or the next free one."""
    if IMAGE_COLUMN in table.column_names:
        names = (f"{IMAGE_COLUMN}_{number}" for number in count(2))
        table = table.rename_column(IMAGE_COLUMN, next(name for name in names if name not in table.features))
    return table.rename_column(column, IMAGE_COLUMN)


def holds_pictures(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold one picture a row: its file, its path, or both."""
    if pa.types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        return (
            bool({"bytes", "path"} & set(fields))
            and _is_bytes(fields.get("bytes", pa.null()))
            and fields.get("path", pa.null()) in TEXT_TYPES
        )
    return not pa.types.is_null(kind) and (kind in TEXT_TYPES or _is_bytes(kind))


def _check_type(kind: pa.DataType, column: str) -> None:
    if not holds_pictures(kind):
        what = "a list of pictures" if is_list_of_pictures(kind) else str(kind)
        raise SourceError(
            f"column {column!r} holds {what}: one picture a row is needed, as datasets.Image, as the bytes "
            "of its file, as its path, or as a data URL or base64 text; --image_column names another column"
        )


def is_list_of_pictures(kind: pa.DataType) -> bool:
    """Whether a column of this type holds several pictures a row; of texts nobody can tell."""
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(is_such(kind) for is_such in lists):
        return False
    return holds_pictures(kind.value_type) and kind.value_type not in TEXT_TYPES


def _is_bytes(kind: pa.DataType) -> bool:
    return kind in _BYTES or pa.types.is_fixed_size_binary(kind)


def _recipe_features(table: datasets.Dataset) -> datasets.Features:
    features = datasets.Features({name: _undecoded(table.features[name]) for name in table.column_names})
    image = table.features[IMAGE_COLUMN]
    is_image = isinstance(image, datasets.Image)
    features[IMAGE_COLUMN] = replace(image, decode=True) if is_image else datasets.Image()
    return features


def _undecoded(feature: Any) -> Any:
    """The feature with every picture, sound or film in it left as it is stored."""
    if isinstance(feature, Mapping):
        return {name: _undecoded(inner) for name, inner in feature.items()}
    if isinstance(feature, list):
        return [_undecoded(inner) for inner in feature]
    if hasattr(feature, "feature"):  # lists of any kind
        return replace(feature, feature=_undecoded(feature.feature))
    return replace(feature, decode=False) if getattr(feature, "decode", False) is True else feature


def _view_name(table: datasets.Dataset, saved: Path | None) -> str:
    """One for each dataset: the fingerprint of a loaded file tells its path, that of a saved one does not."""
    if saved is None:
        return str(table._fingerprint)
    return hashlib.sha256(f"{table._fingerprint}\n{saved}".encode()).hexdigest()[:16]


def _make_view(
    table: datasets.Dataset,
    features: datasets.Features,
    folder: Path | None,
    view: Path,
    state: Mapping[str, Any],
) -> None:
    """Make the view anew, which is missing or does not fit the table any more."""
    view.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=view.parent, prefix=".view-") as temporary:
        made = Path(temporary) / "view"
        made.mkdir()
        for file in state["_distil"]["written"]:
            _write_rows(table, features, folder, made / file)
        info = table.info.copy()
        info.features = features
        info.write_to_directory(str(made))
        (made / "state.json").write_text(json.dumps(state), encoding="utf-8")
        _rename(made, view, state)


def _state(
    table: datasets.Dataset, features: datasets.Features, folder: Path | None, is_renamed: bool
) -> dict[str, Any]:
    """What `save_to_disk` writes beside its Arrow files, and what a view has to be made anew for."""
    files = [Path(file["filename"]).resolve() for file in table.cache_files]
    is_stored = table.data.schema.field(IMAGE_COLUMN).type == STORED_PICTURE and not is_renamed
    paths = chain.from_iterable(map(bare_paths, table.data.column(IMAGE_COLUMN).chunks))
    changes = folder is not None and any(map(is_relative, paths))
    written = [] if files and is_stored and not changes else ["rows.arrow"]
    return {
        "_data_files": [{"filename": str(file)} for file in written or files],
        "_fingerprint": table._fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None if table.split is None else str(table.split),
        "_distil": {
            "features": features.to_dict(),
            "folder": str(folder) if changes else None,
            "written": written,
            "written_from": [_stamp(file) for file in files] if written else [],
        },
    }


def _stamp(file: Path) -> Json:
    status = file.stat()
    return [str(file), status.st_size, status.st_mtime_ns]


def _fits(view: Path, state: Mapping[str, Any]) -> bool:
    try:
        stored = json.loads((view / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    needed = ["dataset_info.json", *state["_distil"]["written"]]
    return bool(stored == json.loads(json.dumps(state))) and all((view / file).is_file() for file in needed)


def _write_rows(
    table: datasets.Dataset, features: datasets.Features, folder: Path | None, path: Path
) -> None:
    """Write the rows, batch by batch; `save_to_disk` would read every picture that a path names into them."""
    schema = features.arrow_schema
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for batch in table.data.to_batches(max_chunksize=_ROWS_A_BATCH):
            columns = [
                _pictures(batch.column(name), folder) if name == IMAGE_COLUMN else batch.column(name)
                for name in schema.names
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def _pictures(column: pa.Array, folder: Path | None) -> pa.Array:
    return pa.array([_picture(value, folder) for value in column.to_pylist()], type=STORED_PICTURE)


def _picture(value: Any, folder: Path | None) -> dict[str, Any] | None:
    if isinstance(value, str):
        data = picture_in(value)
        if data is not None:
            return {"bytes": data, "path": None}
        return {"bytes": None, "path": _absolute(value, folder)}
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    if value is None or value.get("bytes") is not None:
        return value  # type: ignore[no-any-return]
    return {"bytes": None, "path": _absolute(value.get("path"), folder)}


def _absolute(path: str | None, folder: Path | None) -> str | None:
    return str(folder / path) if folder is not None and path and is_relative(path) else path


def _rename(made: Path, view: Path, state: Mapping[str, Any]) -> None:
    for attempt in range(_TRIES_TO_RENAME):
        try:
            made.rename(view)
            return
        except OSError:
            if _fits(view, state):  # another process was faster
                return
            with suppress(FileNotFoundError):
                view.rename(made.with_name(f"unfit-{attempt}"))
    made.rename(view)
