"""Several rollouts of a row: as many as are needed, the same whoever replies first, over kills and resumes."""

from __future__ import annotations

import gc
import json
import math
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import datasets
import pytest
import trace_rebuilder
from conftest import PACKAGE, PLACES, photo_bytes, save_photos
from hypothesis import given
from hypothesis import strategies as st
from scripted_teacher import ScriptedTeacher, calls, is_probe, says
from warm_door import start_door

from distil.cli import main
from distil.index.index import TraceIndex
from distil.index.query import Query
from distil.records import SampleId
from distil.rollout import turn_seed
from distil.run.schedule import Rollouts, Schedule, WithoutTools, rows_of, with_companions
from distil.store.status import read_status
from distil.store.trace_file import find_trace_files

NUM_ROWS, NUM_EACH = 12, 6
ASKED_BY_SEED = {
    turn_seed(0, SampleId(row, rollout), turn): (SampleId(row, rollout), turn)
    for row in range(NUM_ROWS)
    for rollout in range(NUM_EACH)
    for turn in (1, 2)
}


def is_right(sample_id: SampleId) -> bool:
    """Whether the teacher knows it this time: rows are easy, hard or hopeless."""
    return random.Random(str(sample_id)).random() < (0.9, 0.4, 0.0)[sample_id.index % 3]


def reply_to(request: dict[str, Any]) -> Any:
    """Zoom, then answer, right or wrong; without tools wrong, but for row 0."""
    if is_probe(request):
        return calls(("image_zoom_in_tool", {"bbox_2d": [0, 0, 500, 500]}))
    sample_id, turn = ASKED_BY_SEED[request["seed"]]
    time.sleep(random.Random(request["seed"]).random() / 50)  # nobody replies in the order of the questions
    if "tools" in request and turn == 1:
        return calls(("image_zoom_in_tool", {"bbox_2d": [10 * sample_id.rollout, 0, 500, 500]}))
    knows = is_right(sample_id) if "tools" in request else sample_id.index == 0
    latitude, longitude = PLACES[sample_id.index % len(PLACES)]
    return says(f"\\boxed{{{latitude}, {longitude}}}" if knows else "\\boxed{-80, 100}")


class Goal(NamedTuple):
    """How many accepted traces are enough, of a row and of the run."""

    of_row: float = math.inf
    of_run: float = math.inf


def left_of(wanted: Rollouts, done: Collection[SampleId]) -> list[SampleId]:
    return [each for each in wanted if each not in done]


def needed(num_rows: int, num_each: int, goal: Goal, accepted: Callable[[SampleId], bool]) -> set[SampleId]:
    """The rollouts that there are to be: in their order, each while its row and the run lack some."""
    asked, num_all = set(), 0
    for row in range(num_rows):
        num_of_row = 0
        for rollout in range(num_each):
            if num_of_row >= goal.of_row or num_all >= goal.of_run:
                break
            sample_id = SampleId(row, rollout)
            asked.add(sample_id)
            num_of_row += accepted(sample_id)
            num_all += accepted(sample_id)
    return asked


def run(server: ScriptedTeacher, photos: Path, folder: Path, *flags: object) -> int:
    given = ["--api_base", server.api_base, "--dataset_path", photos, "--output_dir", folder, *flags]
    code = main(["run", *map(str, given), "--quiet"])
    gc.collect()  # errors hold what raised them, and with it the folder's lock
    return code


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in find_trace_files(folder)}


def made(folder: Path) -> set[SampleId]:
    found = (SampleId.from_file_part(name[len("trace_") : -len(".json")]) for name in files(folder))
    return {each for each in found if each is not None}


def asked(server: ScriptedTeacher) -> Counter[tuple[SampleId, int, bool]]:
    """How often each turn of each rollout was asked, with tools or without."""
    return Counter(
        (*ASKED_BY_SEED[request["seed"]], "tools" in request)
        for request in server.requests
        if not is_probe(request)
    )


# --- which rollouts are asked: whatever ends first


GOALS = st.builds(
    Goal,
    st.one_of(st.just(math.inf), st.integers(1, 3)),
    st.one_of(st.just(math.inf), st.integers(1, 12)),
)


