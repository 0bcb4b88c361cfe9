"""Folders of traces as one table: counted, filtered, sorted and searched without opening a trace."""

from __future__ import annotations

import sqlite3
import threading
import time
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from distil.errors import FolderError, UsageError
from distil.index.columns import FIXED, ROW_ID, STORED, Column, Kind, quoted
from distil.index.database import FolderIndex, num_changes, stored_columns
from distil.index.guard import TABLE, limit_values, unknown_column, where_error
from distil.index.query import Query, Sql, condition, order_by, select
from distil.records import Json

PAGE_SECONDS = 2.0  # an answer that someone waits for
STREAM_SECONDS = 60.0  # until the next rows of many come
_MAX_FOLDERS = 10  # that SQLite opens at once, as it is built nearly everywhere
_FOLDER_BITS = 40  # a trace's number is its folder's position above these and its number in the folder
_STEPS_A_LOOK = 5_000  # of SQLite, between two looks at the clock
_ROWS_AT_ONCE = 500
_KEPT_ORDERS = 8
_IS_TRACE = "run = ? AND file = ?"


TraceKey = tuple[int, str]  # which trace: the position of its folder among those given, and its file's name


@dataclass(frozen=True)
class _Shape:
    """What a connection is made for: the columns as they are, and which files hold them."""

    columns: tuple[Column, ...]
    of_folders: tuple[tuple[Column, ...], ...]
    files: tuple[tuple[int, int] | None, ...]

    @property
    def names(self) -> list[str]:
        """What the columns are called."""
        return [column.name for column in self.columns]

    @property
    def by_name(self) -> dict[str, Column]:
        """The columns by their names in lower case, as SQL does not tell them apart."""
        return {column.name.lower(): column for column in self.columns}


_Reader = tuple[sqlite3.Connection, _Shape]  # a connection that only reads, and what it was made for


