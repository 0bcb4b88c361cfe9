"""Traces in figures that can be drawn: histograms, shares with their intervals, bars; plain data, no drawing.

`static/charts.js` draws what stands here. Every chart holds a series for each run, so that runs can be
compared where they are the same but for one setting.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from distil.index.columns import Column
from distil.index.index import TraceIndex
from distil.index.query import Query
from distil.records import Json
from distil.tasks import TASKS
from distil.viewer.visible import LARGEST

Chart = dict[str, Json]
Floats = NDArray[np.float64]  # one number a trace, NaN where the trace has none

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


@dataclass(frozen=True)
class _Columns:
    """The columns that charts are made of, whole, each with one value a trace."""

    labels: Sequence[str]  # of the runs
    run: NDArray[np.int64]
    numbers: dict[str, Floats]
    texts: dict[str, list[str]]

    def of_each_run(self, values: Floats) -> list[Floats]:
        return [values[self.run == number] for number in range(len(self.labels))]


def charts(index: TraceIndex, query: Query, labels: Sequence[str]) -> list[Chart]:
    """All charts of the traces that a query finds; `labels` name the runs, in their order."""
    metrics = [each for each in index.columns if each.source == "metric" and each.name != "score"]
    metrics = [each for each in metrics if each.kind != "text"]
    data = _read(index, query, labels, [column.name for column in metrics])
    if not len(data.run):
        return []
    is_answer = data.numbers["parse_success"] == 1
    shares = [column for column in metrics if _is_share(column, data.numbers[column.name])]
    measured = [column for column in metrics if column not in shares]
    measured = [column for column in measured if not _is_score_too(data, column.name)]
    found = [
        _histogram(data, "score", "Score", data.numbers["score"]),
        *(
            _histogram(
                data, column.name, column.heading, np.where(is_answer, data.numbers[column.name], np.nan)
            )
            for column in measured
        ),
        _shares(data, shares),
        *(_counts(data, name, title) for name, title in _COUNTS.items()),
        _bars(data, "stop_reason", "Ended by"),
        *(_histogram(data, name, title, data.numbers[name]) for name, title in _TOKENS.items()),
    ]
    return [chart for chart in found if chart is not None]


def _read(index: TraceIndex, query: Query, labels: Sequence[str], metrics: Sequence[str]) -> _Columns:
    names = ["run", "stop_reason", "score", "parse_success", *_COUNTS, *_TOKENS]
    names += [name for name in metrics if name not in names]
    columns = list(zip(*index.rows(replace(query, order=()), names), strict=True)) or [()] * len(names)
    given = dict(zip(names, columns, strict=True))
    numbers = {name: _floats(given[name]) for name in names if name not in ("run", "stop_reason")}
    texts = {"stop_reason": [text or "not stated" for text in given["stop_reason"]]}
    return _Columns(labels, np.asarray(given["run"], dtype=np.int64), numbers, texts)


def _floats(values: Sequence[Json]) -> Floats:
    numbers = np.asarray([np.nan if value is None else value for value in values], dtype=np.float64)
    return np.where(np.abs(numbers) < LARGEST, numbers, np.nan)


def _is_share(metric: Column, values: Floats) -> bool:
    """Whether a metric that some trace has only says yes or no; one in kilometres that are all 0 does not."""
    if metric.heading in _MEASURES:
        return False
    known = values[~np.isnan(values)]
    return len(known) > 0 and bool(np.isin(known, (0.0, 1.0)).all())


def _is_score_too(data: _Columns, name: str) -> bool:
    """Whether a metric is the score in another unit: a chart of it would be the same one again."""
    values, score = data.numbers[name], data.numbers["score"]
    both = ~np.isnan(values) & ~np.isnan(score)
    largest = np.abs(score[both]).max(initial=0.0)
    if not both.any() or largest == 0:
        return False
    unit = values[both][np.abs(score[both]).argmax()] / score[both][np.abs(score[both]).argmax()]
    return unit != 0 and bool(np.allclose(values[both], unit * score[both], rtol=1e-6, atol=1e-9 * abs(unit)))


def _histogram(data: _Columns, name: str, title: str, values: Floats) -> Chart | None:
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    edges = bin_edges(known)
    series = []
    for label, of_run in zip(data.labels, data.of_each_run(values), strict=True):
        finite = of_run[np.isfinite(of_run)]
        counts, _ = np.histogram(finite, edges)
        middle = float(np.median(finite)) if len(finite) else None
        series.append(
            {
                "label": label,
                "counts": counts.tolist(),
                "missing": len(of_run) - len(finite),
                "median": middle,
            }
        )
    return {
        "kind": "histogram", "id": name, "title": title, "edges": edges, "series": series,
        "is_log": edges[-1] - edges[-2] > 2 * (edges[1] - edges[0]),
    }  # fmt: skip


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


def _shares(data: _Columns, shares: Sequence[Column]) -> Chart:
    """Of all traces, those without an answer too, how many have an answer, and are what a metric says."""
    names = {"parse_success": "with an answer"}
    names |= {each.name: each.heading for each in shares}
    rows = [
        {"label": label, "shares": [_share(of_run) for of_run in data.of_each_run(data.numbers[name])]}
        for name, label in names.items()
    ]
    return {
        "kind": "shares",
        "id": "shares",
        "title": "Share of traces",
        "series": [*data.labels],
        "rows": rows,
    }


def _share(values: Floats) -> Json:
    known = values[~np.isnan(values)]
    count, num = int((known == 1).sum()), len(known)
    low, high = wilson_interval(count, num)
    return {"count": count, "of": num, "share": count / num if num else None, "low": low, "high": high}


def _counts(data: _Columns, name: str, title: str) -> Chart | None:
    """Bars of a small whole number, one a value; a histogram where there are many values."""
    values = data.numbers[name]
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    low, high = int(known.min()), int(known.max())
    if high == low == 0:
        return None
    if high - low >= _MAX_BARS:
        return _histogram(data, name, title, values)
    rows = [
        {
            "label": str(number),
            "counts": [int((of_run == number).sum()) for of_run in data.of_each_run(values)],
        }
        for number in range(low, high + 1)
    ]
    return {"kind": "columns", "id": name, "title": title, "series": [*data.labels], "rows": rows}


def _bars(data: _Columns, name: str, title: str) -> Chart:
    pairs = Counter(zip(data.texts[name], data.run.tolist(), strict=True))
    total = Counter(data.texts[name])
    rows = [
        {"label": text, "counts": [pairs[text, run] for run in range(len(data.labels))]}
        for text, _ in total.most_common(_MAX_BARS)
    ]
    return {"kind": "bars", "id": name, "title": title, "series": [*data.labels], "rows": rows}
