"""The first signal of a run: nothing more is asked, and what was asked, and perhaps paid, is waited for."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from builders import file_bytes as file_of
from builders import noise, row, saved, teacher_settings
from conftest import PACKAGE
from fault_server import Fault, FaultServer, Status
from scripted_teacher import ScriptedTeacher, calls, is_probe, naming_the_word, num_turns, says
from warm_door import start_door

from distil.errors import RunHalted
from distil.store.journal import unfinished_samples
from distil.teacher.client import Teacher
from distil.teacher.slots import Slots

NUM_ROWS, NUM_AT_ONCE = 40, 32
ROTATES = calls(("image_rotate_tool", {"angle": 90}))


@pytest.fixture(scope="module")
def small_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty small photos, of as many widths."""
    rows = [row(file_of(noise(64 + number, 48, seed=number))) for number in range(NUM_ROWS)]
    return saved(tmp_path_factory.mktemp("grace") / "photos", rows)


def start(api_base: str, photos: Path, folder: Path, *flags: object) -> Any:
    return start_door(
        "demo_concurrent.py", "--api_base", api_base, "--dataset_path", photos, "--output_dir", folder,
        "--num_samples", 0, "--max_workers", NUM_AT_ONCE, "--fixed_workers", *flags, cwd=PACKAGE,
    )  # fmt: skip


def wait_until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def signalled(door: Any, *numbers: int) -> tuple[str, str, float]:
    """What an interrupted run then says on its two streams, and how long it took to end."""
    asked = time.monotonic()
    for number in numbers:
        door.send_signal(number)
        time.sleep(0.1)
    stdout, stderr = door.communicate(timeout=60)
    assert door.returncode == 130, stderr
    assert "Traceback" not in stderr
    return stdout, stderr, time.monotonic() - asked


class Held:
    """A teacher that answers the turns of samples when it is let, each reply by `answer`."""

    def __init__(self, answer: Callable[[dict[str, Any]], Any]) -> None:
        self.answer = answer
        self.is_let = threading.Event()
        self.turns: Counter[tuple[str, int]] = Counter()  # asked, by conversation and turn
        self.lock = threading.Lock()

    def __call__(self, request: dict[str, Any]) -> Any:
        if is_probe(request):
            return ROTATES
        with self.lock:
            self.turns[repr(request["messages"][1]), num_turns(request)] += 1
        self.is_let.wait(60)
        return self.answer(request)


def test_no_reply_that_is_in_flight_at_the_first_signal_is_thrown_away(
    small_photos: Path, tmp_path: Path
) -> None:
    teacher = Held(lambda request: says("\\boxed{1, 2}") if num_turns(request) else ROTATES)
    with ScriptedTeacher(teacher) as server:
        door = start(server.api_base, small_photos, tmp_path)
        wait_until(lambda: len(teacher.turns) == NUM_AT_ONCE)
        threading.Timer(0.5, teacher.is_let.set).start()
        stdout, stderr, seconds = signalled(door, signal.SIGINT)
        assert f"{NUM_AT_ONCE} requests are in flight, waited for up to 30 s (--grace_seconds)" in stdout
        assert stderr.splitlines()[-1].endswith("nothing is lost, the same command goes on from here")
        assert seconds < 15
        assert teacher.turns.total() == NUM_AT_ONCE, "nothing more is asked"
        assert len(unfinished_samples(tmp_path)) == NUM_AT_ONCE, "each paid turn is in the journal"
        assert not (tmp_path / "failed_samples.jsonl").exists()
        again = start(server.api_base, small_photos, tmp_path)
        _, stderr = again.communicate(timeout=60)
        assert again.returncode == 0, stderr
    assert set(teacher.turns.values()) == {1}, "no turn is asked again"
    assert teacher.turns.total() == 2 * NUM_ROWS


def test_a_sample_whose_answer_comes_in_time_has_its_trace_and_the_summary(
    small_photos: Path, tmp_path: Path
) -> None:
    teacher = Held(lambda _: says("\\boxed{1, 2}"))
    with ScriptedTeacher(teacher) as server:
        door = start(server.api_base, small_photos, tmp_path)
        wait_until(lambda: len(teacher.turns) == NUM_AT_ONCE)
        threading.Timer(0.3, teacher.is_let.set).start()
        stdout, _, _ = signalled(door, signal.SIGTERM)
    assert len(list(tmp_path.glob("trace_*.json"))) == NUM_AT_ONCE
    assert f"{NUM_AT_ONCE} finished, 0 failed" in stdout
    assert "Stopped: interrupted." in stdout


