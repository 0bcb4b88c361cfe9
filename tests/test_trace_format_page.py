"""What docs/trace-format.md says is enough to rebuild every request from a trace and its row, to the byte."""

from __future__ import annotations

import ast
import base64
import io
import itertools
import json
import os
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trace_rebuilder as rebuilder
from builders import file_bytes, jpeg_with_orientation, noise, row, saved, smooth
from datasets import Image as ImageColumn
from hypothesis import example, given
from hypothesis import strategies as st
from marked_pictures import chunk, marked_files, segment
from PIL import Image, ImageCms, PngImagePlugin
from scripted_teacher import ScriptedTeacher, calls, completion, is_probe, says, text_call

from distil.bare_file import without_metadata
from distil.cli import main
from distil.errors import SampleError, ToolError
from distil.pictures import (
    Frame,
    ResizeRule,
    box_to_pixels,
    encode_sent,
    find_grey_range,
    picture_facts,
    sent_size,
    to_rgb_or_grey,
)
from distil.records import ToolMode
from distil.teacher.profile import PROFILES
from distil.tools.python_code import self_contained, unfenced

PAGE = (Path(__file__).parent.parent / "docs" / "trace-format.md").read_text(encoding="utf-8")
REBUILDER = Path(rebuilder.__file__)
ZOOM, ROTATE, CODE = "image_zoom_in_tool", "image_rotate_tool", "python_code_tool"
ANSWER = "<think>Not \\boxed{1, 1}.</think>It is \\boxed{48.9, 2.3}"
OVERFLOW = {
    "error": {"message": "This model's maximum context length is 9", "code": "context_length_exceeded"}
}
Reply = Any  # a completion, or a status and a body


# --- the photos: every kind of file


def with_palette_transparency(picture: Image.Image) -> bytes:
    return file_bytes(picture.convert("P"), "PNG", transparency=3)


def grey_file(values: Any, file_format: str = "TIFF") -> bytes:
    return file_bytes(Image.fromarray(values), file_format)


def png_with_text() -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "a word")
    return file_bytes(noise(50, 70, "LA"), "PNG", pnginfo=text)


def signed_floats() -> Any:
    return np.random.default_rng(3).normal(0, 900, (48, 64)).astype(np.float32)


def big_endian() -> bytes:
    values = np.random.default_rng(5).integers(0, 200, (50, 40)).astype(">u2")
    return file_bytes(Image.frombytes("I;16B", (40, 50), values.tobytes()), "TIFF")


MARK = "ZQMARK"  # what stands in all metadata
MARKED = marked_files(lambda name: f"{MARK} {name}")


def jpeg_with(data: bytes) -> bytes:
    """The marked JPEG with something between its first two segments."""
    marked = MARKED["jpeg"]
    at = 4 + int.from_bytes(marked[4:6], "big")
    return marked[:at] + data + marked[at:]


MARKED["JPEG with a byte too many"] = jpeg_with(b"\0")
MARKED["jpeg that asks for orientation 1"] = jpeg_with_orientation(noise(90, 60), 1)
IN_THE_RUNS = (
    "jpeg", "progressive jpeg", "jpeg with restarts", "grey jpeg", "cmyk jpeg", "turned jpeg", "large jpeg",
    "mpo", "png", "grey png", "palette png", "16-bit png", "webp", "JPEG with a byte too many",
)  # fmt: skip
CUT = {"jpeg", "progressive jpeg", "jpeg with restarts", "grey jpeg", "large jpeg", "png", "grey png"}

PHOTOS: dict[str, bytes] = {
    "JPEG": file_bytes(noise(96, 72)),
    "grey JPEG": file_bytes(noise(80, 60, "L")),
    "PNG": file_bytes(noise(90, 61), "PNG"),
    "transparent": file_bytes(noise(70, 90, "RGBA"), "PNG"),
    "transparent grey": png_with_text(),
    "palette": file_bytes(noise(75, 75, "P"), "PNG"),
    "transparent palette": with_palette_transparency(noise(64, 48)),
    "16 bits": file_bytes(noise(64, 64, "I;16"), "PNG"),
    "float": grey_file(np.random.default_rng(1).random((48, 64), dtype=np.float32)),
    "signed float": grey_file(signed_floats()),
    "CMYK": file_bytes(noise(72, 54, "CMYK")),
    "WebP": file_bytes(noise(66, 44), "WEBP", lossless=True),
    "turned": jpeg_with_orientation(smooth(120, 80), 6),
    "mirrored": jpeg_with_orientation(noise(90, 60), 2),
    "upright by EXIF": jpeg_with_orientation(noise(90, 60), 1),
    "black and white": file_bytes(noise(81, 33, "1"), "PNG"),
    "tiny": file_bytes(noise(5, 3)),
    "thin": file_bytes(noise(400, 9), "PNG"),
    "large": file_bytes(smooth(2100, 700)),
    "GIF": file_bytes(noise(60, 60, "P"), "GIF", comment=b"a comment"),
    "BMP": file_bytes(noise(60, 50), "BMP"),
    "commented": file_bytes(noise(60, 50), "JPEG", comment=b"a comment", exif=Image.Exif()),
    "clear colour": file_bytes(noise(60, 50), "PNG", transparency=(3, 4, 5)),
    "16 bits, big-endian": big_endian(),
    "32 bits": grey_file(np.random.default_rng(6).integers(-9, 90_000, (44, 52)).astype(np.int32)),
    **{f"marked {name}": MARKED[name] for name in IN_THE_RUNS},
}
NAMES = tuple(PHOTOS)
# What a column that asks for RGB is given: the files are of other modes, but for one.
TURNED_TO_RGB = (
    "palette",
    "transparent palette",
    "grey JPEG",
    "transparent",
    "marked palette png",
    "CMYK",
    "JPEG",
)


