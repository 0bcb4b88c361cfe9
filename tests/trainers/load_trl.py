"""TRL's own data code on an export: SFTTrainer's dataset and collator. See seen.py for jobs and answers."""

from __future__ import annotations

import sys
import tempfile
from typing import Any

from seen import Job, Row, prepare_imports, row_seen, serve

prepare_imports()

import datasets
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer


def trainer_of(job: Job, **settings: Any) -> SFTTrainer:
    """The trainer as the export's own lines make it, with a tiny model without weights."""
    processor = AutoProcessor.from_pretrained(job["student"])
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(job["student"]))
    rows = datasets.load_dataset("parquet", data_files=job["files"], split="train")
    settings = {"report_to": "none", "use_cpu": True, "bf16": False} | job["settings"] | settings
    config = SFTConfig(output_dir=tempfile.mkdtemp(), **settings)
    return SFTTrainer(model, config, train_dataset=rows, processing_class=processor)


def load(job: Job) -> list[Row]:
    if "steps" in job:
        return losses(job)
    trainer = trainer_of(job)
    seen = []
    for row in trainer.train_dataset:
        row_id = row.get("id", "")
        batch = trainer.data_collator([row])
        is_trained = batch["labels"][0] != -100
        seen.append(row_seen(row_id, trainer.processing_class, batch["input_ids"][0], is_trained, batch))
    return seen


def losses(job: Job) -> list[Row]:
    """The loss of each optimiser step."""
    trainer = trainer_of(
        job, max_steps=job["steps"], logging_steps=1, per_device_train_batch_size=1, learning_rate=job["learning_rate"],
        save_strategy="no", lr_scheduler_type="constant", disable_tqdm=True,
    )
    trainer.train()
    return [{"loss": entry["loss"]} for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    serve(load)