class TraceIndex:
    """One or several run folders as one table that is only read; may be used by many threads.

    Opened by `open`. What a query gives is as of the last `update`, of this process or another one.
    """

    def __init__(self, folders: Sequence[FolderIndex]) -> None:
        """Of folders whose indexes are there: `open` makes them."""
        self._folders = tuple(folders)
        self._idle: deque[_Reader] = deque()
        self._orders: OrderedDict[str, array[int]] = OrderedDict()
        self._lock = threading.Lock()
        self._shape = self._look()

    @classmethod
    def open(
        cls, folders: Sequence[Path], tell_progress: Callable[[int, int], None] = lambda done, of: None
    ) -> TraceIndex:
        """Make or update the indexes of these folders; `tell_progress` gets the files read, and of how many.

        It begins anew with each folder. An index that its folder cannot hold is made in the user's cache.
        Raises UsageError where one is no folder or there are too many, FolderError where an index can be
        written nowhere.
        """
        if not folders:
            raise UsageError("there is no folder to index")
        if len(folders) > _MAX_FOLDERS:
            raise UsageError(
                f"at most {_MAX_FOLDERS} folders at once (SQLite opens no more), not {len(folders)}"
            )
        found = [FolderIndex.of(folder) for folder in folders]
        return cls([_made(each, tell_progress) for each in found])

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders, in the order of `run`."""
        return tuple(each.folder for each in self._folders)

    @property
    def columns(self) -> tuple[Column, ...]:
        """All columns: those of every trace, then those of metrics, answers and rows, as they were met."""
        return self._shape.columns

    @property
    def broken(self) -> list[tuple[Path, str]]:
        """The trace files that cannot be read, each with why."""
        problems = "SELECT name, problem FROM {}.files WHERE problem IS NOT NULL ORDER BY name"
        with self._reading() as (connection, _):
            return [
                (each.folder / name, problem)
                for run, each in enumerate(self._folders)
                for name, problem in self._run(connection, (problems.format(f"f{run}"), ()), PAGE_SECONDS)
            ]

    def update(self) -> int:
        """Take in what has changed in the folders; returns how many trace files were read.

        Raises UsageError where a folder is gone, FolderError where an index cannot be written.
        """
        num_read = sum(each.update(lambda done, of: None) for each in self._folders)
        shape = self._look()
        if shape != self._shape:
            self._shape = shape  # connections of the other shape are closed as they come back
            with self._lock:
                self._orders.clear()
        return num_read

    def count(self, query: Query, seconds: float = PAGE_SECONDS) -> int:
        """How many traces a query gives; raises UsageError for a query that cannot be, or takes too long."""
        with self._reading() as (connection, shape):
            chosen, values = self._chosen(query, shape)
            counted = (f"SELECT count(*) FROM {TABLE} WHERE {chosen}", values)
            (number,) = next(self._run(connection, counted, seconds))
            return int(number)

    def page(
        self, query: Query, limit: int, offset: int = 0, seconds: float = PAGE_SECONDS
    ) -> list[dict[str, Json]]:
        """Some traces of a query, each as its values by the names of all columns; raises as `count`."""
        with self._reading() as (connection, shape):
            limits = f" LIMIT {int(limit)} OFFSET {int(offset)}"
            if len(self._folders) == 1:  # numbers are sorted, and whole rows read for this page alone
                numbers, values = self._listed(query, shape, [ROW_ID], limits)
                of_page = (f"{ROW_ID} IN ({numbers})", values)
                statement = select(shape.names, of_page, order_by(query, shape.by_name, 1))
            else:
                statement = self._listed(query, shape, shape.names, limits)
            return [_as_json(shape.columns, row) for row in self._run(connection, statement, seconds)]

    def rows(
        self, query: Query, names: Sequence[str], seconds: float = STREAM_SECONDS
    ) -> Iterator[tuple[Json, ...]]:
        """The values of some columns of all traces of a query, in its order; memory does not grow with them.

        `seconds` are for the next rows of many, however long their use takes. Raises as `count`, also for
        names that are no column.
        """
        with self._reading() as (connection, shape):
            by_name = shape.by_name
            for name in names:
                if name.lower() not in by_name:
                    raise unknown_column(name, shape.names)
            columns = [by_name[name.lower()] for name in names]
            statement = self._listed(query, shape, [column.name for column in columns])
            for row in self._run(connection, statement, seconds):
                yield tuple(map(_cell_json, columns, row))

    def find(self, key: TraceKey) -> dict[str, Json] | None:
        """One trace's values by the names of all columns, None where it is not in the index."""
        with self._reading() as (connection, shape):
            row = self._one(connection, shape.names, (_IS_TRACE, key))
            return None if row is None else _as_json(shape.columns, row)

    def neighbours(self, query: Query, key: TraceKey) -> tuple[TraceKey | None, TraceKey | None, int | None]:
        """What comes before and after a trace in a list, None where nothing does, and its position, from 0.

        All three are None for a trace that the list does not hold. The list's order is kept, 8 bytes a trace,
        for the next question about it. Raises as `count`.
        """
        with self._reading() as (connection, shape):
            numbers = self._order(query, connection, shape)
            found = self._one(connection, [ROW_ID], (_IS_TRACE, key))
            try:
                position = numbers.index(found[0] if found else -1)
            except ValueError:
                return None, None, None
            before, after = numbers[max(0, position - 1) : position], numbers[position + 1 : position + 2]
            return self._key(connection, before), self._key(connection, after), position

    def close(self) -> None:
        """Close what is open and not in use."""
        while self._idle:
            self._idle.pop()[0].close()

    def _key(self, connection: sqlite3.Connection, number: Sequence[int]) -> TraceKey | None:
        """The trace of a number, None for none."""
        row = self._one(connection, ["run", "file"], (f"{ROW_ID} = ?", tuple(number))) if number else None
        return None if row is None else (row[0], row[1])

    def _order(self, query: Query, connection: sqlite3.Connection, shape: _Shape) -> array[int]:
        """The numbers of a query's traces in its order, as of what the indexes hold now."""
        stamp = tuple(num_changes(connection, f"f{run}") for run in range(len(self._folders)))
        key = f"{stamp} {query!r}"  # a filter may hold a list
        with self._lock:
            kept = self._orders.get(key)
        if kept is not None:
            return kept
        statement = self._listed(query, shape, [ROW_ID])
        numbers = array("q", (row[0] for row in self._run(connection, statement, PAGE_SECONDS)))
        with self._lock:
            self._orders[key] = numbers
            while len(self._orders) > _KEPT_ORDERS:
                self._orders.popitem(last=False)
        return numbers

    def _chosen(self, query: Query, shape: _Shape) -> Sql:
        texts = [(f"f{run}", run << _FOLDER_BITS) for run in range(len(self._folders))]
        return condition(query, shape.by_name, texts)

    def _listed(self, query: Query, shape: _Shape, names: Sequence[str], limits: str = "") -> Sql:
        chosen = self._chosen(query, shape)
        return select(names, chosen, order_by(query, shape.by_name, len(self._folders)), limits)

    def _one(
        self, connection: sqlite3.Connection, names: Sequence[str], where: Sql
    ) -> tuple[Json, ...] | None:
        return next(self._run(connection, select(names, where), PAGE_SECONDS), None)

    def _run(
        self, connection: sqlite3.Connection, statement: Sql, seconds: float
    ) -> Iterator[tuple[Json, ...]]:
        """The rows of a statement; `seconds` are for each piece of them."""
        until = time.monotonic() + seconds
        connection.set_progress_handler(lambda: time.monotonic() > until, _STEPS_A_LOOK)
        try:
            with closing(connection.execute(*statement)) as cursor:
                while rows := cursor.fetchmany(_ROWS_AT_ONCE):
                    yield from rows
                    until = time.monotonic() + seconds
        except sqlite3.Error as error:
            if "interrupted" in str(error):
                raise UsageError(f"the query takes longer than {seconds:g} seconds: ask for less") from None
            raise where_error(str(error), self._shape.names) from None
        finally:
            connection.set_progress_handler(None, 0)  # its time is not that of what runs next

    @contextmanager
    def _reading(self) -> Iterator[_Reader]:
        """A connection for this thread alone."""
        try:
            reader = self._idle.pop()
        except IndexError:
            reader = self._opened(self._shape), self._shape
        connection, shape = reader
        if shape is not self._shape:
            connection.close()
            shape = self._shape
            connection = self._opened(shape)
        try:
            yield connection, shape
        finally:
            self._idle.append((connection, shape))

    def _look(self) -> _Shape:
        """The columns of all folders as they are now."""
        of_folders, files = [], []
        for each in self._folders:
            with closing(_connect(each)) as connection:
                of_folders.append(tuple(stored_columns(connection, "main")))
            facts = each.path.stat()
            files.append((facts.st_dev, facts.st_ino))
        return _Shape(_all_columns(of_folders), tuple(of_folders), tuple(files))

    def _opened(self, shape: _Shape) -> sqlite3.Connection:
        connection = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None, uri=True)
        try:
            for run, each in enumerate(self._folders):
                connection.execute(f"ATTACH ? AS f{run}", (_address(each),))
                connection.execute(f"PRAGMA f{run}.cache_size = -8000")  # KiB
            connection.execute(f"CREATE TEMP VIEW {TABLE} AS {self._view(shape)}")
            connection.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            connection.close()
            raise FolderError(f"the index cannot be read: {error}") from None
        limit_values(connection)
        return connection

    def _view(self, shape: _Shape) -> str:
        return " UNION ALL ".join(
            f"SELECT {', '.join(self._expressions(shape, run))} FROM f{run}.trace_rows"
            for run in range(len(self._folders))
        )

    def _expressions(self, shape: _Shape, run: int) -> Iterator[str]:
        """What a folder has for each column of the table."""
        first, folder = run << _FOLDER_BITS, str(self._folders[run].folder)
        own = {column.name.lower(): column for column in (*STORED, *shape.of_folders[run])}
        yield f"{f'{first} + ' if first else ''}id AS {ROW_ID}"
        for column in shape.columns:
            name = quoted(column.name)
            here = own.get(column.name.lower())
            if column.name == "run":
                yield f"{run} AS {name}"
            elif column.name == "folder":
                yield f"{_literal(folder)} AS {name}"
            elif here is None:
                yield f"NULL AS {name}"
            else:
                is_cast = column.kind == "text" != here.kind
                yield f"{f'CAST({quoted(here.name)} AS TEXT)' if is_cast else quoted(here.name)} AS {name}"


