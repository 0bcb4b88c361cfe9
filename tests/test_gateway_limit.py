"""A gateway that gives up sooner than a generation takes is no outage: the run stops before more is billed."""

from __future__ import annotations

import itertools
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from builders import patience
from conftest import RunDoor
from scripted_teacher import ScriptedTeacher, is_probe, says, turns

from distil.errors import TeacherRefused
from distil.teacher.availability import Availability

LIMIT_SECONDS = 1.2
OPENS = turns(says("\\boxed{1, 2}"))


def run(run_door: RunDoor, server: ScriptedTeacher, photos: Path, folder: Path, *flags: object) -> Any:
    return run_door(
        "demo_concurrent.py", "--api_base", server.api_base, "--dataset_path", photos, "--output_dir", folder,
        "--num_samples", 12, *flags,
    )  # fmt: skip


@pytest.mark.parametrize("status", [504, 408, 524, 502])
def test_a_gateway_that_gives_up_each_time_stops_the_run_with_what_to_do(
    status: int, run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    def gateway(request: dict[str, Any]) -> Any:
        if is_probe(request):
            return OPENS(request)
        time.sleep(LIMIT_SECONDS)
        return status, {"error": {"message": "upstream timed out"}}

    with ScriptedTeacher(gateway) as server:
        started = time.monotonic()
        result = run(run_door, server, photos, tmp_path, "--max_workers", 2)
        assert time.monotonic() - started < 30
    assert result.returncode == 2
    assert "gives up after 1." in result.stderr
    assert "proxy_read_timeout" in result.stderr and "--max_tokens" in result.stderr
    assert f"HTTP {status}" in result.stderr
    assert len(server.requests) <= 1 + 4 + 1, "a few, and none of an outage"
    (record,) = json.loads((tmp_path / "run_record.json").read_text())["runs"]
    assert "gives up after" in record["stopped_by"]
    assert not (tmp_path / "failed_samples.jsonl").exists()


def test_with_replies_among_them_it_is_something_that_passes(
    run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    lock, numbers = threading.Lock(), itertools.count()

    def gateway(request: dict[str, Any]) -> Any:
        if is_probe(request):
            return OPENS(request)
        with lock:
            number = next(numbers)
        if number % 5 == 0:  # the first is answered, then four are not
            return OPENS(request)
        time.sleep(1.05)
        return 504, {"error": {"message": "upstream timed out"}}

    with ScriptedTeacher(gateway) as server:
        result = run(run_door, server, photos, tmp_path, "--num_samples", 2, "--max_workers", 1)
    assert result.returncode == 0, result.stderr
    assert len(server.requests) == 1 + 1 + 5


def availability() -> Availability:
    return Availability(patience(), "here")


@pytest.mark.parametrize(
    "seconds",
    [
        [0.01] * 20,  # nobody behind the proxy
        [60.0, 60.1, 60.0],  # too few
        [20.0, 60.0, 31.0, 45.0, 20.0, 52.0],  # of no one length
    ],
)
def test_other_refusals_of_a_gateway_are_an_outage_as_ever(seconds: list[float]) -> None:
    server = availability()
    for each in seconds:
        server.note_gave_up(each, "HTTP 504")


def test_time_outs_of_one_length_are_told_by_their_length() -> None:
    server = availability()
    for each in (20.0, 60.4, 60.0, 61.0):
        server.note_gave_up(each, "HTTP 504")
    with pytest.raises(TeacherRefused, match="at here gives up after 60 s: 4 requests"):
        server.note_gave_up(60.2, "HTTP 504")
