"""The restore recipe of the README, run as it is written, on the dataset that a trace names.

`datasets.load_from_disk(trace['dataset_path'])[trace['sample_index']]['image']`, then every call's
arguments or code. Code runs in the sandbox instead of by `exec`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import datasets
import pyarrow as pa
from PIL import Image

from distil.errors import error_text
from distil.pictures import picture_facts
from distil.records import ToolCall
from distil.source.rows import page_trimmer
from distil.source.saved import IMAGE_COLUMN
from distil.store.trace_file import StoredTrace
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


Saved = tuple[Any, Callable[[], None]]  # what load_from_disk gives, and what counts rows that are read


def open_saved(path: str) -> Saved | str:
    """A dataset as the recipe opens it, or why it cannot be opened."""
    try:
        table = datasets.load_from_disk(path)
        files = [str(file["filename"]) for file in table.cache_files]
    except FAILURES as error:
        return f"datasets.load_from_disk({path!r}) fails: {_one_line(error)}"
    return table, page_trimmer(files)


def first_picture(saved: Saved, path: str, index: int) -> Image.Image | str:
    """The recipe's first picture, of a row of the dataset that was opened at `path`, or why there is none."""
    table, count_row = saved
    count_row()
    try:
        picture = table[index][IMAGE_COLUMN]
    except FAILURES as error:
        return f"row {index} of {path} cannot be read: {_one_line(error)}"
    if isinstance(picture, Image.Image):
        return picture
    kind = type(picture).__name__
    return f"the column {IMAGE_COLUMN!r} of row {index} of {path} is no picture but {kind}"


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error_text(error)}".split())[:300]


def recipe_problem(trace: StoredTrace, picture: Image.Image, executor: Executor | None) -> str | None:
    """Where the recipe fails from its first picture on, and why; None where it gives the stored last one.

    Calls that failed are skipped; nothing is promised, or applied, where `recipe_restores` is false.
    """
    if not trace.json["metadata"]["recipe_restores"]:
        return None
    facts = trace.facts
    for number, call in enumerate(trace.calls, start=1):
        if not call.observation.success:
            continue
        facts = call.observation.facts or facts
        try:
            picture = _next_picture(call, picture, executor)
        except FAILURES as error:
            return f"call {number} ({call.raw.name}): {_one_line(error)}"
    if facts != trace.facts and picture_facts(picture) != facts:
        return "its last picture is another than the trace says"
    return None


def _next_picture(call: ToolCall, image: Image.Image, executor: Executor | None) -> Image.Image:
    tool = find_tool(call.raw.name, executor)
    return image if tool is None else tool.recipe(call.arguments, image)
