"""`--target_acc`: rows drawn by what came of others, the same for any number of workers, over kills and resumes."""

from __future__ import annotations

import gc
import json
import math
import random
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from builders import row, saved
from conftest import PACKAGE
from hypothesis import assume, given
from hypothesis import strategies as st
from scripted_teacher import ScriptedTeacher, is_probe, says
from warm_door import start_door

from distil.cli import main
from distil.records import SampleId
from distil.rollout import turn_seed
from distil.run.aim import MAX_LAG, Aim, mixture, quantile_bins
from distil.run.draws import Draws
from distil.store.json_lines import read_lines
from distil.store.trace_file import find_trace_files

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))  # last: a module of the suite comes first

from adaptive import WORLDS, World, blind, ours

NUM_ROWS = 300
ROW_OF = {
    turn_seed(0, SampleId(each, rollout), 1): SampleId(each, rollout)
    for each in range(NUM_ROWS)
    for rollout in range(2)
}


def difficulty(index: int) -> float:
    return ((index * 7919) % NUM_ROWS) / NUM_ROWS


def is_right(sample_id: SampleId) -> bool:
    return random.Random(f"right {sample_id}").random() < 0.1 + 0.8 * difficulty(sample_id.index)


def reply_to(request: Mapping[str, Any]) -> Any:
    """Right or wrong by the row's difficulty; nobody replies in the order of the questions."""
    if is_probe(request):
        return says("yes")
    time.sleep(random.Random(request["seed"]).random() / 100)
    return says(f"\\boxed{{{'48.5, 2.25' if is_right(ROW_OF[request['seed']]) else '-80, 100'}}}")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [row(locatability_score=difficulty(each), ease=None, name=f"n{each}") for each in range(NUM_ROWS)]
    features = {
        "locatability_score": datasets.Value("float64"),
        "ease": datasets.Value("float32"),
        "name": datasets.Value("string"),
    }
    return saved(tmp_path_factory.mktemp("rows") / "saved", rows, features)


def run(server: ScriptedTeacher, data: Path, out: Path, *flags: object) -> int:
    given = ("--api_base", server.api_base, "--dataset_path", data, "--output_dir", out, "--tools", "none")
    code = main(["run", *map(str, (*given, "--keep_going", *flags))])
    gc.collect()
    return code


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in find_trace_files(folder)}


def drawn(folder: Path) -> list[int]:
    lines = [line for line, _ in read_lines(folder / "draws.jsonl") if line is not None]
    assert list(lines[0]) == ["drawn_from"]
    return [line["sample_index"] for line in lines[1:]]


def aim_of(folder: Path) -> dict[str, Any]:
    aim = json.loads((folder / "run_record.json").read_text())["runs"][-1]["aim"]
    assert isinstance(aim, dict)
    return aim


def right_share(folder: Path) -> float:
    scores = [json.loads(data)["reward_score"]["acc@25km"] for data in files(folder).values()]
    return sum(scores) / len(scores)


AIM = ("--target_acc", 0.7, "--num_samples", 120)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one worker."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with ScriptedTeacher(reply_to) as server:
        assert run(server, data, out, *AIM, "--max_workers", 1) == 0
    return out


def test_a_run_comes_to_its_target(whole: Path) -> None:
    assert len(files(whole)) == len(drawn(whole)) == len(set(drawn(whole))) == 120
    assert right_share(whole) == pytest.approx(0.7, abs=0.02)
    aim = aim_of(whole)
    assert aim["reached"] == pytest.approx(right_share(whole)) and aim["why_missed"] is None
    assert (aim["num_drawn"], aim["num_counted"], aim["column"]) == (120, 120, "locatability_score")


def test_the_files_are_the_same_with_more_workers(whole: Path, data: Path, tmp_path: Path) -> None:
    with ScriptedTeacher(reply_to) as server:
        assert run(server, data, tmp_path / "out", *AIM, "--max_workers", 8) == 0
    assert drawn(tmp_path / "out") == drawn(whole)
    assert files(tmp_path / "out") == files(whole)


def test_a_run_that_was_broken_off_again_and_again_draws_the_same(
    whole: Path, data: Path, tmp_path: Path
) -> None:
    with ScriptedTeacher(reply_to) as server:
        for calls in (15, 40, 41, 90):
            assert run(server, data, tmp_path / "out", *AIM, "--max_workers", 4, "--max_calls", calls) == 1
        assert 0 < len(drawn(tmp_path / "out")) < 120
        (tmp_path / "out" / "draws.jsonl").open("ab").write(b'{"sample_ind')
        assert run(server, data, tmp_path / "out", *AIM, "--max_workers", 8) == 0
        asked = [request["seed"] for request in server.requests if not is_probe(request)]
    assert len(asked) == len(set(asked)), "no row was paid for twice"
    assert drawn(tmp_path / "out") == drawn(whole)
    assert files(tmp_path / "out") == files(whole)


