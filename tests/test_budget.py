"""Limits hold: across threads, resumes and servers that do not say what they used."""

from __future__ import annotations

import json
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import RunDoor
from hypothesis import given
from hypothesis import strategies as st
from scripted_teacher import ScriptedTeacher, calls, completion, is_probe, num_turns

from distil.budget import (
    SPENDING,
    Budget,
    FixedPrices,
    Limits,
    Tokens,
    find_prices,
    parse_prices,
    read_spent,
    read_tokens,
)
from distil.errors import BudgetExceeded, UsageError

PRICES = FixedPrices(input_usd=2.0, output_usd=10.0, cached_usd=0.5)
USAGE = {"prompt_tokens": 1000, "completion_tokens": 200}


def spend(budget: Budget, usage: Any = USAGE) -> None:
    with budget.request() as usages:
        usages.append(usage)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (None, Tokens()),
        ({}, Tokens()),
        (USAGE, Tokens(1000, None, 200, None)),
        (USAGE | {"prompt_tokens_details": {"cached_tokens": 800}}, Tokens(1000, 800, 200, None)),
        (USAGE | {"prompt_cache_hit_tokens": 7}, Tokens(1000, 7, 200, None)),
        (USAGE | {"completion_tokens_details": {"reasoning_tokens": 50}}, Tokens(1000, None, 200, 50)),
        ({"prompt_tokens": "many", "completion_tokens": -1, "prompt_tokens_details": 3}, Tokens()),
    ],
)
def test_usage_is_read_and_what_is_missing_is_none(usage: Any, tokens: Tokens) -> None:
    assert read_tokens(usage) == tokens


def test_cached_tokens_have_their_own_price() -> None:
    assert PRICES.cost_usd(Tokens(1_000_000, 600_000, 100_000)) == pytest.approx(0.8 + 0.3 + 1.0)
    assert PRICES.cost_usd(Tokens(1_000_000, None, 100_000)) == pytest.approx(3.0)
    assert PRICES.cost_usd(Tokens(None, None, 100_000)) is None


@pytest.mark.parametrize("text", ["", "1", "1,2,3,4", "a,b", "-1,2", "nan,1", "inf,1"])
def test_wrong_prices_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_prices(text)


def test_prices_of_a_provider_are_known_and_of_an_own_server_not() -> None:
    known = find_prices(None, "gpt-4o", "https://api.openai.com/v1")
    assert known is not None
    cost = known.cost_usd(Tokens(1_000_000, None, 0))
    assert cost is not None and 0.5 < cost < 10
    assert find_prices(None, "Qwen3-VL", "http://127.0.0.1:8000/v1") is None
    assert find_prices(PRICES, "Qwen3-VL", "http://127.0.0.1:8000/v1") == PRICES


def test_a_cost_limit_without_prices_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--price_per_million"):
        Budget(tmp_path, Limits(max_cost_usd=1.0), None, 100)


def test_what_was_spent_is_counted_over_resumes(tmp_path: Path) -> None:
    for _ in range(2):
        budget = Budget(tmp_path, Limits(), PRICES, 100)
        spend(budget)
        spend(budget, None)
    spent = Budget(tmp_path, Limits(), PRICES, 100).spent
    assert (spent.calls, spent.total_tokens, spent.unknown_tokens) == (4, 2400, 2)
    assert spent.cost_usd == pytest.approx(2 * (0.002 + 0.002))


def test_a_torn_line_counts_as_a_request(tmp_path: Path) -> None:
    spend(Budget(tmp_path, Limits(), PRICES, 100))
    with (tmp_path / SPENDING).open("a") as file:
        file.write('{"prompt": 10')
    assert read_spent(tmp_path / SPENDING).calls == 2


@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 2**32))
def test_no_limit_is_passed_however_many_threads_spend(limit: int, threads: int, seed: int) -> None:
    generator = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        budget = Budget(Path(folder), Limits(max_calls=limit), None, 100)
        sent = []

        def worker() -> None:
            try:
                for _ in range(50):
                    with budget.request() as usages:
                        sent.append(1)
                        if generator.random() < 0.2:
                            time.sleep(0.0002)
                        usages.append(USAGE)
            except BudgetExceeded:
                pass

        workers = [threading.Thread(target=worker) for _ in range(threads)]
        for thread in workers:
            thread.start()
        for thread in workers:
            thread.join(20)
        assert len(sent) == budget.spent.calls == min(limit, 50 * threads)


