"""The page of a run: what it is, where it stands, what it came to."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from distil.viewer.templating import render


def run_page(request: Request) -> Response:
    """The first page."""
    return render(request, "run.html")


RUN_ROUTES = (Route("/", run_page),)
