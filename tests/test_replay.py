"""Trace files and their replay: fields, restore recipe, verdicts, the conversation rebuilt."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import RunDoor, photo_bytes, save_photos
from replayed import replay
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says, text_call

import distil.pictures
from distil.errors import TraceError
from distil.pictures import picture_facts
from distil.replay.replay import Sources
from distil.replay.verify import Verdict, verify_trace
from distil.store.trace_file import FORMAT, json_sha256, read_trace

MISSION_FIELDS = {
    "dataset_path",
    "sample_index",
    "sample_data",
    "conversation_log",
    "tool_calls_log",
    "final_response",
    "reward_score",
    "metadata",
}
REWARD_FIELDS = {"score", "distance@km", "geoguessr@point", "parse_success"} | {
    f"acc@{radius}km" for radius in (1, 25, 200, 750, 2500)
}
METADATA_FIELDS = {"total_turns", "num_tool_calls", "parse_success", "distance_km", "score"}


def policy(request: dict[str, Any]) -> Any:
    """Zoom and a slanted turn, a failing call beside a zoom, then an answer; native where tools are sent."""
    if is_probe(request):
        return calls(("image_zoom_in_tool", {"bbox_2d": [0, 0, 9, 9]})) if "tools" in request else says("ok")
    steps: list[list[tuple[str, Any]]] = [
        [("image_zoom_in_tool", {"bbox_2d": [100, 100, 900, 800]}), ("image_rotate_tool", {"angle": 33.5})],
        [
            ("image_zoom_in_tool", {"bbox_2d": [5, 5, 5, 5]}),
            ("image_zoom_in_tool", {"bbox_2d": [200, 300, 700, 800]}),
        ],
    ]
    turn = num_turns(request)
    if turn >= len(steps):
        return says("<think>Paris, not \\boxed{1, 1}</think>It is \\boxed{48.86, 2.35}", reasoning="hm")
    if "tools" in request:
        return calls(*steps[turn], content=f"turn {turn}")
    return says("\n".join(text_call(*call) for call in steps[turn]))


@pytest.fixture(scope="module", params=["native", "text"])
def traces(
    request: pytest.FixtureRequest, photos: Path, run_door: RunDoor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Six traces made by the door, and the requests that made them beside."""
    folder = tmp_path_factory.mktemp("run") / "traces"
    with ScriptedTeacher(policy) as server:
        result = run_door(
            "demo_concurrent.py", "--api_base", server.api_base, "--dataset_path", photos, "--num_samples", 6,
            "--output_dir", folder, "--tool_mode", request.param, "--order", "locatability_score:desc",
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (folder / "requests.json").write_text(json.dumps(server.requests))
    return folder


def trace_paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("trace_*.json"))


