"""What every page is asked, and answers with: query strings, templates, JSON.

A page's URL says which traces to show: `f=score>=0.5` for each condition, `q=words in conversations`,
`where=SQL`, `sort=-score,turns`. A condition is `COLUMN` `=`, `!=`, `<`, `<=`, `>`, `>=` or `~` (contains)
and a value, or `COLUMN:null`, `COLUMN:known`, or `COLUMN=` for an empty text. Whatever a trace holds is
escaped in a page.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from distil import __version__
from distil.errors import UsageError
from distil.index.query import Filter, Operator, Query
from distil.records import Json, Size
from distil.viewer.viewer import viewer_of
from distil.viewer.visible import plain, visible

HERE = Path(__file__).parent
LAND_FILE = HERE / "static" / "land.json"  # the outlines that maps are drawn of; docs/make_map.py makes it
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


@cache
def environment() -> Environment:
    """The templates; what they are given is escaped everywhere, and what they are not given is an error."""
    found = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(figure=figure, visible=visible, plain=plain, display_size=display_size)
    found.globals["version"] = __version__
    return found


def render(request: Request, template: str, status: int = 200, **context: Any) -> HTMLResponse:
    """A page of a template that extends `base.html`.

    Every template has `viewer`, `path` (of the request) and `query` (its query string without "?").
    """
    text = (
        environment()
        .get_template(template)
        .render(
            viewer=viewer_of(request),
            path=request.url.path,
            query=request.url.query,
            **context,
        )
    )
    return HTMLResponse(text, status_code=status)


def answer(content: Json, status: int = 200) -> Response:
    """A value as JSON."""
    return Response(json_bytes(content), status, media_type="application/json")


def json_bytes(content: Json) -> bytes:
    """A value as JSON, whatever its texts hold: half a character too, as file names may."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def display_size(size: Size | None, max_width: int, max_height: int) -> Size | None:
    """At what size a picture is laid out: its own, or the largest that fits."""
    if size is None:
        return None
    scale = min(1, max_width / size[0], max_height / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def figure(value: float | None, places: int = 0) -> str:
    """`1,234`, `0.75`, or a dash where it is not known."""
    return "–" if value is None else f"{value:,.{places}f}"


# --- what a URL asks for


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
