"""What a person may write as `where`: one expression over the columns of one table, checked first."""

from __future__ import annotations

import difflib
import re
import sqlite3
from collections.abc import Collection
from contextlib import closing
from functools import partial

from distil.errors import UsageError
from distil.index.columns import quoted
from distil.index.trace_row import storable
from distil.records import Json

TABLE = "traces"
MAX_CHARS = 10_000
MAX_VALUE_BYTES = 1_000_000  # of a text that an expression makes on its way
MAX_PATTERN_BYTES = 1000  # of LIKE and GLOB
# None that makes much of little, reads a file, gives what is random, or takes long in one step.
_FUNCTION_NAMES = (
    "abs acos asin atan atan2 avg ceil ceiling coalesce cos count cume_dist date datetime "
    "degrees dense_rank exp first_value floor glob ifnull iif instr json_array_length "
    "json_extract json_type json_valid julianday lag last_value lead length like ln log log10 "
    "log2 lower ltrim max min mod nth_value ntile nullif percent_rank pi pow power radians "
    "rank round row_number rtrim sign sin sqrt strftime substr substring sum tan time total "
    "trim trunc typeof unicode unixepoch upper -> ->>"
)
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_TOKEN = re.compile(
    r"""
    (?P<space>\s+)
    | (?P<text>'(?:[^']|'')*')
    | (?P<name>"(?:[^"]|"")*" | `(?:[^`]|``)*` | \[[^\]]*\])
    | (?P<comment>--|/\*)
    | (?P<word>[^\W\d]\w*)
    | (?P<number>\d\w*(?:\.\w*)?)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_HINT = "text is written in single quotes, a name that is no plain word in double ones"


def check_where(
    expression: str, columns: Collection[str], table: str = TABLE, of_one_row: bool = False
) -> frozenset[str]:
    """The columns that it reads.

    Raises UsageError, with one line that says why, where it is not one expression over these columns, or
    looks at other rows than its own where it is to be of one row.
    """
    _check_tokens(expression, columns, table)
    done: list[tuple[int, str | None]] = []  # what the expression does, and with what
    with closing(_empty_table(tuple(columns), table)) as connection:
        connection.set_authorizer(partial(_allowed, table, done))
        try:
            connection.execute(f"SELECT 1 FROM {table} WHERE (\n{expression}\n) LIMIT 0").fetchall()
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise where_error(str(error), columns, table) from None
    if of_one_row and sum(action == sqlite3.SQLITE_SELECT for action, _ in done) > 1:
        raise UsageError("where: it can look at one row at a time, without a SELECT or a table of its own")
    return frozenset(name for action, name in done if action == sqlite3.SQLITE_READ and name)


def _allowed(
    table: str,
    done: list[tuple[int, str | None]],
    action: int,
    first: str | None,
    second: str | None,
    *_: Json,
) -> int:
    """Let an expression read one table and compute, and add what it does."""
    is_read = action == sqlite3.SQLITE_READ and first == table
    is_known = action == sqlite3.SQLITE_FUNCTION and second in _FUNCTIONS
    if action == sqlite3.SQLITE_SELECT or is_read or is_known:
        done.append((action, second))
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


def where_error(message: str, columns: Collection[str], table: str = TABLE) -> UsageError:
    """What SQLite says of an expression, in one line for who wrote it."""
    column = re.search(r"no such column: (.+)", message)
    if column is not None:
        return unknown_column(column[1], columns, hint=True)
    if re.search(r"no such table|prohibited|not authorized", message):
        function = re.search(r"not authorized to use function: (.+)", message)
        if function is not None:
            return UsageError(f"where: the function {function[1]} cannot be used here")
        return UsageError(f"where: only the columns of the table {table} can be read")
    return UsageError(f"where: {' '.join(message.split())}")


def unknown_column(name: str, columns: Collection[str], hint: bool = False) -> UsageError:
    """There is no such column, and which are like it."""
    by_lower = {column.lower(): column for column in columns}
    near = difflib.get_close_matches(name.lower(), by_lower, n=3)
    text = f"there is no column {name!r}"
    if near:
        return UsageError(f"{text}; did you mean {', '.join(by_lower[each] for each in near)}?")
    return UsageError(f"{text}; {_HINT}" if hint else text)


def _check_tokens(expression: str, columns: Collection[str], table: str) -> None:
    """Raise UsageError for what would end the expression, or hides what it says.

    SQLite takes a name in double quotes that it does not know for a text, so names are looked up here.
    """
    if len(expression) > MAX_CHARS:
        raise UsageError(f"where: at most {MAX_CHARS:,} characters, not {len(expression):,}")
    if storable(expression) != expression:
        raise UsageError("where: it holds characters that cannot be")
    if re.match(r"\s*select\b", expression, re.IGNORECASE):
        raise UsageError("where: only what would stand behind WHERE, not a whole SELECT")
    own_names = {name.lower() for name in re.findall(r"(?i)\bas\s+([^\W\d]\w*)", expression)}
    known = {column.lower() for column in columns} | own_names | {table}
    depth = 0
    for token in _TOKEN.finditer(expression):
        text, kind = token[0], token.lastgroup
        depth += (kind == "other") * ((text == "(") - (text == ")"))
        problem = "a closing bracket too many" if depth < 0 else _problem(text, str(kind))
        if problem is not None:
            raise UsageError(f"where: {problem}")
        if kind == "name" and (name := _unquoted(text)).lower() not in known:
            raise unknown_column(name, columns, hint=True)
    if depth:
        raise UsageError("where: a bracket is not closed")


def _problem(text: str, kind: str) -> str | None:
    """What is wrong with a token wherever it stands."""
    if kind == "comment":
        return "comments cannot be used here"
    if kind == "word" and text.upper() == "WITH":  # a table of its own, perhaps with the name of ours
        return "WITH cannot be used here"
    if kind == "other" and text == ";":
        return "one expression, without ;"
    if kind == "other" and text in "'\"`[":
        return f"a {text} is not closed"
    if kind == "other" and text in "?:@$#":
        return f"{text} cannot be used here"
    return None


def _unquoted(name: str) -> str:
    end = name[-1]
    return name[1:-1] if end == "]" else name[1:-1].replace(end * 2, end)


def _empty_table(columns: tuple[str, ...], table: str) -> sqlite3.Connection:
    """A database with nothing but a table of these columns."""
    connection = sqlite3.connect(":memory:")
    names = ", ".join(map(quoted, columns))
    key = quoted(columns[0])
    connection.execute(  # nor a rowid
        f"CREATE TABLE {table} ({names}, PRIMARY KEY ({key})) WITHOUT ROWID"
    )
    limit_values(connection)
    return connection


def limit_values(connection: sqlite3.Connection) -> None:
    """Let no expression on this connection make a large value, nor match a long pattern."""
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, MAX_PATTERN_BYTES)
