"""The restore recipe of the README, run as it is written, on the dataset that a trace names.

`datasets.load_from_disk(trace['dataset_path'])[trace['sample_index']]['image']`, then every call's
arguments or code. Code runs in the sandbox instead of by `exec`.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from typing import Any

import datasets
import pyarrow as pa
from PIL import Image

from distil.errors import DistilError, error_text
from distil.pictures import picture_facts
from distil.source.rows import page_trimmer
from distil.source.saved import IMAGE_COLUMN
from distil.store.trace_file import StoredCall, StoredTrace
from distil.tools.python_code import Executor
from distil.tools.toolbox import find_tool

# What opening a folder that is no saved dataset, or decoding a row of one, can raise.
FAILURES = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,  # a row number that no table can have
    RuntimeError,
    EOFError,
    ImportError,  # a column of sound or video without its library
    SyntaxError,  # a broken PNG
    struct.error,  # a broken TIFF
    Image.DecompressionBombError,
    pa.ArrowException,
    datasets.exceptions.DatasetsError,
)


class RecipeError(DistilError):
    """The restore recipe does not give what the trace says; the text says where it fails and why."""


_Opened = tuple[
    Any, Callable[[], None]
]  # whatever load_from_disk gives, and what counts the rows that are read


class SavedDatasets:
    """Datasets by path, each opened once as the recipe opens it; safe to use from many threads."""

    def __init__(self) -> None:
        self._opened: dict[str, _Opened | RecipeError] = {}
        self._lock = threading.Lock()

    def picture(self, path: str, index: int) -> Image.Image:
        """The recipe's first picture; raises RecipeError."""
        opened = self._of(path)
        if isinstance(opened, RecipeError):
            raise opened
        table, count_row = opened
        count_row()
        try:
            picture = table[index][IMAGE_COLUMN]
        except FAILURES as error:
            raise RecipeError(f"row {index} of {path} cannot be read: {_one_line(error)}") from None
        if not isinstance(picture, Image.Image):
            raise RecipeError(
                f"the column {IMAGE_COLUMN!r} of row {index} of {path} is no picture but "
                f"{type(picture).__name__}"
            )
        return picture

    def _of(self, path: str) -> _Opened | RecipeError:
        with self._lock:
            if path not in self._opened:
                self._opened[path] = _open(path)
            return self._opened[path]


def _open(path: str) -> _Opened | RecipeError:
    try:
        table = datasets.load_from_disk(path)
        files = [str(file["filename"]) for file in table.cache_files]
    except FAILURES as error:
        return RecipeError(f"datasets.load_from_disk({path!r}) fails: {_one_line(error)}")
    return table, page_trimmer(files)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error_text(error)}".split())[:300]


def run_recipe(trace: StoredTrace, picture: Image.Image, executor: Executor | None) -> None:
    """Apply the recipe to its first picture; raises RecipeError where its last one is another than stored.

    Calls that failed are skipped; nothing is promised, or applied, where `recipe_restores` is false.
    """
    if not trace.json["metadata"]["recipe_restores"]:
        return
    facts = trace.facts
    for number, call in enumerate(trace.calls, start=1):
        if not call.success:
            continue
        facts = call.facts or facts
        try:
            picture = _next_picture(call, picture, executor)
        except FAILURES as error:
            raise RecipeError(f"call {number} ({call.raw.name}): {_one_line(error)}") from None
    if facts != trace.facts and picture_facts(picture) != facts:
        raise RecipeError("its last picture is another than the trace says")


def _next_picture(call: StoredCall, image: Image.Image, executor: Executor | None) -> Image.Image:
    tool = find_tool(call.raw.name, executor)
    return image if tool is None else tool.recipe(call.arguments, image)
