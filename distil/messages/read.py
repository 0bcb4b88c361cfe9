"""Reading a chat completion of any OpenAI-compatible server into a `Reply`.

Servers differ in where they put reasoning, in whether `content` may be null, in the type of a call's
arguments and in whether a call comes as a field or as text. All of that ends here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from distil.errors import TeacherError
from distil.messages.tags import split_thinking, text_outside, tool_call_bodies
from distil.records import Json, RawCall, Reply, ToolMode

_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
_MAX_QUOTED_CHARS = 200
_MAX_LEVELS = 64  # of what is kept: copying, writing and showing it all recurse, json.loads goes far deeper
_PERHAPS_UNCLEAN = re.compile(r"\\ud|NaN|Infinity")  # in JSON of ASCII alone
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
        raise TeacherError(f"the reply is not JSON: {quote(body.decode('utf-8', 'replace'))}") from None
    except (KeyError, IndexError, TypeError, AttributeError):
        raise TeacherError(f"the reply has no message: {quote(body.decode('utf-8', 'replace'))}") from None
    content, thought_parts = _content(message.get("content"))
    reasoning = _reasoning(message, content, thought_parts)
    reasoning_field = next(iter(reasoning), None)
    calls = tuple(_native_call(call) for call in native_calls)
    return Reply(
        content=content,
        reasoning=None if reasoning_field is None else reasoning[reasoning_field],
        reasoning_field=reasoning_field,
        finish_reason=_text_or_none(choice.get("finish_reason")),
        calls=calls or parse_text_calls(content),
        call_form=ToolMode.NATIVE if calls else ToolMode.TEXT,
        usage=_usage(completion),
        refusal=_text_or_none(message.get("refusal")),
        other_reasoning={place: text for place, text in reasoning.items() if place != reasoning_field},
        model=_text_or_none(completion.get("model")),
    )


def read_usage(body: bytes) -> dict[str, Json] | None:
    """The `usage` of a reply that cannot be used otherwise, None where it has none."""
    try:
        return _usage(json.loads(body))
    except (ValueError, RecursionError):
        return None


def _usage(completion: Json) -> dict[str, Json] | None:
    usage = completion.get("usage") if isinstance(completion, dict) else None
    return _clean_json(usage) if isinstance(usage, dict) and not _is_too_deep(usage) else None


def parse_text_calls(content: str) -> tuple[RawCall, ...]:
    """The `<tool_call>` calls of a text, in order; a call inside thinking is a thought, not a call."""
    text = text_outside(content, thinking=True, tool_calls=False)
    return tuple(_text_call(body) for _, _, body in tool_call_bodies(text))


def _text_call(body: str) -> RawCall:
    try:
        call = json.loads(body.strip(), strict=False)  # newlines inside code strings are common
    except (ValueError, RecursionError) as error:
        return RawCall("", body, problem=f"the tool call is not valid JSON ({error}): {quote(body)}")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return _kept_call("", call, None, f'the tool call needs "name" and "arguments": {quote(body)}')
    # Some models put the arguments beside the name instead of under "arguments".
    beside = {key: value for key, value in call.items() if key not in _CALL_KEYS}
    return _call(call["name"], call.get("arguments", call.get("parameters", beside)), None)


def _native_call(call: Json) -> RawCall:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return _kept_call("", call, None, _no_function(call))
    return _call(function["name"], function.get("arguments"), _text_or_none(call.get("id")))


def recalled_native_call(kept: RawCall, message: str) -> RawCall:
    """A native call as it was read, with its problem, from what a trace keeps of it.

    Arguments that are kept as text may have been text that is no JSON, or JSON that is a text: `message`,
    which the teacher got, tells which. Where it fits none (the call was one too many of its turn) the first
    reading that is kept with these arguments is given.
    """
    readings = _readings(kept.name, kept.arguments, kept.call_id)
    fitting = [call for call in readings if call.problem and message == f"Error: {call.problem}"]
    alike = [call for call in readings if call.arguments == kept.arguments]
    return (fitting or alike or readings)[0]


def _readings(name: str, arguments: Json, call_id: str | None) -> list[RawCall]:
    """Every call that is kept under this name with these arguments."""
    readings = [_call(name, arguments, call_id)]
    if isinstance(arguments, str):
        readings.append(_kept_call(name, arguments, call_id, _no_object(name, arguments)))
        readings.append(RawCall(name, arguments, call_id, _too_deep(name, arguments)))
    if not name:
        readings.append(_kept_call(name, arguments, call_id, _no_function(arguments)))
    return readings


def _call(name: str, arguments: Json, call_id: str | None) -> RawCall:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments, strict=False) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            problem = f"the arguments of {quote(name)} are not valid JSON ({error}): {quote(str(arguments))}"
            return RawCall(clean_text(name), clean_text(arguments), call_id, problem)
    if arguments is None:
        arguments = {}
    if isinstance(arguments, dict):
        return _kept_call(clean_text(name), arguments, call_id, None)
    return _kept_call(clean_text(name), arguments, call_id, _no_object(name, arguments))


def _kept_call(name: str, arguments: Json, call_id: str | None, problem: str | None) -> RawCall:
    """The call as it is kept; of arguments that are nested too deeply only their beginning, as text."""
    if not _is_too_deep(arguments):
        return RawCall(name, _clean_json(arguments), call_id, problem)
    beginning = quote(_outline(arguments))
    return RawCall(name, beginning, call_id, _too_deep(name, beginning))


def _no_function(call: Json) -> str:
    return f"the tool call names no function: {quote(_outline(call))}"


def _no_object(name: str, arguments: Json) -> str:
    return f"the arguments of {quote(name)} must be a JSON object: {quote(_outline(arguments))}"


def _too_deep(name: str, beginning: str) -> str:
    what = f"the arguments of {quote(name)} are" if name else "the tool call is"
    return f"{what} nested too deeply, more than {_MAX_LEVELS} levels: {beginning}"


def _is_too_deep(value: Json) -> bool:
    """Whether lists and objects lie in each other more than `_MAX_LEVELS` deep; found level by level."""
    level = _containers([value])
    for _ in range(_MAX_LEVELS):
        if not level:
            return False
        level = [inner for outer in level for inner in _containers(_items(outer))]
    return bool(level)


def _containers(values: Iterable[Json]) -> list[Json]:
    return [value for value in values if isinstance(value, (dict, list))]


def _items(container: Json) -> Iterable[Json]:
    return container.values() if isinstance(container, dict) else container


def _outline(value: Json) -> str:
    """The JSON of a value of any depth as it is kept, the deepest levels left out."""
    return json.dumps(_clean_json(_cut_off(value, _MAX_LEVELS)))


def _cut_off(value: Json, levels: int) -> Json:
    if not isinstance(value, (dict, list)):
        return value
    if levels == 0:
        return "…"
    if isinstance(value, dict):
        return {key: _cut_off(item, levels - 1) for key, item in value.items()}
    return [_cut_off(item, levels - 1) for item in value]


def _content(content: Json) -> tuple[str, list[str]]:
    """The text of a message and the thinking parts of a typed content list."""
    if isinstance(content, str):
        return clean_text(content), []
    if not isinstance(content, list):
        return "", []
    thoughts = [_thinking_part(part["thinking"]) for part in content if _is_thinking_part(part)]
    return _joined_texts(content), [thought for thought in thoughts if thought.strip()]


def _is_text_part(part: Json) -> bool:
    return isinstance(part, dict) and isinstance(part.get("text"), str)


def _is_thinking_part(part: Json) -> bool:
    return isinstance(part, dict) and not _is_text_part(part) and bool(part.get("thinking"))


def _joined_texts(parts: list[Json]) -> str:
    return "".join(clean_text(part["text"]) for part in parts if _is_text_part(part))


def _thinking_part(thinking: Json) -> str:
    """The text of a thinking part or field; Mistral puts a list of text parts where others put a string."""
    if isinstance(thinking, str):
        return clean_text(thinking)
    return _joined_texts(thinking) if isinstance(thinking, list) else ""


def _reasoning(message: Mapping[str, Json], content: str, parts: list[str]) -> dict[str, str]:
    """The reasoning by the place it stood in, what is the reply's own first; the same text only once."""
    found = {field: _thinking_part(message.get(field)) for field in _REASONING_FIELDS}
    found["content"] = "\n".join(parts) or split_thinking(content)[0]
    first_places = {text.strip(): place for place, text in reversed(found.items()) if text.strip()}
    return {place: text for place, text in found.items() if first_places.get(text.strip()) == place}


def clean_text(text: str) -> str:
    """The text with lone surrogates replaced: JSON may carry them, UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _clean_json(value: Json) -> Json:
    """The value with text that UTF-8 can carry and without NaN and infinity, which JSON lacks."""
    if not _PERHAPS_UNCLEAN.search(json.dumps(value)):
        return value
    text = json.dumps(value, ensure_ascii=False)
    return json.loads(clean_text(text), parse_constant=str)


def _text_or_none(value: Json) -> str | None:
    return clean_text(value) if isinstance(value, str) and value else None


def quote(text: str, max_chars: int = _MAX_QUOTED_CHARS) -> str:
    """The beginning of what someone wrote, on one line, for a message."""
    text = clean_text(" ".join(text.split()))
    return text if len(text) <= max_chars else text[:max_chars] + "…"