def test_token_and_cost_limits_reserve_the_most_that_a_request_can_come_to(tmp_path: Path) -> None:
    for name, limits, most in (
        ("tokens", Limits(max_total_tokens=20_000), 20_000),
        ("cost", Limits(max_cost_usd=0.05), None),
    ):
        (tmp_path / name).mkdir()
        budget = Budget(tmp_path / name, limits, PRICES, 1000)
        with pytest.raises(BudgetExceeded, match=f"max_.*{name}"):
            for _ in range(100):
                spend(budget)
        assert budget.spent.calls > 5
        if most is not None:
            assert budget.spent.total_tokens <= most
        else:
            assert budget.spent.cost_usd <= 0.05


def test_a_limit_that_cannot_be_counted_stops_the_run(tmp_path: Path) -> None:
    budget = Budget(tmp_path, Limits(max_total_tokens=10**9), None, 100)
    spend(budget, None)
    with pytest.raises(BudgetExceeded, match="does not report"):
        spend(budget, None)


def test_a_request_waits_for_those_in_flight_and_then_fits(tmp_path: Path) -> None:
    budget = Budget(tmp_path, Limits(max_total_tokens=12_000), None, 1000)
    entered = threading.Event()
    with budget.request() as first, budget.request() as second:
        waiting = threading.Thread(target=lambda: (spend(budget), entered.set()))
        waiting.start()
        assert not entered.wait(0.1)
        first.append(USAGE)
        second.append(USAGE)
    assert entered.wait(5)


def three_turns(request: dict[str, Any]) -> Any:
    usage = {
        "prompt_tokens": 1000, "completion_tokens": 100, "prompt_tokens_details": {"cached_tokens": 500},
        "completion_tokens_details": {"reasoning_tokens": 40},
    }  # fmt: skip
    if is_probe(request) or num_turns(request) < 2:
        reply = calls(("image_rotate_tool", {"angle": 90}))
        return reply | {"usage": usage}
    return completion({"content": "\\boxed{1, 2}"}, usage=usage)


def run(
    run_door: RunDoor, photos: Path, folder: Path, *flags: object, script: str = "demo_concurrent.py"
) -> Any:
    with ScriptedTeacher(three_turns) as server:
        result = run_door(
            *([script] if script.endswith("t.py") else script.split()), "--api_base", server.api_base,
            "--dataset_path", photos, "--output_dir", folder, *flags,
        )  # fmt: skip
    return result, server.requests


def test_a_run_stops_at_its_limit_and_goes_on_when_it_is_raised(
    run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    result, requests = run(run_door, photos, tmp_path / "out", "--max_calls", 14)
    assert result.returncode == 1
    assert len(requests) == 14, "the probe counts too"
    assert "Stopped by the budget, --max_calls 14" in result.stdout
    assert not (tmp_path / "out" / "failed_samples.jsonl").exists()
    result, more = run(run_door, photos, tmp_path / "out", "--max_calls", 100)
    assert result.returncode == 0, result.stderr
    assert len(requests) + len(more) == 2 + 30, "two probes, and no turn twice"
    assert "32 requests, 32,000 tokens in (16,000 cached), 3,200 out (1,280 reasoning)" in result.stdout


def test_a_cost_limit_holds_and_is_recorded(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    result, requests = run(
        run_door,
        photos,
        tmp_path / "out",
        "--max_cost_usd",
        "0.06",
        "--price_per_million",
        "2,10",
        "--max_tokens",
        200,
    )
    assert result.returncode == 1
    assert len(requests) * 0.003 <= 0.06
    (record,) = json.loads((tmp_path / "out" / "run_record.json").read_text())["runs"]
    assert record["spent"]["cost_usd"] == pytest.approx(0.003 * len(requests))
    assert record["stopped_by"].startswith("--max_cost_usd")


def test_a_cost_limit_without_prices_is_wrong_usage(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    result, _ = run(run_door, photos, tmp_path / "out", "--max_cost_usd", "1")
    assert result.returncode == 2
    assert "--price_per_million" in result.stderr


def test_estimate_runs_a_few_samples_keeps_them_and_says_what_the_whole_takes(
    run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    flags = ("--num_samples", 12, "--price_per_million", "2,10,1", "--estimate_samples", 4)
    result, requests = run(run_door, photos, tmp_path / "out", *flags, script="cli.py estimate")
    assert result.returncode == 0, result.stderr
    assert len(requests) == 1 + 12
    assert len(list((tmp_path / "out").glob("trace_*.json"))) == 4
    assert "12 samples" in result.stdout and "39,600" in result.stdout and "0.09 USD" in result.stdout
    result, requests = run(run_door, photos, tmp_path / "out", "--num_samples", 12)
    assert result.returncode == 0
    assert len(requests) == 1 + 24, "the estimate's samples are kept"
