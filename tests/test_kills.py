"""SIGKILL at any instant of the work: while turns are in flight, just answered, or a trace is being written."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from conftest import PACKAGE, photo_bytes, save_photos
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says
from warm_door import start_door

from distil.records import SampleId
from distil.rollout import turn_seed
from distil.store.journal import FOLDER

NUM_SAMPLES, NUM_TURNS, NUM_WORKERS, NUM_KILLS = 72, 3, 3, 32
Turn = tuple[int, int]  # a row and the number of its turn, from 1
TURN_OF_SEED = {
    turn_seed(0, SampleId(row), turn): (row, turn)
    for row in range(NUM_SAMPLES)
    for turn in range(1, NUM_TURNS + 1)
}
ALL_TURNS = set(TURN_OF_SEED.values())


def reply_to(request: dict[str, Any]) -> Any:
    """Zoom, rotate, answer; depends on nothing but the request."""
    turn = num_turns(request)
    if is_probe(request) or turn == 0:
        return calls(("image_zoom_in_tool", {"bbox_2d": [100, 100, 800, 700]}), content=f"at {turn}")
    if turn == 1:
        return calls(("image_rotate_tool", {"angle": request["seed"] % 360}))
    return says(f"\\boxed{{{request['seed'] % 90}, 2.35}}", reasoning="done")


def stored_turns(folder: Path) -> set[Turn]:
    """The turns on disk: whole lines of journals, and all those of finished traces."""
    stored, journals = set(), None
    while journals != (journals := sorted((folder / FOLDER).glob("*.jsonl"))):  # turns move to newer files
        for path in journals:
            with suppress(
                FileNotFoundError
            ):  # no unfinished sample's any more: its traces are looked at below
                for line in path.read_bytes().splitlines(keepends=True):
                    if line.endswith(b"\n"):
                        turn = json.loads(line)
                        stored.add((turn["sample_index"], turn["turn"]))
    for path in folder.glob("trace_*.json"):
        row = int(path.stem.removeprefix("trace_"))
        stored |= {(row, turn) for turn in range(1, NUM_TURNS + 1)}
    return stored


@dataclass
class Watching:
    """A teacher that sees every turn come and go, and holds each against what is on disk."""

    folder: Path
    at_request: Callable[[], None] = lambda: None
    at_reply: Callable[[], None] = lambda: None
    asked: Counter[Turn] = field(default_factory=Counter)
    asked_now: set[Turn] = field(default_factory=set)  # in this start of the run
    broken_promises: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, request: dict[str, Any]) -> Any:
        if is_probe(request):
            return reply_to(request)
        row, turn = TURN_OF_SEED[request["seed"]]
        stored = stored_turns(self.folder)
        with self.lock:
            self.asked[row, turn] += 1
            self.asked_now.add((row, turn))
            if (row, turn) in stored:
                self.broken_promises.append(f"turn {turn} of row {row} is stored and asked for again")
            if turn > 1 and (row, turn - 1) not in stored:
                self.broken_promises.append(f"turn {turn - 1} of row {row} is used and not stored")
        self.at_request()
        time.sleep(0.02)
        self.at_reply()
        return reply_to(request)


@contextmanager
def killing(door: Any, teacher: Watching, how: str, chance: random.Random) -> Iterator[None]:
    """Have the door killed at an instant of its work."""
    countdown = iter(range(chance.randint(1, 4) - 1, -1, -1))
    over = threading.Event()

    def kill(seconds: float = 0.0) -> None:
        over.wait(seconds)
        door.kill()

    def at_the_last_one(act: Callable[[], None]) -> Callable[[], None]:
        return lambda: act() if next(countdown, 1) == 0 else None

    def later(seconds: float) -> Callable[[], None]:
        return lambda: threading.Thread(target=kill, args=(seconds,)).start()

    def when_a_trace_is_written() -> None:
        tries = iter(range(3))  # a rename may be faster than we
        while not over.is_set():
            if is_half_written(teacher.folder):
                door.send_signal(signal.SIGSTOP)
                if is_half_written(teacher.folder) or next(tries, None) is None:
                    kill()
                    return
                door.send_signal(signal.SIGCONT)

    if how == "received":
        teacher.at_request = at_the_last_one(kill)
    elif how == "replied":
        teacher.at_reply = at_the_last_one(later(chance.uniform(0, 0.01)))
    elif how == "some time":
        countdown = iter([0])
        teacher.at_request = at_the_last_one(later(chance.uniform(0, 0.2)))
    else:
        threading.Thread(target=when_a_trace_is_written).start()
    yield
    over.set()
    teacher.at_request = teacher.at_reply = lambda: None


def wait_for_handlers() -> None:
    """Let the teacher read what a killed door had sent, or it would be counted as asked by the next one."""
    handlers = [thread for thread in threading.enumerate() if "process_request" in thread.name]
    for handler in handlers:
        handler.join(timeout=10)
        assert not handler.is_alive()


def trace_files(folder: Path) -> list[str]:
    """Names of traces and of what is to become one."""
    with suppress(FileNotFoundError):
        return [path.name for path in folder.iterdir() if "trace_" in path.name]
    return []


def is_half_written(folder: Path) -> bool:
    return any(name.endswith(".tmp") for name in trace_files(folder))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("trace_*.json")}


def test_a_run_killed_at_any_instant_pays_no_stored_turn_twice(tmp_path: Path) -> None:
    """It ends with the very files of a run that was left alone, and only what was in flight is asked again."""
    small = [photo_bytes(seed, (160, 120)) for seed in range(8)]
    photos = save_photos(tmp_path / "photos", [small[row % 8] for row in range(NUM_SAMPLES)])

    def start(server: ScriptedTeacher, name: str) -> Any:
        return start_door(
            "demo_concurrent.py", "--api_base", server.api_base, "--dataset_path", photos, "--num_samples", 0,
            "--output_dir", tmp_path / name, "--max_workers", NUM_WORKERS, "--fixed_workers", cwd=PACKAGE,
        )  # fmt: skip

    with ScriptedTeacher(reply_to) as quiet:
        assert start(quiet, "whole").communicate(timeout=120)[0]
    folder, chance = tmp_path / "killed", random.Random(7)
    teacher = Watching(folder)
    kills: Counter[str] = Counter()
    num_lost = 0
    with ScriptedTeacher(teacher) as server:
        for how in islice(cycle(["received", "replied", "some time", "writing"]), NUM_KILLS):
            before, teacher.asked_now = stored_turns(folder), set()
            door = start(server, "killed")
            with killing(door, teacher, how, chance):
                _, stderr = door.communicate(timeout=120)
            wait_for_handlers()
            if door.returncode == 0:
                break
            assert door.returncode == -signal.SIGKILL, stderr
            stored = stored_turns(folder)
            lost = teacher.asked_now - stored
            assert before <= stored, "what was stored stays"
            assert len(lost) <= NUM_WORKERS, "no more than was in flight"
            num_lost += len(lost)
            kills[how] += 1
            kills["in flight"] += bool(lost)
            kills["turns in a journal"] += any((folder / FOLDER).glob("*.jsonl"))
            kills["a trace half written"] += is_half_written(folder)
        last = start(server, "killed")
        _, stderr = last.communicate(timeout=120)
    assert last.returncode == 0, stderr
    assert teacher.broken_promises == []
    assert set(teacher.asked) == ALL_TURNS
    assert sum(teacher.asked.values()) == len(ALL_TURNS) + num_lost
    assert contents(folder) == contents(tmp_path / "whole")
    assert len(contents(folder)) == NUM_SAMPLES
    assert not (folder / FOLDER).exists() and not list(folder.glob(".*.tmp"))
    assert all(json.loads(data) for data in contents(folder).values())
    # The kills landed where they were meant to.
    assert min(kills[how] for how in ("received", "replied", "some time", "writing")) >= 5, kills
    assert kills["in flight"] >= 15 and kills["turns in a journal"] >= 15, kills
    assert kills["a trace half written"] >= 1, kills