def test_a_run_that_was_killed_goes_on_with_the_same_draws(whole: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with ScriptedTeacher(reply_to) as server:
        given = (
            "--api_base",
            server.api_base,
            "--dataset_path",
            data,
            "--output_dir",
            out,
            "--tools",
            "none",
        )
        flags = map(str, (*given, "--keep_going", *AIM, "--max_workers", 6))
        door = start_door(str(PACKAGE / "__main__.py"), "run", *flags, cwd=tmp_path)
        while len(files(out) if out.exists() else ()) < 40 and door.poll() is None:
            time.sleep(0.01)
        door.send_signal(signal.SIGKILL)
        door.communicate(timeout=60)
        assert 40 <= len(files(out)) < 120
        assert run(server, data, out, *AIM, "--max_workers", 6) == 0
    assert drawn(out) == drawn(whole) and files(out) == files(whole)


def test_what_a_kill_leaves_draws_the_same(whole: Path, data: Path, tmp_path: Path) -> None:
    """After a kill the traces are those of the samples that ended, in any order: the others are asked again."""
    shutil.copytree(whole, tmp_path / "out")
    lines = (tmp_path / "out" / "draws.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "out" / "draws.jsonl").write_bytes(b"".join(lines[:60]))
    kept = set(drawn(whole)[:59]) - set(drawn(whole)[50:59:2])
    for path in find_trace_files(tmp_path / "out"):
        if json.loads(path.read_bytes())["sample_index"] not in kept:
            path.unlink()
    with ScriptedTeacher(reply_to) as server:
        assert run(server, data, tmp_path / "out", *AIM, "--max_workers", 3) == 0
        assert sum(not is_probe(request) for request in server.requests) == 120 - len(kept)
    assert drawn(tmp_path / "out") == drawn(whole) and files(tmp_path / "out") == files(whole)


def test_failed_samples_count_as_nothing_and_are_retried_without_other_draws(
    data: Path, tmp_path: Path
) -> None:
    is_broken = True

    def script(request: Mapping[str, Any]) -> Any:
        if is_broken and not is_probe(request) and ROW_OF[request["seed"]].index % 10 == 0:
            return 400, {"error": {"message": "an odd one"}}
        return reply_to(request)

    out = tmp_path / "out"
    with ScriptedTeacher(script) as server:
        assert run(server, data, out, *AIM) == 1
        before, num_traces = drawn(out), len(files(out))
        assert len(before) == 120 and num_traces == aim_of(out)["num_counted"] < 120
        assert aim_of(out)["reached"] == pytest.approx(0.7, abs=0.03)
        is_broken = False
        assert run(server, data, out, *AIM, "--retry_failed") in (0, 1)
        assert drawn(out) == before and len(files(out)) == 120
        assert aim_of(out)["num_counted"] == 120


def test_traces_that_are_there_are_not_asked_again_when_their_rows_are_drawn(
    whole: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with ScriptedTeacher(reply_to) as server:
        assert run(server, data, out, "--num_samples", 100) == 0
        num_before = len(server.requests)
        assert run(server, data, out, *AIM) == 0
        num_asked = len(server.requests) - num_before
    there = [each for each in drawn(whole) if each < 100]
    assert drawn(out) == drawn(whole)
    assert num_asked == 120 - len(there) and len(files(out)) == 100 + 120 - len(there)


def test_several_rollouts_of_a_row_count_as_their_share(data: Path, tmp_path: Path) -> None:
    flags = ("--rollouts_per_sample", 2, "--target_acc", 0.6, "--num_samples", 60)
    with ScriptedTeacher(reply_to) as server:
        for workers in (1, 6):
            assert run(server, data, tmp_path / str(workers), *flags, "--max_workers", workers) == 0
    assert files(tmp_path / "1") == files(tmp_path / "6") and len(files(tmp_path / "1")) == 120
    assert right_share(tmp_path / "1") == pytest.approx(0.6, abs=0.04)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--target_acc", 0.95), "even the easiest of the rows, by their difficulty, pass at 0."),
        (("--target_acc", 0.02), "even the hardest of the rows, by their difficulty, pass at 0."),
        (("--target_acc", 0.7, "--num_samples", 280), "the easier rows are used up"),
    ],
)
def test_a_target_that_cannot_be_reached_is_told(
    flags: tuple[object, ...], words: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedTeacher(reply_to) as server:
        assert run(server, data, tmp_path / "out", "--num_samples", 100, *flags) == 1
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if line.startswith("Not reached: --target_acc")]
    assert words in line and f"{right_share(tmp_path / 'out'):.3f}" in line
    assert words in aim_of(tmp_path / "out")["why_missed"]


def test_the_condition_says_what_is_aimed_at(data: Path, tmp_path: Path) -> None:
    flags = ("--target_acc", 0.4, "--num_samples", 100, "--accept", "score < 0.5", "--where_row", "lat > 40")
    with ScriptedTeacher(reply_to) as server:
        assert run(server, data, tmp_path / "out", *flags) == 0
    assert right_share(tmp_path / "out") == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--difficulty_column", "name"), "'name' holds no numbers; the dataset's columns of numbers: lat"),
        (("--difficulty_column", "nam"), "'nam' is not there; the dataset's columns of numbers: lat"),
        (("--difficulty_column", "ease"), "no row has a value in it"),
        (("--num_samples", "0"), "--target_acc needs --num_samples N"),
        (("--order", "lat"), "cannot be combined with --order lat"),
        (("--also_without_tools",), "cannot be combined with --also_without_tools"),
        (("--accept", "score > 0", "--target_accepted", "3"), "cannot be combined with --target_accepted"),
        (("--target_acc", "1.2"), "must be a number from 0 to 1"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_what_makes_no_sense_is_told_before_anything_is_asked(
    flags: tuple[str, ...], words: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedTeacher(reply_to) as server:
        try:
            code = run(server, data, tmp_path / "out", "--target_acc", "0.5", *flags)
        except SystemExit as ended:
            code = int(ended.code or 0)
        assert code == 2 and server.requests == []
    assert words in capsys.readouterr().err


def test_a_dataset_without_the_usual_column_is_told_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(
        tmp_path / "plain", [row(ease=each) for each in range(4)], {"ease": datasets.Value("int8")}
    )
    with ScriptedTeacher(reply_to) as server:
        assert run(server, folder, tmp_path / "out", "--target_acc", 0.5) == 2
        told = capsys.readouterr().err
        assert "no column 'locatability_score': name one by --difficulty_column" in told and "ease" in told
        assert run(server, folder, tmp_path / "out", "--difficulty_column", "ease") == 2
        assert "--difficulty_column is for --target_acc" in capsys.readouterr().err


def test_draws_from_other_rows_are_not_mixed(
    whole: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path / "out")
    with ScriptedTeacher(reply_to) as server:
        assert run(server, data, tmp_path / "out", *AIM, "--where_row", "lat > 0") == 2
    assert 'draws.jsonl was drawn from other rows (where_row: null then, "lat > 0" now)' in (
        capsys.readouterr().err
    )
    with ScriptedTeacher(reply_to) as server:
        assert run(server, data, tmp_path / "out", "--target_acc", 0.7, "--num_samples", 130) == 0
    assert drawn(tmp_path / "out")[:120] == drawn(whole) and len(drawn(tmp_path / "out")) == 130


def test_a_dry_run_shows_a_row_that_is_drawn_first(
    whole: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedTeacher(reply_to) as server:
        assert run(server, data, tmp_path / "none", *AIM, "--dry_run") == 0
        assert server.requests == [] and not (tmp_path / "none").exists()
    printed = capsys.readouterr().out
    assert "rows are drawn at once" in printed
    assert f"The first request, of sample {SampleId(drawn(whole)[0])} " in printed


# --- the drawing


@given(
    st.lists(st.floats(0, 1) | st.just(float("nan")), min_size=1, max_size=80),
    st.floats(0, 1),
    st.integers(1, 100),
    st.integers(1, 100),
    st.integers(1, 100),
    st.randoms(use_true_random=False),
)
def test_no_row_is_drawn_twice_and_who_ends_first_changes_nothing(
    scores: list[float], target: float, num_draws: int, workers: int, others: int, chance: random.Random
) -> None:
    bins = quantile_bins(range(len(scores)), np.array(scores))
    pool = {each for each, score in enumerate(scores) if not math.isnan(score)}
    assume(pool)
    assert sorted(each for rows in bins for each in rows) == sorted(pool)
    outcomes = {each: chance.choice([0.0, 1.0, 0.5, None]) for each in pool}

    def work(num_workers: int, seed: int, stop_after: int = 10**6, before: list[int] | None = None) -> Aim:
        aim, flying = Aim(target, num_draws, bins, seed), list(before or [])
        aim.go_on(flying)
        while stop_after:
            while len(flying) < num_workers and (index := aim.draw()) is not None:
                flying.append(index)
            if not flying:
                break
            index = flying.pop(chance.randrange(len(flying)))
            aim.note(index, outcomes[index])
            stop_after -= 1
        return aim

    one = work(workers, 5)
    assert len(one.rows) == len(set(one.rows)) == min(num_draws, len(pool)) and set(one.rows) <= pool
    assert work(others, 5).rows == one.rows
    broken = work(workers, 5, stop_after=num_draws // 2)
    assert broken.rows == one.rows[: len(broken.rows)]
    assert work(others, 5, before=broken.rows).rows == one.rows
    ended = [value for each in one.rows if (value := outcomes[each]) is not None]
    assert one.reached == (pytest.approx(sum(ended) / len(ended)) if ended else None)
    one.why_missed()


@pytest.mark.parametrize("num_draws", [60, 200])
def test_the_draws_are_the_same_for_any_number_of_workers(num_draws: int) -> None:
    world = World(WORLDS["usual"], num_draws, 1)
    bins = quantile_bins(range(1000), np.array(world.scores[:1000]))
    found = []
    for workers in (1, 2, 9, 64, 300):
        aim, flying, chance = Aim(0.6, num_draws, bins, 0), list[int](), random.Random(workers)
        while True:
            while len(flying) < workers and (index := aim.draw()) is not None:
                flying.append(index)
            if not flying:
                break
            index = flying.pop(chance.randrange(len(flying)))
            aim.note(index, world.passes(index, 0))
        found.append(aim.rows)
    assert all(rows == found[0] for rows in found)


def test_another_seed_draws_otherwise() -> None:
    bins = quantile_bins(range(500), np.arange(500.0))
    draws = []
    for seed in (1, 1, 2):
        aim = Aim(0.5, 100, bins, seed)
        while (index := aim.draw()) is not None:
            aim.note(index, float(index % 2))
        draws.append(aim.rows)
    assert draws[0] == draws[1] != draws[2]


def test_so_many_draws_wait_for_none_in_the_middle_of_a_run() -> None:
    aim = Aim(0.5, 2000, quantile_bins(range(4000), np.arange(4000.0)), 0)
    waiting: list[int] = []
    most = 0
    for _ in range(2000):
        while (index := aim.draw()) is not None:
            waiting.append(index)
        most = max(most, len(waiting))
        aim.note(waiting.pop(0), 1.0)
    assert aim.is_over and most in (MAX_LAG, MAX_LAG + 1)


@given(
    st.lists(st.tuples(st.integers(0, 50), st.floats(0, 1)), min_size=1, max_size=10),
    st.integers(1, 200),
    st.floats(-0.5, 1.5),
)
def test_a_mixture_has_the_rate_that_is_asked_for_where_there_is_one(
    given_bins: list[tuple[int, float]], num_draws: int, rate: float
) -> None:
    num_left = np.array([float(number) for number, _ in given_bins])
    rates = np.array([each for _, each in given_bins])
    if num_left.sum() == 0:
        return
    drawn = mixture(num_left, rates, num_draws, rate)
    assert (drawn >= 0).all() and (drawn <= num_left + 1e-9).all()
    assert drawn.sum() == pytest.approx(min(num_draws, num_left.sum()), rel=1e-3)
    ordered = np.repeat(np.sort(rates), num_left.astype(int)[np.argsort(rates)])[:]
    few = min(num_draws, len(ordered))
    lowest, highest = ordered[:few].mean(), ordered[-few:].mean()
    nearest = min(max(rate, lowest), highest)
    assert drawn @ rates / drawn.sum() == pytest.approx(nearest, abs=0.03)


def test_the_simulation_keeps_its_promise() -> None:
    for name in ("usual", "drifting"):
        misses = {
            draw: [draw(World(WORLDS[name], 200, seed), 0.6, 200, 3, seed) - 0.6 for seed in range(3)]
            for draw in (ours, blind)
        }
        assert max(map(abs, misses[ours])) <= 0.02 < max(map(abs, misses[blind]))


def test_a_draw_of_a_row_that_may_not_be_drawn_ends_the_run_before_a_sample_is_asked(
    whole: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path / "out")
    with (tmp_path / "out" / "draws.jsonl").open("a") as file:
        file.write('{"sample_index": 999999}\n')
    before = files(tmp_path / "out")
    with ScriptedTeacher(reply_to) as server:
        assert run(server, data, tmp_path / "out", *AIM) == 2
    assert "draws.jsonl holds rows that may not be drawn" in capsys.readouterr().err
    assert files(tmp_path / "out") == before


def test_traces_that_were_there_when_their_row_was_drawn_are_told_once(tmp_path: Path) -> None:
    """By this the progress of a run counts them no more among what is left."""
    draws = Draws(Aim(0.5, 4, [range(4)], 0), {"difficulty_column": "ease"}, num_each=3)
    draws.go_on(tmp_path)
    rows = draws.rows({SampleId(row, rollout) for row in range(4) for rollout in (0, 2)}, set(), None)
    row = next(rows)
    assert row is not None and list(row.left) == [SampleId(row.index, 1)]
    assert (draws.take_found(), draws.take_found()) == (2, 0)
    draws.close()
