"""ms-swift's own data code on an export: its dataset loader and template. See seen.py for jobs and answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seen import Job, Row, prepare_imports, row_seen, serve

prepare_imports()

from swift.dataset import load_dataset
from swift.model import get_processor
from swift.template import get_template


def load(job: Job) -> list[Row]:
    assert all(Path(file).exists() for file in job["files"])  # else it asks a hub for a minute
    family = job.get("family", "qwen3_vl")
    processor = get_processor(job["student"], model_type=family, template_type=family)
    template = get_template(processor, template_type=family, **job["settings"])
    template.set_mode("train")
    rows, _ = load_dataset(job["files"])
    return [seen_of(template, processor, row) for row in rows]


def seen_of(template: Any, processor: Any, row: dict[str, Any]) -> Row:
    encoded = template.encode(dict(row), return_length=True)
    scale = encoded.get("loss_scale")
    is_trained = [
        label != -100 and (scale is None or scale[at] > 0) for at, label in enumerate(encoded["labels"])
    ]
    return row_seen("", processor, encoded["input_ids"], is_trained, encoded)


if __name__ == "__main__":
    serve(load)