def _made(index: FolderIndex, tell_progress: Callable[[int, int], None]) -> FolderIndex:
    """An index that is up to date; raises FolderError where it can be written neither here nor there."""
    try:
        index.update(tell_progress, retries_broken=True)
    except FolderError:  # a file system without what SQLite needs, or without room
        elsewhere = index.elsewhere()
        if elsewhere is None:
            raise
        elsewhere.update(tell_progress, retries_broken=True)
        return elsewhere
    return index


def _address(index: FolderIndex) -> str:
    # Not `ro`: the last one that closes the file then removes what lies beside it.
    return f"{index.path.resolve().as_uri()}?mode=rw"


def _connect(index: FolderIndex) -> sqlite3.Connection:
    try:
        return sqlite3.connect(_address(index), uri=True, isolation_level=None)
    except sqlite3.Error as error:
        raise FolderError(f"the index {index.path} cannot be read: {error}") from None


def _literal(text: str) -> str:
    return "'" + text.encode("utf-8", "replace").decode().replace("'", "''") + "'"


def _all_columns(of_folders: Sequence[Sequence[Column]]) -> tuple[Column, ...]:
    """The columns of several folders as one table has them; of two kinds they are texts."""
    merged: dict[str, Column] = {}
    for column in (column for columns in of_folders for column in columns):
        name = column.name.lower()
        before = merged.setdefault(name, column)
        if before.kind != column.kind:
            kind: Kind = "text" if "text" in (before.kind, column.kind) else "number"
            merged[name] = Column(before.name, kind, before.heading, before.source)
    by_source = ("metric", "trace", "row", "mark")
    dynamic = sorted(merged.values(), key=lambda column: by_source.index(column.source))
    return (*FIXED, *dynamic)


def _as_json(columns: Sequence[Column], row: Sequence[Json]) -> dict[str, Json]:
    """A row by its columns' names."""
    return {column.name: _cell_json(column, value) for column, value in zip(columns, row, strict=True)}


def _cell_json(column: Column, value: Json) -> Json:
    """A value of a column, a flag as a flag."""
    return bool(value) if column.kind == "flag" and value is not None else value
