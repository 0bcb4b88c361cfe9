"""What a person may write as `where`: one expression over the columns of one table, checked before it runs."""

from __future__ import annotations

import difflib
import re
import sqlite3
from collections.abc import Collection
from contextlib import closing

from distil.errors import UsageError
from distil.index.columns import quoted

TABLE = "traces"
MAX_CHARS = 10_000
MAX_VALUE_BYTES = 1_000_000  # of a text that an expression makes on its way
MAX_PATTERN_BYTES = 1000  # of LIKE and GLOB
# None that makes much of little, that reads a file or a clock's randomness, or that runs for long in one step.
_FUNCTIONS = frozenset(
    """
    abs acos asin atan atan2 avg ceil ceiling coalesce cos count cume_dist date datetime degrees dense_rank exp
    first_value floor glob ifnull iif instr json_array_length json_extract json_type json_valid julianday lag
    last_value lead length like ln log log10 log2 lower ltrim max min mod nth_value ntile nullif percent_rank pi
    pow power radians rank round row_number rtrim sign sin sqrt strftime substr substring sum tan time total trim
    trunc typeof unicode unixepoch upper -> ->>
    """.split()
)
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
_QUOTES = {'"': '"', "`": "`", "[": "]"}
_HINT = "text is written in single quotes, a name that is no plain word in double ones"


def check_where(expression: str, columns: Collection[str]) -> None:
    """Raise UsageError where `expression` is not one expression over these columns, with one line that says why."""
    _check_tokens(expression, columns)
    with closing(_empty_table(tuple(columns))) as connection:
        try:
            connection.execute(f"SELECT 1 FROM {TABLE} WHERE (\n{expression}\n) LIMIT 0").fetchall()
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise where_error(str(error), columns) from None


def where_error(message: str, columns: Collection[str]) -> UsageError:
    """What SQLite says of an expression, in one line for who wrote it."""
    column = re.search(r"no such column: (.+)", message)
    if column is not None:
        return unknown_column(column[1], columns, hint=True)
    if re.search(r"no such table|prohibited|not authorized", message):
        function = re.search(r"not authorized to use function: (.+)", message)
        if function is not None:
            return UsageError(f"where: the function {function[1]} cannot be used here")
        return UsageError(f"where: only the columns of the table {TABLE} can be read")
    return UsageError(f"where: {' '.join(message.split())}")


def unknown_column(name: str, columns: Collection[str], hint: bool = False) -> UsageError:
    """There is no such column, and which are like it."""
    by_lower = {column.lower(): column for column in columns}
    near = difflib.get_close_matches(name.lower(), by_lower, n=3)
    text = f"there is no column {name!r}"
    if near:
        return UsageError(f"{text}; did you mean {', '.join(by_lower[each] for each in near)}?")
    return UsageError(f"{text}; {_HINT}" if hint else text)


def _check_tokens(expression: str, columns: Collection[str]) -> None:
    """Raise UsageError for what would end the expression, or hides what it says.

    SQLite takes a name in double quotes that it does not know for a text, so names are looked up here.
    """
    if len(expression) > MAX_CHARS:
        raise UsageError(f"where: at most {MAX_CHARS:,} characters, not {len(expression):,}")
    if not expression.strip():
        raise UsageError("where: there is no expression")
    if re.search("[\x00\ud800-\udfff]", expression):
        raise UsageError("where: it holds characters that cannot be")
    known = {column.lower() for column in columns} | {TABLE}
    names_of_its_own = {name.lower() for name in re.findall(r"(?i)\bas\s+([^\W\d]\w*)", expression)}
    depth = 0
    for token in _TOKEN.finditer(expression):
        text, kind = token[0], token.lastgroup
        depth += (kind == "other") * ((text == "(") - (text == ")"))
        if depth < 0:
            raise UsageError("where: a closing bracket too many")
        if kind == "comment":
            raise UsageError("where: comments cannot be used here")
        if kind == "word" and text.upper() == "WITH":
            raise UsageError("where: WITH cannot be used here")
        if kind == "other" and text == ";":
            raise UsageError("where: one expression, without ;")
        if kind == "other" and text in "'\"`[":
            raise UsageError(f"where: a {text} is not closed")
        if kind == "other" and text in "?:@$#":
            raise UsageError(f"where: {text} cannot be used here")
        if kind == "name" and text[0] in _QUOTES:
            end = _QUOTES[text[0]]
            name = text[1:-1].replace(end * 2, end) if text[0] != "[" else text[1:-1]
            if name.lower() not in known | names_of_its_own:
                raise unknown_column(name, columns, hint=True)
    if depth:
        raise UsageError("where: a bracket is not closed")


def _empty_table(columns: tuple[str, ...]) -> sqlite3.Connection:
    """A database that holds nothing but a table of these columns, in which an expression may do nothing but read."""
    connection = sqlite3.connect(":memory:")
    names = ", ".join(map(quoted, columns))
    connection.execute(f"CREATE TABLE {TABLE} ({names}, PRIMARY KEY (file)) WITHOUT ROWID")  # nor a rowid
    limit_values(connection)
    connection.set_authorizer(_authorize)
    return connection


def limit_values(connection: sqlite3.Connection) -> None:
    """Let no expression on this connection make a large value, nor match a long pattern."""
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, MAX_PATTERN_BYTES)


def _authorize(action: int, first: str | None, second: str | None, _: str | None, __: str | None) -> int:
    if action == sqlite3.SQLITE_SELECT:
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_READ and first == TABLE:
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_FUNCTION and second in _FUNCTIONS:
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY
