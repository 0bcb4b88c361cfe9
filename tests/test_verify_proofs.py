"""What `verify` proves: a trace's name, its restore recipe, and that the code still makes it so."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from builders import file_bytes, noise, row, saved
from conftest import photo_bytes, save_photos
from PIL import Image
from scripted_teacher import ScriptedTeacher, calls, num_turns, says

import distil.messages.compose
import distil.pictures
import distil.rollout
import distil.tasks.geolocation
import distil.tools.rotate
import distil.tools.toolbox
import distil.tools.zoom
from distil.cli import run_door
from distil.commands.flags import VerifyFlags
from distil.records import Observation
from distil.replay.replay import Executors, Sources
from distil.replay.verify import RECIPE_NOT_RUN, Verdict, Verification, verify_trace
from distil.sandbox.exchange import ExecResult
from distil.sandbox.sandbox import Sandbox
from distil.store.trace_file import find_trace_files, json_sha256
from distil.teacher import profile
from distil.terminal.terminal import Terminal
from distil.terminal.verification import verify
from distil.tools import python_code
from distil.tools.base import Scene

ZOOM, ROTATE, CODE = "image_zoom_in_tool", "image_rotate_tool", "python_code_tool"


def policy(request: dict[str, Any]) -> Any:
    """A box that is clamped and rounded, a slanted turn, a call that fails; then an answer."""
    if num_turns(request) == 0:
        return calls((ZOOM, {"bbox_2d": [101, 101, 1200, 799]}), (ROTATE, {"angle": 33.5}), (ZOOM, {}))
    return says("It is \\boxed{48.86, 2.35}")


def codes(request: dict[str, Any]) -> Any:
    code = "print('seen')\nresult_image = Image.fromarray(np.array(image)[:50])"
    return calls((CODE, {"code": code})) if num_turns(request) == 0 else says("It is \\boxed{48.86, 2.35}")


def make(
    script: Any, data: Path | str, folder: Path, *flags: str, door: str = "demo_concurrent.py",
    model: str = "scripted-qwen3-vl",
) -> Path:  # fmt: skip
    """The trace of row 0 that a door writes."""
    with ScriptedTeacher(script, (model,)) as server:
        status = run_door(door, ["--api_base", server.api_base, "--dataset_path", str(data), "--num_samples", "1",
                                 "--output_dir", str(folder), "--tool_mode", "native", *flags])  # fmt: skip
    assert status == 0
    return find_trace_files(folder)[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("proofs")
    return save_photos(folder / "data", [photo_bytes(seed, (160, 120)) for seed in range(3)])


@pytest.fixture(scope="module")
def trace(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(policy, data, tmp_path_factory.mktemp("trace"))


@pytest.fixture(scope="module")
def resized(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of a family that is sent resized pictures and told their sizes."""
    return make(
        policy, data, tmp_path_factory.mktemp("resized"), "--image_max_pixels", "9000", model="gpt-4o"
    )


@pytest.fixture(scope="module")
def deep_grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deep")
    return make(
        policy, saved(folder / "data", [row(file_bytes(noise(64, 48, "I;16"), "TIFF"))]), folder / "out"
    )