def load(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def test_a_trace_has_the_missions_fields_and_form(traces: Path) -> None:
    for path in trace_paths(traces):
        trace = load(path)
        assert set(trace) >= MISSION_FIELDS
        assert set(trace["reward_score"]) == REWARD_FIELDS
        assert set(trace["metadata"]) >= METADATA_FIELDS
        assert path.name == f"trace_{trace['sample_index']:05d}.json"
        assert path.read_bytes().endswith(b"}\n")
        assert [turn["turn"] for turn in trace["conversation_log"]] == [1, 2, 3]
        assert [call["turn"] for call in trace["tool_calls_log"]] == [1, 1, 2, 2]
        assert [call["success"] for call in trace["tool_calls_log"]] == [True, True, False, True]
        assert trace["tool_calls_log"][0]["tool_arguments"] == {"bbox_2d": [64, 48, 576, 384]}
        assert trace["tool_calls_log"][0]["raw_arguments"] == {"bbox_2d": [100, 100, 900, 800]}
        assert trace["metadata"]["num_tool_calls"] == 4
        assert trace["conversation_log"][2]["reasoning"] == "hm"
        assert trace["metadata"]["answer"] == {"lat": 48.86, "lon": 2.35}


def test_sample_index_is_the_row_whatever_the_order(traces: Path, photos: Path) -> None:
    dataset = datasets.load_from_disk(str(photos))
    best = sorted(range(12), key=lambda row: -dataset[row]["locatability_score"])[:6]
    assert [load(path)["sample_index"] for path in trace_paths(traces)] == sorted(best)
    for path in trace_paths(traces):
        trace = load(path)
        row = dataset[trace["sample_index"]]
        assert trace["sample_data"] == {
            name: row[name] for name in ("lat", "lon", "city", "locatability_score")
        }


def test_the_missions_restore_recipe_gives_the_final_picture(traces: Path) -> None:
    for path in trace_paths(traces):
        trace = load(path)
        image = datasets.load_from_disk(trace["dataset_path"])[trace["sample_index"]]["image"]
        for call in trace["tool_calls_log"]:
            if not call["success"]:
                continue
            if call["tool_name"] == "image_zoom_in_tool":
                image = image.crop(call["tool_arguments"]["bbox_2d"])
            elif call["tool_name"] == "image_rotate_tool":
                image = image.rotate(call["tool_arguments"]["angle"], expand=True)
        assert picture_facts(image).pixel_sha256 == trace["tool_calls_log"][-1]["result"]["pixel_sha256"]
        stored = read_trace(path)
        ours = replay(stored, Sources().of(stored)).scene.current
        assert (ours.mode, ours.size, ours.tobytes()) == (image.mode, image.size, image.tobytes())


def test_trace_and_row_rebuild_the_conversation_to_the_byte(traces: Path) -> None:
    seen = {}
    for request in load(traces / "requests.json"):
        if not is_probe(request) and num_turns(request) == 2:
            seen[request["messages"][1]["content"][0]["image_url"]["url"]] = request["messages"]
    for path in trace_paths(traces):
        stored = read_trace(path)
        *messages, last = replay(stored, Sources().of(stored)).messages()
        assert messages == seen[messages[1]["content"][0]["image_url"]["url"]]
        assert last == {"role": "assistant", "content": stored.json["final_response"]}


def test_no_picture_is_in_a_trace(traces: Path) -> None:
    for path in trace_paths(traces):
        assert "base64" not in path.read_text()
        assert path.stat().st_size < 12_000


def test_verify_matches_what_was_written(traces: Path) -> None:
    for path in trace_paths(traces):
        assert verify_trace(path, Sources()).verdict is Verdict.MATCHED


def edited(
    traces: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], resign: bool = False
) -> Path:
    """The first trace with a change, its own hash made right again or not."""
    trace = load(trace_paths(traces)[0])
    change(trace)
    if resign:
        del trace["integrity_sha256"]
        trace["integrity_sha256"] = json_sha256(trace)
    path = tmp_path / trace_paths(traces)[0].name
    path.write_text(json.dumps(trace))
    return path


def set_box(trace: dict[str, Any]) -> None:
    trace["tool_calls_log"][0]["tool_arguments"]["bbox_2d"][0] += 1


def test_an_edited_trace_is_told(traces: Path, tmp_path: Path) -> None:
    assert verify_trace(edited(traces, tmp_path, set_box), Sources()).verdict is Verdict.EDITED_TRACE


def set_pixels(trace: dict[str, Any]) -> None:
    trace["tool_calls_log"][0]["result"]["pixel_sha256"] = "0" * 64


def test_an_action_that_gives_other_pixels_is_told(traces: Path, tmp_path: Path) -> None:
    verification = verify_trace(edited(traces, tmp_path, set_pixels, resign=True), Sources())
    assert verification.verdict is Verdict.CHANGED_RESULT
    assert "call 1" in verification.detail


def test_an_action_that_the_teacher_did_not_ask_for_is_told(traces: Path, tmp_path: Path) -> None:
    verification = verify_trace(edited(traces, tmp_path, set_box, resign=True), Sources())
    assert verification.verdict is Verdict.INCONSISTENT
    assert verification.detail == "tool_calls_log[0].tool_arguments.bbox_2d[0]: stored 65, now 64"


