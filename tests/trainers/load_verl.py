"""verl's own data code on an export: its multi-turn dataset, or the class shipped beside the data.

See seen.py for jobs and answers. A job's `settings` are those under `data` of the command line.
"""

from __future__ import annotations

from typing import Any

from seen import Job, Row, prepare_imports, row_seen, serve

prepare_imports()

from omegaconf import OmegaConf
from transformers import AutoProcessor
from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset
from verl.utils.import_utils import load_extern_object


def load(job: Job) -> list[Row]:
    processor = AutoProcessor.from_pretrained(job["student"])
    config = OmegaConf.create({"pad_mode": "no_padding"} | job["settings"])
    custom: Any = config.get("custom_cls") or {}
    kind = load_extern_object(custom["path"], custom["name"]) if custom.get("path") else MultiTurnSFTDataset
    rows = kind(job["files"], processor.tokenizer, config, processor)
    ids = rows.dataframe["id"].tolist() if "id" in rows.dataframe.columns else [""] * len(rows)
    seen = []
    for at, row_id in enumerate(ids):
        row = rows[at]
        seen.append(
            row_seen(
                row_id, processor, row["input_ids"], row["loss_mask"] != 0, row.get("multi_modal_inputs", {})
            )
        )
    return seen


if __name__ == "__main__":
    serve(load)
