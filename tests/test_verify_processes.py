"""`distil verify` by several processes: the same verdicts, and no process that outlives it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import file_bytes, noise, row, saved
from conftest import PACKAGE, RunDoor
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says
from warm_door import start_door

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere one process verifies")

NUM_TRACES = 60  # enough for two processes


def policy(request: dict[str, Any]) -> Any:
    """A crop, or for some photos a program; then an answer."""
    if is_probe(request):
        return calls(("image_zoom_in_tool", {"bbox_2d": [0, 0, 9, 9]}))
    if num_turns(request):
        return says("\\boxed{1, 2}")
    url = request["messages"][1]["content"][0]["image_url"]["url"]
    if zlib.crc32(url.encode()) % 8 == 0:
        return calls(("python_code_tool", {"code": "result_image = image.rotate(90)"}))
    return calls(("image_zoom_in_tool", {"bbox_2d": [100, 100, 800, 800]}))


@pytest.fixture(scope="module")
def traces(run_door: RunDoor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces of as many small photos, some with code."""
    folder = tmp_path_factory.mktemp("many")
    photos = [row(file_bytes(noise(48, 32, seed=number))) for number in range(NUM_TRACES)]
    with ScriptedTeacher(policy) as server:
        result = run_door(
            "demo_concurrent.py", "--api_base", server.api_base, "--dataset_path",
            saved(folder / "photos", photos), "--num_samples", 0, "--output_dir", folder / "traces",
            "--tools", "zoom,python_code", "--max_workers", 4,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder / "traces"


@pytest.fixture
def stuck(traces: Path, tmp_path: Path) -> Path:
    """The same traces, and one last that takes for ever to read."""
    folder = tmp_path / "stuck"
    shutil.copytree(traces, folder)
    os.mkfifo(never_ending(folder))
    return folder


@pytest.fixture
def fifo(stuck: Path) -> Iterator[int]:
    """The other end of the last trace: who reads it waits until this is closed."""
    descriptor = os.open(never_ending(stuck), os.O_RDWR)
    yield descriptor
    os.close(descriptor)


def children(pid: int) -> set[int]:
    """The processes that a process has started and that still run."""
    found = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found |= {int(child) for child in task.read_text().split()}
    return {child for child in found if is_alive(child)}


def descendants(pid: int) -> set[int]:
    """All below a process."""
    below = children(pid)
    return below.union(*map(descendants, below)) if below else below


def is_alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(what: Callable[[], Any]) -> Any:
    """What it gives, as soon as that is true."""
    deadline = time.monotonic() + 60
    while not (value := what()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return value


def never_ending(folder: Path) -> Path:
    """The trace that never ends."""
    return folder / f"trace_{NUM_TRACES:05d}.json"


def reads(pid: int, path: Path) -> bool:
    """Whether a process has a file open."""
    try:
        links = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False
    for link in links:
        with contextlib.suppress(OSError):
            if link.readlink() == path:
                return True
    return False


def reader_of(folder: Path, door: int) -> int | None:
    """The process below a door that waits for the trace that never ends."""
    return next((child for child in children(door) if reads(child, never_ending(folder))), None)


def start(folder: Path, *flags: object) -> Any:
    return start_door("cli.py", "verify", folder, *flags, cwd=PACKAGE)


def test_verdicts_lines_and_exit_code_do_not_depend_on_the_number_of_processes(
    traces: Path, run_door: RunDoor, tmp_path: Path
) -> None:
    folder = tmp_path / "edited"
    shutil.copytree(traces, folder)
    for number in range(0, NUM_TRACES, 2):
        path = folder / f"trace_{number:05d}.json"
        trace = json.loads(path.read_text())
        trace["final_response"] += "!"
        path.write_text("{" if number % 3 else json.dumps(trace))
    for flags in ((), ("--verbose",)):
        ended = [
            run_door("cli.py", "verify", folder, "--max_workers", count, *flags) for count in (1, 2, 3, 16)
        ]
        assert {(each.returncode, each.stderr) for each in ended} == {(1, "")}
        assert len({each.stdout for each in ended}) == 1
        lines = ended[0].stdout.splitlines()
        assert lines[-1] == "30 matched, 10 mismatched (edited trace 10), 20 unreadable"
        assert len(lines) == (NUM_TRACES + 1 if flags else 22)
        names = [line.partition(":")[0] for line in lines if line.startswith("trace_")]
        assert names == sorted(names)
    assert run_door("cli.py", "verify", traces, "--max_workers", 2).stdout == (
        f"{NUM_TRACES} matched, 0 mismatched, 0 unreadable\n"
    )


@pytest.mark.parametrize("flags", [("--max_workers", 1), ("--max_workers", 4)])
def test_one_core_or_few_traces_start_no_process(stuck: Path, fifo: int, flags: tuple[object, ...]) -> None:
    if flags[1] != 1:
        for path in sorted(stuck.glob("trace_*.json"))[10:-1]:
            path.unlink()
    door = start(stuck, *flags)
    wait_for(lambda: reads(door.pid, never_ending(stuck)))
    workers = {child for child in children(door.pid) if b"fork_server" not in command_line(child)}
    door.kill()
    door.communicate(timeout=30)
    assert not workers


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_no_process(stuck: Path, fifo: int, number: signal.Signals) -> None:
    door = start(stuck, "--max_workers", 2)
    wait_for(lambda: reader_of(stuck, door.pid))
    assert len(children(door.pid)) == 2
    below = descendants(door.pid)
    assert any(b"fork_server" in command_line(pid) for pid in below)
    os.kill(door.pid, number)
    _, stderr = door.communicate(timeout=30)
    assert door.returncode == (130 if number != signal.SIGKILL else -signal.SIGKILL)
    assert stderr.strip() == ("distil: interrupted" if number != signal.SIGKILL else "")
    wait_for(lambda: not any(map(is_alive, below)))


def test_a_signal_to_all_processes_of_a_terminal_is_told_once(stuck: Path, fifo: int) -> None:
    door = start(stuck, "--max_workers", 2)
    wait_for(lambda: reader_of(stuck, door.pid))
    for pid in [*children(door.pid), door.pid]:
        os.kill(pid, signal.SIGINT)
    _, stderr = door.communicate(timeout=30)
    assert (door.returncode, stderr.strip()) == (130, "distil: interrupted")


def test_a_process_that_is_killed_is_told_and_the_rest_is_verified_all_the_same(
    stuck: Path, fifo: int
) -> None:
    door = start(stuck, "--max_workers", 2)
    killed = wait_for(lambda: reader_of(stuck, door.pid))
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: reader_of(stuck, door.pid) not in (None, killed))
    assert len(children(door.pid)) == 1
    end_of_file(fifo)
    stdout, stderr = door.communicate(timeout=60)
    lines = stdout.splitlines()
    assert (door.returncode, stderr) == (1, "")
    assert lines[0].startswith("Warning: a worker process was ended from outside")
    assert lines[-1] == f"{NUM_TRACES} matched, 0 mismatched, 1 unreadable"


def test_where_even_a_process_alone_is_killed_the_command_says_so_and_ends(stuck: Path, fifo: int) -> None:
    door, killed = start(stuck, "--max_workers", 2), None
    for _ in range(2):
        killed = wait_for(lambda: (found := reader_of(stuck, door.pid)) != killed and found)  # noqa: B023
        os.kill(killed, signal.SIGKILL)
    _, stderr = door.communicate(timeout=60)
    assert door.returncode == 2
    assert "a worker process was ended from outside" in stderr
    assert "Traceback" not in stderr


def test_of_an_export_whose_process_is_killed_no_word_is_of_verifying(
    stuck: Path, fifo: int, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    door = start_door(
        "cli.py", "export", stuck, "--out", out, "--format", "trl", "--max_workers", 2, cwd=PACKAGE
    )
    killed = wait_for(lambda: reader_of(stuck, door.pid))
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: reader_of(stuck, door.pid) not in (None, killed))
    end_of_file(fifo)
    stdout, stderr = door.communicate(timeout=60)
    assert (door.returncode, stderr) == (1, "")
    assert "Warning: a worker process was ended from outside" in stdout and "verif" not in stdout
    assert f"{NUM_TRACES} train rows" in stdout


def end_of_file(fifo: int) -> None:
    """Let the reader of the last trace come to its end."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, fifo)  # closes the only writing end; the fixture has something to close
    os.close(null)


def test_a_terminal_shows_a_bar_and_a_pipe_shows_none(traces: Path) -> None:
    for shows in (True, False):
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (25, 80))
        door = subprocess.Popen(
            [sys.executable, "cli.py", "verify", traces, "--max_workers", "2"],
            cwd=PACKAGE,
            stdout=subprocess.PIPE,
            stderr=theirs if shows else subprocess.PIPE,
        )
        os.close(theirs)
        shown = b""
        if shows:
            try:
                while more := os.read(ours, 65536):
                    shown += more
            except OSError:
                pass  # the terminal has no other end any more
        stdout, stderr = door.communicate(timeout=60)
        os.close(ours)
        assert stdout.decode() == f"{NUM_TRACES} matched, 0 mismatched, 0 unreadable\n"
        assert (f"{NUM_TRACES}/{NUM_TRACES}".encode() in shown) is shows
        assert not stderr
