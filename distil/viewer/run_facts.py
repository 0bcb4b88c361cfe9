"""What a folder says of its run, its failures and its traces, as rows and figures for a person."""

from __future__ import annotations

import datetime as dt
import json
import statistics
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distil.errors import DistilError
from distil.index.index import TraceIndex
from distil.index.query import Query
from distil.records import Failure, Json, SampleId, mapping_of
from distil.spending.budget import Bill, Spent
from distil.store.claim import read_runs
from distil.store.folder import FAILED_SAMPLES, read_failures
from distil.store.summary import metrics_of
from distil.store.trace_settings import teacher_lines
from distil.tasks.base import Metric
from distil.viewer.visible import LARGEST, finite

Floats = NDArray[np.float64]  # one number a trace, NaN where the trace has none
FailuresOfKind = tuple[str, int, Sequence[tuple[str, int, str]], int]
# The kind, how many; of its most frequent messages each with its number and samples; how many more messages.

UNKNOWN = "–"
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
_TEXTS = ("task", "mark", "model", "stop_reason")
_MAX_MESSAGES = 12  # of a kind of failure
_MAX_SAMPLES = 8  # named for a message
_LONG_CHARS = 90
_OPTIONS = ("dataset_path", "order", "seed", "num_samples", "max_workers", "output_dir")


@dataclass(frozen=True)
class Setting:
    """A setting by its name, with its value in each folder as text; None where a folder does not say."""

    name: str
    values: tuple[str | None, ...]

    @property
    def differs(self) -> bool:
        return len(set(self.values)) > 1

    @property
    def is_long(self) -> bool:
        return any(value is not None and (len(value) > _LONG_CHARS or "\n" in value) for value in self.values)


@dataclass(frozen=True)
class FolderFacts:
    """What the record of a folder says."""

    name: str
    folder: str
    runs: Sequence[Mapping[str, Json]]  # as they are recorded, the last one last
    warnings: Sequence[str]
    problem: str | None
    teacher: Sequence[str]
    facts: Sequence[tuple[str, str]]
    history: Sequence[Mapping[str, Json]]

    @property
    def last(self) -> Mapping[str, Json]:
        return self.runs[-1] if self.runs else {}

    @property
    def settings(self) -> Mapping[str, Json]:
        return mapping_of(self.last.get("settings"))


def read_facts(folder: Path, name: str) -> FolderFacts:
    """The facts of a folder; a record that cannot be read is one of them."""
    try:
        runs, problem = [run for run in read_runs(folder) if isinstance(run, dict)], None
    except DistilError as error:
        runs, problem = [], str(error)
    last: Mapping[str, Json] = runs[-1] if runs else {}
    settings = mapping_of(last.get("settings"))
    warnings = list(dict.fromkeys(str(text) for run in runs for text in _list(run.get("warnings"))))
    return FolderFacts(
        name,
        str(folder),
        runs,
        warnings,
        problem,
        teacher=list(teacher_lines(settings)) if settings else [],
        facts=list(_facts(last)),
        history=[_history_row(number, run) for number, run in enumerate(runs, start=1)],
    )


def _facts(run: Mapping[str, Json]) -> Iterable[tuple[str, str]]:
    settings, dataset = mapping_of(run.get("settings")), mapping_of(run.get("dataset"))
    probe, options = mapping_of(run.get("probe")), mapping_of(run.get("options"))
    if "model" in settings:
        yield "teacher", _text(settings["model"])
    if probe.get("api_base"):
        yield "at", _text(probe["api_base"])
    if settings:
        yield "tools", ", ".join(tool_names(settings)) or "none"
        yield "task", _text(settings.get("task"))
    if dataset:
        split = f", split {dataset['split']}" if dataset.get("split") else ""
        yield "dataset", f"{dataset.get('source') or dataset.get('path')}{split}"
        if isinstance(dataset.get("num_rows"), int):
            yield "rows", f"{dataset['num_rows']:,}"
    for name in ("temperature", "max_turns", "max_tokens", "tool_mode", "coordinates", "crop_from", "seed"):
        if settings.get(name) is not None:
            yield name.replace("_", " "), _text(settings[name])
    if options.get("order") not in (None, "dataset"):
        yield "order", _text(options["order"])


