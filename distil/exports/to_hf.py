"""A folder that `datasets.load_dataset` reads and the hub shows as it is: Parquet with pictures, a card."""

from __future__ import annotations

from distil.exports.conversation import Conversation
from distil.exports.files import Tables, num_bytes, picture_cell
from distil.exports.form import Facts, Target
from distil.exports.options import ExportOptions
from distil.exports.rows import typed_messages
from distil.exports.to_trl import typed_features
from distil.records import ToolMode

FOLDER = "data"


class ToHf:
    """Rows of typed parts, in shards."""

    call_forms = frozenset({ToolMode.TEXT})

    def __init__(self, target: Target, options: ExportOptions) -> None:
        self._target = target
        (target.folder / FOLDER).mkdir(exist_ok=True)
        self._tables = Tables(
            target.folder / FOLDER, typed_features(options, has_calls=False), "-00000.parquet"
        )

    def add(self, conversation: Conversation, split: str) -> None:
        pictures = conversation.pictures()
        row = {
            **conversation.origin,
            "messages": typed_messages(conversation),
            "images": [*map(picture_cell, pictures)],
        }
        self._tables.add(row, num_bytes(pictures), split)

    def close(self) -> None:
        self._tables.close()

    def guide(self, facts: Facts) -> str:
        return f"""\
```python
from datasets import load_dataset

rows = load_dataset({self._target.out.name!r}, split="train")  # this folder, or its name on the hub
```

A row has `messages` of typed parts, of which each `{{"type": "image"}}` stands for the next of `images`;
assistant messages with `"loss": false` are not meant to be trained."""


def card_head(facts: Facts) -> str:
    """The lines that the hub reads, in front of a card."""
    data_files = "".join(
        f"  - split: {split}\n    path: {FOLDER}/{split}-*.parquet\n" for split in facts.num_rows
    )
    return f"""\
---
task_categories:
- image-text-to-text
tags:
- tool-use
- conversational
configs:
- config_name: default
  data_files:
{data_files}---

"""
