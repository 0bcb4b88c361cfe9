"""A trace and its dataset row → every picture the teacher saw, checked against the stored hashes.

Replay applies the stored actions with the same function that sampling used, so a trace that verifies
is a trace from which everything can be recovered.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import groupby
from pathlib import Path

import PIL
from PIL import Image

from distil.errors import ContextOverflow, SampleError, SourceError, TraceError
from distil.messages.compose import Message, opening_messages, turn_messages
from distil.pictures import encode_sent
from distil.records import DatasetIdentity, Json, Observation, Sample, SentPicture, ToolCall, Turn
from distil.replay.rebuild import (
    ABSENT,
    Difference,
    differences,
    offered_toolbox,
    rebuilt_trace,
    stored_prompt,
)
from distil.replay.recipe import RecipeError, SavedDatasets, run_recipe
from distil.sandbox.sandbox import ExecResult, Sandbox
from distil.source.rows import Source, open_source
from distil.store.trace_file import (
    CODE_TOOL,
    StoredTrace,
    read_trace,
    settings_sha256,
    trace_name,
    versions_now,
)
from distil.tasks import TASKS
from distil.tools.base import Scene
from distil.tools.python_code import Executor

_MAX_SHOWN = 3  # of the fields that differ
# Fields of a call that say what was done, and the whole of one.
_ACTION = re.compile(r"tool_calls_log\[\d+\](\.(turn|tool_name|tool_arguments|code|raw_arguments)\b.*)?")
# Fields that only follow from an answer or a truth that differs: named last.
_CONSEQUENCES = ("reward_score", "metadata.parse_success", "metadata.distance_km", "metadata.score")
RECIPE_NOT_RUN = "the restore recipe was not run: --dataset_path is no save_to_disk folder"


class Verdict(StrEnum):
    """What verifying one trace found."""

    MATCHED = "matched"
    EDITED_TRACE = "edited_trace"  # the trace is not what was written: its own hash differs
    CHANGED_DATASET = "changed_dataset"  # the row's picture file or its values are others, or it is gone
    CHANGED_PILLOW = "changed_pillow"  # same file and actions, other pixels, another Pillow version
    CHANGED_RESULT = "changed_result"  # the same with the same Pillow version: another codec or machine
    INCONSISTENT = "inconsistent"  # a field does not follow from the others, from the row or the file's name
    RECIPE_FAILS = "recipe_fails"  # all fits, but `dataset_path` does not give the pictures by the recipe
    UNREADABLE = "unreadable"  # the trace, its dataset or its row cannot be read


@dataclass(frozen=True)
class Verification:
    """The verdict on one trace file, with what differs, or for a match what could not be looked at."""

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
        if CODE_TOOL not in [schema["function"]["name"] for schema in trace.settings["tool_schemas"]]:
            return None
        code = trace.settings["code"]
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
        self._saved = SavedDatasets()
        self._override = override
        self._opened: dict[str, Source] = {}
        self._lock = threading.Lock()

    def of(self, trace: StoredTrace) -> Source:
        """The dataset that a trace came from; raises SourceError."""
        path = self._override or trace.source
        if trace.dataset_kind in ("imagefolder", "hub") and trace.split and not self._override:
            path = f"{path}:{trace.split}"
        with self._lock:
            if path not in self._opened:
                self._opened[path] = open_source(path)
            return self._opened[path]

    def identity(self, trace: StoredTrace, source: Source) -> DatasetIdentity:
        """What a trace of today would say of its dataset.

        Where rows were added to the dataset since, or it has moved, the row can be the same: then what is
        stored is taken as it is. The path of a view lies in a cache that another machine has elsewhere.
        """
        now, block = source.identity, trace.json["dataset"]
        stored = DatasetIdentity(
            path=trace.json["dataset_path"],
            source=block["source"],
            kind=block["kind"],
            split=block["split"],
            fingerprint=block["fingerprint"],
            num_rows=block["num_rows"],
        )
        num_rows = now.num_rows if now.fingerprint == stored.fingerprint else stored.num_rows
        if self._override:
            return replace(stored, num_rows=num_rows)
        path = now.path if now.kind == "saved" else stored.path
        split = now.split
        if now.kind == "saved" and stored.split == Path(now.source).name:  # a DatasetDict's, opened as itself
            split = stored.split
        return replace(stored, path=path, source=now.source, kind=now.kind, split=split, num_rows=num_rows)

    def recipe_start(self, trace: StoredTrace, source: Source) -> Image.Image | RecipeError | None:
        """The first picture of the restore recipe, or why there is none.

        None where the dataset has moved and is no saved folder, as the recipe needs one.
        """
        if self._override and source.identity.kind != "saved":
            return None
        path = source.identity.path if self._override else str(trace.json["dataset_path"])
        try:
            return self._saved.picture(path, trace.sample_index)
        except RecipeError as error:
            return error


def replay(trace: StoredTrace, source: Source, executor: Executor | None = None) -> Replay:
    """Apply a trace's stored actions to its row; code runs in `executor`.

    Raises SourceError where the row cannot be read, ToolError where an action no longer applies and
    SandboxUnavailable where there is code but nothing to run it in; compares nothing.
    """
    sample = source.load(trace.sample_index, TASKS[trace.settings["task"]])
    toolbox = offered_toolbox(trace, executor)
    sent = encode_sent(sample.picture.image, toolbox.rule, sample.picture)
    scene = Scene.start(sample.picture.image)
    observations = []
    for call in trace.calls:
        observation = Observation(call.success, call.message, stdout=call.stdout)
        if call.success:
            observation, scene = toolbox.observe(call.raw.name, call.arguments, scene)
        observations.append(observation)
    return Replay(trace, sample, sent, tuple(observations), scene)


def verify_traces(
    paths: Sequence[Path], dataset_path: str | None, max_workers: int
) -> Iterator[Verification]:
    """Verify every trace; verdicts come in the order of `paths`."""
    sources = Sources(dataset_path)
    with Executors() as executors, ThreadPoolExecutor(max_workers) as pool:
        yield from pool.map(lambda path: verify_trace(path, sources, executors), paths)


def verify_trace(path: Path, sources: Sources, executors: Executors | None = None) -> Verification:
    """Make one trace again and compare all it stores; code needs `executors` to run again."""
    try:
        trace = read_trace(path)
        return Verification(path, *(_own_problem(trace) or _compare(trace, sources, executors)))
    except (TraceError, SourceError) as error:
        return Verification(path, Verdict.UNREADABLE, str(error))
    except ContextOverflow:
        return Verification(path, Verdict.INCONSISTENT, "conversation_log: it has no turn")
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        return Verification(path, Verdict.UNREADABLE, f"{path}: a field cannot be read: {error!r}")


_Found = tuple[Verdict, str]


def _own_problem(trace: StoredTrace) -> _Found | None:
    """What the file itself shows, before anything of it is believed."""
    if not trace.is_unedited:
        return Verdict.EDITED_TRACE, "the trace's content does not fit its integrity_sha256"
    name = trace_name(trace.sample_index)
    if trace.path.name != name:
        return Verdict.INCONSISTENT, f"it is of row {trace.sample_index}, whose file is {name}"
    stored = trace.json["metadata"]["settings_sha256"]
    now = settings_sha256(trace.settings, trace.json["dataset"]["fingerprint"])
    if stored != now:
        difference = Difference("metadata.settings_sha256", stored, now)
        return Verdict.INCONSISTENT, f"{difference} (of settings and dataset.fingerprint)"
    return None


def _compare(trace: StoredTrace, sources: Sources, executors: Executors | None) -> _Found:
    sandbox = executors.of(trace) if executors is not None else None
    executor = None if sandbox is None else _RememberedRuns(sandbox)
    source = sources.of(trace)
    try:
        sample, recipe = _load(trace, source, sources)
    except SampleError as error:
        has_changed = source.identity.fingerprint != trace.json["dataset"]["fingerprint"]
        return Verdict.CHANGED_DATASET if has_changed else Verdict.UNREADABLE, str(error)
    changed = _changed_row(trace, sample)
    if changed is not None:
        return Verdict.CHANGED_DATASET, changed
    rebuilt = rebuilt_trace(trace, sample, sources.identity(trace, source), executor)
    return _judge(trace, rebuilt) or _judge_recipe(trace, recipe, executor)


_RecipeStart = Image.Image | RecipeError | None  # the recipe's first picture, or why there is none


def _load(trace: StoredTrace, source: Source, sources: Sources) -> tuple[Sample, _RecipeStart]:
    """The trace's row, with its picture as the recipe decodes it: so it is decoded once."""
    task, start = TASKS[trace.settings["task"]], sources.recipe_start(trace, source)
    if isinstance(start, Image.Image):
        sample = source.load(trace.sample_index, task, start)
        if sample.picture.facts == trace.facts:
            return sample, start
        start = RecipeError(f"row {trace.sample_index} of dataset_path is another picture")
    return source.load(trace.sample_index, task), start


