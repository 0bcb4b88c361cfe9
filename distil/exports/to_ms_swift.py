"""ms-swift: JSON lines with absolute paths; it reads `"loss": false` itself."""

from __future__ import annotations

import json

from distil.exports.conversation import StudentConversation, StudentTurn
from distil.exports.form import STUDENT_MODELS, ExportReport, Format, Target, call_json, flat_row, result_text
from distil.exports.pictures import max_student_pixels
from distil.records import Json


def _row(conversation: StudentConversation, target: Target) -> dict[str, Json]:
    """A row for ms-swift; natively in its own roles `tool_call` and `tool_response`."""
    row = flat_row(conversation, target, _native_turn)
    # A relative path would be looked for in the folder that the trainer runs in.
    row["images"] = [str(target.out / name) for name in row["images"]]
    return row


def _guide(target: Target, report: ExportReport) -> str:
    out = target.quoted
    validation = f" \\\n  --val_dataset {out}/validation.jsonl" if "validation" in report.num_rows else ""
    return f"""\
```bash
swift sft \\
  --model {STUDENT_MODELS[target.form.student]} \\
  --dataset {out}/train.jsonl{validation} \\
  --max_length {report.max_length} \\
  --max_pixels {max_student_pixels(target.form)} \\
  --truncation_strategy raise
```

Rows that are longer than `--max_length` would be left out without a word. Pictures are named by their
absolute paths: where the folder is moved, export again."""


def _native_turn(turn: StudentTurn) -> list[dict[str, Json]]:
    said: list[dict[str, Json]] = []
    if turn.text or not turn.calls:
        newline = "\n" if turn.calls else ""  # as the models' own template has one between text and call
        said.append({"role": "assistant", "content": turn.text + newline, "loss": turn.is_trained})
    for call in turn.calls:
        content = json.dumps(call_json(call), ensure_ascii=False)
        said.append({"role": "tool_call", "content": content, "loss": turn.is_trained})
    return [*said, *({"role": "tool_response", "content": result_text(call)} for call in turn.results)]


MS_SWIFT = Format(_row, _guide)
