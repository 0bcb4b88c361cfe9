"""LLaMA-Factory reads an export: converter, template, multimodal plugin and collator, by the export's own YAML."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from broken_exports import with_strip
from expected_rows import Expected, Manner, expected_of, problems
from export_tests import ExportTests
from trainer_process import LoaderFailed, Row, TrainerProcess


class TestLlamaFactory(ExportTests):
    name = "llamafactory"
    by_turn = True

    def job(self, folder: Path) -> dict[str, Any]:
        moved = {"dataset_dir": str(folder), "media_dir": str(folder)}
        return {"yaml": str(folder / "train.yaml"), "settings": moved}

    def rows(
        self, trainer: TrainerProcess, folder: Path, family: str = "qwen3_vl", **settings: Any
    ) -> list[Row]:
        return self.with_ids(super().rows(trainer, folder, family, **settings), folder)

    # --- what the export protects from

    def test_the_default_length_cuts_rows_and_the_default_size_shrinks_photos_without_a_word(
        self, trainer: TrainerProcess, large_run: Path, large_export: Path
    ) -> None:
        expected = expected_of(large_run)
        (cut,) = self.rows(trainer, large_export, cutoff_len=...)
        assert cut["num_tokens"] <= 2048
        assert problems([cut], expected)
        (shrunk,) = self.rows(trainer, large_export, image_max_pixels=...)
        assert shrunk["pictures"][0]["width_px"] < 1000
        assert problems([shrunk], expected)

    def test_a_reasoning_template_would_train_empty_thoughts(
        self, trainer: TrainerProcess, export: Path, expected: list[Expected]
    ) -> None:
        rows = self.rows(trainer, export, template="qwen3_vl")
        assert any("<think>\n\n</think>" in span for row in rows for span in row["trained"])
        assert problems(rows, expected, Manner(by_turn=True))

    def test_without_mask_history_split_rows_train_what_failed(
        self, trainer: TrainerProcess, export: Path, expected: list[Expected]
    ) -> None:
        assert problems(self.rows(trainer, export, mask_history=False), expected, Manner(by_turn=True))

    def test_a_strip_is_stretched_without_a_word(
        self, trainer: TrainerProcess, export: Path, expected: list[Expected], tmp_path: Path
    ) -> None:
        rows = self.rows(trainer, with_strip(export, tmp_path / "strip"))
        assert problems(rows, expected, Manner(by_turn=True))

    def test_a_picture_that_is_missing_raises(
        self, trainer: TrainerProcess, export: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "without"
        shutil.copytree(export, folder)
        next((folder / "images").iterdir()).unlink()
        with pytest.raises(LoaderFailed, match="No such file"):
            self.rows(trainer, folder)
