"""What the traces of each folder come to, in figures for a person; read from the index."""

from __future__ import annotations

import statistics
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isnan, nan

from distil.index.index import TraceIndex
from distil.index.query import Query
from distil.records import Json
from distil.spending.budget import Bill, Spent
from distil.store.summary import metrics_of
from distil.tasks.base import Metric
from distil.viewer.visible import LARGEST

_NUMBERS = (
    "score",
    "parse_success",
    "turns",
    "calls",
    "failed_calls",
    "clamped_boxes",
    "prompt_tokens",
    "completion_tokens",
    "seconds",
)
_TEXTS = ("task", "mark", "model")
UNKNOWN = "–"


@dataclass
class OfRun:
    """The columns of one folder's traces: numbers with NaN for what a trace does not say, texts counted."""

    numbers: dict[str, array[float]] = field(default_factory=dict)
    texts: dict[str, Counter[Json]] = field(default_factory=dict)
    num_traces: int = 0

    def known(self, name: str) -> list[float]:
        """The values that traces state."""
        return [value for value in self.numbers.get(name, ()) if not isnan(value)]

    def mean(self, name: str) -> float | None:
        known = self.known(name)
        return statistics.fmean(known) if known else None

    def counts(self, name: str) -> Counter[str]:
        """How many traces have each text; those that have none are left out."""
        return Counter({str(text): count for text, count in self.texts[name].items() if text is not None})


@dataclass(frozen=True)
class Figure:
    """A figure by its label, as text, for each folder; `values` are the numbers, for a mark at the best."""

    label: str
    texts: tuple[str, ...]
    hint: str = ""
    is_headline: bool = False


def read_columns(index: TraceIndex, num_runs: int) -> list[OfRun]:
    """The figures of all traces, by folder."""
    metrics = [column.name for column in index.columns if column.source == "metric" and column.kind != "text"]
    names = list(dict.fromkeys([*_NUMBERS, *metrics]))
    found = [
        OfRun({name: array("d") for name in names}, {name: Counter() for name in _TEXTS})
        for _ in range(num_runs)
    ]
    appends = [[each.numbers[name].append for name in names] for each in found]
    for row in index.rows(Query(order=()), ["run", *_TEXTS, *names]):
        of_run = found[row[0]]
        of_run.num_traces += 1
        for name, text in zip(_TEXTS, row[1:], strict=False):
            of_run.texts[name][text] += 1
        for append, value in zip(appends[row[0]], row[1 + len(_TEXTS) :], strict=True):
            append(nan if value is None or abs(value) >= LARGEST else value)
    return found


def figures(index: TraceIndex, runs: Sequence[OfRun]) -> list[Figure]:
    """The figures of each folder, side by side; those that no folder has are left out."""

    def of_each(
        label: str, text: Callable[[OfRun], str], hint: str = "", is_headline: bool = False
    ) -> Figure:
        return Figure(label, tuple(map(text, runs)), hint, is_headline)

    found = [
        of_each("traces", lambda run: f"{run.num_traces:,}", is_headline=True),
        of_each("with an answer", _answered, is_headline=True),
        of_each("mean score", lambda run: _number(run.mean("score"), 3), is_headline=True),
        *_metric_figures(index, runs),
        of_each("turns a trace", lambda run: _number(run.mean("turns"), 2), is_headline=True),
        of_each("tool calls a trace", lambda run: _number(run.mean("calls"), 2), is_headline=True),
        of_each("calls that failed", lambda run: _share(run, "failed_calls", "calls")),
        of_each("boxes cut to the picture", lambda run: _sum(run, "clamped_boxes")),
        of_each("tokens in", lambda run: _sum(run, "prompt_tokens")),
        of_each("tokens out", lambda run: _sum(run, "completion_tokens")),
        of_each("seconds a trace, median", _median_seconds),
        of_each("marked keep", lambda run: f"{run.counts('mark')['keep']:,}"),
        of_each("marked drop", lambda run: f"{run.counts('mark')['drop']:,}"),
    ]
    return [each for each in found if set(each.texts) - {UNKNOWN}]


def _metric_figures(index: TraceIndex, runs: Sequence[OfRun]) -> list[Figure]:
    """What each metric of the traces' tasks comes to, as the task words it."""
    tasks = {task for run in runs for task in run.counts("task")}
    texts: dict[str, list[str]] = {}
    for metric in metrics_of(sorted(tasks)):
        name = column_of(index, metric)
        if name is None:
            continue
        for position, run in enumerate(runs):
            if metric not in metrics_of(run.counts("task")):  # of another run's task
                continue
            for label, text in _over_many(metric, name, run).items():
                texts.setdefault(label, [UNKNOWN] * len(runs))[position] = text
    return [Figure(label, tuple(of_runs)) for label, of_runs in texts.items()]


def _over_many(metric: Metric, name: str, run: OfRun) -> dict[str, str]:
    pairs = zip(run.numbers[name], run.numbers["parse_success"], strict=True)
    values = [value for value, is_answer in pairs if is_answer == 1 and not isnan(value)]
    return dict(metric.over_many(values, run.num_traces)) if run.num_traces else {}


def column_of(index: TraceIndex, metric: Metric) -> str | None:
    """The column that holds a task's metric."""
    fitting = (column for column in index.columns if column.source == "metric")
    return next((column.name for column in fitting if column.heading == metric.heading), None)


def spending_figures(all_spent: Sequence[Spent | None]) -> list[Figure]:
    """What requests came to, over all runs into each folder."""
    costs = tuple(UNKNOWN if spent is None else _cost_text(spent.bills) for spent in all_spent)
    requests = tuple(UNKNOWN if spent is None else f"{spent.calls:,}" for spent in all_spent)
    found = [Figure("requests", requests), Figure("spent", costs, is_headline=True)]
    return [each for each in found if set(each.texts) - {UNKNOWN}]


def _cost_text(bills: Sequence[Bill]) -> str:
    known = [bill.cost_usd for bill in bills if bill.cost_usd is not None]
    return f"${sum(known):,.4f}" if known else UNKNOWN


def _answered(run: OfRun) -> str:
    if not run.num_traces:
        return UNKNOWN
    count = sum(value == 1 for value in run.numbers["parse_success"])
    return f"{count / run.num_traces:.0%}"


def _median_seconds(run: OfRun) -> str:
    known = run.known("seconds")
    return f"{statistics.median(known):,.1f}" if known else UNKNOWN


def _share(run: OfRun, part: str, whole: str) -> str:
    of = sum(run.known(whole))
    return f"{sum(run.known(part)) / of:.1%}" if of else UNKNOWN


def _sum(run: OfRun, name: str) -> str:
    known = run.known(name)
    return f"{sum(known):,.0f}" if known else UNKNOWN


def _number(value: float | None, places: int) -> str:
    return UNKNOWN if value is None else f"{value:,.{places}f}"
