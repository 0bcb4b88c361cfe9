"""The app: which function answers which address, and how errors are said."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles

from distil.errors import DistilError
from distil.viewer.compare_page import COMPARE_ROUTES
from distil.viewer.list_page import LIST_ROUTES
from distil.viewer.pages import HERE, answer, render
from distil.viewer.preview_page import PREVIEW_ROUTES
from distil.viewer.run_page import RUN_ROUTES
from distil.viewer.trace_page import TRACE_ROUTES
from distil.viewer.viewer import Viewer

ROUTES: Sequence[BaseRoute] = (
    *RUN_ROUTES,
    *LIST_ROUTES,
    *TRACE_ROUTES,
    *PREVIEW_ROUTES,
    *COMPARE_ROUTES,
    Mount("/static", StaticFiles(directory=HERE / "static"), name="static"),
)


def create_app(viewer: Viewer) -> Starlette:
    """The app that shows a viewer's folders; who may ask is a matter of `guard`."""
    app = Starlette(
        routes=list(ROUTES), exception_handlers={HTTPException: _say_http_error, DistilError: _say_error}
    )
    app.state.viewer = viewer
    viewer.keeper.now()
    return app


def _say_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _said(request, error.status_code, error.detail)


def _say_error(request: Request, error: Exception) -> Response:
    return _said(request, 400, str(error))


def _said(request: Request, status: int, text: str) -> Response:
    if request.url.path.startswith("/api/"):
        return answer({"error": text}, status)
    return render(request, "error.html", status, code=status, text=text)
