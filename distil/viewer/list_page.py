"""The list of traces: filtered, sorted, searched; rows come in pieces, as they are scrolled to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from distil.errors import UsageError
from distil.index.columns import Column
from distil.index.query import Filter, Query
from distil.records import Json
from distil.store.marks import DROP, KEEP
from distil.viewer.query_string import read_query
from distil.viewer.run_page import now_json
from distil.viewer.templating import Answer, render
from distil.viewer.viewer import Viewer, viewer_of
from distil.viewer.visible import plain

PIECE = 100  # rows at once
_MAX_PIECE = 500
_MAX_VALUES = 40  # of a column, offered to choose from
_ALWAYS = ("run", "file", "sample_index", "rollout", "mark", "note")
_FIRST = ("sample_index", "score")
_THEN = ("answer", "truth", "turns", "calls", "failed_calls", "tools", "stop_reason", "completion_tokens")


def list_page(request: Request) -> Response:
    """The list, with its first rows, so that it is there at once."""
    viewer = viewer_of(request)
    now = viewer.keeper.now()
    shown = _columns_asked(viewer, request)
    try:
        piece = _piece(viewer, read_query(request.query_params), shown, 0, PIECE)
    except UsageError as error:
        piece = {"error": str(error)}
    state = {
        "columns": [_column_json(column) for column in viewer.index.columns],
        "defaults": _default_columns(viewer),
        "runs": viewer.names,
        "piece_size": PIECE,
        "first": piece,
        "now": now_json(viewer, now),
        "num_broken": len(viewer.index.broken),
    }
    return render(request, "traces.html", state=state)


def rows(request: Request) -> Response:
    """A piece of the list."""
    viewer = viewer_of(request)
    viewer.keeper.now()
    offset = _number(request, "offset", 0, 10**9)
    limit = _number(request, "limit", PIECE, _MAX_PIECE)
    query = read_query(request.query_params)
    return Answer(_piece(viewer, query, _columns_asked(viewer, request), offset, limit))


def values(request: Request) -> Response:
    """The most frequent values of a column, to choose from."""
    viewer = viewer_of(request)
    name = request.query_params.get("column", "")
    counts = Counter(value for (value,) in viewer.index.rows(Query(order=()), [name]) if value is not None)
    return Answer({"values": [[value, count] for value, count in counts.most_common(_MAX_VALUES)]})


def _piece(viewer: Viewer, query: Query, shown: Sequence[str], offset: int, limit: int) -> dict[str, Json]:
    names = dict.fromkeys((*_ALWAYS, *shown))
    found = viewer.index.page(query, limit, offset)
    piece: dict[str, Json] = {
        "offset": offset,
        "rows": [{name: _shown(name, row[name]) for name in names if name in row} for row in found],
        "generation": viewer.keeper.now().generation,
    }
    if offset == 0 or not found:
        piece["total"] = viewer.index.count(query)
        piece["marks"] = {mark: viewer.index.count(_marked(query, mark)) for mark in (KEEP, DROP)}
    return piece


def _shown(name: str, value: Json) -> Json:
    return plain(value) if isinstance(value, str) and name not in ("file", "note") else value


def _marked(query: Query, mark: str) -> Query:
    return replace(query, filters=(*query.filters, Filter("mark", "=", mark)))


def _columns_asked(viewer: Viewer, request: Request) -> list[str]:
    known = {column.name for column in viewer.index.columns}
    asked = [name for name in request.query_params.get("cols", "").split(",") if name in known]
    return asked or _default_columns(viewer)


def _default_columns(viewer: Viewer) -> list[str]:
    """What is shown where nobody has chosen: the metrics that tasks show in a list among them."""
    there = {column.name for column in viewer.index.columns}
    first = (*(("run",) if len(viewer.folders) > 1 else ()), *_FIRST)
    return [name for name in (*first, *viewer.metric_columns, *_THEN) if name in there]


def _column_json(column: Column) -> Mapping[str, Json]:
    return {"name": column.name, "kind": column.kind, "heading": column.heading, "source": column.source}


def _number(request: Request, name: str, otherwise: int, largest: int) -> int:
    text = request.query_params.get(name, "")
    if not text:
        return otherwise
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"{name} must be a whole number")
    return min(int(text[:12]), largest)


LIST_ROUTES: Any = (
    Route("/traces", list_page),
    Route("/api/rows", rows),
    Route("/api/values", values),
)
