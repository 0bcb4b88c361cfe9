"""A limit is spent on depth: what was begun is finished before another sample is begun, over resumes too."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import RunDoor
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_teacher import ScriptedTeacher, calls, completion, is_probe, num_turns

from distil.errors import BudgetExceeded
from distil.spending.budget import Budget, calls_of, tokens_of
from distil.spending.depth import Depth
from distil.spending.prices import FixedPrices

USAGE = {"prompt_tokens": 1000, "completion_tokens": 100}
PRICES = FixedPrices(input_usd=2.0, output_usd=10.0, cached_usd=0.5)


def three_turns(request: dict[str, Any]) -> Any:
    if is_probe(request) or num_turns(request) < 2:
        return calls(("image_rotate_tool", {"angle": 90})) | {"usage": USAGE}
    return completion({"content": "\\boxed{1, 2}"}, usage=USAGE)


def run(run_door: RunDoor, server: ScriptedTeacher, photos: Path, folder: Path, *flags: object) -> Any:
    return run_door(
        "demo_concurrent.py", "--api_base", server.api_base, "--dataset_path", photos, "--output_dir", folder,
        "--max_tokens", 200, "--price_per_million", "2,10", *flags,
    )  # fmt: skip


def photos_asked(server: ScriptedTeacher) -> list[str]:
    return [repr(request["messages"][1]) for request in server.requests if not is_probe(request)]


def traces(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("trace_*.json"))


@pytest.mark.parametrize(
    "limit",
    [("--max_calls", 5), ("--max_total_tokens", 12_000), ("--max_cost_usd", 0.026)],
    ids=lambda each: each[0],
)
def test_a_small_limit_gives_traces_and_no_first_turns(
    limit: tuple[str, object], run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    with ScriptedTeacher(three_turns) as server:
        result = run(run_door, server, photos, tmp_path, "--num_samples", 4, *limit)
        assert result.returncode == 1, result.stderr
        assert set(Counter(photos_asked(server)).values()) == {3}, "what was begun was finished"
        assert traces(tmp_path)
        assert f"Stopped: limit reached, {limit[0]} " in result.stdout
        result = run(run_door, server, photos, tmp_path, "--num_samples", 4)
        assert result.returncode == 0, result.stderr
        assert len(server.requests) == 1 + 12, "no turn twice"


def test_samples_with_paid_turns_go_first_when_a_run_goes_on(
    run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    asked: list[str] = []

    def fails_late(request: dict[str, Any]) -> Any:
        photo = repr(request["messages"][1])
        if not is_probe(request) and photo not in asked:
            asked.append(photo)
        if not is_probe(request) and num_turns(request) == 1 and asked.index(photo) in (2, 4):
            return 400, {"error": {"message": "an odd one"}}
        if not is_probe(request) and asked.index(photo) in (0, 1, 3):
            return 400, {"error": {"message": "an odd one"}}
        return three_turns(request)

    with ScriptedTeacher(fails_late) as server:
        run(run_door, server, photos, tmp_path, "--num_samples", 5, "--max_workers", 1)
        assert traces(tmp_path) == []
        first = len(server.requests)
        server.script = three_turns
        limit = 1 + 2 + 4  # the probe and two turns were answered; what the two need
        result = run(
            run_door, server, photos, tmp_path, "--num_samples", 12, "--max_workers", 4, "--max_calls", limit
        )
    assert result.returncode == 1, result.stderr
    assert traces(tmp_path) == ["trace_00002.json", "trace_00004.json"]
    assert len(server.requests) - first == 4


def spend(budget: Budget) -> None:
    with budget.request() as request:
        request.sent()
        time.sleep(0.0005)
        request.answered(USAGE)


def solved(budget: Budget, num_turns: int, max_turns: int) -> bool:
    """Whether a sample of so many turns was finished; else it was not begun, or broken off."""
    try:
        with budget.sample(0, max_turns):
            for _ in range(num_turns):
                spend(budget)
            return True
    except BudgetExceeded:
        return False


def solve_all(budget: Budget, lengths: Sequence[int], num_threads: int, max_turns: int = 10) -> list[bool]:
    with ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(lambda length: solved(budget, length, max_turns), lengths, timeout=60))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 6), st.integers(1, 16))
def test_of_samples_that_are_alike_all_are_finished_that_were_begun(
    limit: int, length: int, num_threads: int
) -> None:
    budget = Budget(100, limits={calls_of: limit})
    finished = solve_all(budget, [length] * 20, num_threads)
    num_possible = min(20, limit // length)
    assert sum(finished) == num_possible
    assert budget.spent.calls == (num_possible * length or limit), "but for the only one that was tried"


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 120), st.lists(st.integers(1, 10), min_size=1, max_size=30), st.integers(1, 16))
def test_limits_hold_and_nobody_waits_for_ever_whatever_samples_take(
    limit: int, lengths: list[int], num_threads: int
) -> None:
    budget = Budget(100, PRICES.cost_usd, {calls_of: limit, tokens_of: 1100 * limit + 5000})
    finished = solve_all(budget, lengths, num_threads)
    assert budget.spent.calls <= limit
    assert any(finished) or limit < lengths[0]
    assert all(finished) or sum(lengths) > limit - 10


def test_whoever_is_further_on_has_what_is_left() -> None:
    """Two samples that take longer than the finished ones did: one of them is finished, not neither."""
    budget = Budget(100, limits={calls_of: 2 + 9})
    assert solved(budget, 2, 10)
    both_began = threading.Barrier(2, timeout=20)

    def long_one() -> bool:
        try:
            with budget.sample(0, 10):
                both_began.wait()
                for _ in range(7):
                    spend(budget)
                return True
        except BudgetExceeded:
            return False

    with ThreadPoolExecutor(2) as pool:
        finished = [pool.submit(long_one) for _ in range(2)]
        assert sorted(each.result(30) for each in finished) == [False, True]
    assert budget.spent.calls == 11


def test_a_large_limit_holds_nobody_up() -> None:
    budget = Budget(100, limits={calls_of: 1000})
    together = threading.Barrier(8, timeout=20)

    def one() -> None:
        with budget.sample(0, 10):
            together.wait()

    waits: list[Callable[[], None]] = [one] * 8
    with ThreadPoolExecutor(8) as pool:
        for each in [pool.submit(wait) for wait in waits]:
            each.result(30)


def test_a_sample_that_is_on_disk_whole_is_made_after_the_limit_too() -> None:
    budget = Budget(100, limits={calls_of: 1})
    spend(budget)
    with budget.sample(3, 10):
        pass
    with pytest.raises(BudgetExceeded, match="--max_calls 1: 1 made"), budget.sample(0, 10):
        pass


def test_a_request_in_flight_counts_for_how_far_a_sample_has_come() -> None:
    depth = Depth()
    for thread in (1, 2):
        depth.queue(thread, 10)
        depth.begin(thread, 2)
    assert not depth.must_wait(1, 3), "begun first"
    depth.ask(2)
    assert depth.must_wait(1, 3), "the other one is further on, and may need all that is left"
    assert not depth.must_wait(1, 8)
    depth.count(2, is_billed=False)
    assert not depth.must_wait(1, 3)


def test_samples_of_one_turn_say_nothing_of_those_of_many() -> None:
    budget = Budget(100, limits={calls_of: 3 + 12 + 2})
    assert solved(budget, 3, 10)
    assert solve_all(budget, [1] * 12, 3, max_turns=1) == [True] * 12
    assert not solved(budget, 3, 10) and budget.spent.calls == 15, "not begun: two do not finish it"
    assert solve_all(budget, [1] * 2, 3, max_turns=1) == [True] * 2
