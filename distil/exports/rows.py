"""Rows in the two shapes that most formats share: string contents with placeholders, and typed parts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from distil.exports.conversation import Call, Conversation, Message, Result, Turn
from distil.exports.escape import escaped_json
from distil.records import Json

PLACEHOLDER = "<image>"


def string_messages(conversation: Conversation) -> list[dict[str, Json]]:
    """Messages of plain texts; an assistant's says whether it is trained."""
    return [
        _with_loss({"role": message.role, "content": message.text(PLACEHOLDER)}, message.is_trained)
        for message in conversation.messages()
    ]


def typed_messages(conversation: Conversation) -> list[dict[str, Json]]:
    """Messages of typed parts, which say where a picture stands but do not hold it."""
    return [
        _with_loss({"role": message.role, "content": typed_parts(message)}, message.is_trained)
        for message in conversation.messages()
    ]


def typed_parts(message: Message) -> list[dict[str, Json]]:
    """The parts of a message; each has the same keys, for Arrow gives them to it anyway."""
    return [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "text": None}
        for part in message.parts
    ]


def result_text(result: Result) -> str:
    """A result as one text with a placeholder, without the tags around it."""
    return f"{PLACEHOLDER}\n{result.text}" if result.picture is not None else result.text


def joined_results(turn: Turn) -> str:
    """All results of a turn as the content of one message, around which a template sets the outer tags."""
    return "\n</tool_response>\n<tool_response>\n".join(map(result_text, turn.results))


def function(call: Call) -> dict[str, Json]:
    """A call as the OpenAI API has it: arguments as a text, which Arrow leaves as it is."""
    return {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def call_json(call: Call) -> dict[str, Json]:
    """A call as an object; arguments that are no JSON stay a text."""
    try:
        arguments = escaped_json(json.loads(call.arguments))  # its `\u003c` is a `<` only now
    except (ValueError, RecursionError):
        arguments = call.arguments
    return {"name": call.name, "arguments": arguments}


def flat_row(conversation: Conversation, native: Callable[[Conversation], Json] | None) -> dict[str, Json]:
    """A row of messages whose contents are texts, or of what `native` makes of them, beside its tools."""
    row: dict[str, Json] = dict(conversation.origin)
    if native is None:
        row["messages"] = string_messages(conversation)
    else:
        row["messages"], row["tools"] = native(conversation), tools_text(conversation)
    return row


def tools_text(conversation: Conversation) -> str:
    """The schemas as one JSON text."""
    return json.dumps([dict(tool) for tool in conversation.tools], ensure_ascii=False)


def opening(conversation: Conversation, system: str) -> Iterator[dict[str, Json]]:
    """The first messages as plain texts, with this system text."""
    if system:
        yield {"role": "system", "content": system}
    yield {"role": "user", "content": PLACEHOLDER + conversation.question}


def _with_loss(message: dict[str, Json], is_trained: bool | None) -> dict[str, Json]:
    return message if is_trained is None else message | {"loss": is_trained}
