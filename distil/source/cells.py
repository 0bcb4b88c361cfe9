"""Columns of a dataset on their own: each value a number or a text, no picture read.

A list or an object is its JSON text, as a trace's `sample_data` has it; a class label is its name.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from distil.errors import SourceError
from distil.records import Json
from distil.source.json_values import has_labels, to_json, with_label_names
from distil.source.saved import IMAGE_COLUMN, StoredRows

Cell = str | int | float | None
MAX_TEXT_CHARS = 100_000  # what is longer is cut
_MAX_WHOLE = 2**63  # of a signed number
_Column = tuple[tuple[str, ...], Json, pa.DataType]  # where it lies, and what is in it


class Cells:
    """The columns of a dataset, and the fields of structs as `a.b`, to be read by their names.

    Those whose names differ by case alone cannot be told apart in SQL, and are left out.
    """

    def __init__(self, rows: StoredRows) -> None:
        self._rows = rows
        self._pictures = {IMAGE_COLUMN, rows.image_column}  # as it is called here, and where the dataset lies
        columns: dict[str, _Column] = {}
        for name, feature in rows.features.items():
            if name not in rows.left_out:
                for column in _columns((name,), feature, rows.kind(name)):
                    columns.setdefault(".".join(column[0]), column)
        times = Counter(name.lower() for name in columns)
        self._columns = {name: each for name, each in columns.items() if times[name.lower()] == 1}

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def names(self) -> list[str]:
        """All of them, those that cannot be read too."""
        return [*self._columns, *sorted(self._pictures.difference(self._columns))]

    def affinity(self, name: str) -> str:
        """How SQL compares a column with a number or a text that is written otherwise, as SQLite calls it."""
        _, feature, kind = self._columns[name]
        if has_labels(feature):
            return "TEXT"
        if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            return "INTEGER"
        return "REAL" if pa.types.is_floating(kind) or pa.types.is_decimal(kind) else "TEXT"

    def is_number(self, name: str) -> bool:
        """Whether all values of a column are numbers or flags."""
        return name in self._columns and self.affinity(name) != "TEXT"

    def check(self, names: Iterable[str]) -> None:
        """Raise SourceError for a column that holds pictures or other bytes."""
        for name in names:
            if name in self._pictures or _holds_bytes(self._columns[name][2]):
                raise SourceError(f"the column {name!r} holds pictures or other bytes, which are not read")

    def slices(self, names: Sequence[str], num_rows: int) -> Iterator[tuple[int, Sequence[Sequence[Cell]]]]:
        """How many rows come next, at most so many, and the values of each column; no other is read.

        Raises SourceError for what is no text.
        """
        columns = [self._columns[name] for name in names]
        read = list(dict.fromkeys(path[0] for path, _, _ in columns)) or [next(iter(self._rows.features))]
        for arrays in self._rows.slices(read, num_rows):
            whole = dict(zip(read, arrays, strict=True))
            try:
                cells = [
                    _cells(_inner(whole[path[0]], path[1:]), feature, kind) for path, feature, kind in columns
                ]
            except UnicodeDecodeError as error:
                raise SourceError(f"a text of the dataset is not UTF-8: {error}") from None
            yield len(arrays[0]), cells


def field_names(name: str, feature: Json) -> Iterator[str]:
    """A column's name, and those of the fields within it."""
    yield name
    if _is_struct(feature):
        for field, inner in feature.items():
            yield from field_names(f"{name}.{field}", inner)


def _columns(path: tuple[str, ...], feature: Json, kind: pa.DataType) -> Iterator[_Column]:
    yield path, feature, kind
    if _is_struct(feature) and pa.types.is_struct(kind):
        for field, inner in feature.items():
            yield from _columns((*path, field), inner, kind.field(field).type)


def _is_struct(feature: Json) -> bool:
    return isinstance(feature, Mapping) and not isinstance(feature.get("_type"), str)


def _inner(values: pa.Array, path: Sequence[str]) -> pa.Array:
    """A field of a struct's values; what is null has none."""
    for field in path:
        values = values.flatten()[values.type.get_field_index(field)]
    return values


def _cells(values: pa.Array, feature: Json, kind: pa.DataType) -> Sequence[Cell]:
    """The values of a piece of a column."""
    found = values.to_pylist()
    if pa.types.is_uint64(kind):
        return [float(each) if each is not None and each >= _MAX_WHOLE else each for each in found]
    is_number = pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind)
    if (is_number or pa.types.is_boolean(kind)) and not has_labels(feature):
        return list(found)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return [each if each is None else each[:MAX_TEXT_CHARS] for each in found]
    if has_labels(feature):
        found = [with_label_names(each, feature) for each in found]
    return [_cell(to_json(each)) for each in found]


def _holds_bytes(kind: Any) -> bool:
    is_bytes: Sequence[Callable[[Any], bool]] = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_fixed_size_binary,
        pa.types.is_binary_view,
    )
    if any(is_one(kind) for is_one in is_bytes):
        return True
    return any(_holds_bytes(kind.field(number).type) for number in range(kind.num_fields))


def _cell(value: Json) -> Cell:
    if isinstance(value, str):
        return value[:MAX_TEXT_CHARS]
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)[:MAX_TEXT_CHARS]
    return value if value is None or isinstance(value, int | float) else str(value)
