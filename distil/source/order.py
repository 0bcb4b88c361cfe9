"""The order in which the rows of a dataset are taken, and the first so many of it.

Of a million rows a run may want ten: numbers are ordered where they lie in Arrow's memory, and no more of an
order is made than is asked for.
"""

from __future__ import annotations

import hashlib
import heapq
from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa

from distil.errors import SourceError
from distil.source.json_values import to_json
from distil.source.saved import IMAGE_COLUMN, StoredRows

_FEW = 8  # so many times fewer than all are picked out, not sorted


def first_rows(
    rows: StoredRows, order: str, num_rows: int, seed: int, among: Sequence[int] | None = None
) -> Sequence[int]:
    """The first `num_rows` row numbers in an order: `dataset`, `random`, `COLUMN` or `COLUMN:desc`.

    Empty values come last; of equal ones the earlier row comes first. `among` are the only rows to choose
    from, in the dataset's order. Raises SourceError.
    """
    numbers = range(len(rows)) if among is None else among
    if order == "dataset":
        return numbers[:num_rows]
    if order == "random":
        return _first(numbers, num_rows, _lots(seed))
    if among is None:
        return _first_by_column(rows, order, num_rows)
    is_among = bytearray(len(rows))
    for row in among:
        is_among[row] = True
    ordered = _first_by_column(rows, order, len(rows))
    return array("q", islice((row for row in ordered if is_among[row]), num_rows))


def _first_by_column(rows: StoredRows, order: str, num_rows: int) -> Sequence[int]:
    name, _, direction = order.partition(":")
    if name not in rows.features or name == IMAGE_COLUMN or direction not in ("", "asc", "desc"):
        columns = ", ".join(name for name in rows.features if name != IMAGE_COLUMN)
        raise SourceError(f"--order {order!r}: use dataset, random, or COLUMN or COLUMN:desc of: {columns}")
    kind, is_descending = rows.kind(name), direction == "desc"
    try:
        if _is_number(kind):
            return _first_of_numbers(rows.pieces(name), num_rows, is_descending)
        values: list[Any] = []
        for chunk in chain.from_iterable(rows.pieces(name)):
            values += chunk.to_pylist()
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return _first_of_texts(values, num_rows, is_descending)
        return _first_of_values(values, num_rows, is_descending)
    except TypeError:
        raise SourceError(f"--order {order!r}: the values of this column cannot be compared") from None


def _lots(seed: int) -> Callable[[int], bytes]:
    """What each row draws: the SHA-256 of `SEED:ROW`."""
    start = hashlib.sha256(f"{seed}:".encode())

    def lot(row: int) -> bytes:
        digest = start.copy()  # a third faster than a new one
        digest.update(b"%d" % row)
        return digest.digest()

    return lot


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind))


def _first_of_numbers(
    pieces: Iterable[Sequence[pa.Array]], num_rows: int, is_descending: bool
) -> Sequence[int]:
    values, is_filled = map(np.concatenate, zip(*map(_numbers, pieces), strict=True))
    filled, empty = np.flatnonzero(is_filled), np.flatnonzero(~is_filled)
    values = values[filled]
    if num_rows * _FEW < len(filled):
        place = len(filled) - num_rows if is_descending else num_rows - 1
        last = np.partition(values, place)[place]
        picked = values >= last if is_descending else values <= last
        values, filled = values[picked], filled[picked]
    if is_descending:  # the last of the reversed: equal values stay in the order of their rows
        places = len(values) - 1 - np.argsort(values[::-1], kind="stable")[::-1]
    else:
        places = np.argsort(values, kind="stable")
    ordered = np.concatenate([filled[places], empty])[:num_rows]
    return array("q", ordered.astype(np.int64).tobytes())


def _numbers(chunks: Sequence[pa.Array]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The values, and which of them are neither null nor NaN; `to_numpy` would import pandas for nulls."""
    piece = pa.concat_arrays(chunks)
    rows = slice(piece.offset, piece.offset + len(piece))
    validity, data = piece.buffers()
    dtype = {"float": "f4", "double": "f8"}.get(str(piece.type), str(piece.type))
    values = np.frombuffer(data, dtype)[rows]
    is_filled = np.equal(values, values)
    if piece.null_count:
        is_filled &= np.unpackbits(np.frombuffer(validity, np.uint8), bitorder="little")[rows].astype(bool)
    return values, is_filled


def _first_of_texts(values: Sequence[str | None], num_rows: int, is_descending: bool) -> Sequence[int]:
    if None not in values:
        return _first(range(len(values)), num_rows, values.__getitem__, is_descending)
    empty = [row for row, value in enumerate(values) if value is None]
    filled = [row for row, value in enumerate(values) if value is not None]
    return [*_first(filled, num_rows, values.__getitem__, is_descending), *empty][:num_rows]


def _first_of_values(values: Sequence[Any], num_rows: int, is_descending: bool) -> Sequence[int]:
    # As stored: in JSON, infinity and decimals are text, which sorts otherwise.
    is_filled = [to_json(value) is not None for value in values]
    filled = [row for row, is_there in enumerate(is_filled) if is_there]
    filled.sort(key=lambda row: values[row], reverse=is_descending)
    return (filled + [row for row, is_there in enumerate(is_filled) if not is_there])[:num_rows]


def _first(
    rows: Sequence[int], num_rows: int, key: Callable[[int], Any], is_descending: bool = False
) -> Sequence[int]:
    if num_rows * _FEW < len(rows):
        return (heapq.nlargest if is_descending else heapq.nsmallest)(num_rows, rows, key)
    return sorted(rows, key=key, reverse=is_descending)[:num_rows]
