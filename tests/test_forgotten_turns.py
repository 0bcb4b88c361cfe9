"""Paid turns whose request has other bytes now: not used, and told; versions that may be the reason are named."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import RunDoor, photo_bytes, save_photos
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says

from distil.records import RawCall, Reply, SampleId, ToolMode
from distil.store.journal import FOLDER, Journal

WARNING = "fitted the request no more (another version of distil or Pillow) and had to be asked again"


def ask(messages: Any, seed: int) -> Reply:
    return Reply("", None, None, "stop", (RawCall("t", {}),), ToolMode.TEXT, None)


def breaks_at_the_answer(request: dict[str, Any]) -> Any:
    if not is_probe(request) and num_turns(request) == 2:
        return 400, {"error": {"message": "picture refused"}}
    return three_turns(request)


def three_turns(request: dict[str, Any]) -> Any:
    if is_probe(request) or num_turns(request) < 2:
        return calls(("image_rotate_tool", {"angle": 90}))
    return says("\\boxed{1.5, 2.5}")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_photos(
        tmp_path_factory.mktemp("few") / "photos", [photo_bytes(n, (64, 48)) for n in range(3)]
    )


def run(server: ScriptedTeacher, photos: Path, out: Path, run_door: RunDoor, *others: object) -> Any:
    flags = ("--api_base", server.api_base, "--dataset_path", photos, "--num_samples", 3)
    return run_door("demo_concurrent.py", *flags, "--output_dir", out, *others)


def with_record(out: Path, change: Any) -> None:
    path = out / "run_record.json"
    record = json.loads(path.read_text())
    change(record["runs"][-1])
    path.write_text(json.dumps(record))


def last_run(out: Path) -> Any:
    return json.loads((out / "run_record.json").read_text())["runs"][-1]


def test_turns_whose_request_has_changed_are_told_when_they_go_and_at_the_end(
    photos: Path, tmp_path: Path, run_door: RunDoor
) -> None:
    out = tmp_path / "out"
    with ScriptedTeacher(breaks_at_the_answer) as server:
        run(server, photos, out, run_door)
    for path in (out / FOLDER).glob("*.jsonl"):
        turns = map(json.loads, path.read_text().splitlines())
        changed = [{**turn, "request_sha256": "of other bytes"} for turn in turns]
        path.write_text("".join(json.dumps(line) + "\n" for line in changed))
    with ScriptedTeacher(three_turns) as server:
        result = run(server, photos, out, run_door)
    assert result.returncode == 0, result.stderr
    assert "paid turns kept: 6" in result.stdout
    told = [line for line in result.stdout.splitlines() if "no more" in line]
    assert len(told) == 2, "when it first happens, and at the end"
    assert told[1] == f"Warning: 6 paid turns {WARNING}"
    assert last_run(out)["warnings"].count(f"6 paid turns {WARNING}") == 1


def test_turns_that_are_used_again_are_no_warning(photos: Path, tmp_path: Path, run_door: RunDoor) -> None:
    out = tmp_path / "out"
    with ScriptedTeacher(breaks_at_the_answer) as server:
        run(server, photos, out, run_door)
    with ScriptedTeacher(three_turns) as server:
        result = run(server, photos, out, run_door)
    assert "no more" not in result.stdout and "turns made by" not in result.stdout
    assert not [text for text in last_run(out)["warnings"] if "no more" in text]


def test_turns_that_other_settings_made_are_told_and_not_used(
    photos: Path, tmp_path: Path, run_door: RunDoor
) -> None:
    out = tmp_path / "out"
    with ScriptedTeacher(breaks_at_the_answer) as server:
        run(server, photos, out, run_door)
    with ScriptedTeacher(three_turns) as server:
        result = run(server, photos, out, run_door, "--max_turns", 7, "--on_change", "keep")
        asked = [request for request in server.requests if not is_probe(request)]
    assert result.returncode == 0, result.stderr
    assert "Paid turns that other settings made, not used: 6." in result.stdout.splitlines()
    assert "paid turns kept" not in result.stdout and len(asked) == 3 * 3


@pytest.mark.parametrize("name", ["distil", "pillow"])
def test_kept_turns_of_other_versions_are_announced_with_them(
    name: str, photos: Path, tmp_path: Path, run_door: RunDoor
) -> None:
    out = tmp_path / "out"
    with ScriptedTeacher(breaks_at_the_answer) as server:
        run(server, photos, out, run_door)
    with_record(out, lambda record: record["versions"].update({name: "0.0.9"}))
    versions = last_run(out)["versions"]
    with ScriptedTeacher(three_turns) as server:
        result = run(server, photos, out, run_door)
    assert (
        f"Turns made by distil {versions['distil']} / Pillow {versions['pillow']} are used only where the "
        "request's bytes are the same." in result.stdout.splitlines()
    )


def test_what_is_forgotten_is_counted_over_all_threads_and_told_once(tmp_path: Path) -> None:
    journal, told = Journal(tmp_path, "s"), list[str]()
    for number in range(8):
        journaled = journal.of(SampleId(number), "f").journaled(ask)
        for turn in range(3):
            journaled([b"m%d" % turn], 0)
    journal.tell = told.append
    assert journal.warning() is None

    def resume(number: int) -> None:
        journaled = journal.of(SampleId(number), "f").journaled(ask)
        journaled([b"m0"], 0)
        journaled([b"other"], 0)
        journaled([b"another"], 0)

    threads = [threading.Thread(target=resume, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert journal.warning() == f"16 paid turns {WARNING}"
    assert len(told) == 1
