"""Rewards with verl's signature: what they are given and may return, in a run and by `distil score`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says, text_call

from distil.cli import main
from distil.index.index import TraceIndex
from distil.index.query import Query
from distil.store.scores import read_scores
from distil.store.trace_file import solution_text
from distil.store.trace_settings import json_sha256
from distil.tasks.rewards import Reward

NUM_SAMPLES = 3
CALL = ("image_zoom_in_tool", {"bbox_2d": [0, 0, 500, 500]})


def teacher(request: dict[str, Any]) -> Any:
    if is_probe(request):
        return calls((request["tools"][0]["function"]["name"], {}))
    return calls(CALL, content="Closer.") if num_turns(request) == 0 else says("So \\boxed{48.85, 2.35}")


def text_teacher(request: dict[str, Any]) -> Any:
    if num_turns(request) == 0:
        return says("Closer.\n" + text_call(*CALL))
    return says("So \\boxed{48.85, 2.35}")


def run_into(folder: Path, photos: Path, *flags: object, script: Any = teacher) -> int:
    with ScriptedTeacher(script) as server:
        given = ["--api_base", server.api_base, "--dataset_path", photos, "--output_dir", folder]
        return main(["run", *map(str, (*given, "--num_samples", NUM_SAMPLES, "--keep_going", *flags))])


@pytest.fixture(scope="module")
def plain(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run without a reward of its own."""
    folder = tmp_path_factory.mktemp("run") / "traces"
    assert run_into(folder, photos) == 0
    return folder


@pytest.fixture
def traces(plain: Path, tmp_path: Path) -> Path:
    """A copy of it, to be scored."""
    return Path(shutil.copytree(plain, tmp_path / "traces"))


def trace_of(folder: Path, row: int) -> Any:
    return json.loads((folder / f"trace_{row:05d}.json").read_text(encoding="utf-8"))


def reward_file(folder: Path, body: str, name: str = "compute_score") -> Path:
    path = folder / "reward.py"
    body = "\n    ".join(body.splitlines())
    path.write_text(f"def {name}(data_source, solution_str, ground_truth, extra_info=None):\n    {body}\n")
    return path


def scored(value: Any, trace: Any, plain: Path) -> Any:
    """What is kept of what a function returns."""

    def compute_score(**given: Any) -> Any:
        assert set(given) == {"data_source", "solution_str", "ground_truth", "extra_info"}
        return value(given) if callable(value) else value

    return Reward("f", compute_score, "reward.py", "0").of(trace, solution_text(trace))


# --- what it is given


def test_the_function_gets_what_verl_gives_by_name(plain: Path) -> None:
    seen: dict[str, Any] = {}
    trace = trace_of(plain, 1)
    scored(lambda given: seen.update(given) or 0, trace, plain)
    assert seen["data_source"] == "geolocation"
    assert seen["ground_truth"] == trace["metadata"]["truth"] == {"lat": 35.6762, "lon": 139.6503}
    call = json.dumps({"name": CALL[0], "arguments": CALL[1]})
    assert seen["solution_str"] == (f"Closer.\n<tool_call>\n{call}\n</tool_call>\nSo \\boxed{{48.85, 2.35}}")
    info = seen["extra_info"]
    assert (info["index"], info["rollout"], info["num_turns"]) == (1, 0, 4)
    assert info["final_response"] == "So \\boxed{48.85, 2.35}" and info["stop_reason"] == "answered"
    assert info["row"]["city"] == "city 1" and info["answer"] == {"lat": 48.85, "lon": 2.35}
    assert info["trace"]["tool_calls_log"] == trace["tool_calls_log"]


def test_text_and_native_calls_read_alike(photos: Path, plain: Path, tmp_path: Path) -> None:
    assert run_into(tmp_path / "text", photos, "--tool_mode", "text", script=text_teacher) == 0
    assert trace_of(tmp_path / "text", 0)["conversation_log"][0]["call_form"] == "text"
    assert solution_text(trace_of(tmp_path / "text", 0)) == solution_text(trace_of(plain, 0))


