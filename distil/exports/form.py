"""What a format is, and what several share: texts with placeholders, typed parts, calls, origins."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import datasets

from distil.commands.flags import FormFlags
from distil.exports.conversation import ATTRIBUTION, Call, Message, StudentConversation, StudentTurn
from distil.exports.escape import escaped_json
from distil.exports.files import write_picture
from distil.records import Json, Student, ToolMode

PLACEHOLDER = "<image>"
STUDENT_MODELS: Mapping[Student, str] = {  # one of each family, for commands to start with
    Student.QWEN3_VL: "Qwen/Qwen3-VL-8B-Instruct",
    Student.QWEN25_VL: "Qwen/Qwen2.5-VL-7B-Instruct",
}
_ROUNDED_TO = 1024  # tokens of a length to set
_MARGIN = 20  # a twentieth more: trainers make small pictures larger, each a little otherwise
_TEXT = datasets.Value("string")


@dataclass
class ExportReport:
    """What became of the picked traces."""

    num_picked: int = 0
    num_rows: Counter[str] = field(default_factory=Counter)  # by split
    left_out: Counter[str] = field(default_factory=Counter)  # by reason
    refused: Counter[str] = field(default_factory=Counter)  # by reason
    exported: list[Path] = field(default_factory=list)
    rows_sha256: Any = field(default_factory=hashlib.sha256)  # of which traces they are, in their order
    num_pictures: int = 0
    num_turns: int = 0
    num_masked_turns: int = 0
    row_tokens: list[int] = field(default_factory=list)

    @property
    def max_length(self) -> int:
        """The length to set in a trainer so that no row is cut, in tokens."""
        longest = max(self.row_tokens, default=0)
        longest += longest // _MARGIN
        return -(-longest // _ROUNDED_TO) * _ROUNDED_TO

    def as_json(self) -> dict[str, Json]:
        """As the manifest has it."""
        ordered = sorted(self.row_tokens) or [0]
        return {
            "picked": self.num_picked,
            "rows": dict(sorted(self.num_rows.items())),
            "left_out": dict(sorted(self.left_out.items())),
            "refused": self.refused.total(),
            "refused_by_reason": dict(sorted(self.refused.items())),
            "pictures": self.num_pictures,
            "turns": self.num_turns,
            "masked_turns": self.num_masked_turns,
            "tokens": {
                "shortest": ordered[0],
                "median": ordered[len(ordered) // 2],
                "longest": ordered[-1],
                "to_set": self.max_length,
            },
        }


@dataclass(frozen=True)
class Target:
    """Where an export is written, where it will lie when it is whole, and what its rows are like."""

    folder: Path
    out: Path  # absolute
    form: FormFlags

    @property
    def quoted(self) -> str:
        """The path for a command line."""
        return shlex.quote(str(self.out))


@dataclass(frozen=True)
class Format:
    """What a trainer reads: the row that a conversation becomes, and how the trainer is started on them.

    `guide` is in Markdown; it writes what else is needed. `features` are those of Parquet; without them rows
    are lines of JSON.
    """

    row: Callable[[StudentConversation, Target], dict[str, Json]]
    guide: Callable[[Target, ExportReport], str]
    features: Callable[[FormFlags], dict[str, Any]] | None = None
    file: str = "{split}.parquet"
    has_native: bool = True  # a form of its own for calls


def table_features(form: FormFlags, content: Any, picture: Any) -> dict[str, Any]:
    """The columns of Parquet: a row's trace, whose it is where that is known, messages, pictures."""
    whole_number = datasets.Value("int64")
    of_owner = {ATTRIBUTION: _TEXT} if form.has_attribution else {}
    message = {"role": _TEXT, "content": content, "loss": datasets.Value("bool")}
    if form.call_form is ToolMode.NATIVE:
        message["tool_calls"] = [{"type": _TEXT, "function": {"name": _TEXT, "arguments": _TEXT}}]
    return {
        "id": _TEXT,
        "sample_index": whole_number,
        "rollout": whole_number,
        "trace_sha256": _TEXT,
        **of_owner,
        "messages": [message],
        "images": [picture],
    }


def table_row(conversation: StudentConversation, messages: Sequence[Mapping[str, Json]]) -> dict[str, Json]:
    """A row of Parquet, with its pictures as a column of pictures holds them."""
    pictures = [{"bytes": picture.data, "path": None} for picture in conversation.pictures()]
    return {**conversation.origin, "messages": messages, "images": pictures}


def ship(name: str, folder: Path) -> None:
    """Copy a file that comes with distil into an export."""
    data = (files("distil.exports") / "shipped" / f"{name}.txt").read_bytes()
    (folder / name).write_bytes(data)


def string_messages(conversation: StudentConversation) -> list[dict[str, Json]]:
    """Messages of plain texts; an assistant's says whether it is trained."""
    return _messages(conversation, lambda message: message.text(PLACEHOLDER))


def typed_messages(conversation: StudentConversation) -> list[dict[str, Json]]:
    """Messages of typed parts, which say where a picture stands but do not hold it."""
    return _messages(conversation, _typed_parts)


def _messages(
    conversation: StudentConversation, content_of: Callable[[Message], Json]
) -> list[dict[str, Json]]:
    return [
        {"role": each.role, "content": content_of(each)}
        | ({} if each.is_trained is None else {"loss": each.is_trained})
        for each in conversation.messages()
    ]


def _typed_parts(message: Message) -> list[dict[str, Json]]:
    """The parts of a message; each has the same keys, for Arrow gives them to it anyway."""
    return [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "text": None}
        for part in message.parts
    ]


def result_text(call: Call) -> str:
    """A result as one text with a placeholder, without the tags around it."""
    return f"{PLACEHOLDER}\n{call.result}" if call.picture is not None else call.result


def joined_results(turn: StudentTurn) -> str:
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


def flat_row(
    conversation: StudentConversation,
    target: Target,
    of_turn: Callable[[StudentTurn], Sequence[dict[str, Json]]],
) -> dict[str, Json]:
    """A row of messages whose contents are texts, with the names of its pictures, which are written.

    Natively they are what `of_turn` makes of each turn, beside the tools as one JSON text.
    """
    row: dict[str, Json] = dict(conversation.origin)
    if target.form.call_form is ToolMode.NATIVE:
        row["messages"] = native_messages(conversation, conversation.system, of_turn)
        row["tools"] = json.dumps([dict(tool) for tool in conversation.tools], ensure_ascii=False)
    else:
        row["messages"] = string_messages(conversation)
    row["images"] = [write_picture(target.folder, picture) for picture in conversation.pictures()]
    return row


def native_messages(
    conversation: StudentConversation,
    system: str,
    of_turn: Callable[[StudentTurn], Sequence[dict[str, Json]]],
) -> list[dict[str, Json]]:
    """Messages as plain texts, with this system text and what `of_turn` makes of each turn."""
    messages: list[dict[str, Json]] = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": PLACEHOLDER + conversation.question})
    for turn in conversation.turns:
        messages += of_turn(turn)
    return messages
