"""Questions about pictures: the task, a row's own text in its prompt, and the scenes that the embedded teacher reads."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import trace_rebuilder as rebuilder
from builders import file_bytes, noise, stored_picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says, text_call, texts

from distil.cli import main
from distil.embedded.drawn_scenes import (
    JPEG_QUALITY,
    SHAPE_NAMES,
    Inscription,
    draw_plate,
    draw_row,
    draw_scene,
)
from distil.embedded.drawn_signs import jpeg_bytes
from distil.embedded.launch import draw_data, embedded_teacher
from distil.embedded.shapes import PALETTE, find_shapes
from distil.errors import SampleError, SourceError
from distil.records import Prompt
from distil.store.trace_file import read_trace
from distil.store.trace_settings import json_sha256
from distil.tasks.vqa import VQA, normalised

QUESTIONS = ["How many?", "What is {question}?", "Wie heißt „Köln“?\n\nZwei Zeilen.", "What colour?", None]
ANSWERS = ["1,200", "a cat", "Köln", "red", "x"]


# --- the task


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1,200", "1200.0"), ("１２００", "1200"), ("-3", "-3.00"), ("Red.", " red"),
        ("\\text{A Cat}", "cat"), ("“Stop!”", "stop"), ("50\\%", "50%"), ("the  Eiffel\ntower", "Eiffel Tower"),
        ("\\mathrm{km}", "KM"), ("$12$", "12"), ("+7", "7"), ("STRASSE", "straße"),
    ],
)  # fmt: skip
def test_what_is_the_same_answer_matches(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("1.200", "1200"), ("12", "123"), ("007", "7"), ("cat", "cats"), ("-3", "3"), ("1,2", "12"), ("a", "b"), ("50%", "50")],
)  # fmt: skip
def test_what_is_another_answer_does_not_match(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)


@given(st.text(max_size=40))
def test_normalising_never_fails_and_twice_is_once(text: str) -> None:
    assert VQA.score({"answer": text}, {"answer": text}).value == 1.0
    assert isinstance(normalised(normalised(text)), str)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("It is \\boxed{cat}.", "cat"), ("\\boxed{1} no, \\boxed{2}", "2"), ("\\boxed{\\text{a {b} c}}", "\\text{a {b} c}"),
        ("<answer> dog </answer>", "dog"), ("<answer>dog</answer> \\boxed{cat}", "cat"), ("\\boxed{ } \\boxed{}", None),
        ("<think>\\boxed{1}</think>Hm.", None), ("cat", None), ("\\boxed{" + "x" * 400 + "}", None),
        ('<tool_call>{"name": "\\boxed{1}"}</tool_call>', None),
    ],
)  # fmt: skip
def test_the_answer_is_the_last_box_that_is_not_empty(reply: str, answer: str | None) -> None:
    assert VQA.parse_answer(reply) == (None if answer is None else {"answer": answer})


@pytest.mark.parametrize(
    ("row", "truth"),
    [
        ({"answer": " 42 "}, {"answer": "42"}), ({"answer": 42}, {"answer": "42"}), ({"answer": 4.0}, {"answer": "4"}),
        ({"answer": 4.5}, {"answer": "4.5"}), ({"answers": ["a", "b", "a", ""]}, {"answer": "a", "others": ["b"]}),
    ],
)  # fmt: skip
def test_a_truth_is_a_text_a_number_or_several(row: Any, truth: Any) -> None:
    assert VQA.truth(row) == truth


@pytest.mark.parametrize(
    "row", [{}, {"answer": None}, {"answer": " "}, {"answer": []}, {"answer": True}, {"answer": {}}]
)
def test_a_row_without_an_answer_cannot_be_used(row: Any) -> None:
    with pytest.raises(SampleError, match="'answer'"):
        VQA.truth(row)


def test_any_of_several_answers_counts() -> None:
    truth = VQA.truth({"answer": ["car", "automobile"]})
    assert [VQA.score({"answer": text}, truth).value for text in ("Car", "automobile", "bus")] == [
        1.0,
        1.0,
        0.0,
    ]
    assert VQA.score(None, truth).parse_success is False
    assert VQA.text(truth) == "car / automobile" and VQA.text({}) == "not stated"


def test_columns_are_guessed_by_name_and_told_where_several_may_be_meant() -> None:
    assert VQA.choose_columns(["image", "question", "answer"], {}) == {}
    assert VQA.choose_columns(["Query", "qa.solution"], {}) == {"question": "Query", "answer": "qa.solution"}
    assert VQA.choose_columns(["q", "a"], {"question": "q", "answer": "a"}) == {
        "question": "q",
        "answer": "a",
    }
    for columns, words in (
        (["problem", "query", "answer"], "several columns may be 'question': problem, query"),
        (["question"], "no column 'answer', name it by --answer_column"),
    ):
        with pytest.raises(SourceError, match=words):
            VQA.choose_columns(columns, {})


def test_texts_of_a_row_are_put_into_the_prompt_at_once_and_nothing_in_them_is() -> None:
    prompt = Prompt("s", "{a} and {b}, {a}; \\boxed{answer} {c}")
    assert prompt.filled({"a": "{b}", "b": "\\1 {a}"}).user == "{b} and \\1 {a}, {b}; \\boxed{answer} {c}"
    assert prompt.filled({}) is prompt


# --- a run


def teacher(request: dict[str, Any]) -> Any:
    """Zooms once, by whichever calls are taken, and answers what row 2 asks."""
    if is_probe(request):
        return calls((request["tools"][0]["function"]["name"], {})) if "tools" in request else says("Yes.")
    if num_turns(request) == 0:
        call = ("image_zoom_in_tool", {"bbox_2d": [0, 0, 500, 500]})
        return calls(call) if "tools" in request else says(text_call(*call))
    return says("\\boxed{köln}")


def saved_questions(folder: Path, question: str, answer: Any) -> Path:
    rows = {
        "image": [stored_picture(file_bytes(noise(96, 64, seed=seed))) for seed in range(len(ANSWERS))],
        question: QUESTIONS,
        "solution": list(range(len(ANSWERS))) if isinstance(answer, datasets.ClassLabel) else ANSWERS,
    }
    features = {"image": datasets.Image(), question: datasets.Value("string"), "solution": answer}
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).save_to_disk(str(folder))
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with columns of other names; the last row has no question."""
    return saved_questions(tmp_path_factory.mktemp("data") / "qa", "query", datasets.Value("string"))