@pytest.fixture(scope="module")
def coded(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(codes, data, tmp_path_factory.mktemp("coded"), door="demo_python_code.py")


def with_change(trace: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The trace with a change, its checksums made to fit."""
    value = json.loads(trace.read_text())
    change(value)
    del value["integrity_sha256"]
    value["integrity_sha256"] = json_sha256(value)
    path = folder / trace.name
    path.write_text(json.dumps(value))
    return path


def judge(trace: Path, override: str | None = None) -> Verification:
    with Executors() as executors:
        return verify_trace(trace, Sources(override), executors)


# --- the name of the file -----------------------------------------------------------------------------------


def test_a_trace_under_another_rows_name_is_told(trace: Path, tmp_path: Path) -> None:
    copied = tmp_path / "trace_00001.json"
    shutil.copy(trace, copied)
    result = judge(copied)
    assert result.verdict is Verdict.INCONSISTENT
    assert result.detail == "it is of row 0, whose file is trace_00000.json"


@pytest.mark.parametrize("choice", ["refuse", "keep", "redo"])
def test_a_trace_under_another_rows_name_does_not_make_that_row_done(
    choice: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with ScriptedTeacher(policy) as server:
        flags = ["--api_base", server.api_base, "--dataset_path", str(data), "--output_dir", str(out),
                 "--tool_mode", "native", "--on_change", choice]  # fmt: skip
        assert run_door("demo_concurrent.py", [*flags, "--num_samples", "1"]) == 0
        shutil.copy(out / "trace_00000.json", out / "trace_00001.json")
        assert run_door("demo_concurrent.py", [*flags, "--num_samples", "3"]) == 2
        assert "holds the trace of row 0, not of row 1; move it away" in capsys.readouterr().err
        (out / "trace_00001.json").unlink()
        assert run_door("demo_concurrent.py", [*flags, "--num_samples", "3"]) == 0
    assert [json.loads(path.read_text())["sample_index"] for path in find_trace_files(out)] == [0, 1, 2]


# --- the restore recipe -------------------------------------------------------------------------------------


def point_at(path: Path) -> Callable[[dict[str, Any]], object]:
    return lambda value: value.update(dataset_path=str(path))


def test_a_dataset_path_that_the_recipe_cannot_open_is_told(data: Path, tmp_path: Path) -> None:
    csv = tmp_path / "photos.jsonl"
    (tmp_path / "photo.jpg").write_bytes(photo_bytes(1, (160, 120)))
    csv.write_text(json.dumps({"image": str(tmp_path / "photo.jpg"), "lat": 1.0, "lon": 2.0}) + "\n")
    written = make(policy, csv, tmp_path / "out")
    assert judge(written).verdict is Verdict.MATCHED
    (tmp_path / "changed").mkdir()
    gone = judge(with_change(written, tmp_path / "changed", point_at(tmp_path / "gone")))
    assert gone.verdict is Verdict.RECIPE_FAILS
    assert "load_from_disk" in gone.detail and "FileNotFoundError" in gone.detail
    other = judge(with_change(written, tmp_path / "changed", point_at(data)))
    assert other.verdict is Verdict.RECIPE_FAILS and "another picture" in other.detail


def test_a_row_that_is_no_picture_for_the_recipe_is_told(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(photo_bytes(1, (160, 120)))
    jsonl = tmp_path / "photos.jsonl"
    jsonl.write_text(json.dumps({"image": str(tmp_path / "photo.jpg"), "lat": 1.0, "lon": 2.0}) + "\n")
    written = make(policy, jsonl, tmp_path / "out")
    texts = {"image": [str(tmp_path / "photo.jpg")], "lat": [1.0], "lon": [2.0]}
    datasets.Dataset.from_dict(texts).save_to_disk(str(tmp_path / "texts"))
    (tmp_path / "changed").mkdir()
    result = judge(with_change(written, tmp_path / "changed", point_at(tmp_path / "texts")))
    assert result.verdict is Verdict.RECIPE_FAILS
    assert "is no picture but str" in result.detail


def test_the_recipe_is_run_to_its_last_picture(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rotation of ours that is not the recipe's, in sampling and replay alike, is told all the same."""
    data = json.loads(trace.read_text())["dataset_path"]

    def apply(self: object, arguments: dict[str, Any], scene: Scene) -> distil.tools.base.Applied:
        turned = scene.current.rotate(arguments["angle"], Image.Resampling.BILINEAR, expand=True)
        return distil.tools.base.Applied(scene.replaced(turned))

    monkeypatch.setattr(distil.tools.rotate.RotateTool, "apply", apply)
    steps = lambda request: calls((ROTATE, {"angle": 30})) if num_turns(request) == 0 else says("no")
    result = judge(make(steps, data, tmp_path))
    assert result.verdict is Verdict.RECIPE_FAILS
    assert "last picture" in result.detail


def test_the_recipe_is_run_on_a_dataset_that_has_moved(trace: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "moved")
    result = judge(trace, str(tmp_path / "moved"))
    assert (result.verdict, result.detail) == (Verdict.MATCHED, "")


def test_a_moved_dataset_that_the_recipe_cannot_open_is_said(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "photo.jpg").write_bytes(photo_bytes(1, (160, 120)))
        line = {"file_name": "photo.jpg", "lat": 1.0, "lon": 2.0}
        (tmp_path / name / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    written = make(policy, tmp_path / "here", tmp_path / "out")
    result = judge(written, str(tmp_path / "there"))
    assert (result.verdict, result.detail) == (Verdict.MATCHED, RECIPE_NOT_RUN)
    printed = io.StringIO()
    flags = VerifyFlags(tmp_path / "out", str(tmp_path / "there"), max_workers=2)
    assert verify(flags, Terminal(printed, width=200)) == 0
    assert RECIPE_NOT_RUN in printed.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "I;16", "1", "CMYK"])
def test_pictures_of_every_mode_match(mode: str, tmp_path: Path) -> None:
    picture = noise(64, 48, mode) if mode not in ("P", "1", "CMYK") else noise(64, 48).convert(mode)
    written = make(policy, saved(tmp_path / "data", [row(file_bytes(picture, "TIFF"))]), tmp_path / "out")
    result = judge(written)
    assert (result.verdict, result.detail) == (Verdict.MATCHED, "")


def test_code_that_ran_out_of_time_is_not_run_again(data: Path, tmp_path: Path) -> None:
    """Another time it may be fast enough: nothing that is wrong with the trace."""

    def script(request: dict[str, Any]) -> Any:
        slow = "import time\nprint(time.time_ns(), flush=True)\ntime.sleep(1)\nresult_image = image"
        turn = num_turns(request)
        programs = [slow, "result_image = image.rotate(90)"]
        return calls((CODE, {"code": programs[turn]})) if turn < len(programs) else says("no")

    flags = ("--code_timeout", "0.5")
    written = make(script, data, tmp_path, *flags, door="demo_python_code.py")
    assert "took longer than 0.5 seconds" in json.loads(written.read_text())["tool_calls_log"][0]["message"]
    assert judge(written).verdict is Verdict.MATCHED
    (tmp_path / "changed").mkdir()

    def other_message(value: dict[str, Any]) -> None:
        call = value["tool_calls_log"][0]
        call["message"] = call["message"].replace("0.5", "0.6")

    assert judge(with_change(written, tmp_path / "changed", other_message)).verdict is not Verdict.MATCHED


# --- the code that made it ----------------------------------------------------------------------------------

Patch = Callable[[pytest.MonkeyPatch], None]


def patch(where: object, name: str, value: object) -> Patch:
    return lambda monkeypatch: monkeypatch.setattr(where, name, value)


CODE_CHANGES: dict[str, tuple[str, Patch, str]] = {
    "the rounding of boxes": ("trace", patch(distil.pictures, "_ROUNDING_SLACK_PX", 0.9), "tool_arguments.bbox_2d"),
    "the frame of boxes": (
        "trace",
        patch(profile, "PROFILES", tuple(p for p in profile.PROFILES if p.name != "qwen-vl")),
        "settings.profile",
    ),
    "the quality of JPEGs": ("trace", patch(distil.pictures, "JPEG_QUALITY", 89), "other bytes"),
    "the resize rule of a family": (
        "resized",
        patch(profile, "PROFILES", (profile.Profile("gpt", "gpt", distil.pictures.Frame.PIXEL, states_size=True),)),
        "settings.view_rule",
    ),
    "the size that is sent": (
        "resized",
        patch(distil.pictures, "_floor_multiple", lambda side, factor: int(side) - 1),
        "other bytes",
    ),
    "the scale of grey pictures": (
        "deep_grey",
        patch(distil.pictures, "_scaled_to_8_bits", lambda image, *_: image.convert("L")),
        "other bytes",
    ),
    "the rule for answers": (
        "trace",
        patch(distil.tasks.geolocation, "parse_answer", lambda response: None),
        "metadata.answer",
    ),
    "the constant of the reward": ("trace", patch(distil.tasks.geolocation, "DECAY_KM", 1492.8), "reward_score.score"),
    "the radius of the earth": ("trace", patch(distil.tasks.geolocation, "EARTH_RADIUS_KM", 6371.1), "distance@km"),
    "the radii of accuracy": (
        "trace",
        patch(distil.tasks.geolocation, "ACCURACY_RADII_KM", (1, 25, 200, 750)),
        "acc@2500km",
    ),
    "the truth": (
        "trace",
        patch(distil.tasks.geolocation.Geolocation, "truth", lambda self, row: {"lat": row["lat"], "lon": -row["lon"]}),
        "metadata.truth",
    ),
    "the words of a success": (
        "resized",
        patch(distil.tools.toolbox, "Observation", lambda success, message, *rest, **named: Observation(success, message.replace("now", "so"), *rest, **named)),
        "message",
    ),
    "the words of a failure": (
        "trace",
        patch(distil.tools.zoom, "_EXAMPLES", dict.fromkeys(distil.pictures.Frame, "[1, 2, 3, 4]")),
        "tool_calls_log[2].message",
    ),
    "the schema of a tool": (
        "trace",
        patch(distil.tools.zoom, "_FRAME_TEXTS", dict.fromkeys(distil.pictures.Frame, "a box")),
        "settings.tool_schemas[0]",
    ),
    "the shape that a box may have": ("trace", patch(distil.tools.zoom, "MAX_ASPECT_RATIO", 0.5), "tool_calls_log[0].success"),
    "the imports that stored code brings": ("coded", patch(python_code, "_IMPORTS", {}), "tool_calls_log[0].code"),
    "the reasons to stop": (
        "trace",
        patch(distil.rollout, "_STOPS", {"stop": distil.rollout.StopReason.TRUNCATED}),
        "metadata.stop_reason",
    ),
    "the calls of one turn": ("trace", patch(distil.rollout, "MAX_CALLS_A_TURN", 1), "tool_calls_log[1].success"),
    "the hash of pictures": (
        "trace",
        patch(distil.pictures, "picture_facts", lambda image: distil.pictures.PictureFacts(*image.size, image.mode, "0")),
        "pixels",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def executors() -> Iterator[Executors]:
    with Executors() as started:
        yield started


@pytest.mark.parametrize("what", CODE_CHANGES)
def test_code_that_makes_it_otherwise_is_told(
    what: str, request: pytest.FixtureRequest, executors: Executors, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, change, words = CODE_CHANGES[what]
    written: Path = request.getfixturevalue(kind)
    assert verify_trace(written, Sources(), executors).verdict is Verdict.MATCHED
    change(monkeypatch)
    result = verify_trace(written, Sources(), executors)
    assert result.verdict in (Verdict.INCONSISTENT, Verdict.CHANGED_RESULT)
    assert words in result.detail


def test_a_difference_names_the_versions_that_may_be_the_reason(trace: Path, tmp_path: Path) -> None:
    def change(value: dict[str, Any]) -> None:
        value["metadata"]["versions"]["distil"] = "0.0.9"
        value["tool_calls_log"][0]["clamped"] = False

    result = judge(with_change(trace, tmp_path, change))
    assert result.verdict is Verdict.INCONSISTENT
    assert result.detail.startswith("tool_calls_log[0].clamped: stored false, now true")
    assert "perhaps because distil 0.0.9 wrote it" in result.detail


def test_code_is_run_once_for_the_trace_and_for_the_recipe(
    coded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs, run = [], Sandbox.run

    def noted(sandbox: Sandbox, code: str, picture: Image.Image) -> ExecResult:
        programs.append(code)
        return run(sandbox, code, picture)

    monkeypatch.setattr(Sandbox, "run", noted)
    assert judge(coded).verdict is Verdict.MATCHED
    stored = json.loads(coded.read_text())["tool_calls_log"]
    assert programs == [call["code"] for call in stored if "code" in call]