def tool_names(settings: Mapping[str, Json]) -> list[str]:
    """The tools that a run's settings offer."""
    schemas = settings.get("tool_schemas")
    names = [mapping_of(mapping_of(schema).get("function")).get("name") for schema in _list(schemas)]
    return [name for name in names if isinstance(name, str)]


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []


def _history_row(number: int, run: Mapping[str, Json]) -> Mapping[str, Json]:
    spent = mapping_of(run.get("spent"))
    costs = [mapping_of(spent.get(state)).get("cost_usd") for state in ("answered", "retried")]
    known = [cost for cost in map(finite, costs) if cost is not None]
    versions = mapping_of(run.get("versions"))
    return {
        "number": number,
        "started": _time_text(run.get("started_at")),
        "seconds": finite(run.get("seconds")),
        "num_finished": run.get("num_finished"),
        "num_failed": run.get("num_failed"),
        "stopped_by": run.get("stopped_by"),
        "cost_usd": sum(known) if known else None,
        "version": versions.get("distil"),
    }


def _time_text(text: Json) -> str:
    """A stated time in the zone of this machine, to the minute."""
    try:
        return dt.datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M")
    except (TypeError, ValueError):
        return "–" if text is None else str(text)


def settings_rows(all_facts: Sequence[FolderFacts]) -> list[Setting]:
    """Every setting of the last runs, and the options that say which samples, in their order."""
    flat = [_flat(facts) for facts in all_facts]
    names = dict.fromkeys(name for values in flat for name in values)
    return [Setting(name, tuple(values.get(name) for values in flat)) for name in names]


def _flat(facts: FolderFacts) -> dict[str, str]:
    last = facts.last
    values: dict[str, str] = {}
    for name, value in facts.settings.items():
        if name == "tool_schemas":
            values["tools"] = ", ".join(tool_names(facts.settings)) or "none"
            values["tool schemas"] = json.dumps(value, ensure_ascii=False, indent=1)
        elif isinstance(value, dict):
            values |= {f"{name}.{key}": _text(inner) for key, inner in value.items()}
        else:
            values[name] = _text(value)
    dataset = mapping_of(last.get("dataset"))
    values |= {
        f"dataset.{name}": _text(dataset[name])
        for name in ("source", "split", "fingerprint")
        if name in dataset
    }
    options = mapping_of(last.get("options"))
    values |= {f"--{name}": _text(options[name]) for name in _OPTIONS if name in options}
    versions = mapping_of(last.get("versions"))
    return values | {f"version of {name}": _text(value) for name, value in versions.items()}


def _text(value: Json) -> str:
    if isinstance(value, str):
        return value
    return "–" if value is None else json.dumps(value, ensure_ascii=False)


def failure_rows(folder: Path, is_made: frozenset[SampleId]) -> list[FailuresOfKind]:
    """The failures of samples that have no trace, by kind and message, the most frequent first."""
    failures = [
        each for each in read_failures(folder / FAILED_SAMPLES)[0].values() if each.sample_id not in is_made
    ]
    kinds = Counter(failure.kind.value for failure in failures)
    return [
        _kind_rows(kind, [each for each in failures if each.kind.value == kind])
        for kind, _ in kinds.most_common()
    ]


def _kind_rows(kind: str, failures: Sequence[Failure]) -> FailuresOfKind:
    messages = Counter(failure.message for failure in failures)
    rows = []
    for message, count in messages.most_common(_MAX_MESSAGES):
        ids = sorted(failure.sample_id for failure in failures if failure.message == message)
        named = ", ".join(map(str, ids[:_MAX_SAMPLES])) + (" …" if len(ids) > _MAX_SAMPLES else "")
        rows.append((message, count, named))
    return kind, len(failures), rows, max(0, len(messages) - _MAX_MESSAGES)


# --- figures


@dataclass(frozen=True)
class RunColumns:
    """The columns of one folder's traces: numbers with NaN for what a trace does not say, texts counted."""

    label: str
    numbers: Mapping[str, Floats]
    texts: Mapping[str, Counter[Json]]

    @property
    def num_traces(self) -> int:
        return len(self.numbers["score"])

    def known(self, name: str) -> Floats:
        """The values that traces state."""
        values = self.numbers[name]
        return values[~np.isnan(values)]

    def of_answers(self, name: str) -> Floats:
        """The values of the traces that have an answer, NaN for all others."""
        return np.where(self.numbers["parse_success"] == 1, self.numbers[name], nan)

    def counts(self, name: str) -> Counter[str]:
        """How many traces have each text; those that have none are left out."""
        return Counter({str(text): count for text, count in self.texts[name].items() if text is not None})


