"""Signals at the worst of moments: none is lost, whatever the main thread is at."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PACKAGE
from fault_server import FaultServer, Status
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says
from warm_door import WarmDoor, start_door

from distil.run.threads import run_samples

WRAPPER = Path(__file__).with_name("signal_in_a_callback.py")
ADVICE = "interrupted; nothing is lost, the same command goes on from here"


class Stalling:
    """A teacher that goes silent at its so-manieth request, until it is told to go on.

    `has_stalled` is set when so many workers wait for it.
    """

    def __init__(self, stalls_at: int, num_workers: int = 1) -> None:
        self.stalls_at, self.num_workers = stalls_at, num_workers
        self.has_stalled, self.goes_on = threading.Event(), threading.Event()
        self.num_requests = 0

    def __call__(self, request: dict[str, Any]) -> Any:
        self.num_requests += 1
        if self.num_requests >= self.stalls_at:
            if self.num_requests >= self.stalls_at + self.num_workers - 1:
                self.has_stalled.set()
            self.goes_on.wait(60)
        if is_probe(request) or ("tools" in request and num_turns(request) == 0):
            return calls(("image_rotate_tool", {"angle": 90}))
        return says("\\boxed{1, 2}")


def start(*arguments: object) -> Any:
    return start_door(str(WRAPPER), *arguments, cwd=PACKAGE)


def run_arguments(api_base: str, photos: Path, folder: Path) -> list[object]:
    return ["demo_concurrent.py", "--api_base", api_base, "--dataset_path", photos, "--output_dir", folder,
            "--num_samples", 12, "--max_workers", 2, "--grace_seconds", 1]  # fmt: skip


def interrupt(door: Any) -> str:
    """Have the signal land in a callback; what the door then says, having ended as interrupted."""
    asked = time.monotonic()
    os.kill(door.pid, signal.SIGUSR1)
    _, stderr = door.communicate(timeout=30)
    assert door.returncode == 130, stderr
    assert time.monotonic() - asked < 15
    assert "Traceback" not in stderr and "Exception ignored" not in stderr
    assert "interrupted" in stderr.splitlines()[-1]
    return str(stderr)


def wait_until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_signal_in_a_callback_ends_a_run_with_samples_in_flight(photos: Path, tmp_path: Path) -> None:
    teacher = Stalling(stalls_at=10, num_workers=2)  # neither is then writing a trace
    with ScriptedTeacher(teacher) as server:
        door = start(*run_arguments(server.api_base, photos, tmp_path))
        assert teacher.has_stalled.wait(60)
        stderr = interrupt(door)
        teacher.goes_on.set()
    assert stderr.splitlines()[-1].endswith(ADVICE)
    (record,) = json.loads((tmp_path / "run_record.json").read_text())["runs"]
    assert record["stopped_by"] == "interrupted"
    assert record["num_finished"] == len(list(tmp_path.glob("trace_*.json"))) > 0


def test_a_signal_in_a_callback_ends_a_run_that_waits_for_its_server(photos: Path, tmp_path: Path) -> None:
    def goes_away(request: dict[str, Any]) -> Any:
        return calls(("image_rotate_tool", {"angle": 90})) if is_probe(request) else (503, {"error": "away"})

    with ScriptedTeacher(goes_away) as server:
        door = start(*run_arguments(server.api_base, photos, tmp_path))
        wait_until(lambda: len(server.requests) > 7)  # after five failures it counts as down
        assert interrupt(door).splitlines()[-1].endswith(ADVICE)


def test_a_signal_in_a_callback_ends_the_probe(photos: Path, tmp_path: Path) -> None:
    teacher = Stalling(stalls_at=1)
    with ScriptedTeacher(teacher) as server:
        door = start(*run_arguments(server.api_base, photos, tmp_path))
        assert teacher.has_stalled.wait(60)
        assert interrupt(door).splitlines()[-1].endswith(ADVICE)
        teacher.goes_on.set()


def test_a_signal_in_a_callback_ends_the_wait_for_a_server_that_is_not_up(
    photos: Path, tmp_path: Path
) -> None:
    with FaultServer(Status(503)) as server:
        door = start(*run_arguments(server.api_base, photos, tmp_path))
        wait_until(lambda: server.requests)
        interrupt(door)


def test_a_signal_in_a_callback_ends_the_doctor() -> None:
    teacher = Stalling(stalls_at=2)
    with ScriptedTeacher(teacher) as server:
        door = start("cli.py", "doctor", "--api_base", server.api_base)
        assert teacher.has_stalled.wait(60)
        interrupt(door)
        teacher.goes_on.set()


@pytest.mark.parametrize("command", ["verify", "view"])
def test_a_signal_in_a_callback_ends_commands_that_read(command: str, tmp_path: Path) -> None:
    fifo = tmp_path / "trace_00000.json"  # a file that takes for ever to read
    os.mkfifo(fifo)
    door = start("cli.py", command, tmp_path, *(["--batch"] if command == "view" else []))
    writing = os.open(fifo, os.O_WRONLY)  # returns when it is opened to be read
    time.sleep(0.5)  # and now it waits in `read`, which a signal breaks off; one just before would not
    interrupt(door)
    os.close(writing)


def test_a_signal_in_a_callback_ends_the_drawing_and_clears_it_away(tmp_path: Path) -> None:
    door = start("cli.py", "signs", "--output_dir", tmp_path / "signs", "--num_rows", 3000)
    wait_until(lambda: any(tmp_path.glob(".signs-*/rows.arrow")))
    interrupt(door)
    assert not list(tmp_path.iterdir())


def test_in_process_an_interrupt_is_an_exception_as_ever() -> None:
    """Nothing of ours handles signals where a caller's process runs us."""

    class Solver:
        aborted = 0

        def solve(self, index: int) -> int:
            if index == 3:
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            return index

        def abort(self) -> None:
            self.aborted += 1

    solver = Solver()
    with pytest.raises(KeyboardInterrupt):
        list(run_samples(range(1000), solver.solve, 2, abort=solver.abort))
    assert solver.aborted == 1


def test_what_the_tests_start_is_a_warm_door(photos: Path, tmp_path: Path) -> None:
    """Its pid is the door's own: a signal that cannot be handled ends it, and is its exit code."""
    teacher = Stalling(stalls_at=1)
    with ScriptedTeacher(teacher) as server:
        door = start_door(*run_arguments(server.api_base, photos, tmp_path), cwd=PACKAGE)
        assert isinstance(door, WarmDoor) or not hasattr(os, "pidfd_open")
        assert teacher.has_stalled.wait(60)
        assert door.poll() is None
        door.kill()
        door.communicate(timeout=30)
        teacher.goes_on.set()
    assert door.returncode == -signal.SIGKILL
