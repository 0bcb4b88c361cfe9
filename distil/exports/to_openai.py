"""OpenAI's chat messages as JSON lines, with pictures as data URLs: what fine-tuning services take."""

from __future__ import annotations

from distil.exports.conversation import Conversation, Message, Turn
from distil.exports.files import JsonLines
from distil.exports.form import Facts, Target
from distil.exports.options import ExportOptions
from distil.exports.rows import function
from distil.pictures import data_url
from distil.records import Json, SentPicture, ToolMode


class ToOpenAI:
    """Rows in the API's own form; an assistant's message that is not trained has `"weight": 0`.

    Natively each call has its answer in the role `tool`, and one user message after them holds the pictures.
    """

    call_forms = frozenset({ToolMode.TEXT, ToolMode.NATIVE})

    def __init__(self, target: Target, options: ExportOptions) -> None:
        self._target, self._options = target, options
        self._lines = JsonLines(target.folder)

    def add(self, conversation: Conversation, split: str) -> None:
        row: dict[str, Json] = dict(conversation.origin)
        if self._options.call_form is ToolMode.NATIVE:
            row["messages"] = _native(conversation)
            row["tools"] = [dict(tool) for tool in conversation.tools]
        else:
            row["messages"] = [_message(message) for message in conversation.messages()]
        self._lines.add(row, split)

    def close(self) -> None:
        self._lines.close()

    def guide(self, facts: Facts) -> str:
        files = " and ".join(f"`{self._target.out}/{split}.jsonl`" for split in facts.num_rows)
        return f"""\
{files}: a row has `messages` as the chat API takes them, pictures as data URLs.
Assistant messages that are not to be trained have `"weight": 0`, which OpenAI's fine-tuning reads.
The longest row has about {facts.max_length:,} tokens for a student of {self._options.student.value}.
Where a service refuses fields that it does not know, keep the messages alone: `jq -c '{{messages}}'`."""


def _message(message: Message) -> dict[str, Json]:
    parts = [
        {"type": "text", "text": part} if isinstance(part, str) else picture_part(part)
        for part in message.parts
    ]
    if message.role == "user":
        return {"role": message.role, "content": parts}
    said: dict[str, Json] = {"role": message.role, "content": message.text("")}
    return said if message.is_trained is not False else said | {"weight": 0}


def picture_part(picture: SentPicture) -> dict[str, Json]:
    """A picture within a message."""
    return {"type": "image_url", "image_url": {"url": data_url(picture)}}


def _native(conversation: Conversation) -> list[dict[str, Json]]:
    messages: list[dict[str, Json]] = []
    if conversation.system:
        messages.append({"role": "system", "content": conversation.system})
    question = {"type": "text", "text": conversation.question}
    messages.append({"role": "user", "content": [picture_part(conversation.photo), question]})
    for number, turn in enumerate(conversation.turns, start=1):
        messages += _native_turn(turn, number)
    return messages


def _native_turn(turn: Turn, number: int) -> list[dict[str, Json]]:
    ids = [f"call_{number}_{position}" for position in range(1, len(turn.calls) + 1)]
    said: dict[str, Json] = {"role": "assistant", "content": turn.text or None}
    if turn.calls:
        said["tool_calls"] = [
            {"id": call_id, **function(call)} for call_id, call in zip(ids, turn.calls, strict=True)
        ]
    if not turn.is_trained:
        said["weight"] = 0
    answers = [
        {"role": "tool", "tool_call_id": call_id, "content": result.text}
        for call_id, result in zip(ids, turn.results, strict=False)
    ]
    pictures = [picture_part(result.picture) for result in turn.results if result.picture is not None]
    return [said, *answers, *([{"role": "user", "content": pictures}] if pictures else [])]
