"""Which column of a table holds the picture of each row, where none is called `image`."""

from __future__ import annotations

import re

import datasets
import pyarrow as pa

from distil.errors import SourceError
from distil.source.picture_paths import TEXT_TYPES
from distil.source.reopenable import holds_pictures, is_list_of_pictures
from distil.source.saved import IMAGE_COLUMN

# Lower case, letters alone. A name of the second kind is believed of a column of text only.
_PICTURES = re.compile(r"(the)?(image|img|photo|photograph|picture|pic|jpg|jpeg|png|webp)(bytes|base64|b64)?")
_PATHS = re.compile(r"(image|img|photo|picture|pic)?(path|file|filename|filepath|dataurl|datauri)")


def choose_image_column(table: datasets.Dataset, source: str, asked: str | None) -> str:
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
