"""Reading a chat completion of any OpenAI-compatible server into a `Reply`.

Servers differ in where they put reasoning, in whether `content` may be null, in the type of a call's
arguments and in whether a call comes as a field or as text. All of that ends here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from distil.errors import TeacherError
from distil.records import Json, RawCall, Reply, ToolMode
from distil.spans import split_thinking, text_outside, tool_call_bodies

_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
_MAX_QUOTED_CHARS = 200
_CALL_KEYS = ("name", "arguments", "parameters")


def parse_reply(body: bytes) -> Reply:
    """Read one chat completion; raises TeacherError where it holds no usable choice."""
    try:
        completion = json.loads(body)
        choice = completion["choices"][0]
        message = choice["message"]
        native_calls = message.get("tool_calls") or []
        if not isinstance(native_calls, list):
            raise TypeError
    except (ValueError, RecursionError):
        raise TeacherError(f"the reply is not JSON: {_quote(body.decode('utf-8', 'replace'))}") from None
    except (KeyError, IndexError, TypeError, AttributeError):
        raise TeacherError(f"the reply has no message: {_quote(body.decode('utf-8', 'replace'))}") from None
    content, thought_parts = _content(message.get("content"))
    reasoning, reasoning_field = _reasoning(message, content, thought_parts)
    calls = tuple(_native_call(call) for call in native_calls)
    return Reply(
        content=content,
        reasoning=reasoning,
        reasoning_field=reasoning_field,
        finish_reason=_text_or_none(choice.get("finish_reason")),
        calls=calls or parse_text_calls(content),
        call_form=ToolMode.NATIVE if calls else ToolMode.TEXT,
        usage=_usage(completion),
        refusal=_text_or_none(message.get("refusal")),
    )


def read_usage(body: bytes) -> dict[str, Json] | None:
    """The `usage` of a reply that cannot be used otherwise, None where it has none."""
    try:
        return _usage(json.loads(body))
    except (ValueError, RecursionError):
        return None


def _usage(completion: Json) -> dict[str, Json] | None:
    usage = completion.get("usage") if isinstance(completion, dict) else None
    return _clean_json(usage) if isinstance(usage, dict) else None


def parse_text_calls(content: str) -> tuple[RawCall, ...]:
    """The `<tool_call>` calls of a text, in order; a call inside thinking is a thought, not a call."""
    text = text_outside(content, thinking=True, tool_calls=False)
    return tuple(_text_call(body) for _, _, body in tool_call_bodies(text))


def _text_call(body: str) -> RawCall:
    try:
        call = json.loads(body.strip(), strict=False)  # newlines inside code strings are common
    except (ValueError, RecursionError) as error:
        return RawCall("", body, problem=f"the tool call is not valid JSON ({error}): {_quote(body)}")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return RawCall(
            "", _clean_json(call), problem=f'the tool call needs "name" and "arguments": {_quote(body)}'
        )
    # Some models put the arguments beside the name instead of under "arguments".
    beside = {key: value for key, value in call.items() if key not in _CALL_KEYS}
    return _call(call["name"], call.get("arguments", call.get("parameters", beside)), None)


def _native_call(call: Json) -> RawCall:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return RawCall(
            "", _clean_json(call), problem=f"the tool call names no function: {_quote(json.dumps(call))}"
        )
    return _call(function["name"], function.get("arguments"), _text_or_none(call.get("id")))


def _call(name: str, arguments: Json, call_id: str | None) -> RawCall:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments, strict=False) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            problem = (
                f"the arguments of {_quote(name)} are not valid JSON ({error}): {_quote(str(arguments))}"
            )
            return RawCall(clean_text(name), clean_text(arguments), call_id, problem)
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        problem = f"the arguments of {_quote(name)} must be a JSON object: {_quote(json.dumps(arguments))}"
        return RawCall(clean_text(name), _clean_json(arguments), call_id, problem)
    return RawCall(clean_text(name), _clean_json(arguments), call_id)


def _content(content: Json) -> tuple[str, list[str]]:
    """The text of a message and the thinking parts of a typed content list."""
    if isinstance(content, str):
        return clean_text(content), []
    if not isinstance(content, list):
        return "", []
    texts, thoughts = [], []
    for part in content:
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            texts.append(clean_text(part["text"]))
        elif isinstance(part, dict) and part.get("thinking"):
            thoughts.append(_thinking_part(part["thinking"]))
    return "".join(texts), [thought for thought in thoughts if thought.strip()]


def _thinking_part(thinking: Json) -> str:
    """A thinking part's text; Mistral puts a list of text parts where others put a string."""
    return clean_text(thinking) if isinstance(thinking, str) else _content(thinking)[0]


def _reasoning(message: Mapping[str, Json], content: str, parts: list[str]) -> tuple[str | None, str | None]:
    for field in _REASONING_FIELDS:
        value = message.get(field)
        if isinstance(value, str) and value.strip():
            return clean_text(value), field
    thinking = "\n".join(parts) or split_thinking(content)[0]
    return (thinking, "content") if thinking else (None, None)


def clean_text(text: str) -> str:
    """The text with lone surrogates replaced: JSON may carry them, UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _clean_json(value: Json) -> Json:
    """The value with text that UTF-8 can carry and without NaN and infinity, which JSON lacks."""
    text = json.dumps(value, ensure_ascii=False)
    return json.loads(clean_text(text), parse_constant=str)


def _text_or_none(value: Json) -> str | None:
    return clean_text(value) if isinstance(value, str) and value else None


def _quote(text: str) -> str:
    text = clean_text(" ".join(text.split()))
    return text if len(text) <= _MAX_QUOTED_CHARS else text[:_MAX_QUOTED_CHARS] + "…"
