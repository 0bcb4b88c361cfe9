"""LLaMA-Factory: JSON lines in its sharegpt form, with paths beside them, an entry and a YAML to start with.

It has no field for a message that is not trained. Where there is one, every row is split: one row for each
trained turn, which ends with it, and `mask_history`, which trains no turn before it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from distil.exports.conversation import StudentConversation, StudentTurn
from distil.exports.form import (
    PLACEHOLDER,
    STUDENT_MODELS,
    ExportReport,
    Format,
    Target,
    call_json,
    flat_row,
    joined_results,
)
from distil.exports.pictures import max_student_pixels
from distil.records import Json, Student, ToolMode

_TEMPLATES = {Student.QWEN3_VL: "qwen3_vl_nothink", Student.QWEN25_VL: "qwen2_vl"}
_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}

_SPLIT_TEXT = """\
A turn that is not to be trained cannot be marked, so each row ends with the one turn that is trained, and
`mask_history: true` leaves out those before it. Do not mix these rows with others in one training."""


def _row(conversation: StudentConversation, target: Target) -> dict[str, Json]:
    """A row for LLaMA-Factory; natively as `function_call` and `observation` where it can read them."""
    return flat_row(conversation, target, _native_turn)


def _guide(target: Target, report: ExportReport) -> str:
    splits = sorted(report.num_rows)
    has_masked = report.num_masked_turns > 0
    for split in splits:
        _finish(target.folder / f"{split}.jsonl", is_split=has_masked)
    native = {"tools": "tools"} if target.form.call_form is ToolMode.NATIVE else {}
    entries = {
        f"distil_{split}": {
            "file_name": f"{split}.jsonl",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "images": "images", **native},
            "tags": _TAGS,
        }
        for split in splits
    }
    text = json.dumps(entries, indent=2) + "\n"
    (target.folder / "dataset_info.json").write_text(text, encoding="utf-8")
    (target.folder / "train.yaml").write_text(_yaml(target, report), encoding="utf-8")
    split_text = f"\n\n{_SPLIT_TEXT}" if has_masked else ""
    return f"""\
```bash
llamafactory-cli train {target.quoted}/train.yaml
```

`dataset_info.json` has the entry of the data, `train.yaml` what they need: `cutoff_len` and
`image_max_pixels`, whose defaults cut rows and shrink pictures without a word, and a template that adds no
empty thoughts.{split_text}"""


def _yaml(target: Target, report: ExportReport) -> str:
    validation = "eval_dataset: distil_validation\n" if "validation" in report.num_rows else ""
    out = json.dumps(str(target.out), ensure_ascii=False)
    return f"""\
# What these data need; choose all else as usual.
model_name_or_path: {STUDENT_MODELS[target.form.student]}
stage: sft
do_train: true
finetuning_type: lora
template: {_TEMPLATES[target.form.student]}
dataset_dir: {out}
media_dir: {out}
dataset: distil_train
{validation}cutoff_len: {report.max_length}
image_max_pixels: {max_student_pixels(target.form)}
mask_history: {"true" if report.num_masked_turns else "false"}
output_dir: llamafactory_output
"""


def _finish(path: Path, is_split: bool) -> None:
    """Take the marks of what is not trained off the rows, which are split where that is needed."""
    unfinished = path.rename(path.with_name(f".{path.name}"))
    with unfinished.open(encoding="utf-8") as lines, path.open("w", encoding="utf-8", newline="\n") as file:
        for line in lines:
            row = json.loads(line)
            for part in _split(row) if is_split else [row]:
                messages = [
                    {name: value for name, value in message.items() if name != "loss"}
                    for message in part["messages"]
                ]
                file.write(json.dumps({**part, "messages": messages}, ensure_ascii=False) + "\n")
    unfinished.unlink()


def _split(row: Mapping[str, Json]) -> Iterator[Mapping[str, Json]]:
    """A row for each trained turn, with the messages and pictures up to it."""
    number = 0
    for position, message in enumerate(row["messages"], start=1):
        number += "loss" in message
        if message.get("loss"):
            messages = row["messages"][:position]
            num_pictures = sum(each["content"].count(PLACEHOLDER) for each in messages)
            yield {
                **row,
                "id": f"{row['id']}#turn{number}",
                "messages": messages,
                "images": row["images"][:num_pictures],
            }


def _native_turn(turn: StudentTurn) -> list[dict[str, Json]]:
    said = _native_said(turn) | {"loss": turn.is_trained}
    return [said, {"role": "observation", "content": joined_results(turn)}] if turn.results else [said]


def _native_said(turn: StudentTurn) -> dict[str, Json]:
    """A turn with calls as `function_call` where nothing of it is lost: a text with several calls is not."""
    if not turn.calls or (turn.text and len(turn.calls) > 1):
        return {"role": "assistant", "content": turn.written()}
    if turn.text:
        return {"role": "function_call", "content": turn.written()}
    return {"role": "function_call", "content": json.dumps([*map(call_json, turn.calls)], ensure_ascii=False)}


LLAMAFACTORY = Format(_row, _guide)
