"""A rollout ↔ its trace file: the mission's fields, and ours beside them.

Field by field in docs/trace-format.md. Nothing in a trace depends on the clock, the number of workers
or the machine, so the same inputs and a deterministic teacher give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL

from distil import __version__
from distil.errors import TraceError
from distil.pictures import data_url
from distil.records import (
    DatasetIdentity,
    Json,
    Observation,
    PictureFacts,
    Prompt,
    RawCall,
    Reply,
    Rollout,
    SampleId,
    Score,
    SentPicture,
    ToolCall,
    ToolMode,
    Turn,
)
from distil.store.atomic import json_bytes
from distil.store.summary import reported_tokens
from distil.store.trace_settings import TraceSettings, json_sha256
from distil.tasks import TASKS
from distil.tasks.rewards import reward_of
from distil.tools.toolbox import find_tool

FORMAT = "distil-trace/1"
TRACE_FILES = "trace_*.json"
IMPORTED = "distil-import/1"  # of a conversation that another program had
_OF_DATASET = ("source", "kind", "split", "fingerprint", "num_rows")  # in the order of DatasetIdentity
# What a trace of ours or of the earlier system has; other JSON files have none of them.
_MARKS = ("sample_index", "conversation_log", "conversation_history")


@dataclass(frozen=True)
class RunFacts:
    """What all traces of a run share: how it was made, and what that hashes to."""

    dataset: DatasetIdentity
    settings: TraceSettings
    versions: Mapping[str, str]

    @cached_property
    def settings_json(self) -> dict[str, Json]:
        """The settings as every trace has them; not to be changed."""
        return self.settings.as_json()

    @cached_property
    def settings_sha256(self) -> str:
        """The hash of the settings with the dataset's fingerprint."""
        return self.settings.sha256(self.dataset.fingerprint)


def trace_name(sample_id: SampleId) -> str:
    """The file name of a sample's trace."""
    return f"trace_{sample_id.file_part}.json"


def sample_of_name(file_name: str) -> SampleId | None:
    """The sample that a trace of this file name is of, None for another name."""
    return SampleId.from_file_part(file_name.removeprefix("trace_").removesuffix(".json"))


def find_trace_files(folder: Path) -> list[Path]:
    """The trace files of a folder in the order of their samples; those with other names come last."""

    def place_of(path: Path) -> tuple[bool, SampleId | None, int, str]:
        sample_id = sample_of_name(path.name)
        return sample_id is None, sample_id, len(path.name), path.name

    return sorted(folder.glob(TRACE_FILES), key=place_of)


def versions_now() -> dict[str, str]:
    """The versions of what shapes a trace's pictures and texts."""
    return {"distil": __version__, "pillow": PIL.__version__, "numpy": np.__version__}


def trace_json(rollout: Rollout, run: RunFacts) -> dict[str, Json]:
    """The trace of a finished rollout, ready to be written."""
    sample = rollout.sample
    trace: dict[str, Json] = {
        "format": FORMAT,
        "dataset_path": run.dataset.path,
        **sample.id.as_json(),
        "sample_data": dict(sample.data),
        "conversation_log": [_turn_json(turn) for turn in rollout.turns],
        "tool_calls_log": [
            _call_json(turn.number, call, run.settings.keep_pictures)
            for turn in rollout.turns
            for call in turn.calls
        ],
        "final_response": rollout.turns[-1].reply.content,
        "reward_score": _score_json(rollout.score),
        "metadata": _metadata_json(rollout, run),
        "dataset": dataset_json(run.dataset),
        "image": {
            "file_sha256": sample.picture.file_sha256,
            "file_format": sample.picture.file_format,
            "exif_orientation": sample.picture.exif_orientation,
            **facts_json(sample.picture.facts),
            "sent": sent_json(rollout.sent),
        },
        "settings": run.settings_json,
    }
    _, reward = reward_of(trace)
    if reward is not None:
        trace["reward_score"] |= reward.of(trace, solution_text(trace)).fields(reward.name)
    trace["integrity_sha256"] = json_sha256(trace)
    return trace


def solution_text(trace: Mapping[str, Json]) -> str:
    """All turns as one text, with calls written as `<tool_call>`: as a student's response would read."""
    calls = trace["tool_calls_log"]
    return "\n".join(
        _turn_text(turn, [call for call in calls if call["turn"] == turn["turn"]])
        for turn in trace["conversation_log"]
    )


def _turn_text(turn: Mapping[str, Json], calls: Sequence[Mapping[str, Json]]) -> str:
    written = [(call["tool_name"], raw_arguments(call)) for call in calls]
    written += [(call["name"], call["arguments"]) for call in turn.get("calls_not_run", ())]
    if turn["call_form"] != ToolMode.NATIVE:
        return str(turn["assistant_response"])
    texts = [
        json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False) for name, arguments in written
    ]
    blocks = [f"<tool_call>\n{text}\n</tool_call>" for text in texts]
    return "\n".join([turn["assistant_response"], *blocks] if turn["assistant_response"] else blocks)