class _RememberedRuns:
    """Runs code once for the same picture: a trace's code is run again, and then by the restore recipe."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._runs: list[tuple[str, Image.Image, ExecResult]] = []

    def run(self, code: str, picture: Image.Image) -> ExecResult:
        """Run code on a picture, or give what that came to before."""
        for earlier_code, earlier_picture, result in self._runs:
            if earlier_picture is picture and earlier_code == code:
                return result
        result = self._executor.run(code, picture)
        self._runs.append((code, picture, result))
        return result


def _changed_row(trace: StoredTrace, sample: Sample) -> str | None:
    if sample.picture.file_sha256 != trace.file_sha256:
        return f"row {trace.sample_index} now holds another picture file"
    stored, now = trace.json["sample_data"], json.loads(json.dumps(dict(sample.data)))
    others = dict.fromkeys(
        difference.path.split(".")[0].split("[")[0] for difference in differences(stored, now)
    )
    if others:
        return f"row {trace.sample_index} now has other values in: {', '.join(others)}"
    return None


def _judge(trace: StoredTrace, rebuilt: Mapping[str, Json]) -> _Found | None:
    """What the difference between a trace and the one that was made again says; None without one."""
    skipped = {"integrity_sha256": None}
    found = [
        difference
        for difference in differences({**trace.json, **skipped}, {**rebuilt, **skipped})
        if not _is_later_field(difference)
    ]
    found.sort(key=lambda difference: difference.path.startswith(_CONSEQUENCES))
    if not found:
        return None
    pictures = [text for difference in found if (text := _picture_text(difference, trace)) is not None]
    if not pictures or any(_is_of_action(difference) for difference in found):
        shown = "; ".join(map(str, found[:_MAX_SHOWN]))
        more = f"; and {len(found) - _MAX_SHOWN} more" if len(found) > _MAX_SHOWN else ""
        return Verdict.INCONSISTENT, f"{shown}{more}{_versions_text(trace)}"
    made_with = trace.json["metadata"]["versions"].get("pillow")
    if made_with != PIL.__version__:
        detail = f"{pictures[0]}; made with Pillow {made_with}, replayed with {PIL.__version__}"
        return Verdict.CHANGED_PILLOW, detail
    return Verdict.CHANGED_RESULT, f"{pictures[0]}{_versions_text(trace)}"


def _is_later_field(difference: Difference) -> bool:
    """Whether it is a field of turns that came after the trace was written, and says nothing."""
    in_turn = difference.path.startswith("conversation_log[")
    return in_turn and difference.stored is ABSENT and difference.now is None


def _is_of_action(difference: Difference) -> bool:
    """Whether it is in what was done, or in the teacher's words: then other pictures only follow from it."""
    is_call = _ACTION.fullmatch(difference.path) is not None
    return is_call or difference.path.startswith(("conversation_log", "settings"))


