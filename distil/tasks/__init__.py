"""The tasks that can be distilled: one module each, one line in `TASKS`."""

from __future__ import annotations

from collections.abc import Mapping

from distil.errors import TraceError
from distil.records import Json
from distil.tasks.base import Task
from distil.tasks.geolocation import GEOLOCATION

TASKS: dict[str, Task] = {GEOLOCATION.name: GEOLOCATION}
DEFAULT_TASK = GEOLOCATION.name  # of a run that names none; the earlier system's traces know no other


def task_of(trace: Mapping[str, Json]) -> Task:
    """The task that a trace of either format was made for; raises TraceError where there is no such task."""
    settings = trace.get("settings")
    name = settings.get("task", DEFAULT_TASK) if isinstance(settings, dict) else DEFAULT_TASK
    if not isinstance(name, str) or name not in TASKS:
        raise TraceError(f"there is no task {name!r} to read it with; tasks: {', '.join(TASKS)}")
    return TASKS[name]
