"""What a trace of any format says, in one small record; and the totals over many of them.

Reads our own traces and the earlier system's (`conversation_history`, `tool_calls`, `response`).
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from distil.errors import DistilError
from distil.records import Json, SampleId, mapping_of
from distil.spending.prices import token_count
from distil.tasks import TASKS, task_of, task_to_show
from distil.tasks.base import Metric, Rows, Task

NumberT = TypeVar("NumberT", int, float)


class StatedBox(NamedTuple):
    """A zoom box as the teacher wrote it, whether it fitted, and whether it is of the photo itself."""

    numbers: tuple[float, ...]
    fitted: bool
    is_first_view: bool


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """One trace's figures; None where the trace does not say."""

    sample_id: SampleId
    task: str
    parse_success: bool
    metrics: Mapping[str, float]  # by the names of the task's metrics
    score: float
    turns: int
    stop_reason: str | None
    calls: Mapping[str, int]  # tool name → calls
    failed_calls: Mapping[str, int]
    prompt_tokens: int | None
    completion_tokens: int | None
    # What follows only the run looks at that makes the trace: it is not read back from a file.
    seconds: float | None = None
    billed_tokens: int | None = None  # with reasoning that a server counts in its total alone
    cost_usd: float | None = None
    is_resumed: bool = False  # it went on from turns of an earlier run
    is_accepted: bool | None = None  # None where nobody says which traces are
    boxes: tuple[StatedBox, ...] = ()
    first_failure: str | None = None  # what the teacher was told of its first failed call
    reports_tokens: bool = False  # of every turn
    too_few_tokens: str | None = None  # the first turn with fewer prompt tokens than its pictures need
    final_text: str = ""  # shortened, and told apart all the same
    repeats_itself: bool = False


@dataclass
class Totals:
    """The figures of many traces, added up one by one; of a trace only its metrics' values are kept."""

    num_traces: int = 0
    num_answers: int = 0
    sum_scores: float = 0.0
    num_turns: int = 0
    stop_reasons: Counter[str] = field(default_factory=Counter)
    num_with_calls: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    failed_calls: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int | None = 0  # None where any trace does not say
    completion_tokens: int | None = 0
    tasks: Counter[str] = field(default_factory=Counter)  # traces of each task, in the order they were met
    # By metric, of the answers; kept, in 8 bytes each, as an exact median needs them all.
    values: dict[str, array[float]] = field(default_factory=dict)
    num_with_metric: Counter[str] = field(default_factory=Counter)

    def add(self, item: TraceSummary) -> None:
        """Count a trace."""
        self.num_traces += 1
        self.num_answers += item.parse_success
        self.sum_scores += item.score
        self.num_turns += item.turns
        self.stop_reasons[item.stop_reason or "not stated"] += 1
        self.num_with_calls += bool(item.calls)
        self.calls.update(item.calls)
        self.failed_calls.update(item.failed_calls)
        self.prompt_tokens = sum_or_none([self.prompt_tokens, item.prompt_tokens])
        self.completion_tokens = sum_or_none([self.completion_tokens, item.completion_tokens])
        self._add_metrics(item)

    def _add_metrics(self, item: TraceSummary) -> None:
        self.tasks[item.task] += 1
        self.num_with_metric.update(item.metrics.keys())
        if item.parse_success:
            for name, value in item.metrics.items():
                self.values.setdefault(name, array("d")).append(value)

    @property
    def metrics(self) -> Rows:
        """What the metrics of the traces' tasks come to."""
        rows: dict[str, str] = {}
        for metric in metrics_of(self.tasks):
            rows |= metric.over_many(self.values.get(metric.name, ()), self.num_with_metric[metric.name])
        return rows

    @property
    def parse_rate(self) -> float:
        return self.num_answers / self.num_traces

    @property
    def mean_score(self) -> float:
        return self.sum_scores / self.num_traces

    @property
    def mean_turns(self) -> float:
        return self.num_turns / self.num_traces

    @property
    def num_calls(self) -> int:
        return self.calls.total()


def trace_turns(trace: Mapping[str, Json]) -> list[Mapping[str, Json]]:
    """The turns of a trace of either format."""
    return _entries(trace.get("conversation_log", trace.get("conversation_history")))


