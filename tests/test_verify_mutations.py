"""Every field of a trace is changed in turn, the checksum made to fit: `verify` notices, or a row says why not.

`DISTIL_ALL_MUTATIONS=1` tries every change of every field; without it a part of them, chosen by a seed.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import photo_bytes, save_photos
from scripted_teacher import ScriptedTeacher, calls, completion, is_probe, num_turns, says, text_call

from distil.cli import run_door
from distil.replay.replay import Executors, Sources
from distil.replay.verify import Verdict, verify_trace
from distil.store.trace_file import find_trace_files, json_sha256

ALL = "DISTIL_ALL_MUTATIONS" in os.environ
CHANGES_A_TRACE = 100  # tried of each kind of trace without the flag

ZOOM, ROTATE, CODE = "image_zoom_in_tool", "image_rotate_tool", "python_code_tool"
ANSWER = "It is \\boxed{48.86, 2.35}"
OVERFLOW = 400, {"error": {"message": "too long", "code": "context_length_exceeded"}}


@dataclass(frozen=True)
class Unprovable:
    """Fields that nothing else in a trace or its row says again, with the reason."""

    path: str  # a regular expression for the whole path; turns and calls are numbered from 0
    reason: str
    kinds: str = ".*"  # of traces
    change: str = ".*"  # names of the changes that stay unnoticed


NATIVE = "cut_off_native|native|code|kept|original|max_turns|overflow"
UNPROVABLE = (
    Unprovable(
        r"conversation_log\[\d+\]\.assistant_response",
        "the teacher's prose, as long as it holds no call, no answer and no final response",
        change="text.*",
    ),
    Unprovable(
        r"conversation_log\[\d+\]\.(reasoning|reasoning_field)",
        "the teacher's thoughts, and where the server put them, stand nowhere else",
    ),
    Unprovable(
        r"conversation_log\[\d+\]\.finish_reason",
        "the server's word; only `length` and `content_filter` have consequences",
    ),
    Unprovable(
        r"conversation_log\[\d+\]\.usage(\.total_tokens)?",
        "what the server counted; only the sums of prompt and completion tokens stand again",
        change="added|removed|number.*|to text|to null",
    ),
    Unprovable(
        r"conversation_log\[\d+\]\.refusal",
        "the teacher's words; only that there are any counts",
        "refused",
        "text.*",
    ),
    Unprovable(
        r"conversation_log\[\d+\]\.model",
        "the name that the reply gives its model; an alias of the one that was asked, or any other",
    ),
    Unprovable(r"tool_calls_log\[\d+\]\.call_id", "the server's name for a native call", NATIVE),
    Unprovable(
        r"tool_calls_log\[\d+\]\.raw_arguments(\..*)?",
        "what a native call wrote beside its tool's arguments, and other ways to write the same pixels",
        NATIVE,
        "added|removed|number.*|to text",
    ),
    Unprovable(
        r"conversation_log\[\d+\]\.calls_not_run(\[.*)?",
        "calls that a native turn named when it was cut off: nothing came of them",
        "cut_off_native",
    ),
    Unprovable(
        r"tool_calls_log\[\d+\]\.turn",
        "of two turns with native calls, which one made the call between them",
        NATIVE,
        "number.*",
    ),
    Unprovable(
        r"tool_calls_log",
        "where among the native calls of its turn one stood that failed and so changed nothing",
        NATIVE,
        "swapped.*",
    ),
    Unprovable(r"metadata\.versions(\..*)?", "what wrote the trace; where something differs they are quoted"),
)


def fixed_calls(turn: int) -> list[tuple[str, Any]]:
    """A clamped box and a slanted turn; an empty box, arguments that are no JSON, and a zoom."""
    steps: list[list[tuple[str, Any]]] = [
        [(ZOOM, {"bbox_2d": [100, 100, 1200, 800]}), (ROTATE, {"angle": 33.5})],
        [(ZOOM, {"bbox_2d": [5, 5, 5, 5]}), (ZOOM, {"bbox_2d": [200, 300, 700, 800]})],
    ]
    return steps[turn] if turn < len(steps) else []


def native(request: dict[str, Any]) -> Any:
    turn = num_turns(request)
    if is_probe(request):
        return calls((request["tools"][0]["function"]["name"], {})) if "tools" in request else says("ok")
    if made := fixed_calls(turn):
        return calls(*made, (ROTATE, "{broken"), content=f"turn {turn}, I look", reasoning="because")
    return says(f"<think>Paris, not \\boxed{{1, 1}}</think>{ANSWER}")


def text(request: dict[str, Any]) -> Any:
    turn = num_turns(request)
    if made := fixed_calls(turn):
        broken = f"<tool_call>{{broken {turn}</tool_call>"
        return says("\n".join(["I look", *(text_call(*call) for call in made), broken]))
    return says(ANSWER)


def code(request: dict[str, Any]) -> Any:
    programs: list[list[tuple[str, Any]]] = [
        [(CODE, {"code": "print('seen')\nresult_image = image.crop((10, 10, 90, 70))"})],
        [(CODE, {"code": "result_image = image.crup(1)"}), (CODE, {"code": "```\nresult_image = Image.fromarray(np.array(image))\n```"})],
    ]  # fmt: skip
    turn = num_turns(request)
    return calls(*programs[turn]) if turn < len(programs) else says(ANSWER)


def kept(request: dict[str, Any]) -> Any:
    return calls((ZOOM, {"bbox_2d": [100, 100, 900, 800]})) if num_turns(request) == 0 else says(ANSWER)


def cut_off(request: dict[str, Any]) -> Any:
    if num_turns(request) == 0:
        return says(text_call(ZOOM, {"bbox_2d": [100, 100, 900, 800]}))
    return says(f"{ANSWER}{text_call(ROTATE, {'angle': 90})}", finish_reason="length")


def cut_native(request: dict[str, Any]) -> Any:
    if num_turns(request) == 0:
        return calls((ZOOM, {"bbox_2d": [100, 100, 900, 800]}))
    reply = calls((ROTATE, {"angle": 90}), (ZOOM, "{brok"), content=ANSWER)
    reply["choices"][0]["finish_reason"] = "length"
    return reply


def original(request: dict[str, Any]) -> Any:
    boxes = [[20, 20, 100, 90], [30, 30, 90, 80], [0, 0, 50, 50]]
    turn = num_turns(request)
    return calls((ZOOM, {"bbox_2d": boxes[turn]})) if turn < len(boxes) else says(ANSWER)


def endless(request: dict[str, Any]) -> Any:
    return calls((ROTATE, {"angle": 90}), content=ANSWER)


def overflow(request: dict[str, Any]) -> Any:
    return calls((ZOOM, {"bbox_2d": [0, 0, 900, 900]})) if num_turns(request) == 0 else OVERFLOW


def refuses(request: dict[str, Any]) -> Any:
    return completion({"content": None, "refusal": "I cannot"})


CONCURRENT, QWEN = "demo_concurrent.py", "scripted-qwen3-vl"
KINDS: dict[str, tuple[Any, str, str, tuple[str, ...]]] = {
    "native": (native, CONCURRENT, QWEN, ("--tool_mode", "native")),
    "text": (text, CONCURRENT, QWEN, ("--tool_mode", "text")),
    "code": (code, "demo_python_code.py", QWEN, ("--tool_mode", "native")),
    "kept": (kept, "demo_distillation_with_tools.py", QWEN, ("--tool_mode", "native")),
    "cut_off": (cut_off, CONCURRENT, QWEN, ("--tool_mode", "text")),
    "original": (original, CONCURRENT, "m", ("--tool_mode", "native", "--crop_from", "original")),
    "max_turns": (endless, CONCURRENT, "gpt-4o", ("--tool_mode", "native", "--max_turns", "2")),
    "overflow": (overflow, CONCURRENT, "deepeyes", ("--tool_mode", "native", "--image_max_pixels", "9000")),
    "cut_off_native": (cut_native, CONCURRENT, QWEN, ("--tool_mode", "native")),
    "refused": (refuses, CONCURRENT, QWEN, ("--tool_mode", "text")),
    "no_tools": (lambda _: says(ANSWER), "demo_distillation.py", QWEN, ()),
}


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A trace of every kind, all of one small dataset."""
    folder = tmp_path_factory.mktemp("mutations")
    data = save_photos(folder / "data", [photo_bytes(seed, (160, 120)) for seed in range(3)])
    made = {}
    for kind, (script, door, model, flags) in KINDS.items():
        with ScriptedTeacher(script, (model,)) as server:
            status = run_door(door, ["--api_base", server.api_base, "--dataset_path", str(data), "--num_samples", "1",
                                     "--order", "city:desc", "--output_dir", str(folder / kind), *flags])  # fmt: skip
        assert status == 0, kind
        (made[kind],) = find_trace_files(folder / kind)
    return made


