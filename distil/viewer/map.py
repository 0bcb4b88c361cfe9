"""Every answer and its truth as two places on a map; `static/map.js` draws them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import quote

from distil.index.index import TraceIndex
from distil.index.query import Query
from distil.records import Json
from distil.tasks import TASKS
from distil.tasks.base import Metric, Task

MAX_PAIRS = 20_000  # more are one grey cloud, and megabytes for a browser
_DECIMALS = 4  # of degrees: ten metres


def task_with_map(names: Iterable[str]) -> Task | None:
    """The first of these tasks whose truths and answers are places."""
    return next((TASKS[name] for name in names if name in TASKS and TASKS[name].map_axes), None)


def pairs(index: TraceIndex, query: Query, task: Task, link_query: str = "") -> Json:
    """What the map draws of the traces that a query finds: `[link, words, answer, truth, score]`, flat.

    Answer and truth are degrees north and east each. Of more than `MAX_PAIRS` every so-manieth is taken;
    `total` counts all traces that have both. `link_query` is what the links keep of the page's own address.
    """
    names, metrics = _columns(index, task)
    if names is None:
        return {"pairs": [], "total": 0}
    step = -(-index.count(query) // MAX_PAIRS) or 1
    taken: list[Json] = []
    total = 0
    for row in index.rows(query, [*names, *metrics]):
        run, file, sample, rollout, score, *others = row
        places, values = others[:4], others[4:]
        if any(value is None for value in places):
            continue
        if total % step == 0:
            words = _words(sample, rollout, score, zip(metrics.values(), values, strict=True))
            degrees = [round(value, _DECIMALS) for value in places]
            taken.append([trace_link(run, file, link_query), words, *degrees, score])
        total += 1
    return {"pairs": taken, "total": total}


def trace_link(run: int, file: str, link_query: str = "") -> str:
    """The address of a trace's page."""
    part = quote(file.removeprefix("trace_").removesuffix(".json"), safe="")
    return f"/trace/{run}/{part}" + (f"?{link_query}" if link_query else "")


def _columns(index: TraceIndex, task: Task) -> tuple[list[str] | None, Mapping[str, Metric]]:
    """The columns that a pair is made of, None where no trace has places; and those of the task's metrics."""
    known = {column.name for column in index.columns}
    places = [f"{kind}_{axis}" for kind in ("answer", "truth") for axis in task.map_axes or ()]
    by_heading = {metric.heading: metric for metric in task.metrics}
    metrics = {
        column.name: by_heading[column.heading]
        for column in index.columns
        if column.source == "metric" and column.heading in by_heading
    }
    names = ["run", "file", "sample_index", "rollout", "score", *places]
    return (names if known.issuperset(places) and places else None), metrics


def _words(sample: int | None, rollout: int | None, score: float | None, values: Iterable[Json]) -> str:
    later = f", rollout {rollout}" if rollout else ""
    parts = [f"sample {sample}{later}"]
    parts += [f"score {score:.3f}"] if score is not None else []
    parts += [f"{metric.label} {metric.text.format(value)}" for metric, value in values if value is not None]
    return " · ".join(parts)
