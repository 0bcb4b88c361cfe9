"""TRL's `SFTTrainer`: Parquet of typed parts, a script, a chat template that reads each message's loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets

from distil.exports.conversation import Conversation
from distil.exports.files import Tables, num_bytes, picture_cell
from distil.exports.form import Facts, Target, origin_features, ship
from distil.exports.options import ExportOptions
from distil.exports.rows import function, typed_messages
from distil.records import ToolMode

TEMPLATE = "chat_template.jinja"
_PARTS = [{"type": datasets.Value("string"), "text": datasets.Value("string")}]
_MESSAGE: Mapping[str, Any] = {
    "role": datasets.Value("string"),
    "content": _PARTS,
    "loss": datasets.Value("bool"),
}
_CALLS = [
    {
        "type": datasets.Value("string"),
        "function": {"name": datasets.Value("string"), "arguments": datasets.Value("string")},
    }
]

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


def typed_features(options: ExportOptions, has_calls: bool) -> dict[str, Any]:
    """The columns of rows of typed parts."""
    message = {**_MESSAGE, "tool_calls": _CALLS} if has_calls else _MESSAGE
    return {**origin_features(options), "messages": [dict(message)], "images": [datasets.Image()]}


class ToTrl:
    """Rows for TRL.

    Natively a call is a string of arguments, which the template writes as the text form has it. Tools and
    results stay text: the collator ignores a column `tools`, and a picture in the role `tool` raises.
    """

    call_forms = frozenset({ToolMode.TEXT, ToolMode.NATIVE})

    def __init__(self, target: Target, options: ExportOptions) -> None:
        self._target, self._options = target, options
        self._is_native = options.call_form is ToolMode.NATIVE
        self._tables = Tables(target.folder, typed_features(options, self._is_native))

    def add(self, conversation: Conversation, split: str) -> None:
        pictures = conversation.pictures()
        messages = typed_messages(conversation)
        if self._is_native:
            said = iter(conversation.turns)
            for message in messages:
                if message["role"] == "assistant" and (turn := next(said)).calls:
                    message["content"] = [{"type": "text", "text": turn.text}] if turn.text else []
                    message["tool_calls"] = [function(call) for call in turn.calls]
        row = {**conversation.origin, "messages": messages, "images": [*map(picture_cell, pictures)]}
        self._tables.add(row, num_bytes(pictures), split)

    def close(self) -> None:
        self._tables.close()

    def guide(self, facts: Facts) -> str:
        ship(TEMPLATE, self._target.folder)
        script = _SCRIPT.format(
            folder=str(self._target.out),
            splits=tuple(facts.num_rows),
            model=self._options.student_model,
            length=facts.max_length,
            template=TEMPLATE,
        )
        (self._target.folder / "train.py").write_text(script, encoding="utf-8")
        return f"""\
```bash
python {self._target.quoted}/train.py
```

`train.py` says what TRL needs: `max_length=None`, no packing, `assistant_only_loss=True` and the chat
template that lies beside it. That is Qwen3-VL's own with marks around what is trained: all assistant
messages but those with `"loss": false`. It renders the same text; give the trained model its own template
back where a server does not know `{{% generation %}}`."""