@pytest.fixture(scope="module")
def executors() -> Iterator[Executors]:
    with Executors() as started:
        yield started


@pytest.fixture(scope="module")
def sources() -> Sources:
    return Sources()


Change = tuple[str, str, dict[str, Any]]  # the path of what is changed, what is done, and the changed trace


def changes(trace: dict[str, Any]) -> Iterator[Change]:
    """Every change of every field."""
    for path, keys in paths_of(trace, "", ()):
        for name, change in changes_of(at(trace, keys)):
            changed = copy.deepcopy(trace)
            if not keys:
                changed = change
            else:
                at(changed, keys[:-1])[keys[-1]] = change
            yield path, name, changed


def paths_of(value: Any, path: str, keys: tuple[Any, ...]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    yield path, keys
    if isinstance(value, dict):
        for name, item in value.items():
            yield from paths_of(item, f"{path}.{name}" if path else name, (*keys, name))
    if isinstance(value, list):
        for position, item in enumerate(value):
            yield from paths_of(item, f"{path}[{position}]", (*keys, position))


def at(value: Any, keys: tuple[Any, ...]) -> Any:
    for key in keys:
        value = value[key]
    return value


def changes_of(value: Any) -> Iterator[tuple[str, Any]]:
    match value:
        case bool():
            yield "flipped", not value
            yield "to number", int(value)
        case int() | float():
            yield "number + 1", value + 1
            yield "number - 1", value - 1
            yield "to text", str(value)
        case str():
            yield "text longer", f"{value} x"
            if value:
                yield "text shorter", value[:-1]
            if value.swapcase() != value:
                yield "text in other case", value.swapcase()
        case list():
            yield from changes_of_list(value)
        case dict():
            for name in value:
                yield f"removed {name}", {key: item for key, item in value.items() if key != name}
            yield "added", {**value, "another": 1}
        case None:
            yield "to something", "something"
    if value is not None:
        yield "to null", None


def changes_of_list(value: list[Any]) -> Iterator[tuple[str, Any]]:
    for position, item in enumerate(value):
        yield f"dropped {position}", value[:position] + value[position + 1 :]
        yield f"doubled {position}", [*value[:position], item, *value[position:]]
    for position, (one, other) in enumerate(itertools.pairwise(value)):
        if one != other:
            yield f"swapped {position}", [*value[:position], other, one, *value[position + 2 :]]


USED: set[Unprovable | None] = set()  # the rows that explained something in this process


def unprovable(kind: str, path: str, name: str) -> Unprovable | None:
    for row in UNPROVABLE:
        # A key is removed from its object, but it is the key that must be explained.
        whole = f"{path}.{name.removeprefix('removed ')}" if name.startswith("removed ") else path
        named = "removed" if name.startswith("removed ") else name
        fits = re.fullmatch(row.path, whole) and re.fullmatch(row.kinds, kind)
        if fits and re.fullmatch(row.change, named):
            return row
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_field_is_noticed_wherever_it_follows_from_another(
    kind: str, traces: dict[str, Path], sources: Sources, executors: Executors, tmp_path: Path
) -> None:
    written = traces[kind]
    assert verify_trace(written, sources, executors).verdict is Verdict.MATCHED
    path = tmp_path / written.name
    everything = list(changes(json.loads(written.read_text())))
    tried = everything if ALL else random.Random(8).sample(everything, CHANGES_A_TRACE)
    unnoticed = []
    for field, name, changed in tried:
        if isinstance(changed, dict) and "integrity_sha256" in changed and field != "integrity_sha256":
            unsigned = {key: value for key, value in changed.items() if key != "integrity_sha256"}
            changed["integrity_sha256"] = json_sha256(unsigned)
        path.write_text(json.dumps(changed))
        if verify_trace(path, sources, executors).verdict is Verdict.MATCHED:
            row = unprovable(kind, field, name)
            USED.add(row)
            if row is None:
                unnoticed.append(f"{field}: {name}")
    assert not unnoticed


@pytest.mark.skipif(not ALL, reason="a part of the changes does not use every row")
def test_every_row_of_the_table_is_needed() -> None:
    assert set(UNPROVABLE) <= USED