def work_through(
    schedule: Schedule, accepted: Any, num_workers: int, chance: random.Random, most: int = 10**6
):
    """Ask as a run does, until so many have ended; returns those that have."""
    in_flight: list[SampleId] = []
    ended: list[SampleId] = []
    waiting = iter(schedule)
    while len(ended) < most:
        while len(in_flight) <= num_workers and (sample_id := next(waiting)) is not None:
            in_flight.append(sample_id)
        if not in_flight:
            break
        sample_id = in_flight.pop(chance.randrange(len(in_flight)))
        ended.append(sample_id)
        schedule.note(sample_id, not isinstance(sample_id, WithoutTools) and accepted(sample_id))
    return ended


@given(GOALS, st.integers(1, 5), st.integers(1, 9), st.randoms(use_true_random=False), st.data())
def test_which_rollouts_are_asked_does_not_depend_on_who_ends_first(
    goal: Goal, num_each: int, num_workers: int, chance: random.Random, data: st.DataObject
) -> None:
    num_rows = data.draw(st.integers(0, 10))
    right = {each for each in Rollouts(range(num_rows), num_each) if chance.random() < 0.4}
    expected = needed(num_rows, num_each, goal, right.__contains__)
    schedule = Schedule(rows_of(Rollouts(range(num_rows), num_each), {}), 0, *goal)
    ended = work_through(schedule, right.__contains__, num_workers, chance)
    assert len(ended) == len(set(ended)) and set(ended) == expected
    assert schedule.num_begun == len(expected)
    assert schedule.num_accepted == len(right & expected)
    by_row = Counter(each.index for each in right & expected)
    assert schedule.num_rows_enough == sum(
        number >= (goal.of_row if goal.of_row < math.inf else 1) for number in by_row.values()
    )
    if not schedule.is_reached:
        assert schedule.num_not_needed == num_rows * num_each - len(expected)


@given(GOALS, st.integers(1, 5), st.randoms(use_true_random=False), st.lists(st.integers(1, 9), max_size=4))
def test_a_run_that_was_killed_again_and_again_comes_to_the_same(
    goal: Goal, num_each: int, chance: random.Random, kills: list[int]
) -> None:
    wanted = Rollouts(range(8), num_each)
    right = {each for each in wanted if chance.random() < 0.4}
    done: set[SampleId] = set()
    for most in [*kills, 10**6]:
        by_row = Counter(each.index for each in right & done)
        schedule = Schedule(rows_of(left_of(wanted, done), by_row), len(right & done), *goal)
        done |= set(work_through(schedule, right.__contains__, chance.randint(1, 9), chance, most))
    assert done == needed(8, num_each, goal, right.__contains__)


@given(GOALS, st.randoms(use_true_random=False), st.sets(st.integers(0, 5)), st.sets(st.integers(0, 5)))
def test_each_row_that_is_asked_is_asked_without_tools_once(
    goal: Goal, chance: random.Random, begun: set[int], done_without: set[int]
) -> None:
    wanted = Rollouts(range(6), 3)
    right = {each for each in wanted if chance.random() < 0.4}
    done = {SampleId(row) for row in begun}
    rows = rows_of(left_of(wanted, done), Counter(each.index for each in right & done))
    schedule = Schedule(
        with_companions(rows, wanted.rows, begun, lambda row: row not in done_without),
        len(right & done),
        *goal,
    )
    ended = work_through(schedule, right.__contains__, 4, chance)
    without = [each.index for each in ended if isinstance(each, WithoutTools)]
    with_tools = {each.index for each in ended if not isinstance(each, WithoutTools)}
    assert sorted(without) == sorted((begun | with_tools) - done_without)


@given(st.integers(0, 5), st.integers(1, 4))
def test_rollouts_are_a_list_that_is_not_held(num_rows: int, num_each: int) -> None:
    rows = [7 * row for row in range(num_rows)]
    listed = [SampleId(row, rollout) for row in rows for rollout in range(num_each)]
    wanted = Rollouts(rows, num_each)
    assert list(wanted) == list(wanted) == listed and len(wanted) == len(listed)


# --- runs