# --- the conversations: every form of call


@dataclass(frozen=True)
class Talk:
    """What the replies of one conversation are made with."""

    mode: str
    frame: str
    chance: random.Random = field(repr=False)

    def box(self) -> list[float]:
        """Four numbers in the run's frame: mostly inside, some outside, some whole, some not."""
        reach = {"rel1": 1.0, "pixel": 60.0}.get(self.frame, 1000.0)
        low = [self.chance.uniform(-0.1, 0.6) * reach for _ in range(2)]
        high = [value + self.chance.uniform(0.2, 0.7) * reach for value in low]
        digits = self.chance.choice([0, 2, 17]) if self.frame != "rel1" else self.chance.choice([1, 3, 17])
        return [round(value, digits) for value in (*low, *high)]

    def zoom(self) -> tuple[str, Any]:
        return ZOOM, {"bbox_2d": self.box()}

    def call(self, *named: tuple[str, Any], content: str | None = None, **fields: Any) -> Reply:
        """Calls in the run's own form."""
        if self.mode == "native":
            return calls(*named, content=content, **fields)
        return says((content or "") + "\n".join(text_call(*one) for one in named), **fields)


def looks_closer(talk: Talk) -> list[Reply]:
    return [
        talk.call(talk.zoom(), content='Ça : 東京 😀 \u2028 \ud800 "quoted" \\ \t'),
        talk.call((ROTATE, {"angle": 33.5}), (ZOOM, {"bbox_2d": json.dumps(talk.box())})),
        talk.call(
            talk.zoom(),
            (ROTATE, {"angle": "-90"}),
            talk.zoom(),
            reasoning_content="Hm.",
            reasoning="Other.",
            thinking=" Hm.\n",
        ),
        says(ANSWER, reasoning="So."),
    ]


def fails_now_and_then(talk: Talk) -> list[Reply]:
    failing = [
        (ZOOM, {"bbox_2d": [5, 5, 5, 5]}),
        (ZOOM, {}),
        (ZOOM, {"bbox_2d": [9e9, 9e9, 1e22, 1e22]}),
        (ZOOM, {"bbox_2d": [float("nan"), 0, 1, 1]}),
        (ROTATE, {"angle": "north", "note": "日本", "number": 10**30, "small": 1e-9}),
        ("no such tool! 東", {"a": 1}),
        ("x" * 90, {}),
        ("", {}),
    ]
    return [talk.call(*failing), talk.call(failing[0], talk.zoom(), failing[4]), says("I do not know.")]


def writes_no_object(talk: Talk) -> list[Reply]:
    if talk.mode == "native":
        named = [
            (ZOOM, text) for text in ("[1, 2]", "{not json", "null", '"text"', "", "7", '{"a": "\ud800"}')
        ]
        broken = completion({"content": "", "tool_calls": [{"id": "a", "function": {"name": 3}}, 5]})
        return [calls(*named), calls(talk.zoom(), (ROTATE, "{")), broken, says(ANSWER)]
    bodies = ["[1, 2]", "{not json", '{"name": 3}', '{"name": "image_rotate_tool", "arguments": [1]}', ""]
    beside = '<tool_call>{"name": "image_rotate_tool", "angle": 7.0}'  # the arguments beside the name
    return [says("".join(f"<tool_call>{body}</tool_call>" for body in bodies)), says(beside), says(ANSWER)]


def gives_no_ids(talk: Talk) -> list[Reply]:
    if talk.mode != "native":
        return [says(text_call(*talk.zoom()), finish_reason="tool_calls"), says(ANSWER)]
    replies = [calls(talk.zoom(), (ROTATE, {"angle": 20})) for _ in range(3)]
    entries = [reply["choices"][0]["message"]["tool_calls"] for reply in replies]
    entries[0][1]["id"] = None
    entries[1][0]["id"] = entries[1][1]["id"] = "twice"
    del entries[2][0]["id"], entries[2][1]["id"]
    return [*replies, calls(talk.zoom()), says(ANSWER)]


def never_stops_calling(talk: Talk) -> list[Reply]:
    turns = [(ROTATE, {"angle": 90})] * 30 + [talk.zoom()] * 5
    return [talk.call(*turns), talk.call(talk.zoom())]  # the last is said again and again


def thinks_of_calls(talk: Talk) -> list[Reply]:
    thought = text_call(ROTATE, {"angle": 1})
    return [
        talk.call(talk.zoom(), content=f"<think>Perhaps {thought}?</think>"),
        says(f"Cut opening {thought}</think>Now. {text_call(ROTATE, {'angle': 5})} and on"),
        talk.call((ROTATE, {"angle": 400.25}), content="<thinking>x</thinking>"),
        says(f"<think>{thought}</think>" + ANSWER),
    ]


def says_it_in_parts(talk: Talk) -> list[Reply]:
    parts = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": "a "},
        {"type": "text", "text": "b"},
    ]
    entry = {"id": "call-0", "type": "function", "function": {"name": ROTATE, "arguments": {"angle": 15}}}
    return [
        completion({"content": parts, "tool_calls": [entry]}, "tool_calls"),
        completion({"tool_calls": [entry]}, "tool_calls", usage=None) | {"model": None},
        talk.call((ROTATE, None), talk.zoom()),
        says(None),
    ]


