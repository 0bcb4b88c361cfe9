"""A trace and its dataset row → every picture the teacher saw, checked against the stored hashes.

Replay applies the stored actions with the same function that sampling used, so a trace that verifies
is a trace from which everything can be recovered.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from pathlib import Path

import PIL

from distil.conversation import Message, opening_messages, turn_messages
from distil.errors import SampleError, SourceError, ToolError, TraceError
from distil.pictures import Frame, ViewRule, encode_sent
from distil.records import (
    Observation,
    Prompt,
    Sample,
    SentPicture,
    ToolCall,
    ToolMode,
    Turn,
)
from distil.sandbox import Sandbox
from distil.source import Source, open_source
from distil.store import StoredTrace, read_trace
from distil.tasks import TASKS
from distil.tools import BoxFrame, CropFrom, Executor, Scene, Toolbox, all_tools


class Verdict(StrEnum):
    """What verifying one trace found."""

    MATCHED = "matched"
    EDITED_TRACE = "edited_trace"  # the trace is not what was written: its own hash differs
    CHANGED_DATASET = "changed_dataset"  # the row's picture file or its values are others, or it is gone
    CHANGED_PILLOW = "changed_pillow"  # same file and actions, other pixels, another Pillow version
    CHANGED_RESULT = "changed_result"  # the same with the same Pillow version: another codec or machine
    UNREADABLE = "unreadable"  # the trace, its dataset or its row cannot be read


@dataclass(frozen=True)
class Verification:
    """The verdict on one trace file, with what differs."""

    path: Path
    verdict: Verdict
    detail: str = ""


@dataclass(frozen=True)
class Replay:
    """A trace with its pictures: the scene after each call that succeeded, and what was sent."""

    trace: StoredTrace
    sample: Sample
    sent: SentPicture
    observations: tuple[Observation, ...]  # one per stored call; a failed call's has no picture
    scene: Scene

    def turns(self) -> tuple[Turn, ...]:
        """The turns as the rollout had them."""
        calls = [
            (stored.turn, stored.with_observation(observation.sent))
            for stored, observation in zip(self.trace.calls, self.observations, strict=True)
        ]
        by_turn: Mapping[int, tuple[ToolCall, ...]] = {
            number: tuple(call for _, call in group)
            for number, group in groupby(calls, key=lambda pair: pair[0])
        }
        return tuple(
            Turn(number, reply, by_turn.get(number, ()))
            for number, reply in enumerate(self.trace.replies, start=1)
        )

    def messages(self) -> list[Message]:
        """The conversation exactly as the teacher saw it, with its own last turn at the end."""
        messages = opening_messages(stored_prompt(self.trace), self.sent)
        for turn in self.turns():
            messages += turn_messages(turn)
        return messages


@dataclass(frozen=True)
class CodeSettings:
    """The limits that a run's code was held to; None of a trace that offered no code tool."""

    timeout_seconds: float
    memory_bytes: int


class Executors:
    """Sandboxes by their limits, each started when the first code has to run again; a context manager."""

    def __init__(self) -> None:
        self._started: dict[CodeSettings, Sandbox] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Executors:
        return self

    def __exit__(self, *_: object) -> None:
        for sandbox in self._started.values():
            sandbox.close()

    def of(self, trace: StoredTrace) -> Sandbox | None:
        """The sandbox for a trace's code, or None where it offered no code tool."""
        code = trace.settings.get("code")
        if code is None:
            return None
        limits = CodeSettings(float(code["timeout_seconds"]), int(code["memory_bytes"]))
        with self._lock:
            if limits not in self._started:
                self._started[limits] = Sandbox(
                    timeout_seconds=limits.timeout_seconds, memory_bytes=limits.memory_bytes
                )
            return self._started[limits]


class Sources:
    """Datasets by path, each opened once; `override` stands in for every path (a dataset that moved)."""

    def __init__(self, override: str | None = None) -> None:
        self._override = override
        self._opened: dict[str, Source] = {}

    def of(self, trace: StoredTrace) -> Source:
        """The dataset that a trace came from; raises SourceError."""
        path = self._override or trace.source
        if trace.dataset_kind in ("imagefolder", "hub") and trace.split and not self._override:
            path = f"{path}:{trace.split}"
        if path not in self._opened:
            self._opened[path] = open_source(path)
        return self._opened[path]


def replay(trace: StoredTrace, source: Source, executor: Executor | None = None) -> Replay:
    """Apply a trace's stored actions to its row; code runs in `executor`.

    Raises SourceError where the row cannot be read, ToolError where an action no longer applies and
    SandboxUnavailable where there is code but nothing to run it in; compares nothing.
    """
    if trace.sample_index >= len(source):
        raise SampleError(
            f"{source.identity.source} has {len(source)} rows, the trace is of row {trace.sample_index}"
        )
    sample = source.load(trace.sample_index, TASKS[trace.settings["task"]])
    toolbox = stored_toolbox(trace, executor)
    sent = encode_sent(sample.picture.image, toolbox.rule, sample.picture)
    scene = Scene.start(sample.picture.image)
    observations = []
    for call in trace.calls:
        observation = Observation(call.success, call.message, stdout=call.stdout)
        if call.success:
            observation, scene = toolbox.observe(call.raw.name, call.arguments, scene)
        observations.append(observation)
    return Replay(trace, sample, sent, tuple(observations), scene)


