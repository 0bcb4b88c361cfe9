"""What a teacher wrote is kept, whatever form it has and however its turn ended."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conversations import Bench
from scripted_teacher import calls, completion, says, text_call

from distil.commands.flags import ViewFlags
from distil.errors import FolderError, TeacherError
from distil.messages.read import parse_reply
from distil.records import Outcome, SampleId
from distil.replay.replay import Sources
from distil.replay.verify import Verdict, verify_trace
from distil.store.trace_file import json_sha256, read_trace
from distil.terminal.terminal import Terminal
from distil.terminal.traces import view

ZOOM = ("image_zoom_in_tool", {"bbox_2d": [100, 100, 600, 600]})
ROTATE = ("image_rotate_tool", {"angle": 90})
CODE = "python_code_tool"
ANSWER = says("\\boxed{1, 2}")


@pytest.fixture(scope="module")
def bench(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Bench(photos, tmp_path_factory.mktemp("bench")) as bench:
        yield bench


def body(reply: Any) -> bytes:
    return json.dumps(reply).encode()


def solved(bench: Bench, *replies: Any, flags: tuple[str, ...] = ("--tool_mode", "native")) -> dict[str, Any]:
    """The checked trace of row 0."""
    run = bench.run_with(*flags)
    outcome, asked = bench.solve(run, 0, [body(reply) for reply in replies])
    assert isinstance(outcome, Outcome) and outcome.failure is None, outcome
    return bench.check_trace(run.folder.trace_path(SampleId(0)), asked)


def shown(path: Path) -> str:
    printed = io.StringIO()
    view(path, ViewFlags(verbose=True), Terminal(printed, width=150))
    return printed.getvalue()


# --- a turn that was cut off


def cut_off(reason: str, form: str) -> dict[str, Any]:
    if form == "native":
        reply = calls(ZOOM, ("image_rotate_tool", '{"angle": 9'), content="I look")
        reply["choices"][0]["finish_reason"] = reason
        return reply
    return says(f"I look {text_call(*ZOOM)} <tool_call>{{", finish_reason=reason)


@pytest.mark.parametrize("form", ["native", "text"])
@pytest.mark.parametrize(("reason", "stop"), [("length", "truncated"), ("content_filter", "refused")])
@pytest.mark.parametrize("turns_before", [0, 2])
def test_a_turn_that_was_cut_off_in_a_call_ends_the_sample_with_a_trace(
    reason: str, stop: str, form: str, turns_before: int, bench: Bench
) -> None:
    trace = solved(bench, *[calls(ROTATE)] * turns_before, cut_off(reason, form))
    assert trace["metadata"]["stop_reason"] == stop
    assert trace["metadata"]["answer"] is None
    assert len(trace["tool_calls_log"]) == turns_before
    last = trace["conversation_log"][-1]
    assert last["call_form"] == form
    assert last["calls_not_run"][0]["name"] == ZOOM[0]
    assert last["calls_not_run"][0]["arguments"] == ZOOM[1]
    assert len(last["calls_not_run"]) == 2
    assert [call.get("call_id") for call in last["calls_not_run"]] == (
        ["call-0", "call-1"] if form == "native" else [None, None]
    )


def test_a_journal_that_ends_in_a_cut_off_call_is_gone_on_with(bench: Bench) -> None:
    run = bench.run_with("--tool_mode", "native")
    replies = [body(calls(ZOOM)), body(cut_off("length", "native"))]
    path = run.folder.trace_path(SampleId(0))
    path.mkdir()  # nothing can be written there: all is paid for, and no trace
    outcome, _ = bench.solve(run, 0, replies)
    assert isinstance(outcome, FolderError)
    path.rmdir()
    journal = run.folder.path / "journal" / "00001.jsonl"
    earlier = journal.read_bytes().replace(b', "other_reasoning": {}', b"")  # as an earlier version wrote it
    journal.write_bytes(earlier)
    assert b"other_reasoning" not in earlier
    run = bench.reopened(run)
    outcome, asked = bench.solve(run, 0, replies)
    assert isinstance(outcome, Outcome) and outcome.failure is None, outcome
    assert asked.requests == []
    assert json.loads(path.read_bytes())["metadata"]["stop_reason"] == "truncated"


def test_a_cut_off_call_is_shown_as_not_run(bench: Bench) -> None:
    run = bench.run_with("--tool_mode", "native")
    bench.solve(run, 0, [body(cut_off("length", "native"))])
    assert f"not run: {ZOOM[0]}" in shown(run.folder.trace_path(SampleId(0)))


# --- arguments


@pytest.mark.parametrize("name", [CODE, ROTATE[0], ZOOM[0], "no_such_tool", ""])
@pytest.mark.parametrize(
    "arguments", [{"code": None}, {"code": None, "x": 1}, {}, None, [], "code", {"code": 1}, {"code": {}}]
)
@pytest.mark.parametrize("mode", ["native", "text"])
def test_a_failed_calls_arguments_are_kept_as_they_were_written(
    name: str, arguments: Any, mode: str, bench: Bench
) -> None:
    call = (name, arguments)
    reply = calls(call) if mode == "native" else says(text_call(*call))
    trace = solved(bench, reply, ANSWER, flags=("--tool_mode", mode))
    (entry,) = trace["tool_calls_log"]
    assert not entry["success"]
    assert entry["raw_arguments"] == (arguments or {} if arguments in (None, {}) else arguments)
    assert entry["tool_arguments"] == {}


def test_native_calls_that_the_text_repeats_are_no_text_calls(bench: Bench) -> None:
    reply = calls(ROTATE, content=text_call(*ROTATE))
    reply["choices"][0]["finish_reason"] = "content_filter"
    del reply["choices"][0]["message"]["tool_calls"][0]["id"]
    assert solved(bench, reply)["conversation_log"][0]["call_form"] == "native"


def test_an_earlier_trace_that_lost_code_null_is_read(bench: Bench) -> None:
    run = bench.run_with("--tool_mode", "native")
    bench.solve(run, 0, [body(calls((CODE, {"code": None}))), body(ANSWER)])
    path = run.folder.trace_path(SampleId(0))
    trace = json.loads(path.read_bytes())
    del trace["tool_calls_log"][0]["raw_arguments"], trace["integrity_sha256"]
    trace["integrity_sha256"] = json_sha256(trace)
    path.write_text(json.dumps(trace))
    assert read_trace(path).calls[0].raw.arguments == {"code": None}
    found = verify_trace(path, Sources(), bench.executors)
    assert (found.verdict, "raw_arguments" in found.detail) == (Verdict.INCONSISTENT, True)  # as it is


# --- what is written is read back


@pytest.mark.parametrize("bad", [float("nan"), "\ud800", "a call without its fields"])
def test_a_trace_that_could_not_be_read_is_not_written_and_nothing_is_lost(
    bad: Any, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = bench.run_with("--tool_mode", "native")
    replies = [body(calls(ROTATE)), body(ANSWER)]

    def spoiled(*arguments: Any) -> dict[str, Any]:
        trace = sound(*arguments)
        if bad == "a call without its fields":
            del trace["tool_calls_log"][0]["tool_arguments"]
        else:
            trace["sample_data"]["city"] = bad
        trace.pop("integrity_sha256")
        return {**trace, "integrity_sha256": json_sha256(trace)}

    from distil.store import folder as store  # noqa: PLC0415

    sound = store.trace_json
    with monkeypatch.context() as patch:
        patch.setattr(store, "trace_json", spoiled)
        outcome, _ = bench.solve(run, 0, replies)
    assert isinstance(outcome, Outcome) and outcome.failure is not None
    assert outcome.failure.kind == "trace", outcome.failure
    assert not run.folder.trace_path(SampleId(0)).exists()
    assert run.folder.finished([SampleId(0)]) == set()
    assert run.folder.write_failure(outcome.failure).turns_spent == 2
    outcome, asked = bench.solve(run, 0, replies)
    assert isinstance(outcome, Outcome) and outcome.failure is None, outcome
    assert asked.requests == []


# --- reasoning


@pytest.mark.parametrize(
    ("message", "reasoning", "others"),
    [
        ({"reasoning": "a", "reasoning_content": "b"}, ("b", "reasoning_content"), {"reasoning": "a"}),
        ({"reasoning": "a", "reasoning_content": " a\n"}, (" a\n", "reasoning_content"), None),
        (
            {"reasoning": "a", "thinking": "c", "reasoning_content": "b"},
            ("b", "reasoning_content"),
            {"reasoning": "a", "thinking": "c"},
        ),
        ({"reasoning": "a", "thinking": "a"}, ("a", "reasoning"), None),
        ({"reasoning": "a", "content": "<think>b</think>x"}, ("a", "reasoning"), {"content": "b"}),
        ({"reasoning": "b", "content": "<think>b</think>x"}, ("b", "reasoning"), None),
        (
            {"reasoning": "a", "content": [{"type": "thinking", "thinking": "b"}, {"text": "x"}]},
            ("a", "reasoning"),
            {"content": "b"},
        ),
        ({"reasoning": "", "thinking": "c"}, ("c", "thinking"), None),
        ({"reasoning": [{"type": "text", "text": "a"}]}, ("a", "reasoning"), None),
        ({"content": "x"}, (None, None), None),
    ],
)
def test_reasoning_of_every_place_is_kept_once(
    message: dict[str, Any], reasoning: tuple[str | None, str | None], others: Any, bench: Bench
) -> None:
    (turn,) = solved(bench, completion({"content": "x"} | message))["conversation_log"]
    assert (turn["reasoning"], turn["reasoning_field"]) == reasoning
    assert turn.get("other_reasoning") == others


def test_all_reasoning_is_shown(bench: Bench) -> None:
    run = bench.run_with("--tool_mode", "native")
    bench.solve(run, 0, [body(says("x", reasoning="I see a sign.", reasoning_content="I see a church."))])
    text = shown(run.folder.trace_path(SampleId(0)))
    assert "I see a sign." in text and "I see a church." in text
    assert text.index("I see a church.") < text.index("I see a sign.")


def test_all_reasoning_comes_back_from_the_journal(bench: Bench) -> None:
    run = bench.run_with("--tool_mode", "native")
    replies = [body(calls(ZOOM, reasoning="a", reasoning_content="b")), body(ANSWER)]
    outcome, _ = bench.solve(run, 0, replies, {2: TeacherError("gone")})
    assert isinstance(outcome, Outcome) and outcome.failure is not None
    bench.solve(run, 0, replies)
    turn = json.loads(run.folder.trace_path(SampleId(0)).read_bytes())["conversation_log"][0]
    assert (turn["reasoning"], turn["other_reasoning"]) == ("b", {"reasoning": "a"})
    assert parse_reply(replies[0]).other_reasoning == {"reasoning": "a"}


# --- usage

FAR, LONGEST = 10**400, 9 * 10**4299  # of the latter two are too long to be written as text


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": FAR, "completion_tokens": FAR, "total_tokens": FAR},
        {"prompt_tokens": 1, "completion_tokens": FAR},
        {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": FAR},
        {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": FAR}},
        {"prompt_tokens": True, "completion_tokens": -1},
        {"prompt_tokens": LONGEST, "completion_tokens": LONGEST},
    ],
)
def test_a_count_that_cannot_be_one_is_kept_and_never_added_up(usage: dict[str, Any], bench: Bench) -> None:
    run = bench.run_with("--tool_mode", "native")
    outcome, asked = bench.solve(
        run, 0, [body(reply | {"usage": usage}) for reply in (calls(ROTATE), says("x"))]
    )
    assert isinstance(outcome, Outcome) and outcome.failure is None, outcome
    trace = bench.check_trace(run.folder.trace_path(SampleId(0)), asked)
    assert trace["conversation_log"][0]["usage"] == usage
    assert asked.budget.spent.answered.tokens.known <= 4
    assert all((total or 0) <= 2 for total in trace["metadata"]["tokens"].values())
