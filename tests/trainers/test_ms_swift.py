"""ms-swift reads an export: its dataset loader and template, with the flags of the export's own command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from broken_exports import broken, picture_without_place, place_without_picture, with_strip
from expected_rows import PICTURE, Expected, problems
from export_tests import ExportTests
from start_lines import flags
from trainer_process import LoaderFailed, Row, TrainerProcess

NUMBERS = ("max_length", "max_pixels")


class TestMsSwift(ExportTests):
    name = "ms_swift"

    def job(self, folder: Path) -> dict[str, Any]:
        given = flags(folder)
        settings: dict[str, Any] = {name: int(given[name]) for name in NUMBERS if name in given}
        settings["truncation_strategy"] = given["truncation_strategy"]
        return {"files": [str(folder / Path(given["dataset"]).name)], "settings": settings}

    def rows(
        self, trainer: TrainerProcess, folder: Path, family: str = "qwen3_vl", **settings: Any
    ) -> list[Row]:
        return self.with_ids(super().rows(trainer, folder, family, **settings), folder)

    # --- what the export protects from

    def test_a_picture_too_many_moves_all_others_without_an_error(
        self, trainer: TrainerProcess, export: Path, expected: list[Expected], tmp_path: Path
    ) -> None:
        rows = self.rows(trainer, broken(export, tmp_path / "broken", picture_without_place))
        assert PICTURE * 2 in rows[0]["text"]
        assert problems(rows, expected)

    def test_a_picture_too_few_leaves_a_word_in_the_text_without_an_error(
        self, trainer: TrainerProcess, export: Path, expected: list[Expected], tmp_path: Path
    ) -> None:
        rows = self.rows(trainer, broken(export, tmp_path / "broken", place_without_picture))
        assert "<image>" in rows[0]["text"]
        assert problems(rows, expected)

    def test_relative_paths_would_be_looked_up_where_the_trainer_runs(
        self, trainer: TrainerProcess, export: Path, tmp_path: Path
    ) -> None:
        def relative(rows: list[Row]) -> list[Row]:
            for row in rows:
                row["images"] = [str(Path(path).relative_to(export)) for path in row["images"]]
            return rows

        with pytest.raises(LoaderFailed, match=r"UnidentifiedImageError|No such file|cannot identify"):
            self.rows(trainer, broken(export, tmp_path / "broken", relative))

    def test_a_length_that_is_too_small_raises(self, trainer: TrainerProcess, large_export: Path) -> None:
        with pytest.raises(LoaderFailed, match="MaxLengthError"):
            self.rows(trainer, large_export, max_length=2048)

    def test_a_strip_that_the_processor_refuses_raises(
        self, trainer: TrainerProcess, export: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(LoaderFailed, match="aspect ratio must be smaller than 200"):
            self.rows(trainer, with_strip(export, tmp_path / "strip"))
