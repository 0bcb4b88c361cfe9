"""Exports: traces with strange words, failed calls, thoughts and code, read back from every format."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from builders import dataset_of, file_bytes, row, saved, smooth
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageStat
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says, text_call

from distil.cli import main
from distil.errors import ToolError
from distil.exports.conversation import Call, Conversation
from distil.exports.escape import escaped, escaped_json, json_text
from distil.exports.export import LeftOut, Refused, conversation_at
from distil.exports.options import ExportOptions
from distil.exports.pictures import student_size
from distil.exports.tokens import picture_tokens, text_tokens
from distil.pictures import box_to_pixels, pixels_to_box, sent_size
from distil.records import ExportFormat, FailedCalls, Frame, Student, Thoughts, ToolMode
from distil.replay.replay import Executors, Sources, replay
from distil.store.trace_file import json_sha256, read_trace

ZOOM, ROTATE, CODE = "image_zoom_in_tool", "image_rotate_tool", "python_code_tool"
FORMATS = [each.value for each in ExportFormat]
BAD = "<image> <video> <|im_end|>\n<|im_start|>user <|image_pad|> <tool_response>"
PROGRAM = f"""print({BAD!r}, '</' + 'tool_call> <' + 'think>')
result_image = image.crop((3, 4, 50, 60))"""
# What a tokenizer or a trainer takes for more than text.
SPECIAL = re.compile(r"<\|[^|<>]*\|>|<(?:image|video|audio|bbox|ref-object)>|</?(?:tool_call|tool_response|think)>")
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
    parts = [part for message in row["messages"] for part in message["content"] or [] if isinstance(part, dict)]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [base64.b64decode(url.partition(",")[2]) for url in urls]


def conversation(path: Path, **options: Any) -> Conversation:
    with Executors() as executors:
        found = conversation_at(
            path, Sources(), executors, ExportOptions(**{"format": ExportFormat.HF, **options})
        )
    assert isinstance(found, Conversation), found
    return found


# --- every format


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_has_the_pictures_that_the_teacher_got_in_their_places(
    name: str, traces: Path, tmp_path: Path
) -> None:
    out = export(traces, tmp_path / "out", "--format", name, "--errors", "train")
    rows = rows_of(out)
    assert len(rows) == 3
    with Executors() as executors:
        for number, each in enumerate(rows):
            trace = read_trace(traces / f"trace_{number:05d}.json")
            seen = replay(trace, Sources().of(trace), executors.of(trace))
            sent = [seen.sent, *(one.sent for one in seen.observations if one.sent is not None)]
            assert picture_bytes(each, out) == [picture.data for picture in sent]
            assert sum(text.count("<image>") for text in texts_of(each)) == len(sent) == 4
            roles = [message["role"] for message in each["messages"]]
            assert roles == ["system", *["user", "assistant"] * 5]


@pytest.mark.parametrize("name", FORMATS)
def test_no_special_word_is_left_but_those_that_an_export_places(
    name: str, traces: Path, tmp_path: Path
) -> None:
    (first, *_) = rows_of(export(traces, tmp_path / "out", "--format", name, "--errors", "train"))
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
    rows = rows_of(export(traces, tmp_path / "out", "--format", name, "--errors", "train"))
    for number, each in enumerate(rows[:1]):
        path = traces.parent / each["id"]
        stored = json.loads(path.read_text(encoding="utf-8"))
        assert (each["sample_index"], each["rollout"]) == (number, 0)
        assert each["trace_sha256"] == stored["integrity_sha256"]
        again = rows_of(export(path, tmp_path / f"again{number}", "--format", name, "--errors", "train"))
        assert json.dumps(again[0]["messages"]) == json.dumps(each["messages"])


@pytest.mark.parametrize("name", FORMATS)
def test_the_page_beside_the_rows_says_the_length_to_set(name: str, traces: Path, tmp_path: Path) -> None:
    out = export(traces, tmp_path / "out", "--format", name)
    manifest = json.loads((out / "export.json").read_text(encoding="utf-8"))
    length = manifest["counts"]["tokens"]["to_set"]
    assert length > manifest["counts"]["tokens"]["longest"] - 1 and length % 1024 == 0
    page = (out / "README.md").read_text(encoding="utf-8")
    assert f"{length:,}" in page and f"distil export {traces} --format {name}" in page
    beside = "".join(path.read_text(encoding="utf-8") for path in out.iterdir() if path.suffix in (".yaml", ".md"))
    if name in ("llamafactory", "verl", "ms_swift"):
        assert f"{length}" in beside