def _picture_text(difference: Difference, trace: StoredTrace) -> str | None:
    """What a difference says where it is one of pictures, else None."""
    was_bare = trace.sent_sha256 != trace.file_sha256
    photo = {
        "image.pixel_sha256": "the photo decodes to other pixels",
        "image.sent.sha256": "the photo encodes to other bytes for the teacher"
        if was_bare
        else "the photo was sent with all that its file holds, and its metadata is cut out now",
    }
    match = re.fullmatch(r"tool_calls_log\[(\d+)\]\.(.*)", difference.path)
    if match is None or int(match[1]) >= len(trace.calls):
        return photo.get(difference.path)
    number, name = int(match[1]) + 1, trace.calls[int(match[1])].raw.name
    if match[2] == "success" and difference.stored is True:
        return f"a stored action cannot be applied: call {number} ({name}) fails"
    return {
        "result.pixel_sha256": f"call {number} ({name}) gives other pixels",
        "stdout": f"call {number} ({name}) prints something else",
        "result.sent.sha256": f"the picture of call {number} encodes to other bytes for the teacher",
    }.get(match[2])


def _versions_text(trace: StoredTrace) -> str:
    """Which versions wrote the trace, where others read it: they may be all that differs."""
    stored, now = trace.json["metadata"]["versions"], versions_now()
    others = [name for name in now if stored.get(name) != now[name]]
    if not others:
        return ""
    texts = [", ".join(f"{name} {versions.get(name)}" for name in others) for versions in (stored, now)]
    return f" (perhaps because {texts[0]} wrote it, and this is {texts[1]})"


def _judge_recipe(trace: StoredTrace, start: _RecipeStart, executor: Executor | None) -> _Found:
    if start is None:
        return Verdict.MATCHED, RECIPE_NOT_RUN
    try:
        if isinstance(start, RecipeError):
            raise start
        run_recipe(trace, start, executor)
    except RecipeError as error:
        return Verdict.RECIPE_FAILS, f"the restore recipe fails: {error}"
    return Verdict.MATCHED, ""
