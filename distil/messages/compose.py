"""The messages a teacher sees, built from records alone: a rollout and a replay get the same bytes.

The two portable forms of field practice: native calls are answered by one `tool` message per call id
and then one user message with the new pictures; text calls by one user message of `<tool_response>`
blocks with the pictures in place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from distil.pictures import data_url
from distil.records import Json, Observation, Prompt, RawCall, SentPicture, Size, ToolCall, ToolMode, Turn

Message = dict[str, Json]
_EMPTY_PICTURE = '"image_url": {"url": ""}'

# The tools block of the Qwen2.5-VL and Qwen3-VL chat templates, so that text traces render as they do.
_TOOLS_BLOCK = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{schemas}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def opening_messages(prompt: Prompt, sent: SentPicture) -> list[Message]:
    """The system message and the user message with the picture in front of the question."""
    question = prompt.user
    if prompt.states_size:
        question += f"\n\n{size_sentence(sent.size)}"
    return [
        {"role": "system", "content": system_text(prompt)},
        {"role": "user", "content": [_picture_part(sent), _text_part(question)]},
    ]


def size_sentence(size: Size) -> str:
    """What states the photo's size, in pixels as sent."""
    return f"The image is {size[0]}×{size[1]} pixels (width × height)."


def encoded(message: Message) -> bytes:
    """The message's JSON; pictures are copied into it instead of searched for characters to escape."""
    urls: list[str] = []
    text = json.dumps(_without_urls(message, urls))
    parts = text.split(_EMPTY_PICTURE)  # a text could only hold it with its quotes escaped
    pieces = [parts[0].encode()]
    for url, part in zip(urls, parts[1:], strict=True):
        pieces += [_EMPTY_PICTURE[:-2].encode(), url.encode(), b'"}', part.encode()]
    return b"".join(pieces)


def _without_urls(message: Message, urls: list[str]) -> Message:
    """The message with empty pictures, whose URLs are added to `urls`."""
    content = message["content"]
    if not isinstance(content, list):
        return message
    is_picture = [part["type"] == "image_url" for part in content]
    urls += [part["image_url"]["url"] for part, is_one in zip(content, is_picture, strict=True) if is_one]
    emptied = [
        part | {"image_url": {"url": ""}} if is_one else part
        for part, is_one in zip(content, is_picture, strict=True)
    ]
    return message | {"content": emptied}


def system_text(prompt: Prompt) -> str:
    """The system prompt; in text mode the description of the tools follows it."""
    if prompt.tool_mode is not ToolMode.TEXT or not prompt.tools:
        return prompt.system
    schemas = "\n".join(json.dumps(schema, ensure_ascii=False) for schema in prompt.tools)
    return f"{prompt.system}\n\n{_TOOLS_BLOCK.format(schemas=schemas)}"


def turn_messages(turn: Turn) -> list[Message]:
    """The teacher's own turn and the answers to its calls, as the next request carries them.

    Of a turn that was cut off in its native calls only the text is left: no request could carry calls that
    nothing answers.
    """
    if turn.reply.call_form is ToolMode.NATIVE and turn.calls:
        return [_native_assistant(turn), *_native_results(turn)]
    assistant = {"role": "assistant", "content": turn.reply.content}
    return [assistant, *_text_results(turn.calls)]


def call_ids(number: int, calls: Sequence[RawCall]) -> list[str]:
    """The ids that a turn's native calls are answered under: the server's where they can be used."""
    given = [call.call_id for call in calls]
    if all(given) and len(set(given)) == len(given):
        return [str(call_id) for call_id in given]
    return [f"call_{number}_{position}" for position in range(1, len(given) + 1)]


def _native_assistant(turn: Turn) -> Message:
    ids = call_ids(turn.number, turn.reply.calls)
    return {
        "role": "assistant",
        "content": turn.reply.content or None,
        "tool_calls": [
            {"id": call_id, "type": "function", "function": _native_function(call)}
            for call_id, call in zip(ids, turn.reply.calls, strict=True)
        ],
    }


def _native_function(call: RawCall) -> Json:
    # Servers parse the history's arguments again and refuse the whole request where they are not an
    # object; the tool message quotes what the teacher really wrote.
    arguments = call.arguments if isinstance(call.arguments, dict) else {}
    name = re.sub(r"[^A-Za-z0-9_-]", "_", call.name)[:64] or "unnamed"
    return {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}


def _native_results(turn: Turn) -> list[Message]:
    ids = call_ids(turn.number, turn.reply.calls)
    results: list[Message] = [
        {"role": "tool", "tool_call_id": call_id, "content": observation_text(call.observation)}
        for call_id, call in zip(ids, turn.calls, strict=True)
    ]
    pictures = [_picture_part(call.observation.sent) for call in turn.calls if call.observation.sent]
    return [*results, {"role": "user", "content": pictures}] if pictures else results


def _text_results(calls: Sequence[ToolCall]) -> list[Message]:
    if not calls:
        return []
    parts: list[Json] = []
    for call in calls:
        parts += _tool_response(call)
    return [{"role": "user", "content": parts}]


def _tool_response(call: ToolCall) -> list[Json]:
    observation = call.observation
    if observation.sent is None:
        return [_text_part(f"<tool_response>\n{observation_text(observation)}\n</tool_response>")]
    return [
        _text_part("<tool_response>\n"),
        _picture_part(observation.sent),
        _text_part(f"\n{observation_text(observation)}\n</tool_response>"),
    ]


def observation_text(observation: Observation) -> str:
    """What the teacher reads of a call's result: the message and what its code printed."""
    if not observation.stdout:
        return observation.message
    return f"{observation.message}\nOutput:\n{observation.stdout.rstrip()}"


def _text_part(text: str) -> Json:
    return {"type": "text", "text": text}


def _picture_part(sent: SentPicture) -> Json:
    return {"type": "image_url", "image_url": {"url": data_url(sent)}}
