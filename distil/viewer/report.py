"""A run as one HTML file that opens from disk: figures, charts, map, list, and traces with their pictures.

Nothing is asked of any address: the file's own policy forbids it, and lets only the script and the style run
that it was written with, by their hashes. What a trace says is text, here as on the pages.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from markupsafe import Markup
from PIL import Image

from distil.errors import DistilError, FolderError, error_text
from distil.index.columns import Column
from distil.index.query import Query
from distil.pictures import to_rgb_or_grey
from distil.records import Json
from distil.replay.recipe import FAILURES
from distil.viewer.charts import charts, pairs, task_with_map
from distil.viewer.pages import HERE, LAND_FILE, environment
from distil.viewer.pictures import PictureMatch, Pictures, View
from distil.viewer.run_facts import figures, read_columns, read_facts
from distil.viewer.trace_page import column_of
from distil.viewer.viewer import Viewer, part_of

PICTURE_PX = 512  # the longest side of an embedded picture
_QUALITY = 75  # of WebP
_STYLES = ("base.css", "charts.css", "trace.css", "report.css")
_MODULES = ("dom.js", "charts.js", "map.js", "scrolling.js")
_SCRIPT = "report.js"
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const) (\w+))", re.MULTILINE)
_IMPORT = re.compile(r"^import .*\n", re.MULTILINE)
_IF_TOLD = ("rollout", "mark", "note")
_THEN = ("answer", "truth", "turns", "calls", "failed_calls", "tools", "stop_reason")
_AT_ONCE = 4  # traces whose pictures are made: most of that leaves the interpreter to others
_PAGE = 500  # rows of the index at once
ResultT = TypeVar("ResultT")


def write_report(
    path: Path,
    viewer: Viewer,
    query: Query,
    limit: int,
    tell_progress: Callable[[int, int], None] = lambda done, of: None,
) -> int:
    """Write the first `limit` traces of a query, with charts and a map of all of them.

    The file appears whole or not at all. Returns how many of the traces have no picture. Raises UsageError
    for a bad query, FolderError where the file cannot be written.
    """
    rows = _rows(viewer, query, limit)
    pictures = Pictures(viewer.dataset_override)
    num_without = 0

    def traces() -> Iterator[dict[str, Any]]:
        nonlocal num_without
        paths = [viewer.folders[row["run"]] / row["file"] for row in rows]
        all_embedded = made_ahead(partial(_embedded, pictures), paths)
        for done, (row, embedded) in enumerate(zip(rows, all_embedded, strict=True), start=1):
            num_without += not any("data" in each for each in embedded.values())
            column = column_of(viewer, row["run"], part_of(row["file"]))
            yield {"id": trace_id(row), "c": column, "pictures": embedded}
            tell_progress(done, len(rows))

    template = environment().get_template("report.html")
    pieces = template.generate(traces=traces(), **_context(viewer, query, rows))
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.writelines(pieces)
        part.replace(path)
    except OSError as error:
        raise FolderError(f"{path} cannot be written: {error_text(error)}") from None
    finally:
        part.unlink(missing_ok=True)
        pictures.close()
    return num_without


def _rows(viewer: Viewer, query: Query, limit: int) -> list[dict[str, Json]]:
    rows: list[dict[str, Json]] = []
    while len(rows) < limit:
        page = viewer.index.page(query, min(_PAGE, limit - len(rows)), len(rows))
        if not page:
            break
        rows += page
    return rows


def _context(viewer: Viewer, query: Query, rows: Sequence[Mapping[str, Json]]) -> dict[str, Any]:
    style, script = _style(), _script()
    columns = _columns(viewer, rows)
    folders = zip(viewer.folders, viewer.names, strict=True)
    return {
        "viewer": viewer,
        "style": Markup(style),  # noqa: S704 - our own files
        "script": Markup(script),  # noqa: S704
        "policy": f"default-src 'none'; img-src data: blob:; style-src {_hash(style)}; "
        f"script-src {_hash(script)}; base-uri 'none'; form-action 'none'",
        "facts": [read_facts(folder, name) for folder, name in folders],
        "figures": figures(viewer.index, read_columns(viewer.index, viewer.names)),
        "charts": charts(viewer.index, read_columns(viewer.index, viewer.names, query)),
        "map": _map(viewer, query, rows),
        "columns": [{"name": each.name, "kind": each.kind, "heading": each.heading} for each in columns],
        "rows": [
            {"id": trace_id(row)} | {column.name: row[column.name] for column in columns} for row in rows
        ],
        "num_found": viewer.index.count(query),
        "where": query.where,
        "num_broken": len(viewer.index.broken),
    }


def _columns(viewer: Viewer, rows: Sequence[Mapping[str, Json]]) -> list[Column]:
    """What the list shows of a trace; some columns only where they say something of a trace in it."""
    by_name = {column.name: column for column in viewer.index.columns}
    many = ("run",) * (len(viewer.folders) > 1)
    told = [name for name in _IF_TOLD if any(row.get(name) for row in rows)]
    names = (*many, "sample_index", *told, "score", *viewer.metric_columns, *_THEN)
    return [by_name[name] for name in names if name in by_name]


def _map(viewer: Viewer, query: Query, rows: Sequence[Mapping[str, Json]]) -> Json:
    """The map's pairs and outlines, None for tasks without places; links lead to what the file holds."""
    task = task_with_map(viewer.tasks)
    if task is None:
        return None
    data = pairs(viewer.index, query, task)
    held = {trace_id(row) for row in rows}
    for pair in data["pairs"]:
        place = pair[0].removeprefix("/trace/")
        pair[0] = f"#{place}" if unquote(place) in held else None
    return (
        {"data": data, "land": json.loads(LAND_FILE.read_text(encoding="utf-8"))} if data["pairs"] else None
    )


