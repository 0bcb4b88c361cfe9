"""What a page's URL says of which traces to show, and back.

`f=score>=0.5` for each condition, `q=words in conversations`, `where=SQL`, `sort=-score,turns`.
A condition is `COLUMN` `=`, `!=`, `<`, `<=`, `>`, `>=` or `~` (contains) and a value, or `COLUMN:null`,
`COLUMN:known`, or `COLUMN=` for an empty text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette.datastructures import QueryParams

from distil.errors import UsageError
from distil.index.query import Filter, Operator, Query

_FILTER = re.compile(r"(?P<column>[^<>=!~]+?)(?P<sign><=|>=|!=|=|<|>|~)(?P<value>.*)", re.DOTALL)
_NULLS: dict[str, Operator] = {":null": "is null", ":known": "is not null"}
_SIGNS: dict[str, Operator] = {
    "=": "=",
    "!=": "!=",
    "<": "<",
    "<=": "<=",
    ">": ">",
    ">=": ">=",
    "~": "contains",
}
_MAX_FILTERS = 50


def read_query(params: QueryParams) -> Query:
    """What a URL asks for; raises UsageError where a condition cannot be read."""
    texts = params.getlist("f")
    if len(texts) > _MAX_FILTERS:
        raise UsageError(f"at most {_MAX_FILTERS} conditions")
    order = tuple(name for name in params.get("sort", "").split(",") if name)
    return Query(
        filters=tuple(map(_filter, texts)),
        search=params.get("q", ""),
        where=params.get("where", ""),
        order=order or Query().order,
    )


def _filter(text: str) -> Filter:
    for ending, operator in _NULLS.items():
        if text.endswith(ending):
            return Filter(text.removesuffix(ending), operator)
    match = _FILTER.fullmatch(text)
    if match is None or not match["column"].strip():
        raise UsageError(
            f"{text!r} is no condition: use COLUMN=VALUE, COLUMN>=VALUE, COLUMN~TEXT, COLUMN:null …"
        )
    return Filter(match["column"].strip(), _SIGNS[match["sign"]], match["value"])


def query_pairs(query: Query) -> Iterable[tuple[str, str]]:
    """The same as pairs of a query string."""
    nulls = {operator: ending for ending, operator in _NULLS.items()}
    signs = {operator: sign for sign, operator in _SIGNS.items()}
    for each in query.filters:
        if each.operator in nulls:
            yield "f", f"{each.column}{nulls[each.operator]}"
        elif each.operator in signs:
            yield "f", f"{each.column}{signs[each.operator]}{each.value}"
    if query.search:
        yield "q", query.search
    if query.where:
        yield "where", query.where
    if query.order != Query().order:
        yield "sort", ",".join(query.order)
