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
CALLS_FEATURE = [
    {
        "type": datasets.Value("string"),
        "function": {"name": datasets.Value("string"), "arguments": datasets.Value("string")},
    }
]
_ROUNDED_TO = 1024  # tokens of a length to set
_MARGIN = 20  # a twentieth more: trainers make small pictures larger, each a little otherwise
_ORIGIN_FEATURES: Mapping[str, Any] = {
    "id": datasets.Value("string"),
    "sample_index": datasets.Value("int64"),
    "rollout": datasets.Value("int64"),
    "trace_sha256": datasets.Value("string"),
}


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


def origin_features(form: FormFlags) -> dict[str, Any]:
    """The columns that tell a row's trace, and whose it is where that is known."""
    of_owner = {ATTRIBUTION: datasets.Value("string")} if form.has_attribution else {}
    return {**_ORIGIN_FEATURES, **of_owner}


def ship(name: str, folder: Path) -> None:
    """Copy a file that comes with distil into an export."""
    data = (files("distil.exports") / "shipped" / f"{name}.txt").read_bytes()
    (folder / name).write_bytes(data)


def string_messages(conversation: StudentConversation) -> list[dict[str, Json]]:
    """Messages of plain texts; an assistant's says whether it is trained."""
    return [
        _with_loss({"role": message.role, "content": message.text(PLACEHOLDER)}, message.is_trained)
        for message in conversation.messages()
    ]


def typed_messages(conversation: StudentConversation) -> list[dict[str, Json]]:
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


def _with_loss(message: dict[str, Json], is_trained: bool | None) -> dict[str, Json]:
    return message if is_trained is None else message | {"loss": is_trained}
