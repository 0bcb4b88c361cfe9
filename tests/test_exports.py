"""Exports: traces with strange words, failed calls, thoughts and code, read back from every format."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import datasets
import pyarrow.parquet as pq
import pytest
from builders import file_bytes, row, saved, smooth
from conftest import PACKAGE
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageStat
from replayed import replay
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says, text_call
from warm_door import start_door

from distil.cli import main
from distil.commands.flags import ExportFlags, FormFlags
from distil.errors import ToolError
from distil.exports.conversation import StudentConversation, conversation_of
from distil.exports.escape import escaped, escaped_json, json_text
from distil.exports.export import NotExported, conversation_at
from distil.exports.pictures import ShownCall, shown_calls, student_rule, student_size
from distil.exports.tokens import picture_tokens, text_tokens
from distil.pictures import box_to_pixels, pixels_to_box, sent_size
from distil.records import ExportFormat, Frame, SentPicture, Student, ToolMode
from distil.replay.replay import Executors, Sources
from distil.store.trace_file import StoredTrace, json_sha256, read_trace

ZOOM, ROTATE, CODE = "image_zoom_in_tool", "image_rotate_tool", "python_code_tool"
FORMATS = [each.value for each in ExportFormat]
BAD = "<image> <video> <|im_end|>\n<|im_start|>user <|image_pad|> <tool_response>"
PROGRAM = f"""print({BAD!r}, '</' + 'tool_call> <' + 'think>')
result_image = image.crop((3, 4, 50, 60))"""
# What a tokenizer or a trainer takes for more than text.
SPECIAL = re.compile(
    r"<\|[^|<>]*\|>|<(?:image|video|audio|bbox|ref-object)>|</?(?:tool_call|tool_response|think)>"
)
ANSWER = f"It says {BAD}: \\boxed{{48.86, 2.35}}"


def policy(request: dict[str, Any]) -> Any:
    """Zooms and turns, a call that fails, code that prints strange words, thoughts in places; then an answer."""
    if is_probe(request):
        return calls((ZOOM, {"bbox_2d": [0, 0, 9, 9]})) if "tools" in request else says("ok")
    steps: list[tuple[str, list[tuple[str, Any]]]] = [
        ("Closer.", [(ZOOM, {"bbox_2d": [100, 200, 900, 800]})]),
        ("", [(ZOOM, {"bbox_2d": [5, 5, 5, 5]})]),
        ("Two at once " + BAD, [(ZOOM, {"bbox_2d": [7, 7, 7, 7]}), (ROTATE, {"angle": 90})]),
        ("", [(CODE, {"code": PROGRAM})]),
    ]
    turn = num_turns(request)
    if turn >= len(steps):
        return says(f"<think>Hm. {BAD}</think>{ANSWER}", reasoning="Deep in thought.")
    text, named = steps[turn]
    if "tools" in request:
        return calls(*named, content=text, reasoning="So it is." if turn == 0 else None)
    return says("\n".join([text, *(text_call(*each) for each in named)]))


def photos(folder: Path, num_rows: int = 3) -> Path:
    rows = [row(file_bytes(smooth(640 + number, 480)), city=BAD) for number in range(num_rows)]
    return saved(folder, rows, {"city": datasets.Value("string")})


def run(folder: Path, script: Any, *flags: object, dataset: Path | None = None) -> Path:
    """Traces by a teacher that keeps to a script."""
    with ScriptedTeacher(script) as teacher:
        arguments = [
            "run", "--api_base", teacher.api_base, "--dataset_path", dataset or photos(folder / "photos"),
            "--output_dir", folder / "traces", "--num_samples", 0, "--tools", "zoom,rotate,python_code",
            "--quiet", *flags,
        ]  # fmt: skip
        assert main([str(each) for each in arguments]) == 0
    return folder / "traces"


@pytest.fixture(scope="module", params=["native", "text"])
def traces(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three traces, by a teacher whose boxes are thousandths."""
    return run(tmp_path_factory.mktemp(request.param), policy, "--tool_mode", request.param)


def export(traces: Path, out: Path, *flags: object, expected: int = 0) -> Path:
    assert main(["export", str(traces), "--out", str(out), *map(str, flags)]) == expected
    return out


_exported: dict[tuple[Path, str], Path] = {}


def exported(traces: Path, name: str) -> Path:
    """The traces in a format, all turns trained; made once."""
    if (traces, name) not in _exported:
        out = traces.parent / f"out_{name}"
        _exported[traces, name] = export(traces, out, "--format", name, "--errors", "train")
    return _exported[traces, name]


