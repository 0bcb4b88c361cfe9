"""OpenAI's chat messages as JSON lines, with pictures as data URLs: what fine-tuning services take."""

from __future__ import annotations

from distil.exports.conversation import Message, StudentConversation, StudentTurn
from distil.exports.form import ExportReport, Format, Target, function
from distil.pictures import data_url
from distil.records import Json, SentPicture, ToolMode


def _row(conversation: StudentConversation, target: Target) -> dict[str, Json]:
    """A row in the API's own form; an assistant's message that is not trained has `"weight": 0`.

    Natively each call has its answer in the role `tool`, and one user message after them holds the pictures.
    """
    if target.form.call_form is ToolMode.NATIVE:
        tools = [dict(tool) for tool in conversation.tools]
        return {**conversation.origin, "messages": _native(conversation), "tools": tools}
    return {**conversation.origin, "messages": [_message(each) for each in conversation.messages()]}


def _guide(target: Target, report: ExportReport) -> str:
    files = " and ".join(f"`{target.out}/{split}.jsonl`" for split in sorted(report.num_rows))
    return f"""\
{files}: a row has `messages` as the chat API takes them, pictures as data URLs.
Assistant messages that are not to be trained have `"weight": 0`, which OpenAI's fine-tuning reads.
The longest row has about {report.max_length:,} tokens for a student of {target.form.student.value}.
Where a service refuses fields that it does not know, keep the messages alone: `jq -c '{{messages}}'`."""


def _message(message: Message) -> dict[str, Json]:
    parts = [
        {"type": "text", "text": part} if isinstance(part, str) else _picture_part(part)
        for part in message.parts
    ]
    if message.role == "user":
        return {"role": message.role, "content": parts}
    said: dict[str, Json] = {"role": message.role, "content": message.text("")}
    return said if message.is_trained is not False else said | {"weight": 0}


def _picture_part(picture: SentPicture) -> dict[str, Json]:
    """A picture within a message."""
    return {"type": "image_url", "image_url": {"url": data_url(picture)}}


def _native(conversation: StudentConversation) -> list[dict[str, Json]]:
    messages: list[dict[str, Json]] = []
    if conversation.system:
        messages.append({"role": "system", "content": conversation.system})
    question = {"type": "text", "text": conversation.question}
    messages.append({"role": "user", "content": [_picture_part(conversation.photo), question]})
    for number, turn in enumerate(conversation.turns, start=1):
        messages += _native_turn(turn, number)
    return messages


def _native_turn(turn: StudentTurn, number: int) -> list[dict[str, Json]]:
    ids = [f"call_{number}_{position}" for position in range(1, len(turn.calls) + 1)]
    said: dict[str, Json] = {"role": "assistant", "content": turn.text or None}
    if turn.calls:
        said["tool_calls"] = [
            {"id": call_id, **function(call)} for call_id, call in zip(ids, turn.calls, strict=True)
        ]
    if not turn.is_trained:
        said["weight"] = 0
    answers = [
        {"role": "tool", "tool_call_id": call_id, "content": call.result}
        for call_id, call in zip(ids, turn.results, strict=False)
    ]
    pictures = [_picture_part(call.picture) for call in turn.results if call.picture is not None]
    return [said, *answers, *([{"role": "user", "content": pictures}] if pictures else [])]


OPENAI = Format(_row, _guide)
