"""TRL reads an export: `SFTTrainer` with its collator, as `train.py` of the export makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export_tests import ExportTests
from trainer_process import TrainerProcess


class TestTrl(ExportTests):
    name = "trl"

    def job(self, folder: Path) -> dict[str, Any]:
        script = (folder / "train.py").read_text(encoding="utf-8")
        lines = [f"FOLDER = {str(folder)!r}" if line.startswith("FOLDER =") else line for line in script.splitlines()]
        return {"script": "\n".join(lines), "settings": {}}
