"""What holds of an export in every trainer: a class that each trainer's tests are made of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from broken_exports import MUTATIONS, broken, read_rows, written_anew
from expected_rows import Expected, Manner, boxes_beside_the_picture, expected_of, problems
from exported_runs import CODE_ROWS, LARGE, LARGE_ROWS, QUESTION_ROWS, TOOL_ROWS, make_run
from trainer_process import LoaderFailed, Row, TrainerProcess

from distil.cli import main

# What trainers say themselves of pictures and places that do not fit.
REFUSALS = r"number of images|image placeholders|image_offset|list index out of range|image token count"


def check(found: list[str]) -> None:
    """Fail with what was found wrong."""
    if found:
        pytest.fail("\n".join(found), pytrace=False)


class ExportTests:
    """An export read by one trainer's own data code."""

    name: ClassVar[str]
    by_turn = False  # whether a trace with a masked turn is a row for each turn that is trained

    def job(self, folder: Path) -> dict[str, Any]:
        """How the trainer is started on an export, as the export's own files say."""
        raise NotImplementedError

    # --- what there is

    @pytest.fixture(scope="class")
    @classmethod
    def trainer(cls) -> Iterator[TrainerProcess]:
        with TrainerProcess(cls.name) as process:
            yield process

    @pytest.fixture(scope="class")
    @classmethod
    def tools_run(cls, tmp_path_factory: pytest.TempPathFactory, own_cache: None) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OPENAI_API_KEY", "EMPTY")
            return make_run(tmp_path_factory.mktemp("tools"), TOOL_ROWS)

    @pytest.fixture(scope="class")
    @classmethod
    def code_run(cls, tmp_path_factory: pytest.TempPathFactory, own_cache: None) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OPENAI_API_KEY", "EMPTY")
            return make_run(tmp_path_factory.mktemp("code"), CODE_ROWS, "--tools", "python_code")

    @pytest.fixture(scope="class")
    @classmethod
    def large_run(cls, tmp_path_factory: pytest.TempPathFactory, own_cache: None) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OPENAI_API_KEY", "EMPTY")
            return make_run(tmp_path_factory.mktemp("large"), LARGE_ROWS, size=LARGE)

    @pytest.fixture(scope="class")
    @classmethod
    def large_export(cls, large_run: Path) -> Path:
        return cls.exported(large_run, large_run.parent / "export")

    @pytest.fixture(scope="class")
    @classmethod
    def export(cls, tools_run: Path) -> Path:
        return cls.exported(tools_run, tools_run.parent / "export")

    @pytest.fixture(scope="class")
    @classmethod
    def expected(cls, tools_run: Path) -> list[Expected]:
        return expected_of(tools_run)

    @classmethod
    def exported(cls, run: Path, out: Path, *flags: str) -> Path:
        assert main(["export", str(run), "--format", cls.name, "--out", str(out), *flags]) == 0
        return out

    def rows(
        self, trainer: TrainerProcess, folder: Path, family: str = "qwen3_vl", **settings: Any
    ) -> list[Row]:
        """What the trainer makes of an export, with some of its settings changed, or left to its defaults (...)."""
        job = self.job(folder) | {"family": family}
        job["defaults"] = [name for name, value in settings.items() if value is ...]
        job["settings"] = {
            name: value for name, value in (job["settings"] | settings).items() if value is not ...
        }
        return trainer.rows(**job)

    def made(self, trainer: TrainerProcess, run: Path, out: Path, *flags: str) -> list[Row]:
        """What the trainer makes of a run that is exported with these flags."""
        return self.rows(trainer, self.exported(run, out, *flags))

    @staticmethod
    def with_ids(rows: list[Row], folder: Path) -> list[Row]:
        """Rows with the ids that a trainer lost on the way, by their order in the file."""
        lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
        ids = [json.loads(line)["id"].partition("#")[0] for line in lines]
        return [row | {"id": row_id} for row, row_id in zip(rows, ids, strict=True)]

    # --- what holds

    def test_text_calls_pictures_and_loss_are_those_of_the_traces(
        self, trainer: TrainerProcess, export: Path, expected: list[Expected]
    ) -> None:
        check(problems(self.rows(trainer, export), expected, Manner(by_turn=self.by_turn)))

    def test_an_export_that_is_only_written_anew_is_as_good(
        self, trainer: TrainerProcess, export: Path, expected: list[Expected], tmp_path: Path
    ) -> None:
        folder = written_anew(export, tmp_path / "anew", read_rows(export))
        check(problems(self.rows(trainer, folder), expected, Manner(by_turn=self.by_turn)))

    @pytest.mark.parametrize("name", MUTATIONS)
    def test_a_broken_export_is_noticed_where_it_is_broken(
        self, trainer: TrainerProcess, export: Path, expected: list[Expected], tmp_path: Path, name: str
    ) -> None:
        mutation, number = MUTATIONS[name]
        folder = broken(export, tmp_path / "broken", mutation)
        try:
            found = problems(self.rows(trainer, folder), expected, Manner(by_turn=self.by_turn))
        except LoaderFailed as error:
            assert re.search(REFUSALS, str(error)), error
            return
        assert {each.partition(":")[0] for each in found} == {f"run/trace_{number:05d}.json"}, found

    @pytest.mark.parametrize("errors", ["train", "drop"])
    def test_turns_that_failed_are_trained_or_gone_where_that_is_asked_for(
        self, trainer: TrainerProcess, tools_run: Path, tmp_path: Path, errors: str
    ) -> None:
        folder = self.exported(tools_run, tmp_path / "export", "--errors", errors)
        check(problems(self.rows(trainer, folder), expected_of(tools_run, errors=errors)))

    @pytest.mark.parametrize("thoughts", ["keep", "drop"])
    def test_thoughts_are_kept_or_dropped_where_that_is_asked_for(
        self, trainer: TrainerProcess, tools_run: Path, tmp_path: Path, thoughts: str
    ) -> None:
        folder = self.exported(tools_run, tmp_path / "export", "--reasoning", thoughts)
        expected = expected_of(tools_run, thoughts=thoughts)
        check(problems(self.rows(trainer, folder), expected, Manner(by_turn=self.by_turn)))

    def test_code_with_its_output_and_its_errors_is_text(
        self, trainer: TrainerProcess, code_run: Path, tmp_path: Path
    ) -> None:
        folder = self.exported(code_run, tmp_path / "export")
        check(problems(self.rows(trainer, folder), expected_of(code_run), Manner(by_turn=self.by_turn)))

    def test_a_question_of_a_dataset_is_text_whatever_it_says(
        self, trainer: TrainerProcess, own_cache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
        run = make_run(tmp_path, QUESTION_ROWS, "--task", "vqa")
        rows = self.made(trainer, run, tmp_path / "export")
        check(problems(rows, expected_of(run)))

    def test_rows_of_large_photos_are_whole_and_no_longer_than_the_readme_says(
        self, trainer: TrainerProcess, large_run: Path, large_export: Path
    ) -> None:
        rows = self.rows(trainer, large_export)
        check(problems(rows, expected_of(large_run)))
        readme = (large_export / "README.md").read_text(encoding="utf-8")
        to_set = re.search(r"length to set is \*\*([\d,]+)\*\*", readme)
        assert to_set
        assert 2048 < rows[0]["num_tokens"] <= int(to_set[1].replace(",", ""))

    def test_native_calls_are_the_same_text_without_nulls(
        self, trainer: TrainerProcess, tools_run: Path, expected: list[Expected], tmp_path: Path
    ) -> None:
        rows = self.made(trainer, tools_run, tmp_path / "export", "--call_form", "native")
        check(problems(rows, expected, Manner(by_turn=self.by_turn, is_native=True)))
        assert not any("null" in row["text"] for row in rows)

    def test_boxes_in_pixels_are_those_of_the_pictures_that_the_student_gets(
        self, trainer: TrainerProcess, tools_run: Path, expected: list[Expected], tmp_path: Path
    ) -> None:
        rows = self.made(trainer, tools_run, tmp_path / "export", "--coordinates", "pixel")
        by_id = {wanted.row_id: wanted for wanted in expected}
        check([problem for row in rows for problem in boxes_beside_the_picture(row, by_id[row["id"]])])

    def test_pictures_are_no_larger_than_asked_for(
        self, trainer: TrainerProcess, large_run: Path, tmp_path: Path
    ) -> None:
        rows = self.made(trainer, large_run, tmp_path / "export", "--image_max_pixels", "200000")
        check(problems(rows, expected_of(large_run), Manner(is_resized=True)))
        assert all(each["width_px"] * each["height_px"] <= 200000 for each in rows[0]["pictures"])
        assert rows[0]["pictures"][0]["width_px"] > 400

    def test_a_student_of_the_family_before_reads_the_same(
        self, trainer: TrainerProcess, tools_run: Path, expected: list[Expected], tmp_path: Path
    ) -> None:
        folder = self.exported(tools_run, tmp_path / "export", "--student", "qwen2.5-vl")
        rows = self.rows(trainer, folder, family="qwen2_5_vl")
        check(problems(rows, expected, Manner(by_turn=self.by_turn, factor_px=28)))
