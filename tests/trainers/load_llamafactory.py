"""LLaMA-Factory's own data code on an export: converter, template, multimodal plugin and collator.

See seen.py for jobs and answers. A job's `yaml` is the file that starts a training; `settings` change some of it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from seen import Job, Row, prepare_imports, row_seen, serve

prepare_imports()

import yaml
from llamafactory.data import SFTDataCollatorWith4DAttentionMask, get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer


def load(job: Job) -> list[Row]:
    here: dict[str, Any] = {
        "model_name_or_path": job["student"],
        "output_dir": tempfile.mkdtemp(),
        "overwrite_cache": True,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "dataloader_num_workers": 0,
    }
    with Path(job["yaml"]).open(encoding="utf-8") as file:
        settings = {
            name: value for name, value in yaml.safe_load(file).items() if name not in job["defaults"]
        }
    model_args, data_args, training_args, _, _ = get_train_args(settings | job["settings"] | here)
    parts = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(parts["tokenizer"], data_args)
    rows = get_dataset(template, model_args, data_args, training_args, stage="sft", **parts)["train_dataset"]
    collator = SFTDataCollatorWith4DAttentionMask(
        template=template, model=None, label_pad_token_id=-100, **parts
    )
    seen = []
    for row in rows:
        batch = collator([{name: row[name] for name in row}])
        is_trained = batch["labels"][0] != -100
        seen.append(row_seen("", parts["processor"], batch["input_ids"][0], is_trained, batch))
    return seen


if __name__ == "__main__":
    serve(load)