def test_a_run_and_a_later_scoring_give_the_function_the_same(photos: Path, tmp_path: Path) -> None:
    body = "import json, hashlib\ntext = json.dumps([data_source, solution_str, ground_truth, extra_info])"
    reward = reward_file(tmp_path, f"{body}\nreturn int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)")
    assert run_into(tmp_path / "t", photos, "--reward", reward) == 0
    assert main(["score", str(tmp_path / "t"), "--reward", str(reward)]) == 0
    for line in read_scores(tmp_path / "t"):
        stored = trace_of(tmp_path / "t", line["sample_index"])["reward_score"]
        assert stored["reward@compute_score"] == line["score"] > 1


def test_what_it_does_to_its_arguments_is_not_done_to_the_trace(
    photos: Path, plain: Path, tmp_path: Path
) -> None:
    body = "extra_info['trace'].clear()\nextra_info['row'].clear()\nground_truth.clear()\nreturn 1"
    assert run_into(tmp_path / "t", photos, "--reward", reward_file(tmp_path, body)) == 0
    made, before = trace_of(tmp_path / "t", 0), trace_of(plain, 0)
    for name in ("sample_data", "conversation_log", "tool_calls_log"):
        assert made[name] == before[name]
    assert made["metadata"]["truth"] == before["metadata"]["truth"]


# --- what it returns


async def later(value: Any) -> Any:
    return value


@pytest.mark.parametrize(
    ("value", "fields"),
    [
        (0.25, {"reward@f": 0.25}),
        (True, {"reward@f": 1.0}),
        (np.float32(0.5), {"reward@f": 0.5}),
        (np.array(2), {"reward@f": 2.0}),
        (lambda _: later(0.75), {"reward@f": 0.75}),
        (
            {"score": 1, "acc": np.bool_(False), "pred": "x", "n": 3, "none": None, "list": [1], "bad": float("nan")},
            {"reward@f": 1.0, "reward@f/acc": False, "reward@f/pred": "x", "reward@f/n": 3, "reward@f/none": None},
        ),
        (float("nan"), {"reward@f": None, "reward@f/error": "it gave a score that is no finite number"}),
        ("0.5", {"reward@f": None, "reward@f/error": "it gave a score that is no finite number"}),
        (None, {"reward@f": None, "reward@f/error": "it gave a score that is no finite number"}),
        ({"reward": 1}, {"reward@f": None, "reward@f/error": "it gave an object without 'score'"}),
        (lambda _: {}["x"], {"reward@f": None, "reward@f/error": "KeyError: 'x'"}),
        (lambda _: exec("raise SystemExit(2)"), {"reward@f": None, "reward@f/error": "SystemExit: 2"}),
    ],
)  # fmt: skip
def test_numbers_and_objects_are_kept_and_all_else_is_an_error_in_the_trace(
    value: Any, fields: dict[str, Any], plain: Path
) -> None:
    kept = scored(value, trace_of(plain, 0), plain).fields("f")
    assert kept == fields
    assert json.loads(json.dumps(kept, allow_nan=False)) == kept


