"""A trace → its row of the table and the text that is searched."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from distil.errors import TraceError
from distil.index.columns import Column, Kind, Source
from distil.messages.tags import split_thinking
from distil.records import Json, SampleId, ToolMode
from distil.store.summary import (
    call_succeeded,
    mapping_of,
    read_summary,
    trace_answer,
    trace_calls,
    trace_truth,
    trace_turns,
    turn_text,
)
from distil.store.trace_file import load_json, sample_of_name
from distil.tasks import task_to_show
from distil.tasks.base import Task
from distil.tasks.rewards import Scored

Cell = str | int | float | bool | None
MAX_CELL_CHARS = 4000  # a longer text of a row is cut: it is for filtering, the trace has it all
MAX_INTEGER = 2**63 - 1
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
# Scripts that are written without spaces: each letter is a word to the search.
_UNSPACED = re.compile("([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
                       "\U00020000-\U0003ffff])")  # fmt: skip
# What a trace of another program may make of a field that is read as if it were ours.
_BAD_FORM = (TypeError, ValueError, ArithmeticError, AttributeError, LookupError, RecursionError)


DynamicCell = tuple[Column, Cell]  # a column by its name in the trace, there only where a trace has it


@dataclass(frozen=True, slots=True)
class TraceRow:
    """What the index holds of one trace: its columns and the text that is searched."""

    fixed: Mapping[str, Cell]
    dynamic: tuple[DynamicCell, ...]
    text: str


def read_row(path: Path) -> TraceRow:
    """Read a trace file of either format; raises TraceError with a text that does not name the file."""
    try:
        return trace_row(path.name, load_json(path))
    except TraceError as error:
        raise TraceError(str(error).removeprefix(f"{path}: ")) from None
    except _BAD_FORM as error:
        raise TraceError(f"a field has the wrong form: {error}") from None


def trace_row(file_name: str, trace: Mapping[str, Json]) -> TraceRow:
    """The row of a trace, of a task that is not known as far as it states it."""
    task, _ = task_to_show(trace)
    summary = read_summary(trace, task)
    metadata, reward = mapping_of(trace.get("metadata")), mapping_of(trace.get("reward_score"))
    image, settings = mapping_of(trace.get("image")), mapping_of(trace.get("settings"))
    dataset = mapping_of(trace.get("dataset"))
    turns, calls = trace_turns(trace), trace_calls(trace)
    truth, answer = trace_truth(trace), trace_answer(trace)
    sample_id = _sample_of(file_name, trace)
    stated_clamped = metadata.get("num_clamped_boxes")
    clamped = sum(bool(call.get("clamped")) for call in calls)
    fixed: dict[str, Json] = {
        "file": file_name,
        "sample_index": None if sample_id is None else sample_id.index,
        "rollout": None if sample_id is None else sample_id.rollout,
        "task": summary.task,
        "dataset_path": trace.get("dataset_path"),
        "fingerprint": dataset.get("fingerprint"),
        "model": settings.get("model"),
        "settings_sha256": metadata.get("settings_sha256"),
        "image_sha256": image.get("file_sha256"),
        "width_px": image.get("width_px"),
        "height_px": image.get("height_px"),
        "score": summary.score if "score" in reward or "score" in metadata else None,
        "parse_success": summary.parse_success,
        "answer": task.text(answer) if answer else None,
        "truth": task.text(truth) if truth else None,
        "turns": summary.turns,
        "calls": sum(summary.calls.values()),
        "failed_calls": sum(summary.failed_calls.values()),
        "clamped_boxes": stated_clamped if isinstance(stated_clamped, int) else clamped,
        "tools": ",".join(sorted(summary.calls)),
        "stop_reason": summary.stop_reason,
        "finish_reason": turns[-1].get("finish_reason") if turns else None,
        "recipe_restores": metadata.get("recipe_restores"),
        "prompt_tokens": summary.prompt_tokens,
        "completion_tokens": summary.completion_tokens,
        "reasoning_chars": sum(len(thought) for turn in turns for thought in _thoughts(turn)),
        "without_tools": _without_tools(trace, settings),
    }
    return TraceRow(
        {name: cell(value) for name, value in fixed.items()},
        (
            *_metric_cells(task, reward, metadata),
            *_scalars("trace", {"answer": answer, "truth": truth}, separator="_"),
            *_scalars("row", mapping_of(trace.get("sample_data")), separator="."),
        ),
        searchable("\n".join(_texts(turns, calls, trace.get("final_response")))),
    )


def score_cells(line: Mapping[str, Json]) -> list[DynamicCell]:
    """What a line of `scores.jsonl` says, for the columns that a run's own reward of that name has.

    None of a line of another form.
    """
    name, details = line.get("reward"), line.get("details")
    if not isinstance(name, str) or not isinstance(details, dict):
        return []
    fields = Scored(line.get("score"), details).fields(name)
    return [
        _dynamic("metric", storable(key), value)
        for key, value in fields.items()
        if value is None or _is_number(value)
    ]


def _dynamic(source: Source, key: str, value: Json, heading: str | None = None) -> DynamicCell:
    kind: Kind = "flag" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"
    return Column(key, kind, key if heading is None else heading, source), cell(value)


def searchable(text: str) -> str:
    """A text as the search sees it: letters of scripts without spaces stand alone."""
    text = storable(text)
    return text if text.isascii() else _UNSPACED.sub(r" \1 ", text)


def storable(text: str) -> str:
    """A text without what SQLite cannot hold."""
    return _UNSTORABLE.sub("\ufffd", text)


def _sample_of(file_name: str, trace: Mapping[str, Json]) -> SampleId | None:
    try:
        return SampleId.from_json(trace)
    except (KeyError, TypeError):
        return sample_of_name(file_name)


def _without_tools(trace: Mapping[str, Json], settings: Mapping[str, Json]) -> bool | None:
    if trace.get("without_tools") is True:
        return True
    return settings["tool_mode"] == ToolMode.NONE if "tool_mode" in settings else None


def _metric_cells(
    task: Task, reward: Mapping[str, Json], metadata: Mapping[str, Json]
) -> Iterator[DynamicCell]:
    """Every number of the reward, and what the task keeps of them in the metadata where it is there alone."""
    headings = {metric.name: metric.heading for metric in task.metrics}
    elsewhere = {
        metric.name: metadata[metric.metadata_name]
        for metric in task.metrics
        if metric.metadata_name in metadata and metric.metadata_name is not None
    }
    for key, value in {**elsewhere, **reward}.items():
        if _is_number(value) and key != "score":
            yield _dynamic("metric", storable(key), value, headings.get(key))


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _scalars(
    source: Source, values: Mapping[str, Json], separator: str, before: str = ""
) -> Iterator[DynamicCell]:
    """The scalars of an object, those of objects in it by both names."""
    for name, value in values.items():
        key = storable(before + name)
        if isinstance(value, dict):
            yield from _scalars(source, value, separator, key + separator)
        elif not isinstance(value, list):
            yield _dynamic(source, key, value)


def cell(value: Json) -> Cell:
    """A value as a cell: null where it is no scalar, or no number that counts."""
    if isinstance(value, str):
        return storable(value[:MAX_CELL_CHARS])
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return (
            value if abs(value) <= MAX_INTEGER else cell(float(value) if value.bit_length() < 1000 else None)
        )
    return value if isinstance(value, float) and math.isfinite(value) else None


def _thoughts(turn: Mapping[str, Json]) -> list[str]:
    reasoning = turn.get("reasoning")
    thoughts = [reasoning if isinstance(reasoning, str) else split_thinking(turn_text(turn))[0]]
    return [thought for thought in thoughts if thought]


def _texts(
    turns: list[Mapping[str, Json]], calls: list[Mapping[str, Json]], final_response: Json
) -> Iterator[str]:
    """What was said, thought, called and printed; not what is the same in all traces."""
    for turn in turns:
        yield turn_text(turn)
        others = mapping_of(turn.get("other_reasoning")).values()
        yield from (text for text in (turn.get("reasoning"), *others) if isinstance(text, str))
    for call in calls:
        code, stdout, message = call.get("code"), call.get("stdout"), call.get("message")
        arguments = code if isinstance(code, str) else call.get("tool_arguments", call.get("arguments"))
        yield arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        if isinstance(stdout, str):
            yield stdout
        if isinstance(message, str) and not call_succeeded(call):
            yield message
    if not turns and isinstance(final_response, str):
        yield final_response