def calls_in_the_other_form(talk: Talk) -> list[Reply]:
    as_text = says("Look: " + text_call(*talk.zoom()) + text_call(ROTATE, {"angle": 0}))
    return [as_text, calls(talk.zoom(), content="Hm."), as_text, says("<answer>48.9, 2.3</answer>")]


def grows_too_long(talk: Talk) -> list[Reply]:
    return [talk.call(talk.zoom()), talk.call((ROTATE, {"angle": 180})), (400, OVERFLOW)]


def is_cut_off(talk: Talk) -> list[Reply]:
    return [talk.call(talk.zoom(), talk.zoom()), says("It may be \\boxed{4", finish_reason="length")]


def is_cut_off_in_its_calls(talk: Talk) -> list[Reply]:
    last = talk.call(talk.zoom(), (ROTATE, {"angle": 5}), content="I look ")
    last["choices"][0]["finish_reason"] = "length"
    return [talk.call(talk.zoom()), last | {"model": "another"}]


def is_filtered_in_its_calls(talk: Talk) -> list[Reply]:
    last = talk.call((ZOOM, "{not json"), ("", {}))
    last["choices"][0]["finish_reason"] = "content_filter"
    return [last]


def declines(talk: Talk) -> list[Reply]:
    return [talk.call(talk.zoom()), says("", finish_reason="content_filter", refusal="No.")]


def answers_at_once(talk: Talk) -> list[Reply]:
    return [says(ANSWER)]


TALKS: tuple[Callable[[Talk], list[Reply]], ...] = (
    looks_closer,
    fails_now_and_then,
    writes_no_object,
    gives_no_ids,
    thinks_of_calls,
    looks_closer,
    says_it_in_parts,
    calls_in_the_other_form,
    grows_too_long,
    is_cut_off,
    is_cut_off_in_its_calls,
    is_filtered_in_its_calls,
    never_stops_calling,
    declines,
    answers_at_once,
)


def code(text: str) -> tuple[str, Any]:
    return CODE, {"code": text}


def programs(talk: Talk) -> list[Reply]:
    return [
        talk.call(code("```python\nprint('größe', image.size, '\\n \\n')\nresult_image = image.rotate(20)\n```")),
        talk.call(code("result_image = Image.fromarray(np.array(image.convert('RGB'))[::2])"), talk.zoom()),
        talk.call(code("print('before')\nresult_image = image.crop((0, 0, 0, 0)) / 2")),
        talk.call(
            code("print(' ')\nfor _ in [1]:\n    result_image = Image.fromarray(np.zeros((40, 50), 'uint16') + 999)"),
            code("result_image = Image.fromarray(np.zeros((40, 50), 'float32') + 200)"),  # darker by the range before
        ),
        says(ANSWER),
    ]  # fmt: skip


CLEAR = "result_image = image.convert('P')\nresult_image.info['transparency'] = result_image.getpixel((9, 9))"


def programs_of_chance(talk: Talk) -> list[Reply]:
    chance = (
        "import random\nprint(random.random())\nimport numpy as np\n"
        "result_image = Image.fromarray(np.random.randint(0, 256, (30, 44, 3), dtype='uint8'))"
    )
    return [
        talk.call(code(chance), code(CLEAR)),
        talk.call(
            code("result_image = 3"), (CODE, {}), code("x = ("), code("result_image = image.rotate(7)")
        ),
        talk.call((CODE, "text"), (CODE, {"code": "result_image = image", "why": "näher"})),
        talk.call(code("result_image = image.convert('RGBA').resize((33, 200))"), talk.zoom()),
        says(ANSWER),
    ]


# --- the runs: every frame, tool mode and way to ask


@dataclass(frozen=True)
class Run:
    """One run of a door into a folder of its own."""

    name: str
    model: str
    frame: str
    mode: str
    flags: tuple[object, ...] = ()
    door: str = "run"
    talks: tuple[Callable[[Talk], list[Reply]], ...] = TALKS
    seed: int = 0
    column_mode: str | None = None  # what the dataset's image column asks for

    @property
    def names(self) -> tuple[str, ...]:
        """The photos of its dataset, a row each."""
        return TURNED_TO_RGB if self.column_mode else NAMES

    def replies(self, sample_index: int) -> list[Reply]:
        shift = RUNS.index(self) * 5
        make = self.talks[(sample_index + shift) % len(self.talks)]
        return make(Talk(self.mode, self.frame, random.Random(f"{self.name} {sample_index}")))


