"""What a trace of any format says, in one small record; and the totals over many of them.

Reads our own traces and the earlier system's (`conversation_history`, `tool_calls`, `response`).
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distil.errors import DistilError
from distil.records import Json, SampleId
from distil.spending.prices import token_count
from distil.tasks import TASKS, task_of
from distil.tasks.base import Metric, Rows


@dataclass(frozen=True, slots=True)
class TraceFacts:
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


@dataclass(frozen=True, slots=True)
class BatchTotals:
    """The figures of many traces."""

    num_traces: int
    parse_rate: float
    mean_score: float
    metrics: Rows  # what the task's metrics come to
    mean_turns: float
    stop_reasons: Mapping[str, int]
    num_with_calls: int
    calls: Mapping[str, int]
    failed_calls: Mapping[str, int]
    prompt_tokens: int | None  # None where any trace does not say
    completion_tokens: int | None

    @property
    def num_calls(self) -> int:
        return sum(self.calls.values())


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
        return task_of(trace).truth(mapping_of(trace.get("sample_data")))
    except DistilError:
        return {}


def trace_answer(trace: Mapping[str, Json]) -> Mapping[str, Json]:
    """The answer that a trace states, or that its final response gives; empty where there is none."""
    stated = mapping_of(trace.get("metadata")).get("answer")
    if stated:
        return mapping_of(stated)
    response = trace.get("final_response")
    return (task_of(trace).parse_answer(response) if isinstance(response, str) else None) or {}


def trace_facts(trace: Mapping[str, Json]) -> TraceFacts:
    """The figures of one trace of either format; raises TraceError where its task is not known."""
    reward, metadata = mapping_of(trace.get("reward_score")), mapping_of(trace.get("metadata"))
    task = task_of(trace)
    calls = trace_calls(trace)
    turns = trace_turns(trace)
    parse_success = bool(reward.get("parse_success", metadata.get("parse_success", False)))
    return TraceFacts(
        sample_id=SampleId(_int(trace.get("sample_index")) or 0, _int(trace.get("rollout")) or 0),
        task=task.name,
        parse_success=parse_success,
        metrics={metric.name: _stated(metric, reward, metadata) for metric in task.metrics},
        score=_float(reward.get("score", metadata.get("score")), 0.0),
        turns=_int(metadata.get("total_turns")) or len(turns),
        stop_reason=metadata.get("stop_reason"),
        calls=Counter(call_name(call) for call in calls),
        failed_calls=Counter(call_name(call) for call in calls if not call_succeeded(call)),
        prompt_tokens=_tokens(turns, "prompt_tokens"),
        completion_tokens=_tokens(turns, "completion_tokens"),
    )


def add_up(facts: Sequence[TraceFacts]) -> BatchTotals | None:
    """The figures of many traces, or None for no traces."""
    if not facts:
        return None
    return BatchTotals(
        num_traces=len(facts),
        parse_rate=sum(item.parse_success for item in facts) / len(facts),
        mean_score=statistics.fmean(item.score for item in facts),
        metrics=_metric_rows(facts),
        mean_turns=statistics.fmean(item.turns for item in facts),
        stop_reasons=Counter(item.stop_reason or "not stated" for item in facts),
        num_with_calls=sum(bool(item.calls) for item in facts),
        calls=sum((Counter(item.calls) for item in facts), Counter()),
        failed_calls=sum((Counter(item.failed_calls) for item in facts), Counter()),
        prompt_tokens=_sum_or_none([item.prompt_tokens for item in facts]),
        completion_tokens=_sum_or_none([item.completion_tokens for item in facts]),
    )


def metrics_of(facts: Sequence[TraceFacts]) -> list[Metric]:
    """The metrics of the tasks that the traces are of."""
    tasks = dict.fromkeys(item.task for item in facts)
    return [metric for task in tasks for metric in TASKS[task].metrics]


def _metric_rows(facts: Sequence[TraceFacts]) -> Rows:
    rows: dict[str, str] = {}
    for metric in metrics_of(facts):
        of_task = [item for item in facts if metric.name in item.metrics]
        values = [item.metrics[metric.name] for item in of_task if item.parse_success]
        rows |= metric.over_many(values, len(of_task))
    return rows


def _stated(metric: Metric, reward: Mapping[str, Json], metadata: Mapping[str, Json]) -> float:
    elsewhere = metadata.get(metric.metadata_name) if metric.metadata_name else None
    return _float(reward.get(metric.name, elsewhere), metric.worst)


def _entries(value: Json) -> list[Mapping[str, Json]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def mapping_of(value: Json) -> Mapping[str, Json]:
    """The value if it is an object, else an empty one: traces of other programs hold surprises."""
    return value if isinstance(value, dict) else {}


def _tokens(turns: Sequence[Mapping[str, Json]], name: str) -> int | None:
    return _sum_or_none([token_count(mapping_of(turn.get("usage")).get(name)) for turn in turns])


def _sum_or_none(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


def _int(value: Json) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _float(value: Json, otherwise: float) -> float:
    number = float(value) if isinstance(value, int | float) else otherwise
    return number if math.isfinite(number) else otherwise