def trace_id(row: Mapping[str, Json]) -> str:
    """What a trace is called within the file: its folder's number and its file's own part."""
    return f"{row['run']}/{part_of(row['file'])}"


def made_ahead(make: Callable[[Path], ResultT], paths: Iterable[Path]) -> Iterator[ResultT]:
    """What is made of each path, one by one: a few are made ahead, no more are held."""
    with ThreadPoolExecutor(_AT_ONCE, "distil-report") as workers:
        ahead: deque[Future[ResultT]] = deque()
        for path in paths:
            if len(ahead) == 2 * _AT_ONCE:
                yield ahead.popleft().result()
            ahead.append(workers.submit(make, path))
        while ahead:
            yield ahead.popleft().result()


def _embedded(pictures: Pictures, path: Path) -> dict[str, Json]:
    """The pictures of a trace by their numbers, each with its data URL or why there is none."""
    found: dict[str, Json] = {}
    try:
        for shown in pictures.marks(path):
            found[str(shown.number)] = {"match": shown.match.value, "detail": shown.detail}
            if shown.match is not PictureMatch.MISSING:
                found[str(shown.number)] |= _small(pictures, path, shown.number)
    except DistilError as error:
        found.setdefault("0", _missing(str(error)))
    return found


def _small(pictures: Pictures, path: Path, number: int) -> dict[str, Json]:
    try:
        return {"data": small_data_url(pictures.file(path, number, View.SENT))}
    except (DistilError, *FAILURES) as error:  # a trace may keep half a file
        return _missing(error_text(error))


def _missing(detail: str) -> dict[str, Json]:
    return {"match": PictureMatch.MISSING.value, "detail": detail}


def small_data_url(data: bytes) -> str:
    """A picture file as one of at most `PICTURE_PX`, in the text that a page takes for an address."""
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (2 * PICTURE_PX, 2 * PICTURE_PX))  # a JPEG is decoded no larger than is needed
        image.thumbnail((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        to_rgb_or_grey(image, None).save(buffer, "WEBP", quality=_QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _style() -> str:
    return "\n".join((HERE / "static" / name).read_text(encoding="utf-8") for name in _STYLES)


def _script() -> str:
    """The modules of pages and the report's own as one script, each in a function that gives its exports."""
    own = (HERE / "static" / _SCRIPT).read_text(encoding="utf-8")
    script = _IMPORT.sub("", "\n".join([*map(_wrapped, _MODULES), own]))
    return re.sub(r"<(?=/script|!--)", r"<\\", script)  # in a comment or a string, where it ends no script


def _wrapped(module: str) -> str:
    text = (HERE / "static" / module).read_text(encoding="utf-8")
    exported = ", ".join(_EXPORT.findall(text))
    return f"const {{ {exported} }} = (() => {{\n{_EXPORT.sub('', text)}\nreturn {{ {exported} }};\n}})();"


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"
