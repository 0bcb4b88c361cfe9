"""The list of traces: filtered, sorted, searched, marked; rows come in pieces, as they are scrolled to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from distil.errors import UsageError
from distil.index.columns import Column
from distil.index.query import Filter, Query
from distil.records import Json, SampleId
from distil.store.marks import DROP, KEEP, UNCHANGED, append_mark
from distil.viewer.pages import answer, read_query, render
from distil.viewer.run_page import now_json
from distil.viewer.viewer import Viewer, viewer_of
from distil.viewer.visible import plain

PIECE = 100  # rows at once
_MAX_PIECE = 500
_MAX_BYTES = 100_000  # of a mark and its note
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
    return answer(_piece(viewer, query, _columns_asked(viewer, request), offset, limit))


def values(request: Request) -> Response:
    """The most frequent values of a column, to choose from."""
    viewer = viewer_of(request)
    name = request.query_params.get("column", "")
    counts = Counter(value for (value,) in viewer.index.rows(Query(order=()), [name]) if value is not None)
    return answer({"values": [[value, count] for value, count in counts.most_common(_MAX_VALUES)]})


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


# --- marks and notes that a page sends, written beside the run


async def mark(request: Request) -> Response:
    """Change the mark or the note of a trace: `{"run": 0, "file": "trace_00012.json", "mark": "keep"}`."""
    asked = await _body(request)
    return answer(await run_in_threadpool(_mark, viewer_of(request), asked))


async def _body(request: Request) -> dict[str, Json]:
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > _MAX_BYTES:
            raise UsageError(f"at most {_MAX_BYTES} bytes")
    try:
        value = json.loads(data)
        json.dumps(value, ensure_ascii=False).encode()  # half a character is no text that a file can hold
    except (ValueError, RecursionError):
        raise UsageError("that is no JSON") from None
    if not isinstance(value, dict):
        raise UsageError("that is no JSON object")
    return value


def _mark(viewer: Viewer, asked: dict[str, Json]) -> dict[str, Json]:
    run, file = asked.get("run"), asked.get("file")
    if type(run) is not int or not 0 <= run < len(viewer.folders) or not isinstance(file, str):
        raise UsageError("name the run by its number and the trace by its file")
    row = viewer.index.find((run, file))
    if row is None:
        raise UsageError(f"the index holds no {file!r} in {viewer.names[run]}")
    if not isinstance(asked.get("note"), str | None) or not isinstance(asked.get("mark"), str | None):
        raise UsageError("mark and note are texts or null")
    sample_id = SampleId(row["sample_index"], row["rollout"] or 0)
    note = asked.get("note", UNCHANGED)
    note = note.strip() or None if isinstance(note, str) else note
    append_mark(viewer.folders[run], sample_id, mark=asked.get("mark", UNCHANGED), note=note)
    viewer.keeper.refresh()
    row = viewer.index.find((run, file)) or row
    return {"run": run, "file": file, "mark": row["mark"], "note": row["note"]}


LIST_ROUTES: Any = (
    Route("/traces", list_page),
    Route("/api/rows", rows),
    Route("/api/values", values),
    Route("/api/mark", mark, methods=["POST"]),
)
