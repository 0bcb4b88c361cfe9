"""What docs/trace-format.md says is enough to rebuild every request from a trace and its row, to the byte."""

from __future__ import annotations

import ast
import itertools
import json
import math
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
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin
from scripted_teacher import ScriptedTeacher, calls, completion, says, text_call

from distil.cli import main
from distil.errors import SampleError, ToolError
from distil.pictures import (
    Frame,
    ViewRule,
    box_to_pixels,
    encode_sent,
    picture_facts,
    sent_size,
    to_rgb_or_grey,
)
from distil.records import ToolMode
from distil.teacher import PROFILES
from distil.tools.python_code import self_contained, unfenced

PAGE = (Path(__file__).parent.parent / "docs" / "trace-format.md").read_text(encoding="utf-8")
REBUILDER = Path(rebuilder.__file__)
ZOOM, ROTATE, CODE = "image_zoom_in_tool", "image_rotate_tool", "python_code_tool"
ANSWER = "<think>Not \\boxed{1, 1}.</think>It is \\boxed{48.9, 2.3}"
OVERFLOW = {
    "error": {"message": "This model's maximum context length is 9", "code": "context_length_exceeded"}
}
BEFORE_THE_RUN = (-1, -1)
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
}


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
        talk.call(talk.zoom(), (ROTATE, {"angle": "-90"}), talk.zoom(), reasoning_content="Hm."),
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
        completion({"tool_calls": [entry]}, "tool_calls", usage=None),
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
        talk.call(code("print(' ')\nfor _ in [1]:\n    result_image = Image.fromarray(np.zeros((40, 50), 'uint16') + 999)")),
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
)  # fmt: skip


@dataclass(frozen=True)
class Made:
    """What a run left: its traces by row, and what the server got for each turn of each row, in order."""

    run: Run
    traces: Mapping[int, Mapping[str, Any]] = field(repr=False)
    bodies: Mapping[tuple[int, int], Sequence[bytes]] = field(repr=False)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A row for each kind of photo."""
    places = np.random.default_rng(0).uniform((-90, -180), (90, 180), (len(PHOTOS), 2))
    rows = [
        row(data, lat=float(lat), lon=float(lon))
        for data, (lat, lon) in zip(PHOTOS.values(), places, strict=True)
    ]
    return saved(tmp_path_factory.mktemp("page") / "photos", rows)


@pytest.fixture(scope="module", params=RUNS, ids=lambda run: run.name)
def made(
    request: pytest.FixtureRequest, dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Made]:
    """A run of a door, in this process, over all photos."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("OPENAI_")]:
            patch.delenv(name)
        yield distilled(request.param, dataset, tmp_path_factory.mktemp("run"))


def distilled(run: Run, dataset: Path, folder: Path) -> Made:
    turns = {
        rebuilder.turn_seed(run.seed, index, turn): (index, turn)
        for index in range(len(PHOTOS))
        for turn in range(1, 12)
    }
    replies = [run.replies(index) for index in range(len(PHOTOS))]

    def script(request: dict[str, Any]) -> Any:
        if request["seed"] not in turns:  # asked before the run
            return calls((ZOOM, {})) if "tools" in request else says("Yes.")
        index, turn = turns[request["seed"]]
        return replies[index][min(turn, len(replies[index])) - 1]

    prompt = folder / "prompt.txt"
    prompt.write_text("Où est-ce ? 京都 😀\n\nAnswer in \\boxed{}.\n", encoding="utf-8")
    flags = [prompt if flag == "PROMPT" else flag for flag in run.flags]
    with ScriptedTeacher(script, models=(run.model,)) as server:
        arguments = [
            run.door, "--api_base", server.api_base, "--dataset_path", dataset, "--output_dir", folder / "traces",
            "--num_samples", 0, "--max_workers", 2, "--max_turns", 5, "--seed", run.seed, *flags,
        ]  # fmt: skip
        mode = [] if run.mode == "none" else ["--tool_mode", run.mode]
        assert main([*map(str, arguments), *mode]) == 0
    bodies: dict[tuple[int, int], list[bytes]] = {}
    for body in server.bodies:
        bodies.setdefault(turns.get(json.loads(body)["seed"], BEFORE_THE_RUN), []).append(body)
    bodies.pop(BEFORE_THE_RUN, None)
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
    assert sorted(made.traces) == list(range(len(PHOTOS)))
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
    if run.mode == "none":
        return
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
    assert renamed == {"gpt-reasoning"}  # as the page says


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
        ViewRule,
        max_area_px=st.one_of(st.none(), st.integers(1, 2_000_000)),
        min_area_px=st.integers(0, 100_000),
        max_side_px=st.one_of(st.none(), st.integers(1, 3000)),
        min_side_px=st.integers(1, 64),
        factor_px=st.sampled_from([1, 14, 28, 32]),
    ),
)
def test_any_picture_is_sent_at_the_size_that_the_page_says(size: tuple[int, int], rule: ViewRule) -> None:
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
    picture, rule = in_mode(mode), ViewRule()
    assert picture.mode == mode
    assert rebuilder.picture_facts(picture) == asdict(picture_facts(picture))
    for one in (picture, picture.crop((3, 2, 30, 15))):
        assert rebuilder.sent_file(one, asdict(rule)).data == encode_sent(one, rule).data


@pytest.mark.parametrize(
    "values",
    [
        [0, 255],
        [0, 256],
        [-5, 90],
        [7, 7],
        [0, 70000],
        [-3, -3],
        [0.0, 1.0],
        [0.5, 1.001],
        [float("nan"), 2e5],
    ],
)
def test_any_grey_is_scaled_as_the_page_says(values: list[float]) -> None:
    for kind in (np.float32, np.int32):
        if kind is np.int32 and not all(map(math.isfinite, values)):
            continue
        picture = Image.fromarray(np.resize(np.array(values, dtype=kind), (40, 41)))
        assert rebuilder.eight_bits(picture).tobytes() == to_rgb_or_grey(picture).tobytes()


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
