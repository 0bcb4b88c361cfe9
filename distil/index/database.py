"""`index.sqlite` of one folder of traces: made, and kept up to date by the files that changed.

All in it follows from the files beside it, so it may be removed at any time. A file's row is written with
the file's size and time, in one transaction: whatever ends the process, what is there is true of the file as
it was, and the next update reads those that are missing or have changed.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from distil.errors import FolderError, TraceError, UsageError
from distil.index.columns import STORED, Column, Kind, Source, dynamic_name, quoted
from distil.index.trace_row import MAX_INTEGER, Cell, TraceRow, cell, read_row, score_cells, storable
from distil.records import Json, SampleId
from distil.store.folder import TIMINGS, WITHOUT_TOOLS
from distil.store.json_lines import open_regular, parse_line
from distil.store.marks import MARKS, Mark, marked_sample
from distil.store.scores import SCORES

INDEX = "index.sqlite"
_OLDEST_SQLITE = (3, 35)
SCHEMA_VERSION = 3  # another in the file: it is made anew
_APPLICATION = 0x64697374  # "dist": whose file it is
_MAGIC = b"SQLite format 3\0"
_APPLICATION_BYTES = slice(68, 72)  # where a SQLite file says whose it is
_PAGE_BYTES = 16384  # all rows are looked through in two thirds of the time that they take in the usual 4096
_BUSY_SECONDS = 60.0
_BATCH_TRACES = 500  # a transaction
_MAX_COLUMNS = 1000  # of a dataset with more of them, the others are left out
_UNSETTLED_NS = 20_000_000  # a file this young may change once more and have the same time
_SEARCH_MEMORY_BYTES = 16 * 2**20
_CHECKED_BYTES = 64  # of a file of lines: whether what was read of it is there still

_SCHEMA = f"""
CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT INTO facts VALUES ('changes', 0);
CREATE TABLE columns (name TEXT PRIMARY KEY, kind TEXT, heading TEXT, source TEXT, key TEXT);
CREATE TABLE files (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE, num_bytes INTEGER, mtime_ns INTEGER, problem TEXT
);
CREATE INDEX files_with_problem ON files (problem) WHERE problem IS NOT NULL;
CREATE TABLE trace_rows (id INTEGER PRIMARY KEY, {", ".join(quoted(column.name) for column in STORED)});
CREATE INDEX by_sample ON trace_rows (sample_index, rollout, file);
CREATE INDEX by_file ON trace_rows (file);
CREATE INDEX by_score ON trace_rows (score);
CREATE TABLE line_files (name TEXT PRIMARY KEY, end_bytes INTEGER, last_bytes BLOB);
CREATE TABLE marks (sample_index, rollout, mark, note, PRIMARY KEY (sample_index, rollout)) WITHOUT ROWID;
CREATE TABLE timings (sample_index, rollout, seconds, PRIMARY KEY (sample_index, rollout)) WITHOUT ROWID;
CREATE TABLE scores (
    sample_index, rollout, name, value, PRIMARY KEY (sample_index, rollout, name)
) WITHOUT ROWID;
CREATE VIRTUAL TABLE texts USING fts5(
    text, content='', columnsize=0, tokenize="unicode61 remove_diacritics 2"
);
INSERT INTO texts (texts, rank) VALUES ('hashsize', {_SEARCH_MEMORY_BYTES});
"""
_OF_SAMPLE = "WHERE sample_index = ? AND rollout = ?"
_CHANGED = """
CREATE TEMP TABLE changed AS
SELECT found.name, found.num_bytes, found.mtime_ns FROM found LEFT JOIN files USING (name)
WHERE files.num_bytes IS NOT found.num_bytes OR files.mtime_ns IS NOT found.mtime_ns OR {again}
"""


# What tools gain on a row: the mean score of its traces, less that of those without tools.
_TAKE_GAINS = """
UPDATE trace_rows SET score_without_tools = found.without, tool_gain = found.gain FROM (
    SELECT sample_index, plain.score AS without, avg(trace_rows.score) - plain.score AS gain
    FROM trace_rows JOIN (
        SELECT sample_index, avg(score) AS score FROM plain.trace_rows GROUP BY sample_index
    ) AS plain USING (sample_index) GROUP BY sample_index
) AS found
WHERE trace_rows.sample_index = found.sample_index
AND (score_without_tools IS NOT found.without OR tool_gain IS NOT found.gain)
"""
_DROP_GAINS = """
UPDATE trace_rows SET score_without_tools = NULL, tool_gain = NULL
WHERE score_without_tools IS NOT NULL AND sample_index NOT IN (
    SELECT sample_index FROM plain.trace_rows WHERE sample_index IS NOT NULL
)
"""


_Found = tuple[str, int, int]  # a trace file as the folder lists it: its name, size in bytes and time in ns
_File = tuple[str, int, int | None, str | None]  # as it was read: with its time, and what is wrong with it


@dataclass(frozen=True)
class FolderIndex:
    """The index of one folder; `path` is where it is: beside the traces, or in the user's cache."""

    folder: Path
    path: Path

    @classmethod
    def of(cls, folder: Path) -> FolderIndex:
        """The index of a folder; raises UsageError where there is no such folder, or SQLite is too old."""
        if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
            oldest = ".".join(map(str, _OLDEST_SQLITE))
            raise UsageError(f"this Python has SQLite {sqlite3.sqlite_version}; the index needs {oldest}")
        beside = _there(folder) / INDEX
        is_usable = os.access(folder, os.W_OK) and _may_be_ours(beside)
        return cls(folder, beside if is_usable else _cache_path(folder))

    def elsewhere(self) -> FolderIndex | None:
        """The index in the user's cache, None for one that is there."""
        path = _cache_path(self.folder)
        return None if path == self.path else FolderIndex(self.folder, path)

    def update(self, tell_progress: Callable[[int, int], None], retries_broken: bool = False) -> int:
        """Read what changed since the last time; returns how many trace files were read.

        Raises FolderError where the index cannot be written, UsageError where the folder is gone.
        """
        try:
            return self._update(tell_progress, retries_broken)
        except sqlite3.OperationalError as error:  # locked, no room, no full-text search in this SQLite
            raise FolderError(f"the index {self.path} cannot be written: {error}") from None
        except sqlite3.DatabaseError:  # no database any more, as a machine that went down may leave it
            self._remove()
        try:
            return self._update(tell_progress, retries_broken)
        except sqlite3.Error as error:
            raise FolderError(f"the index {self.path} cannot be written: {error}") from None

    def _update(self, tell_progress: Callable[[int, int], None], retries_broken: bool) -> int:
        with closing(self._connect()) as connection:
            _prepare(connection)
            with _writing(connection):
                _read_lines(connection, self.folder)
            num_changed = self._find_changed(connection, retries_broken)
            done = 0
            while done < num_changed:
                batch = connection.execute(
                    "SELECT * FROM changed WHERE rowid > ? ORDER BY rowid LIMIT ?", (done, _BATCH_TRACES)
                )
                read = []
                for found in batch.fetchall():
                    read.append(_read(self.folder, *found))
                    done += 1
                    tell_progress(done, num_changed)
                with _writing(connection):
                    _write(connection, read)
            return num_changed + self._update_gains(connection, tell_progress, retries_broken)

    def _update_gains(
        self, connection: sqlite3.Connection, tell_progress: Callable[[int, int], None], retries_broken: bool
    ) -> int:
        """Take over the scores of the rows' traces without tools, where the run made them."""
        folder = self.folder / WITHOUT_TOOLS
        if not folder.is_dir():
            _forget_gains(connection)
            return 0
        plain = FolderIndex.of(folder)
        num_read = plain.update(tell_progress, retries_broken)
        connection.execute("ATTACH ? AS plain", (str(plain.path),))
        with _writing(connection):
            stamp = f"{num_changes(connection, 'main')} {num_changes(connection, 'plain')}"
            taken = connection.execute("SELECT value FROM facts WHERE name = 'gains'").fetchone()
            if taken != (stamp,):
                before = connection.total_changes
                connection.execute(_TAKE_GAINS)
                connection.execute(_DROP_GAINS)
                if connection.total_changes > before:
                    _count_change(connection)
                stamp = f"{num_changes(connection, 'main')} {num_changes(connection, 'plain')}"
                connection.execute("INSERT OR REPLACE INTO facts VALUES ('gains', ?)", (stamp,))
        return num_read

    def _connect(self) -> sqlite3.Connection:
        if self.path.parent != _there(self.folder):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA cache_size = -4000")  # KiB
        return connection

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)

    def _find_changed(self, connection: sqlite3.Connection, retries_broken: bool) -> int:
        """Drop the files that are gone, and list those to be read; in SQLite, as there may be many."""
        connection.execute(
            "CREATE TEMP TABLE found (name TEXT PRIMARY KEY, num_bytes, mtime_ns) WITHOUT ROWID"
        )
        connection.execute("BEGIN")
        connection.executemany("INSERT OR REPLACE INTO found VALUES (?, ?, ?)", _listed(self.folder))
        connection.execute("COMMIT")
        missing = connection.execute("SELECT name FROM files WHERE name NOT IN (SELECT name FROM found)")
        # Another process may have read one that came since.
        gone = [(name,) for (name,) in missing.fetchall() if not (self.folder / name).exists()]
        if gone:
            with _writing(connection):
                _drop(connection, gone)
        connection.execute(_CHANGED.format(again="files.problem IS NOT NULL" if retries_broken else "0"))
        (num_changed,) = connection.execute("SELECT count(*) FROM changed").fetchone()
        return int(num_changed)


