"""A trace made again and compared leaf by leaf; and the restore recipe, run as written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import PIL
from PIL import Image

from distil.errors import Caught, ContextOverflow, DistilError, SampleError, SourceError, TraceError
from distil.own_code import other_files
from distil.records import Json, Sample
from distil.replay.imported import imported_pictures, photo_of
from distil.replay.rebuild import ABSENT, Difference, Reruns, differences, rebuilt_trace
from distil.replay.recipe import recipe_problem
from distil.replay.replay import Executors, Sources
from distil.source.rows import Source
from distil.store.trace_file import StoredTrace, read_trace, trace_name, versions_now
from distil.store.trace_settings import json_sha256, settings_sha256
from distil.tasks import task_of
from distil.tasks.rewards import reward_of
from distil.tools.python_code import Executor

_MAX_SHOWN = 3  # of the fields that differ
# Fields of a call that say what was done, and the whole of one.
_ACTION = re.compile(r"tool_calls_log\[\d+\](\.(turn|tool_name|tool_arguments|code|raw_arguments)\b.*)?")
RECIPE_NOT_RUN = "the restore recipe was not run: --dataset_path is no save_to_disk folder"
IMPORTED_NOT_PROVEN = "of imported conversations only photos, kept pictures and verified calls are proven"
REWARD_NOT_RUN = "what the user's own reward gave was taken as stored: --reward computes it again"


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


def verify_trace(path: Path, sources: Sources, executors: Executors | None = None) -> Verification:
    """Make one trace again and compare all it stores; code needs `executors` to run again."""
    try:
        trace = read_trace(path)
        if trace.is_imported:
            return Verification(path, *(_own_problem(trace) or _compare_imported(trace, sources)))
        return Verification(path, *(_own_problem(trace) or _compare_by(trace, sources, executors)))
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
    name = trace_name(trace.sample_id)
    if trace.path.name != name:
        return Verdict.INCONSISTENT, f"it is of row {trace.sample_id}, whose file is {name}"
    stored = trace.json["metadata"]["settings_sha256"]
    now = settings_sha256(trace.json["settings"], trace.json["dataset"]["fingerprint"])
    if stored != now:
        difference = Difference("metadata.settings_sha256", stored, now)
        return Verdict.INCONSISTENT, f"{difference} (of settings and dataset.fingerprint)"
    return None


def _compare_imported(trace: StoredTrace, sources: Sources) -> _Found:
    """What can be told of an imported trace: of its photo, of verified calls and of kept pictures."""
    sample = sources.of(trace).load(trace.sample_id)
    try:
        photo_of(trace, sample)
        for _ in imported_pictures(trace, sample):
            pass
    except TraceError as error:
        return Verdict.CHANGED_RESULT, str(error)
    return Verdict.MATCHED, IMPORTED_NOT_PROVEN


def _compare_by(trace: StoredTrace, sources: Sources, executors: Executors | None) -> _Found:
    """Compare; where the user's own files have a part in it, what they raise ends this trace's alone."""
    if trace.json["settings"].get("own_code") is None:
        return _compare(trace, sources, executors)
    with Caught() as caught:
        return _compare(trace, sources, executors)
    if isinstance(caught.error, DistilError):
        raise caught.error
    return Verdict.UNREADABLE, f"a field cannot be read, or own code fails on it: {caught.text()}"


def _compare(trace: StoredTrace, sources: Sources, executors: Executors | None) -> _Found:
    sandbox = executors.of(trace) if executors is not None else None
    executor = None if sandbox is None else Reruns(sandbox, trace)
    source = sources.of(trace)
    try:
        sample, recipe = _load(trace, source, sources)
        changed = _changed_row(trace, sample)
        if changed is not None:
            return Verdict.CHANGED_DATASET, changed
        rebuilt = rebuilt_trace(trace, sample, sources.identity(trace, source), executor)
    except SampleError as error:
        has_changed = source.identity.fingerprint != trace.json["dataset"]["fingerprint"]
        return Verdict.CHANGED_DATASET if has_changed else Verdict.UNREADABLE, str(error)
    return _judge(trace, rebuilt) or _judge_recipe(trace, recipe, executor)


_RecipeStart = Image.Image | str | None  # the recipe's first picture, or why there is none


def _load(trace: StoredTrace, source: Source, sources: Sources) -> tuple[Sample, _RecipeStart]:
    """The trace's row, with its picture as the recipe decodes it: so it is decoded once."""
    start = sources.recipe_start(trace, source)
    if isinstance(start, Image.Image):
        sample = source.load(trace.sample_id, start)
        if sample.picture.facts == trace.facts:
            return sample, start
        start = f"row {trace.sample_id.index} of dataset_path is another picture"
    return source.load(trace.sample_id), start


def _changed_row(trace: StoredTrace, sample: Sample) -> str | None:
    if sample.picture.file_sha256 != trace.file_sha256:
        return f"row {trace.sample_id.index} now holds another picture file"
    stored, now = trace.json["sample_data"], json.loads(json.dumps(dict(sample.data)))
    others = dict.fromkeys(
        difference.path.split(".")[0].split("[")[0] for difference in differences(stored, now)
    )
    if others:
        return f"row {trace.sample_id.index} now has other values in: {', '.join(others)}"
    return None


def _judge(trace: StoredTrace, rebuilt: Mapping[str, Json]) -> _Found | None:
    """What the difference between a trace and the one that was made again says; None without one."""
    if json_sha256(rebuilt) == trace.json["integrity_sha256"]:
        return None
    now = json.loads(json.dumps(rebuilt)) | {"integrity_sha256": trace.json["integrity_sha256"]}
    found = [difference for difference in differences(trace.json, now) if not _is_later_field(difference)]
    consequences = _consequences(trace)
    found.sort(key=lambda difference: difference.path.startswith(consequences))
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


def _consequences(trace: StoredTrace) -> tuple[str, ...]:
    """The fields that only follow from an answer or a truth that differs: named last."""
    names = [metric.metadata_name for metric in task_of(trace.json).metrics if metric.metadata_name]
    return ("reward_score", *(f"metadata.{name}" for name in ("parse_success", "score", *names)))


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
    if difference.path.endswith(".sent.grey_range") and difference.stored is ABSENT:
        return "deep grey has no grey_range: each picture was scaled by itself, now one range holds for all"
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
    files = other_files(trace.json["settings"].get("own_code"))
    if files:
        return f" (perhaps because {', '.join(files)} held something else then)"
    if not others:
        return ""
    texts = [", ".join(f"{name} {versions.get(name)}" for name in others) for versions in (stored, now)]
    return f" (perhaps because {texts[0]} wrote it, and this is {texts[1]})"


def _judge_recipe(trace: StoredTrace, start: _RecipeStart, executor: Executor | None) -> _Found:
    name, reward = reward_of(trace.json)
    notes = [REWARD_NOT_RUN] if name is not None and reward is None else []
    if start is None:
        return Verdict.MATCHED, "; ".join([RECIPE_NOT_RUN, *notes])
    problem = start if isinstance(start, str) else recipe_problem(trace, start, executor)
    if problem is not None:
        return Verdict.RECIPE_FAILS, f"the restore recipe fails: {problem}"
    return Verdict.MATCHED, "; ".join(notes)