def _turn_json(turn: Turn) -> Json:
    reply = turn.reply
    entry: dict[str, Json] = {
        "turn": turn.number,
        "assistant_response": reply.content,
        "reasoning": reply.reasoning,
        "reasoning_field": reply.reasoning_field,
        "finish_reason": reply.finish_reason,
        "call_form": reply.call_form.value if reply.calls else None,
        "usage": reply.usage if reply.usage is None else dict(reply.usage),
    }
    if reply.other_reasoning:
        entry["other_reasoning"] = dict(reply.other_reasoning)
    if reply.refusal is not None:
        entry["refusal"] = reply.refusal
    if reply.model is not None:
        entry["model"] = reply.model
    if reply.calls and not turn.calls:  # a cut-off turn: what it wrote is kept, nothing was run
        entry["calls_not_run"] = [_call_not_run(call) for call in reply.calls]
    return entry


def _call_not_run(call: RawCall) -> Json:
    entry: dict[str, Json] = {"name": call.name, "arguments": call.arguments}
    return entry if call.call_id is None else entry | {"call_id": call.call_id}


def _call_json(turn: int, call: ToolCall, keeps_pictures: bool) -> Json:
    observation, tool = call.observation, find_tool(call.raw.name)
    entry: dict[str, Json] = {"turn": turn, "tool_name": call.raw.name}
    if tool is not None and tool.runs_code and "code" in call.arguments:
        entry["code"] = call.arguments["code"]
    else:
        entry["tool_arguments"] = dict(call.arguments)
    if "code" not in entry or call.raw.arguments != {"code": entry["code"]}:  # long: it is not written twice
        entry["raw_arguments"] = call.raw.arguments
    entry |= {
        "success": observation.success,
        "message": observation.message,
        "clamped": call.clamped,
    }
    if observation.stdout is not None:
        entry["stdout"] = observation.stdout
    if call.raw.call_id is not None:
        entry["call_id"] = call.raw.call_id
    if observation.facts is not None and observation.sent is not None:
        entry["result"] = {**facts_json(observation.facts), "sent": sent_json(observation.sent)}
        if keeps_pictures:
            entry["picture"] = data_url(observation.sent)
    return entry


def facts_json(facts: PictureFacts) -> dict[str, Json]:
    """As a trace has them."""
    return asdict(facts)


def sent_json(sent: SentPicture) -> Json:
    """As a trace has it."""
    entry: dict[str, Json] = {
        "media_type": sent.media_type,
        "width_px": sent.size[0],
        "height_px": sent.size[1],
        "num_bytes": sent.num_bytes,
        "sha256": sent.sha256,
    }
    if sent.grey_range is not None:
        entry["grey_range"] = list(sent.grey_range)
    return entry


def _score_json(score: Score) -> Json:
    return {"score": score.value, **score.details, "parse_success": score.parse_success}


def _metadata_json(rollout: Rollout, run: RunFacts) -> Json:
    calls = [call for turn in rollout.turns for call in turn.calls]
    usages = [turn.reply.usage for turn in rollout.turns]
    details = rollout.score.details
    metrics = TASKS[run.settings.task].metrics
    fields = {"prompt_fields": dict(rollout.prompt_fields)} if rollout.prompt_fields else {}
    return {
        "total_turns": len(rollout.turns),
        "num_tool_calls": len(calls),
        "parse_success": rollout.score.parse_success,
        **{metric.metadata_name: details[metric.name] for metric in metrics if metric.metadata_name},
        "score": rollout.score.value,
        "stop_reason": rollout.stop_reason.value,
        "answer": None if rollout.answer is None else dict(rollout.answer),
        "truth": dict(rollout.truth),
        **fields,
        "num_failed_tool_calls": sum(not call.observation.success for call in calls),
        "num_clamped_boxes": sum(call.clamped for call in calls),
        "recipe_restores": all(map(_restores, calls)),
        "tokens": {name: reported_tokens(usages, name) for name in ("prompt_tokens", "completion_tokens")},
        "settings_sha256": run.settings_sha256,
        "versions": dict(run.versions),
    }


def _restores(call: ToolCall) -> bool:
    tool = find_tool(call.raw.name)
    return tool is None or tool.restores(call.arguments)


def dataset_json(identity: DatasetIdentity) -> Json:
    """As a trace has it, but for its path."""
    return {name: getattr(identity, name) for name in _OF_DATASET}


@dataclass(frozen=True)
class StoredTrace:
    """A trace read back: the typed parts that a replay needs, and the whole JSON.

    Its pictures are without their data.
    """

    path: Path
    json: Mapping[str, Json] = field(repr=False)
    dataset: DatasetIdentity
    sample_id: SampleId
    file_sha256: str
    facts: PictureFacts
    sent_sha256: str
    turns: tuple[Turn, ...]
    calls: tuple[ToolCall, ...]  # of all turns, in the order of its log
    is_unedited: bool

    @property
    def is_imported(self) -> bool:
        """Whether another program had the conversation: much of it nothing can prove."""
        return bool(self.json["format"] == IMPORTED)

    @cached_property
    def settings(self) -> TraceSettings:
        """How the run was set up; raises KeyError, ValueError or TypeError where that cannot be read."""
        return TraceSettings.from_json(self.json["settings"])

    @property
    def prompt(self) -> Prompt:
        """What opened its conversation, with its row's own texts; raises as `settings` does."""
        fields = self.json["metadata"].get("prompt_fields", {})
        return self.settings.prompt().filled({str(name): str(text) for name, text in fields.items()})