@dataclass(frozen=True)
class Figure:
    """A figure by its label, as text, for each folder."""

    label: str
    texts: tuple[str, ...]
    is_headline: bool = False


def read_columns(index: TraceIndex, labels: Sequence[str], query: Query | None = None) -> list[RunColumns]:
    """The figures of the traces that a query finds, or of all, by folder; `labels` are the folders' names."""
    metrics = [column.name for column in index.columns if column.source == "metric" and column.kind != "text"]
    names = list(dict.fromkeys([*_NUMBERS, *metrics]))
    numbers = [{name: array("d") for name in names} for _ in labels]
    texts: list[dict[str, Counter[Json]]] = [{name: Counter() for name in _TEXTS} for _ in labels]
    appends = [[of_run[name].append for name in names] for of_run in numbers]
    for row in index.rows(replace(query or Query(), order=()), ["run", *_TEXTS, *names]):
        for name, text in zip(_TEXTS, row[1:], strict=False):
            texts[row[0]][name][text] += 1
        for append, value in zip(appends[row[0]], row[1 + len(_TEXTS) :], strict=True):
            append(nan if value is None or abs(value) >= LARGEST else value)
    return [
        RunColumns(label, {name: np.asarray(values) for name, values in of_run.items()}, of_texts)
        for label, of_run, of_texts in zip(labels, numbers, texts, strict=True)
    ]


def figures(index: TraceIndex, runs: Sequence[RunColumns]) -> list[Figure]:
    """The figures of each folder, side by side; those that no folder has are left out."""

    def of_each(label: str, text: Callable[[RunColumns], str], is_headline: bool = False) -> Figure:
        return Figure(label, tuple(map(text, runs)), is_headline)

    found = [
        of_each("traces", lambda run: f"{run.num_traces:,}", is_headline=True),
        of_each("with an answer", _answered, is_headline=True),
        of_each("mean score", lambda run: _mean(run, "score", 3), is_headline=True),
        *_metric_figures(index, runs),
        of_each("turns a trace", lambda run: _mean(run, "turns", 2), is_headline=True),
        of_each("tool calls a trace", lambda run: _mean(run, "calls", 2), is_headline=True),
        of_each("calls that failed", lambda run: _share(run, "failed_calls", "calls")),
        of_each("boxes cut to the picture", lambda run: _sum(run, "clamped_boxes")),
        of_each("tokens in", lambda run: _sum(run, "prompt_tokens")),
        of_each("tokens out", lambda run: _sum(run, "completion_tokens")),
        of_each("seconds a trace, median", _median_seconds),
        of_each("marked keep", lambda run: f"{run.counts('mark')['keep']:,}"),
        of_each("marked drop", lambda run: f"{run.counts('mark')['drop']:,}"),
    ]
    return [each for each in found if set(each.texts) - {UNKNOWN}]


def _metric_figures(index: TraceIndex, runs: Sequence[RunColumns]) -> list[Figure]:
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


def _over_many(metric: Metric, name: str, run: RunColumns) -> dict[str, str]:
    values = run.of_answers(name)
    known = values[~np.isnan(values)].tolist()
    return dict(metric.over_many(known, run.num_traces)) if run.num_traces else {}


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


def _answered(run: RunColumns) -> str:
    return f"{(run.numbers['parse_success'] == 1).mean():.0%}" if run.num_traces else UNKNOWN


def _median_seconds(run: RunColumns) -> str:
    known = run.known("seconds")
    return f"{np.median(known):,.1f}" if len(known) else UNKNOWN


def _share(run: RunColumns, part: str, whole: str) -> str:
    of = run.known(whole).sum()
    return f"{run.known(part).sum() / of:.1%}" if of else UNKNOWN


def _sum(run: RunColumns, name: str) -> str:
    known = run.known(name)
    return f"{known.sum():,.0f}" if len(known) else UNKNOWN


def _mean(run: RunColumns, name: str, places: int) -> str:
    known = run.known(name)
    return f"{statistics.fmean(known):,.{places}f}" if len(known) else UNKNOWN
