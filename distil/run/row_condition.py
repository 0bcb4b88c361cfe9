"""`--where_row`: which rows of a dataset are meant, by a condition in SQL over its columns.

It stands here, above both, as the guard of conditions is the index's and the columns are the source's. A
piece of some rows lies in SQLite's memory at a time, so memory grows by the numbers of the rows that are
found alone.
"""

from __future__ import annotations

import sqlite3
import time
from array import array
from contextlib import closing

from distil.errors import SourceError, UsageError
from distil.index.columns import quoted
from distil.index.guard import check_where, limit_values, where_error
from distil.source.cells import Cells

_TABLE = "dataset"
_ROWS_AT_ONCE = 10_000
_MAX_SECONDS = 10.0  # of these rows
_STEPS_BETWEEN_LOOKS = 100_000
_MAX_ROW_BYTES = 64 * 2**20


def rows_that_meet(condition: str, cells: Cells) -> array[int]:
    """The numbers of the rows that meet it, in the dataset's order; one that comes to NULL is not met.

    Raises UsageError where it is no condition over these columns, names one that holds pictures, cannot be
    computed, takes too long, or none meets it.
    """
    try:
        names = sorted(check_where(condition, cells.names, _TABLE, of_one_row=True))
        cells.check(names)
        found = _found(condition, names, cells)
    except (UsageError, SourceError) as error:
        raise UsageError(f"--where_row {condition!r}: {str(error).removeprefix('where: ')}") from None
    if not found:
        raise UsageError(f"--where_row {condition!r}: none of the {len(cells):,} rows meets it")
    return found


def _found(condition: str, names: list[str], cells: Cells) -> array[int]:
    number = "_row"  # a name that no column has; the condition cannot say it, as it was checked
    while number in map(str.lower, names):
        number += "_"
    listed = "".join(f", {quoted(name)} {cells.affinity(name)}" for name in names)
    places = ", ?" * len(names)
    found, first = array("q"), 0
    with closing(sqlite3.connect(":memory:")) as connection:
        limit_values(connection)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_ROW_BYTES)
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute(f"CREATE TABLE {_TABLE} ({number} INTEGER PRIMARY KEY{listed})")
        query = f"SELECT {number} FROM {_TABLE} WHERE (\n{condition}\n) ORDER BY {number}"  # noqa: S608
        insert = f"INSERT INTO {_TABLE} VALUES (?{places})"  # noqa: S608 - names alone, quoted
        for num_rows, values in cells.slices(names, _ROWS_AT_ONCE):
            connection.executemany(insert, zip(range(first, first + num_rows), *values, strict=True))
            try:
                found.extend(row for (row,) in _within(_MAX_SECONDS, connection).execute(query))
            except sqlite3.Error as error:
                if "interrupted" in str(error):
                    raise UsageError(f"it takes more than {_MAX_SECONDS:g} s for {num_rows:,} rows") from None
                raise where_error(str(error), names, _TABLE) from None
            connection.set_progress_handler(None, 0)
            connection.execute(f"DELETE FROM {_TABLE}")  # noqa: S608
            first += num_rows
    return found


def _within(seconds: float, connection: sqlite3.Connection) -> sqlite3.Connection:
    """The connection, whose statements are interrupted after so long."""
    until = time.monotonic() + seconds
    connection.set_progress_handler(lambda: time.monotonic() > until, _STEPS_BETWEEN_LOOKS)
    return connection
