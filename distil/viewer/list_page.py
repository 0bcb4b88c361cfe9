"""The list of traces: filtered, sorted, searched."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from distil.viewer.templating import render


def list_page(request: Request) -> Response:
    """The list; the rows come as they are scrolled to."""
    return render(request, "traces.html")


LIST_ROUTES = (Route("/traces", list_page),)