def test_another_pillow_is_told(traces: Path, tmp_path: Path) -> None:
    def change(trace: dict[str, Any]) -> None:
        set_pixels(trace)
        trace["metadata"]["versions"]["pillow"] = "9.0.0"

    verification = verify_trace(edited(traces, tmp_path, change, resign=True), Sources())
    assert verification.verdict is Verdict.CHANGED_PILLOW
    assert "9.0.0" in verification.detail


def test_another_encoder_is_told(traces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distil.pictures, "JPEG_QUALITY", 50)
    verification = verify_trace(trace_paths(traces)[0], Sources())
    assert verification.verdict is Verdict.CHANGED_RESULT
    assert "encodes to other bytes" in verification.detail


def test_a_changed_dataset_is_told(traces: Path, tmp_path: Path) -> None:
    other = save_photos(tmp_path / "other", [photo_bytes(seed + 100) for seed in range(12)])
    assert verify_trace(trace_paths(traces)[0], Sources(str(other))).verdict is Verdict.CHANGED_DATASET


def test_a_moved_dataset_can_be_named(traces: Path, photos: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(photos, moved)
    assert verify_trace(trace_paths(traces)[0], Sources(str(moved))).verdict is Verdict.MATCHED


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda trace: trace.pop("tool_calls_log"), "tool_calls_log"),
        (lambda trace: trace.update(format="other/9"), "format"),
        (lambda trace: trace.update(tool_calls_log=[3]), "wrong form"),
        (lambda trace: trace.pop("sample_index"), "sample_index"),
    ],
)
def test_a_file_that_is_no_trace_is_unreadable_and_says_where(
    traces: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    path = edited(traces, tmp_path, change)
    with pytest.raises(TraceError, match=words) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)
    assert verify_trace(path, Sources()).verdict is Verdict.UNREADABLE


def test_a_missing_dataset_is_unreadable_and_a_missing_row_a_changed_dataset(
    traces: Path, photos: Path, tmp_path: Path
) -> None:
    assert verify_trace(trace_paths(traces)[0], Sources(str(tmp_path / "gone"))).verdict is Verdict.UNREADABLE
    short = tmp_path / "short"
    datasets.load_from_disk(str(photos)).select([0]).save_to_disk(str(short))
    assert verify_trace(trace_paths(traces)[-1], Sources(str(short))).verdict is Verdict.CHANGED_DATASET


