"""What `--json` gives: the keys stand here and in docs/running.md, and stay."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from distil.doctor.findings import Examination
from distil.records import Json
from distil.sandbox.bounds import Layers
from distil.spending.estimate import Estimate
from distil.store.status import FolderStatus
from distil.store.summary import Totals, TraceSummary

if TYPE_CHECKING:
    from distil.replay.verify import Verdict, Verification

Document = dict[str, Json]


def trace_document(path: Path, facts: TraceSummary) -> Document:
    """One trace's figures."""
    return {
        "path": str(path),
        **facts.sample_id.as_json(),
        "task": facts.task,
        "parse_success": facts.parse_success,
        "score": facts.score,
        "metrics": dict(facts.metrics),
        "turns": facts.turns,
        "stop_reason": facts.stop_reason,
        "calls": dict(facts.calls),
        "failed_calls": dict(facts.failed_calls),
        "prompt_tokens": facts.prompt_tokens,
        "completion_tokens": facts.completion_tokens,
    }


def totals_document(totals: Totals) -> Document:
    """The totals over traces; means are null where there is none."""
    has_traces = totals.num_traces > 0
    return {
        "num_traces": totals.num_traces,
        "num_answers": totals.num_answers,
        "mean_score": totals.mean_score if has_traces else None,
        "metrics": {
            name: {"mean": statistics.fmean(values), "median": statistics.median(values)}
            for name, values in totals.values.items()
        },
        "mean_turns": totals.mean_turns if has_traces else None,
        "stop_reasons": dict(totals.stop_reasons),
        "num_with_calls": totals.num_with_calls,
        "calls": dict(totals.calls),
        "failed_calls": dict(totals.failed_calls),
        "prompt_tokens": totals.prompt_tokens,
        "completion_tokens": totals.completion_tokens,
    }


def verification_document(counts: Mapping[Verdict, int], listed: Iterable[Verification]) -> Document:
    """How many traces got each verdict, and the traces that are listed."""
    from distil.replay.verify import Verdict  # noqa: PLC0415 - with `datasets`, which a view or a run need not

    return {
        "num_traces": sum(counts.values()),
        "num_matched": counts.get(Verdict.MATCHED, 0),
        "verdicts": {verdict.value: counts.get(verdict, 0) for verdict in Verdict},
        "traces": [
            {"path": str(each.path), "verdict": each.verdict.value, "detail": each.detail} for each in listed
        ],
    }


def sandbox_document(layers: Layers) -> Document:
    """The layers that contain code."""
    return {name: {"status": status, "detail": detail} for name, status, detail in layers.rows}


def examination_document(found: Examination, url: str) -> Document:
    """What was found out about one server."""
    return {
        "api_base": url,
        "model": found.model,
        "profile": found.profile.name,
        "tool_mode": found.tool_mode.value,
        "coordinates": None if found.found_frame.frame is None else found.found_frame.frame.value,
        "findings": [asdict(finding) for finding in found.findings],
        "suggestions": [asdict(suggestion) for suggestion in found.suggestions],
        "warnings": list(found.warnings),
        "problems": list(found.problems),
        "num_requests": found.num_requests,
    }


def estimate_document(
    estimates: Mapping[str, Estimate | None], num_left: int, notes: Sequence[str]
) -> Document:
    """What a selection will take; null where it is not known."""
    return {
        "num_left": num_left,
        **{
            name: None
            if each is None
            else asdict(each) | {"whole_range": each.whole_range and list(each.whole_range)}
            for name, each in estimates.items()
        },
        "notes": list(notes),
    }


def status_document(status: FolderStatus) -> Document:
    """Where a run's folder stands."""
    return asdict(status)