EVERY_TOOL = ("--tools", "zoom,rotate,python_code")
PROGRAMS = (programs, looks_closer, programs_of_chance, fails_now_and_then)
PROMPTS = ("--system_prompt", "", "--user_prompt_file", "PROMPT", "--image_max_pixels", 4000)
RUNS = (
    Run("thousandths", "scripted-qwen3-vl", "rel1000", "native"),
    Run("y first, of the photo", "gemini-9", "rel1000_yx", "text", (*PROMPTS, "--crop_from", "original"), seed=-3),
    Run("multiples of 28", "Qwen2.5-VL-7B", "pixel", "native", ("--temperature", 0, "--max_turns", 2)),
    Run("sizes in words", "claude-9", "pixel", "text", ("--image_max_pixels", 3000)),
    Run("fractions, of the photo", "pixel-reasoner", "rel1", "native", ("--crop_from", "original"), seed=7),
    Run("stated pixels of the photo", "who", "pixel", "native", ("--crop_from", "original", "--image_max_pixels", 2000)),
    Run("kept pictures", "gpt-5", "pixel", "native", EVERY_TOOL, door="with-tools", talks=PROGRAMS),
    Run("programs", "qwen3-vl", "rel1000", "text", EVERY_TOOL, door="code", talks=PROGRAMS),
    Run("no tools", "scripted-qwen3-vl", "rel1000", "none", door="one-turn", talks=(answers_at_once, says_it_in_parts)),
    Run("a column of RGB", "glm-4.5v", "rel1000", "native", talks=(looks_closer, fails_now_and_then), column_mode="RGB"),
)  # fmt: skip


@dataclass(frozen=True)
class Made:
    """What a run left: its traces by row, and what the server got for each turn of each row, in order."""

    run: Run
    traces: Mapping[int, Mapping[str, Any]] = field(repr=False)
    bodies: Mapping[tuple[int, int], Sequence[bytes]] = field(repr=False)


@pytest.fixture(scope="module", params=RUNS, ids=lambda run: run.name)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """A run of a door, in this process, over all photos."""
    run, folder = request.param, tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("OPENAI_")]:
            patch.delenv(name)
        yield distilled(run, saved_photos(run, folder / "photos"), folder)


def saved_photos(run: Run, folder: Path) -> Path:
    places = np.random.default_rng(0).uniform((-90, -180), (90, 180), (len(run.names), 2))
    rows = [
        row(PHOTOS[name], lat=float(lat), lon=float(lon))
        for name, (lat, lon) in zip(run.names, places, strict=True)
    ]
    return saved(folder, rows, {"image": ImageColumn(mode=run.column_mode)})


def distilled(run: Run, dataset: Path, folder: Path) -> Made:
    num_rows = len(run.names)
    turns = {
        rebuilder.turn_seed(run.seed, index, turn): (index, turn)
        for index in range(num_rows)
        for turn in range(1, 12)
    }
    replies = [run.replies(index) for index in range(num_rows)]

    def script(request: dict[str, Any]) -> Any:
        if is_probe(request):
            return calls((ZOOM, {})) if "tools" in request else says("Yes.")
        index, turn = turns[request["seed"]]
        return replies[index][min(turn, len(replies[index])) - 1]

    prompt = folder / "prompt.txt"
    prompt.write_text("Où est-ce ? 京都 😀\n\nAnswer in \\boxed{}.\n", encoding="utf-8")
    flags = [prompt if flag == "PROMPT" else flag for flag in run.flags]
    with ScriptedTeacher(script, models=(run.model,)) as server:
        arguments = [
            run.door, "--api_base", server.api_base, "--dataset_path", dataset, "--output_dir", folder / "traces",
            "--num_samples", 0, "--max_workers", 2, "--max_turns", 5, "--seed", run.seed, "--keep_going", *flags,
        ]  # fmt: skip
        mode = [] if run.mode == "none" else ["--tool_mode", run.mode]
        assert main([*map(str, arguments), *mode]) == 0
    bodies: dict[tuple[int, int], list[bytes]] = {}
    for request, body in zip(server.requests, server.bodies, strict=True):
        if not is_probe(request):  # what is asked before the run
            bodies.setdefault(turns[request["seed"]], []).append(body)
    paths = sorted((folder / "traces").glob("trace_*.json"))
    traces = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return Made(run, {trace["sample_index"]: trace for trace in traces}, bodies)


@pytest.fixture(scope="module")
def rebuilt(made: Made) -> dict[int, rebuilder.Rebuilt]:
    """What follows from each trace and its row."""
    return {index: rebuilder.rebuild(trace) for index, trace in made.traces.items()}


def split_body(body: bytes) -> tuple[Any, bytes]:
    """A body's fields but `messages`, and the bytes of `messages`."""
    fields = json.loads(body)
    messages = b'"messages": ' + body.partition(b'"messages": ')[2]
    assert body.endswith(b"]}") and json.loads(b"{" + messages) == {"messages": fields.pop("messages")}
    return fields, messages.removeprefix(b'"messages": ').removesuffix(b"}")


def test_every_request_is_rebuilt_to_the_byte(made: Made, rebuilt: Mapping[int, rebuilder.Rebuilt]) -> None:
    assert sorted(made.traces) == list(range(len(made.run.names)))
    seen: set[tuple[int, int]] = set()
    for index, one in rebuilt.items():
        for turn, request in enumerate(one.requests, start=1):
            seen.add((index, turn))
            (body,) = made.bodies[index, turn]
            fields, messages = split_body(body)
            assert fields == request.fields, (index, turn)
            assert messages == request.messages, (index, turn)
    assert seen == set(made.bodies)


def test_what_a_trace_stores_of_its_pictures_is_rebuilt(
    made: Made, rebuilt: Mapping[int, rebuilder.Rebuilt]
) -> None:
    for index, trace in made.traces.items():
        assert rebuilt[index].image == trace["image"]
        for call, outcome in zip(trace["tool_calls_log"], rebuilt[index].calls, strict=True):
            assert call["success"] == ("result" in call) == bool(outcome)
            if outcome:
                assert outcome.pop("arguments") == rebuilder.stored_arguments(call)
                expected = {
                    name: call[name] for name in call.keys() & {"clamped", "result", "stdout", "picture"}
                }
                assert outcome == expected, (index, call)