@pytest.fixture(scope="module", params=["native", "text", "none"])
def made(
    request: pytest.FixtureRequest, questions: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ScriptedTeacher]:
    """The folder of a run, and what was asked."""
    folder = tmp_path_factory.mktemp("run") / "traces"
    tools = ["--tools", "none"] if request.param == "none" else ["--tool_mode", request.param]
    with ScriptedTeacher(teacher) as server:
        flags = ["--api_base", server.api_base, "--dataset_path", str(questions), "--output_dir", str(folder)]
        assert main(["run", "--task", "vqa", *flags, *tools, "--keep_going"]) == 1
    return folder, server


def traces_of(folder: Path) -> list[Any]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("trace_*.json"))]


def test_each_row_is_asked_its_own_question(made: tuple[Path, ScriptedTeacher]) -> None:
    asked = {texts(request["messages"][1]) for request in made[1].requests if not is_probe(request)}
    assert len(asked) == 4
    for question in QUESTIONS[:-1]:
        (text,) = (text for text in asked if text.startswith(f"{question}\n\nLook closely"))
        assert text.endswith("\\boxed{answer}") or "pixels" in text


def test_traces_hold_question_truth_and_match(made: tuple[Path, ScriptedTeacher]) -> None:
    traces = traces_of(made[0])
    assert [trace["metadata"]["prompt_fields"] for trace in traces] == [
        {"question": each} for each in QUESTIONS[:-1]
    ]
    assert {trace["settings"]["user_prompt"] for trace in traces} == {VQA.user_prompt}
    assert traces[0]["settings"]["columns"] == {"question": "query", "answer": "solution"}
    assert [trace["reward_score"]["score"] for trace in traces] == [0.0, 0.0, 1.0, 0.0]
    assert traces[2]["reward_score"] == {"score": 1.0, "exact_match": 1.0, "parse_success": True}
    assert traces[2]["metadata"]["truth"] == {"answer": "Köln"}


