"""LLaMA-Factory reads an export: converter, template, multimodal plugin and collator, by the export's own YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export_tests import ExportTests
from trainer_process import Row, TrainerProcess


class TestLlamaFactory(ExportTests):
    name = "llamafactory"
    by_turn = True

    def job(self, folder: Path) -> dict[str, Any]:
        moved = {"dataset_dir": str(folder), "media_dir": str(folder)}
        return {"yaml": str(folder / "train.yaml"), "settings": moved}

    def rows(self, trainer: TrainerProcess, folder: Path, **settings: Any) -> list[Row]:
        return self.with_ids(super().rows(trainer, folder, **settings), folder)
