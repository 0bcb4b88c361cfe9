"""The tasks that can be distilled: a module and a line in `TASKS` each; and those of own files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distil.errors import TraceError
from distil.records import Json, Score, mapping_of
from distil.tasks.base import Task
from distil.tasks.geolocation import GEOLOCATION
from distil.tasks.vqa import VQA

TASKS: dict[str, Task] = {GEOLOCATION.name: GEOLOCATION, VQA.name: VQA}
IMPORTED_TASK = "imported"  # of conversations of others: nobody knows their truth
DEFAULT_TASK = GEOLOCATION.name  # of a run that names none; the earlier system's traces know no other


def task_of(trace: Mapping[str, Json]) -> Task:
    """The task that a trace of either format was made for; raises TraceError where there is no such task."""
    name = task_name_of(trace)
    if name == IMPORTED_TASK:
        return _NotAtHand(IMPORTED_TASK)
    if not isinstance(name, str) or name not in TASKS:
        known = ", ".join(TASKS)
        raise TraceError(f"there is no task {name!r} to read it with; tasks: {known}{_own_file_text(trace)}")
    return TASKS[name]


@dataclass(frozen=True)
class _NotAtHand(Task):
    """What stands in for a task that nobody has: what a trace of it states can be shown all the same."""

    name: str = ""

    @property
    def user_prompt(self) -> str:
        return ""

    def truth(self, row: Mapping[str, Json]) -> Mapping[str, Json]:
        return {}

    def parse_answer(self, response: str) -> Mapping[str, Json] | None:
        return None

    def score(self, answer: Mapping[str, Json] | None, truth: Mapping[str, Json]) -> Score:
        return Score(0.0, False, {})


def task_to_show(trace: Mapping[str, Json]) -> tuple[Task, str | None]:
    """The task of a trace, or what stands in for it, and then what to do to have the task itself."""
    try:
        return task_of(trace), None
    except TraceError as error:
        return _NotAtHand(str(task_name_of(trace))), str(error)


def task_name_of(trace: Mapping[str, Json]) -> Json:
    """What a trace of either format says that its task is called."""
    return mapping_of(trace.get("settings")).get("task", DEFAULT_TASK)


def _own_file_text(trace: Mapping[str, Json]) -> str:
    """Which file had the task of a trace, and the flag for it; a trace alone never has one imported."""
    settings = mapping_of(trace["settings"])
    file = mapping_of(mapping_of(settings.get("own_code")).get("task")).get("file")
    return "" if file is None else f"; its own was in {file}: give that by --task FILE:{settings['task']}"
