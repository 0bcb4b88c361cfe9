"""TRL's `SFTTrainer`: Parquet of typed parts, a script, a chat template that reads each message's loss."""

from __future__ import annotations

from typing import Any

import datasets

from distil.commands.flags import FormFlags
from distil.exports.conversation import StudentConversation
from distil.exports.form import (
    STUDENT_MODELS,
    ExportReport,
    Format,
    Target,
    function,
    ship,
    table_features,
    table_row,
    typed_messages,
)
from distil.records import Json, ToolMode

TEMPLATE = "chat_template.jinja"

_SCRIPT = '''\
"""Train on this export: `python train.py`. What stands here is needed; choose all else as usual."""

from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

FOLDER = {folder!r}

dataset = load_dataset("parquet", data_files={{name: f"{{FOLDER}}/{{name}}.parquet" for name in {splits!r}}})
trainer = SFTTrainer(
    model={model!r},
    args=SFTConfig(
        output_dir="trl_output",
        max_length=None,  # a limit would cut rows without a word; the longest has about {length:,} tokens
        packing=False,
        assistant_only_loss=True,  # else prompts and pictures are trained too
        chat_template_path=f"{{FOLDER}}/{template}",  # the model's own, but for messages with "loss": false
    ),
    train_dataset=dataset["train"],
    eval_dataset=dataset.get("validation"),
)
trainer.train()
'''


def typed_features(form: FormFlags) -> dict[str, Any]:
    """The columns of rows of typed parts."""
    text = datasets.Value("string")
    return table_features(form, [{"type": text, "text": text}], datasets.Image())


def typed_row(conversation: StudentConversation, _: Target) -> dict[str, Json]:
    """A row of typed parts, with calls in the texts."""
    return table_row(conversation, typed_messages(conversation))


def _row(conversation: StudentConversation, target: Target) -> dict[str, Json]:
    """A row for TRL.

    Natively a call is a string of arguments, which the template writes as the text form has it. Tools and
    results stay text: the collator ignores a column `tools`, and a picture in the role `tool` raises.
    """
    row = typed_row(conversation, target)
    if target.form.call_form is ToolMode.NATIVE:
        said = iter(conversation.turns)
        for message in row["messages"]:
            if message["role"] == "assistant" and (turn := next(said)).calls:
                message["content"] = [{"type": "text", "text": turn.text}] if turn.text else []
                message["tool_calls"] = [function(call) for call in turn.calls]
    return row


def _guide(target: Target, report: ExportReport) -> str:
    ship(TEMPLATE, target.folder)
    script = _SCRIPT.format(
        folder=str(target.out),
        splits=tuple(sorted(report.num_rows)),
        model=STUDENT_MODELS[target.form.student],
        length=report.max_length,
        template=TEMPLATE,
    )
    (target.folder / "train.py").write_text(script, encoding="utf-8")
    return f"""\
```bash
python {target.quoted}/train.py
```

`train.py` says what TRL needs: `max_length=None`, no packing, `assistant_only_loss=True` and the chat
template that lies beside it. That is Qwen3-VL's own with marks around what is trained: all assistant
messages but those with `"loss": false`. It renders the same text; give the trained model its own template
back where a server does not know `{{% generation %}}`."""


TRL = Format(_row, _guide, typed_features)
