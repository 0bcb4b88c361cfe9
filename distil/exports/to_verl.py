"""verl's multi-turn SFT: Parquet with pictures in it, and a data-set class that reads each message's loss."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import datasets

from distil.commands.flags import FormFlags
from distil.exports.conversation import StudentConversation, StudentTurn
from distil.exports.form import (
    STUDENT_MODELS,
    ExportReport,
    Format,
    Target,
    function,
    joined_results,
    native_messages,
    ship,
    string_messages,
    table_features,
    table_row,
)
from distil.records import Json, ToolMode

DATASET_FILE, DATASET_CLASS = "verl_dataset.py", "LossPerMessageDataset"
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./-]+")


def _features(form: FormFlags) -> dict[str, Any]:
    picture = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    return table_features(form, datasets.Value("string"), picture)


def _row(conversation: StudentConversation, target: Target) -> dict[str, Json]:
    """A row for verl.

    Natively calls have strings of arguments, and all results of a turn stand in one message of the role
    `tool`: two in a row are refused. The tools stay in the system text: as structs of a column each would get
    the others' keys.
    """
    messages = string_messages(conversation)
    if target.form.call_form is ToolMode.NATIVE:
        messages = native_messages(conversation, conversation.described_system(), _native_turn)
    return table_row(conversation, messages)


def _guide(target: Target, report: ExportReport) -> str:
    ship(DATASET_FILE, target.folder)
    out, length = target.out, report.max_length
    train = _override("data.train_files", out / "train.parquet")
    validated = _override("data.val_files", out / "validation.parquet")
    validation = f" \\\n  {validated}" if "validation" in report.num_rows else ""
    return f"""\
```bash
torchrun --standalone --nproc_per_node=8 -m verl.trainer.sft_trainer \\
  model.path={STUDENT_MODELS[target.form.student]} \\
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


def _native_turn(turn: StudentTurn) -> list[dict[str, Json]]:
    said: dict[str, Json] = {"role": "assistant", "content": turn.text, "loss": turn.is_trained}
    if not turn.calls:
        return [said]
    said["tool_calls"] = [function(call) for call in turn.calls]
    return [said, {"role": "tool", "content": joined_results(turn)}] if turn.results else [said]


VERL = Format(_row, _guide, _features)
