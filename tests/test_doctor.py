"""`distil doctor` against teachers of several characters, as a user runs it."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
from conftest import RunDoor
from scripted_teacher import ScriptedTeacher, completion
from seeing_teacher import USAGE, Seeing, error, read_word
from test_teacher import closed_port

from distil.doctor.marks import MARKS, BoxAnswers, FoundFrame, find_frame
from distil.pictures import Frame
from distil.teacher.sign import draw_sign

QWEN = "Qwen/Qwen3-VL-235B-A22B-Instruct"
KEY = "sk-test-0123456789"
Result = subprocess.CompletedProcess[str]


def doctor(run_door: RunDoor, script: Any, *flags: str, model: str = QWEN) -> tuple[Result, ScriptedTeacher]:
    env = {"OPENAI_API_KEY": KEY, "COLUMNS": "300"}
    with ScriptedTeacher(script, models=(model,), sees=False) as server:
        result = run_door("cli.py", "doctor", "--api_base", server.api_base, *flags, env=env)
    assert "Traceback" not in result.stderr
    assert KEY not in result.stdout + result.stderr
    assert len(server.requests) < 15, "with the list of models: at most 15"
    return result, server


def test_each_replica_is_examined_and_a_dead_one_is_told(run_door: RunDoor) -> None:
    dead = f"http://127.0.0.1:{closed_port()}/v1"
    with ScriptedTeacher(Seeing(), models=(QWEN,)) as a, ScriptedTeacher(Seeing(), models=(QWEN,)) as b:
        urls = f"{dead},{a.api_base},{b.api_base}"
        result = run_door("cli.py", "doctor", "--api_base", urls, env={"COLUMNS": "300"})
        assert a.requests and b.requests
    assert result.returncode == 1, result.stdout + result.stderr
    assert result.stdout.count("The main job can run.") == 2
    assert f"A replica cannot be asked: no reply from {dead}" in result.stdout


def row(result: Result, probe: str) -> str:
    """What the table says of a probe: the result and the detail."""
    (line,) = (line for line in result.stdout.splitlines() if line.startswith(f"{probe}  "))
    return " ".join(line.removeprefix(probe).split())


def test_a_server_that_can_everything_is_ready(run_door: RunDoor) -> None:
    result, server = doctor(run_door, Seeing(reasoning_field="reasoning"))
    assert result.returncode == 0, result.stdout + result.stderr
    for probe in (
        "models list",
        "plain text",
        "picture",
        "native calls",
        "text calls",
        "parallel calls",
        "picture in tool result (native)",
        "coordinates",
        "reasoning field",
        "usage fields",
        "token-limit field",
        "token limit kept",
        "seed",
        "temperature",
    ):
        assert row(result, probe).startswith("yes "), probe
    assert row(result, "reasoning field") == "yes reasoning"
    assert "Profile by name: qwen-vl (boxes rel1000; max_tokens)" in result.stdout
    assert "Frame found: rel1000 (sure: 3 marks hit" in result.stdout
    assert "Suggested: --tool_mode native" in result.stdout
    assert "Suggested: --coordinates rel1000 (3 of 3" in result.stdout
    assert "Warning" not in result.stdout and "Needed" not in result.stdout
    assert f"Requests: {len(server.requests) + 1}" in result.stdout
    assert len(server.requests) == 8


def test_the_teacher_is_asked_as_the_main_job_asks(run_door: RunDoor) -> None:
    _, server = doctor(run_door, Seeing())
    asked = [request for request in server.requests if "tools" in request]
    description = str(asked[0]["tools"])
    assert "from 0 to 1000" in description
    roles = [message["role"] for request in asked for message in request["messages"]]
    assert roles.count("tool") == 1
    (with_result,) = (request for request in asked if request["messages"][-2]["role"] == "tool")
    assert [part["type"] for part in with_result["messages"][-1]["content"]] == ["image_url"]


@pytest.mark.parametrize("frame", list(Frame))
@pytest.mark.parametrize("model", [QWEN, "some-finetune"])
def test_the_frame_is_found_whatever_the_name_says(run_door: RunDoor, frame: Frame, model: str) -> None:
    result, _ = doctor(run_door, Seeing(frame=frame), model=model)
    named = Frame.REL1000 if model == QWEN else Frame.PIXEL
    assert f"Frame found: {frame.value} (sure: 3 marks hit" in result.stdout, result.stdout
    assert result.returncode == (0 if frame is named else 1)
    line = f"Needed: --coordinates {frame.value} " if frame is not named else "Suggested: --coordinates"
    assert line in result.stdout
    assert ("crops are at the wrong place" in result.stdout) == (frame is not named)


def test_a_frame_that_is_told_is_compared_with_the_one_that_comes_back(run_door: RunDoor) -> None:
    told, server = doctor(run_door, Seeing(frame=Frame.PIXEL), "--coordinates", "pixel")
    assert "pixels" in str(server.requests[2]["tools"])
    assert told.returncode == 1 and "Needed: --coordinates pixel" in told.stdout
    ignored, _ = doctor(run_door, Seeing(frame=Frame.REL1), "--coordinates", "pixel")
    assert "told pixel and answers in rel1 all the same" in ignored.stdout


def test_text_calls_do_where_the_server_refuses_tools(run_door: RunDoor) -> None:
    result, _ = doctor(run_door, Seeing(native=False))
    assert result.returncode == 0, result.stdout
    assert row(result, "native calls").startswith("no HTTP 400")
    assert row(result, "text calls").startswith("yes")
    assert row(result, "picture in tool result (text)").startswith("yes")
    assert "Suggested: --tool_mode text" in result.stdout
    assert "Frame found: rel1000 (sure" in result.stdout


def test_calls_that_pass_through_as_text_are_told_apart(run_door: RunDoor) -> None:
    result, _ = doctor(run_door, Seeing(calls_as_text=True, num_parallel=1))
    assert result.returncode == 0
    assert row(result, "native calls") == "partly the server passes calls on as text"
    assert row(result, "parallel calls").startswith("no 1 of 2")


def test_text_mode_is_needed_where_native_results_take_no_picture(run_door: RunDoor) -> None:
    result, _ = doctor(run_door, Seeing(takes_result_pictures=False))
    assert result.returncode == 1
    assert row(result, "picture in tool result (native)").startswith("no HTTP 500")
    assert row(result, "picture in tool result (text)").startswith("yes")
    assert "Needed: --tool_mode text (native calls work" in result.stdout
    assert "The main job can run, with --tool_mode text" in result.stdout


def test_without_calls_boxes_come_as_text_and_the_main_job_cannot_run(run_door: RunDoor) -> None:
    result, _ = doctor(run_door, Seeing(makes_calls=False, frame=Frame.REL1000_YX))
    assert result.returncode == 2
    assert "Frame found: rel1000_yx (sure" in result.stdout
    assert "cannot run: the teacher makes no tool calls" in result.stdout


def test_a_server_that_takes_no_pictures_cannot_be_used(run_door: RunDoor) -> None:
    result, _ = doctor(run_door, Seeing(takes_pictures=False))
    assert result.returncode == 2
    assert row(result, "picture").startswith("no HTTP 400")
    assert row(result, "plain text").startswith("yes"), "the other probes go on"
    assert "cannot run: no picture could be sent: HTTP 400" in result.stdout
    assert "not a multimodal model" in result.stdout


def test_a_server_for_one_picture_only_cannot_be_used(run_door: RunDoor) -> None:
    result, _ = doctor(run_door, Seeing(max_pictures=1))
    assert result.returncode == 2
    assert "cannot run: no picture could be sent in the result of a tool call" in result.stdout
    assert "At most 1 image(s)" in result.stdout.partition("cannot run")[2]


def test_a_blind_teacher_is_found_out(run_door: RunDoor) -> None:
    result, _ = doctor(run_door, Seeing(is_blind=True))
    assert result.returncode == 2
    assert "Frame found: none" in result.stdout
    assert "cannot run: the teacher does not see" in result.stdout


def test_a_refused_token_field_is_replaced_and_named(run_door: RunDoor) -> None:
    script = Seeing(refused_fields=("max_tokens", "temperature", "seed"))
    result, server = doctor(run_door, script)
    assert result.returncode == 0, result.stdout
    assert row(result, "token-limit field").startswith("yes max_completion_tokens (max_tokens is refused")
    assert row(result, "seed").startswith("no refused") and row(result, "temperature").startswith("no")
    assert row(result, "token limit kept").startswith("yes")
    assert f"Requests: {len(server.requests) + 1}" in result.stdout


def test_what_a_server_does_not_report_is_said(run_door: RunDoor) -> None:
    result, _ = doctor(run_door, Seeing(usage=None, keeps_limit=False, reasoning_field="reasoning_content"))
    assert result.returncode == 0
    assert row(result, "usage fields").startswith("no not reported")
    assert row(result, "token limit kept").startswith("partly")
    assert row(result, "reasoning field") == "yes reasoning_content"


def test_details_of_usage_are_named(run_door: RunDoor) -> None:
    usage = USAGE | {"prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": None}}
    result, _ = doctor(run_door, Seeing(usage=usage))
    assert "prompt_tokens_details.cached_tokens" in row(result, "usage fields")
    assert "audio_tokens" not in result.stdout


def test_pixels_of_a_picture_that_the_server_shrank_need_smaller_pictures(run_door: RunDoor) -> None:
    result, _ = doctor(run_door, Seeing(frame=Frame.PIXEL, max_area_px=600_000), model="some-finetune")
    assert result.returncode == 1
    (area_px,) = map(int, re.findall(r"Needed: --image_max_pixels (\d+) ", result.stdout))
    assert 550_000 < area_px <= 610_000
    assert "Suggested: --coordinates pixel" in result.stdout


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_teacher_that_cannot_be_asked_is_one_line(run_door: RunDoor, status: int) -> None:
    result, server = doctor(run_door, lambda _: (status, error(f"wrong {KEY}")))
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and f"HTTP {status}" in result.stderr
    assert len(server.requests) == 1 and "probe" not in result.stdout


def test_a_wrong_url_and_an_unclear_model_are_one_message(run_door: RunDoor) -> None:
    nowhere = run_door("cli.py", "doctor", "--api_base", f"http://127.0.0.1:{closed_port()}/v1")
    assert nowhere.returncode == 2 and len(nowhere.stderr.splitlines()) == 1
    assert "no reply from" in nowhere.stderr
    malformed = run_door("cli.py", "doctor", "--api_base", "localhost:8000")
    assert malformed.returncode == 2 and "no URL" in malformed.stderr
    with ScriptedTeacher(Seeing(), models=("a", "b")) as server:
        several = run_door("cli.py", "doctor", "--api_base", server.api_base)
    assert several.returncode == 2 and "offers: a, b" in several.stderr
    assert server.requests == []


def test_one_failing_probe_does_not_break_the_rest(run_door: RunDoor) -> None:
    def script(request: dict[str, Any]) -> Any:
        if "1 to 100" in str(request["messages"]) or "two times" in str(request["messages"]):
            return 200, b"<html>"
        return Seeing()(request)

    result, _ = doctor(run_door, script)
    assert result.returncode == 0
    assert row(result, "token limit kept").startswith("no the reply is not JSON")
    assert row(result, "parallel calls").startswith("no the reply is not JSON")


def test_a_busy_server_is_asked_again_within_the_limit(run_door: RunDoor) -> None:
    seen: list[str] = []

    def script(request: dict[str, Any]) -> Any:
        seen.append(str(request["messages"]))
        return Seeing()(request) if seen.count(seen[-1]) > 1 or len(seen) > 5 else (503, error("busy"))

    result, server = doctor(run_door, script)
    assert result.returncode == 0, result.stdout
    assert f"Requests: {len(server.requests) + 1}" in result.stdout


def test_a_server_that_stops_answering_is_not_waited_for_again_and_again(run_door: RunDoor) -> None:
    def script(request: dict[str, Any]) -> Any:
        return Seeing()(request) if "one word: ready" in str(request["messages"]) else (200, b"")

    result, server = doctor(run_door, script)
    assert result.returncode == 2
    assert len(server.requests) == 3
    assert row(result, "native calls").startswith("no ")
    assert row(result, "text calls") == "not asked the server has stopped answering"


def test_the_teachers_words_cannot_steer_the_terminal(run_door: RunDoor) -> None:
    def script(request: dict[str, Any]) -> Any:
        is_first = "one word: ready" in str(request["messages"])
        return completion({"content": "\x1b[2J[red]ready\x07"}) if is_first else Seeing()(request)

    result, _ = doctor(run_door, script)
    assert "\x1b" not in result.stdout and "[red]ready" in row(result, "plain text")


def test_usage_is_shown_where_nothing_is_named(run_door: RunDoor) -> None:
    result = run_door("cli.py", "doctor", env={"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"})
    assert result.returncode == 2
    assert "usage:" in result.stderr and "--sandbox" in result.stderr


def test_teacher_and_sandbox_can_be_checked_together(run_door: RunDoor) -> None:
    result, _ = doctor(run_door, Seeing(), "--sandbox")
    assert result.returncode == 0, result.stderr
    assert "seccomp" in result.stdout and "The main job can run." in result.stdout


def test_the_embedded_teacher_is_examined(run_door: RunDoor) -> None:
    result = run_door("cli.py", "doctor", "--api_base", "embedded", env={"COLUMNS": "200"})
    assert result.returncode == 0, result.stderr
    assert row(result, "picture").startswith("yes seen: the word OSLO was read")
    assert row(result, "native calls").startswith("yes")
    assert "Frame found: none" in result.stdout, "it looks for writing, not for marks"
    assert "Warning" not in result.stdout and "boxes writing, not the doctor's marks" in result.stdout
    assert "The main job can run." in result.stdout


# --- the frame finder by itself ---


def answers(box: Any, scale: float = 1.0) -> BoxAnswers:
    sizes = [(round(mark.size[0] * scale), round(mark.size[1] * scale)) for mark in MARKS]
    return {mark: (size, box(mark, size)) for mark, size in zip(MARKS, sizes, strict=True)}


def test_no_frame_is_found_in_boxes_that_stay_where_they_are() -> None:
    for box in ((0, 0, 1000, 1000), (0, 0, 1, 1), (300, 300, 700, 700), (5, 5, 5, 5), (0.0, 0.0, 0.0, 0.0)):
        assert find_frame(answers(lambda _, __, box=box: box)).frame is None
    assert find_frame(answers(lambda _, size: (0, 0, *size))).frame is None
    assert find_frame({}) == FoundFrame(None, 0.0, 0, 0)


def test_one_hit_is_not_enough_and_two_are_not_sure() -> None:
    right = answers(lambda mark, _: mark.box)
    wrong = {MARKS[2]: (MARKS[2].size, (0.0, 0.0, 50.0, 50.0))}
    assert find_frame({MARKS[0]: right[MARKS[0]]}).frame is None
    two = find_frame({**right, **wrong})
    assert (two.frame, two.is_sure, two.num_hits) == (Frame.PIXEL, False, 2)
    assert find_frame(right).is_sure


def test_pixels_are_those_of_the_sent_picture() -> None:
    halved = answers(lambda mark, _: tuple(value / 2 for value in mark.box), scale=0.5)
    found = find_frame(halved)
    assert (found.frame, found.is_sure, found.max_area_px) == (Frame.PIXEL, True, None)


def test_the_tests_own_reader_reads() -> None:
    assert read_word(draw_sign("OSLO")) == "OSLO" and read_word(draw_sign("LIMA")) == "LIMA"


def test_a_model_that_is_not_listed_is_shown_with_the_nearest_names(run_door: RunDoor) -> None:
    result, _ = doctor(run_door, Seeing(), "--model", "qwen3-vl-235b")
    assert row(result, "models list") == f"partly qwen3-vl-235b is not in it; the nearest there: {QWEN}"
