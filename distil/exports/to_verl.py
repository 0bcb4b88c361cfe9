"""verl's multi-turn SFT: Parquet with pictures in it, and a data-set class that reads each message's loss."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import datasets

from distil.exports.conversation import Conversation, Turn
from distil.exports.files import Tables, num_bytes, picture_cell
from distil.exports.form import Facts, Target, origin_features, ship
from distil.exports.options import ExportOptions
from distil.exports.rows import function, joined_results, opening, string_messages
from distil.records import Json, ToolMode

DATASET_FILE, DATASET_CLASS = "verl_dataset.py", "LossPerMessageDataset"
_MESSAGE: dict[str, Any] = {
    "role": datasets.Value("string"),
    "content": datasets.Value("string"),
    "loss": datasets.Value("bool"),
}
_CALLS = [
    {
        "type": datasets.Value("string"),
        "function": {"name": datasets.Value("string"), "arguments": datasets.Value("string")},
    }
]
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./-]+")
_PICTURE = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}


class ToVerl:
    """Rows for verl.

    Natively calls have strings of arguments, and all results of a turn stand in one message of the role
    `tool`: two in a row are refused. The tools stay in the system text: as structs of a column each would get
    the others' keys.
    """

    call_forms = frozenset({ToolMode.TEXT, ToolMode.NATIVE})

    def __init__(self, target: Target, options: ExportOptions) -> None:
        self._target, self._options = target, options
        self._is_native = options.call_form is ToolMode.NATIVE
        message = {**_MESSAGE, "tool_calls": _CALLS} if self._is_native else _MESSAGE
        features = {**origin_features(options), "messages": [dict(message)], "images": [_PICTURE]}
        self._tables = Tables(target.folder, features)

    def add(self, conversation: Conversation, split: str) -> None:
        pictures = conversation.pictures()
        messages = _native(conversation) if self._is_native else string_messages(conversation)
        row = {**conversation.origin, "messages": messages, "images": [*map(picture_cell, pictures)]}
        self._tables.add(row, num_bytes(pictures), split)

    def close(self) -> None:
        self._tables.close()

    def guide(self, facts: Facts) -> str:
        ship(DATASET_FILE, self._target.folder)
        out, length = self._target.out, facts.max_length
        train = _override("data.train_files", out / "train.parquet")
        has_validation = "validation" in facts.num_rows
        validated = _override("data.val_files", out / "validation.parquet")
        validation = f" \\\n  {validated}" if has_validation else ""
        return f"""\
```bash
torchrun --standalone --nproc_per_node=8 -m verl.trainer.sft_trainer \\
  model.path={self._options.student_model} \\
  {train}{validation} \\
  data.max_length={length} \\
  data.max_token_len_per_gpu={max(length, 8192)} \\
  data.truncation=error \\
  {_override("data.custom_cls.path", out / DATASET_FILE)} \\
  data.custom_cls.name={DATASET_CLASS}
```

verl's own data-set class trains every assistant message; the one beside the data trains none with
`"loss": false`."""


def _override(name: str, path: Path) -> str:
    """A setting for Hydra's command line, whose own grammar takes more than plain ASCII in quotes alone."""
    text = str(path)
    if not _PLAIN_PATH.fullmatch(text):
        text = '"' + text.replace('"', r"\"").replace("${", r"\${") + '"'
    return shlex.quote(f"{name}={text}")


def _native(conversation: Conversation) -> list[dict[str, Json]]:
    messages = [*opening(conversation, conversation.described_system())]
    for turn in conversation.turns:
        messages += _native_turn(turn)
    return messages


def _native_turn(turn: Turn) -> list[dict[str, Json]]:
    said: dict[str, Json] = {"role": "assistant", "content": turn.text, "loss": turn.is_trained}
    if not turn.calls:
        return [said]
    said["tool_calls"] = [function(call) for call in turn.calls]
    return [said, {"role": "tool", "content": joined_results(turn)}] if turn.results else [said]