def stored_columns(connection: sqlite3.Connection, schema: str) -> list[Column]:
    """The columns of a folder's index beside those that every one has."""
    found = connection.execute(f"SELECT name, kind, heading, source FROM {schema}.columns ORDER BY rowid")
    return [Column(*row) for row in found]


def _there(folder: Path) -> Path:
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}")
    return folder


def _may_be_ours(path: Path) -> bool:
    """Whether a file can be written and is none of another program's: such a one is left alone."""
    if path.is_symlink():  # it may lead anywhere
        return False
    try:
        with open_regular(path) as file:
            head = file.read(100)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    if not os.access(path, os.W_OK):  # of another user of the folder
        return False
    return not head.startswith(_MAGIC) or head[_APPLICATION_BYTES] == _APPLICATION.to_bytes(4, "big")


def _cache_path(folder: Path) -> Path:
    """Where the index of a folder is that cannot be written."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    return cache / "distil" / "indexes" / name / INDEX


def _prepare(connection: sqlite3.Connection) -> None:
    """Make the tables where they are not there, or are those of another version."""
    if _version(connection) == SCHEMA_VERSION:
        return
    if _version(connection) == 0:
        connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")  # in the file before anything else
    connection.execute(
        "PRAGMA journal_mode = WAL"
    )  # who reads waits for nobody; where it cannot be, it is not
    connection.execute("BEGIN IMMEDIATE")
    if _version(connection) != SCHEMA_VERSION:  # nobody else has made them meanwhile
        for kind in ("CREATE VIRTUAL%", "CREATE TABLE%"):
            tables = "SELECT name FROM sqlite_master WHERE sql LIKE ? AND name NOT LIKE 'sqlite_%'"
            for (name,) in connection.execute(tables, (kind,)).fetchall():
                connection.execute(f"DROP TABLE {quoted(name)}")
        for statement in _SCHEMA.split(";\n"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


@contextmanager
def _writing(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction of the one process that writes, which is there whole or not at all."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _listed(folder: Path) -> Iterator[_Found]:
    try:
        entries = os.scandir(folder)
    except OSError as error:
        raise UsageError(f"{folder} cannot be read: {error.strerror or error}") from None
    with entries:
        for entry in entries:
            if entry.name.startswith("trace_") and entry.name.endswith(".json"):
                try:
                    facts = entry.stat()
                except FileNotFoundError:  # gone since, or a link to nothing
                    continue
                if entry.is_file() and storable(entry.name) == entry.name:
                    yield entry.name, facts.st_size, facts.st_mtime_ns


def _read(folder: Path, name: str, num_bytes: int, mtime_ns: int) -> tuple[_File, TraceRow | None]:
    """A file and its row, if it has one; without its time where it may have the same once more."""
    is_settled = time.time_ns() - mtime_ns > _UNSETTLED_NS
    kept_ns = mtime_ns if is_settled else None
    try:
        return (name, num_bytes, kept_ns, None), read_row(folder / name)
    except TraceError as error:
        return (name, num_bytes, kept_ns, storable(str(error))), None


def _drop(connection: sqlite3.Connection, names: Sequence[tuple[str]]) -> None:
    # What is searched of them stays, of no row: it could be taken out only with the text at hand.
    connection.executemany("DELETE FROM files WHERE name = ?", names)
    connection.executemany("DELETE FROM trace_rows WHERE file = ?", names)
    _count_change(connection)


def _forget_gains(connection: sqlite3.Connection) -> None:
    if connection.execute("SELECT 1 FROM facts WHERE name = 'gains'").fetchone():
        with _writing(connection):
            connection.execute("UPDATE trace_rows SET score_without_tools = NULL, tool_gain = NULL")
            connection.execute("DELETE FROM facts WHERE name = 'gains'")
            _count_change(connection)


def num_changes(connection: sqlite3.Connection, schema: str) -> int:
    """How often what the index of a folder holds has changed."""
    (number,) = connection.execute(f"SELECT value FROM {schema}.facts WHERE name = 'changes'").fetchone()
    return int(number)


def _count_change(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE facts SET value = value + 1 WHERE name = 'changes'")


def _write(connection: sqlite3.Connection, read: Sequence[tuple[_File, TraceRow | None]]) -> None:
    _drop(connection, [(file[0],) for file, _ in read])
    columns = _Columns(connection)
    for file, row in read:
        done = connection.execute(
            "INSERT INTO files (name, num_bytes, mtime_ns, problem) VALUES (?, ?, ?, ?)", file
        )
        if row is not None:
            _write_row(connection, columns, done.lastrowid, row)


def _write_row(connection: sqlite3.Connection, columns: _Columns, number: int | None, row: TraceRow) -> None:
    cells: dict[str, Cell] = {"id": number, **row.fixed}
    for column, value in row.dynamic:
        name = columns.name_of(column, value)
        if name is not None:
            cells[name] = str(value) if value is not None and columns.is_text(name) else value
    sample = (cells["sample_index"], cells["rollout"])
    timing = connection.execute(f"SELECT seconds FROM timings {_OF_SAMPLE}", sample).fetchone()
    mark = connection.execute(f"SELECT mark, note FROM marks {_OF_SAMPLE}", sample).fetchone()
    cells["seconds"] = timing[0] if timing else None
    cells["mark"], cells["note"] = mark or (None, None)
    cells |= dict(connection.execute(f"SELECT name, value FROM scores {_OF_SAMPLE}", sample).fetchall())
    names, places = ", ".join(map(quoted, cells)), ", ".join("?" * len(cells))
    connection.execute(f"INSERT INTO trace_rows ({names}) VALUES ({places})", tuple(cells.values()))
    connection.execute("INSERT INTO texts (rowid, text) VALUES (?, ?)", (number, row.text))


class _Columns:
    """The columns that traces add, within one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        found = connection.execute("SELECT name, kind, source, key FROM columns").fetchall()
        self._names: dict[tuple[Source, str], str] = {(source, key): name for name, _, source, key in found}
        self._kinds: dict[str, Kind] = {name: kind for name, kind, _, _ in found}
        self._taken = {name.lower() for name in self._kinds}

    def is_text(self, name: str) -> bool:
        return self._kinds[name] == "text"

    def name_of(self, column: Column, value: Cell) -> str | None:
        """The name of a trace's column, made where there is none; None for one too many, or nothing in it."""
        name = self._names.get((column.source, column.name))
        if value is None:
            return name
        if name is None:
            return self._add(column) if len(self._names) < _MAX_COLUMNS else None
        self._widen(name, column.kind)
        return name

    def _add(self, column: Column) -> str:
        name = dynamic_name(column.source, column.name, self._taken)
        self._connection.execute(f"ALTER TABLE trace_rows ADD COLUMN {quoted(name)}")
        self._connection.execute(
            "INSERT INTO columns VALUES (?, ?, ?, ?, ?)",
            (name, column.kind, column.heading, column.source, column.name),
        )
        self._names[column.source, column.name] = name
        self._kinds[name] = column.kind
        self._taken.add(name.lower())
        return name

    def _widen(self, name: str, kind: Kind) -> None:
        """Make a column of numbers one of texts where one of its values is a text, and so on."""
        before = self._kinds[name]
        if before in {kind, "text"} or (before, kind) == ("number", "flag"):
            return
        self._kinds[name] = kind
        self._connection.execute("UPDATE columns SET kind = ? WHERE name = ?", (kind, name))
        if kind == "text":
            self._connection.execute(f"UPDATE trace_rows SET {quoted(name)} = CAST({quoted(name)} AS TEXT)")


