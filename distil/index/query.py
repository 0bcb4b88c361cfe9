"""What is asked of the index, and the SQL that asks it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from distil.errors import UsageError
from distil.index.columns import Column, quoted
from distil.index.guard import MAX_PATTERN_BYTES, TABLE, check_where, unknown_column
from distil.index.trace_row import searchable, storable
from distil.records import Json

Operator = Literal["=", "!=", "<", "<=", ">", ">=", "contains", "in", "is null", "is not null"]
_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")
TIES = ("run", "sample_index", "rollout", "file")
_MAX_VALUES = 10_000
_MAX_WORDS = 100  # of a search


@dataclass(frozen=True, slots=True)
class Filter:
    """One condition on a column.

    `value` is a number, a text or a flag, for "in" a list of them, for "is null" nothing. Texts of numbers
    and flags are read as such. "!=" takes in what is null, as it is not that value; "contains" does not tell
    upper from lower case of ASCII letters.
    """

    column: str
    operator: Operator
    value: Json = None


@dataclass(frozen=True, slots=True)
class Query:
    """Which traces, in what order.

    All conditions hold at once. `search` are words that the conversation holds, all of them: "several words"
    in double quotes stand side by side, `wor*` is a beginning. `where` is an SQL expression. `order` are
    columns, `-score` from high to low; ties lie in the order of run, sample and rollout, and what is null
    comes last.
    """

    filters: tuple[Filter, ...] = ()
    search: str = ""
    where: str = ""
    order: tuple[str, ...] = ("run", "sample_index", "rollout")


Sql = tuple[str, tuple[str | int | float, ...]]  # with the values of its question marks


def condition(query: Query, columns: Mapping[str, Column], texts: Sequence[tuple[str, int]]) -> Sql:
    """What stands behind WHERE; `texts` are the tables that are searched and what their numbers begin at.

    Raises UsageError for a column that there is not, a value that its column cannot have, and a bad `where`.
    """
    parts = [_filter(each, columns) for each in query.filters]
    if query.search.strip():
        parts.append(_search(query.search, texts))
    if query.where.strip():
        check_where(query.where, [column.name for column in columns.values()])
        parts.append((f"(\n{query.where}\n)", ()))
    sql = " AND ".join(part for part, _ in parts)
    return sql or "1", tuple(value for _, values in parts for value in values)


def order_by(query: Query, columns: Mapping[str, Column], num_folders: int) -> str:
    """What stands behind ORDER BY; raises UsageError for a column that there is not."""
    terms = [_term(each, columns) for each in query.order]
    asked = {name for name, _ in terms}
    terms += [(name, "") for name in TIES if name not in asked]
    # One folder's rows all have the same run: without it an index on the rest is of use.
    return ", ".join(quoted(name) + suffix for name, suffix in terms if num_folders > 1 or name != "run")


def search_expression(search: str) -> str:
    """What FTS5 is asked for the words of a search: each quoted, so that none of its signs means anything.

    Raises UsageError for too many words: they are looked up one by one, and none of that can be ended.
    """
    words = []
    for phrase, word in re.findall(r'"([^"]*)"?|([^\s"]+)', storable(search)):
        text = searchable(phrase or word).strip()
        is_beginning = word.endswith("*")
        text = text.rstrip("*") if is_beginning else text
        if any(letter.isalnum() for letter in text):
            words.append(f'"{text}"{" *" if is_beginning else ""}')
    if len(words) > _MAX_WORDS:
        raise UsageError(f"a search has at most {_MAX_WORDS} words, not {len(words):,}")
    return " ".join(words)


def _term(asked: str, columns: Mapping[str, Column]) -> tuple[str, str]:
    column = _column(asked.removeprefix("-"), columns)
    if asked.startswith("-"):
        return column.name, " DESC"
    return column.name, "" if column.name in TIES else " NULLS LAST"


def _column(name: str, columns: Mapping[str, Column]) -> Column:
    column = columns.get(name.lower())
    if column is None:
        raise unknown_column(name, [each.name for each in columns.values()])
    return column


def _filter(asked: Filter, columns: Mapping[str, Column]) -> Sql:
    column = _column(asked.column, columns)
    name = quoted(column.name)
    match asked.operator:
        case "is null" | "is not null":
            return f"{name} {asked.operator.upper()}", ()
        case "contains":
            return _contains(name, asked.value)
        case "in":
            values = asked.value if isinstance(asked.value, list | tuple) else [asked.value]
            if len(values) > _MAX_VALUES:
                raise UsageError(f"{column.name}: at most {_MAX_VALUES:,} values")
            found = tuple(_value(each, column) for each in values)
            return f"{name} IN ({', '.join('?' * len(found))})", found
        case "=" | "!=":
            if asked.value is None:
                return f"{name} {'IS NULL' if asked.operator == '=' else 'IS NOT NULL'}", ()
            return f"{name} {'=' if asked.operator == '=' else 'IS NOT'} ?", (_value(asked.value, column),)
        case "<" | "<=" | ">" | ">=":
            return f"{name} {asked.operator} ?", (_value(asked.value, column),)
    raise UsageError(f"{column.name}: there is no {asked.operator!r} to compare by")


def _contains(name: str, value: Json) -> Sql:
    pattern = re.sub(r"([%_\\])", r"\\\1", storable(str(value)))
    if len(pattern.encode()) > MAX_PATTERN_BYTES - 2:
        raise UsageError(f"a text that a column is to contain has less than {MAX_PATTERN_BYTES} characters")
    return f"{name} LIKE ? ESCAPE '\\'", (f"%{pattern}%",)


def _value(value: Json, column: Column) -> str | int | float:
    if column.kind == "text":
        return storable(str(value))
    if isinstance(value, str):
        text = value.strip().lower()
        if column.kind == "flag" and text in (*_TRUE, *_FALSE):
            return int(text in _TRUE)
        with suppress(ValueError):
            value = float(text)
    if not isinstance(value, int | float) or math.isnan(value):
        what = "yes or no" if column.kind == "flag" else "a number"
        raise UsageError(f"{column.name} is {what}, not {value!r}")
    return float(value) if abs(value) >= 2**63 else value


def _search(search: str, texts: Iterable[tuple[str, int]]) -> Sql:
    expression = search_expression(search)
    if not expression:
        return "1", ()
    found = [
        f"SELECT {f'{first} + ' if first else ''}rowid FROM {schema}.texts WHERE texts MATCH ?"
        for schema, first in texts
    ]
    return f"_id IN ({' UNION ALL '.join(found)})", (expression,) * len(found)


def select(names: Iterable[str], where: Sql, order: str = "", limits: str = "") -> Sql:
    """The SELECT of some columns."""
    condition, values = where
    ordered = f" ORDER BY {order}" if order else ""
    return f"SELECT {', '.join(map(quoted, names))} FROM {TABLE} WHERE {condition}{ordered}{limits}", values
