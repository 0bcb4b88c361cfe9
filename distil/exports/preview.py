"""Rows as a student will see them, before anything is written: texts, pictures, and what of it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distil.commands.flags import ExportFlags, FormFlags
from distil.exports.conversation import Message, Part, StudentConversation
from distil.exports.tokens import picture_tokens, row_tokens
from distil.records import ExportFormat, Json

START, END = "<|im_start|>", "<|im_end|>"  # as the students' chat templates have them around a message


@dataclass(frozen=True)
class Preview:
    """One row of an export; `id` is what its row says it is of."""

    id: str
    messages: tuple[Message, ...]
    num_tokens: int  # about
    form: FormFlags

    @property
    def num_trained(self) -> int:
        """How many messages are trained."""
        return sum(bool(message.is_trained) for message in self.messages)

    @property
    def num_pictures(self) -> int:
        return sum(len(message.pictures) for message in self.messages)

    def as_json(self) -> dict[str, Json]:
        """As a document has it, pictures as what is known of them."""
        return {
            "id": self.id,
            "tokens": self.num_tokens,
            "messages": [
                {
                    "role": message.role,
                    "trained": bool(message.is_trained),
                    "parts": [self._part(part) for part in message.parts],
                }
                for message in self.messages
            ],
        }

    def _part(self, part: Part) -> Json:
        if isinstance(part, str):
            return part
        return {
            "width_px": part.size[0],
            "height_px": part.size[1],
            "media_type": part.media_type,
            "num_bytes": part.num_bytes,
            "sha256": part.sha256,
            "tokens": picture_tokens(part.size, self.form),
        }


def previews_of(conversation: StudentConversation, asked: ExportFlags) -> list[Preview]:
    """The rows that a conversation becomes: one, or for LLaMA-Factory one for each trained turn.

    That is where a turn of it is masked; an export where any is has all of its rows split.
    """
    messages, name = conversation.messages(), str(conversation.origin["id"])
    is_masked = any(message.is_trained is False for message in messages)
    if asked.format is not ExportFormat.LLAMAFACTORY or not is_masked:
        return [_preview(name, messages, asked.form)]
    rows = []
    number = 0
    for position, message in enumerate(messages, start=1):
        number += message.is_trained is not None
        if message.is_trained:
            before = [Message(each.role, each.parts) for each in messages[: position - 1]]
            rows.append(_preview(f"{name}#turn{number}", [*before, message], asked.form))
    return rows


def _preview(name: str, messages: Sequence[Message], form: FormFlags) -> Preview:
    return Preview(name, tuple(messages), row_tokens(messages, form), form)