def test_an_interruption_is_no_error_of_the_function(plain: Path) -> None:
    def interrupted(_: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scored(interrupted, trace_of(plain, 0), plain)


# --- in a run


def test_an_error_of_the_function_loses_no_sample_and_ends_the_run_with_a_warning(
    photos: Path, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = reward_file(tmp_path, "return 1 / extra_info['index']")
    assert run_into(tmp_path / "t", photos, "--reward", reward) == 0
    text = "ZeroDivisionError: division by zero (reward.py, line 2)"
    printed = " ".join(capsys.readouterr().out.split())
    assert f"the reward failed for 1 of this run's samples, which have no score of it: {text}." in printed
    first = trace_of(tmp_path / "t", 0)["reward_score"]
    assert (first["reward@compute_score"], first["reward@compute_score/error"]) == (None, text)
    assert first["score"] == trace_of(plain, 0)["reward_score"]["score"]
    assert trace_of(tmp_path / "t", 2)["reward_score"]["reward@compute_score"] == 0.5
    assert main(["verify", str(tmp_path / "t"), "--reward", str(reward)]) == 0
    assert main(["view", str(tmp_path / "t" / "trace_00000.json")]) == 0
    assert "division by zero" in capsys.readouterr().out


def test_the_traces_are_the_same_for_any_number_of_workers(photos: Path, tmp_path: Path) -> None:
    reward = reward_file(tmp_path, "return {'score': len(solution_str), 'city': extra_info['row']['city']}")
    for workers in (1, 3):
        assert run_into(tmp_path / str(workers), photos, "--reward", reward, "--max_workers", workers) == 0
    for row in range(NUM_SAMPLES):
        name = f"trace_{row:05d}.json"
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


def test_a_reward_that_a_trace_states_and_its_settings_do_not_is_found(
    traces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = trace_of(traces, 0)
    trace["reward_score"]["reward@compute_score"] = 1.0
    del trace["integrity_sha256"]
    trace["integrity_sha256"] = json_sha256(trace)
    (traces / "trace_00000.json").write_text(json.dumps(trace))
    assert main(["verify", str(traces)]) == 1
    assert "reward@compute_score: stored 1.0, now nothing" in " ".join(capsys.readouterr().out.split())


# --- distil score


def test_scores_stand_beside_traces_that_stay_as_they_are(
    traces: Path, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = reward_file(tmp_path, "return {'score': ground_truth['lat'], 'source': data_source}")
    assert main(["score", str(traces), "--reward", f"{reward}:compute_score"]) == 0
    assert "compute_score: 3 of 3 traces scored, mean 16.8880" in " ".join(capsys.readouterr().out.split())
    lines = list(read_scores(traces))
    assert [line["sample_index"] for line in lines] == [0, 1, 2]
    assert lines[0] == {
        "sample_index": 0,
        "reward": "compute_score",
        "reward_sha256": lines[1]["reward_sha256"],
        "integrity_sha256": trace_of(traces, 0)["integrity_sha256"],
        "score": 48.8566,
        "details": {"source": "geolocation"},
    }
    for path in plain.iterdir():
        if path.is_file():
            assert (traces / path.name).read_bytes() == path.read_bytes()
    assert main(["verify", str(traces)]) == 0


def test_of_two_lines_about_a_sample_and_reward_the_later_one_counts_and_none_is_written_twice(
    traces: Path, tmp_path: Path
) -> None:
    assert main(["score", str(traces), "--reward", str(reward_file(tmp_path, "return 1"))]) == 0
    other = reward_file(tmp_path, "return 2", name="other")
    assert main(["score", str(traces), "--reward", f"{other}:other"]) == 0
    before = (traces / "scores.jsonl").read_bytes()
    assert main(["score", str(traces), "--reward", f"{other}:other"]) == 0
    assert (traces / "scores.jsonl").read_bytes() == before
    assert (
        main(["score", str(traces / "trace_00001.json"), "--reward", str(reward_file(tmp_path, "return 3"))])
        == 0
    )
    found = [(line["sample_index"], line["reward"], line["score"]) for line in read_scores(traces)]
    assert found == [
        (0, "compute_score", 1.0), (0, "other", 2.0), (1, "compute_score", 3.0), (1, "other", 2.0),
        (2, "compute_score", 1.0), (2, "other", 2.0),
    ]  # fmt: skip


def test_a_trace_that_cannot_be_read_and_one_that_cannot_be_scored_are_told(
    traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (traces / "trace_00000.json").write_text("{")
    reward = reward_file(tmp_path, "return 1 / (extra_info['index'] - 1)")
    assert main(["score", str(traces), "--reward", str(reward), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["num_scored"], document["mean_score"], len(document["problems"])) == (1, 1.0, 2)
    assert "trace_00000.json: cannot be read" in document["problems"][0]
    assert (
        "trace_00001.json: ZeroDivisionError: division by zero (reward.py, line 2)" in document["problems"][1]
    )
    errors = [line.get("error") for line in read_scores(traces)]
    assert errors == ["ZeroDivisionError: division by zero (reward.py, line 2)", None]


def test_a_module_that_python_finds_may_have_the_function(
    traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "ourrewards"
    package.mkdir()
    (package / "__init__.py").write_text("")
    reward_file(package, "return 7", name="seven")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["score", str(traces), "--reward", "ourrewards.reward:seven"]) == 0
    assert [line["score"] for line in read_scores(traces)] == [7.0] * NUM_SAMPLES


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (None, "say by what to score: --reward FILE:FUNCTION"),
        ("no_such_package.x:f", "'no_such_package.x' cannot be imported: ModuleNotFoundError"),
        ("reward.py:nothing", "has no function 'nothing'"),
        ("json:dumps:x", "cannot be imported"),
    ],
)
def test_a_reward_that_is_not_there_is_told(
    reward: str | None, expected: str, traces: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    reward_file(tmp_path, "return 1")
    monkeypatch.chdir(tmp_path)
    try:
        status = main(["score", str(traces), *(["--reward", reward] if reward else [])])
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2 and expected in capsys.readouterr().err
    assert not (traces / "scores.jsonl").exists()


def test_a_folder_without_traces_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(tmp_path), "--reward", str(reward_file(tmp_path, "return 1"))]) == 2
    assert "is no trace file and holds no trace_*.json" in capsys.readouterr().err


# --- in the index


def column_of(folder: Path, name: str, index: TraceIndex | None = None) -> list[Any]:
    """The values of a column, in the order of the samples."""
    found = TraceIndex.open([folder]) if index is None else index
    return [value for (value,) in found.rows(Query(), [name])]


def test_the_index_has_a_column_for_a_reward_of_the_run_and_of_a_later_scoring(
    photos: Path, tmp_path: Path
) -> None:
    reward = reward_file(tmp_path, "return {'score': extra_info['index'] / 4, 'acc': 1, 'text': 'x'}")
    assert run_into(tmp_path / "t", photos, "--reward", reward) == 0
    assert column_of(tmp_path / "t", "reward_compute_score") == [0.0, 0.25, 0.5]
    assert column_of(tmp_path / "t", "reward_compute_score_acc") == [1, 1, 1]
    later = reward_file(
        tmp_path, "return 1 / extra_info['index'] if extra_info['index'] else [][0]", name="later"
    )
    assert main(["score", str(tmp_path / "t"), "--reward", f"{later}:later"]) == 1
    assert column_of(tmp_path / "t", "reward_later") == [None, 1.0, 0.5]
    assert column_of(tmp_path / "t", "reward_compute_score") == [0.0, 0.25, 0.5]


def test_the_index_follows_what_is_added_to_and_taken_from_the_scores(traces: Path, tmp_path: Path) -> None:
    index = TraceIndex.open([traces])
    for value in (1, 2):
        assert main(["score", str(traces), "--reward", str(reward_file(tmp_path, f"return {value}"))]) == 0
        index.update()
        assert column_of(traces, "reward_compute_score", index) == [value] * NUM_SAMPLES
    assert index.count(Query(where="reward_compute_score > 1.5")) == NUM_SAMPLES
    trace = (traces / "trace_00001.json").read_bytes()
    (traces / "trace_00001.json").write_bytes(trace + b"\n")  # read again: it keeps its score
    index.update()
    assert column_of(traces, "reward_compute_score", index) == [2] * NUM_SAMPLES
    (traces / "scores.jsonl").unlink()
    index.update()
    assert column_of(traces, "reward_compute_score", index) == [None] * NUM_SAMPLES
    assert column_of(traces, "sample_index", index) == [0, 1, 2]


def test_a_run_can_go_on_until_a_reward_of_its_own_accepts(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = reward_file(tmp_path, "return extra_info['index'] / 2 + extra_info['rollout']")
    flags = (
        "--rollouts_per_sample",
        2,
        "--accept",
        "reward_compute_score >= 0.5",
        "--accepted_per_sample",
        1,
    )
    assert run_into(tmp_path / "t", photos, "--reward", reward, *flags, "--max_workers", 1) == 0
    made = sorted(path.name for path in (tmp_path / "t").glob("trace_*.json"))
    assert made == ["trace_00000.json", "trace_00000_r1.json", "trace_00001.json", "trace_00002.json"]
