"""Marks and notes that a page sends, written beside the run."""

from __future__ import annotations

import json

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from distil.errors import UsageError
from distil.records import Json, SampleId
from distil.store.marks import UNCHANGED, append_mark
from distil.viewer.templating import Answer
from distil.viewer.viewer import Viewer, viewer_of

_MAX_BYTES = 100_000


async def mark(request: Request) -> Response:
    """Change the mark or the note of a trace: `{"run": 0, "file": "trace_00012.json", "mark": "keep"}`."""
    asked = await _body(request)
    return Answer(await run_in_threadpool(_mark, viewer_of(request), asked))


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


MARK_ROUTES = (Route("/api/mark", mark, methods=["POST"]),)
