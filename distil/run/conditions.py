"""`--where_row` and `--accept`: which rows are meant and which traces are accepted, by conditions in SQL.

They stand here, above both, as the guard of conditions is the index's and the columns are the source's. A
piece of some rows lies in SQLite's memory at a time, so memory grows by the numbers of the rows that are
found alone.
"""

from __future__ import annotations

import sqlite3
import time
from array import array
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING

from distil.errors import Caught, SampleError, SourceError, TraceError, UsageError
from distil.index.columns import FIXED, Source, dynamic_name, quoted
from distil.index.guard import TABLE, check_where, limit_values, where_error
from distil.index.trace_row import Cell, TraceRow, trace_row
from distil.records import Json, Reply, Rollout, Sample, SampleId, SentPicture, StopReason, ToolMode, Turn
from distil.source.cells import Cells
from distil.source.rows import Source as Dataset
from distil.store.trace_file import RunFacts, trace_json, trace_name
from distil.tasks import TASKS
from distil.tasks.base import Task

if TYPE_CHECKING:  # not at run time: it takes the client of the teacher with it
    from distil.run.solver import Accept

_DATASET = "dataset"  # as a table
_ROWS_AT_ONCE = 10_000
_MAX_SECONDS = 10.0  # of these rows
_STEPS_BETWEEN_LOOKS = 100_000
_MAX_ROW_BYTES = 64 * 2**20
# What the index knows besides the trace: of the folder, of the row's other traces, or added later.
_NOT_OF_TRACE = frozenset({"run", "folder", "seconds", "score_without_tools", "tool_gain", "mark", "note"})
_LOOKED_INTO = 20  # rows, for one that can be used
# Of another program's trace.
_BAD_FORM = (TypeError, ValueError, ArithmeticError, AttributeError, LookupError)


def _refused(flag: str, condition: str, error: Exception) -> UsageError:
    return UsageError(f"{flag} {condition!r}: {str(error).removeprefix('where: ')}")


# --- rows


def rows_that_meet(condition: str, cells: Cells) -> array[int]:
    """The numbers of the rows that meet it, in the dataset's order; one that comes to NULL is not met.

    Raises UsageError where it is no condition over these columns, names one that holds pictures, cannot be
    computed, takes too long, or none meets it.
    """
    try:
        names = sorted(check_where(condition, cells.names, _DATASET, of_one_row=True))
        cells.check(names)
        found = _found(condition, names, cells)
    except (UsageError, SourceError) as error:
        raise _refused("--where_row", condition, error) from None
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
        connection.execute(f"CREATE TABLE {_DATASET} ({number} INTEGER PRIMARY KEY{listed})")
        query = f"SELECT {number} FROM {_DATASET} WHERE (\n{condition}\n) ORDER BY {number}"  # noqa: S608
        insert = f"INSERT INTO {_DATASET} VALUES (?{places})"  # noqa: S608 - names alone, quoted
        for num_rows, values in cells.slices(names, _ROWS_AT_ONCE):
            connection.executemany(insert, zip(range(first, first + num_rows), *values, strict=True))
            try:
                found.extend(row for (row,) in _within(_MAX_SECONDS, connection).execute(query))
            except sqlite3.Error as error:
                if "interrupted" in str(error):
                    raise UsageError(f"it takes more than {_MAX_SECONDS:g} s for {num_rows:,} rows") from None
                raise where_error(str(error), names, _DATASET) from None
            connection.set_progress_handler(None, 0)
            connection.execute(f"DELETE FROM {_DATASET}")  # noqa: S608
            first += num_rows
    return found


def _within(seconds: float, connection: sqlite3.Connection) -> sqlite3.Connection:
    """The connection, whose statements are interrupted after so long."""
    until = time.monotonic() + seconds
    connection.set_progress_handler(lambda: time.monotonic() > until, _STEPS_BETWEEN_LOOKS)
    return connection


# --- traces


def accepting(condition: str, facts: RunFacts, dataset: Dataset, rows: Sequence[int]) -> Accept:
    """What `--accept` says: whether a finished trace is accepted, asked by many threads; raises UsageError.

    The columns are those of a trace with these facts that answers the truth of one of the first rows. For
    a trace for which the condition cannot be computed, or comes to NULL, it is not met.
    """
    like = _trace_that_answers(facts, dataset, rows)
    fixed = [column.name for column in FIXED if column.name not in _NOT_OF_TRACE]
    dynamic = _dynamic_names(like)
    names = [*fixed, *dynamic.values()]
    try:
        check_where(condition, names)
    except UsageError as error:
        raise _refused("--accept", condition, error) from None
    listed, places = ", ".join(map(quoted, names)), ", ".join("?" * len(names))
    query = (  # checked above: it reads the one table and nothing else
        f"WITH {TABLE} ({listed}) AS (SELECT {places}) "  # noqa: S608
        f"SELECT 1 FROM {TABLE} WHERE (\n{condition}\n)"
    )

    def is_accepted(trace: Mapping[str, Json]) -> bool:
        try:
            row = trace_row(trace_name(SampleId.from_json(trace)), trace)
        except (TraceError, *_BAD_FORM):
            return False
        with closing(sqlite3.connect(":memory:")) as connection:
            limit_values(connection)
            try:
                return connection.execute(query, _cells(row, fixed, dynamic)).fetchone() is not None
            except sqlite3.Error:
                return False

    return is_accepted


def _cells(row: TraceRow, fixed: Sequence[str], dynamic: Collection[tuple[Source, str]]) -> list[Cell]:
    values = {(column.source, column.name): value for column, value in row.dynamic}
    return [*map(row.fixed.get, fixed), *map(values.get, dynamic)]


def _dynamic_names(row: TraceRow) -> dict[tuple[Source, str], str]:
    """The names of the columns that only some traces have, as the index gives them: by source and key."""
    names: dict[tuple[Source, str], str] = {}
    taken: set[str] = set()
    for column, _ in row.dynamic:
        name = dynamic_name(column.source, column.name, taken)
        names[column.source, column.name] = name
        taken.add(name.lower())
    return names


def _trace_that_answers(facts: RunFacts, dataset: Dataset, rows: Sequence[int]) -> TraceRow:
    for row in islice(rows, _LOOKED_INTO):
        try:
            rollout = _right_answer(dataset.load(SampleId(row)), TASKS[facts.settings.task])
        except SampleError:
            continue
        return trace_row("", trace_json(rollout, facts))
    raise UsageError("--accept: the columns are not known, as none of the first rows can be used")


def _right_answer(sample: Sample, task: Task) -> Rollout:
    """A rollout that answers a row's truth at once; raises SampleError where there is none."""
    with Caught() as caught:
        truth = task.truth({**sample.data, **sample.fields})
        score = task.score(truth, truth)
    if caught.error is not None:
        raise SampleError(caught.text())
    sent = SentPicture("", (1, 1), b"", 0, "")
    reply = Reply("", None, None, "stop", (), ToolMode.NONE, None)
    turns = (Turn(1, reply, ()),)
    return Rollout(sample, truth, sent, turns, StopReason.ANSWERED, truth, score)