def test_other_values_in_the_row_are_a_changed_dataset(traces: Path, photos: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    table = datasets.load_from_disk(str(photos))
    table.remove_columns("lat").add_column("lat", [1.5] * len(table)).save_to_disk(str(moved))
    result = verify_trace(trace_paths(traces)[0], Sources(str(moved)))
    assert result.verdict is Verdict.CHANGED_DATASET
    assert result.detail.endswith("other values in: lat")


def test_distil_verify_counts_and_says_by_exit_code(traces: Path, tmp_path: Path, run_door: RunDoor) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(traces, folder)
    good = run_door("cli.py", "verify", folder, cold=True)
    assert (good.returncode, good.stdout.strip()) == (0, "6 matched, 0 mismatched, 0 unreadable")
    paths = trace_paths(folder)
    trace = load(paths[0])
    set_box(trace)
    paths[0].write_text(json.dumps(trace))
    paths[1].write_text('{"half')
    bad = run_door("cli.py", "verify", folder)
    assert bad.returncode == 1
    assert "4 matched, 1 mismatched (edited trace 1), 1 unreadable" in bad.stdout
    assert run_door("cli.py", "verify", tmp_path / "nowhere").returncode == 2


def test_the_with_tools_door_keeps_the_pictures(photos: Path, tmp_path: Path, run_door: RunDoor) -> None:
    with ScriptedTeacher(policy) as server:
        result = run_door(
            "demo_distillation_with_tools.py", "--api_base", server.api_base, "--dataset_path", photos,
            "--num_samples", 2, "--output_dir", tmp_path / "kept", cold=True,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    for path in trace_paths(tmp_path / "kept"):
        for call in load(path)["tool_calls_log"]:
            assert call["success"] == ("picture" in call)
            if call["success"]:
                data = base64.b64decode(call["picture"].partition("base64,")[2])
                assert len(data) == call["result"]["sent"]["num_bytes"]
        assert verify_trace(path, Sources()).verdict is Verdict.MATCHED


def test_the_format_is_named(traces: Path) -> None:
    assert load(trace_paths(traces)[0])["format"] == FORMAT


@pytest.mark.parametrize(
    ("boxes", "restores"),
    [
        ([[100, 200, 700, 700], [200, 300, 600, 600], [250, 400, 500, 500]], True),
        ([[100, 200, 700, 700], [600, 300, 800, 600]], False),  # beyond its right edge
        ([[100, 200, 700, 500], [200, 300, 600, 600]], False),  # beyond its bottom
        ([[100, 200, 700, 700], [50, 300, 600, 600]], False),
        ([[100, 200, 700, 700], [200, 100, 600, 600]], False),
    ],
)
def test_a_trace_says_whether_the_recipe_as_written_restores_it(
    boxes: list[list[int]], restores: bool, photos: Path, tmp_path: Path, run_door: RunDoor
) -> None:
    def script(request: dict[str, Any]) -> Any:
        turn = 0 if is_probe(request) else num_turns(request)
        if turn == len(boxes):
            return says("\\boxed{1, 2}")
        return calls(("image_zoom_in_tool", {"bbox_2d": boxes[turn]}))

    with ScriptedTeacher(script) as server:
        result = run_door(
            "demo_concurrent.py", "--api_base", server.api_base, "--dataset_path", photos, "--num_samples", 1,
            "--output_dir", tmp_path, "--crop_from", "original",
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    trace = load(tmp_path / "trace_00000.json")
    assert trace["metadata"]["recipe_restores"] is restores
    photo = image = datasets.load_from_disk(trace["dataset_path"])[0]["image"]
    for call, (x1, y1, x2, y2) in zip(trace["tool_calls_log"], boxes, strict=True):
        is_of_photo = call["tool_arguments"].get("crop_from") == "original"
        image = (photo if is_of_photo else image).crop(call["tool_arguments"]["bbox_2d"])
        meant = photo.crop((x1 * 64 // 100, y1 * 48 // 100, x2 * 64 // 100, y2 * 48 // 100))
        assert picture_facts(image) == picture_facts(meant)
        assert picture_facts(image).pixel_sha256 == call["result"]["pixel_sha256"]


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None, "completion_tokens": "9"}])
def test_tokens_that_one_turn_does_not_report_are_null_and_never_0(
    usage: Any, photos: Path, tmp_path: Path, run_door: RunDoor
) -> None:
    def script(request: dict[str, Any]) -> Any:
        if is_probe(request) or num_turns(request) == 0:
            return calls(("image_rotate_tool", {"angle": 90}))
        return says("\\boxed{1, 2}") | {"usage": usage}

    with ScriptedTeacher(script) as server:
        result = run_door(
            "demo_concurrent.py", "--api_base", server.api_base, "--dataset_path", photos, "--num_samples", 1,
            "--output_dir", tmp_path,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    trace = load(tmp_path / "trace_00000.json")
    assert trace["metadata"]["tokens"] == {"prompt_tokens": None, "completion_tokens": None}
    assert trace["conversation_log"][0]["usage"]["prompt_tokens"] == 100
    (record,) = load(tmp_path / "run_record.json")["runs"]
    assert record["spent"]["answered"]["without_tokens"] == 1
    assert record["spent"]["answered"]["tokens"]["prompt"] == 200, "of those that report them, the probe too"
    assert "1 request without figures" in result.stdout
    assert "not reported in, not reported out" in result.stdout
