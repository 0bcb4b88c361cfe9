"""TRL reads an export: `SFTTrainer` with its collator, as `train.py` of the export makes them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from broken_exports import with_strip
from expected_rows import Expected, problems
from export_tests import ExportTests
from seen import PAD
from trainer_process import LoaderFailed, TrainerProcess


class TestTrl(ExportTests):
    name = "trl"

    def job(self, folder: Path) -> dict[str, Any]:
        script = (folder / "train.py").read_text(encoding="utf-8")
        lines = [
            f"FOLDER = {str(folder)!r}" if line.startswith("FOLDER =") else line
            for line in script.splitlines()
        ]
        return {"script": "\n".join(lines), "settings": {}}

    # --- what the export protects from

    def test_the_default_length_cuts_the_answer_off_without_a_word(
        self, trainer: TrainerProcess, export: Path, expected: list[Expected]
    ) -> None:
        rows = self.rows(trainer, export)
        (longest,) = [row for row in rows if row["num_tokens"] == max(each["num_tokens"] for each in rows)]
        cut = self.rows(trainer, export, max_length=longest["num_tokens"] - 4)
        assert any("the text is" in each or "stands" in each for each in problems(cut, expected))

    def test_the_default_length_cuts_pictures_which_raises(
        self, trainer: TrainerProcess, large_export: Path
    ) -> None:
        with pytest.raises(LoaderFailed, match=r"Mismatch in `image` token count"):
            self.rows(trainer, large_export, max_length=1024)

    def test_without_assistant_only_loss_prompts_and_pictures_are_trained(
        self, trainer: TrainerProcess, export: Path, expected: list[Expected]
    ) -> None:
        rows = self.rows(trainer, export, assistant_only_loss=False)
        assert all(PAD in "".join(row["trained"]) for row in rows)
        assert problems(rows, expected)

    def test_without_the_template_beside_the_data_a_turn_that_failed_is_trained(
        self, trainer: TrainerProcess, export: Path, expected: list[Expected]
    ) -> None:
        rows = self.rows(trainer, export, chat_template_path=None)
        found = problems(rows, expected)
        assert [each.partition(":")[0] for each in found] == [
            "run/trace_00001.json",
            "run/trace_00006.json",
        ], found

    def test_the_template_beside_the_data_renders_what_the_students_own_does(
        self, trainer: TrainerProcess, export: Path
    ) -> None:
        ours, own = self.rows(trainer, export), self.rows(trainer, export, chat_template_path=None)
        assert [row["text"] for row in ours] == [row["text"] for row in own]

    def test_contents_of_plain_text_would_put_all_pictures_in_front(
        self, trainer: TrainerProcess, export: Path, expected: list[Expected], tmp_path: Path
    ) -> None:
        table = pq.read_table(export / "train.parquet").to_pylist()
        for row in table:
            for message in row["messages"]:
                message["content"] = "".join(part["text"] or "<image>" for part in message["content"])
        shutil.copytree(export, tmp_path / "plain")
        features = datasets.Features(
            id=datasets.Value("string"),
            messages=[{"role": datasets.Value("string"), "content": datasets.Value("string")}],
            images=[datasets.Image()],
        )
        kept = [
            {
                "id": row["id"],
                "images": row["images"],
                "messages": [
                    {name: message[name] for name in ("role", "content")} for message in row["messages"]
                ],
            }
            for row in table
        ]
        datasets.Dataset.from_list(kept, features=features).to_parquet(
            str(tmp_path / "plain" / "train.parquet")
        )
        assert problems(self.rows(trainer, tmp_path / "plain"), expected)

    def test_a_strip_that_the_processor_refuses_is_not_exported(
        self, trainer: TrainerProcess, export: Path, tmp_path: Path
    ) -> None:
        folder = with_strip(export, tmp_path / "strip")
        with pytest.raises(LoaderFailed, match="aspect ratio must be smaller than 200"):
            self.rows(trainer, folder)

    # --- the loop is closed

    def test_the_loss_of_a_tiny_student_falls(
        self, trainer: TrainerProcess, tools_run: Path, tmp_path: Path
    ) -> None:
        flags = ["--image_max_pixels", "65536", "--limit", "2"]
        job = self.job(self.exported(tools_run, tmp_path / "export", *flags))
        losses = [step["loss"] for step in trainer.rows(**job, steps=4, learning_rate=0.03)]
        assert len(losses) == 4
        assert sum(losses[-2:]) < 0.95 * sum(losses[:2]), losses
