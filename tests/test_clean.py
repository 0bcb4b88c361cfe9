"""`distil clean` removes what a folder needs no more and nothing else; a README says what its files are."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import PACKAGE, RunDoor
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says
from warm_door import start_door

from distil.cli import main
from distil.errors import UsageError
from distil.store.claim import clean_folder
from distil.store.folder import README
from distil.store.journal import unfinished_samples


def zoom_once(request: dict[str, Any]) -> Any:
    if is_probe(request) or num_turns(request) == 0:
        return calls(("image_zoom_in_tool", {"bbox_2d": [0, 0, 500, 500]}))
    return says("\\boxed{48.8566, 2.3522}")


def some_fail(request: dict[str, Any]) -> Any:
    if num_turns(request) == 1 and request["seed"] % 2:
        return 400, {"error": {"message": "no"}}
    return zoom_once(request)


def run(run_door: RunDoor, script: Any, photos: Path, folder: Path, *flags: object) -> Any:
    with ScriptedTeacher(script) as server:
        result = run_door(
            "demo_concurrent.py", "--api_base", server.api_base, "--dataset_path", photos, "--num_samples", 6,
            "--output_dir", folder, *flags,
        )  # fmt: skip
    return result, server.requests


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_removes_leftovers_and_turns_of_finished_samples_alone(
    photos: Path, tmp_path: Path, run_door: RunDoor, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    run(run_door, some_fail, photos, folder)
    left = unfinished_samples(folder)
    assert 0 < len(left) < 6
    before = files(folder)
    # What a killed run leaves: a temporary file, and turns of a sample that has its trace.
    (folder / ".trace_00003.json.1234.tmp").write_bytes(b"{")
    (segment,) = (folder / "journal").glob("*.jsonl")
    turn = json.loads(segment.read_text().splitlines()[0])
    made = next(index for index in range(6) if (folder / f"trace_{index:05d}.json").exists())
    with segment.open("a") as file:
        file.write(json.dumps(turn | {"sample_index": made, "turn": 1}) + "\n")
    assert made in {each.index for each in unfinished_samples(folder)}
    assert main(["clean", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "Removed half-written files: 1" in said
    assert "Removed turns of samples that have their trace, from journal/: " in said
    after = files(folder)
    journal = {name for name in (*before, *after) if name.startswith("journal/")}
    assert {name: data for name, data in after.items() if name not in journal} == {
        name: data for name, data in before.items() if name not in {*journal, ".lock"}
    }
    assert unfinished_samples(folder) == left
    assert main(["clean", str(folder)]) == 0
    assert capsys.readouterr().out == "There was nothing to remove.\n"
    result, requests = run(run_door, zoom_once, photos, folder, "--retry_failed")
    assert result.returncode == 0, result.stderr
    assert len([each for each in requests if not is_probe(each)]) == len(left), "no turn is paid for twice"


def test_turns_that_other_settings_made_stay(photos: Path, tmp_path: Path, run_door: RunDoor) -> None:
    run(run_door, some_fail, photos, tmp_path)
    (segment,) = (tmp_path / "journal").glob("*.jsonl")
    turn = json.loads(segment.read_text().splitlines()[0])
    made = next(index for index in range(6) if (tmp_path / f"trace_{index:05d}.json").exists())
    with segment.open("a") as file:
        file.write(json.dumps(turn | {"sample_index": made, "turn": 1, "settings_sha256": "0" * 64}) + "\n")
    before = unfinished_samples(tmp_path)
    clean_folder(tmp_path)
    assert unfinished_samples(tmp_path) == before


def test_turns_stay_of_a_sample_whose_trace_is_a_copy_of_another(
    photos: Path, tmp_path: Path, run_door: RunDoor
) -> None:
    run(run_door, some_fail, photos, tmp_path)
    left = unfinished_samples(tmp_path)
    made = next(tmp_path.glob("trace_*.json"))
    for sample_id in left:
        shutil.copy(made, tmp_path / f"trace_{sample_id.file_part}.json")
    clean_folder(tmp_path)
    assert left and unfinished_samples(tmp_path) == left


def test_a_finished_folder_keeps_its_traces_and_records(
    photos: Path, tmp_path: Path, run_door: RunDoor
) -> None:
    run(run_door, zoom_once, photos, tmp_path)
    before = files(tmp_path)
    assert clean_folder(tmp_path) == []
    assert files(tmp_path) == {name: data for name, data in before.items() if name != ".lock"}
    assert len([name for name in before if name.startswith("trace_")]) == 6


def test_a_folder_that_a_run_writes_to_is_left_alone(photos: Path, tmp_path: Path) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def waits(request: dict[str, Any]) -> Any:
        if num_turns(request) == 1 and not is_probe(request):
            asked.set()
            go_on.wait(60)
        return zoom_once(request)

    folder = tmp_path / "out"
    with ScriptedTeacher(waits) as server:
        door = start_door(
            "demo_concurrent.py", "--api_base", server.api_base, "--dataset_path", photos,
            "--output_dir", folder, "--num_samples", 2, cwd=PACKAGE,
        )  # fmt: skip
        assert asked.wait(60)
        before = set(files(folder))
        with pytest.raises(UsageError, match="another run is writing"):
            clean_folder(folder)
        assert set(files(folder)) >= before
        go_on.set()
        door.communicate(timeout=60)
        assert door.wait() == 0


def test_a_folder_that_is_no_runs_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".mine.tmp").write_text("mine")
    with pytest.raises(UsageError, match="is no run's folder"):
        clean_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".mine.tmp"]


def test_a_readme_says_what_every_file_of_a_folder_is(
    photos: Path, tmp_path: Path, run_door: RunDoor
) -> None:
    folder = tmp_path / "out"
    run(run_door, some_fail, photos, folder)
    text = (folder / README).read_text(encoding="utf-8")
    for path in folder.iterdir():
        name = "trace_*.json" if path.name.startswith("trace_") else path.name
        assert name == README or name in text, name
    (folder / README).write_text("my own notes")
    run(run_door, zoom_once, photos, folder)
    assert (folder / README).read_text() == "my own notes"
    shutil.rmtree(folder)