def trace_calls(trace: Mapping[str, Json]) -> list[Mapping[str, Json]]:
    """The tool calls of a trace of either format."""
    return _entries(trace.get("tool_calls_log", trace.get("tool_calls")))


def turn_text(turn: Mapping[str, Json]) -> str:
    """What the teacher wrote in a turn of either format."""
    for name in ("assistant_response", "response", "content"):
        if isinstance(turn.get(name), str):
            return str(turn[name])
    return ""


def call_name(call: Mapping[str, Json]) -> str:
    """The tool that a call of either format names."""
    return str(call.get("tool_name") or call.get("name") or "unknown")


def call_succeeded(call: Mapping[str, Json]) -> bool:
    """Whether a call worked; the earlier system did not always say, and kept failed ones out."""
    return bool(call.get("success", True))


def trace_truth(trace: Mapping[str, Json]) -> Mapping[str, Json]:
    """The truth that a trace states, or by its row's columns: the earlier system stated it nowhere else."""
    stated = mapping_of(trace.get("metadata")).get("truth")
    if stated:
        return mapping_of(stated)
    try:
        return task_to_show(trace)[0].truth(mapping_of(trace.get("sample_data")))
    except DistilError:
        return {}


def trace_answer(trace: Mapping[str, Json]) -> Mapping[str, Json]:
    """The answer that a trace states, or that its final response gives; empty where there is none."""
    stated = mapping_of(trace.get("metadata")).get("answer")
    if stated:
        return mapping_of(stated)
    response = trace.get("final_response")
    return (task_to_show(trace)[0].parse_answer(response) if isinstance(response, str) else None) or {}


def read_summary(trace: Mapping[str, Json], task: Task | None = None) -> TraceSummary:
    """The figures of one trace of either format; raises TraceError where its task is not known, or given."""
    reward, metadata = mapping_of(trace.get("reward_score")), mapping_of(trace.get("metadata"))
    task = task or task_of(trace)
    calls = trace_calls(trace)
    turns = trace_turns(trace)
    usages = [turn.get("usage") for turn in turns]
    parse_success = bool(reward.get("parse_success", metadata.get("parse_success", False)))
    return TraceSummary(
        sample_id=SampleId(_int(trace.get("sample_index")) or 0, _int(trace.get("rollout")) or 0),
        task=task.name,
        parse_success=parse_success,
        metrics=stated_metrics(task, reward, metadata),
        score=_float(reward.get("score", metadata.get("score")), 0.0),
        turns=_int(metadata.get("total_turns")) or len(turns),
        stop_reason=metadata.get("stop_reason"),
        calls=Counter(call_name(call) for call in calls),
        failed_calls=Counter(call_name(call) for call in calls if not call_succeeded(call)),
        prompt_tokens=reported_tokens(usages, "prompt_tokens"),
        completion_tokens=reported_tokens(usages, "completion_tokens"),
    )


def metrics_of(tasks: Iterable[str]) -> list[Metric]:
    """The metrics of tasks, each task's once."""
    known = [TASKS[task] for task in dict.fromkeys(tasks) if task in TASKS]
    return [metric for task in known for metric in task.metrics]


def stated_metrics(task: Task, reward: Mapping[str, Json], metadata: Mapping[str, Json]) -> dict[str, float]:
    """The values of a task's metrics, by their names, as a trace's `reward_score` or `metadata` has them."""
    return {metric.name: _stated(metric, reward, metadata) for metric in task.metrics}


def _stated(metric: Metric, reward: Mapping[str, Json], metadata: Mapping[str, Json]) -> float:
    elsewhere = metadata.get(metric.metadata_name) if metric.metadata_name else None
    return _float(reward.get(metric.name, elsewhere), metric.worst)


def _entries(value: Json) -> list[Mapping[str, Json]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def reported_tokens(usages: Iterable[Json], name: str) -> int | None:
    """The tokens of this name over all turns; None where a turn's server did not report them."""
    return sum_or_none([token_count(mapping_of(usage).get(name)) for usage in usages])


def sum_or_none(values: Sequence[NumberT | None]) -> NumberT | None:
    """The sum of the values, None where one of them is not known, or there is none."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _int(value: Json) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _float(value: Json, otherwise: float) -> float:
    number = float(value) if isinstance(value, int | float) else otherwise
    return number if math.isfinite(number) else otherwise