def test_each_row_is_asked_so_often_and_more_or_fewer_are_taken_up_later(
    photos: Path, tmp_path: Path
) -> None:
    with ScriptedTeacher(reply_to) as server:

        def ask(num_each: int) -> int:
            before = len(server.requests)
            flags = ("--num_samples", 3, "--rollouts_per_sample", num_each)
            assert run(server, photos, tmp_path / "out", *flags) == 0
            return len(server.requests) - before

        assert ask(2) == 1 + 3 * 2 * 2
        first = files(tmp_path / "out")
        assert list(first) == [
            name for row in range(3) for name in (f"trace_{row:05d}.json", f"trace_{row:05d}_r1.json")
        ]
        assert ask(3) == 3 * 2, "the third of each row"
        assert ask(1) == 0
        after = files(tmp_path / "out")
        assert len(after) == 9 and first.items() <= after.items(), "none is touched or taken away"
        assert set(asked(server).values()) == {1}
    assert main(["verify", str(tmp_path / "out")]) == 0
    later = json.loads(after["trace_00002_r1.json"])
    assert (later["sample_index"], later["rollout"]) == (2, 1)
    assert (
        len({json.loads(after[f"trace_00001{end}.json"])["final_response"] for end in ("", "_r1", "_r2")}) > 1
    )


EARLY = ("--rollouts_per_sample", NUM_EACH, "--accept", "score > 0.8", "--accepted_per_sample", 2)


@pytest.mark.parametrize("target", [None, 7])
def test_rollouts_are_asked_until_enough_are_accepted_with_any_number_of_workers(
    target: int | None, photos: Path, tmp_path: Path
) -> None:
    goal = Goal(2, math.inf if target is None else target)
    expected = needed(9, NUM_EACH, goal, is_right)
    flags = (*EARLY, "--num_samples", 9, *(() if target is None else ("--target_accepted", target)))
    with ScriptedTeacher(reply_to) as server:
        for num_workers in (1, 8):
            assert run(server, photos, tmp_path / str(num_workers), *flags, "--max_workers", num_workers) == 0
        assert made(tmp_path / "1") == expected
        assert files(tmp_path / "1") == files(tmp_path / "8")
        assert set(asked(server).values()) == {2}, "each of the two runs asked each turn once"
        num_asked = len(server.requests)
        assert run(server, photos, tmp_path / "8", *flags) == 0
        assert len(server.requests) == num_asked, "nothing is lacking"
    record = json.loads((tmp_path / "8" / "run_record.json").read_text())["runs"][0]
    by_row = Counter(each.index for each in expected if is_right(each))
    assert record["num_accepted"] == by_row.total() and record["num_rows"] == 9
    assert record["num_rows_enough"] == sum(number >= 2 for number in by_row.values())
    assert record["num_not_needed"] == 9 * NUM_EACH - len(expected)
    status = read_status(tmp_path / "8")
    assert (status.num_rows, status.num_accepted, status.num_left) == (9, by_row.total(), 0)