def _read_lines(connection: sqlite3.Connection, folder: Path) -> None:
    """Take over what was added to the files of marks and of seconds, or all of a file that is another now."""
    for name, table, take in _LINE_FILES:
        path = folder / name
        stored = connection.execute("SELECT end_bytes, last_bytes FROM line_files WHERE name = ?", (name,))
        end_bytes, last_bytes = stored.fetchone() or (0, b"")
        try:
            file = open_regular(path)
        except OSError:
            if end_bytes:
                _forget(connection, name, table)
            continue
        with file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, end_bytes - _CHECKED_BYTES))
            if size < end_bytes or file.read(len(last_bytes)) != last_bytes:
                _forget(connection, name, table)
                end_bytes, last_bytes = 0, b""
            elif size == end_bytes:
                continue
            file.seek(end_bytes)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                end_bytes += len(line)
                last_bytes = (last_bytes + line)[-_CHECKED_BYTES:]
                value = parse_line(line)
                sample_id = marked_sample(value)
                if value is not None and sample_id is not None and _is_storable(sample_id):
                    take(connection, sample_id, value)
        connection.execute(
            "INSERT OR REPLACE INTO line_files VALUES (?, ?, ?)", (name, end_bytes, last_bytes)
        )
        _count_change(connection)


def _is_storable(sample_id: SampleId) -> bool:
    return max(abs(sample_id.index), abs(sample_id.rollout)) <= MAX_INTEGER


