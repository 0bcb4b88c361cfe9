"""Limits hold: across threads, resumes and servers that do not say what they used."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import RunDoor
from hypothesis import given
from hypothesis import strategies as st
from scripted_teacher import ScriptedTeacher, calls, completion, is_probe, num_turns

from distil.errors import BudgetExceeded, FolderError, UsageError
from distil.spending.budget import Bill, Budget, calls_of, cost_of, tokens_of
from distil.spending.prices import FixedPrices, Tokens, find_prices, parse_prices, read_tokens, stored_tokens
from distil.store.spending import SPENDING, SpendingFile

PRICES = FixedPrices(input_usd=2.0, output_usd=10.0, cached_usd=0.5)
USAGE = {"prompt_tokens": 1000, "completion_tokens": 200}


def spend(budget: Budget, usage: Any = USAGE) -> None:
    with budget.request() as request:
        request.sent()
        request.answered(usage)


def opened(folder: Path, prices: FixedPrices | None = PRICES) -> Budget:
    """The budget of a folder, as a run opens it."""
    file = SpendingFile(folder)
    budget = Budget(100, prices and prices.cost_usd, record=file.append)
    budget.read(file.entries())
    return budget


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
        (USAGE | {"prompt_tokens_details": {"cached_tokens": 1000}}, Tokens(1000, 1000, 200)),
        (USAGE | {"prompt_tokens_details": {"cached_tokens": 50_000}}, Tokens(1000, None, 200)),
        (USAGE | {"prompt_cache_hit_tokens": 1001}, Tokens(1000, None, 200)),
        (USAGE | {"total_tokens": 1200}, Tokens(1000, None, 200)),
        (USAGE | {"total_tokens": 0}, Tokens(1000, None, 200)),
        # Reasoning beside the completion, as Gemini and xAI count; and a turn that was nothing else.
        (
            USAGE | {"total_tokens": 1750, "completion_tokens_details": {"reasoning_tokens": 550}},
            Tokens(1000, None, 750, 550),
        ),
        ({"prompt_tokens": 1000, "total_tokens": 1060}, Tokens(1000, None, 60)),
        ({"prompt_tokens": 1000, "total_tokens": 1000}, Tokens(1000)),
        ({"completion_tokens": 200, "total_tokens": 1200}, Tokens(None, None, 200)),
    ],
)
def test_usage_is_read_and_what_is_missing_is_none(usage: Any, tokens: Tokens) -> None:
    assert read_tokens(usage) == tokens


def test_cached_tokens_have_their_own_price() -> None:
    assert PRICES.cost_usd(Tokens(1_000_000, 600_000, 100_000)) == pytest.approx(0.8 + 0.3 + 1.0)
    assert PRICES.cost_usd(Tokens(1_000_000, None, 100_000)) == pytest.approx(3.0)
    assert PRICES.cost_usd(Tokens(None, None, 100_000)) is None


counts = st.none() | st.integers(-5, 10**7) | st.sampled_from(["7", 1.5, True, {}])


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "prompt_tokens": counts,
            "completion_tokens": counts,
            "total_tokens": counts,
            "prompt_cache_hit_tokens": counts,
            "prompt_tokens_details": st.fixed_dictionaries({"cached_tokens": counts}),
            "completion_tokens_details": st.fixed_dictionaries({"reasoning_tokens": counts}),
        },
    )
)
def test_nothing_that_a_server_reports_costs_less_than_nothing(usage: Any) -> None:
    tokens = read_tokens(usage)
    assert (PRICES.cost_usd(tokens) or 0) >= 0
    assert (stored_tokens(dataclasses.asdict(tokens))) == tokens
    stated = usage.get("completion_tokens")
    if type(stated) is int and stated >= 0:
        assert tokens.completion is not None and tokens.completion >= stated


@given(counts, counts, counts)
def test_nothing_that_a_ledger_holds_costs_less_than_nothing(
    prompt: Any, cached: Any, completion: Any
) -> None:
    tokens = stored_tokens({"prompt": prompt, "cached": cached, "completion": completion})
    assert (PRICES.cost_usd(tokens) or 0) >= 0


@pytest.mark.parametrize("text", ["", "1", "1,2,3,4", "a,b", "-1,2", "nan,1", "inf,1"])
def test_wrong_prices_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_prices(text)


def test_prices_of_a_provider_are_known_and_of_an_own_server_not() -> None:
    known = find_prices(None, "gpt-4o", "https://api.openai.com/v1")
    assert known is not None
    cost = known(Tokens(1_000_000, None, 0))
    assert cost is not None and 0.5 < cost < 10
    assert find_prices(None, "Qwen3-VL", "http://127.0.0.1:8000/v1") is None
    assert find_prices(PRICES, "Qwen3-VL", "http://127.0.0.1:8000/v1") == PRICES.cost_usd


def test_a_cost_limit_without_prices_is_refused() -> None:
    with pytest.raises(UsageError, match="--price_per_million"):
        Budget(100, limits={cost_of: 1.0})


def test_what_was_spent_is_counted_over_resumes(tmp_path: Path) -> None:
    for _ in range(2):
        budget = opened(tmp_path)
        spend(budget)
        spend(budget, None)
    spent = opened(tmp_path).spent
    assert spent == budget.spent
    assert spent.answered == Bill(4, Tokens(2000, None, 400, None), pytest.approx(0.008), 2, 2)


def test_an_earlier_run_without_prices_is_priced_later(tmp_path: Path) -> None:
    spend(opened(tmp_path, prices=None))
    assert opened(tmp_path).spent.answered.cost_usd == pytest.approx(0.004)


def test_requests_are_told_apart_by_what_became_of_them(tmp_path: Path) -> None:
    budget = opened(tmp_path)
    spend(budget)
    with budget.request() as request:
        request.sent()
        request.unusable(USAGE)
    with budget.request() as request, contextlib.suppress(OSError):
        request.sent()
        raise OSError
    with budget.request() as request:
        request.sent()
        request.refused()
    with budget.request():
        pass  # never sent
    spent = opened(tmp_path).spent
    assert spent == budget.spent
    assert (spent.answered.requests, spent.refused, spent.calls) == (1, 1, 3)
    assert spent.retried == Bill(2, Tokens(1000, None, 200, None), pytest.approx(0.004), 1, 1)


def test_a_request_that_a_kill_cut_off_may_be_billed(tmp_path: Path) -> None:
    with opened(tmp_path).request() as request:
        request.sent()
        resumed = opened(tmp_path)  # as if the process had died here
    assert resumed.spent.retried == Bill(1, Tokens(), None, 1, 1)


def test_a_torn_line_is_passed_over_and_the_next_one_is_whole(tmp_path: Path) -> None:
    spend(opened(tmp_path))
    with (tmp_path / SPENDING).open("a") as file:
        file.write('{"request": 2, "sta')
    spend(opened(tmp_path))
    assert opened(tmp_path).spent.answered.requests == 2


def test_a_spending_file_that_cannot_be_written_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / SPENDING).mkdir()
    with (
        pytest.raises(FolderError, match=SPENDING),
        Budget(100, record=SpendingFile(tmp_path).append).request() as request,
    ):
        request.sent()


def test_requests_without_figures_are_held_against_the_limit_at_the_mean_of_the_others() -> None:
    budget = Budget(1000, limits={tokens_of: 10_000})
    with budget.request() as request:
        request.sent()  # and no reply
    with pytest.raises(BudgetExceeded, match="1,200 tokens held for 1 requests without figures"):
        for _ in range(10):
            spend(budget)
    assert budget.spent.answered.requests == 4, "without the one that was lost it would be 5"


def test_one_reply_without_figures_does_not_end_a_run() -> None:
    budget = Budget(1000, PRICES.cost_usd, {tokens_of: 10**6, cost_of: 10})
    spend(budget, None)
    for _ in range(20):
        spend(budget)


@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 2**32))
def test_no_limit_is_passed_however_many_threads_spend(limit: int, threads: int, seed: int) -> None:
    generator = random.Random(seed)
    budget = Budget(100, limits={calls_of: limit})
    sent = []

    def worker() -> None:
        try:
            for _ in range(50):
                with budget.request() as request:
                    sent.append(1)
                    request.sent()
                    if generator.random() < 0.2:
                        time.sleep(0.0002)
                    if generator.random() < 0.5:
                        request.answered(USAGE)
        except BudgetExceeded:
            pass

    workers = [threading.Thread(target=worker) for _ in range(threads)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join(20)
    assert len(sent) == budget.spent.calls == min(limit, 50 * threads)


def test_token_and_cost_limits_reserve_the_most_that_a_request_can_come_to() -> None:
    for name, limits, most in (
        ("tokens", {tokens_of: 20_000}, 20_000),
        ("cost", {cost_of: 0.05}, None),
    ):
        budget = Budget(1000, PRICES.cost_usd, limits)
        with pytest.raises(BudgetExceeded, match=f"max_.*{name}"):
            for _ in range(100):
                spend(budget)
        assert budget.spent.calls > 5
        if most is not None:
            assert budget.spent.answered.tokens.total <= most
        else:
            assert budget.spent.answered.cost_usd <= 0.05


def test_a_limit_that_cannot_be_counted_stops_the_run() -> None:
    for limits in ({tokens_of: 10**9}, {cost_of: 10**9}):
        budget = Budget(100, PRICES.cost_usd, limits)
        with pytest.raises(BudgetExceeded, match="does not report its tokens: use --max_calls"):
            for _ in range(10):
                spend(budget, None)
        assert budget.spent.calls == 3


def test_a_request_waits_for_those_in_flight_and_then_fits() -> None:
    budget = Budget(1000, limits={tokens_of: 12_000})
    entered = threading.Event()
    with budget.request() as first, budget.request() as second:
        waiting = threading.Thread(target=lambda: (spend(budget), entered.set()))
        waiting.start()
        assert not entered.wait(0.1)
        for request in (first, second):
            request.sent()
            request.answered(USAGE)
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
        return run_against(server, run_door, photos, folder, *flags, script=script), server.requests


def run_against(
    server: ScriptedTeacher,
    run_door: RunDoor,
    photos: Path,
    folder: Path,
    *flags: object,
    script: str = "demo_concurrent.py",
) -> Any:
    return run_door(
        *([script] if script.endswith("t.py") else script.split()), "--api_base", server.api_base,
        "--dataset_path", photos, "--output_dir", folder, *flags,
    )  # fmt: skip


def test_a_run_stops_at_its_limit_and_goes_on_when_it_is_raised(
    run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    with ScriptedTeacher(three_turns) as server:
        result = run_against(server, run_door, photos, tmp_path / "out", "--max_calls", 14)
        assert result.returncode == 1
        assert len(server.requests) == 13, "the probe counts too, and no sample is begun to no end"
        assert (
            "Stopped: limit reached, --max_calls 14: 13 requests made, and what is left does not finish another "
            "sample, which takes 3.0 in the mean; raise it and run again, nothing is lost."
        ) in result.stdout
        assert not (tmp_path / "out" / "failed_samples.jsonl").exists()
        result = run_against(server, run_door, photos, tmp_path / "out", "--max_calls", 100)
        assert result.returncode == 0, result.stderr
        assert len(server.requests) == 1 + 30, "one probe, and no turn twice"
    assert "31 requests, 31,000 tokens in (15,500 cached), 3,100 out (1,240 reasoning)" in result.stdout


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
    assert record["spent"]["answered"]["cost_usd"] == pytest.approx(0.003 * len(requests))
    assert record["stopped_by"].startswith("limit reached, --max_cost_usd")


def test_a_cost_limit_without_prices_is_wrong_usage(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    result, _ = run(run_door, photos, tmp_path / "out", "--max_cost_usd", "1")
    assert result.returncode == 2
    assert "--price_per_million" in result.stderr


def test_estimate_runs_a_few_samples_keeps_them_and_says_what_the_whole_takes(
    run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    flags = ("--num_samples", 12, "--price_per_million", "2,10,1", "--estimate_samples", 4)
    with ScriptedTeacher(three_turns) as server:
        result = run_against(server, run_door, photos, tmp_path / "out", *flags, script="cli.py estimate")
        assert result.returncode == 0, result.stderr
        assert len(server.requests) == 1 + 12
        assert len(list((tmp_path / "out").glob("trace_*.json"))) == 4
        table = {line.split()[0]: " ".join(line.split()[1:]) for line in result.stdout.splitlines() if line}
        assert table["tokens"] == "3,300 39,600 39,600 – 39,600 26,400"
        # a turn: 500 tokens in at 2, 500 cached at 1, 100 out at 10 USD a million
        assert table["cost"] == "0.0075 USD 0.0900 USD 0.0900 USD – 0.0900 USD 0.0600 USD"
        assert "all 12 samples" in result.stdout
        again = run_against(server, run_door, photos, tmp_path / "out", *flags, script="cli.py estimate")
        assert again.returncode == 0, again.stderr
        assert len(server.requests) == 1 + 24, "the next ones, not none"
        result = run_against(server, run_door, photos, tmp_path / "out", "--num_samples", 12)
        assert result.returncode == 0
        assert len(server.requests) == 1 + 36, "the estimate's samples and its probe are kept"
