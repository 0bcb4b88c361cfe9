"""Worthless traces are told from good ones: the probe's word, the early stop, the warnings at a run's end."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import row, saved, teacher_settings
from conftest import photo_bytes
from hypothesis import given
from hypothesis import strategies as st
from scripted_teacher import (
    Script,
    ScriptedTeacher,
    calls,
    completion,
    counted,
    is_probe,
    num_turns,
    says,
    text_call,
    texts,
)

from distil.cli import main
from distil.errors import TeacherRefused
from distil.records import Prompt, SampleId, ToolMode
from distil.run.suspicion import FIRST_SAMPLES, Tally
from distil.spending.budget import Budget
from distil.spending.prices import fewest_prompt_tokens
from distil.store.summary import TraceSummary
from distil.teacher.sign import SIGN_QUESTION, SIGN_WORD
from distil.teacher.tool_mode import ProbeResult, probe_tool_mode, recalled_probe

NUM_PHOTOS = 60
ZOOM = ("image_zoom_in_tool", {"bbox_2d": [100, 100, 600, 600]})
ANSWER = "It is \\boxed{48.85, 2.35}"
PROMPT = Prompt(
    "You are a helpful assistant.", "Where?", ({"type": "function", "function": {"name": "zoom"}},)
)


@pytest.fixture(scope="module")
def many_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    photo = photo_bytes(0)
    return saved(tmp_path_factory.mktemp("warnings") / "photos", [row(photo)] * NUM_PHOTOS)


def run(
    server: ScriptedTeacher, photos: Path, folder: Path, num_samples: int, *flags: str, door: str = "run"
) -> int:
    code = main(
        [door, "--api_base", server.api_base, "--dataset_path", str(photos), "--output_dir", str(folder),
         "--num_samples", str(num_samples), *flags]
    )  # fmt: skip
    if code:
        gc.collect()  # the lock of the folder goes with the last that refers to it, perhaps an error
    return code


def last_record(folder: Path) -> Any:
    return json.loads((folder / "run_record.json").read_text())["runs"][-1]


def num_traces(folder: Path) -> int:
    return len(list(folder.glob("trace_*.json")))


def warning_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("Warning: ")]


def healthy(request: dict[str, Any]) -> Any:
    """One zoom and an answer that is different for each sample, with tokens as they are."""
    if is_probe(request) or num_turns(request) == 0:
        return counted(request, calls(ZOOM))
    return counted(request, says(f"{request['seed']}: {ANSWER}"))


def dropping(request: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any]:
    """The reply of a server that drops pictures: its prompt tokens are those of the text."""
    tokens = 12 + sum(len(texts(message)) for message in request["messages"]) // 4
    return reply | {"usage": {"prompt_tokens": tokens, "completion_tokens": 10, "total_tokens": tokens + 10}}


def text_only(request: dict[str, Any]) -> Any:
    """llama-cpp-python with a text-only model: whatever the picture, the text alone is answered."""
    said = (
        "There is no image."
        if is_probe(request)
        else f"I cannot see the photo you speak of, {request['seed']}."
    )
    return dropping(request, says("STOP" if SIGN_QUESTION in texts(request["messages"][1]) else said))


# --- whole runs ---


def test_a_healthy_run_has_no_warning_and_its_probe_takes_one_request(
    many_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedTeacher(healthy) as server:
        assert run(server, many_photos, tmp_path, 30) == 0
    assert len(server.requests) == 1 + 2 * 30
    assert "Warning" not in capsys.readouterr().out
    record = last_record(tmp_path)
    assert (record["warnings"], record["stopped_by"], record["probe"]["sight_warning"]) == ([], None, None)


def test_a_server_that_drops_the_picture_is_told_at_the_start_the_end_and_in_the_record(
    many_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedTeacher(text_only, sees=False) as server:
        assert run(server, many_photos, tmp_path, 5) == 0
        first = warning_lines(capsys.readouterr().out)
        num_asked = len(server.requests)
        assert num_asked == 2 + 5, "the word is asked for alone where it did not come with the call"
        assert run(server, many_photos, tmp_path, 10) == 0
        again = warning_lines(capsys.readouterr().out)
        assert len(server.requests) == num_asked + 5, "a resumed run does not ask again, but says so again"
    told = [line for line in first if "did not name the word in a picture" in line]
    assert len(told) == 2 and first[0] == told[0] and "a text-only model, or a wrong chat template" in told[0]
    assert again[0] == told[0] and again.count(told[0]) == 2
    record = last_record(tmp_path)
    assert record["probe"]["sight_warning"] == told[0].removeprefix("Warning: ")
    assert record["warnings"] == [line.removeprefix("Warning: ") for line in again[1:]]
    assert any("5 of 5 samples have no answer" in line for line in record["warnings"])


def test_a_run_without_tools_is_told_that_its_pictures_were_dropped(
    many_photos: Path, tmp_path: Path
) -> None:
    with ScriptedTeacher(text_only, sees=False) as server:
        assert run(server, many_photos, tmp_path, 5, door="one-turn") == 0
    unread, silent, tokens = last_record(tmp_path)["warnings"]
    assert "did not name the word in a picture" in unread
    assert "5 of 5 samples have no answer; the server seems to drop pictures" in silent
    assert (
        "5 of 5 samples report fewer prompt tokens than text and picture need (sample 0, turn 1: " in tokens
    )


@pytest.mark.parametrize("workers", [1, 8])
def test_a_run_whose_first_samples_have_no_answer_stops(
    workers: int, many_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--max_workers", str(workers))
    with ScriptedTeacher(text_only, sees=False) as server:
        assert run(server, many_photos, tmp_path, NUM_PHOTOS, *flags) == 1
        assert FIRST_SAMPLES <= num_traces(tmp_path) < FIRST_SAMPLES + workers
        stopped_by = last_record(tmp_path)["stopped_by"]
        assert "none of the first 20 samples has an answer" in stopped_by and "--keep_going" in stopped_by
        assert "text-only model" in stopped_by and f"Stopped: {stopped_by}." in capsys.readouterr().out
        assert len(server.requests) == 2 + num_traces(tmp_path), "what was in flight has its trace"
        assert run(server, many_photos, tmp_path, NUM_PHOTOS, "--keep_going", *flags) == 0
    assert num_traces(tmp_path) == NUM_PHOTOS and last_record(tmp_path)["stopped_by"] is None


def test_a_run_of_fewer_samples_never_stops_early(many_photos: Path, tmp_path: Path) -> None:
    with ScriptedTeacher(text_only, sees=False) as server:
        assert run(server, many_photos, tmp_path, FIRST_SAMPLES - 1) == 0
    assert num_traces(tmp_path) == FIRST_SAMPLES - 1


def test_a_run_whose_calls_all_fail_stops_and_quotes_one(many_photos: Path, tmp_path: Path) -> None:
    def script(request: dict[str, Any]) -> Any:
        if is_probe(request) or num_turns(request) == 0:
            return counted(request, calls(("image_zoom_in_tool", {"bbox_2d": [500, 300, 200, 100]})))
        return counted(request, says(f"{request['seed']}: {ANSWER}"))

    with ScriptedTeacher(script) as server:
        assert run(server, many_photos, tmp_path, NUM_PHOTOS) == 1
    record = last_record(tmp_path)
    failed = json.loads((tmp_path / "trace_00000.json").read_text())["tool_calls_log"][0]["message"]
    assert "all 20 tool calls failed" in record["stopped_by"] and failed[:100] in record["stopped_by"]
    assert "--coordinates" in record["stopped_by"]
    assert FIRST_SAMPLES <= num_traces(tmp_path) < NUM_PHOTOS
    assert any(line.startswith("all ") for line in record["warnings"])


def test_a_run_that_was_cut_off_everywhere_names_the_limit(many_photos: Path, tmp_path: Path) -> None:
    def script(request: dict[str, Any]) -> Any:
        if is_probe(request):
            return counted(request, calls(ZOOM))
        return counted(request, says(f"Well, {request['seed']}", "length"))

    with ScriptedTeacher(script) as server:
        assert run(server, many_photos, tmp_path, NUM_PHOTOS, "--max_tokens", "77") == 1
    record = last_record(tmp_path)
    assert "--max_tokens 77 may be too small" in record["stopped_by"]
    assert any("ended in a turn that was cut off" in line for line in record["warnings"])


def test_a_resumed_good_run_goes_on_where_only_its_longest_samples_were_left(
    many_photos: Path, tmp_path: Path
) -> None:
    """Killed while samples that never answer were in flight: those that go on from kept turns stop nothing."""

    def one_turn_each(request: dict[str, Any]) -> Any:
        if is_probe(request) or num_turns(request) == 0:
            return counted(request, calls(ZOOM))
        return 400, {"error": {"message": "the proxy is out of order"}}

    def never_answers(request: dict[str, Any]) -> Any:
        return counted(request, calls(ZOOM, content=f"{request['seed']}"))

    with ScriptedTeacher(one_turn_each) as server:
        assert run(server, many_photos, tmp_path, 30, "--max_turns", "2") == 1
        assert num_traces(tmp_path) == 0
        server.script = never_answers
        assert run(server, many_photos, tmp_path, 30, "--max_turns", "2") == 0
    record = last_record(tmp_path)
    assert num_traces(tmp_path) == 30 and record["stopped_by"] is None
    assert any(
        "30 of 30 samples have no answer; most still called tools" in line for line in record["warnings"]
    )


def test_a_server_that_drops_the_pictures_of_tool_results_is_told(many_photos: Path, tmp_path: Path) -> None:
    def script(request: dict[str, Any]) -> Any:
        reply = counted(request, healthy(request))
        if num_turns(request) == 0:
            return reply
        first = {"messages": request["messages"][:2]}
        tokens = counted(first, reply)["usage"]["prompt_tokens"] + 20
        return reply | {"usage": reply["usage"] | {"prompt_tokens": tokens}}

    with ScriptedTeacher(script) as server:
        assert run(server, many_photos, tmp_path, 3) == 0
    (warning,) = last_record(tmp_path)["warnings"]
    assert "3 of 3 samples report fewer prompt tokens" in warning and "sample 0, turn 2" in warning


def test_a_server_that_reports_no_tokens_is_not_suspected(many_photos: Path, tmp_path: Path) -> None:
    with ScriptedTeacher(lambda request: healthy(request) | {"usage": None}) as server:
        assert run(server, many_photos, tmp_path, 5) == 0
    assert last_record(tmp_path)["warnings"] == []


def test_the_same_reply_again_and_again_is_told(many_photos: Path, tmp_path: Path) -> None:
    def script(request: dict[str, Any]) -> Any:
        is_first = is_probe(request) or num_turns(request) < 5
        return counted(request, calls(ZOOM) if is_first else says(ANSWER))

    with ScriptedTeacher(script) as server:
        assert run(server, many_photos, tmp_path, 6) == 0
    same, again, *_ = last_record(tmp_path)["warnings"]
    assert "6 of 6 samples end with the same reply" in same and ANSWER in same
    assert "in 6 of 6 samples the teacher said and called the same" in again


# --- the probe ---


def probed(script: Script, budget: Budget | None = None) -> tuple[ProbeResult, ScriptedTeacher]:
    with ScriptedTeacher(script, sees=False) as server:
        settings = teacher_settings(server.api_base, "key", "scripted-qwen3-vl")
        return probe_tool_mode(settings, PROMPT, budget or Budget()), server


def in_one(reply: dict[str, Any]) -> Script:
    return lambda request: counted(request, reply)


@pytest.mark.parametrize(
    "reply",
    [
        calls(("zoom", {}), content=f"The sign says {SIGN_WORD.title()}."),
        calls(("zoom", {}), reasoning_content=f"I read {SIGN_WORD}"),
        calls(("zoom", {"word": SIGN_WORD})),
        says(f"{SIGN_WORD} {text_call('zoom', {})}"),
        completion({"content": SIGN_WORD}, usage=None),
    ],
)
def test_a_word_beside_the_call_needs_no_second_question(reply: dict[str, Any]) -> None:
    script: Script = in_one(reply) if reply["usage"] else lambda _: reply
    result, server = probed(script)
    assert (result.sight_warning, len(server.requests)) == (None, 1)


def test_a_word_that_does_not_come_with_the_call_is_asked_for_alone_and_paid_by_the_budget() -> None:
    budget = Budget()
    result, server = probed(
        lambda request: counted(request, calls(("zoom", {})) if "tools" in request else says(SIGN_WORD)),
        budget,
    )
    assert (result.tool_mode, result.sight_warning) == (ToolMode.NATIVE, None)
    assert len(server.requests) == 2 and "tools" not in server.requests[1]
    assert budget.spent.calls == 2


def test_no_server_is_asked_more_than_three_questions() -> None:
    result, server = probed(
        lambda request: (400, {"error": {"message": "no"}}) if "tools" in request else says("A cat.")
    )
    assert result.tool_mode is ToolMode.TEXT
    assert ["tools" in request for request in server.requests] == [True, False, False]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (lambda request: counted(request, says("A cat.")), "did not name the word OSLO in a picture: it said “A cat.”"),
        (lambda request: dropping(request, says("HELLO")), "prompt tokens were reported, where text and picture need"),
        (lambda request: dropping(request, says(SIGN_WORD)), "read the word in a picture, but"),
        (lambda request: counted(request, says("Hm", "length")), "see --max_tokens"),
        (lambda _: completion({"content": "x"}, usage=None), "did not name the word"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_teachers_eyes_is_a_plain_line(reply: Script, words: str) -> None:
    result, _ = probed(reply)
    assert result.sight_warning is not None and words in result.sight_warning
    recalled = recalled_probe(result.settings, json.loads(json.dumps(result.as_dict())))
    assert recalled == result


def test_a_probe_that_an_earlier_version_recorded_is_recalled_without_a_warning() -> None:
    result, _ = probed(in_one(says("A cat.")))
    earlier = {name: value for name, value in result.as_dict().items() if name != "sight_warning"}
    assert recalled_probe(result.settings, earlier) == replace(result, sight_warning=None)


def test_a_server_that_refuses_the_second_question_stops_the_run_before_it_starts() -> None:
    script: Script = lambda request: (
        calls(("zoom", {})) if "tools" in request else (403, {"error": {"message": "no"}})
    )
    with pytest.raises(TeacherRefused):
        probed(script)


# --- pure functions ---

GOOD = TraceSummary(
    sample_id=SampleId(0),
    task="geolocation",
    parse_success=True,
    metrics={"distance@km": 1.0},
    score=1.0,
    turns=2,
    stop_reason="answered",
    calls={"zoom": 2},
    failed_calls={},
    prompt_tokens=1000,
    completion_tokens=100,
    reports_tokens=True,
)
SILENT = replace(GOOD, parse_success=False)
FAILING = replace(GOOD, failed_calls={"zoom": 2}, first_failure="Error: no such tool")


def tally_of(*samples: TraceSummary, is_resumed: bool = False) -> Tally:
    tally = Tally(max_tokens=2048, max_turns=10)
    for index, each in enumerate(samples):
        tally.add(replace(each, sample_id=SampleId(index), is_resumed=is_resumed))
    return tally


def test_one_answer_among_the_first_samples_lets_a_run_go_on() -> None:
    assert tally_of(*[SILENT] * 20).halt is not None
    assert tally_of(*[SILENT] * 19).halt is None
    assert tally_of(*[SILENT] * 19, GOOD, *[SILENT] * 40).halt is None
    assert tally_of(*[SILENT] * 40, is_resumed=True).halt is None


def test_one_call_that_works_lets_a_run_go_on() -> None:
    assert tally_of(*[FAILING] * 20).halt is not None
    assert tally_of(*[FAILING] * 19).halt is None
    assert tally_of(*[FAILING] * 19, replace(GOOD, calls={"zoom": 1}), *[FAILING] * 40).halt is None
    none_called = replace(GOOD, calls={})
    assert tally_of(*[none_called] * 30).halt is None
    assert tally_of(*[none_called] * 30, *[FAILING] * 9).halt is None, "18 calls are few"
    assert tally_of(*[none_called] * 30, *[FAILING] * 10).halt is not None


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (SILENT, "have no answer"),
        (replace(GOOD, stop_reason="truncated"), "--max_tokens 2048"),
        (
            replace(GOOD, too_few_tokens="turn 1: 143, but at least 182"),
            "sample 0, turn 1: 143, but at least 182",
        ),
        (replace(GOOD, repeats_itself=True), "the same again and again"),
    ],
)
def test_a_few_odd_samples_are_no_warning_and_a_fifth_is(odd: TraceSummary, words: str) -> None:
    assert tally_of(*[GOOD] * 20).warnings() == []
    assert tally_of(odd, odd, *[GOOD] * 3).warnings() == [], "two may be an accident"
    assert tally_of(*[odd] * 3, *[GOOD] * 17).warnings() == []
    (warning,) = tally_of(*[odd] * 4, *[GOOD] * 16).warnings()
    assert words in warning and "4 of 20 samples" in warning
    (warning,) = tally_of(odd).warnings()
    assert "1 of 1 sample " in warning, "of the smallest run it is all that is known"


def test_short_replies_that_are_the_same_now_and_then_are_no_warning() -> None:
    said = [replace(GOOD, final_text=f"text {number}") for number in range(11)]
    same = [replace(GOOD, final_text="the same")] * 10
    assert tally_of(*same, *said).warnings() == []
    (warning,) = tally_of(*same, *said[:10]).warnings()
    assert "10 of 20 samples end with the same reply (“the same”)" in warning
    assert tally_of(*[GOOD] * 20).warnings() == [], "an empty text says nothing"


def test_a_long_run_remembers_few_texts_and_finds_the_repeated_one() -> None:
    tally = Tally(2048, 10)
    for number in range(8000):
        tally.add(replace(GOOD, final_text="the same" if number % 2 else f"text {number}"))
    (warning,) = tally.warnings()
    assert "4000 of 8000 samples" in warning
    assert len(tally._texts) <= 1025


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("truncated", "--max_tokens"),
        ("max_turns", "--max_turns"),
        ("refused", "content filter"),
        ("context_overflow", "--image_max_pixels"),
        ("answered", "form of the answer"),
    ],
)
def test_the_likely_cause_is_what_most_samples_have_in_common(reason: str, words: str) -> None:
    silent = replace(SILENT, stop_reason=reason)
    halt = tally_of(*[silent] * 15, *[replace(SILENT, stop_reason="other")] * 5).halt
    assert halt is not None and words in halt


@given(st.lists(st.sampled_from([GOOD, SILENT, FAILING, replace(SILENT, stop_reason="truncated"),
                                 replace(GOOD, too_few_tokens="turn 2: 5, but at least 9", final_text="x")]),
                max_size=40).flatmap(lambda signs: st.tuples(st.just(signs), st.permutations(range(len(signs))))))  # fmt: skip
def test_warnings_do_not_depend_on_the_order_in_which_samples_end(
    drawn: tuple[list[TraceSummary], list[int]],
) -> None:
    signs = [replace(each, sample_id=SampleId(index)) for index, each in enumerate(drawn[0])]
    in_order, shuffled = Tally(2048, 10), Tally(2048, 10)
    for index, each in enumerate(signs):
        in_order.add(each)
        shuffled.add(signs[drawn[1][index]])
    assert in_order.warnings() == shuffled.warnings()


@pytest.mark.parametrize(
    ("texts_sent", "pictures", "tokens"),
    [([], [(640, 480)], 64), ([], [(4000, 3000)], 64), ([], [(56, 56)], 1), ([], [(28, 28)], 0),
     (["a" * 50], [], 10), (["a" * 50, " " * 999], [(96, 96), (640, 480)], 10 + 4 + 64)],
)  # fmt: skip
def test_the_fewest_tokens_are_below_what_any_teacher_takes(
    texts_sent: list[str], pictures: list[tuple[int, int]], tokens: int
) -> None:
    assert fewest_prompt_tokens(texts_sent, pictures) == tokens