def test_a_target_that_is_not_reached_is_told(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--num_samples", 3, "--accept", "score > 0.8", "--target_accepted", 3)
    with ScriptedTeacher(reply_to) as server:
        given = ["--api_base", server.api_base, "--dataset_path", photos, "--output_dir", tmp_path / "out"]
        assert main(["run", *map(str, (*given, *flags))]) == 1
    printed = capsys.readouterr().out
    num_right = sum(is_right(SampleId(row)) for row in range(3))
    assert f"Not reached: --target_accepted 3 (there are {num_right})" in printed
    assert f"Accepted (score > 0.8): {num_right} of 3 traces" in printed


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--accept", "scor > 0.8"), "there is no column 'scor'; did you mean score"),
        (("--accept", "score >"), "--accept 'score >': "),
        (("--accept", "score > 0.8; DROP TABLE traces"), "one expression"),
        (("--accept", "seconds < 3"), "there is no column 'seconds'"),
        (("--accept", "mark = 'keep'"), "there is no column 'mark'"),
        (("--accept", "tool_gain > 0.1"), "there is no column 'tool_gain'"),
        (
            ("--accepted_per_sample", "2", "--rollouts_per_sample", "2"),
            "--accepted_per_sample needs --accept",
        ),
        (("--target_accepted", "2"), "--target_accepted needs --accept"),
        (("--accept", "score > 0", "--accepted_per_sample", "2"), "more than a row has rollouts"),
        (("--also_without_tools", "--tools", "none"), "offers no tools"),
        (("--rollouts_per_sample", "0"), "--rollouts_per_sample"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
@pytest.mark.parametrize("dry", [(), ("--dry_run",)], ids=["run", "dry_run"])
def test_what_cannot_be_accepted_is_told_before_anything_is_asked(
    flags: Sequence[str], words: str, dry: Sequence[str], photos: Path, tmp_path: Path, capsys: Any
) -> None:
    with ScriptedTeacher(reply_to) as server:
        given = ["--api_base", server.api_base, "--dataset_path", str(photos), "--output_dir", str(tmp_path)]
        try:
            code = main(["run", *given, "--model", "m", *flags, *dry])
        except SystemExit as ended:
            code = int(ended.code or 0)
        assert code == 2 and server.requests == [] and server.headers == []
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "condition",
    [
        "distance_km < 25 AND turns = 2 AND city LIKE 'city %' AND answer_lat = truth_lat",
        'parse_success AND calls >= 1 AND "locatability_score" >= 0 AND acc_25km = 1',
        "score = (SELECT max(score) FROM traces) AND distance_km < 1 AND NOT without_tools",
        "CASE WHEN rollout = 0 THEN score > 0.5 ELSE score > 0.9 END",
    ],
)
def test_a_condition_speaks_of_all_columns_of_a_trace(condition: str, photos: Path, tmp_path: Path) -> None:
    flags = ("--num_samples", 3, "--rollouts_per_sample", 2, "--accept", condition)
    with ScriptedTeacher(reply_to) as server:
        assert run(server, photos, tmp_path, *flags) == 0
    (record,) = json.loads((tmp_path / "run_record.json").read_text())["runs"]
    assert record["num_accepted"] == sum(map(is_right, Rollouts(range(3), 2)))


def test_a_failed_rollout_is_not_accepted_and_tried_again_where_its_row_still_lacks_one(
    photos: Path, tmp_path: Path
) -> None:
    broken = {SampleId(0, 0), SampleId(1, 0)}

    def script(request: dict[str, Any]) -> Any:
        if not is_probe(request) and ASKED_BY_SEED[request["seed"]][0] in broken:
            return 400, {"error": {"message": "an odd one"}}
        if not is_probe(request) and ASKED_BY_SEED[request["seed"]][0].index == 1:
            return says("\\boxed{-80, 100}")  # row 1 is never right
        return reply_to(request)

    flags = (
        "--num_samples",
        2,
        "--rollouts_per_sample",
        2,
        "--accept",
        "score > 0.8",
        "--accepted_per_sample",
        1,
    )
    assert is_right(SampleId(0, 1))
    with ScriptedTeacher(script) as server:
        assert run(server, photos, tmp_path, *flags) == 1
        assert made(tmp_path) == {SampleId(0, 1), SampleId(1, 1)}
        broken.clear()
        assert run(server, photos, tmp_path, *flags, "--retry_failed", "--num_samples", 3) == 0
        assert made(tmp_path) == {SampleId(0, 1), SampleId(1, 1), SampleId(1, 0)}, "row 0 has enough"


def test_a_target_goes_by_the_order_of_rows_when_a_run_goes_on_too(photos: Path, tmp_path: Path) -> None:
    is_down = True

    def script(request: dict[str, Any]) -> Any:
        if is_probe(request):
            return reply_to(request)
        sample_id, turn = ASKED_BY_SEED[request["seed"]]
        if is_down and (sample_id, turn) != (SampleId(1), 1):  # which alone has a paid turn
            return 400, {"error": {"message": "an odd one"}}
        latitude, longitude = PLACES[sample_id.index]
        return reply_to(request) if turn == 1 else says(f"\\boxed{{{latitude}, {longitude}}}")

    flags = (
        "--num_samples",
        2,
        "--rollouts_per_sample",
        2,
        "--accept",
        "score > 0.8",
        "--target_accepted",
        3,
    )
    with ScriptedTeacher(script) as server:
        assert run(server, photos, tmp_path, *flags) == 1
        is_down = False
        assert run(server, photos, tmp_path, *flags) == 0
    assert made(tmp_path) == {SampleId(0), SampleId(0, 1), SampleId(1)}


def test_equal_rollouts_are_warned_of(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedTeacher(reply_to) as server:
        given = ("--api_base", server.api_base, "--dataset_path", photos, "--num_samples", 1)
        for flags, times in (
            (("--rollouts_per_sample", 2), 0),
            (("--rollouts_per_sample", 2, "--temperature", 0), 1),
            (("--temperature", 0), 0),
        ):
            folder = tmp_path / "_".join(map(str, flags))
            assert main(["run", *map(str, (*given, *flags, "--output_dir", folder))]) == 0
            assert capsys.readouterr().out.count("are likely to be equal") == times


# --- each row without tools too


def test_each_row_is_also_asked_without_tools(photos: Path, tmp_path: Path, capsys: Any) -> None:
    folder, without = tmp_path / "out", tmp_path / "out" / "without_tools"
    flags = ("--num_samples", 4, "--rollouts_per_sample", 2, "--also_without_tools", "--max_workers", 3)
    with ScriptedTeacher(reply_to) as server:
        given = ["--api_base", server.api_base, "--dataset_path", photos, "--output_dir", folder]
        assert main(["run", *map(str, (*given, *flags))]) == 0
        printed = capsys.readouterr().out
        times = asked(server)
        assert {key for key in times if not key[2]} == {(SampleId(row), 1, False) for row in range(4)}
        assert set(times.values()) == {1} and len(times) == 4 * 2 * 2 + 4
        assert len(made(folder)) == 8 and made(without) == {SampleId(row) for row in range(4)}
        assert "Without tools: 4 traces, mean score" in printed
        spent = read_status(folder).spent
        assert spent.answered.requests == 1 + 20, "all that was asked counts in the run's folder"
        assert read_status(without).spent.answered.requests == 0
        assert read_status(folder).num_without_tools == 4
        num_asked = len(server.requests)
        assert run(server, photos, folder, *flags) == 0
        door = ["--api_base", server.api_base, "--dataset_path", photos, "--num_samples", 4]
        assert main(["one-turn", *map(str, (*door, "--output_dir", without, "--quiet"))]) == 0
        assert len(server.requests) == num_asked, "it is such a folder as a run without tools makes"
    for path in (folder, without):
        assert main(["verify", str(path)]) == 0
    trace = json.loads((without / "trace_00003.json").read_text())
    settings = trace["settings"]
    assert (settings["tool_mode"], settings["tool_schemas"], settings["max_turns"]) == ("none", [], 1)
    assert [len(trace["conversation_log"]), trace["tool_calls_log"]] == [1, []]


def test_rows_that_are_there_are_asked_without_tools_later_and_what_failed_again(
    photos: Path, tmp_path: Path
) -> None:
    is_down = True

    def script(request: dict[str, Any]) -> Any:
        if is_down and not is_probe(request) and "tools" not in request and request["seed"] % 2:
            return 400, {"error": {"message": "an odd one"}}
        return reply_to(request)

    without = tmp_path / "without_tools"
    odd = {row for row in range(6) if turn_seed(0, SampleId(row), 1) % 2}
    assert 0 < len(odd) < 6
    with ScriptedTeacher(script) as server:
        assert run(server, photos, tmp_path, "--num_samples", 6) == 0
        first = files(tmp_path)
        assert run(server, photos, tmp_path, "--num_samples", 6, "--also_without_tools") == 1
        assert {each.index for each in made(without)} == set(range(6)) - odd
        lines = (without / "failed_samples.jsonl").read_text().splitlines()
        assert {json.loads(line)["sample_index"] for line in lines} == odd
        assert run(server, photos, tmp_path, "--num_samples", 6, "--also_without_tools") == 1
        lines = (without / "failed_samples.jsonl").read_text().splitlines()
        assert {(json.loads(line)["sample_index"], json.loads(line)["runs"]) for line in lines} == {
            (row, 2) for row in odd
        }
        is_down = False
        flags = ("--num_samples", 6, "--also_without_tools", "--retry_failed")
        assert run(server, photos, tmp_path, *flags) == 0
        assert len(made(without)) == 6 and not (without / "failed_samples.jsonl").exists()
        assert files(tmp_path) == first
    assert main(["verify", str(without)]) == 0


def test_other_settings_without_tools_are_never_mixed(photos: Path, tmp_path: Path, capsys: Any) -> None:
    with ScriptedTeacher(reply_to) as server:
        given = ["--api_base", server.api_base, "--dataset_path", photos, "--num_samples", 1]
        without = tmp_path / "without_tools"
        assert main(["one-turn", *map(str, (*given, "--output_dir", without, "--max_tokens", 99))]) == 0
        capsys.readouterr()
        assert run(server, photos, tmp_path, "--num_samples", 1, "--also_without_tools") == 2
    assert "max_tokens: 99 then, 2048 now" in capsys.readouterr().err


def test_a_teacher_that_knows_nothing_without_tools_stops_no_run(tmp_path: Path) -> None:
    photos = save_photos(tmp_path / "photos", [photo_bytes(seed, (64, 48)) for seed in range(24)])

    def script(request: dict[str, Any]) -> Any:
        if is_probe(request):
            return reply_to(request)
        return says("\\boxed{1, 2}" if "tools" in request else f"No idea {request['seed']}.")

    with ScriptedTeacher(script) as server:
        assert run(server, photos, tmp_path / "out", "--num_samples", 0, "--also_without_tools") == 0
    assert len(made(tmp_path / "out")) == len(made(tmp_path / "out" / "without_tools")) == 24


def test_a_limit_finishes_what_was_begun_with_rollouts_and_without_tools(
    photos: Path, tmp_path: Path
) -> None:
    flags = ("--num_samples", 6, "--rollouts_per_sample", 3, "--also_without_tools", "--max_workers", 4)
    with ScriptedTeacher(reply_to) as server:
        assert run(server, photos, tmp_path, *flags, "--max_calls", 14) == 1
        assert len(server.requests) <= 14
        times = asked(server)
        assert Counter(each for each, _, has_tools in times if has_tools) == dict.fromkeys(made(tmp_path), 2)
        assert {each for each, _, has_tools in times if not has_tools} == made(tmp_path / "without_tools")
        assert run(server, photos, tmp_path, *flags) == 0
        assert set(asked(server).values()) == {1}, "no turn twice"
    assert len(made(tmp_path)) == 18 and len(made(tmp_path / "without_tools")) == 6


def test_a_limit_that_ends_only_what_is_asked_without_tools_ends_the_run(
    photos: Path, tmp_path: Path
) -> None:
    with ScriptedTeacher(reply_to) as server:
        assert run(server, photos, tmp_path, "--num_samples", 3) == 0
        assert (
            run(server, photos, tmp_path, "--num_samples", 3, "--also_without_tools", "--max_calls", 8) == 1
        )
    assert len(made(tmp_path / "without_tools")) == 1
    for folder in (tmp_path, tmp_path / "without_tools"):
        record = json.loads((folder / "run_record.json").read_text())["runs"][-1]
        assert "limit reached, --max_calls 8" in record["stopped_by"]


# --- killed


def test_a_run_that_was_killed_comes_to_the_same_bytes_and_pays_no_turn_twice(
    photos: Path, tmp_path: Path
) -> None:
    flags = (*EARLY, "--num_samples", 12, "--also_without_tools", "--max_workers", 4, "--quiet")
    with ScriptedTeacher(reply_to) as server:
        assert run(server, photos, tmp_path / "whole", *flags) == 0
        num_whole = len(server.requests)
        server.requests.clear()
        chance = random.Random(5)
        given = ["--api_base", server.api_base, "--dataset_path", photos, "--output_dir", tmp_path / "killed"]
        for _ in range(4):
            door = start_door("demo_concurrent.py", *given, *flags, cwd=PACKAGE)
            until = len(server.requests) + chance.randint(8, 25)
            while len(server.requests) < until and door.poll() is None:
                time.sleep(0.002)
            door.send_signal(signal.SIGKILL)
            door.communicate(timeout=30)
        num_killed = len(server.requests)
        assert run(server, photos, tmp_path / "killed", *flags) == 0
        assert num_killed < len(server.requests)
    assert made(tmp_path / "killed") == needed(12, NUM_EACH, Goal(2), is_right)
    for name in (".", "without_tools"):
        assert files(tmp_path / "killed" / name) == files(tmp_path / "whole" / name)
    # A request that a kill cut off is asked again, and nothing else: at most one for each worker.
    assert len(server.requests) <= num_whole + 4 * 5


def test_what_was_answered_without_tools_is_counted_before_its_turn_is_kept(
    photos: Path, tmp_path: Path
) -> None:
    ended = (
        "import os, sys; from distil.store.folder import RunFolder; from distil.cli import main\n"
        "RunFolder.write_trace = lambda *_: os._exit(9)\n"
        "main(sys.argv[1:])"
    )
    with ScriptedTeacher(reply_to) as server:
        given = ["--api_base", server.api_base, "--dataset_path", photos, "--output_dir", tmp_path]
        flags = ("run", *given, "--num_samples", 1, "--also_without_tools", "--max_workers", 1)
        code = subprocess.run(
            [sys.executable, "-c", ended, *map(str, flags)], timeout=60, check=False
        ).returncode
    assert code == 9 and list(asked(server)) == [(SampleId(0), 1, False)]
    assert read_status(tmp_path).spent.answered.requests == 2, "the probe's and that of row 0"


# --- what else speaks of rows and rollouts


def test_the_page_says_what_a_rollout_was_asked_with_tools_and_without(photos: Path, tmp_path: Path) -> None:
    with ScriptedTeacher(reply_to) as server:
        flags = ("--num_samples", 2, "--rollouts_per_sample", 2, "--also_without_tools")
        assert run(server, photos, tmp_path, *flags) == 0
    sent = {
        (*ASKED_BY_SEED[request["seed"]], "tools" in request): request
        for request in server.requests
        if not is_probe(request)
    }
    for folder, has_tools in ((tmp_path, True), (tmp_path / "without_tools", False)):
        for data in files(folder).values():
            trace = json.loads(data)
            sample_id = SampleId(trace["sample_index"], trace.get("rollout", 0))
            for turn, request in enumerate(trace_rebuilder.rebuild(trace).requests, start=1):
                body = request.fields | {"messages": json.loads(request.messages)}
                assert body == sent.pop((sample_id, turn, has_tools))
    assert not sent


def test_the_restore_recipe_works_for_a_later_rollout(photos: Path, tmp_path: Path) -> None:
    readme = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    with ScriptedTeacher(reply_to) as server:
        assert run(server, photos, tmp_path, "--num_samples", 2, "--rollouts_per_sample", 2) == 0
    path = tmp_path / "trace_00001_r1.json"
    scope: dict[str, Any] = {"json": json, "datasets": datasets}
    exec(recipe.replace("'trace_00000.json'", repr(str(path))), scope)
    (call,) = json.loads(path.read_text())["tool_calls_log"]
    assert scope["image"].size == (call["result"]["width_px"], call["result"]["height_px"])


def test_an_estimate_measures_what_is_needed_in_any_case_and_says_what_all_is(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedTeacher(reply_to) as server:
        given = ["--api_base", server.api_base, "--dataset_path", photos, "--output_dir", tmp_path]
        flags = (*given, *EARLY, "--num_samples", 3, "--also_without_tools", "--json")
        assert main(["estimate", *map(str, flags), "--estimate_samples", "5"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert made(tmp_path) == {SampleId(row) for row in range(3)} | {SampleId(0, 1), SampleId(1, 1)}
        assert (document["num_samples"], document["num_finished"]) == (18, 5)
        num_right = sum(map(is_right, made(tmp_path)))
        assert (
            f"{num_right} of this run's 5 traces are accepted; all is the most that it may take."
            in document["notes"]
        )
        assert "3 rows of 6 rollouts each." in document["notes"]
        assert "Not counted: a request without tools for each of 3 rows." in document["notes"]
        assert run(server, photos, tmp_path, *EARLY, "--num_samples", 3) == 0
    assert made(tmp_path) == needed(3, NUM_EACH, Goal(2), is_right), "nothing was measured in vain"


def test_rows_and_rollouts_are_told_apart(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedTeacher(reply_to) as server:
        given = ["--api_base", server.api_base, "--dataset_path", photos, "--output_dir", tmp_path]
        flags = list(map(str, (*given, *EARLY, "--num_samples", 6, "--also_without_tools")))
        assert main(["run", *flags]) == 0
        printed = capsys.readouterr()
        expected = needed(6, NUM_EACH, Goal(2), is_right)
        num_right = sum(map(is_right, expected))
        unneeded = 36 - len(expected)
        assert (
            f"6 rows of up to 6 rollouts: {len(expected)} have a trace, {unneeded} were not needed"
            in printed.out
        )
        assert f"Accepted (score > 0.8): {num_right} of {len(expected)} traces" in printed.out
        assert f" {len(expected) + 6}/{len(expected) + 6} [" in printed.err, "the bar is full at the end"
        assert main(["status", str(tmp_path)]) == 0
        status = capsys.readouterr().out
        assert f"accepted {num_right}" in status and "6 traces of rows asked without tools" in status
        assert main(["run", *flags, "--model", "scripted-qwen3-vl", "--dry_run"]) == 0
        told = capsys.readouterr().out
        assert f"36 samples (6 rows, each up to 6 times) are selected, {len(expected)} of them" in told


def test_a_signal_brings_both_records_up_to_date(photos: Path, tmp_path: Path) -> None:
    with ScriptedTeacher(reply_to) as server:
        given = ["--api_base", server.api_base, "--dataset_path", photos, "--output_dir", tmp_path]
        flags = (*EARLY, "--num_samples", 12, "--also_without_tools")
        door = start_door("demo_concurrent.py", *given, *flags, cwd=PACKAGE)
        while len(made(tmp_path / "without_tools")) < 2 and door.poll() is None:
            time.sleep(0.002)
        door.send_signal(signal.SIGTERM)
        door.communicate(timeout=60)
        assert door.wait() == 130
        for folder in (tmp_path, tmp_path / "without_tools"):
            (record,) = json.loads((folder / "run_record.json").read_text())["runs"]
            assert record["stopped_by"] and record["num_finished"] == len(made(folder))
        assert run(server, photos, tmp_path, *flags) == 0
        assert set(asked(server).values()) == {1}, "all that was in flight was waited for"
    assert made(tmp_path) == needed(12, NUM_EACH, Goal(2), is_right)


def test_other_settings_are_made_in_a_new_folder_or_again_with_tools_and_without(
    photos: Path, tmp_path: Path
) -> None:
    flags = ("--num_samples", 1, "--rollouts_per_sample", 2, "--also_without_tools")
    with ScriptedTeacher(reply_to) as server:
        assert run(server, photos, tmp_path / "out", *flags) == 0
        other = (*flags, "--max_tokens", 99)
        assert run(server, photos, tmp_path / "out", *other) == 2
        assert run(server, photos, tmp_path / "out", *other, "--on_change", "new") == 0
        assert len(made(tmp_path / "out-2")) == 2 and len(made(tmp_path / "out-2" / "without_tools")) == 1
        assert run(server, photos, tmp_path / "out", *other, "--on_change", "redo") == 0
    for name in (".", "without_tools"):
        assert files(tmp_path / "out" / name) == files(tmp_path / "out-2" / name)


def test_the_index_says_what_the_tools_gain_on_each_row(photos: Path, tmp_path: Path) -> None:
    flags = ("--rollouts_per_sample", 3, "--num_samples")

    def scores(folder: Path) -> dict[int, list[float]]:
        by_row: dict[int, list[float]] = {}
        for data in files(folder).values():
            trace = json.loads(data)
            by_row.setdefault(trace["sample_index"], []).append(trace["reward_score"]["score"])
        return by_row

    def check() -> None:
        with_tools, without = scores(tmp_path), scores(tmp_path / "without_tools")
        index.update()
        for row in index.page(Query(), 100):
            own = with_tools[row["sample_index"]]
            expected = [fmean(own) - score for score in without.get(row["sample_index"], ())]
            assert row["tool_gain"] == (pytest.approx(expected[0]) if expected else None)
            assert row["without_tools"] is False
        assert index.count(Query()) == sum(map(len, with_tools.values()))

    with ScriptedTeacher(reply_to) as server:
        assert run(server, photos, tmp_path, *flags, 2) == 0
        index = TraceIndex.open([tmp_path])
        check()
        assert run(server, photos, tmp_path, *flags, 3, "--also_without_tools") == 0
        check()
    assert set(index.rows(Query(where="tool_gain > 0.1"), ["sample_index"])) == {(1,)}, "with tools alone"
    assert set(index.rows(Query(where="tool_gain < -0.1"), ["sample_index"])) == {(0,)}, "always without"
    (tmp_path / "trace_00001_r1.json").unlink()
    check()
    shutil.rmtree(tmp_path / "without_tools")
    check()