def _forget(connection: sqlite3.Connection, name: str, table: str) -> None:
    """Drop what a file of lines said that is gone, or is another file now."""
    connection.execute(f"DELETE FROM {table}")
    connection.execute(_FORGET[table])
    connection.execute("DELETE FROM line_files WHERE name = ?", (name,))
    _count_change(connection)


def _take_mark(connection: sqlite3.Connection, sample_id: SampleId, line: Mapping[str, Json]) -> None:
    sample = (sample_id.index, sample_id.rollout)
    stored = connection.execute(f"SELECT mark, note FROM marks {_OF_SAMPLE}", sample).fetchone()
    mark = Mark(*(stored or ())).changed_by(line)
    note = None if mark.note is None else storable(mark.note)
    connection.execute("INSERT OR REPLACE INTO marks VALUES (?, ?, ?, ?)", (*sample, mark.mark, note))
    connection.execute(f"UPDATE trace_rows SET mark = ?, note = ? {_OF_SAMPLE}", (mark.mark, note, *sample))


def _take_score(connection: sqlite3.Connection, sample_id: SampleId, line: Mapping[str, Json]) -> None:
    sample, columns = (sample_id.index, sample_id.rollout), _Columns(connection)
    for column, value in score_cells(line):
        name = columns.name_of(column, value)
        if name is not None:
            connection.execute("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)", (*sample, name, value))
            connection.execute(f"UPDATE trace_rows SET {quoted(name)} = ? {_OF_SAMPLE}", (value, *sample))


def _take_timing(connection: sqlite3.Connection, sample_id: SampleId, line: Mapping[str, Json]) -> None:
    seconds = cell(line.get("seconds"))
    if isinstance(seconds, int | float):
        sample = (sample_id.index, sample_id.rollout)
        connection.execute("INSERT OR REPLACE INTO timings VALUES (?, ?, ?)", (*sample, float(seconds)))
        connection.execute(f"UPDATE trace_rows SET seconds = ? {_OF_SAMPLE}", (float(seconds), *sample))


_LINE_FILES = (
    (MARKS, "marks", _take_mark),
    (TIMINGS, "timings", _take_timing),
    (SCORES, "scores", _take_score),
)
_FORGET = {  # what follows where the file of a table is gone, or another
    "marks": "UPDATE trace_rows SET mark = NULL, note = NULL",
    "timings": "UPDATE trace_rows SET seconds = NULL",
    "scores": "UPDATE files SET mtime_ns = NULL",  # the traces may state the same: all are read again
}
