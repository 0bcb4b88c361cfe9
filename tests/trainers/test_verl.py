"""verl reads an export: the data-set class beside it, with the settings of the export's own command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from broken_exports import with_strip
from expected_rows import Expected, problems
from export_tests import ExportTests
from start_lines import assignments
from trainer_process import LoaderFailed, TrainerProcess


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

    # --- what the export protects from

    def test_without_the_class_beside_the_data_a_turn_that_failed_is_trained(
        self, trainer: TrainerProcess, export: Path, expected: list[Expected]
    ) -> None:
        found = problems(self.rows(trainer, export, custom_cls={}), expected)
        assert [each.partition(":")[0] for each in found] == [
            "run/trace_00001.json",
            "run/trace_00006.json",
        ], found

    def test_the_default_length_is_too_small(self, trainer: TrainerProcess, large_export: Path) -> None:
        with pytest.raises(LoaderFailed, match="is larger than"):
            self.rows(trainer, large_export, max_length=...)

    def test_a_strip_that_the_processor_refuses_raises(
        self, trainer: TrainerProcess, export: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(LoaderFailed, match="aspect ratio must be smaller than 200"):
            self.rows(trainer, with_strip(export, tmp_path / "strip"))
