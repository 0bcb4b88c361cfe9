"""Traces in figures that can be drawn: histograms, shares, bars, places on a map; plain data, no drawing.

`static/charts.js` and `static/map.js` draw what stands here. Every chart holds a series for each run, so that
runs can be compared where they are the same but for one setting.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from distil.index.columns import Column
from distil.index.index import TraceIndex
from distil.index.query import Filter, Query
from distil.records import Json
from distil.tasks import TASKS
from distil.tasks.base import Metric, Task
from distil.viewer.run_facts import Floats, RunColumns
from distil.viewer.viewer import trace_link

Chart = dict[str, Json]

Z_95 = 1.959963984540054  # of the normal distribution: 95 % lie within
_MAX_BARS = 16  # more different counts than this are shown as a histogram
_NUM_BINS = 20
_LOG_RANGE = 500  # the largest value is that many times the usual small one: equal steps would show one bar
_STEPS = (1.0, 2.0, 5.0)
_COUNTS = {"turns": "Turns", "calls": "Tool calls", "failed_calls": "Tool calls that failed"}
_MEASURES = {
    metric.heading for task in TASKS.values() for metric in task.metrics if metric.worst not in (0, 1)
}
_TOKENS = {"prompt_tokens": "Tokens in", "completion_tokens": "Tokens out"}
MAX_PAIRS = 20_000  # more are one grey cloud, and megabytes for a browser
_DECIMALS = 4  # of degrees: ten metres
_LIMITS = (90, 180, 90, 180)  # degrees of answer and truth, north and east each
_OF_TRACE = ("run", "file", "sample_index", "rollout", "score")


def wilson_interval(count: int, num: int) -> tuple[float, float]:
    """Where a share lies with 95 % certainty that is seen as `count` of `num`: Wilson's score interval."""
    if num == 0:
        return 0.0, 1.0
    share, z_squared = count / num, Z_95 * Z_95
    middle = share + z_squared / (2 * num)
    half = Z_95 * math.sqrt(share * (1 - share) / num + z_squared / (4 * num * num))
    whole = 1 + z_squared / num
    low, high = (middle - half) / whole, (middle + half) / whole
    return (0.0 if count == 0 else low), (1.0 if count == num else high)


def charts(index: TraceIndex, runs: Sequence[RunColumns]) -> list[Chart]:
    """All charts of the traces of some runs."""
    if not any(run.num_traces for run in runs):
        return []
    metrics = [each for each in index.columns if each.source == "metric" and each.name != "score"]
    metrics = [each for each in metrics if each.kind != "text"]
    shares = [column for column in metrics if _is_share(column, _of_all(runs, column.name))]
    scores = _of_all(runs, "score")
    measured = [
        column
        for column in metrics
        if column not in shares and not _is_score_too(_of_all(runs, column.name), scores)
    ]
    found = [
        _histogram("score", "Score", runs, _of_each(runs, "score")),
        *(
            _histogram(column.name, column.heading, runs, [run.of_answers(column.name) for run in runs])
            for column in measured
        ),
        _shares(runs, shares),
        *(_counts(name, title, runs) for name, title in _COUNTS.items()),
        _bars("stop_reason", "Ended by", runs),
        *(_histogram(name, title, runs, _of_each(runs, name)) for name, title in _TOKENS.items()),
    ]
    return [chart for chart in found if chart is not None]


def _of_each(runs: Sequence[RunColumns], name: str) -> list[Floats]:
    return [run.numbers[name] for run in runs]


def _of_all(runs: Sequence[RunColumns], name: str) -> Floats:
    return np.concatenate(_of_each(runs, name))


def _is_share(metric: Column, values: Floats) -> bool:
    """Whether a metric that some trace has only says yes or no; one in kilometres that are all 0 does not."""
    if metric.heading in _MEASURES:
        return False
    known = values[~np.isnan(values)]
    return len(known) > 0 and bool(np.isin(known, (0.0, 1.0)).all())


def _is_score_too(values: Floats, score: Floats) -> bool:
    """Whether a metric is the score in another unit: a chart of it would be the same one again."""
    both = ~np.isnan(values) & ~np.isnan(score)
    largest = np.abs(score[both]).max(initial=0.0)
    if not both.any() or largest == 0:
        return False
    unit = values[both][np.abs(score[both]).argmax()] / score[both][np.abs(score[both]).argmax()]
    return unit != 0 and bool(np.allclose(values[both], unit * score[both], rtol=1e-6, atol=1e-9 * abs(unit)))


