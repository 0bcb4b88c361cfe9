"""Many at once: outcomes as they end, a bounded window, failures as data, breaking off."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distil.errors import SampleError, TeacherError, TeacherRefused
from distil.run.threads import run_samples


class Solver:
    """Solves by a function and counts what is under way."""

    def __init__(self, function: Callable[[int], int]) -> None:
        self.function = function
        self.started: list[int] = []
        self.most_at_once = self.now = self.aborted = 0
        self.lock = threading.Lock()

    def solve(self, index: int) -> int:
        with self.lock:
            self.started.append(index)
            self.now += 1
            self.most_at_once = max(self.most_at_once, self.now)
        try:
            return self.function(index)
        finally:
            with self.lock:
                self.now -= 1

    def abort(self) -> None:
        self.aborted += 1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 500), unique=True, max_size=40), st.integers(1, 16))
def test_every_sample_has_its_outcome_once(indices: list[int], max_workers: int) -> None:
    solver = Solver(lambda index: time.sleep(((index * 7) % 5) / 2000) or index * 2)
    outcomes = list(run_samples(indices, solver.solve, max_workers, abort=solver.abort))
    assert sorted((item.sample_id, item.result) for item in outcomes) == [
        (index, index * 2) for index in sorted(indices)
    ]
    assert solver.most_at_once <= max_workers


def test_workers_really_work_at_once() -> None:
    barrier = threading.Barrier(8, timeout=20)
    solver = Solver(lambda _: barrier.wait())
    assert all(item.failure is None for item in run_samples(range(8), solver.solve, 8, abort=solver.abort))


def test_no_more_is_submitted_than_can_be_worked_on() -> None:
    release = threading.Event()
    solver = Solver(lambda index: release.wait(20) and index)
    outcomes = run_samples(range(1000), solver.solve, 4, abort=solver.abort)
    consumer = threading.Thread(target=lambda: list(outcomes))
    consumer.start()
    time.sleep(0.3)
    assert len(solver.started) == 4
    release.set()
    consumer.join(30)
    assert len(solver.started) == 1000


def test_a_slow_first_sample_holds_nobody_up() -> None:
    rest_done = threading.Event()
    done: list[int] = []
    solver = Solver(lambda index: rest_done.wait(20) and index if index == 0 else index)
    for outcome in run_samples(range(50), solver.solve, 2, abort=solver.abort):
        done.append(outcome.sample_id)
        if len(done) == 49:
            rest_done.set()
    assert done[-1] == 0
    assert sorted(done) == list(range(50))


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (SampleError("row 3: no picture"), "sample", None),
        (TeacherError("HTTP 500", 500), "teacher", 500),
        (OSError(28, "No space left"), "file", None),
        (ZeroDivisionError("x"), "unexpected", None),
    ],
)
def test_an_exception_is_that_samples_failure_and_no_other_ones(
    error: Exception, kind: str, status: int | None
) -> None:
    def solve(index: int) -> int:
        if index == 3:
            raise error
        return index

    outcomes = list(run_samples(range(6), Solver(solve).solve, 3))
    (failure,) = [item.failure for item in outcomes if item.failure is not None]
    assert (failure.sample_id, failure.kind, failure.status) == (3, kind, status)
    assert sorted(item.result for item in outcomes if item.result is not None) == [0, 1, 2, 4, 5]


def test_a_refused_run_stops_at_once() -> None:
    def solve(index: int) -> int:
        raise TeacherRefused("HTTP 401", 401)

    solver = Solver(solve)
    with pytest.raises(TeacherRefused):
        list(run_samples(range(1000), solver.solve, 4, abort=solver.abort))
    assert len(solver.started) < 20
    assert solver.aborted == 1


@pytest.mark.parametrize("kind", [OSError, ValueError])
def test_the_same_failure_has_the_same_words_in_every_run(kind: type[Exception]) -> None:
    def fail(index: int) -> int:
        raise kind(f"cannot read {object()!r}, {index} bytes at 0x10")

    (outcome,) = run_samples([7], Solver(fail).solve, 1)
    assert outcome.failure is not None
    assert outcome.failure.message.endswith("cannot read <object object>, 7 bytes at 0x10")


def test_a_caller_that_gives_up_submits_no_more_and_aborts_what_is_in_flight() -> None:
    solver = Solver(lambda index: index)
    with (
        pytest.raises(KeyboardInterrupt),
        closing(run_samples(range(1000), solver.solve, 4, abort=solver.abort)) as outcomes,
    ):
        for _ in outcomes:
            raise KeyboardInterrupt
    assert solver.aborted == 1
    assert len(solver.started) < 50
