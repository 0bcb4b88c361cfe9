"""Several servers: samples spread, a sample's turns stay together, a dead replica is left."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from builders import teacher_settings
from conftest import RunDoor
from fault_server import FaultServer, hang_up, stall
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says

from distil.errors import DeadlinePassed, RunHalted, TeacherError, TeacherRefused, UsageError
from distil.spending.budget import Budget
from distil.teacher.address import find_teacher
from distil.teacher.client import Teacher
from distil.teacher.replicas import Replicas
from distil.teacher.slots import Slots

QUICK = {"max_retries": 40, "first_pause_seconds": 0.01, "max_pause_seconds": 0.05}
SHORT = {"probe_pause_seconds": 0.05, "max_probe_pause_seconds": 0.1, "max_outage_seconds": 0.5}
URLS = ("http://a/v1", "http://b/v1", "http://c/v1")


def test_samples_go_where_there_are_fewest() -> None:
    replicas = Replicas(URLS)
    taken = [replicas.take() for _ in range(6)]
    assert sorted(taken) == sorted(URLS * 2)
    replicas.give_back(URLS[1])
    assert replicas.take() == URLS[1]


def test_one_after_another_they_are_spread_as_well() -> None:
    replicas = Replicas(URLS)
    taken = []
    for _ in range(6):
        taken.append(replicas.take())
        replicas.give_back(taken[-1])
    assert sorted(taken) == sorted(URLS * 2)


def test_a_dead_replica_rests_longer_each_time_and_is_tried_again() -> None:
    now = 0.0
    replicas = Replicas(URLS[:2], clock=lambda: now)
    for rest_seconds in (5.0, 10.0, 20.0):
        replicas.mark_dead(URLS[0])
        replicas.mark_dead(URLS[0])  # of another request that met the same death
        assert {replicas.take() for _ in range(4)} == {URLS[1]}
        now += rest_seconds - 0.1
        assert replicas.take() == URLS[1]
        now += 0.2
        assert replicas.take() == URLS[0]
    replicas.mark_alive(URLS[0])
    replicas.mark_dead(URLS[0])
    now += 5.1
    assert replicas.take() == URLS[0]


def test_where_all_are_dead_one_is_tried_all_the_same() -> None:
    replicas = Replicas(URLS[:2], clock=lambda: 0.0)
    for url in URLS[:2]:
        replicas.mark_dead(url)
    assert replicas.take() in URLS
    assert replicas.take(without=URLS[:1]) == URLS[1]


def message(sample: int, turn: int) -> list[bytes]:
    user = json.dumps({"role": "user", "content": f"sample {sample}"}).encode()
    return [b'{"role": "system", "content": "s"}', user] + [b'{"role": "assistant", "content": "x"}'] * turn


def solve_all(teacher: Teacher, num_samples: int, num_threads: int = 4) -> list[str]:
    """Three turns of each sample in some threads; what failed."""
    waiting, errors = iter(range(num_samples)), list[str]()
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                sample = next(waiting, None)
            if sample is None:
                return
            try:
                with teacher.asking() as asked:
                    for turn in range(3):
                        assert asked.ask(message(sample, turn), 0).content == f"turn {turn}"
            except (TeacherError, RunHalted) as error:
                errors.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return errors


def script(request: dict[str, Any]) -> Any:
    time.sleep(0.005)
    return says(f"turn {num_turns(request)}")


def sample_of(request: dict[str, Any]) -> str:
    return str(request["messages"][1]["content"])


@contextmanager
def replicated(*api_bases: str, slots: Slots | None = None) -> Iterator[Teacher]:
    settings = teacher_settings(api_bases[0], "k" * 8, "m", timeout_seconds=20, **QUICK, **SHORT)
    with Teacher(settings, (), slots or Slots(4), Budget(), api_bases) as teacher:
        yield teacher


def test_samples_are_spread_and_the_turns_of_one_stay_together() -> None:
    with ScriptedTeacher(script) as a, ScriptedTeacher(script) as b:
        with replicated(a.api_base, b.api_base) as teacher:
            assert solve_all(teacher, 20) == []
    servers: dict[str, set[int]] = defaultdict(set)
    for number, server in enumerate((a, b)):
        for request in server.requests:
            servers[sample_of(request)].add(number)
    assert all(len(asked) == 1 for asked in servers.values())
    assert len(a.requests) + len(b.requests) == 60
    assert min(len(a.requests), len(b.requests)) >= 18


class MortalServer(ScriptedTeacher):
    """A server whose connections all break after a number of requests."""

    def __init__(self, script: Callable[[dict[str, Any]], Any], num_lives: int) -> None:
        super().__init__(self._answer)
        self.num_lives = num_lives
        self._living_script = script

    def _answer(self, request: dict[str, Any]) -> Any:
        if len(self.requests) > self.num_lives:
            raise ConnectionResetError("dead")  # the handler's thread ends, and with it the connection
        return self._living_script(request)


@pytest.fixture(autouse=True)
def quiet_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socketserver.BaseServer.handle_error", lambda *_: None)


def test_one_dies_in_the_middle_and_every_sample_is_finished() -> None:
    with MortalServer(script, 10) as a, ScriptedTeacher(script) as b:
        with replicated(a.api_base, b.api_base) as teacher:
            assert solve_all(teacher, 20) == []
    assert len(b.requests) == 60 - 10
    assert len(a.requests) <= 10 + 4 * 2  # what was under way, and no sample after it


def test_a_replica_that_answers_with_errors_alone_is_left() -> None:
    for status in (500, 502, 503, 504):
        gateway = lambda _, status=status: (status, {"error": {"message": "no upstream"}})
        with ScriptedTeacher(gateway) as dead, ScriptedTeacher(script) as alive:
            with replicated(dead.api_base, alive.api_base) as teacher:
                assert solve_all(teacher, 12) == []
            assert len(dead.requests) <= 2 * 4, "each thread meets it once, and once more"
            assert len(alive.requests) == 36


def test_a_turn_has_one_deadline_whatever_replicas_it_meets() -> None:
    with FaultServer(stall) as a, FaultServer(stall) as b:
        settings = teacher_settings(
            a.api_base, "k" * 8, "m", timeout_seconds=0.4, turn_timeout_seconds=0.6, **QUICK, **SHORT
        )
        started = time.monotonic()
        with Teacher(settings, api_bases=(a.api_base, b.api_base)) as teacher:
            with pytest.raises(DeadlinePassed):
                teacher.ask(message(0, 0), 0)
        assert time.monotonic() - started < 2


def test_one_round_of_replicas_of_which_none_is_there_is_an_outage() -> None:
    """It is waited for, as that of a single server is; a sample's few tries are not used up."""
    told: list[str] = []
    few = {**QUICK, "max_retries": 2}
    settings = teacher_settings("http://127.0.0.1:9/v1", "k" * 8, "m", timeout_seconds=20, **few, **SHORT)
    with Teacher(settings, api_bases=("http://127.0.0.1:9/v1", "http://127.0.0.1:10/v1")) as teacher:
        teacher.tell_by(told.append)
        with pytest.raises(TeacherRefused, match="given up after"):
            teacher.ask(message(0, 0), 0)
    assert any("does not answer since" in line for line in told)


