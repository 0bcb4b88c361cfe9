"""The terminal viewer, run as a user runs it, over our traces and the earlier system's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import RunDoor
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says

from distil.store.summary import Totals, read_summary

VIEWER = "view_traces_enhanced.py"


def policy(request: dict[str, Any]) -> Any:
    if is_probe(request) or num_turns(request) == 0:
        return calls(
            ("image_zoom_in_tool", {"bbox_2d": [-50, 0, 500, 500]}),
            ("image_rotate_tool", {"angle": "x"}),
            content="I look at the sign.",
            reasoning="There may be text.",
        )
    return says("Paris: \\boxed{48.8566, 2.3522}")


@pytest.fixture(scope="module")
def traces(photos: Path, run_door: RunDoor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six traces, the first of them right."""
    folder = tmp_path_factory.mktemp("view") / "traces"
    with ScriptedTeacher(policy) as server:
        run_door(
            "demo_concurrent.py", "--api_base", server.api_base, "--dataset_path", photos, "--num_samples", 6,
            "--output_dir", folder,
        )  # fmt: skip
    return folder


def old_trace(index: int, **changes: Any) -> dict[str, Any]:
    """A trace as the earlier system wrote it."""
    return {
        "sample_index": index,
        "conversation_history": [
            {"turn": 1, "response": "I zoom in.", "usage": {"prompt_tokens": 5, "completion_tokens": 2}},
            {"turn": 2, "response": "\\boxed{1, 2}", "usage": {"prompt_tokens": 6, "completion_tokens": 3}},
        ],
        "tool_calls": [
            {"turn": 1, "tool_name": "image_zoom_in_tool", "arguments": {"bbox_2d": [1, 2, 3, 4]}}
        ],
        "final_response": "\\boxed{1, 2}",
        "reward_score": {"score": 0.5, "distance@km": 1000.0, "parse_success": True},
        "metadata": {"total_turns": 2},
    } | changes


def test_one_trace_shows_everything(traces: Path, run_door: RunDoor) -> None:
    result = run_door(VIEWER, traces / "trace_00000.json", cold=True)
    assert result.returncode == 0, result.stderr
    for words in (
        "sample 0", "city 0", "turn 1", "There may be text.", "I look at the sign.",
        "image_zoom_in_tool", '"bbox_2d": [0, 0, 320, 240]', "as written", "[-50, 0, 500, 500]", "cut to the picture",
        "gave 320×240", "image_rotate_tool", "number of degrees", "48.85660, 2.35220", "0.00 km", "5,000 points",
        "tokens: 100 in, 10 out", "200 in, 20 out", "answered", "2, 1 failed",
    ):  # fmt: skip
        assert words in result.stdout, words


def test_verbose_adds_the_settings(traces: Path, run_door: RunDoor) -> None:
    result = run_door(VIEWER, traces / "trace_00000.json", "--verbose")
    assert "You are a helpful assistant." in result.stdout
    assert "view_rule" in result.stdout


def test_a_folder_is_listed(traces: Path, run_door: RunDoor) -> None:
    result = run_door(VIEWER, traces)
    assert result.returncode == 0
    assert "6 traces" in result.stdout


def test_batch_adds_up(traces: Path, run_door: RunDoor) -> None:
    result = run_door(VIEWER, traces, "--batch")
    assert result.returncode == 0
    for words in (
        "6 (100%)", "within 25 km", "17%", "answered 6", "12 (2.00 a trace)", "image_rotate_tool 6, 6 failed",
        "image_zoom_in_tool 6, 0 failed", "1,200 in, 120 out", "median",
    ):  # fmt: skip
        assert words in " ".join(result.stdout.split()), words


def test_batch_figures_are_those_of_the_traces(traces: Path) -> None:
    facts = [read_summary(json.loads(path.read_text())) for path in sorted(traces.glob("trace_*.json"))]
    totals = Totals()
    for item in facts:
        totals.add(item)
    assert totals.metrics["within 25 km"] == "17%"
    assert totals.mean_score == pytest.approx(sum(item.score for item in facts) / 6)
    assert (totals.num_calls, totals.failed_calls) == (12, {"image_rotate_tool": 6})


def test_the_earlier_systems_traces_are_read(tmp_path: Path, run_door: RunDoor) -> None:
    for index in range(3):
        (tmp_path / f"trace_{index:05d}.json").write_text(json.dumps(old_trace(index)))
    batch = run_door(VIEWER, tmp_path, "--batch")
    assert batch.returncode == 0, batch.stderr
    assert "3 (1.00 a trace)" in batch.stdout and "33 in, 15 out" in batch.stdout
    one = run_door(VIEWER, tmp_path / "trace_00000.json")
    assert one.returncode == 0, one.stderr
    for words in ("I zoom in.", '"bbox_2d": [1, 2, 3, 4]', "1,000.00 km", "\\boxed{1, 2}"):
        assert words in one.stdout, words