def stored_prompt(trace: StoredTrace) -> Prompt:
    """The prompt that a trace was made with."""
    settings = trace.settings
    return Prompt(
        system=settings["system_prompt"],
        user=settings["user_prompt"],
        tools=tuple(settings["tool_schemas"]),
        tool_mode=ToolMode(settings["tool_mode"]),
        states_size=bool(settings["states_size"]),
    )


def stored_toolbox(trace: StoredTrace, executor: Executor | None = None) -> Toolbox:
    """Every tool there is, seeing pictures as the trace's teacher saw them."""
    settings = trace.settings
    boxes = BoxFrame(Frame(settings["coordinates"]), CropFrom(settings["crop_from"]))
    rule = ViewRule(**settings["view_rule"])
    return Toolbox(all_tools(executor), boxes, rule, bool(settings["states_size"]))


def verify_traces(
    paths: Sequence[Path], dataset_path: str | None, max_workers: int
) -> Iterator[Verification]:
    """Replay every trace and compare; verdicts come in the order of `paths`."""
    sources = Sources(dataset_path)
    first, rest = paths[:1], paths[1:]
    with Executors() as executors, ThreadPoolExecutor(max_workers) as pool:
        for path in first:  # alone, so that the dataset is opened once
            yield verify_trace(path, sources, executors)
        yield from pool.map(lambda path: verify_trace(path, sources, executors), rest)


def verify_trace(path: Path, sources: Sources, executors: Executors | None = None) -> Verification:
    """Replay one trace and compare all it stores of its pictures; code needs `executors` to run again."""
    try:
        trace = read_trace(path)
        if not trace.is_unedited:
            return Verification(
                path, Verdict.EDITED_TRACE, "the trace's content does not fit its integrity_sha256"
            )
        executor = executors.of(trace) if executors is not None else None
        source = sources.of(trace)
        replayed = replay(trace, source, executor)
    except SampleError as error:
        has_changed = source.identity.fingerprint != trace.json["dataset"]["fingerprint"]
        return Verification(path, Verdict.CHANGED_DATASET if has_changed else Verdict.UNREADABLE, str(error))
    except ToolError as error:
        return Verification(path, Verdict.CHANGED_RESULT, f"a stored action cannot be applied: {error}")
    except (TraceError, SourceError) as error:
        return Verification(path, Verdict.UNREADABLE, str(error))
    except (KeyError, ValueError, TypeError) as error:
        return Verification(path, Verdict.UNREADABLE, f"{path}: settings cannot be read: {error!r}")
    return _compare(replayed)


def _compare(replayed: Replay) -> Verification:
    trace, picture = replayed.trace, replayed.sample.picture
    if picture.file_sha256 != trace.file_sha256:
        detail = f"row {trace.sample_index} now holds another picture file"
        return Verification(trace.path, Verdict.CHANGED_DATASET, detail)
    stored, now = trace.json["sample_data"], replayed.sample.data
    others = [name for name in stored if name not in now or now[name] != stored[name]]
    if others:
        detail = f"row {trace.sample_index} now has other values in: {', '.join(others)}"
        return Verification(trace.path, Verdict.CHANGED_DATASET, detail)
    difference = _first_difference(replayed)
    if difference is None:
        return Verification(trace.path, Verdict.MATCHED)
    made_with = trace.json["metadata"]["versions"].get("pillow")
    if made_with != PIL.__version__:
        detail = f"{difference}; made with Pillow {made_with}, replayed with {PIL.__version__}"
        return Verification(trace.path, Verdict.CHANGED_PILLOW, detail)
    return Verification(trace.path, Verdict.CHANGED_RESULT, difference)


def _sent_difference(trace: StoredTrace) -> str:
    if trace.sent_sha256 == trace.file_sha256:
        return "the photo was sent with all that its file holds, and its metadata is cut out now"
    return "the photo encodes to other bytes for the teacher"


def _first_difference(replayed: Replay) -> str | None:
    trace = replayed.trace
    if replayed.sample.picture.facts != trace.facts:
        return "the photo decodes to other pixels"
    if replayed.sent.sha256 != trace.sent_sha256:
        return _sent_difference(trace)
    for position, (call, seen) in enumerate(zip(trace.calls, replayed.observations, strict=True), start=1):
        if seen.facts != call.facts:
            return f"call {position} ({call.raw.name}) gives other pixels"
        if seen.stdout != call.stdout:
            return f"call {position} ({call.raw.name}) prints something else"
        if seen.sent is not None and seen.sent.sha256 != call.sent_sha256:
            return f"the picture of call {position} encodes to other bytes for the teacher"
    return None
