"""The tasks that can be distilled: one module each, one line in `TASKS`."""

from __future__ import annotations

from distil.tasks.geolocation import GEOLOCATION, Task

TASKS: dict[str, Task] = {GEOLOCATION.name: GEOLOCATION}

__all__ = ["TASKS", "Task"]
