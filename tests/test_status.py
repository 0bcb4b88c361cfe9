"""`distil status` says where a folder stands, and touches nothing: after a run, and while one goes on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PACKAGE, RunDoor
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says
from warm_door import start_door

from distil.cli import main
from distil.errors import UsageError
from distil.store.status import read_status


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def zoom_once(request: dict[str, Any]) -> Any:
    if is_probe(request) or num_turns(request) == 0:
        return calls(("image_zoom_in_tool", {"bbox_2d": [0, 0, 500, 500]}))
    return says("\\boxed{48.8566, 2.3522}")


def a_run(server: ScriptedTeacher, photos: Path, folder: Path, *flags: object) -> list[object]:
    given = ["--api_base", server.api_base, "--dataset_path", photos, "--output_dir", folder]
    return [*given, "--fixed_workers", "--price_per_million", "1,2", *flags]


def test_after_a_run_it_says_what_is_done_failed_and_spent(
    photos: Path, tmp_path: Path, run_door: RunDoor, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails_second_turns(request: dict[str, Any]) -> Any:
        if num_turns(request) == 1 and request["seed"] % 2:
            return 400, {"error": {"message": "no"}}
        return zoom_once(request)

    folder = tmp_path / "out"
    with ScriptedTeacher(fails_second_turns) as server:
        run_door("demo_concurrent.py", *a_run(server, photos, folder, "--num_samples", 6))
    before = contents(folder)
    status = read_status(folder)
    assert contents(folder) == before
    num_failed = sum(status.failed.values())
    assert 0 < num_failed == status.failed["teacher"] and status.num_done == 6 - num_failed
    assert (status.state, status.num_samples, status.num_left, status.num_runs) == ("ended", 6, 0, 1)
    assert (status.num_unfinished, status.num_in_flight) == (num_failed, 0)
    assert status.rate_per_minute is not None and status.seconds_left is None
    (record,) = json.loads((folder / "run_record.json").read_text())["runs"]
    assert status.spent.answered.requests == record["spent"]["answered"]["requests"]
    assert status.spent.answered.cost_usd == pytest.approx(record["spent"]["answered"]["cost_usd"])
    assert main(["status", str(folder)]) == 0
    said = capsys.readouterr().out
    assert f"{folder}: ended" in said and f"{num_failed} (teacher {num_failed})" in said
    assert "Spent in this folder: " in said
    assert main(["status", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["failed"] == {"teacher": num_failed}


def wait_for(happened: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_while_a_run_goes_on_it_says_how_far_and_how_long(photos: Path, tmp_path: Path) -> None:
    go_on = threading.Event()
    waiting = threading.Semaphore(0)

    def waits(request: dict[str, Any]) -> Any:
        if num_turns(request) == 1 and request["seed"] % 2 and not is_probe(request):
            waiting.release()
            go_on.wait(60)
        return zoom_once(request)

    folder = tmp_path / "out"
    with ScriptedTeacher(waits) as server:
        flags = a_run(server, photos, folder, "--num_samples", 12, "--max_workers", 12)
        door = start_door("demo_concurrent.py", *flags, cwd=PACKAGE)
        assert waiting.acquire(timeout=60)
        wait_for(lambda: len(last_turns(server)) == 12)
        num_waiting = sum(seed % 2 for seed in last_turns(server))
        wait_for(lambda: len(list(folder.glob("trace_*.json"))) == 12 - num_waiting)
        time.sleep(1.1)  # the run began in an earlier second than it wrote its traces
        status = read_status(folder)
        assert (status.state, status.num_samples, status.num_done) == ("running", 12, 12 - num_waiting)
        assert (status.num_unfinished, status.num_in_flight, status.num_left) == ((num_waiting,) * 3)
        assert status.rate_per_minute and status.seconds_left and not status.failed
        go_on.set()
        door.communicate(timeout=120)
        assert door.wait() == 0
    after = read_status(folder)
    assert (after.state, after.num_done, after.num_left) == ("ended", 12, 0)
    assert (after.num_unfinished, after.num_in_flight) == (0, 0)


def last_turns(server: ScriptedTeacher) -> set[int]:
    """The samples, by their seeds, whose last turn was asked for."""
    return {each["seed"] for each in list(server.requests) if num_turns(each) == 1 and not is_probe(each)}


def test_of_a_killed_run_it_says_so(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stuck, asked = threading.Event(), threading.Event()

    def waits(request: dict[str, Any]) -> Any:
        if num_turns(request) == 1 and not is_probe(request):
            asked.set()
            stuck.wait(60)
        return zoom_once(request)

    folder = tmp_path / "out"
    with ScriptedTeacher(waits) as server:
        flags = a_run(server, photos, folder, "--num_samples", 1)
        door = start_door("demo_concurrent.py", *flags, cwd=PACKAGE)
        assert asked.wait(60)
        door.kill()
        door.communicate(timeout=60)
        stuck.set()
    status = read_status(folder)
    assert (status.state, status.num_done, status.num_unfinished, status.num_in_flight) == (
        "broken off",
        0,
        1,
        1,
    )
    main(["status", str(folder)])
    said = capsys.readouterr().out
    assert "broken off" in said and "the same command goes on" in said and "cut off" in said


def test_a_folder_that_is_no_runs_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no run's folder"):
        read_status(tmp_path)
    with pytest.raises(UsageError, match="there is no folder"):
        read_status(tmp_path / "none")
