"""verl reads an export: the data-set class beside it, with the settings of the export's own command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export_tests import ExportTests
from start_lines import assignments
from trainer_process import TrainerProcess


class TestVerl(ExportTests):
    name = "verl"

    def job(self, folder: Path) -> dict[str, Any]:
        given = assignments(folder)
        settings = {
            "max_length": int(given["data.max_length"]),
            "truncation": given["data.truncation"],
            "custom_cls": {
                "path": str(folder / Path(given["data.custom_cls.path"]).name),
                "name": given["data.custom_cls.name"],
            },
        }
        return {"files": [str(folder / Path(given["data.train_files"]).name)], "settings": settings}
