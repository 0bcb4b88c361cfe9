"""Pages from templates; whatever a trace holds is escaped."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse

from distil import __version__
from distil.records import Json
from distil.viewer.viewer import viewer_of
from distil.viewer.visible import plain, visible

HERE = Path(__file__).parent


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
    found.filters.update(figure=figure, visible=visible, plain=plain)
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


class Answer(JSONResponse):
    """A value as JSON, whatever its texts hold: half a character too, as file names may."""

    def render(self, content: Json) -> bytes:
        return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def figure(value: float | None, places: int = 0) -> str:
    """`1,234`, `0.75`, or a dash where it is not known."""
    return "–" if value is None else f"{value:,.{places}f}"
