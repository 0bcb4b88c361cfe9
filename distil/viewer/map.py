"""Every answer and its truth as two places on a map, for tasks that have places; `static/map.js` draws them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from distil.index.index import TraceIndex
from distil.index.query import Filter, Query
from distil.records import Json
from distil.tasks import TASKS

MAX_PAIRS = 20_000  # more are one grey cloud, and megabytes for a browser


def map_axes(tasks: Iterable[str]) -> tuple[str, str] | None:
    """The fields of truth and answer that are degrees north and east, where one of the tasks has places."""
    known = (TASKS[name].map_axes for name in tasks if name in TASKS)
    return next((axes for axes in known if axes), None)