def test_no_request_holds_metadata(made: Made) -> None:
    for index, bodies in made.bodies.items():
        for _, data in (picture for body in bodies for picture in pictures_of(json.loads(body))):
            assert MARK.encode() not in data, made.run.names[index[0]]


def pictures_of(request: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """The media type and the file of each picture in a request."""
    for message in request["messages"]:
        for part in message["content"] if isinstance(message["content"], list) else []:
            if part["type"] == "image_url":
                head, _, data = part["image_url"]["url"].partition(",")
                yield head, base64.b64decode(data)


def test_a_turn_holds_what_its_reply_held(made: Made) -> None:
    for index, trace in made.traces.items():
        replies = made.run.replies(index)
        for entry in trace["conversation_log"]:
            reply = replies[min(entry["turn"], len(replies)) - 1]
            (choice,) = reply["choices"]
            message = choice["message"]
            assert entry["finish_reason"] == choice["finish_reason"]
            assert entry["usage"] == reply["usage"]
            assert entry.get("model") == reply["model"]
            assert entry.get("refusal") == message.get("refusal")
            places = [name for name in ("reasoning_content", "reasoning", "thinking") if name in message]
            if places:
                assert (entry["reasoning_field"], entry["reasoning"]) == (places[0], message[places[0]])
            is_last = entry is trace["conversation_log"][-1]
            if choice["finish_reason"] in ("length", "content_filter"):
                assert is_last and trace["metadata"]["stop_reason"] in ("truncated", "refused")
                assert [
                    call["turn"] for call in trace["tool_calls_log"] if call["turn"] == entry["turn"]
                ] == []
            else:
                assert "calls_not_run" not in entry


def test_a_cut_off_turn_names_the_calls_that_did_not_run(made: Made) -> None:
    if made.run.talks is not TALKS:
        return
    entries = [trace["conversation_log"][-1] for trace in made.traces.values()]
    kept = [entry["calls_not_run"] for entry in entries if "calls_not_run" in entry]
    native = made.run.mode == "native"
    assert {entry["finish_reason"] for entry in entries if "calls_not_run" in entry} == {
        "length",
        "content_filter",
    }
    names = {tuple(call["name"] for call in one) for one in kept}
    assert names == {(ZOOM, ROTATE), (ZOOM, "")}
    assert all(
        call.keys() - {"name", "arguments"} == ({"call_id"} if native else set())
        for one in kept
        for call in one
    )
    assert {"angle": 5} in [call["arguments"] for one in kept for call in one]


def test_all_reasoning_of_a_turn_is_kept_once(made: Made) -> None:
    kept = [
        turn
        for trace in made.traces.values()
        for turn in trace["conversation_log"]
        if "other_reasoning" in turn
    ]
    if looks_closer in made.run.talks and "--max_turns" not in made.run.flags:
        assert {
            (turn["reasoning_field"], turn["reasoning"], *turn["other_reasoning"].items()) for turn in kept
        } == {
            ("reasoning_content", "Hm.", ("reasoning", "Other.")),
            ("reasoning", "So.", ("content", "Not \\boxed{1, 1}.")),
        }


# --- every field that a trace has is on the page

OPAQUE = {  # what is in these is not ours: columns, the server's figures, the teacher's arguments, schemas
    ("", "sample_data"),
    ("settings", "tool_schemas"),
    ("conversation_log", "usage"),
    ("conversation_log", "other_reasoning"),
    ("conversation_log.calls_not_run", "arguments"),
    ("tool_calls_log", "raw_arguments"),
}


def named_at(place: str) -> str:
    """The part of the page that names the fields of an object of a trace."""
    table = PAGE.partition("| field | what it holds |")[2].partition("\n\n")[0]
    cells = {
        line.split("|")[1].strip(" `"): line.partition("|")[2].partition("|")[2]
        for line in table.splitlines()[2:]
    }
    if place == "":
        return " ".join(f"`{name}`" for name in cells)
    first, _, last = place.rpartition(".")
    title = {
        "conversation_log": "A turn", "tool_calls_log": "A call", "metadata": "`metadata`", "settings": "`settings`",
    }.get(place.partition(".")[0])  # fmt: skip
    title = {"sent": "`sent`", "view_rule": "The size as sent"}.get(last, title)
    return paragraph(title) if title else cells[first or place]


def paragraph(title: str) -> str:
    """The text under a title in bold, up to the next such title or heading."""
    (text,) = re.findall(rf"^\*\*{re.escape(title)}\*\*(.*?)(?=^\*\*|^## )", PAGE, re.MULTILINE | re.DOTALL)
    return str(text)


def fields_of(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every field of a JSON value as the path of the object it is in, and its name."""
    if isinstance(value, list):
        for item in value:
            yield from fields_of(item, place)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield place, name
            if (place, name) not in OPAQUE:
                yield from fields_of(inner, f"{place}.{name}".strip("."))


def test_the_page_names_every_field_of_the_traces(made: Made) -> None:
    fields = {field for trace in made.traces.values() for field in fields_of(trace)}
    assert len(fields) > 80
    assert [field for field in sorted(fields) if f"`{field[1]}`" not in named_at(field[0])] == []


def test_hashes_rewards_and_sums_of_a_trace_are_rebuilt(made: Made) -> None:
    for trace in made.traces.values():
        metadata = trace["metadata"]
        assert rebuilder.integrity_sha256(trace) == trace["integrity_sha256"]
        assert rebuilder.settings_sha256(trace) == metadata["settings_sha256"]
        truth = {name: trace["sample_data"][name] for name in ("lat", "lon")}
        assert metadata["truth"] == truth
        assert rebuilder.reward_score(metadata["answer"], truth) == trace["reward_score"]


def test_the_runs_meet_what_the_page_speaks_of(made: Made) -> None:
    run, log = made.run, [call for trace in made.traces.values() for call in trace["tool_calls_log"]]
    assert {trace["settings"]["coordinates"] for trace in made.traces.values()} == {run.frame}
    images = {run.names[index]: trace["image"] for index, trace in made.traces.items()}
    if run.column_mode:
        assert {image["mode"] for image in images.values()} == {run.column_mode}
        bare = {name for name, image in images.items() if image["sent"]["sha256"] == image["file_sha256"]}
        assert bare == {"JPEG"}
        return
    if run.mode == "none":
        return
    assert {image["sent"].get("grey_range") is not None for image in images.values()} == {True, False}
    done = [call for call in log if call["success"]]
    assert 0 < len(done) < len(log)
    assert {call["clamped"] for call in done} == {True, False}
    assert any(not isinstance(rebuilder.raw_arguments(call), dict) for call in log)
    if "original" in run.flags:
        assert {"crop_from" in call["tool_arguments"] for call in done} == {True, False}
    if run.talks is PROGRAMS:
        assert {call["success"] for call in log if call.get("stdout")} == {True, False}
        return
    reached = {trace["metadata"]["stop_reason"] for trace in made.traces.values()}
    overflow = set() if "--max_turns" in run.flags else {"context_overflow"}
    assert reached == {"answered", "truncated", "refused", "max_turns"} | overflow
    assert any("only the first 32 calls" in call["message"] for call in log)
    forms = {turn["call_form"] for trace in made.traces.values() for turn in trace["conversation_log"]}
    assert forms == {"native", "text", None}


def test_settings_meet_every_way_to_ask() -> None:
    assert {run.frame for run in RUNS} == {frame.value for frame in Frame}
    assert {run.mode for run in RUNS} == {mode.value for mode in ToolMode}
    renamed = {profile.name for profile in PROFILES if profile.token_field != "max_tokens"}
    assert renamed == {"gpt-reasoning"}  # as the page says of traces of earlier versions
    assert any(run.model == "gpt-5" for run in RUNS)


# --- the rules at their edges


SIDES = st.integers(1, 3000)
NUMBERS = st.one_of(
    st.integers(-200, 1300), st.floats(-2, 1100), st.floats(allow_nan=False, allow_infinity=False)
)
EXACT = st.tuples(st.integers(0, 100), st.integers(1, 100)).map(lambda pair: pair[0] / pair[1])  # 0.7 of 10


@given(
    st.sampled_from(list(Frame)),
    st.tuples(*[st.one_of(NUMBERS, EXACT)] * 4),
    st.tuples(SIDES, SIDES),
    st.tuples(st.one_of(SIDES, st.integers(1, 12)), st.one_of(SIDES, st.integers(1, 12))),
)
@example(Frame.REL1, (0.1, 0.1, 0.7, 0.7), (10, 10), (10, 10))
@example(Frame.REL1, (0.5, 0.5, 0.50000001, 0.50000001), (10, 10), (10, 10))
@example(Frame.REL1000, (-1e308, 0, 1e308, 1000), (10, 10), (10, 10))
def test_any_box_is_in_the_pixels_that_the_page_says(
    frame: Frame, box: tuple[float, ...], sent: tuple[int, int], size: tuple[int, int]
) -> None:
    try:
        expected = box_to_pixels(box, frame, sent, size)
    except ToolError:
        return
    assert rebuilder.whole_pixels(box, frame.value, sent, size) == expected


@given(
    st.tuples(st.integers(1, 6000), st.integers(1, 6000)),
    st.builds(
        ResizeRule,
        max_area_px=st.one_of(st.none(), st.integers(1, 2_000_000)),
        min_area_px=st.integers(0, 100_000),
        max_side_px=st.one_of(st.none(), st.integers(1, 3000)),
        min_side_px=st.integers(1, 64),
        factor_px=st.sampled_from([1, 14, 28, 32]),
    ),
)
def test_any_picture_is_sent_at_the_size_that_the_page_says(size: tuple[int, int], rule: ResizeRule) -> None:
    try:
        expected = sent_size(size, rule)
    except SampleError:
        return
    assert rebuilder.sent_size(size, asdict(rule)) == expected


MODES = (
    "1",
    "L",
    "P",
    "LA",
    "La",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "I;16",
)


def in_mode(mode: str) -> Image.Image:
    if mode in ("I;16", "F"):
        return noise(37, 21, mode)
    by_way = {"La": "LA", "RGBa": "RGBA", "PA": "LA", "I": "L"}.get(mode, "RGB")
    picture = noise(37, 21, by_way)
    return ImageCms.applyTransform(picture, TO_LAB) if mode == "LAB" else picture.convert(mode)


TO_LAB = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_of_any_mode_is_hashed_and_sent_as_the_page_says(mode: str) -> None:
    picture, rule = in_mode(mode), ResizeRule()
    assert picture.mode == mode
    assert rebuilder.picture_facts(picture) == asdict(picture_facts(picture))
    for one in (picture, picture.crop((3, 2, 30, 15))):
        expected = encode_sent(one, rule)
        assert rebuilder.sent_picture(one, asdict(rule), rebuilder.grey_range_of(one)).data == expected.data


GREYS = st.one_of(
    st.lists(st.integers(-70_000, 90_000), min_size=2, max_size=6),
    st.lists(st.integers(0, 300), min_size=2, max_size=6),
    st.lists(st.floats(-2, 2, width=32), min_size=2, max_size=6),
    st.lists(st.floats(width=32), min_size=2, max_size=6),
)


@given(GREYS, GREYS)
@example([0, 255], [0, 256])
@example([-5, 90], [7, 7])
@example([0, 70000], [-3, -3])
@example([0.0, 1.0], [0.5, 1.001])
@example([float("nan"), 2e5], [float("inf"), float("-inf")])
def test_any_grey_is_scaled_as_the_page_says(photo: list[float], made: list[float]) -> None:
    is_whole = all(abs(value) < 2**31 and value == int(value) for value in (*photo, *made))
    for kind in (np.float32, np.int32) if is_whole else (np.float32,):
        whole, result = (
            Image.fromarray(np.resize(np.array(values, kind), (4, 5))) for values in (photo, made)
        )
        grey_range = rebuilder.grey_range_of(whole)
        assert grey_range == find_grey_range(whole)
        for picture in (whole, result):  # what a call made is scaled as the photo was
            expected = to_rgb_or_grey(picture, grey_range)
            assert rebuilder.eight_bits(picture, grey_range).tobytes() == expected.tobytes()


def file_format(data: bytes) -> str:
    return "PNG" if data.startswith(b"\x89PNG") else "JPEG"


@pytest.mark.parametrize("name", MARKED)
def test_a_marked_file_is_cut_as_the_page_says(name: str) -> None:
    data = MARKED[name]
    bare = rebuilder.bare_file(file_format(data), data)
    assert bare == without_metadata(file_format(data), data)
    if name in CUT:
        assert bare is not None
        assert MARK.encode() not in bare
        with Image.open(io.BytesIO(bare)) as kept, Image.open(io.BytesIO(data)) as whole:
            assert kept.mode == whole.mode and kept.tobytes() == whole.tobytes()


def with_chunk(kind: bytes, data: bytes = b"", before: bytes = b"IDAT") -> bytes:
    """The PNG with one more chunk."""
    at = MARKED["png"].index(before) - 4
    return MARKED["png"][:at] + chunk(kind, data) + MARKED["png"][at:]


ODD_FILES = {
    "an unknown critical chunk": with_chunk(b"CRIT"),
    "an animation": with_chunk(b"acTL", bytes(8)),
    "a palette": with_chunk(b"PLTE", bytes(6)),
    "a transparent colour": with_chunk(b"tRNS", bytes(6)),
    "two headers": with_chunk(b"IHDR", bytes(13)),
    "a late header": with_chunk(b"tEXt", b"a\0b", before=b"IHDR"),
    "pixels in two pieces": with_chunk(b"IDAT", b"", before=b"IEND").replace(b"zzZz", b"tEXt"),
    "an end with content": MARKED["png"].replace(b"\0\0\0\0IEND", b"\0\0\0\1IEND"),
    "no end": MARKED["png"][: MARKED["png"].rindex(b"IEND") - 4],
    "a grey palette": file_bytes(noise(20, 20, "P"), "PNG"),
    "no picture at all": b"\xff\xd8\xff\xd9",
    "a length of 1": jpeg_with(b"\xff\xfe\0\1"),
    "a lone restart": jpeg_with(b"\xff\xd0"),
    "a reserved marker": jpeg_with(segment(0xC8, b"")),
    "fill bytes": jpeg_with(b"\xff\xff"),
    "fill bytes behind the scan": PHOTOS["JPEG"][:-2] + b"\xff\xff\xff\xd9",
    "a run of FF in the scan": PHOTOS["JPEG"][:-2] + b"\xff\xff\0\xff\xff\xd7\xff\xd9",
    "arithmetic coding": jpeg_with(segment(0xCC, b"ab")),
    "a short JFIF": jpeg_with(segment(0xE0, b"JFIF\0abcdefgh")),
    "another JFIF": jpeg_with(segment(0xE0, b"JFIF\0abcdefghijkl")),
    "a short Adobe": jpeg_with(segment(0xEE, b"Adobeabcdef")),
    "another Adobe": jpeg_with(segment(0xEE, b"Adobeabcdefgh")),
    "no end of the picture": PHOTOS["JPEG"][:-2],
}


@pytest.mark.parametrize("name", ODD_FILES)
def test_an_odd_file_is_cut_or_not_as_the_page_says(name: str) -> None:
    data = ODD_FILES[name]
    assert rebuilder.bare_file(file_format(data), data) == without_metadata(file_format(data), data)


def test_some_odd_files_are_cut_and_some_are_not() -> None:
    results = {name: rebuilder.bare_file(file_format(data), data) for name, data in ODD_FILES.items()}
    cut = {name for name, bare in results.items() if bare is not None}
    assert cut == {
        "a palette",
        "a transparent colour",
        "no picture at all",
        "fill bytes",
        "fill bytes behind the scan",
        "a run of FF in the scan",
        "arithmetic coding",
        "a short JFIF",
        "another JFIF",
        "a short Adobe",
        "another Adobe",
    }


@given(st.sampled_from(sorted(MARKED)), st.data())
def test_any_damaged_file_is_cut_or_not_as_the_page_says(name: str, data: st.DataObject) -> None:
    damaged = bytearray(MARKED[name])
    places = [place for place, byte in enumerate(damaged) if byte == 0xFF] or [0]
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.one_of(st.integers(0, len(damaged) - 1), st.sampled_from(places)))
        change = data.draw(st.binary(min_size=0, max_size=3))
        damaged[place + 1 : place + 1 + data.draw(st.integers(0, 2))] = change
    kind, file = data.draw(st.sampled_from(["JPEG", "PNG"])), bytes(damaged)
    kind = file_format(file) if data.draw(st.integers(0, 9)) else kind
    assert rebuilder.bare_file(kind, file) == without_metadata(kind, file)


@pytest.mark.parametrize(
    "code",
    [
        "result_image = image",
        "result_image = Image.new('L', np.ones(2).shape)",
        "  \nnp.ones(3)",
        "for i in np.ones(3):\n    pass",
        "def Image(): pass\nImage()",
        "import numpy as np\nnp.ones(3)",
        "import PIL.Image\nPIL.Image.new('L', (1, 1)); Image",
        "from PIL import Image as I\nImage.new('L', (1, 1))",
        "from __future__ import annotations\nnp.ones(3)",
        "np = 3\nnp",
        "np += 3",
        "x = (",
        "```python\nnp.ones(3)\n```",
        "```\nx = 1\n``` ",
        "```",
        "```\n```",
        "\n```py\nx\n\ny\n```\n",
        "x\n```",
        "def f(np): return np",
    ],
)
def test_code_is_stored_as_the_page_says(code: str) -> None:
    assert rebuilder.stored_code(code) == self_contained(unfenced(code))


# --- what the page shows is true


def table_rows(heading: str) -> list[list[str]]:
    """The cells of the page's table with this heading, without their backticks."""
    lines = PAGE.partition(heading)[2].splitlines()
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), lines[1:]))
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in rows[1:]]


