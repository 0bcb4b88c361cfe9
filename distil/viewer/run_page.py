"""The page of a run, or of several side by side: what they are, where they stand, what they came to."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from distil.index.query import Query
from distil.records import Json, SampleId
from distil.store.status import FolderStatus
from distil.tasks.base import Task
from distil.viewer.charts import charts, pairs, task_with_map
from distil.viewer.pages import answer, query_pairs, read_query, render
from distil.viewer.run_facts import (
    failure_rows,
    figures,
    read_columns,
    read_facts,
    settings_rows,
    spending_figures,
)
from distil.viewer.viewer import Now, Viewer, viewer_of

_FIRST_WAIT_SECONDS = 0.25  # for where a run stands; a large folder's comes a moment later
_IS_ALIVE_SECONDS = 120  # since the last change of a run that may be another machine's


def run_page(request: Request) -> Response:
    """The first page."""
    viewer = viewer_of(request)
    now = viewer.keeper.now(_FIRST_WAIT_SECONDS)
    return render(request, "run.html", now=now_json(viewer, now), **_context(viewer, now))


def _context(viewer: Viewer, now: Now) -> dict[str, Any]:
    facts = [read_facts(folder, name) for folder, name in zip(viewer.folders, viewer.names, strict=True)]
    return {
        "facts": facts,
        "settings": settings_rows(facts),
        "failures": [_failures(viewer, run, status) for run, status in enumerate(now.statuses)],
        "broken": viewer.index.broken,
        **_figures(viewer, now.generation),
        "spending": spending_figures([None if status is None else status.spent for status in now.statuses]),
    }


def _figures(viewer: Viewer, generation: int) -> dict[str, Any]:
    """What all traces come to: of one generation of the index it is read once."""
    found: dict[str, Any] = viewer.cached("figures", generation, lambda: _read_figures(viewer))
    return found


def _read_figures(viewer: Viewer) -> dict[str, Any]:
    runs = read_columns(viewer.index, viewer.names)
    return {
        "figures": figures(viewer.index, runs),
        "charts": charts(viewer.index, runs),
        "num_traces": sum(run.num_traces for run in runs),
        "map_task": task_with_map(dict.fromkeys(task for run in runs for task in run.counts("task"))),
        "models": [", ".join(run.counts("model")) for run in runs],
    }


def _failures(viewer: Viewer, run: int, status: FolderStatus | None) -> Any:
    if status is None or not status.failed:
        return []
    made = viewer.index.rows(Query(where=f"run = {run:d}", order=()), ["sample_index", "rollout"])
    return failure_rows(viewer.folders[run], frozenset(SampleId(*row) for row in made))


def now_page(request: Request) -> Response:
    """Where the runs stand, for a page that asks again and again."""
    viewer = viewer_of(request)
    return answer(now_json(viewer, viewer.keeper.now()))


def now_json(viewer: Viewer, now: Now) -> dict[str, Json]:
    """Where the runs stand."""
    runs = [
        {"name": name} | ({"state": None} if status is None else _status_json(status))
        for name, status in zip(viewer.names, now.statuses, strict=True)
    ]
    return {
        "generation": now.generation,
        "is_read": now.is_read,
        "problem": now.problem,
        "is_live": any(status is not None and _may_go_on(status) for status in now.statuses),
        "runs": runs,
    }


def _status_json(status: FolderStatus) -> dict[str, Json]:
    values = asdict(status)
    del values["spent"]
    if not status.num_runs and status.state == "broken off":  # of another program, or made by nobody's run
        values["state"] = "no record"
    costs = [bill.cost_usd for bill in status.spent.bills if bill.cost_usd is not None]
    return values | {
        "num_failed": sum(status.failed.values()),
        "cost_usd": sum(costs) if costs else None,
        "requests": status.spent.calls,
    }


def _may_go_on(status: FolderStatus) -> bool:
    since = status.seconds_since_change
    is_fresh = since is not None and since < _IS_ALIVE_SECONDS
    return status.state == "running" or (status.state == "broken off" and is_fresh)


def pairs_of(request: Request) -> Response:
    """What the map of the traces that a URL asks for draws."""
    viewer, query = viewer_of(request), read_query(request.query_params)
    generation = viewer.keeper.now().generation
    task = _figures(viewer, generation)["map_task"]
    if task is None:
        return answer({"pairs": [], "total": 0})
    if query != Query():
        return answer(_pairs(viewer, query, task))
    body = viewer.cached("map", generation, lambda: answer(_pairs(viewer, query, task)).body)
    return Response(body, media_type="application/json")


def _pairs(viewer: Viewer, query: Query, task: Task) -> Json:
    return pairs(viewer.index, replace(query, order=()), task, urlencode(list(query_pairs(query))))


RUN_ROUTES = (Route("/", run_page), Route("/api/now", now_page), Route("/api/pairs", pairs_of))
