"""Every answer and its truth as two places on a map; `static/map.js` draws them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from urllib.parse import quote

from distil.index.index import TraceIndex
from distil.index.query import Filter, Query
from distil.records import Json
from distil.tasks import TASKS
from distil.tasks.base import Metric, Task

MAX_PAIRS = 20_000  # more are one grey cloud, and megabytes for a browser
_DECIMALS = 4  # of degrees: ten metres
_LIMITS = (90, 180, 90, 180)  # degrees of answer and truth, north and east each
_OF_TRACE = ("run", "file", "sample_index", "rollout", "score")


def task_with_map(names: Iterable[str]) -> Task | None:
    """The first of these tasks whose truths and answers are places."""
    return next((TASKS[name] for name in names if name in TASKS and TASKS[name].map_axes), None)


def pairs(index: TraceIndex, query: Query, task: Task, link_query: str = "") -> Json:
    """What the map draws of the traces that a query finds: `[link, words, answer, truth, score]`, flat.

    Answer and truth are degrees north and east each. Of more than `MAX_PAIRS` every so-manieth is taken;
    `total` counts all traces that have both. `link_query` is what the links keep of the page's own address.
    """
    places = _place_columns(index, task)
    if not places:
        return {"pairs": [], "total": 0}
    with_both = tuple(Filter(name, "is not null") for name in places)
    query = replace(query, filters=(*query.filters, *with_both))
    metrics = _metric_columns(index, task)
    step = -(-index.count(query) // MAX_PAIRS) or 1
    taken: list[Json] = []
    total = 0
    for row in index.rows(query, [*_OF_TRACE, *places, *metrics]):
        run, file, sample, rollout, score, *values = row
        degrees = _degrees(values[: len(places)])
        if degrees is None:
            continue
        if total % step == 0:
            words = _words(sample, rollout, score, zip(metrics.values(), values[len(places) :], strict=True))
            taken.append([trace_link(run, file, link_query), words, *degrees, score])
        total += 1
    return {"pairs": taken, "total": total}


def trace_link(run: int, file: str, link_query: str = "") -> str:
    """The address of a trace's page."""
    part = quote(file.removeprefix("trace_").removesuffix(".json"), safe="")
    return f"/trace/{run}/{part}" + (f"?{link_query}" if link_query else "")


def _place_columns(index: TraceIndex, task: Task) -> list[str]:
    """The columns of answer and truth, north and east each; none where no trace has them."""
    known = {column.name for column in index.columns}
    names = [f"{kind}_{axis}" for kind in ("answer", "truth") for axis in task.map_axes or ()]
    return names if known.issuperset(names) else []


def _metric_columns(index: TraceIndex, task: Task) -> Mapping[str, Metric]:
    by_heading = {metric.heading: metric for metric in task.metrics}
    return {
        column.name: by_heading[column.heading]
        for column in index.columns
        if column.source == "metric" and column.heading in by_heading
    }


def _degrees(values: Sequence[Json]) -> list[float] | None:
    """Two places on a globe; None where they are none: a trace that somebody else made may say anything."""
    try:
        degrees = [round(float(value), _DECIMALS) for value in values]  # texts, where some trace has one
    except (TypeError, ValueError):
        return None
    is_place = all(abs(value) <= limit for value, limit in zip(degrees, _LIMITS, strict=True))
    return degrees if is_place else None


def _words(sample: int | None, rollout: int | None, score: float | None, values: Iterable[Json]) -> str:
    later = f", rollout {rollout}" if rollout else ""
    parts = [f"sample {sample}{later}"]
    parts += [f"score {score:.3f}"] if score is not None else []
    parts += [f"{metric.label} {metric.text.format(value)}" for metric, value in values if value is not None]
    return " · ".join(parts)
