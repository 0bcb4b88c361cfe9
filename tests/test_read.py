"""Reading replies: every form that a server was seen to send."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_teacher import calls, completion, says, text_call

from distil.errors import TeacherError
from distil.messages.read import parse_reply, parse_text_calls, read_usage, recalled_native_call
from distil.records import RawCall, Reply, ToolMode

BOX = {"bbox_2d": [1, 2, 3, 4]}


def read(body: Any) -> Reply:
    return parse_reply(json.dumps(body).encode())


def test_native_calls_keep_order_ids_and_arguments() -> None:
    reply = read(calls(("image_zoom_in_tool", BOX), ("image_rotate_tool", {"angle": 90})))
    assert [(call.name, call.arguments, call.call_id) for call in reply.calls] == [
        ("image_zoom_in_tool", BOX, "call-0"),
        ("image_rotate_tool", {"angle": 90}, "call-1"),
    ]
    assert reply.call_form is ToolMode.NATIVE
    assert reply.content == ""


def test_native_arguments_may_be_an_object_or_missing() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "t", "arguments": BOX}}
    bare = {"id": "b", "type": "function", "function": {"name": "t"}}
    reply = read(completion({"content": "", "tool_calls": [call, bare]}))
    assert [call.arguments for call in reply.calls] == [BOX, {}]


@pytest.mark.parametrize("arguments", ["{bad", "[1, 2]", '"text"', "3"])
def test_unreadable_native_arguments_are_a_problem_not_an_exception(arguments: str) -> None:
    (call,) = read(calls(("image_zoom_in_tool", arguments))).calls
    assert call.problem is not None and "image_zoom_in_tool" in call.problem


def test_text_calls_are_all_read_in_order() -> None:
    content = f"I look.\n{text_call('a', BOX)}\nand {text_call('b', {'angle': 1})}"
    reply = read(says(content))
    assert [(call.name, call.arguments) for call in reply.calls] == [("a", BOX), ("b", {"angle": 1})]
    assert reply.call_form is ToolMode.TEXT
    assert reply.content == content


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ('{"name": "t", "arguments": {"angle": 5}}', {"angle": 5}),
        ('{"name": "t", "arguments": "{\\"angle\\": 5}"}', {"angle": 5}),
        ('{"name": "t", "parameters": {"angle": 5}}', {"angle": 5}),
        ('{"name": "t", "code": "x = 1"}', {"code": "x = 1"}),
        ('{"name": "t", "arguments": {"code": "a\nb"}}', {"code": "a\nb"}),
        ('{"name": "t"}', {}),
    ],
)
def test_text_call_arguments_come_in_many_forms(body: str, arguments: Any) -> None:
    (call,) = parse_text_calls(f"<tool_call>{body}</tool_call>")
    assert (call.arguments, call.problem) == (arguments, None)


def test_a_text_call_without_its_closing_tag_is_read() -> None:
    (call,) = parse_text_calls('<tool_call>\n{"name": "t", "arguments": {"angle": 5}}\n')
    assert (call.name, call.problem) == ("t", None)


@pytest.mark.parametrize(
    "body", ["{broken", "[]", '{"arguments": {}}', "", '{"name": 3}', '{"name": "t", "arguments": [1]}']
)
def test_a_broken_text_call_is_a_problem_that_quotes_it(body: str) -> None:
    (call,) = parse_text_calls(f"<tool_call>{body}</tool_call>")
    assert call.problem is not None


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_is_kept_from_its_own_field(field: str) -> None:
    reply = read(says("done", **{field: "first I look"}))
    assert (reply.reasoning, reply.reasoning_field, reply.content) == ("first I look", field, "done")


@pytest.mark.parametrize("content", ["<think>I look</think>done", "I look</think>done"])
def test_reasoning_inside_the_content_is_kept(content: str) -> None:
    reply = read(says(content))
    assert (reply.reasoning, reply.reasoning_field, reply.content) == ("I look", "content", content)


def test_a_call_inside_thinking_is_a_thought() -> None:
    content = f"<think>{text_call('t', BOX)}</think>no call"
    assert read(says(content)).calls == ()
    assert read(says(content.removeprefix("<think>"))).calls == ()


def test_typed_content_parts_are_joined_and_their_thinking_kept() -> None:
    parts = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b"},
    ]
    reply = read(completion({"content": parts}))
    assert (reply.content, reply.reasoning) == ("ab", "hm")


def test_finish_reason_refusal_and_usage_are_kept() -> None:
    reply = read(completion({"content": None, "refusal": "no"}, "content_filter", usage=None))
    assert (reply.finish_reason, reply.refusal, reply.usage, reply.content) == (
        "content_filter",
        "no",
        None,
        "",
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{}]}',
        b'{"choices": [{"message": null}]}',
    ],
)
def test_a_body_without_a_message_is_a_teacher_error(body: bytes) -> None:
    with pytest.raises(TeacherError):
        parse_reply(body)


def test_lone_surrogates_and_nan_do_not_get_through() -> None:
    body = b'{"choices": [{"message": {"content": "a\\ud800b", "tool_calls": [{"function": {"name": "t", "arguments": {"angle": NaN}}}]}}]}'
    reply = parse_reply(body)
    json.dumps([reply.content, reply.calls[0].arguments], allow_nan=False).encode()
    reply.content.encode()


@given(st.text(max_size=300))
def test_any_text_is_read(content: str) -> None:
    reply = read(says(content))
    reply.content.encode()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(json_values, json_values)
def test_any_message_is_read_or_a_teacher_error(content: Any, tool_calls: Any) -> None:
    try:
        reply = read(completion({"content": content, "tool_calls": tool_calls}))
    except TeacherError:
        return
    assert isinstance(reply.content, str)


@pytest.mark.parametrize(
    "piece", ["<tool_call>", "<think>", "</think>", "<tool_call>{", "</tool_call>", "<think><tool_call>"]
)
def test_a_megabyte_of_tags_is_read_in_time(piece: str) -> None:
    started = time.monotonic()
    read(says(piece * (1_000_000 // len(piece))))
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "body", ['{"arguments": {"bbox_2d": [NaN, 1e999]}}', "[NaN]", '{"name": 5, "x": "\\ud800"}']
)
def test_what_a_malformed_call_held_can_be_written_to_a_trace(body: str) -> None:
    (call,) = parse_text_calls(f"<tool_call>{body}</tool_call>")
    assert call.problem is not None
    json.dumps([call.arguments, call.problem], allow_nan=False, ensure_ascii=False).encode()


def test_usage_can_be_written_to_a_trace() -> None:
    message = {
        "choices": [{"message": {"content": "x"}}],
        "usage": {"prompt_tokens": 3, "cost": float("nan")},
    }
    assert parse_reply(json.dumps(message).encode()).usage == {"prompt_tokens": 3, "cost": "NaN"}


def test_thinking_parts_may_hold_lists_of_text_parts() -> None:
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "x"},
    ]
    reply = parse_reply(json.dumps({"choices": [{"message": {"content": parts}}]}).encode())
    assert (reply.reasoning, reply.content) == ("hm", "x")


# --- nesting


def nested(levels: int) -> Any:
    """An object of so many levels."""
    value: Any = 1
    for _ in range(levels - 1):
        value = [value]
    return {"a": value}


def deep_text(levels: int) -> str:
    """The same as JSON, of any depth."""
    return '{"a":' + "[" * (levels - 1) + "1" + "]" * (levels - 1) + "}"


FORMS = {
    "native text": lambda deep: message(tool_calls=native(json.dumps(deep))),
    "native object": lambda deep: message(tool_calls=native(deep)),
    "native list": lambda deep: message(tool_calls=native(f"[{deep}]")),
    "odd entry": lambda deep: message(tool_calls=f"[{deep}]"),
    "text call": lambda deep: message(content=json.dumps(as_text(f'{{"name": "t", "arguments": {deep}}}'))),
    "beside the name": lambda deep: message(content=json.dumps(as_text(f'{{"name": "t", "b": {deep}}}'))),
    "no name": lambda deep: message(content=json.dumps(as_text(f'{{"b": {deep}}}'))),
}
PLACES = FORMS | {"content": lambda deep: message(content=deep), "usage": lambda deep: message(usage=deep)}


def native(arguments: str) -> str:
    """A native call, written by hand: json.dumps goes less deep than json.loads."""
    return f'[{{"id": "c", "function": {{"name": "t", "arguments": {arguments}}}}}]'


def as_text(body: str) -> str:
    return f"<tool_call>{body}</tool_call>"


def message(content: str = "null", tool_calls: str = "null", usage: str = "null") -> bytes:
    """A completion whose fields are JSON text."""
    fields = f'"content": {content}, "tool_calls": {tool_calls}'
    return f'{{"choices": [{{"message": {{{fields}}}}}], "usage": {usage}}}'.encode()


def assert_can_be_kept(reply: Reply) -> None:
    json.dumps(dataclasses.asdict(reply), ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("levels", [70, 300, 900])
def test_a_call_that_is_nested_too_deeply_is_a_problem_and_kept_as_short_text(form: str, levels: int) -> None:
    reply = parse_reply(FORMS[form](deep_text(levels)))
    (call,) = reply.calls
    assert call.problem is not None and "nested too deeply" in call.problem
    assert isinstance(call.arguments, str) and len(call.arguments) < 300
    assert len(call.problem) < 500
    assert_can_be_kept(reply)


def test_64_levels_are_kept_and_65_are_not() -> None:
    (kept,) = parse_reply(FORMS["native object"](deep_text(64))).calls
    assert (kept.arguments, kept.problem) == (nested(64), None)
    (refused,) = parse_reply(FORMS["native object"](deep_text(65))).calls
    assert refused.problem is not None and "more than 64 levels" in refused.problem


def test_usage_that_is_nested_too_deeply_is_none() -> None:
    assert parse_reply(message(usage=deep_text(900))).usage is None
    assert read_usage(message(usage=deep_text(900))) is None
    assert parse_reply(message(usage=deep_text(64))).usage == nested(64)


def test_thinking_inside_thinking_is_no_recursion() -> None:
    deep = '[{"thinking":' * 450 + '"x"' + "}]" * 450
    assert_can_be_kept(parse_reply(message(content=deep)))


@given(
    st.sampled_from(list(PLACES)),
    st.integers(0, 3000),
    st.sampled_from([("[", "]"), ('{"a":', "}"), ('[{"name":', "}]"), ('[{"thinking":', "}]")]),
    st.booleans(),
)
def test_any_nesting_is_read_or_a_teacher_error(
    place: str, levels: int, brackets: tuple[str, str], is_text: bool
) -> None:
    deep = brackets[0] * levels + "1" + brackets[1] * levels
    if is_text:
        deep = json.dumps(deep)
    try:
        reply = parse_reply(PLACES[place](deep))
    except TeacherError:
        return
    assert_can_be_kept(reply)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
argument_texts = (
    st.text(max_size=12)
    | values.map(json.dumps)
    | values.map(lambda value: json.dumps(json.dumps(value)))
    | st.integers(60, 70).map(lambda levels: "[" * levels + "]" * levels)
    | st.sampled_from(["null", "NaN", '"NaN"', "Infinity", "1e999", "{broken", '"{broken"', " ", "[NaN]"])
)
functions = st.fixed_dictionaries(
    {}, optional={"name": st.sampled_from(["", "zoom", "\ud800", "z" * 300]) | values, "arguments": argument_texts | values}
)  # fmt: skip


@given(functions.map(lambda function: {"id": "c", "function": function}) | values)
def test_a_native_call_is_read_again_from_what_a_trace_keeps_of_it(call: Any) -> None:
    reply = read(completion({"content": None, "tool_calls": [call]}))
    for read_call in reply.calls:
        kept = json.loads(json.dumps(read_call.arguments))
        message = "Success" if read_call.problem is None else f"Error: {read_call.problem}"
        recalled = recalled_native_call(RawCall(read_call.name, kept, read_call.call_id), message)
        assert recalled == read_call


@pytest.mark.parametrize(
    "call", [None, "x", {"id": "c", "function": {"name": "zoom", "arguments": "{broken"}}]
)
def test_a_call_past_the_last_that_is_run_is_recalled_with_the_arguments_it_was_kept_with(call: Any) -> None:
    (read_call,) = read(completion({"content": None, "tool_calls": [call]})).calls
    kept = RawCall(read_call.name, read_call.arguments, read_call.call_id)
    assert recalled_native_call(kept, "Error: one too many").arguments == read_call.arguments
