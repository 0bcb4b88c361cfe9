"""A folder that `datasets.load_from_disk` opens, for datasets that were never saved that way.

The restore recipe starts from `load_from_disk(trace['dataset_path'])`. For a parquet or JSONL file, a folder
of pictures or a hub dataset, `datasets` keeps Arrow files in its own cache: the view is two small files that
point at them, nothing is copied. Only a column of bare bytes or file names, which `load_from_disk` would not
decode, is written anew as pictures: bytes as they are, file names as absolute paths.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import datasets
import pyarrow as pa


def saved_view(table: datasets.Dataset, image_column: str, folder: Path | None) -> Path:
    """The view of a table, made once per fingerprint in the cache of `datasets`.

    `folder` is what bare file names in the image column are relative to. Raises OSError where the cache
    cannot be written.
    """
    views: Path = Path(datasets.config.HF_DATASETS_CACHE) / "distil"
    view = views / str(table._fingerprint)
    if not (view / "state.json").is_file():
        views.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=views, prefix=".view-") as temporary:
            made = Path(temporary) / "view"
            _write(table, image_column, folder, made)
            _rename(made, view)
    return view


def _write(table: datasets.Dataset, image_column: str, folder: Path | None, view: Path) -> None:
    view.mkdir()
    kind = table.features[image_column]
    if isinstance(kind, datasets.Image) and table.cache_files and table._indices is None:
        files = [str(file["filename"]) for file in table.cache_files]
    else:
        if isinstance(kind, datasets.Value) and pa.types.is_string(kind.pa_type) and folder is not None:
            table = _with_absolute_paths(table, image_column, folder)
        table = table.cast_column(image_column, datasets.Image())
        files = [_write_rows(table, view)]
    _write_pointers(table, files, view)


def _write_rows(table: datasets.Dataset, view: Path) -> str:
    """Write the rows as they are; `save_to_disk` would read every picture that a path names into them."""
    name = "rows.arrow"
    with pa.OSFile(str(view / name), "wb") as file, pa.ipc.new_stream(file, table.data.schema) as writer:
        for batch in table.data.to_batches():
            writer.write_batch(batch)
    return name


def _write_pointers(table: datasets.Dataset, files: list[str], view: Path) -> None:
    """The two files that `save_to_disk` writes beside its Arrow files."""
    table.info.write_to_directory(str(view))
    state = {
        "_data_files": [{"filename": file} for file in files],
        "_fingerprint": table._fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None if table.split is None else str(table.split),
    }
    (view / "state.json").write_text(json.dumps(state), encoding="utf-8")


def _with_absolute_paths(table: datasets.Dataset, column: str, folder: Path) -> datasets.Dataset:
    names = [name if name is None or "://" in name else str(folder / name) for name in table[column]]
    return table.remove_columns(column).add_column(column, names, feature=datasets.Value("string"))


def _rename(made: Path, view: Path) -> None:
    try:
        made.rename(view)
    except OSError:
        if not (view / "state.json").is_file():  # else another process was faster
            shutil.rmtree(view, ignore_errors=True)
            made.rename(view)
