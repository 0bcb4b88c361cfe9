"""What a trace of any format says, in one small record; and the totals over many of them.

Reads our own traces and the earlier system's (`conversation_history`, `tool_calls`, `response`).
"""

from __future__ import annotations

import math
import statistics
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from distil.errors import DistilError
from distil.records import Json
from distil.spending.prices import token_count
from distil.tasks.geolocation import ACCURACY_RADII_KM, GEOLOCATION, NO_ANSWER_KM

NumberT = TypeVar("NumberT", int, float)


class ZoomBox(NamedTuple):
    """A zoom box as the teacher wrote it, whether it fitted, and whether it is of the photo itself."""

    numbers: tuple[float, ...]
    fitted: bool
    is_first_view: bool


class TooFewTokens(NamedTuple):
    """The first turn of a sample whose prompt tokens cannot hold its pictures."""

    turn: int
    prompt_tokens: int
    needed: int


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """One trace's figures; None where the trace does not say."""

    sample_index: int
    parse_success: bool
    distance_km: float
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
    boxes: tuple[ZoomBox, ...] = ()
    first_failure: str | None = None  # what the teacher was told of its first failed call
    reports_tokens: bool = False  # of every turn
    too_few_tokens: TooFewTokens | None = None
    final_text: str = ""  # shortened, and told apart all the same
    repeats_itself: bool = False


@dataclass
class Totals:
    """The figures of many traces, added up one by one; of a trace only its answer's distance is kept."""

    num_traces: int = 0
    sum_scores: float = 0.0
    num_turns: int = 0
    stop_reasons: Counter[str] = field(default_factory=Counter)
    num_with_calls: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    failed_calls: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int | None = 0  # None where any trace does not say
    completion_tokens: int | None = 0
    # Of the answers; kept, in 8 bytes each, as an exact median needs them all.
    distances_km: array[float] = field(default_factory=lambda: array("d"))

    def add(self, item: TraceSummary) -> None:
        """Count a trace."""
        self.num_traces += 1
        self.sum_scores += item.score
        self.num_turns += item.turns
        self.stop_reasons[item.stop_reason or "not stated"] += 1
        self.num_with_calls += bool(item.calls)
        self.calls.update(item.calls)
        self.failed_calls.update(item.failed_calls)
        self.prompt_tokens = sum_or_none([self.prompt_tokens, item.prompt_tokens])
        self.completion_tokens = sum_or_none([self.completion_tokens, item.completion_tokens])
        if item.parse_success:
            self.distances_km.append(item.distance_km)

    @property
    def parse_rate(self) -> float:
        return len(self.distances_km) / self.num_traces

    @property
    def mean_score(self) -> float:
        return self.sum_scores / self.num_traces

    @property
    def mean_distance_km(self) -> float | None:
        """Over the traces with an answer."""
        return statistics.fmean(self.distances_km) if self.distances_km else None

    @property
    def median_distance_km(self) -> float | None:
        """Over the traces with an answer."""
        return statistics.median(self.distances_km) if self.distances_km else None

    @property
    def accuracy_at_km(self) -> dict[int, float]:
        """Over all traces: no answer is not within any radius."""
        return {
            radius: sum(distance <= radius for distance in self.distances_km) / self.num_traces
            for radius in ACCURACY_RADII_KM
        }

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


def row_place(trace: Mapping[str, Json]) -> Json:
    """The true place by the row's columns: the earlier system stated it nowhere else."""
    try:
        truth = GEOLOCATION.truth(mapping_of(trace.get("sample_data")))
    except DistilError:
        return None
    return {"lat": truth.lat, "lon": truth.lon}


def answer_place(trace: Mapping[str, Json]) -> Json:
    """The answer in the final response, for traces that do not state it."""
    response = trace.get("final_response")
    place = GEOLOCATION.parse_answer(response) if isinstance(response, str) else None
    return None if place is None else {"lat": place.lat, "lon": place.lon}


def read_summary(trace: Mapping[str, Json]) -> TraceSummary:
    """The figures of one trace of either format."""
    reward, metadata = mapping_of(trace.get("reward_score")), mapping_of(trace.get("metadata"))
    calls = trace_calls(trace)
    turns = trace_turns(trace)
    parse_success = bool(reward.get("parse_success", metadata.get("parse_success", False)))
    return TraceSummary(
        sample_index=_int(trace.get("sample_index")) or 0,
        parse_success=parse_success,
        distance_km=_float(reward.get("distance@km", metadata.get("distance_km")), NO_ANSWER_KM),
        score=_float(reward.get("score", metadata.get("score")), 0.0),
        turns=_int(metadata.get("total_turns")) or len(turns),
        stop_reason=metadata.get("stop_reason"),
        calls=Counter(call_name(call) for call in calls),
        failed_calls=Counter(call_name(call) for call in calls if not call_succeeded(call)),
        prompt_tokens=_tokens(turns, "prompt_tokens"),
        completion_tokens=_tokens(turns, "completion_tokens"),
    )


def _entries(value: Json) -> list[Mapping[str, Json]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def mapping_of(value: Json) -> Mapping[str, Json]:
    """The value if it is an object, else an empty one: traces of other programs hold surprises."""
    return value if isinstance(value, dict) else {}


def _tokens(turns: Sequence[Mapping[str, Json]], name: str) -> int | None:
    return sum_or_none([token_count(mapping_of(turn.get("usage")).get(name)) for turn in turns])


def sum_or_none(values: Sequence[NumberT | None]) -> NumberT | None:
    """The sum of the values, None where one of them is not known, or there is none."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _int(value: Json) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _float(value: Json, otherwise: float) -> float:
    number = float(value) if isinstance(value, int | float) else otherwise
    return number if math.isfinite(number) else otherwise