def rows_of(out: Path, split: str = "train") -> list[dict[str, Any]]:
    """The rows of an export of any format."""
    tables = [*out.glob(f"{split}.parquet"), *out.glob(f"data/{split}-*.parquet")]
    if tables:
        return [each for table in tables for each in pq.read_table(table).to_pylist()]
    return [json.loads(line) for line in (out / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def texts_of(row: dict[str, Any]) -> list[str]:
    """All text of a row's messages, with `<image>` where a picture of typed parts stands."""
    texts = []
    for message in row["messages"]:
        content = message["content"] or ""
        parts = [content] if isinstance(content, str) else [part.get("text") or "<image>" for part in content]
        called = [call["function"]["arguments"] for call in message.get("tool_calls") or []]
        texts.append("".join([*parts, *called]))
    return texts


def picture_bytes(row: dict[str, Any], out: Path) -> list[bytes]:
    """The picture files of a row in their order."""
    if "images" in row:
        return [
            (out / each).read_bytes() if isinstance(each, str) else each["bytes"] for each in row["images"]
        ]
    parts = [
        part for message in row["messages"] for part in message["content"] or [] if isinstance(part, dict)
    ]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [base64.b64decode(url.partition(",")[2]) for url in urls]


@cache
def sent_pictures(path: Path) -> list[bytes]:
    """What the teacher got, by a replay."""
    with Executors() as executors:
        trace = read_trace(path)
        seen = replay(trace, Sources().of(trace), executors.of(trace))
    return [seen.sent.data, *(one.sent.data for one in seen.observations if one.sent is not None)]


def conversation(path: Path, takes_all: bool = False, **options: Any) -> StudentConversation:
    with Executors() as executors:
        found = conversation_at(
            path, Sources(), executors, ExportFlags(all=takes_all, form=FormFlags(**options))
        )
    assert isinstance(found, StudentConversation), found
    return found


# --- every format


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_has_the_pictures_that_the_teacher_got_in_their_places(name: str, traces: Path) -> None:
    out = exported(traces, name)
    rows = rows_of(out)
    assert len(rows) == 3
    for number, each in enumerate(rows):
        sent = sent_pictures(traces / f"trace_{number:05d}.json")
        assert picture_bytes(each, out) == sent
        assert sum(text.count("<image>") for text in texts_of(each)) == len(sent) == 4
        roles = [message["role"] for message in each["messages"]]
        assert roles == ["system", *["user", "assistant"] * 5]


@pytest.mark.parametrize("name", FORMATS)
def test_no_special_word_is_left_but_those_that_an_export_places(name: str, traces: Path) -> None:
    (first, *_) = rows_of(exported(traces, name))
    call, result = ["<tool_call>", "</tool_call>"], ["<tool_response>", "</tool_response>"]
    seen, thought = ["<tool_response>", "<image>", "</tool_response>"], ["<think>", "</think>"]
    has_thoughts = traces.parent.name.startswith("native")  # in a field beside the first calls
    assert [SPECIAL.findall(text) for text in texts_of(first)] == [
        [*call, *call],  # as the tools are described
        ["<image>"],
        (thought if has_thoughts else []) + call, seen,
        call, result,
        call * 2, result + seen,
        call, seen,
        thought,
    ]  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_tells_its_trace_and_can_be_made_again_from_it(name: str, traces: Path, tmp_path: Path) -> None:
    rows = rows_of(exported(traces, name))
    for number, each in enumerate(rows):
        path = traces.parent / each["id"]
        stored = json.loads(path.read_text(encoding="utf-8"))
        assert (each["sample_index"], each["rollout"]) == (number, 0)
        assert each["trace_sha256"] == stored["integrity_sha256"]
    (again,) = rows_of(export(path, tmp_path / "again", "--format", name, "--errors", "train"))
    assert json.dumps(again["messages"]) == json.dumps(rows[-1]["messages"])


@pytest.mark.parametrize("name", FORMATS)
def test_the_page_beside_the_rows_says_the_length_to_set(name: str, traces: Path) -> None:
    out = exported(traces, name)
    manifest = json.loads((out / "export.json").read_text(encoding="utf-8"))
    length = manifest["counts"]["tokens"]["to_set"]
    assert length >= manifest["counts"]["tokens"]["longest"] * 1.05 - 1 and length % 1024 == 0
    page = (out / "README.md").read_text(encoding="utf-8")
    assert f"{length:,}" in page and f"distil export {traces} --format {name}" in page
    beside = "".join(
        path.read_text(encoding="utf-8") for path in out.iterdir() if path.suffix in (".yaml", ".md")
    )
    if name in ("llamafactory", "verl", "ms_swift"):
        assert f"{length}" in beside


# --- boxes


def zooms(*boxes: list[float]) -> Any:
    """A teacher that crops once a turn, and answers."""

    def script(request: dict[str, Any]) -> Any:
        if is_probe(request):
            return calls((ZOOM, {"bbox_2d": [0, 0, 9, 9]}))
        turn = num_turns(request)
        return calls((ZOOM, {"bbox_2d": boxes[turn]})) if turn < len(boxes) else says(ANSWER)

    return script


def boxes_of(found: StudentConversation) -> list[list[int]]:
    arguments = [json.loads(call.arguments) for turn in found.turns for call in turn.calls]
    return [each["bbox_2d"] for each in arguments if "bbox_2d" in each]


sizes = st.tuples(st.integers(1, 9000), st.integers(1, 9000))


@given(sizes, sizes, st.sampled_from([Frame.REL1000, Frame.REL1000_YX, Frame.PIXEL]), st.data())
def test_a_stated_box_maps_back_to_the_same_pixels_or_the_nearest(
    size: tuple[int, int], sent: tuple[int, int], frame: Frame, data: st.DataObject
) -> None:
    x1, y1 = (data.draw(st.integers(0, side - 1)) for side in size)
    box = (x1, y1, data.draw(st.integers(x1 + 1, size[0])), data.draw(st.integers(y1 + 1, size[1])))
    stated = pixels_to_box(box, frame, sent, size)
    back, is_clamped = box_to_pixels(stated, frame, sent, size)
    units = sent if frame is Frame.PIXEL else (1000, 1000)
    assert not is_clamped
    for axis in (0, 1):
        step = size[axis] / units[axis]
        is_one_pixel = box[axis + 2] - box[axis] == 1  # whole numbers may have no room for both of its ends
        is_exact = units[axis] >= size[axis] * (2 if is_one_pixel else 1)
        for end in (axis, axis + 2):
            assert abs(back[end] - box[end]) <= (0 if is_exact else 1.5 * step + 1), (stated, back)


@given(sizes, st.lists(st.integers(0, 1000), min_size=4, max_size=4))
def test_a_box_of_whole_thousandths_is_stated_as_the_teacher_wrote_it(
    size: tuple[int, int], numbers: list[int]
) -> None:
    if min(size) < 1000:
        size = (size[0] + 1000, size[1] + 1000)
    x1, x2, y1, y2 = *sorted(numbers[:2]), *sorted(numbers[2:])
    try:
        box, _ = box_to_pixels((x1, y1, x2, y2), Frame.REL1000, size, size)
    except ToolError:
        return  # an empty box
    assert pixels_to_box(box, Frame.REL1000, size, size) == (x1, y1, x2, y2)


def test_boxes_of_thousandths_stay_and_those_of_pixels_become_thousandths(tmp_path: Path) -> None:
    same = run(tmp_path / "same", zooms([100, 200, 900, 800], [250, 0, 750, 1000]))
    assert boxes_of(conversation(same / "trace_00000.json")) == [[100, 200, 900, 800], [250, 0, 750, 1000]]
    pixels = run(
        tmp_path / "pixels", zooms([64, 120, 320, 360], [0, 0, 128, 240]), "--coordinates", "pixel",
        dataset=tmp_path / "same" / "photos",
    )  # fmt: skip
    found = conversation(pixels / "trace_00000.json")
    assert boxes_of(found) == [[100, 250, 500, 750], [0, 0, 500, 1000]]
    assert "0 to 1000" in found.described_system() and "pixels" not in found.described_system()


@pytest.mark.parametrize("student", get_args(Student))
@pytest.mark.parametrize("limit", [None, 100_000])
def test_the_box_cut_out_of_an_exported_picture_is_the_next_picture(
    student: Student, limit: int | None, tmp_path: Path
) -> None:
    traces = run(tmp_path, zooms([100, 200, 900, 850], [105, 300, 700, 905]))
    found = conversation(
        traces / "trace_00001.json", coordinates=Frame.PIXEL, student=student, image_max_pixels=limit
    )
    pictures = [Image.open(io.BytesIO(each.data)).convert("RGB") for each in found.pictures()]
    assert len(pictures) == 3
    factor = {"qwen3-vl": 32, "qwen2.5-vl": 28}[student]
    for picture, following, box in zip(pictures, pictures[1:], boxes_of(found), strict=False):
        assert picture.width % factor == picture.height % factor == 0
        assert limit is None or picture.width * picture.height <= limit
        assert 0 <= box[0] < box[2] <= picture.width and 0 <= box[1] < box[3] <= picture.height
        cut = picture.crop(tuple(box)).resize(following.size, Image.Resampling.BICUBIC)
        difference = ImageStat.Stat(ImageChops.difference(cut, following)).mean
        assert max(difference) < 6, difference  # of 255, in a gradient where a pixel is about 0.4
    assert "pixels of the most recent image" in found.described_system()


def test_a_picture_has_the_size_that_the_students_processor_leaves_as_it_is() -> None:
    form = FormFlags(coordinates=Frame.PIXEL)
    for sent in [(1920, 1440), (20, 10), (154, 593), (4000, 3000), (8000, 6000)]:
        size = student_size(sent, form)
        assert sent_size(size, student_rule(form)) == size
        assert picture_tokens(size, form) == size[0] * size[1] // 1024 + 2


def test_a_small_limit_makes_no_row_shorter_than_a_processor_does() -> None:
    form = FormFlags(image_max_pixels=10_000)
    assert picture_tokens(student_size((640, 480), form), form) >= 64  # 65,536 pixels at the least


def test_thousandths_leave_pictures_as_sent_but_for_those_above_the_limit(tmp_path: Path) -> None:
    traces = run(tmp_path, zooms([0, 0, 250, 250]))
    found = conversation(traces / "trace_00000.json", image_max_pixels=100_000)
    photo, crop = found.pictures()
    assert photo.size[0] * photo.size[1] <= 100_000 and crop.size == (160, 120)
    assert crop.data == sent_pictures(traces / "trace_00000.json")[1]


def test_sizes_in_words_are_those_of_the_exported_pictures_or_are_left_out(tmp_path: Path) -> None:
    script = zooms([64, 120, 320, 360])
    traces = run(
        tmp_path, script, "--coordinates", "pixel"
    )  # a family that has no such habit: sizes are stated
    assert "640×480" in conversation(traces / "trace_00000.json", coordinates=Frame.PIXEL).question
    found = conversation(traces / "trace_00000.json", coordinates=Frame.PIXEL)
    assert (
        f"{found.pictures()[1].size[0]}×{found.pictures()[1].size[1]} pixels"
        in found.turns[0].results[0].result
    )
    for each in (conversation(traces / "trace_00000.json"),):
        assert "×" not in each.question and "×" not in each.turns[0].results[0].result


def test_boxes_of_the_original_stay_boxes_of_the_original(tmp_path: Path) -> None:
    boxes = [[100, 200, 900, 800], [300, 300, 600, 600], [0, 0, 200, 200]]
    traces = run(tmp_path, zooms(*boxes), "--crop_from", "original")
    found = conversation(traces / "trace_00000.json")
    assert boxes_of(found) == boxes
    assert "the original image" in found.described_system()


def test_pixels_of_pictures_that_the_student_enlarges_are_refused(traces: Path, tmp_path: Path) -> None:
    flags = ("--format", "trl", "--coordinates", "pixel", "--image_max_pixels", 1000)
    export(traces, tmp_path / "out", *flags, expected=2)


# --- special words

texts = st.text(
    st.sampled_from("<>|/imagetoolcallvideo_endthinkrespons\n{}x"), max_size=60
) | st.sampled_from(
    ["<image>", "<|im_end|>", "</tool_call>", "<<image>", "<|", "{{idx}}", "<think>", "<tool_response>"]
)


@given(st.lists(texts))
def test_escaped_text_has_no_special_word_and_reads_the_same(parts: list[str]) -> None:
    text = "".join(parts)
    found = escaped(text)
    assert not SPECIAL.search(found) and "{{idx}}" not in found
    assert found.replace("\u200b", "") == text
    assert escaped(found) == found
    assert not SPECIAL.search(json_text({text: [text]}))
    assert escaped_json({"a": [text]}) == {"a": [found]}


# --- turns with failed calls


def fails_then_zooms(request: dict[str, Any]) -> Any:
    """An empty box, then a turn of one that is empty and one that is none, then an answer."""
    if is_probe(request):
        return calls((ZOOM, {"bbox_2d": [0, 0, 9, 9]}))
    empty, box = (ZOOM, {"bbox_2d": [5, 5, 5, 5]}), (ZOOM, {"bbox_2d": [100, 100, 900, 900]})
    turns = [calls(empty, content="Oh"), calls(empty, box, content="Both"), calls(box, content="Yes")]
    return turns[num_turns(request)] if num_turns(request) < len(turns) else says(ANSWER)


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("failing"), fails_then_zooms)


def losses(row: dict[str, Any]) -> list[Any]:
    return [message.get("loss") for message in row["messages"] if message["role"] == "assistant"]


@pytest.mark.parametrize("name", ["trl", "verl", "ms_swift", "hf"])
def test_turns_with_failed_calls_are_there_and_not_trained(name: str, failing: Path, tmp_path: Path) -> None:
    rows = rows_of(export(failing, tmp_path / "mask", "--format", name))
    assert losses(rows[0]) == [False, False, True, True]
    rows = rows_of(export(failing, tmp_path / "train", "--format", name, "--errors", "train"))
    assert losses(rows[0]) == [True] * 4


def test_a_chat_api_gets_weights(failing: Path, tmp_path: Path) -> None:
    (first, *_) = rows_of(export(failing, tmp_path / "out", "--format", "openai"))
    assistants = [message for message in first["messages"] if message["role"] == "assistant"]
    assert [message.get("weight") for message in assistants] == [0, 0, None, None]


@pytest.mark.parametrize("name", FORMATS)
def test_failed_calls_cut_out_leave_a_conversation_without_them(
    name: str, failing: Path, tmp_path: Path
) -> None:
    out = export(failing, tmp_path / "out", "--format", name, "--errors", "drop")
    first = rows_of(out)[0]
    text = "".join(texts_of(first))
    assert [message["role"] for message in first["messages"]] == ["system", *["user", "assistant"] * 3]
    assert "Oh" not in text and "Both" in text and "Error" not in text
    assert text.count('<tool_call>\n{"name": "image_zoom') == 2 and len(picture_bytes(first, out)) == 3
    assert False not in losses(first)


def test_a_call_cut_out_makes_no_special_word_of_what_stood_around_it(tmp_path: Path) -> None:
    def script(request: dict[str, Any]) -> Any:
        if is_probe(request):
            return says("ok")
        fails, works = text_call(ZOOM, {"bbox_2d": [5, 5, 5, 5]}), text_call(ROTATE, {"angle": 5})
        return says(ANSWER) if num_turns(request) else says(f"<im{fails}age>{works}")

    path = run(tmp_path, script, "--tool_mode", "text") / "trace_00000.json"
    found = conversation(path, errors="drop")
    assert found.turns[0].text == escaped("<image>") and len(found.turns[0].calls) == 1


def test_llama_factory_gets_a_row_for_each_trained_turn(
    failing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = export(failing, tmp_path / "out", "--format", "llamafactory")
    rows = rows_of(out)
    assert "6 of 12 turns are there but not trained; LLaMA-Factory cannot" in capsys.readouterr().out
    assert len(rows) == 6 and "mask_history: true" in (out / "train.yaml").read_text()
    first, second = rows[:2]
    assert [each["id"] for each in rows[:2]] == [
        "traces/trace_00000.json#turn3",
        "traces/trace_00000.json#turn4",
    ]
    assert [len(each["messages"]) for each in rows[:2]] == [7, 9]
    assert [len(each["images"]) for each in rows[:2]] == [2, 3]
    for each in rows:
        assert each["messages"][-1]["role"] == "assistant" and "loss" not in json.dumps(each)
        assert sum(text.count("<image>") for text in texts_of(each)) == len(each["images"])
    assert (
        texts_of(first)[-1].startswith("Yes")
        and second["messages"][: len(first["messages"])] == first["messages"]
    )
    whole = export(failing, tmp_path / "drop", "--format", "llamafactory", "--errors", "drop")
    assert len(rows_of(whole)) == 3 and "mask_history: false" in (whole / "train.yaml").read_text()


def test_a_failed_box_in_another_frame_is_never_trained(failing: Path, tmp_path: Path) -> None:
    found = conversation(failing / "trace_00000.json", errors="train", coordinates=Frame.PIXEL)
    assert [turn.is_trained for turn in found.turns] == [False, False, True, True]


def test_a_row_ends_with_its_last_trained_turn(tmp_path: Path) -> None:
    def script(request: dict[str, Any]) -> Any:
        if is_probe(request):
            return calls((ZOOM, {"bbox_2d": [0, 0, 9, 9]}))
        return calls((ZOOM, {"bbox_2d": [5, 5, 5, 5] if num_turns(request) else [0, 0, 500, 500]}))

    traces = run(tmp_path, script, "--max_turns", 3)
    out = export(traces, tmp_path / "out", "--format", "ms_swift", "--all")
    assert [message["role"] for message in rows_of(out)[0]["messages"]] == ["system", "user", "assistant"]
    assert len(rows_of(out)[0]["images"]) == 1
    manifest = json.loads((out / "export.json").read_text())
    assert manifest["counts"]["masked_turns"] == 0
    export(traces, tmp_path / "none", "--format", "ms_swift", expected=2)
    assert not list(tmp_path.glob("*none*"))


def test_a_trace_with_nothing_to_train_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def script(request: dict[str, Any]) -> Any:
        if is_probe(request):
            return calls((ZOOM, {"bbox_2d": [0, 0, 9, 9]}))
        is_first = request["seed"] % 2 == 0
        return says(ANSWER) if is_first else calls((ZOOM, {"bbox_2d": [5, 5, 5, 5]}))

    traces = run(tmp_path, script, "--max_turns", 1, dataset=photos(tmp_path / "photos", 8))
    capsys.readouterr()
    export(traces, tmp_path / "out", "--format", "trl", "--all")
    num_rows = len(rows_of(tmp_path / "out"))
    assert 0 < num_rows < 8
    assert f"{8 - num_rows} left out: nothing in it is left to train" in capsys.readouterr().out


# --- thoughts


def test_thoughts_are_marked_plain_or_left_out(traces: Path) -> None:
    path = traces / "trace_00000.json"
    marked, plain, without = (
        conversation(path, reasoning=each).turns[-1].written() for each in ("think", "keep", "drop")
    )
    assert marked.startswith("<think>\nDeep in thought.\nHm. ") and "\n</think>\n\nIt says" in marked
    assert plain.startswith("Deep in thought.\nHm. ") and "think>" not in plain
    assert without == escaped(ANSWER)


def test_a_turn_that_only_thinks_is_not_trained_without_its_thoughts(tmp_path: Path) -> None:
    script = zooms([0, 0, 500, 500])

    def thinks(request: dict[str, Any]) -> Any:
        if num_turns(request) == 1 and not is_probe(request):
            return says("<think>\\boxed{1, 2}</think>")
        return script(request)

    path = run(tmp_path, thinks, "--num_samples", 1) / "trace_00000.json"
    found = conversation(path, takes_all=True)
    assert found.turns[-1].written() == "<think>\n\\boxed{1, 2}\n</think>"
    without = conversation(path, takes_all=True, reasoning="drop")
    assert [turn.written().count("<tool_call>") for turn in without.turns] == [1]


# --- code


def test_code_is_a_call_and_its_output_an_observation(traces: Path) -> None:
    found = conversation(traces / "trace_00000.json")
    (call,) = found.turns[3].calls
    assert json.loads(call.arguments)["code"] == escaped(PROGRAM)
    assert found.turns[3].results == (call,)
    assert call.result.endswith(f"Output:\n{escaped(BAD)} {escaped('</tool_call>')} {escaped('<think>')}")
    assert call.picture is not None and call.picture.size == (47, 56)


# --- native calls


def natively(name: str, traces: Path, tmp_path: Path) -> dict[str, Any]:
    flags = ("--format", name, "--call_form", "native", "--errors", "train", "--reasoning", "drop")
    return rows_of(export(traces, tmp_path / "out", *flags))[0]


def test_trl_and_verl_have_calls_with_strings_of_arguments(traces: Path, tmp_path: Path) -> None:
    for name, result_role in (("trl", "user"), ("verl", "tool")):
        row = natively(name, traces, tmp_path / name)
        said, result = row["messages"][6:8]
        functions = [call["function"] for call in said["tool_calls"]]
        assert [(each["name"], json.loads(each["arguments"])) for each in functions] == [
            (ZOOM, {"bbox_2d": [7, 7, 7, 7]}),
            (ROTATE, {"angle": 90}),
        ]
        assert result["role"] == result_role
        assert "<tool_call>" not in texts_of(row)[6]
        assert texts_of(row)[0].count('"name": "') == 3  # neither takes them from a column
        roles = [message["role"] for message in row["messages"]]
        assert not any(one == other for one, other in zip(roles, roles[1:], strict=False))


def test_ms_swift_has_its_own_roles(traces: Path, tmp_path: Path) -> None:
    row = natively("ms_swift", traces, tmp_path)
    roles = [message["role"] for message in row["messages"]]
    first = ["assistant", "tool_call", "tool_response", "tool_call", "tool_response"]
    two = ["assistant", "tool_call", "tool_call", "tool_response", "tool_response"]
    assert roles == ["system", "user", *first, *two, "tool_call", "tool_response", "assistant"]
    assert json.loads(row["messages"][3]["content"])["arguments"] == {"bbox_2d": [100, 200, 900, 800]}
    assert [tool["function"]["name"] for tool in json.loads(row["tools"])] == [ZOOM, ROTATE, CODE]
    assert "# Tools" not in row["messages"][0]["content"]


def test_llama_factory_has_function_calls_where_nothing_of_a_turn_is_lost(
    traces: Path, tmp_path: Path
) -> None:
    row = natively("llamafactory", traces, tmp_path)
    roles = [message["role"] for message in row["messages"][2:]]
    assert roles == ["function_call", "observation"] * 2 + ["assistant", "observation"] + [
        "function_call", "observation", "assistant"
    ]  # fmt: skip
    assert [call["name"] for call in json.loads(row["messages"][4]["content"])] == [ZOOM]
    assert row["messages"][6]["content"].count("<tool_call>") == 2


def test_a_chat_api_has_an_answer_to_each_call_and_then_the_pictures(traces: Path, tmp_path: Path) -> None:
    row = natively("openai", traces, tmp_path)
    roles = [message["role"] for message in row["messages"]]
    assert roles[:9] == [
        "system",
        "user",
        "assistant",
        "tool",
        "user",
        "assistant",
        "tool",
        "assistant",
        "tool",
    ]
    asked = [call["id"] for message in row["messages"] for call in message.get("tool_calls", [])]
    answered = [message["tool_call_id"] for message in row["messages"] if message["role"] == "tool"]
    assert asked == answered and len(set(asked)) == 5


def test_a_form_that_a_format_has_not_is_refused(
    traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--call_form", "native", "--student", "qwen2.5-vl")
    export(traces, tmp_path / "out", "--format", "verl", *flags, expected=2)
    assert "the chat template of Qwen2.5-VL" in capsys.readouterr().err
    export(traces, tmp_path / "out", "--format", "hf", "--call_form", "native", expected=2)
    assert "--call_form native: the format hf has no such form" in capsys.readouterr().err


# --- what is not exported


def changed(traces: Path, folder: Path, change: Any, *, signs: bool = True) -> Path:
    """The traces, the first of them changed and, if asked, signed anew."""
    shutil.copytree(traces, folder)
    path = folder / "trace_00000.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    if signs:
        del value["integrity_sha256"]
        value["integrity_sha256"] = json_sha256(value)
    path.write_text(json.dumps(value), encoding="utf-8")
    return folder


def _other_box(value: Any) -> None:
    value["tool_calls_log"][2]["tool_arguments"]["bbox_2d"][0] += 1


def _other_bytes(value: Any) -> None:
    value["tool_calls_log"][2]["result"]["sent"]["sha256"] = "0" * 64


@pytest.mark.parametrize(
    ("change", "signs", "reason"),
    [
        (lambda value: value.update(final_response="x"), False, "it was edited"),
        (_other_box, True, "the picture of call 3 has other pixels than the teacher saw"),
        (_other_bytes, True, "the picture of call 3 encodes to other bytes"),
        (
            lambda value: value["image"]["sent"].update(sha256="0" * 64),
            True,
            "the photo encodes to other bytes",
        ),
        (lambda value: value["image"].update(file_sha256="0" * 64), True, "another picture file"),
        (lambda value: value.update(sample_index=1), True, "it is of row 1, whose file is trace_00001.json"),
        (lambda value: value.update(dataset={}), True, "is missing"),
    ],
)
def test_a_trace_that_does_not_replay_is_refused_and_never_exported(
    change: Any, signs: bool, reason: str, failing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = changed(failing, tmp_path / "changed", change, signs=signs)
    out = export(folder, tmp_path / "out", "--format", "ms_swift", expected=1)
    said = capsys.readouterr().out
    assert "trace_00000.json: refused: " in said and reason in said and "1 refused" in said
    assert [each["sample_index"] for each in rows_of(out)] == [1, 2]
    assert json.loads((out / "export.json").read_text())["counts"]["refused"] == 1


def test_a_strip_that_no_processor_takes_is_refused(tmp_path: Path) -> None:
    dataset = saved(tmp_path / "photos", [row(file_bytes(smooth(3000, 10))), row(file_bytes(smooth(20, 10)))])
    traces = run(tmp_path, zooms([0, 0, 500, 1000]), "--model", "distil-sign-reader", dataset=dataset)
    with Executors() as executors:
        found = conversation_at(traces / "trace_00000.json", Sources(), executors, ExportFlags(all=True))
    assert isinstance(found, NotExported) and found.is_refused and "200:1" in found.reason
    assert conversation(traces / "trace_00001.json", takes_all=True).photo.size == (64, 32)


def test_traces_without_an_answer_are_left_out_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(request: dict[str, Any]) -> Any:
        if is_probe(request):
            return calls((ZOOM, {"bbox_2d": [0, 0, 9, 9]}))
        width = request["messages"][1]["content"][0]["image_url"]["url"]
        kinds = [says("no idea"), says("cut o", "length"), says(ANSWER)]
        return kinds[len(width) % 3] if request["seed"] % 4 else says(ANSWER)

    traces = run(tmp_path, script, dataset=photos(tmp_path / "photos", 12))
    stops = [json.loads(path.read_text())["metadata"] for path in sorted(traces.glob("trace_*.json"))]
    good = [each for each in stops if each["stop_reason"] == "answered" and each["parse_success"]]
    capsys.readouterr()
    out = export(traces, tmp_path / "out", "--format", "trl")
    said = capsys.readouterr().out
    assert len(rows_of(out)) == len(good) < 12
    for each in stops:
        if each["stop_reason"] != "answered":
            assert f"left out: it ended without an answer ({each['stop_reason']})" in said
        elif not each["parse_success"]:
            assert "left out: its answer cannot be read" in said


def test_where_chooses_by_the_columns_of_the_index(failing: Path, tmp_path: Path) -> None:
    out = export(failing, tmp_path / "out", "--format", "trl", "--where", "sample_index > 0 AND calls = 4")
    assert [each["sample_index"] for each in rows_of(out)] == [1, 2]
    out = export(failing, tmp_path / "one", "--format", "trl", "--limit", 1)
    assert [each["sample_index"] for each in rows_of(out)] == [0]
    export(failing, tmp_path / "bad", "--format", "trl", "--where", "score = 7", expected=2)
    export(failing, tmp_path / "bad", "--format", "trl", "--where", "no_such > 1", expected=2)
    assert not (tmp_path / "bad").exists()


# --- the folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_export_is_replaced_only_if_asked_and_nothing_else_ever(failing: Path, tmp_path: Path) -> None:
    out = export(failing, tmp_path / "out", "--format", "trl")
    before = contents(out)
    export(failing, out, "--format", "verl", expected=2)
    assert contents(out) == before
    export(failing, out, "--format", "verl", "--overwrite")
    assert "verl_dataset.py" in contents(out) and "train.py" not in contents(out)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    export(failing, mine, "--format", "trl", "--overwrite", expected=2)
    assert contents(mine) == {"thesis.txt": b"years of work"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_what_a_killed_export_left_is_removed_by_the_next(failing: Path, tmp_path: Path) -> None:
    left, running = tmp_path / ".out.999999999.tmp", tmp_path / ".out.1.tmp"
    left.mkdir()
    running.mkdir()
    export(failing, tmp_path / "out", "--format", "trl")
    assert not left.exists() and running.exists()


MANY = 60  # enough traces for two processes


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many traces, of photos some of which are the same."""
    folder = tmp_path_factory.mktemp("many")
    rows = [row(file_bytes(smooth(48 + number % 40, 32))) for number in range(MANY)]
    return run(folder, zooms([100, 100, 900, 900]), dataset=saved(folder / "photos", rows))


def process(*arguments: object) -> subprocess.Popen[str]:
    """An export as a process of its own: in that of the tests there are threads, and nothing forks."""
    return start_door(str(PACKAGE / "__main__.py"), "export", *map(str, arguments), cwd=PACKAGE)


@pytest.mark.parametrize("name", ["trl", "llamafactory"])
def test_the_same_command_gives_the_same_bytes_by_any_number_of_workers(
    name: str, many: Path, tmp_path: Path
) -> None:
    found = []
    for workers in (1, 2):
        out = tmp_path / "out"
        door = process(many, "--out", out, "--format", name, "--max_workers", workers, "--overwrite")
        said, errors = door.communicate(timeout=100)
        assert door.wait() == 0, said + errors
        found.append(contents(out))
    assert found[0] == found[1]
    assert len(rows_of(out)) == MANY


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere one process exports")
def test_an_interrupted_export_leaves_nothing(many: Path, tmp_path: Path) -> None:
    stuck = tmp_path / "stuck"
    shutil.copytree(many, stuck)
    last = stuck / f"trace_{MANY:05d}.json"
    os.mkfifo(last)
    descriptor = os.open(last, os.O_RDWR)
    (tmp_path / "exports").mkdir()
    door = process(stuck, "--out", tmp_path / "exports" / "out", "--format", "ms_swift", "--max_workers", 2)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "exports").glob(".out.*.tmp/images/*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    door.send_signal(signal.SIGINT)
    time.sleep(0.3)
    os.close(descriptor)  # who reads the trace goes on, and finds it empty
    said, errors = door.communicate(timeout=60)
    assert door.wait() == 130, said + errors
    assert list((tmp_path / "exports").iterdir()) == []


def test_the_same_picture_has_one_file(tmp_path: Path) -> None:
    dataset = saved(tmp_path / "photos", [row(file_bytes(smooth(64, 64)))] * 3)
    traces = run(tmp_path, zooms([0, 0, 500, 500]), dataset=dataset)
    out = export(traces, tmp_path / "out", "--format", "llamafactory")
    assert len(list((out / "images").iterdir())) == 2
    assert all(len(each["images"]) == 2 for each in rows_of(out))


# --- read by `datasets`


def test_a_folder_for_the_hub_loads_as_pictures_and_messages(traces: Path) -> None:
    found = datasets.load_dataset(str(exported(traces, "hf")), split="train")
    assert found.num_rows == 3
    assert found[0]["images"][0].size == (640, 480) and found[0]["images"][1].size == (512, 288)
    assert found[0]["messages"][1]["content"][0]["type"] == "image"
    assert found.features["images"].feature == datasets.Image()


def test_rows_for_trl_load_as_pictures(traces: Path) -> None:
    path = exported(traces, "trl") / "train.parquet"
    found = datasets.load_dataset("parquet", data_files=str(path), split="train")
    assert found[0]["images"][0].size == (640, 480)
    script = (path.parent / "train.py").read_text()
    compile(script, "train.py", "exec")
    assert "max_length=None" in script and "assistant_only_loss=True" in script


def test_paths_are_those_that_each_trainer_looks_for(traces: Path) -> None:
    swift, factory = exported(traces, "ms_swift"), exported(traces, "llamafactory")
    assert all(Path(each).is_absolute() and Path(each).is_file() for each in rows_of(swift)[0]["images"])
    assert all(
        (factory / each).is_file() and not each.startswith("/") for each in rows_of(factory)[0]["images"]
    )
    entry = json.loads((factory / "dataset_info.json").read_text())["distil_train"]
    assert entry["formatting"] == "sharegpt" and (factory / entry["file_name"]).is_file()


# --- how long a row is


@given(st.text(max_size=200))
def test_an_estimate_is_never_below_a_token_for_four_bytes(text: str) -> None:
    spaceless = "".join(text.split())
    assert text_tokens(text) >= len(spaceless) / 4


# --- other tasks


def test_a_rows_own_question_stands_in_its_conversation(tmp_path: Path) -> None:
    column = {"question": datasets.Value("string"), "answer": datasets.Value("string")}
    cells = {"question": "How many <image> birds?", "answer": "3"}
    rows = [{"image": row(file_bytes(smooth(64, 48)))["image"], **cells}]
    saved(tmp_path / "birds", rows, column)

    def script(request: dict[str, Any]) -> Any:
        return calls((ZOOM, {"bbox_2d": [0, 0, 9, 9]})) if is_probe(request) else says("\\boxed{3}")

    traces = run(tmp_path, script, "--task", "vqa", dataset=tmp_path / "birds")
    question = conversation(traces / "trace_00000.json").question
    assert escaped("How many <image> birds?") in question and "{question}" not in question


# --- the conversation that the teacher had


def test_a_teacher_of_text_calls_had_the_conversation_that_is_exported(tmp_path: Path) -> None:
    def script(request: dict[str, Any]) -> Any:
        if is_probe(request):
            return says("ok")
        both = f"Two.\n{text_call(ZOOM, {'bbox_2d': [0, 0, 500, 500]})}\n{text_call(ROTATE, {'angle': 30})}"
        turns = [
            says(both),
            says(f"One, that fails: {text_call(ROTATE, {'angle': 'left'})}"),
            says("\\boxed{1, 2}"),
        ]
        return turns[num_turns(request)]

    path = run(tmp_path, script, "--tool_mode", "text") / "trace_00000.json"
    trace = read_trace(path)
    with Executors() as executors:
        had = replay(trace, Sources().of(trace), executors.of(trace)).messages()
    exported_messages = conversation(path, errors="train").messages()
    assert [message.role for message in exported_messages] == [message["role"] for message in had]
    for ours, theirs in zip(exported_messages, had, strict=True):
        content = theirs["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        text = "".join(part.get("text", "<image>") for part in parts)
        # Models' own templates have a newline between two results.
        assert ours.text("<image>") == text.replace(
            "</tool_response><tool_response>", "</tool_response>\n<tool_response>"
        )


@given(st.lists(texts, max_size=4), st.lists(texts, max_size=4), st.lists(texts, max_size=4), st.booleans())
def test_whatever_is_said_no_special_word_is_left_but_those_placed(
    failing: Path, said: list[str], thought: list[str], printed: list[str], is_native: bool
) -> None:
    trace, photo, calls = _replayed(failing / "trace_00000.json")
    form = ToolMode.NATIVE if is_native else ToolMode.TEXT
    changes: dict[str, Any] = {
        "content": "".join(said),
        "reasoning": "".join(thought),
        "reasoning_field": "reasoning",
    }
    turns = tuple(replace(turn, reply=replace(turn.reply, call_form=form, **changes)) for turn in trace.turns)
    text = "".join(printed)
    seen = [replace(call.stored.observation, message=text, stdout=text) for call in calls]
    shown = tuple(
        replace(call, stored=replace(call.stored, observation=observation))
        for call, observation in zip(calls, seen, strict=True)
    )
    flags = FormFlags(errors="train", reasoning="keep")
    found = conversation_of(replace(trace, turns=turns), photo, shown, flags)
    if found is None:
        return  # nobody said anything
    system, *others = found.messages()
    assert len(SPECIAL.findall(system.text("<image>"))) == 4
    for message in others:
        words = SPECIAL.findall(message.text(""))
        tags = (
            ["<tool_call>", "</tool_call>"]
            if message.role == "assistant"
            else ["<tool_response>", "</tool_response>"]
        )
        assert words == tags * (len(words) // 2)
    assert sum(len(SPECIAL.findall(message.text(""))) for message in others) == 2 * sum(
        len(turn.calls) + len(turn.results) for turn in found.turns
    )


@cache
def _replayed(path: Path) -> tuple[StoredTrace, SentPicture, list[ShownCall]]:
    with Executors() as executors:
        trace = read_trace(path)
        flags = FormFlags(errors="train")
        return trace, *shown_calls(trace, Sources().of(trace), executors.of(trace), flags)
