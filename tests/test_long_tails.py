"""The long tail of a long run: each strange thing is a clear failure of its sample, or a clean stop."""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import PACKAGE, RunDoor, photo_bytes
from fault_server import FaultServer, Status
from PIL import Image
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says, text_call

ZOOM = ("image_zoom_in_tool", {"bbox_2d": [100, 100, 600, 600]})
ANSWER = "\\boxed{1, 2}"


def run(
    run_door: RunDoor, script: Callable[[dict[str, Any]], Any], photos: Path, folder: Path, *flags: object
) -> subprocess.CompletedProcess[str]:
    with ScriptedTeacher(script) as server:
        return run_door(
            "demo_concurrent.py", "--api_base", server.api_base, "--dataset_path", photos,
            "--output_dir", folder, "--num_samples", 4, *flags,
        )  # fmt: skip


def zoom_then(reply: Any) -> Callable[[dict[str, Any]], Any]:
    """A zoom, and then this reply."""
    return lambda request: calls(ZOOM) if is_probe(request) or num_turns(request) == 0 else reply


def traces(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("trace_*.json"))]


def failures(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "failed_samples.jsonl").read_text().splitlines()]


# --- replies


MANY = {f"argument_{number}": number for number in range(10_000)}
DEEP = '{"angle":' + "[" * 899 + "90" + "]" * 899 + "}"  # json.loads takes it, what comes after would not
DEEP_USAGE = json.dumps(calls(("image_rotate_tool", {"angle": 90}))).replace(
    '"usage": {', f'"usage": {{"details": {DEEP}, '
)


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(calls(("image_rotate_tool", {"angle": 90} | MANY)), id="native"),
        pytest.param(says(text_call("image_rotate_tool", {"angle": 90} | MANY)), id="text"),
        pytest.param(calls(("no_such_tool", MANY)), id="unknown tool"),
        pytest.param(calls(("image_rotate_tool", {"angle": [0] * 100_000})), id="long list"),
        pytest.param(calls(("image_rotate_tool", '{"a":' * 10_000 + "1" + "}" * 10_000)), id="deep"),
        pytest.param(calls(("image_rotate_tool", DEEP)), id="900 levels, native"),
        pytest.param(
            says(f'<tool_call>{{"name": "image_rotate_tool", "arguments": {DEEP}}}</tool_call>'),
            id="900 levels, text",
        ),
        pytest.param(DEEP_USAGE.encode(), id="900 levels, usage"),
        pytest.param(calls(*[("image_rotate_tool", {"angle": 90})] * 2_000), id="2,000 calls"),
    ],
)
def test_a_monstrous_call_is_answered_and_the_sample_goes_on(
    reply: Any, run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    def script(request: dict[str, Any]) -> Any:
        if is_probe(request) or num_turns(request) == 0:
            return calls(ZOOM)
        return reply if num_turns(request) == 1 else says(ANSWER)

    result = run(run_door, script, photos, tmp_path, "--num_samples", 1)
    assert result.returncode == 0, result.stderr
    (trace,) = traces(tmp_path)
    assert trace["metadata"]["stop_reason"] == "answered"
    assert len(trace["conversation_log"]) == 3
    assert run_door("cli.py", "verify", tmp_path).returncode == 0
    assert run_door("view_traces_enhanced.py", tmp_path / "trace_00000.json").returncode == 0


def test_only_so_many_calls_of_a_turn_are_run(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    turns = [calls(*[("image_rotate_tool", {"angle": 90})] * 100), says(ANSWER)]
    script = lambda request: calls(ZOOM) if is_probe(request) else turns[num_turns(request)]
    assert run(run_door, script, photos, tmp_path, "--num_samples", 1).returncode == 0
    (trace,) = traces(tmp_path)
    successes = [call["success"] for call in trace["tool_calls_log"]]
    assert successes == [True] * 32 + [False] * 68


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(json.dumps(says("caf\xe9")).replace("\\u00e9", "é").encode("latin-1"), id="not UTF-8"),
        pytest.param(b"\xff\xfe" + json.dumps(says(ANSWER)).encode("utf-16-le")[:101], id="half UTF-16"),
        pytest.param(b'{"choices": [{"message": {"content": "' + b"x" * 2**20, id="cut off"),
        pytest.param(b"x" * (50 * 2**20), id="50 MB"),
    ],
)
def test_a_reply_that_cannot_be_read_fails_its_sample_with_a_short_reason(
    body: bytes, run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    limit = ("--turn_timeout_seconds", 2)
    result = run(run_door, zoom_then(body), photos, tmp_path, *limit)
    assert result.returncode == 1, result.stderr
    assert not traces(tmp_path)
    for failure in failures(tmp_path):
        assert failure["turns_spent"] == 1
        assert failure["attempts"] >= 1
        assert len(failure["message"]) < 1000
    assert run(run_door, zoom_then(says(ANSWER)), photos, tmp_path, *limit).returncode == 0


def test_text_that_utf8_cannot_carry_is_stored_all_the_same(
    run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    reply = says(f"\ud800 \x00 {ANSWER}", reasoning="\udfff", finish_reason="stop")
    result = run(run_door, zoom_then(reply), photos, tmp_path)
    assert result.returncode == 0, result.stderr
    assert [trace["reward_score"]["parse_success"] for trace in traces(tmp_path)] == [1.0] * 4


# --- pictures


def png_that_claims(width_px: int, height_px: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + pixels + chunk(b"IEND", b"")


def saved(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def test_strange_pictures_are_used_or_refused_row_by_row(run_door: RunDoor, tmp_path: Path) -> None:
    photo = Image.open(io.BytesIO(photo_bytes(0)))
    frames = [photo.rotate(angle) for angle in (90, 180)]
    pictures = [
        png_that_claims(60_000, 60_000),
        png_that_claims(0, 0),
        b"",
        saved(photo.convert("CMYK"), "JPEG"),
        saved(photo.convert("I;16"), "PNG"),
        saved(photo, "GIF", save_all=True, append_images=frames),
        saved(Image.new("RGB", (1, 1)), "PNG"),
    ]
    rows = {"image": [{"bytes": data, "path": None} for data in pictures]}
    rows |= {name: [1.0] * len(pictures) for name in ("lat", "lon")}
    features = datasets.Features(
        image=datasets.Image(), lat=datasets.Value("float64"), lon=datasets.Value("float64")
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "data"))
    result = run(run_door, zoom_then(says(ANSWER)), tmp_path / "data", tmp_path / "out", "--num_samples", 0)
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert {
        failure["sample_index"]: failure["kind"] for failure in failures(tmp_path / "out")
    } == dict.fromkeys((0, 1, 2), "sample")
    assert [trace["sample_index"] for trace in traces(tmp_path / "out")] == [3, 4, 5, 6]
    assert run_door("cli.py", "verify", tmp_path / "out").returncode == 0


# --- what lies under the run goes away


def at_request(number: int, do: Callable[[], object]) -> Callable[[dict[str, Any]], Any]:
    """A script that does something at one request, and answers all."""
    lock, count = threading.Lock(), iter(range(10**6))

    def script(request: dict[str, Any]) -> Any:
        with lock:
            if next(count) == number:
                do()
        time.sleep(0.01)
        return zoom_then(says(ANSWER))(request)

    return script


def test_a_folder_of_pictures_that_vanishes_fails_its_samples(run_door: RunDoor, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    lines = []
    for number in range(8):
        (folder / f"{number}.jpg").write_bytes(photo_bytes(number))
        lines.append(json.dumps({"file_name": f"{number}.jpg", "lat": 1.0, "lon": 2.0}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    flags = ("--num_samples", 8, "--max_workers", 1)
    vanish = at_request(3, lambda: folder.rename(tmp_path / "away"))
    result = run(run_door, vanish, folder, tmp_path / "out", *flags)
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    failed, done = failures(tmp_path / "out"), traces(tmp_path / "out")
    assert len(failed) + len(done) == 8 and failed and done
    assert {failure["kind"] for failure in failed} == {"sample"}
    assert all("jpg" in failure["message"] for failure in failed)
    (tmp_path / "away").rename(folder)
    assert run(run_door, zoom_then(says(ANSWER)), folder, tmp_path / "out", *flags).returncode == 0
    assert len(traces(tmp_path / "out")) == 8


def test_a_saved_dataset_that_vanishes_in_mid_run_is_still_open(
    run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(photos, tmp_path / "data")
    vanish = at_request(3, lambda: shutil.rmtree(data))
    result = run(run_door, vanish, data, tmp_path / "out", "--max_workers", 1)
    assert result.returncode == 0, result.stderr
    assert len(traces(tmp_path / "out")) == 4


@pytest.mark.parametrize("victim", ["", "journal"])
def test_an_output_folder_that_vanishes_stops_the_run_at_once(
    victim: str, run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def vanish() -> None:
        shutil.rmtree(out / victim)
        (out / victim).write_bytes(b"")  # as a mount that has become something else

    result = run(run_door, at_request(3, vanish), photos, out, "--max_workers", 1)
    assert result.returncode == 2
    assert "cannot be written" in result.stderr
    assert "Traceback" not in result.stderr


# --- time


JUMPING = """
import itertools, runpy, sys, time
real, jumps = time.time, itertools.cycle([0, 86400, -86400, 10**9])
time.time = lambda: real() + next(jumps)
sys.path.insert(0, "")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_clock_that_jumps_changes_nothing(photos: Path, tmp_path: Path) -> None:
    with (
        FaultServer(Status(429, "retry-after: 0.1\r\n"), Status(503)) as busy,
        ScriptedTeacher(zoom_then(says(ANSWER))) as server,
    ):
        started = time.monotonic()
        result = subprocess.run(
            [sys.executable, "-c", JUMPING, "demo_concurrent.py",
             "--api_base", f"{busy.api_base},{server.api_base}", "--dataset_path", str(photos),
             "--output_dir", str(tmp_path), "--num_samples", "4", "--tool_mode", "native", "--model", "m",
             "--turn_timeout_seconds", "60", "--sample_timeout_seconds", "60"],
            cwd=PACKAGE, capture_output=True, text=True, check=False, timeout=100,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len(traces(tmp_path)) == 4
    assert time.monotonic() - started < 60