@pytest.mark.parametrize(
    "changes",
    [
        {"metadata": None, "reward_score": None},
        {"conversation_history": "x", "tool_calls": [3]},
        {"reward_score": {"score": None, "distance@km": "far"}},
        {"tool_calls": [{}], "sample_data": "x"},
        {"conversation_history": [{"turn": "one", "usage": {"prompt_tokens": "5"}}]},
        {"metadata": {"truth": 3, "answer": {"lat": 1}}, "image": {"sent": 3}, "settings": 3},
    ],
)
def test_odd_traces_do_not_break_the_viewer(
    changes: dict[str, Any], tmp_path: Path, run_door: RunDoor
) -> None:
    path = tmp_path / "trace_00000.json"
    path.write_text(json.dumps(old_trace(0, **changes)))
    for flags in ((path,), (path, "--verbose"), (tmp_path, "--batch"), (tmp_path,)):
        result = run_door(VIEWER, *flags)
        assert result.returncode == 0, result.stderr
        assert "Traceback" not in result.stderr


def test_what_cannot_be_shown_is_one_clear_line(traces: Path, tmp_path: Path, run_door: RunDoor) -> None:
    (tmp_path / "empty").mkdir()
    for path, words in ((tmp_path / "empty", "holds no trace_"), (tmp_path / "none", "no file or folder")):
        result = run_door(VIEWER, path, "--batch")
        assert (result.returncode, len(result.stderr.strip().splitlines())) == (2, 1)
        assert words in result.stderr
    (tmp_path / "trace_00000.json").write_bytes((traces / "trace_00000.json").read_bytes())
    (tmp_path / "trace_00001.json").write_text('{"half')
    (tmp_path / "trace_00002.json").write_text("[]")
    result = run_door(VIEWER, tmp_path, "--batch")
    assert result.returncode == 1
    assert "trace_00001.json" in result.stdout and "trace_00002.json" in result.stdout
    assert "traces" in result.stdout
    assert run_door(VIEWER, tmp_path / "trace_00001.json").returncode == 2


def test_teacher_text_is_never_markup(tmp_path: Path, run_door: RunDoor) -> None:
    path = tmp_path / "trace_00000.json"
    turns = [{"turn": 1, "response": "[bold]not bold[/bold] [/nonsense] \x1b[31m"}]
    path.write_text(json.dumps(old_trace(0, conversation_history=turns)))
    result = run_door(VIEWER, path)
    assert result.returncode == 0, result.stderr
    assert "[bold]not bold[/bold] [/nonsense]" in result.stdout
    assert "\x1b[31m" not in result.stdout


def reward(distance_km: float, score: float, parse_success: bool = True) -> dict[str, Any]:
    return {"score": score, "distance@km": distance_km, "parse_success": parse_success}


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """Three traces that are all different: near with two turns, far with one call failed, and no answer."""
    failed = {"turn": 1, "tool_name": "image_rotate_tool", "arguments": {}, "success": False}
    changes: tuple[dict[str, Any], ...] = (
        {"reward_score": reward(10.0, 0.9)},
        {"reward_score": reward(300.0, 0.8), "tool_calls": [failed, failed], "metadata": {"total_turns": 5}},
        {"reward_score": reward(20000.0, 0.0, False), "tool_calls": [], "metadata": {"total_turns": 1}},
    )
    for index, change in zip((4, 7, 123456), changes, strict=True):
        (tmp_path / f"trace_{index:05d}.json").write_text(json.dumps(old_trace(index, **change)))
    return tmp_path


def test_a_listing_has_a_line_of_figures_for_each_trace(uneven: Path, run_door: RunDoor) -> None:
    lines = [line.split()[:6] for line in run_door(VIEWER, uneven).stdout.splitlines()]
    assert ["4", "10.0", "0.900", "2", "1", "0"] in lines
    assert ["7", "300.0", "0.800", "5", "2", "2"] in lines
    assert ["123456", "no", "answer", "0.000", "1", "0"] in lines


def test_totals_are_over_all_traces_and_distances_over_answers(uneven: Path, run_door: RunDoor) -> None:
    text = " ".join(run_door(VIEWER, uneven, "--batch").stdout.replace("│", " ").split())
    for words in (
        "traces 3", "with an answer 2 (67%)", "mean score 0.567", "median 155.0 km, mean 155.0 km",
        "within 1 km 0%", "within 25 km 33%", "within 200 km 33%", "within 750 km 67%", "within 2500 km 67%",
        "turns a trace 2.67", "traces with tool calls 2 (67%)", "tool calls 3 (1.00 a trace)",
        "image_rotate_tool 2, 2 failed", "image_zoom_in_tool 1, 0 failed", "33 in, 15 out",
    ):  # fmt: skip
        assert words in text, (words, text)


def test_truth_and_answer_that_a_trace_does_not_state_are_those_of_its_row_and_response(
    tmp_path: Path, run_door: RunDoor
) -> None:
    path = tmp_path / "trace_00000.json"
    path.write_text(json.dumps(old_trace(0, sample_data={"latitude": 3, "lon": "4.5"})))
    text = " ".join(run_door(VIEWER, path).stdout.replace("│", " ").split())
    assert "truth 3.00000, 4.50000" in text and "answer 1.00000, 2.00000" in text
    path.write_text(json.dumps(old_trace(0, final_response="I do not know.", sample_data={})))
    text = " ".join(run_door(VIEWER, path).stdout.replace("│", " ").split())
    assert "truth not stated" in text and "answer not stated" in text
