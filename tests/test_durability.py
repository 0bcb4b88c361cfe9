"""Traces are made durable in groups, before their turns go; spending is told to the kernel before a request leaves."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conversations import Bench, Run
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says

from distil.cli import main
from distil.errors import BudgetExceeded, FolderError, UsageError
from distil.messages.read import parse_reply
from distil.records import Outcome, SampleId
from distil.spending.budget import Budget, calls_of, tokens_of
from distil.store import folder as folder_module
from distil.store.atomic import write_json
from distil.store.folder import RunFolder
from distil.store.journal import Journal
from distil.store.spending import SPENDING, SpendingFile

BODIES = [
    json.dumps(calls(("image_rotate_tool", {"angle": 90}))).encode(),
    json.dumps(says("\\boxed{1, 2}")).encode(),
]


@pytest.fixture(scope="module")
def bench(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Bench(photos, tmp_path_factory.mktemp("bench")) as bench:
        yield bench


def solve(bench: Bench, run: Run, row: int) -> int:
    """Solve a row; the number of requests that it took."""
    outcome, asked = bench.solve(run, row, BODIES)
    assert isinstance(outcome, Outcome) and outcome.failure is None, outcome
    return len(asked.requests)


def turns_on_disk(run: Run) -> int:
    paths = (run.folder.path / "journal").glob("*.jsonl")
    return sum(path.read_bytes().count(b"\n") for path in paths)


def torn(data: bytes) -> dict[str, bytes]:
    half = len(data) // 2
    return {
        "empty": b"",
        "cut off": data[:half],
        "without its last byte but one": data[:-2],
        "zeros at its end": data[:half] + b"\0" * (len(data) - half),
        "zeros in the middle": data[:half] + b"\0" * 64 + data[half + 64 :],
        "nothing but zeros": b"\0" * len(data),
    }


@pytest.mark.parametrize("how", torn(b"x" * 999))
def test_a_trace_that_a_power_cut_tore_is_made_again_from_its_turns(how: str, bench: Bench) -> None:
    run = bench.run_with("--tool_mode", "native")
    assert solve(bench, run, 0) == 2
    path = run.folder.trace_path(SampleId(0))
    whole = path.read_bytes()
    path.write_bytes(torn(whole)[how])
    run = bench.reopened(run)
    assert run.folder.finished([SampleId(0), SampleId(1)]) == set()
    assert solve(bench, run, 0) == 0, "no request"
    assert path.read_bytes() == whole


def test_a_torn_trace_whose_turns_are_gone_is_an_error(bench: Bench) -> None:
    run = bench.run_with("--tool_mode", "native")
    solve(bench, run, 0)
    run.folder.close()
    run.folder.trace_path(SampleId(0)).write_bytes(b"{")
    with pytest.raises(UsageError, match="cannot be read"):
        bench.reopened(run).folder.finished([SampleId(0)])


def test_a_kill_between_a_trace_and_its_sync_costs_nothing(bench: Bench, synced: list[str]) -> None:
    run = bench.run_with("--tool_mode", "native")
    solve(bench, run, 0)
    assert turns_on_disk(run) == 2 and "trace_00000.json" not in synced
    run = bench.reopened(run)
    assert "trace_00000.json" in synced, "it may have been in the kernel's hands alone"
    assert turns_on_disk(run) == 0
    assert run.folder.finished([SampleId(0)]) == {SampleId(0)}


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is synced, in order; and `-NAME` where a file is removed."""
    names = list[str]()
    real_sync, real_unlink = os.fsync, Path.unlink

    def sync(descriptor: int) -> None:
        names.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
        real_sync(descriptor)

    def unlink(path: Path, missing_ok: bool = False) -> None:
        names.append(f"-{path.name}")
        real_unlink(path, missing_ok)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "unlink", unlink)
    return names


def test_a_record_is_durable_with_its_name_when_it_is_written(tmp_path: Path, synced: list[str]) -> None:
    write_json(tmp_path / "run_record.json", {"runs": []})
    assert len(synced) == 2 and synced[-1] == tmp_path.name, "the file, and then the folder that names it"
    assert "run_record.json" in synced[0]