def size(text: str) -> tuple[int, int]:
    width, height = map(int, text.split("×"))
    return width, height


def test_the_pages_boxes_are_as_it_says() -> None:
    rows = table_rows("| numbers | frame | sent | picture | `bbox_2d` | `clamped` |")
    assert {row[1] for row in rows} == {"pixel", "rel1000", "rel1000_yx", "rel1"}
    for numbers, frame, sent, picture, stored, clamped in rows:
        box = [float(number) for number in numbers.split()]
        expected = tuple(map(int, stored.split())), json.loads(clamped)
        assert rebuilder.whole_pixels(box, frame, size(sent), size(picture)) == expected


def test_the_pages_sizes_are_as_it_says() -> None:
    names = ("max_side_px", "min_side_px", "max_area_px", "min_area_px", "factor_px")
    rows = table_rows(f"| full size | {' | '.join(f'`{name}`' for name in names)} | as sent |")
    assert len(rows) == 3
    for full, *limits, sent in rows:
        rule = dict(zip(names, map(json.loads, limits), strict=True))
        assert rebuilder.sent_size(size(full), rule) == size(sent)


def test_the_pages_seeds_hashes_and_rewards_are_as_it_says() -> None:
    seeds = re.findall(r"`(-?\d+):(\d+):(\d+)` gives (\d+)", PAGE)
    assert len(seeds) == 2
    for *of, seed in seeds:
        assert rebuilder.turn_seed(*map(int, of)) == int(seed)
    ((value, digest),) = re.findall(r"`(.*)` gives `([0-9a-f]{64})`", PAGE)
    assert rebuilder.json_sha256(json.loads(value)) == digest
    picture = Image.new("P", (4, 2))
    picture.putpalette([1, 2, 3, 200, 100, 50])
    picture.putpixel((3, 1), 1)
    assert f"0 0 0 0 0 0 0 1:\n`{rebuilder.pixel_sha256(picture)}`" in PAGE
    reward = rebuilder.reward_score({"lat": 48.8566, "lon": 2.3522}, {"lat": 48.5, "lon": 2.25})
    assert f"{reward['distance@km']:.8f} km away: `score` {reward['score']:.8f}" in PAGE
    assert f"`geoguessr@point` {reward['geoguessr@point']:.5f}" in PAGE


def test_the_pages_texts_are_those_that_are_sent() -> None:
    assert f"```\n{rebuilder.TOOLS_BLOCK}\n```" in PAGE
    assert f"`{rebuilder.SIZE_SENTENCE}`" in PAGE


def test_the_rebuilder_has_the_sections_of_the_page() -> None:
    titles = re.findall(r"^# --- (.*)$", REBUILDER.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(titles) - {"all of a trace"} <= set(re.findall(r"^## (.*)$", PAGE, re.MULTILINE))


def test_the_pages_links_lead_to_its_sections() -> None:
    anchors = {title.lower().replace(" ", "-") for title in re.findall(r"^## (.*)$", PAGE, re.MULTILINE)}
    links = re.findall(r"\]\(#([^)]*)\)", PAGE)
    assert links and set(links) <= anchors


def test_the_rebuilder_imports_nothing_of_ours() -> None:
    names: set[str] = set()
    for node in ast.walk(ast.parse(REBUILDER.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(str(node.module).partition(".")[0])
    assert names - sys.stdlib_module_names == {"PIL", "numpy", "datasets"}
    assert not re.search(r"import_module|__import__|\bdistil\.", REBUILDER.read_text(encoding="utf-8"))
