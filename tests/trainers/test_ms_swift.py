"""ms-swift reads an export: its dataset loader and template, with the flags of the export's own command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export_tests import ExportTests
from start_lines import flags
from trainer_process import Row, TrainerProcess

NUMBERS = ("max_length", "max_pixels")


class TestMsSwift(ExportTests):
    name = "ms_swift"

    def job(self, folder: Path) -> dict[str, Any]:
        given = flags(folder)
        settings: dict[str, Any] = {name: int(given[name]) for name in NUMBERS if name in given}
        settings["truncation_strategy"] = given["truncation_strategy"]
        return {"files": [str(folder / Path(given["dataset"]).name)], "settings": settings}

    def rows(self, trainer: TrainerProcess, folder: Path, **settings: Any) -> list[Row]:
        return self.with_ids(super().rows(trainer, folder, **settings), folder)