def test_a_failure_counts_the_requests_to_every_replica() -> None:
    with FaultServer(hang_up) as a, FaultServer(hang_up) as b:
        with replicated(a.api_base, b.api_base) as teacher, teacher.asking() as asked:
            with pytest.raises(TeacherError) as caught:
                asked.ask(message(0, 0), 0)
        assert caught.value.attempts == len(a.requests) + len(b.requests)


def test_a_replica_that_is_not_there_at_the_start_is_passed_over(
    run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    with ScriptedTeacher(run_script) as server:
        result = run_door(
            "demo_concurrent.py", "--api_base", f"http://127.0.0.1:9/v1,{server.api_base}",
            "--dataset_path", photos, "--output_dir", tmp_path, "--num_samples", 4,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "A replica is not there: no reply from http://127.0.0.1:9/v1" in result.stdout
    assert len(list(tmp_path.glob("trace_*.json"))) == 4


def test_where_both_stay_dead_the_run_is_refused_after_the_outage_limit() -> None:
    lines: list[str] = []
    with MortalServer(script, 4) as a, MortalServer(script, 4) as b:
        with replicated(a.api_base, b.api_base) as teacher:
            teacher.tell_by(lines.append)
            errors = solve_all(teacher, 6)
    assert any("given up after 0.5 s" in text for text in errors)
    assert any("--max_outage_seconds" in line for line in lines)
    assert any("A replica is left" in line for line in lines)


def test_where_both_are_dead_for_a_while_nothing_fails() -> None:
    with MortalServer(script, 4) as a, MortalServer(script, 4) as b:
        with replicated(a.api_base, b.api_base) as teacher:

            def heal(line: str) -> None:
                if "waiting" in line:
                    b.num_lives = 10**6

            teacher.tell_by(heal)
            assert solve_all(teacher, 6) == []


def test_one_request_that_breaks_every_connection_stops_no_other() -> None:
    def poisoned(request: dict[str, Any]) -> Any:
        if sample_of(request) == "sample 2":
            raise ConnectionResetError("poison")
        return script(request)

    with ScriptedTeacher(poisoned) as a, ScriptedTeacher(poisoned) as b:
        with replicated(a.api_base, b.api_base) as teacher:
            errors = solve_all(teacher, 12)
    assert len(errors) == 1
    assert "no reply from" in errors[0]


def test_a_server_that_says_no_is_not_left() -> None:
    with ScriptedTeacher(lambda _: (400, {"error": {"message": "no"}})) as a, ScriptedTeacher(script) as b:
        with replicated(a.api_base, b.api_base) as teacher, teacher.asking() as asked:
            with pytest.raises(TeacherError, match="no") as caught:
                asked.ask(message(0, 0), 0)
    assert caught.value.status == 400
    assert b.requests == []


def test_closing_ends_those_who_wait_for_a_slot() -> None:
    release = threading.Event()
    with ScriptedTeacher(lambda _: release.wait(20) and says("turn 0")) as a:
        with replicated(a.api_base, slots=Slots(1)) as teacher:
            errors: list[str] = []
            solver = threading.Thread(target=lambda: errors.extend(solve_all(teacher, 4)))
            solver.start()
            while not a.requests:
                time.sleep(0.01)
            teacher.close()
            release.set()
            solver.join(20)
    assert len(a.requests) == 1
    assert "the run was given up" in errors


def test_refusals_lower_the_level_although_the_client_retries_them() -> None:
    lock, in_flight = threading.Lock(), 0

    def busy(request: dict[str, Any]) -> Any:
        nonlocal in_flight
        with lock:
            in_flight += 1
            is_full = in_flight > 2
        time.sleep(0.002 if is_full else 0.02)
        with lock:
            in_flight -= 1
        if is_full:
            return 429, {"error": {"message": "slow down"}}
        return says(f"turn {num_turns(request)}")

    slots = Slots(12)
    slots._climber.level = 12
    with ScriptedTeacher(busy) as server:
        settings = teacher_settings(server.api_base, "k" * 8, "m", timeout_seconds=20, **QUICK)
        with Teacher(settings, (), slots) as teacher:
            assert solve_all(teacher, 40, num_threads=12) == []
    assert slots.state().level < 12
    assert slots.state().changes["refused"] >= 1


def test_several_urls_are_told_apart_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789")
    address = find_teacher("http://a:1/v1, http://b:2/v1,http://a:1/v1")
    assert address.api_bases == ("http://a:1/v1", "http://b:2/v1")
    assert address.api_base == "http://a:1/v1"
    for wrong in ("http://a:1/v1,", "http://a:1/v1,b:2/v1", "embedded,http://a:1/v1"):
        with pytest.raises(UsageError, match="--api_base"):
            find_teacher(wrong)


def run_script(request: dict[str, Any]) -> Any:
    if is_probe(request) or num_turns(request) < 2:
        return calls(("rotate", {"angle": 90}))
    return says("<answer>48.8,2.3</answer>")


def test_traces_are_the_same_for_any_replicas_and_level(
    photos: Path, tmp_path: Path, run_door: RunDoor
) -> None:
    with ExitStack() as stack:
        a, b, whole = (stack.enter_context(ScriptedTeacher(run_script)) for _ in range(3))
        mortal = stack.enter_context(MortalServer(run_script, 3))
        setups = {
            "one": (whole.api_base, "--max_workers", 1),
            "fixed": (whole.api_base, "--max_workers", 8, "--fixed_workers"),
            "two": (f"{a.api_base},{b.api_base.replace('//', '//user:secret@')}", "--max_workers", 6),
            "dying": (f"{b.api_base},{mortal.api_base}", "--max_workers", 2),
        }
        for name, (api_base, *flags) in setups.items():
            result = run_door(
                "demo_concurrent.py", "--api_base", api_base, "--dataset_path", photos,
                "--output_dir", tmp_path / name, "--num_samples", 6, *flags,
            )  # fmt: skip
            assert result.returncode == 0, result.stderr
            assert "at once" in result.stderr
            assert "secret" not in result.stdout + result.stderr
    traces = {
        name: [path.read_bytes() for path in sorted((tmp_path / name).glob("trace_*.json"))]
        for name in setups
    }
    assert len(traces["one"]) == 6
    assert all(files == traces["one"] for files in traces.values())
    assert a.requests and b.requests
    records = {name: json.loads((tmp_path / name / "run_record.json").read_bytes()) for name in setups}
    two, fixed = records["two"]["runs"][-1], records["fixed"]["runs"][-1]
    assert two["options"]["api_base"] == f"{a.api_base},{b.api_base}"
    assert two["requests_at_once"]["ceiling"] == 6
    assert 1 <= two["requests_at_once"]["level"] <= two["requests_at_once"]["highest"] <= 6
    assert fixed["requests_at_once"] == {
        "level": 8, "ceiling": 8, "highest": 8, "reason": "fixed", "changes": {}
    }  # fmt: skip


def test_a_dead_replica_beside_a_live_one_is_no_outage() -> None:
    lines: list[str] = []
    with ScriptedTeacher(script) as dead, ScriptedTeacher(script) as alive:
        dead._server.shutdown()
        dead._server.server_close()
        with replicated(dead.api_base, alive.api_base) as teacher:
            teacher.tell_by(lines.append)
            assert solve_all(teacher, 8) == []
    assert len(alive.requests) == 24
    (line,) = lines
    assert line.startswith("A replica is left for the others"), "and nobody waits for a server"