def load_json(path: Path) -> dict[str, Json]:
    """Read a trace file of any format as JSON; raises TraceError naming the file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {type(error).__name__}: {error}") from None
    return _parsed_json(path, data)


def _parsed_json(path: Path, data: bytes) -> dict[str, Json]:
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path}: cannot be read: {type(error).__name__}: {error}") from None
    if not isinstance(value, dict) or not any(name in value for name in _MARKS):
        raise TraceError(f"{path}: not a trace: it has none of the fields {', '.join(_MARKS)}")
    return value


def read_trace(path: Path) -> StoredTrace:
    """Read a trace for replay; raises TraceError naming the file and the field."""
    return _checked_trace(path, load_json(path))


def readable_bytes(path: Path, trace: Mapping[str, Json]) -> bytes:
    """The file of a trace, read back before it is written; raises TraceError where it could not be read."""
    try:
        data = json_bytes(trace)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path}: cannot be written: {type(error).__name__}: {error}") from None
    if not _checked_trace(path, _parsed_json(path, data)).is_unedited:
        raise TraceError(f"{path}: cannot be written: it would be read back as another")
    return data


def _checked_trace(path: Path, value: dict[str, Json]) -> StoredTrace:
    if value.get("format") not in (FORMAT, IMPORTED):
        raise TraceError(f"{path}: field 'format' is {value.get('format')!r}, this version reads {FORMAT!r}")
    try:
        return _stored_trace(path, value)
    except KeyError as error:
        raise TraceError(f"{path}: the field {error} is missing") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise TraceError(f"{path}: a field has the wrong form: {error}") from None


def _stored_trace(path: Path, value: dict[str, Json]) -> StoredTrace:
    unsigned = {name: field for name, field in value.items() if name != "integrity_sha256"}
    log = value["tool_calls_log"]
    calls = tuple(map(_stored_call, log))
    turns = []
    for number, entry in enumerate(value["conversation_log"], start=1):
        logged = zip(calls, log, strict=True)
        of_turn = tuple(call for call, item in logged if item["turn"] == entry["turn"])
        turns.append(Turn(number, _stored_reply(entry, of_turn), of_turn))
    return StoredTrace(
        path=path,
        json=value,
        dataset=DatasetIdentity(value["dataset_path"], *(value["dataset"][name] for name in _OF_DATASET)),
        sample_id=SampleId.from_json(value),
        file_sha256=value["image"]["file_sha256"],
        facts=_stored_facts(value["image"]),
        sent_sha256=value["image"]["sent"]["sha256"],
        turns=tuple(turns),
        calls=calls,
        is_unedited=value["integrity_sha256"] == json_sha256(unsigned),
    )


def _stored_facts(entry: Mapping[str, Json]) -> PictureFacts:
    return PictureFacts(entry["width_px"], entry["height_px"], entry["mode"], entry["pixel_sha256"])


def _stored_call(entry: Mapping[str, Json]) -> ToolCall:
    result = entry.get("result")
    arguments = {"code": entry["code"]} if "code" in entry else entry["tool_arguments"]
    observation = Observation(
        success=bool(entry["success"]),
        message=entry["message"],
        facts=_stored_facts(result) if result else None,
        sent=_stored_sent(result["sent"]) if result else None,
        stdout=entry.get("stdout"),
    )
    raw = RawCall(entry["tool_name"], raw_arguments(entry), entry.get("call_id"))
    return ToolCall(raw, dict(arguments), bool(entry["clamped"]), observation)


def _stored_sent(entry: Mapping[str, Json]) -> SentPicture:
    size = (entry["width_px"], entry["height_px"])
    return SentPicture(entry["media_type"], size, b"", entry["num_bytes"], entry["sha256"])


def raw_arguments(entry: Mapping[str, Json]) -> Json:
    """A logged call's arguments as the teacher wrote them."""
    # Where a failed call has neither, it is of an earlier version, which left out {"code": null}.
    return entry["raw_arguments"] if "raw_arguments" in entry else {"code": entry.get("code")}


def _stored_reply(entry: Mapping[str, Json], calls: Sequence[ToolCall]) -> Reply:
    run = tuple(call.raw for call in calls)
    not_run = tuple(
        RawCall(call["name"], call["arguments"], call.get("call_id"))
        for call in entry.get("calls_not_run", ())
    )
    return Reply(
        content=entry["assistant_response"],
        reasoning=entry["reasoning"],
        reasoning_field=entry["reasoning_field"],
        finish_reason=entry["finish_reason"],
        calls=run or not_run,
        call_form=ToolMode(entry["call_form"] or ToolMode.TEXT),
        usage=entry["usage"],
        refusal=entry.get("refusal"),
        other_reasoning=dict(entry.get("other_reasoning", {})),
        model=entry.get("model"),
    )
