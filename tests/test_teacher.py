"""Asking a server: requests as sent, refusals told apart, the probe, model choice."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from builders import teacher_settings
from scripted_teacher import ScriptedTeacher, calls, is_probe, says, text_call

from distil.errors import RunHalted, TeacherError, TeacherRefused
from distil.pictures import Frame
from distil.records import Prompt, ToolMode
from distil.spending.budget import Budget
from distil.teacher.client import Teacher, TeacherSettings
from distil.teacher.models import ask_models
from distil.teacher.tool_mode import probe_tool_mode, recalled_probe
from distil.tools.base import BoxFrame
from distil.tools.toolbox import load_tools

SCHEMAS = tuple(tool.schema(BoxFrame(Frame.PIXEL)) for tool in load_tools("zoom,rotate"))
MESSAGES = [
    b'{"role": "system", "content": "s"}',
    b'{"role": "user", "content": [{"type": "text", "text": "q"}]}',
]
PROMPT = Prompt("s", "u", SCHEMAS)
KEY = "sk-test-0123456789"


def settings(api_base: str, **changes: Any) -> TeacherSettings:
    return teacher_settings(
        api_base, KEY, **{"model": "m", "max_retries": 0, "timeout_seconds": 20} | changes
    )


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_request_carries_messages_fields_key_and_tools() -> None:
    with (
        ScriptedTeacher(lambda _: says("hi")) as server,
        Teacher(settings(server.api_base), SCHEMAS) as teacher,
    ):
        assert teacher.ask(MESSAGES, seed=7).content == "hi"
    (request,) = server.requests
    assert request["messages"] == [json.loads(message) for message in MESSAGES]
    assert (request["model"], request["seed"], request["temperature"], request["max_tokens"]) == (
        "m",
        7,
        0.7,
        2048,
    )
    assert request["tools"] == list(SCHEMAS)
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


def test_no_tools_means_no_tools_field() -> None:
    with ScriptedTeacher(lambda _: says("hi")) as server, Teacher(settings(server.api_base)) as teacher:
        teacher.ask(MESSAGES, seed=0)
    assert "tools" not in server.requests[0]


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (
            "max_tokens",
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'.",
        ),
        ("temperature", "Unsupported value: 'temperature' does not support 0.7 with this model."),
        ("seed", 'Unknown name "seed": cannot find field.'),
    ],
)
def test_a_field_that_the_server_refuses_by_name_is_left_out_from_then_on(field: str, message: str) -> None:
    def script(request: dict[str, Any]) -> Any:
        return (400, {"error": {"message": message}}) if field in request else says("hi")

    with (
        ScriptedTeacher(script) as server,
        Teacher(settings(server.api_base, may_adapt=True)) as teacher,
    ):
        assert teacher.ask(MESSAGES, seed=0).content == "hi"
        assert teacher.ask(MESSAGES, seed=1).content == "hi"
    assert [field in request for request in server.requests] == [True, False, False]
    if field == "max_tokens":
        assert server.requests[-1]["max_completion_tokens"] == 2048


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_of_every_request_is_told_apart(status: int) -> None:
    script = lambda _: (status, {"error": {"message": f"bad key {KEY}"}})
    with ScriptedTeacher(script) as server, Teacher(settings(server.api_base)) as teacher:
        with pytest.raises(TeacherRefused, match=str(status)) as caught:
            teacher.ask(MESSAGES, seed=0)
    assert KEY not in str(caught.value)
    assert len(server.requests) == 1


def test_a_moderated_picture_is_an_error_of_its_sample() -> None:
    error = {"message": 'openai/gpt-4o requires moderation on OpenAI. Your input was flagged for "violence".'}
    with (
        ScriptedTeacher(lambda _: (403, {"error": error})) as server,
        Teacher(settings(server.api_base)) as teacher,
        pytest.raises(TeacherError) as caught,
    ):
        teacher.ask(MESSAGES, seed=0)
    assert not isinstance(caught.value, TeacherRefused)
    assert (caught.value.status, len(server.requests)) == (403, 1)


@pytest.mark.parametrize(
    ("status", "error"),
    [(402, {"message": "pay"}), (429, {"message": "no credit", "code": "insufficient_quota"})],
)
def test_an_account_without_credit_stops_the_run_at_once(status: int, error: dict[str, str]) -> None:
    with (
        ScriptedTeacher(lambda _: (status, {"error": error})) as server,
        Teacher(settings(server.api_base)) as teacher,
    ):
        with pytest.raises(TeacherRefused):
            teacher.ask(MESSAGES, seed=0)
    assert len(server.requests) == 1


def test_a_bad_request_is_an_error_of_its_sample() -> None:
    script = lambda _: (400, {"error": {"message": "context too long"}})
    with ScriptedTeacher(script) as server, Teacher(settings(server.api_base)) as teacher:
        with pytest.raises(TeacherError, match="context too long") as caught:
            teacher.ask(MESSAGES, seed=0)
    assert not isinstance(caught.value, TeacherRefused)
    assert len(server.requests) == 1


def test_a_passing_server_error_is_retried() -> None:
    answers = [(503, {"error": {"message": "busy"}}), says("hi")]
    with ScriptedTeacher(lambda _: answers.pop(0)) as server:
        with Teacher(settings(server.api_base, max_retries=2, first_pause_seconds=0.01)) as teacher:
            assert teacher.ask(MESSAGES, seed=0).content == "hi"


def test_no_server_is_one_clear_error() -> None:
    nowhere = settings(f"http://127.0.0.1:{closed_port()}/v1")
    with Teacher(nowhere) as teacher, pytest.raises(TeacherError, match="no reply from"):
        teacher.ask(MESSAGES, seed=0)
    with pytest.raises(TeacherRefused, match="no reply from"):
        ask_models(nowhere)


def test_a_closed_teacher_asks_no_more() -> None:
    with ScriptedTeacher(lambda _: says("hi")) as server:
        teacher = Teacher(settings(server.api_base))
        teacher.close()
        with pytest.raises(RunHalted):
            teacher.ask(MESSAGES, seed=0)
    assert server.requests == []


def test_loopback_is_never_asked_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port()}")
    with ScriptedTeacher(lambda _: says("hi")) as server, Teacher(settings(server.api_base)) as teacher:
        assert teacher.ask(MESSAGES, seed=0).content == "hi"


def test_models_are_listed() -> None:
    with ScriptedTeacher(lambda _: says("hi"), models=("a", "b")) as server:
        assert ask_models(settings(server.api_base)) == (("a", "b"), None)


def test_the_probe_finds_native_calls() -> None:
    script = lambda request: calls((request["tools"][0]["function"]["name"], {}))
    with ScriptedTeacher(script) as server:
        result = probe_tool_mode(settings(server.api_base), PROMPT, Budget())
    assert result.tool_mode is ToolMode.NATIVE
    assert is_probe(server.requests[0])
    assert len(server.requests) == 1


def test_what_a_probe_found_is_recalled_for_the_same_model_at_the_same_address() -> None:
    def script(request: dict[str, Any]) -> Any:
        if "seed" in request:
            return 400, {"error": {"message": "seed is not supported"}}
        return says("no call")

    with ScriptedTeacher(script) as server:
        found = probe_tool_mode(settings(server.api_base), PROMPT, Budget())
    recalled = recalled_probe(settings(server.api_base), json.loads(json.dumps(found.as_dict())))
    assert recalled is not None and not recalled.settings.sends_seed
    assert (recalled.tool_mode, recalled.reason) == (ToolMode.TEXT, found.reason)
    for other in ({"model": "b"}, {"api_base": "http://127.0.0.1:1/v1"}, {"tool_mode": "telepathy"}):
        assert recalled_probe(settings(server.api_base), found.as_dict() | other) is None
    assert recalled_probe(settings(server.api_base), {}) is None


def test_the_probe_takes_text_where_calls_pass_through_as_text() -> None:
    with ScriptedTeacher(lambda _: says(text_call("image_zoom_in_tool", {}))) as server:
        assert probe_tool_mode(settings(server.api_base), PROMPT, Budget()).tool_mode is ToolMode.TEXT


def test_the_probe_takes_text_where_no_call_comes() -> None:
    with ScriptedTeacher(lambda _: says("I cannot")) as server:
        assert probe_tool_mode(settings(server.api_base), PROMPT, Budget()).tool_mode is ToolMode.TEXT


def test_the_probe_takes_text_where_the_server_refuses_tools() -> None:
    def script(request: dict[str, Any]) -> Any:
        if "tools" in request:
            return 400, {"error": {"message": '"auto" tool choice requires --enable-auto-tool-choice'}}
        return says("ok")

    with ScriptedTeacher(script) as server:
        result = probe_tool_mode(settings(server.api_base), PROMPT, Budget())
    assert result.tool_mode is ToolMode.TEXT
    assert len(server.requests) == 2
    assert "<tools>" in server.requests[1]["messages"][0]["content"]


@pytest.mark.parametrize("status", [400, 401, 404, 500])
def test_the_probe_stops_where_nothing_can_be_asked(status: int) -> None:
    with ScriptedTeacher(lambda _: (status, {"error": {"message": "no"}})) as server:
        with pytest.raises(TeacherRefused):
            probe_tool_mode(settings(server.api_base), PROMPT, Budget())


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 429, 500, 502, 503])
def test_a_refused_request_is_free(status: int) -> None:
    budget = Budget()
    with ScriptedTeacher(lambda _: (status, {"error": {"message": "no"}})) as server:
        with Teacher(settings(server.api_base), budget=budget) as teacher, pytest.raises(TeacherError):
            teacher.ask(MESSAGES, seed=0)
    assert len(server.requests) == 1
    assert (budget.spent.refused, budget.spent.calls) == (1, 0)


@pytest.mark.parametrize("answer", [(408, {}), (504, {}), (200, b"<html>"), (200, b"")])
def test_a_request_that_the_server_may_have_worked_on_is_perhaps_billed(answer: tuple[int, Any]) -> None:
    budget = Budget()
    with ScriptedTeacher(lambda _: answer) as server:
        with Teacher(settings(server.api_base), budget=budget) as teacher, pytest.raises(TeacherError):
            teacher.ask(MESSAGES, seed=0)
    assert (budget.spent.refused, budget.spent.retried.requests) == (0, 1)


def test_a_request_that_did_not_connect_is_free() -> None:
    budget = Budget()
    nowhere = settings(f"http://127.0.0.1:{closed_port()}/v1")
    with Teacher(nowhere, budget=budget) as teacher, pytest.raises(TeacherError):
        teacher.ask(MESSAGES, seed=0)
    assert (budget.spent.refused, budget.spent.calls) == (1, 0)
