"""ms-swift: JSON lines with absolute paths; it reads `"loss": false` itself."""

from __future__ import annotations

import json

from distil.exports.conversation import Conversation, Turn
from distil.exports.files import JsonLines, write_picture
from distil.exports.form import Facts, Target
from distil.exports.options import ExportOptions
from distil.exports.rows import call_json, flat_row, opening, result_text
from distil.records import Json, ToolMode


class ToMsSwift:
    """Rows for ms-swift; natively in its own roles `tool_call` and `tool_response`."""

    call_forms = frozenset({ToolMode.TEXT, ToolMode.NATIVE})

    def __init__(self, target: Target, options: ExportOptions) -> None:
        self._target, self._options = target, options
        self._lines = JsonLines(target.folder)

    def add(self, conversation: Conversation, split: str) -> None:
        names = [write_picture(self._target.folder, picture) for picture in conversation.pictures()]
        row = flat_row(conversation, _native if self._options.call_form is ToolMode.NATIVE else None)
        # A relative path would be looked for in the folder that the trainer runs in.
        row["images"] = [str(self._target.out / name) for name in names]
        self._lines.add(row, split)

    def close(self) -> None:
        self._lines.close()

    def guide(self, facts: Facts) -> str:
        out = self._target.quoted
        validation = f" \\\n  --val_dataset {out}/validation.jsonl" if "validation" in facts.num_rows else ""
        return f"""\
```bash
swift sft \\
  --model {self._options.student_model} \\
  --dataset {out}/train.jsonl{validation} \\
  --max_length {facts.max_length} \\
  --max_pixels {self._options.max_student_pixels} \\
  --truncation_strategy raise
```

Rows that are longer than `--max_length` would be left out without a word. Pictures are named by their
absolute paths: where the folder is moved, export again."""


def _native(conversation: Conversation) -> list[dict[str, Json]]:
    messages = [*opening(conversation, conversation.system)]
    for turn in conversation.turns:
        messages += _native_turn(turn)
    return messages


def _native_turn(turn: Turn) -> list[dict[str, Json]]:
    said: list[dict[str, Json]] = []
    if turn.text or not turn.calls:
        newline = "\n" if turn.calls else ""  # as the models' own template has one between text and call
        said.append({"role": "assistant", "content": turn.text + newline, "loss": turn.is_trained})
    for call in turn.calls:
        content = json.dumps(call_json(call), ensure_ascii=False)
        said.append({"role": "tool_call", "content": content, "loss": turn.is_trained})
    return [*said, *({"role": "tool_response", "content": result_text(result)} for result in turn.results)]