def test_a_request_that_fails_in_the_grace_time_is_neither_repeated_nor_a_failed_sample(
    small_photos: Path, tmp_path: Path
) -> None:
    teacher = Held(lambda _: (500, {"error": {"message": "broken"}}))
    with ScriptedTeacher(teacher) as server:
        door = start(server.api_base, small_photos, tmp_path)
        wait_until(lambda: len(teacher.turns) == NUM_AT_ONCE)
        threading.Timer(0.3, teacher.is_let.set).start()
        _, _, seconds = signalled(door, signal.SIGINT)
    assert seconds < 15
    assert teacher.turns.total() == NUM_AT_ONCE
    assert not (tmp_path / "failed_samples.jsonl").exists()


def test_a_server_that_never_answers_is_left_when_the_grace_time_is_over(
    small_photos: Path, tmp_path: Path
) -> None:
    teacher = Held(lambda _: ROTATES)
    with ScriptedTeacher(teacher) as server:
        door = start(server.api_base, small_photos, tmp_path, "--grace_seconds", 1.5)
        wait_until(lambda: len(teacher.turns) == NUM_AT_ONCE)
        stdout, _, seconds = signalled(door, signal.SIGINT)
        teacher.is_let.set()
    assert "for up to 1.5 s" in stdout
    assert 1.4 < seconds < 10


@pytest.mark.parametrize("flags", [(), ("--grace_seconds", 0)])
def test_the_second_signal_and_one_without_grace_leave_at_once(
    flags: tuple[object, ...], small_photos: Path, tmp_path: Path
) -> None:
    teacher = Held(lambda _: ROTATES)
    with ScriptedTeacher(teacher) as server:
        door = start(server.api_base, small_photos, tmp_path, *flags)
        wait_until(lambda: len(teacher.turns) == NUM_AT_ONCE)
        numbers = [signal.SIGINT] if flags else [signal.SIGINT, signal.SIGTERM]
        _, _, seconds = signalled(door, *numbers)
        teacher.is_let.set()
    assert seconds < 8


@pytest.mark.parametrize(
    "refusal",
    [Status(503), Status(429, "Retry-After: 600\r\n"), Status(500), Status(503, "Retry-After: 600\r\n")],
)
def test_waits_for_a_server_end_at_the_first_signal(
    refusal: Status, small_photos: Path, tmp_path: Path
) -> None:
    def choose(request: bytes) -> Fault:
        if b"Call the tool" in request:
            return lambda exchange: exchange.reply(200, json.dumps(naming_the_word(ROTATES)).encode())
        is_listing = request.startswith(b"GET")
        refused.extend([] if is_listing else [request])
        return refusal if not is_listing else lambda exchange: exchange.reply(404, b"{}")

    refused: list[bytes] = []
    with FaultServer(choose=choose) as server:
        door = start(server.api_base, small_photos, tmp_path, "--max_workers", 4, "--model", "qwen3-vl")
        wait_until(lambda: len(refused) > 3)
        time.sleep(0.3)
        stdout, _, seconds = signalled(door, signal.SIGINT)
    assert "Interrupted: no request is in flight; nothing more is asked" in stdout
    assert seconds < 8


def test_who_waits_for_a_slot_is_let_go_and_who_has_one_gets_its_reply() -> None:
    teacher = Held(lambda _: says("here"))
    with ScriptedTeacher(teacher) as server, ThreadPoolExecutor(2) as pool:
        settings = teacher_settings(server.api_base, model="scripted-qwen3-vl")
        with Teacher(settings, slots=Slots(1, is_fixed=True)) as asked:
            messages = [b'{"role": "system", "content": "s"}', b'{"role": "user", "content": "q"}']
            first = pool.submit(asked.ask, messages, 1)
            wait_until(lambda: teacher.turns)
            second = pool.submit(asked.ask, messages, 2)
            time.sleep(0.1)
            lines: list[str] = []
            asked.tell_by(lines.append)
            asked.drain(3)
            with pytest.raises(RunHalted):
                second.result(5)
            teacher.is_let.set()
            assert first.result(5).content == "here"
            with pytest.raises(RunHalted):
                asked.ask(messages, 3)
    assert lines == [
        "Interrupted: 1 request is in flight, waited for up to 3 s (--grace_seconds); "
        "nothing more is asked. The next signal leaves at once."
    ]
    assert len(server.requests) == 1


def test_samples_that_wait_for_what_is_left_of_a_limit_are_let_go(small_photos: Path, tmp_path: Path) -> None:
    teacher = Held(lambda _: ROTATES)
    num_at_once = 4  # of ten turns each, as long as none has finished
    with ScriptedTeacher(teacher) as server:
        door = start(server.api_base, small_photos, tmp_path, "--max_calls", 1 + 10 * num_at_once)
        wait_until(lambda: len(teacher.turns) == num_at_once)
        threading.Timer(0.5, teacher.is_let.set).start()
        stdout, _, seconds = signalled(door, signal.SIGINT)
    assert f"{num_at_once} requests are in flight" in stdout
    assert seconds < 15
    assert teacher.turns.total() == num_at_once
    assert len(unfinished_samples(tmp_path)) == num_at_once
