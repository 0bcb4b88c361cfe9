"""TRL's own data code on an export: the export's own script, with a tiny model in place of the real one.

See seen.py for jobs and answers. A job's `script` is the text of `train.py`; what it builds is built, but not trained.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

from seen import Job, Row, prepare_imports, row_seen, serve

prepare_imports()

import trl
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer

HERE = {"report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no"}


def trainer_of(job: Job, **settings: Any) -> SFTTrainer:
    """What the script makes, with some settings of its config changed."""
    made: list[SFTTrainer] = []

    def config(**asked: Any) -> SFTConfig:
        return SFTConfig(**(asked | HERE | job["settings"] | settings))

    class Untrained(SFTTrainer):
        def __init__(self, model: str, args: SFTConfig, **given: Any) -> None:
            student = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(job["student"]))
            processor = AutoProcessor.from_pretrained(job["student"])
            processor.chat_template = (Path(job["student"]) / "chat_template.jinja").read_text(
                encoding="utf-8"
            )
            super().__init__(student, args, processing_class=processor, **given)
            made.append(self)

        def train(self, *args: Any, **given: Any) -> Any:
            return None

    os.chdir(tempfile.mkdtemp())
    with patch.object(trl, "SFTConfig", config), patch.object(trl, "SFTTrainer", Untrained):
        exec(compile(job["script"], "train.py", "exec"), {})
    return made[0]


def load(job: Job) -> list[Row]:
    if "steps" in job:
        return losses(job)
    trainer = trainer_of(job)
    seen = []
    for row in trainer.train_dataset:
        row_id = row["id"]
        batch = trainer.data_collator([row])
        is_trained = batch["labels"][0] != -100
        seen.append(row_seen(row_id, trainer.processing_class, batch["input_ids"][0], is_trained, batch))
    return seen


def losses(job: Job) -> list[Row]:
    """The loss of each optimiser step."""
    trainer = trainer_of(
        job,
        max_steps=job["steps"],
        logging_steps=1,
        per_device_train_batch_size=1,
        learning_rate=job["learning_rate"],
        lr_scheduler_type="constant",
    )
    SFTTrainer.train(trainer)
    return [{"loss": entry["loss"]} for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    serve(load)