def test_turns_go_only_when_their_traces_and_names_are_durable(
    bench: Bench, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "_TRACES_A_SYNC", 4)
    run = bench.run_with("--tool_mode", "native")
    for row in range(4):
        assert turns_on_disk(run) == 2 * row
        assert not any(name.startswith("trace_") for name in synced)
        solve(bench, run, row)
    assert run.folder.journal.unfinished() == {}
    folder = run.folder.path.name
    traces = [f"trace_0000{row}.json" for row in range(4)]
    assert synced[-5:] == [*traces, folder], "one sync of the folder for all of them"
    run.folder.close()
    assert synced[-1] == "-00001.jsonl"
    assert not (run.folder.path / "journal").exists()


def test_a_sample_costs_a_bounded_number_of_calls_to_the_system(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each lets go of the interpreter, and has to wait for it again behind all other threads."""
    monkeypatch.setattr(folder_module, "_TRACES_A_SYNC", 4)
    run = bench.run_with("--tool_mode", "native")
    counts: Counter[str] = Counter()

    def counted(name: str) -> Any:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            counts[name] += 1
            return real(*arguments, **options)

        return call

    for name in ("open", "write", "fsync", "replace", "unlink", "close"):
        monkeypatch.setattr(os, name, counted(name))
    for row in range(8):
        solve(bench, run, row)
    assert counts["write"] <= 8 * (3 * 2 + 2), "a turn: sent, answered, journal; a sample: trace, times"
    assert counts["fsync"] <= 8 + 2 + 2, "the traces; their folder twice; the journal's name"
    assert counts["replace"] == 8 and counts["unlink"] == 0
    assert counts["open"] <= 2 * 8 + 2 + 3, "a trace is written, and synced"


def test_turns_stay_where_their_trace_cannot_be_made_durable(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = bench.run_with("--tool_mode", "native")
    solve(bench, run, 0)

    def fails(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(FolderError, match=r"trace_00000.json cannot be written: Input/output error"):
            run.folder.sync_traces()
    assert run.folder.journal.num_turns(SampleId(0)) == 2
    assert turns_on_disk(run) == 2


def test_a_trace_that_the_user_removed_meanwhile_is_no_error(bench: Bench) -> None:
    run = bench.run_with("--tool_mode", "native")
    solve(bench, run, 0)
    run.folder.trace_path(SampleId(0)).unlink()
    run.folder.sync_traces()
    assert turns_on_disk(run) == 0 or run.folder.journal.unfinished() == {}


# --- spending


class CountingLock:
    """A lock that counts who takes it."""

    def __init__(self) -> None:
        self._lock, self.number = threading.Lock(), 0

    def acquire(self, *arguments: Any) -> bool:
        self.number += 1
        return self._lock.acquire(*arguments)

    def release(self) -> None:
        self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


@pytest.mark.parametrize(("max_calls", "most"), [(None, 1), (1000, 2)])
def test_a_request_takes_few_locks_and_holds_none_while_it_is_recorded(
    max_calls: int | None, most: int
) -> None:
    lock, entries = CountingLock(), list[Any]()

    def record(entry: Any) -> None:
        assert not lock.locked(), "a write would make all others wait"
        entries.append(entry)

    budget = Budget(100, record=record, limits={calls_of: max_calls})
    budget._changed = threading.Condition(lock)  # type: ignore[arg-type]
    for _ in range(10):
        with budget.request() as request:
            request.sent()
            request.answered({"prompt_tokens": 5, "completion_tokens": 1})
    assert lock.number <= most * 10
    assert len(entries) == 20 and budget.spent.answered.requests == 10


def test_a_request_that_leaves_is_in_the_kernels_hands(tmp_path: Path) -> None:
    file = SpendingFile(tmp_path)
    budget = Budget(100, record=file.append)
    with budget.request() as request:
        request.sent()
        assert (tmp_path / SPENDING).read_bytes() == b'{"request": 1, "state": "sent"}\n'
        request.answered(None)
    states = [json.loads(line)["state"] for line in (tmp_path / SPENDING).read_text().splitlines()]
    assert states == ["sent", "answered"]


def test_an_answered_request_is_told_with_its_turn_and_every_other_at_once(tmp_path: Path) -> None:
    """One write for all that wait; a turn in the journal has its bill beside it, so a kill loses none."""
    file, path = SpendingFile(tmp_path), tmp_path / SPENDING
    budget = Budget(100, record=file.record)
    journal = Journal(tmp_path, "s", file.flush)

    def num_lines() -> int:
        return path.read_bytes().count(b"\n")

    def ask(messages: Any, seed: int) -> Any:
        with budget.request() as request:
            request.sent()
            request.answered(None)
        assert num_lines() == 1, "the second line goes with the turn"
        return parse_reply(BODIES[1])

    journal.of(SampleId(0), "f").journaled(ask)([b"?"], 0)
    assert num_lines() == 2
    for number, end in enumerate(("unusable", "refused"), start=2):
        with budget.request() as request:
            request.sent()
            if end == "refused":
                request.refused()
            else:
                request.unusable(None)
        assert num_lines() == 2 * number
    for _ in range(2):
        with budget.request() as request:
            request.sent()
            request.answered(None)
    assert num_lines() == 6 + 3, "the first of the two went with the second"
    file.close()
    assert num_lines() == 6 + 4


def test_lines_of_many_threads_are_whole_and_none_is_lost(tmp_path: Path) -> None:
    file = SpendingFile(tmp_path)
    budget = Budget(100, record=file.append)

    def spend(_: int) -> None:
        for _ in range(50):
            with budget.request() as request:
                request.sent()
                request.answered({"prompt_tokens": 5, "completion_tokens": 1})

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(spend, range(16)))
    lines = [json.loads(line) for line in (tmp_path / SPENDING).read_text().splitlines()]
    for state in ("sent", "answered"):
        assert sorted(line["request"] for line in lines if line["state"] == state) == list(range(1, 801))
    again = Budget(100)
    again.read(file.entries())
    assert again.spent == budget.spent


def test_whoever_waits_for_room_is_woken_by_the_one_before(tmp_path: Path) -> None:
    """Near a limit many threads wait: each of them goes on or hears of the limit, and none sleeps for ever."""
    budget = Budget(1000, limits={tokens_of: 60_000})
    ends = list[str]()

    def spend() -> None:
        try:
            while True:
                with budget.request() as request:
                    request.sent()
                    time.sleep(0.005)  # the others wait for room
                    request.answered({"prompt_tokens": 1000, "completion_tokens": 200})
        except BudgetExceeded:
            ends.append("limit")

    threads = [threading.Thread(target=spend, daemon=True) for _ in range(32)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 20
    for thread in threads:
        thread.join(max(0, until - time.monotonic()))
    assert ends == ["limit"] * 32
    assert budget.spent.answered.tokens.total <= 60_000


# --- a machine that goes down in mid-run


def answers(request: dict[str, Any]) -> Any:
    if is_probe(request) or num_turns(request) == 0:
        return calls(("image_rotate_tool", {"angle": 90}))
    return says("\\boxed{1, 2}")


@pytest.mark.parametrize("on_change", ["refuse", "new", "keep", "redo"])
def test_a_run_goes_on_where_a_power_cut_tore_traces_and_asks_nothing(
    on_change: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with ScriptedTeacher(answers) as server:
        flags = ["--api_base", server.api_base, "--dataset_path", str(photos), "--num_samples", "3"]
        command = ["run", *flags, "--output_dir", str(out), "--max_workers", "2"]
        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, "close", lambda _: None)  # as if the machine went down before
            assert main(command) == 0
        paths = sorted(out.glob("trace_*.json"))
        whole = [path.read_bytes() for path in paths]
        paths[0].write_bytes(b"")
        paths[2].write_bytes(b"\0" * len(whole[2]))
        server.requests.clear()
        assert main([*command, "--on_change", on_change]) == 0
    assert server.requests == []
    assert [path.read_bytes() for path in sorted(out.glob("trace_*.json"))] == whole
    assert not (out / "journal").exists()
    assert list(tmp_path.iterdir()) == [out]
