"""A folder that `datasets.load_dataset` reads and the hub shows as it is: Parquet with pictures, a card."""

from __future__ import annotations

from distil.exports.form import ExportReport, Format, Target
from distil.exports.to_trl import typed_features, typed_row

FOLDER = "data"


def _guide(target: Target, report: ExportReport) -> str:
    return f"""\
```python
from datasets import load_dataset

rows = load_dataset({target.out.name!r}, split="train")  # this folder, or its name on the hub
```

A row has `messages` of typed parts, of which each `{{"type": "image"}}` stands for the next of `images`;
assistant messages with `"loss": false` are not meant to be trained."""


HF = Format(typed_row, _guide, typed_features, FOLDER + "/{split}-00000.parquet", has_native=False)


def card_head(report: ExportReport) -> str:
    """The lines that the hub reads, in front of a card."""
    data_files = "".join(
        f"  - split: {split}\n    path: {FOLDER}/{split}-*.parquet\n" for split in sorted(report.num_rows)
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
