"""An estimate says what a run will really take: its arithmetic, and predictions beside real runs."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from conftest import RunDoor
from hypothesis import given
from hypothesis import strategies as st
from scripted_teacher import Script, ScriptedTeacher, calls, completion, is_probe, num_turns

from distil.spending.budget import Bill, Spent
from distil.spending.estimate import (
    Measured,
    SampleSelection,
    Spread,
    choose_samples,
    estimate_seconds,
    estimate_spending,
)
from distil.spending.prices import Tokens

USAGE = {"prompt_tokens": 1000, "completion_tokens": 100}
TURN_TOKENS = 1100


def spread(*values: float | None) -> Spread:
    found = Spread()
    for value in values:
        found.add(value)
    return found


def measured(*seconds: float, wall: float = 1.0, **changes: Any) -> Measured:
    fields: dict[str, Any] = {"spent_before": Spent(), "spent_after": Spent()}
    return Measured(seconds=wall, sample_seconds=spread(*seconds), **fields | changes)


def bill(requests: int, tokens: int | None, cost_usd: float | None = None, silent: int = 0) -> Bill:
    return Bill(requests, Tokens(prompt=tokens, completion=None), cost_usd, silent, silent)


def test_time_is_the_measured_throughput() -> None:
    run = measured(3.0, 3.0, 3.0, 3.0, wall=6.0)  # two at once
    estimate = estimate_seconds(run, SampleSelection(60, 56, 32))
    assert (estimate.sample, estimate.whole, estimate.to_do) == (3.0, 90.0, 84.0)
    assert estimate.whole_range == (60 * 3.0 / 32, 90.0)


def test_failed_samples_are_part_of_the_throughput() -> None:
    run = measured(3.0, 3.0, wall=6.0, num_failed=2)
    estimate = estimate_seconds(run, SampleSelection(60, 58, 32))
    assert (estimate.whole, estimate.to_do) == (90.0, 87.0), "the failed ones have no trace either"


def test_no_time_is_shorter_than_a_sample_takes() -> None:
    run = measured(*[9.0] * 8, wall=9.0)
    estimate = estimate_seconds(run, SampleSelection(9, 1, 64))
    assert estimate.whole_range == (9.0, pytest.approx(9 * 9 / 8))
    assert estimate.to_do == 9.0, "one sample is left, and it takes as long as one does"
    assert estimate_seconds(run, SampleSelection(8, 0, 64)).to_do == 0


def test_the_worst_time_is_with_no_more_at_once_than_here() -> None:
    run = measured(2.0, 4.0, wall=6.0)  # one at once
    estimate = estimate_seconds(run, SampleSelection(10, 8, 5))
    share = 12.706 / 3  # a standard deviation of √2, and 2 samples: an error of 1 on a mean of 3
    assert estimate.whole_range == (3.0, pytest.approx(30 * (1 + share)))


@pytest.mark.parametrize(
    ("values", "share"),
    [
        ([], None),
        ([5.0], None),
        ([0.0, 0.0], 0.0),
        ([2.0, 4.0], 12.706 / 3),
        ([1.0, 2.0, 3.0], 4.303 / 3**0.5 / 2),
        ([1.0, 3.0] * 15 + [2.0], 2.042 * (30 / 30) ** 0.5 / 31**0.5 / 2),
        ([1.0, 3.0] * 16, 1.96 * (32 / 31) ** 0.5 / 32**0.5 / 2),
    ],
)
def test_the_margin_is_student_s(values: list[float], share: float | None) -> None:
    assert spread(*values).margin_share == (None if share is None else pytest.approx(share))


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=60))
def test_the_spread_is_that_of_the_values_that_it_does_not_keep(values: list[float]) -> None:
    found = spread(*values)
    assert found.mean == pytest.approx(statistics.fmean(values))
    deviation = (found.squares / (len(values) - 1)) ** 0.5
    assert deviation == pytest.approx(statistics.stdev(values), rel=1e-6, abs=1e-6)
    assert spread(*[values[0]] * 7).squares == 0


def test_tokens_are_what_the_run_added_with_retries_and_failures() -> None:
    before = Spent(bill(7, 70_000, 7.0), bill(1, None, None, 1))
    after = Spent(bill(10, 73_000, 7.3), bill(3, 600, 0.06, 1))
    run = measured(1.0, 1.0, num_failed=1, spent_before=before, spent_after=after)
    assert (run.tokens, run.cost_usd) == (3600, pytest.approx(0.36))
    estimate = estimate_spending(run.tokens, spread(900.0, 1100.0), run, SampleSelection(10, 3, 4))
    assert estimate is not None
    assert (estimate.sample, estimate.whole, estimate.to_do) == (1200, 12_000, 3600)
    assert estimate.whole_range == (0.0, pytest.approx(12_000 * (1 + 12.706 / 10)))


def test_what_none_of_the_run_s_requests_reports_is_not_known() -> None:
    before = Spent(bill(7, 70_000, 7.0))
    run = measured(1.0, spent_before=before, spent_after=Spent(bill(9, 70_000, 7.0, 2)))
    assert (run.tokens, run.cost_usd, run.num_without_tokens) == (None, None, 2)
    assert estimate_spending(run.tokens, spread(None), run, SampleSelection(10, 3, 4)) is None


def test_a_range_needs_samples_that_say_how_they_differ() -> None:
    run = measured(1.0, 1.0)
    selection = SampleSelection(10, 8, 4)
    for values in ([None, None], [100.0, None]):
        estimate = estimate_spending(300.0, spread(*values), run, selection)
        assert estimate is not None
        assert (estimate.whole, estimate.whole_range) == (1500, None)
    assert estimate_seconds(measured(1.0), selection).whole_range is None


def test_samples_without_a_journal_are_chosen_first() -> None:
    assert choose_samples([1, 2, 3, 4, 5], {1, 3}, 2) == [2, 4]
    assert choose_samples([1, 2, 3, 4, 5], {1, 3}, 4) == [2, 4, 5, 1]
    assert choose_samples([], {1}, 4) == []


def three_turns(request: dict[str, Any]) -> Any:
    if is_probe(request) or num_turns(request) < 2:
        return calls(("image_rotate_tool", {"angle": 90})) | {"usage": USAGE}
    return completion({"content": "\\boxed{1, 2}"}, usage=USAGE)


class Estimating:
    """Runs the doors against one scripted server, on the twelve photos and into one folder."""

    def __init__(self, run_door: RunDoor, photos: Path, folder: Path, server: ScriptedTeacher) -> None:
        self._run_door, self._photos, self.folder, self.server = run_door, photos, folder, server

    def __call__(
        self, *flags: object, command: str = "estimate", folder: Path | None = None
    ) -> CompletedProcess[str]:
        return self._run_door(
            "cli.py", command, "--api_base", self.server.api_base, "--dataset_path", self._photos,
            "--output_dir", folder or self.folder, "--num_samples", 12, *flags,
        )  # fmt: skip


@pytest.fixture
def estimating(run_door: RunDoor, photos: Path, tmp_path: Path) -> Any:
    """A function from a script to `Estimating`; its servers end with the test."""
    servers: list[ScriptedTeacher] = []

    def start(script: Script) -> Estimating:
        servers.append(ScriptedTeacher(script))
        servers[-1].__enter__()
        return Estimating(run_door, photos, tmp_path / "out", servers[-1])

    yield start
    for server in servers:
        server.__exit__()


Start = Callable[[Script], Estimating]


def rows(result: CompletedProcess[str]) -> dict[str, str]:
    """The lines by their first word."""
    return {
        line.split()[0]: " ".join(line.split()[1:]) for line in result.stdout.splitlines() if line.split()
    }


def whole_seconds(result: CompletedProcess[str]) -> float:
    """The seconds that all samples are said to take."""
    _, _, whole, unit, *_ = rows(result)["time"].split()
    assert unit == "s", rows(result)["time"]
    return float(whole)


def real_seconds(folder: Path) -> float:
    (record,) = json.loads((folder / "run_record.json").read_text())["runs"]
    return float(record["seconds"])


def slow(num_at_once: int, turn_seconds: float) -> Script:
    """A server that works on so many requests at once and lets the others wait."""
    gate = threading.Semaphore(num_at_once)

    def script(request: dict[str, Any]) -> Any:
        with gate:
            time.sleep(turn_seconds)
        return three_turns(request)

    return script


def test_the_time_at_a_server_that_serves_two_is_a_real_run_s(estimating: Start, tmp_path: Path) -> None:
    distil = estimating(slow(2, 0.2))
    predicted = whole_seconds(distil("--max_workers", 32, "--estimate_samples", 6))
    assert distil("--max_workers", 32, command="run", folder=tmp_path / "whole").returncode == 0
    real = real_seconds(tmp_path / "whole")
    assert real / 1.5 < predicted < real * 1.5


def test_the_time_at_a_server_that_serves_all_is_in_the_range(estimating: Start, tmp_path: Path) -> None:
    distil = estimating(slow(100, 0.5))
    result = distil("--max_workers", 64)  # eight samples cannot show what twelve at once would gain
    _, _, _, _, low, _, _, high, *_ = rows(result)["time"].split()
    assert distil("--max_workers", 64, command="run", folder=tmp_path / "whole").returncode == 0
    real = real_seconds(tmp_path / "whole")
    assert float(low) / 1.1 < real < float(high) * 1.1
    assert float(low) >= 3 * 0.5, "no sample ends before its three turns"


def test_replies_that_could_not_be_used_are_predicted_too(estimating: Start) -> None:
    seen: set[str] = set()
    lock = threading.Lock()

    def empty_first(request: dict[str, Any]) -> Any:
        text = json.dumps(request["messages"])
        with lock:
            is_new = text not in seen
            seen.add(text)
        if is_new and num_turns(request) == 0 and not is_probe(request):
            return {"id": "c", "object": "chat.completion", "choices": [], "usage": USAGE}
        return three_turns(request)

    result = estimating(empty_first)("--estimate_samples", 4, "--price_per_million", "1,10")
    assert result.returncode == 0, result.stderr
    assert rows(result)["tokens"] == "4,400 52,800 52,800 – 52,800 35,200"
    assert rows(result)["cost"] == "0.0080 USD 0.0960 USD 0.0960 USD – 0.0960 USD 0.0640 USD"


def photo_of(request: dict[str, Any]) -> str:
    return json.dumps(request["messages"][1]["content"])


def test_a_failed_sample_s_turns_count_and_it_is_left_for_last(estimating: Start) -> None:
    failing: list[str] = []
    lock = threading.Lock()

    def one_fails(request: dict[str, Any]) -> Any:
        if not is_probe(request):
            with lock:
                failing[:] = failing or [photo_of(request)]
            if photo_of(request) == failing[0] and num_turns(request) == 1:
                return 400, {"error": {"message": "no"}}
        return three_turns(request)

    distil = estimating(one_fails)
    result = distil("--estimate_samples", 4)
    assert result.returncode == 1
    assert "9 still to do" in result.stdout
    assert rows(result)["tokens"] == "2,750 33,000 33,000 – 33,000 24,750"
    assert "3 finished and 1 failed" in result.stdout
    distil.server.script = three_turns
    result = distil("--estimate_samples", 4)
    assert result.returncode == 0, result.stderr
    assert rows(result)["tokens"] == "3,300 39,600 39,600 – 39,600 16,500"
    assert "went on from turns" not in result.stdout
    result = distil("--estimate_samples", 12)
    assert "1 of them went on from turns paid before" in result.stdout
    assert "All 12 samples have a trace" in result.stdout
    assert "0 still to do" in result.stdout


def test_where_all_is_done_nothing_is_asked_or_estimated(estimating: Start) -> None:
    distil = estimating(three_turns)
    assert distil(command="run").returncode == 0
    num_requests = len(distil.server.requests)
    result = distil()
    assert result.returncode == 0, result.stderr
    assert "All 12 samples have a trace: nothing is left to pay." in result.stdout
    assert "estimate from" not in result.stdout
    assert len(distil.server.requests) == num_requests


def test_one_sample_gives_an_estimate_without_a_range(estimating: Start) -> None:
    distil = estimating(three_turns)
    result = distil("--estimate_samples", 1)
    assert rows(result)["tokens"] == "3,300 39,600 – 36,300"
    assert rows(result)["cost"] == "not known not known – not known"
    assert whole_seconds(result) > 0
    result = distil("--retry_failed")
    assert "Nothing to estimate from: this run had no sample to run" in result.stdout
    assert "Still to do: 11 samples" in result.stdout


def test_a_run_that_finishes_nothing_says_why_there_is_no_estimate(estimating: Start) -> None:
    distil = estimating(three_turns)
    result = distil("--max_calls", 3)
    assert result.returncode == 1
    assert "Nothing to estimate from: the budget stopped this run before a sample ended." in result.stdout
    distil.server.script = lambda _: (400, {"error": {"message": "no"}})
    result = distil("--estimate_samples", 4)
    assert "Nothing to estimate from: none of this run's samples finished, 4 failed." in result.stdout
    assert "12 samples" in result.stdout


def test_tokens_that_no_server_reports_are_not_known(estimating: Start) -> None:
    result = estimating(lambda request: three_turns(request) | {"usage": None})("--estimate_samples", 2)
    assert result.returncode == 0, result.stderr
    assert rows(result)["tokens"] == "not known not known – not known"