def test_a_row_without_a_question_fails_by_name_before_anything_is_asked(
    made: tuple[Path, ScriptedTeacher], questions: Path
) -> None:
    (failure,) = map(json.loads, (made[0] / "failed_samples.jsonl").read_text().splitlines())
    assert failure["message"] == f"row 4 of {questions}: column 'query' is empty"


def test_every_request_of_a_row_with_its_own_question_is_rebuilt_to_the_byte(
    made: tuple[Path, ScriptedTeacher],
) -> None:
    rebuilt = [
        request.messages for trace in traces_of(made[0]) for request in rebuilder.rebuild(trace).requests
    ]
    sent = [
        body.partition(b'"messages": ')[2].removesuffix(b"}")
        for request, body in zip(made[1].requests, made[1].bodies, strict=True)
        if not is_probe(request) and "Yes." not in texts(request["messages"][-1]) and b"Look closely" in body
    ]
    assert sorted(rebuilt) == sorted(sent)
    one = next(made[0].glob("trace_*1.json"))
    assert read_trace(one).prompt.user.startswith("What is {question}?\n\nLook")


def test_they_verify_and_another_question_than_the_rows_is_found(
    made: tuple[Path, ScriptedTeacher], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(made[0])]) == 0
    trace = traces_of(made[0])[0]
    trace["metadata"]["prompt_fields"]["question"] = "Another?"
    trace["integrity_sha256"] = json_sha256(
        {name: value for name, value in trace.items() if name != "integrity_sha256"}
    )
    (tmp_path / "trace_00000.json").write_text(json.dumps(trace))
    capsys.readouterr()
    assert main(["verify", str(tmp_path)]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert 'metadata.prompt_fields.question: stored "Another?", now "How many?"' in printed


def test_the_view_shows_question_answer_and_how_many_were_right(
    made: tuple[Path, ScriptedTeacher], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["view", str(made[0] / "trace_00002.json")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for words in ("Wie heißt", "truth Köln", "score 1 (right)"):
        assert words in printed, words
    assert main(["view", str(made[0]), "--batch"]) == 0
    assert "answered right 1 of 4 (25%)" in " ".join(capsys.readouterr().out.split())


def dry_run(capsys: pytest.CaptureFixture[str], *flags: object) -> tuple[int, str]:
    given = ["run", "--task", "vqa", "--api_base", "http://127.0.0.1:9/v1", "--model", "m", "--dry_run"]
    status = main([*given, *map(str, flags)])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_a_prompt_of_the_users_own_says_where_the_question_stands(
    questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = tmp_path / "prompt.txt"
    flags = ("--dataset_path", questions, "--output_dir", tmp_path / "t", "--user_prompt_file", prompt)
    prompt.write_text("Look: {question} Say \\boxed{}.")
    status, printed = dry_run(capsys, *flags)
    assert status == 0 and "Look: How many? Say " in printed, printed
    prompt.write_text("Look.")
    status, printed = dry_run(capsys, *flags)
    assert status == 2 and f"{prompt}: it has no {{question}}, where each row's own text stands" in printed


def test_columns_of_places_are_refused(questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, printed = dry_run(capsys, "--dataset_path", questions, "--lat_column", "x")
    assert status == 2 and "--lat_column says nothing to the task vqa" in printed


def test_a_class_label_is_answered_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved_questions(tmp_path / "labels", "question", datasets.ClassLabel(names=ANSWERS))
    with ScriptedTeacher(teacher) as server:
        flags = [
            "--api_base",
            server.api_base,
            "--dataset_path",
            str(folder),
            "--output_dir",
            str(tmp_path / "t"),
        ]
        assert main(["run", "--task", "vqa", *flags, "--keep_going", "--num_samples", "4"]) == 0
    assert [trace["metadata"]["truth"]["answer"] for trace in traces_of(tmp_path / "t")] == ANSWERS[:4]


# --- the drawn scenes, and the embedded teacher on them

NUM_SCENES = 14  # as the first ones of seed 0: read with tools 13, without 2
CONTROLS = 4


def painted_over(picture: Image.Image, asked: Inscription) -> dict[str, Any]:
    """The same picture, the asked shape without its print."""
    pen = ImageDraw.Draw(picture)
    x, y = asked.middle
    y += asked.side_px // 5 if asked.shape == "triangle" else 0
    half = max(draw_plate(asked).size) // 2 + 4
    pen.rectangle((x - half, y - half, x + half, y + half), fill=PALETTE[asked.colour])
    return {"bytes": jpeg_bytes(picture, JPEG_QUALITY), "path": None}


@pytest.fixture(scope="module")
def api_base() -> Iterator[str]:
    pytest.importorskip("rapidocr", reason="the local teacher's OCR is an optional extra")
    with embedded_teacher() as url:
        yield url


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes as they are drawn, then some painted over, then some that are asked for another of their shapes."""
    drawn = [draw_scene(0, index) for index in range(CONTROLS)]
    others = [inscriptions[1] for _, inscriptions in drawn]
    rows: list[Mapping[str, Any]] = [draw_row(0, index) for index in range(NUM_SCENES)]
    rows += [
        rows[index] | {"image": painted_over(picture, inscriptions[0])}
        for index, (picture, inscriptions) in enumerate(drawn)
    ]
    rows += [
        rows[index] | {"question": other.question, "answer": other.text} for index, other in enumerate(others)
    ]
    folder = tmp_path_factory.mktemp("data") / "scenes"
    features = datasets.Features(
        image=datasets.Image(), question=datasets.Value("string"), answer=datasets.Value("string"),
        text_px=datasets.Value("int64"), image_source=datasets.Value("string"),
    )  # fmt: skip
    datasets.Dataset.from_list(list(rows), features=features).save_to_disk(str(folder))
    return folder


def ask(api_base: str, scenes: Path, folder: Path, num_samples: int, *flags: str) -> list[Any]:
    given = [
        "--api_base",
        api_base,
        "--dataset_path",
        str(scenes),
        "--output_dir",
        str(folder),
        "--keep_going",
    ]
    given += ["--num_samples", str(num_samples), "--temperature", "0"]
    assert main(["run", "--task", "vqa", *given, *flags]) == 0
    return traces_of(folder)


@pytest.fixture(scope="module")
def with_tools(api_base: str, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return ask(api_base, scenes, tmp_path_factory.mktemp("with") / "t", 0)


def share_right(traces: list[Any]) -> float:
    return sum(trace["reward_score"]["score"] for trace in traces) / len(traces)


def test_with_tools_it_reads_most_scenes(with_tools: list[Any]) -> None:
    assert share_right(with_tools[:NUM_SCENES]) >= 0.75
    assert all(
        trace["tool_calls_log"] for trace in with_tools[:NUM_SCENES] if trace["reward_score"]["score"] == 0
    )


def test_without_tools_it_hardly_reads_any(api_base: str, scenes: Path, tmp_path: Path) -> None:
    assert share_right(ask(api_base, scenes, tmp_path / "t", NUM_SCENES, "--tools", "none")) <= 0.3


def test_print_that_is_painted_over_is_not_guessed(with_tools: list[Any]) -> None:
    painted = with_tools[NUM_SCENES : NUM_SCENES + CONTROLS]
    assert [trace["metadata"]["answer"] for trace in painted] == [{"answer": "unreadable"}] * CONTROLS
    assert "I could read no" in painted[0]["final_response"]


def test_the_answer_is_that_of_the_shape_that_is_asked_for(with_tools: list[Any]) -> None:
    assert share_right(with_tools[-CONTROLS:]) >= 0.75
    answers = [trace["metadata"]["answer"] for trace in with_tools]
    assert all(one != other for one, other in zip(answers, answers[-CONTROLS:], strict=False))


def test_native_text_and_code_calls_do_the_same(
    api_base: str, scenes: Path, with_tools: list[Any], tmp_path: Path
) -> None:
    by_text = ask(api_base, scenes, tmp_path / "text", 3, "--tool_mode", "text")
    for one, other in zip(by_text, with_tools, strict=False):
        assert one["metadata"]["answer"] == other["metadata"]["answer"]
        assert [call["tool_arguments"] for call in one["tool_calls_log"]] == [
            call["tool_arguments"] for call in other["tool_calls_log"]
        ]


def test_it_answers_by_the_picture_and_the_question_alone(api_base: str, with_tools: list[Any]) -> None:
    """No row, no file name: the same picture and question by plain HTTP give the first turn that the run got."""
    picture = draw_row(0, 0)["image"]["bytes"]
    url = f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
    first = with_tools[0]
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": f"Please: {first['metadata']['prompt_fields']['question']}"},
    ]
    import urllib.request  # noqa: PLC0415

    body = {"model": "m", "messages": [{"role": "user", "content": content}], "temperature": 0}
    body["tools"] = first["settings"]["tool_schemas"]
    request = urllib.request.Request(
        f"{api_base}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        message = json.load(reply)["choices"][0]["message"]
    made = [json.loads(call["function"]["arguments"]) for call in message["tool_calls"]]
    assert made == [call["raw_arguments"] for call in first["tool_calls_log"] if call["turn"] == 1]


def test_scenes_depend_on_seed_and_index_alone_and_have_what_is_asked(tmp_path: Path) -> None:
    draw_data(tmp_path / "few", 3, seed=2, kind="scenes")
    rows = datasets.load_from_disk(str(tmp_path / "few")).cast_column("image", datasets.Image(decode=False))
    for index, row in enumerate(rows):
        assert row == draw_row(2, index)
    assert draw_row(3, 0)["image"] != draw_row(2, 0)["image"]
    for index in range(40):
        _, inscriptions = draw_scene(1, index)
        asked = inscriptions[0]
        kinds = [(each.colour, each.shape) for each in inscriptions]
        assert len(set(kinds)) == len(kinds) and asked.shape in SHAPE_NAMES
        assert 12 <= asked.text_px <= 24 and asked.text


def test_shapes_of_a_colour_are_found_the_largest_first() -> None:
    view = Image.new("RGB", (512, 384), (180, 180, 180))
    pen = ImageDraw.Draw(view)
    pen.rectangle((40, 40, 79, 79), fill=PALETTE["red"])
    pen.ellipse((200, 100, 319, 219), fill=PALETTE["red"])
    pen.polygon(((400, 360), (500, 360), (450, 260)), fill=PALETTE["blue"])
    (first, _), (second, box) = find_shapes(np.asarray(view), "red")
    assert (first, second, box) == ("circle", "square", (40, 40, 80, 80))
    assert [name for name, _ in find_shapes(np.asarray(view), "blue")] == ["triangle"]
    assert find_shapes(np.asarray(view), "green") == []


def test_more_scenes_are_drawn_by_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["signs", "--kind", "scenes", "--num_rows", "2", "--output_dir", str(tmp_path / "more")]) == 0
    assert "--dataset_path" in capsys.readouterr().out
    row = datasets.load_from_disk(str(tmp_path / "more"))[1]
    assert row["question"].startswith("What ") and row["image"].size == (1600, 1200)
    with Image.open(io.BytesIO(draw_row(0, 1)["image"]["bytes"])) as drawn:
        assert drawn.tobytes() == row["image"].tobytes()