def _histogram(name: str, title: str, runs: Sequence[RunColumns], values: Sequence[Floats]) -> Chart | None:
    of_all = np.concatenate(values)
    if np.isnan(of_all).all():
        return None
    edges = bin_edges(of_all[~np.isnan(of_all)])
    series = [_binned(run.label, of_run, edges) for run, of_run in zip(runs, values, strict=True)]
    return {"kind": "histogram", "id": name, "title": title, "edges": edges, "series": series}


def _binned(label: str, values: Floats, edges: list[float]) -> Json:
    known = values[~np.isnan(values)]
    return {
        "label": label,
        "counts": np.histogram(known, edges)[0].tolist(),
        "missing": len(values) - len(known),
        "median": float(np.median(known)) if len(known) else None,
    }


def bin_edges(values: Floats) -> list[float]:
    """Round edges of bins that hold all values.

    Equal steps, from 0 to 1 for what lies there, as rewards do; 1, 2, 5, 10 … where values differ by orders.
    """
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        return [round(bin_number / _NUM_BINS, 6) for bin_number in range(_NUM_BINS + 1)]
    positive = values[values > 0]
    if low >= 0 and len(positive) and high > _LOG_RANGE * (small := float(np.quantile(positive, 0.1))):
        return [0.0, *_log_steps(max(small, high / 1e6), high)]
    step = _round_step(max((high - low) / _NUM_BINS, max(abs(low), abs(high)) * 1e-9) or 1.0)
    edges = [number * step for number in range(math.floor(low / step), math.floor(high / step) + 2)]
    return [min(edges[0], low), *edges[1:-1], max(edges[-1], high)]


def _log_steps(low: float, high: float) -> Iterator[float]:
    """1, 2 and 5 times the powers of ten from at most `low` to above `high`."""
    power = math.floor(math.log10(low))
    while True:
        for step in _STEPS:
            edge = float(f"{step:g}e{power}")
            yield edge
            if edge > high:
                return
        power += 1


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(known * power for known in (*_STEPS, 10.0) if known * power >= step * (1 - 1e-9))


def _shares(runs: Sequence[RunColumns], shares: Sequence[Column]) -> Chart:
    """Of all traces, those without an answer too, how many have an answer, and are what a metric says."""
    names = {"parse_success": "with an answer"}
    names |= {each.name: each.heading for each in shares}
    rows = [
        {"label": label, "shares": list(map(_share, _of_each(runs, name)))} for name, label in names.items()
    ]
    return {
        "kind": "shares",
        "id": "shares",
        "title": "Share of traces",
        "series": [run.label for run in runs],
        "rows": rows,
    }


def _share(values: Floats) -> Json:
    known = values[~np.isnan(values)]
    count, num = int((known == 1).sum()), len(known)
    low, high = wilson_interval(count, num)
    return {"count": count, "of": num, "share": count / num if num else None, "low": low, "high": high}


def _counts(name: str, title: str, runs: Sequence[RunColumns]) -> Chart | None:
    """Bars of a small whole number, one a value; a histogram where there are many values."""
    values = _of_each(runs, name)
    known = np.concatenate([run.known(name) for run in runs])
    if not known.any():
        return None
    low, high = int(known.min()), int(known.max())
    if high - low >= _MAX_BARS:
        return _histogram(name, title, runs, values)
    rows = [
        (str(number), [int((of_run == number).sum()) for of_run in values]) for number in range(low, high + 1)
    ]
    return _bar_chart("columns", name, title, runs, rows)


def _bars(name: str, title: str, runs: Sequence[RunColumns]) -> Chart:
    counts = [Counter(text or "not stated" for text in run.texts[name].elements()) for run in runs]
    total: Counter[str] = sum(counts, Counter())
    rows = [(text, [of_run[text] for of_run in counts]) for text, _ in total.most_common(_MAX_BARS)]
    return _bar_chart("bars", name, title, runs, rows)


def _bar_chart(
    kind: str, name: str, title: str, runs: Sequence[RunColumns], rows: Iterable[tuple[str, list[int]]]
) -> Chart:
    series = [run.label for run in runs]
    bars = [{"label": label, "counts": counts} for label, counts in rows]
    return {"kind": kind, "id": name, "title": title, "series": series, "rows": bars}


# --- the map


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
