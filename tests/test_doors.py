"""The doors as a user runs them: subprocesses from inside `distil/`, against a real server."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import PACKAGE, RunDoor, photo_bytes, save_photos
from scripted_teacher import ScriptedTeacher, calls, counted, is_probe, num_pictures, num_turns, says, texts
from warm_door import start_door

from distil.cli import main

DOORS = (
    "demo_concurrent.py",
    "demo_python_code.py",
    "demo_distillation_with_tools.py",
    "demo_distillation.py",
)
COMMANDS = ("run", "code", "with-tools", "one-turn")


def policy(request: dict[str, Any]) -> Any:
    """One zoom, then an answer that depends on what was sent."""
    if "tools" in request and (is_probe(request) or num_turns(request) == 0):
        return calls(("image_zoom_in_tool", {"bbox_2d": [100, 100, 600, 600]}))
    return says(f"It is \\boxed{{{request['seed'] % 90}, 2.35}}")


def run_against(
    run_door: RunDoor,
    script: str,
    photos: Path,
    folder: Path,
    *flags: object,
    teacher: Any = policy,
    **start: Any,
) -> Any:
    with ScriptedTeacher(teacher) as server:
        result = run_door(
            script, "--api_base", server.api_base, "--dataset_path", photos, "--output_dir", folder, *flags,
            **start,
        )  # fmt: skip
    return result, server.requests


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("trace_*.json"))}


@pytest.mark.parametrize("door", [*DOORS, "view_traces_enhanced.py"])
def test_every_door_has_a_useful_help(door: str, run_door: RunDoor) -> None:
    result = run_door(door, "--help", cold=True)
    assert result.returncode == 0
    assert door in result.stdout and "distil " in result.stdout
    if door in DOORS:
        for flag in ("dataset_path", "output_dir", "num_samples", "max_turns", "temperature", "max_tokens",
                     "max_workers", "api_base", "model", "tool_mode", "coordinates", "crop_from", "order", "seed",
                     "image_max_pixels", "tools", "system_prompt", "user_prompt_file"):  # fmt: skip
            assert f"--{flag}" in result.stdout


@pytest.mark.parametrize("command", [*COMMANDS, "view", "verify", "signs"])
def test_distil_has_the_same_as_commands(command: str, run_door: RunDoor) -> None:
    assert run_door("cli.py", command, "--help", cold=True).returncode == 0


def test_the_distil_command_is_installed(tmp_path: Path) -> None:
    command = Path(sys.executable).parent / "distil"
    result = subprocess.run([command, "--version"], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert result.stdout.startswith("distil ")


def test_the_defaults_are_the_missions(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    result, requests = run_against(run_door, "demo_concurrent.py", photos, tmp_path / "out", cold=True)
    assert result.returncode == 0, result.stderr
    assert len(contents(tmp_path / "out")) == 10
    assert {(request["temperature"], request["max_tokens"]) for request in requests} == {(0.7, 2048)}
    (record,) = json.loads((tmp_path / "out" / "run_record.json").read_text())["runs"]
    assert (record["options"]["max_workers"], record["options"]["max_turns"]) == (4, 10)
    assert (record["num_finished"], record["num_failed"], record["probe"]["tool_mode"]) == (10, 0, "native")
    assert "10 finished, 0 failed" in result.stdout
    assert "scripted-qwen3-vl" in result.stdout and "native" in result.stdout and "rel1000" in result.stdout


def test_one_and_32_workers_write_the_same_bytes(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    for workers in (1, 32):
        result, _ = run_against(
            run_door, "demo_concurrent.py", photos, tmp_path / str(workers),
            "--num_samples", 12, "--max_workers", workers, "--order", "random", "--seed", 3,
            env={"PYTHONHASHSEED": str(workers)},  # each an interpreter of its own, with its own order of sets
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
    one, many = contents(tmp_path / "1"), contents(tmp_path / "32")
    assert len(one) == 12
    assert one == many


def test_workers_overlap_their_requests(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    barrier = threading.Barrier(6, timeout=60)

    def script(request: dict[str, Any]) -> Any:
        if not is_probe(request) and num_turns(request) == 0:
            barrier.wait()
        return policy(request)

    result, _ = run_against(
        run_door,
        "demo_concurrent.py",
        photos,
        tmp_path,
        "--num_samples",
        12,
        "--max_workers",
        6,
        "--fixed_workers",
        teacher=script,
    )
    assert result.returncode == 0, result.stderr


def test_the_one_turn_door_offers_no_tools(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    result, requests = run_against(
        run_door, "demo_distillation.py", photos, tmp_path, "--num_samples", 3, cold=True
    )
    assert result.returncode == 0, result.stderr
    assert [is_probe(request) for request in requests] == [True, False, False, False]
    for request in requests:
        assert "tools" not in request
        assert request["messages"][0]["content"] == "You are a helpful assistant."


def test_prompts_can_be_replaced(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Où est-ce ?\n", encoding="utf-8")
    _, requests = run_against(
        run_door, "demo_concurrent.py", photos, tmp_path / "out", "--num_samples", 1, "--tool_mode", "native",
        "--system_prompt", "Be brief.", "--user_prompt_file", tmp_path / "prompt.txt",
    )  # fmt: skip
    first = next(request for request in requests if not is_probe(request))
    assert first["messages"][0]["content"] == "Be brief."
    assert texts(first["messages"][1]) == "Où est-ce ?"


def test_tools_can_be_chosen(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    _, requests = run_against(
        run_door,
        "demo_concurrent.py",
        photos,
        tmp_path,
        "--num_samples",
        1,
        "--tools",
        "rotate",
        "--tool_mode",
        "native",
    )
    assert [tool["function"]["name"] for tool in requests[0]["tools"]] == ["image_rotate_tool"]


@pytest.mark.parametrize(
    ("coordinates", "words", "box"),
    [
        ("pixel", "pixels", [100, 100, 600, 480]),
        ("rel1000", "from 0 to 1000", [64, 48, 384, 288]),
        ("rel1000_yx", "y first", [64, 48, 384, 288]),
    ],
)
def test_the_frame_is_said_in_the_schema_and_used(
    coordinates: str, words: str, box: list[int], run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    result, requests = run_against(
        run_door, "demo_concurrent.py", photos, tmp_path, "--num_samples", 1, "--coordinates", coordinates
    )
    assert result.returncode == 0, result.stderr
    assert words in json.dumps(requests[0]["tools"][0])
    trace = json.loads((tmp_path / "trace_00000.json").read_text())
    assert trace["tool_calls_log"][0]["tool_arguments"] == {"bbox_2d": box}
    assert trace["tool_calls_log"][0]["clamped"] == (coordinates == "pixel")
    assert trace["settings"]["coordinates"] == coordinates


def test_many_clamped_boxes_end_with_a_warning(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    result, _ = run_against(run_door, "demo_concurrent.py", photos, tmp_path, "--coordinates", "pixel")
    assert "--coordinates rel1000" in result.stdout


def test_fitting_boxes_end_without_a_warning(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    result, _ = run_against(
        run_door, "demo_concurrent.py", photos, tmp_path, "--coordinates", "rel1000",
        teacher=lambda request: counted(request, policy(request)),
    )  # fmt: skip
    assert "Warning" not in result.stdout


def test_large_pictures_are_sent_smaller_where_asked(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    _, requests = run_against(
        run_door, "demo_concurrent.py", photos, tmp_path, "--num_samples", 1, "--image_max_pixels", 320 * 240
    )
    assert num_pictures(requests[-1]) == 2
    sent = json.loads((tmp_path / "trace_00000.json").read_text())["image"]["sent"]
    assert (sent["width_px"], sent["height_px"]) == (320, 240)


def test_a_second_run_asks_only_for_what_is_missing(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    run_against(run_door, "demo_concurrent.py", photos, tmp_path, "--num_samples", 4)
    before = contents(tmp_path)
    result, requests = run_against(run_door, "demo_concurrent.py", photos, tmp_path, "--num_samples", 6)
    assert "4 were there already" in result.stdout
    assert len(requests) == 1 + 2 * 2
    assert {name: data for name, data in contents(tmp_path).items() if name in before} == before
    assert len(json.loads((tmp_path / "run_record.json").read_text())["runs"]) == 2


def test_traces_of_other_settings_are_not_mixed(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    run_against(run_door, "demo_concurrent.py", photos, tmp_path, "--num_samples", 2)
    before = contents(tmp_path)
    result, requests = run_against(
        run_door, "demo_concurrent.py", photos, tmp_path, "--num_samples", 2, "--max_turns", 3
    )
    assert result.returncode == 2
    assert "max_turns: 10 then, 3 now" in result.stderr
    assert len(requests) == 0, "nothing is paid for a run that is refused"
    assert contents(tmp_path) == before


def test_bad_rows_are_failed_samples_with_their_reasons(run_door: RunDoor, tmp_path: Path) -> None:
    rows = {
        "image": [
            {"bytes": photo_bytes(0), "path": None},
            {"bytes": photo_bytes(1)[:2000], "path": None},
            None,
            {"bytes": photo_bytes(3), "path": None},
            {"bytes": photo_bytes(4), "path": None},
        ],
        "lat": [1.0, 1.0, 1.0, float("nan"), 91.0],
        "lon": [1.0] * 5,
    }
    features = datasets.Features(
        image=datasets.Image(), lat=datasets.Value("float64"), lon=datasets.Value("float64")
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "data"))
    result, requests = run_against(run_door, "demo_concurrent.py", tmp_path / "data", tmp_path / "out")
    assert result.returncode == 1
    assert list(contents(tmp_path / "out")) == ["trace_00000.json"]
    assert f"reasons: {tmp_path / 'out' / 'failed_samples.jsonl'}" in result.stdout
    lines = [
        json.loads(line) for line in (tmp_path / "out" / "failed_samples.jsonl").read_text().splitlines()
    ]
    assert [line["sample_index"] for line in lines] == [1, 2, 3, 4]
    assert {line["kind"] for line in lines} == {"sample"}
    for line, words in zip(
        lines, ("decoded", "'image' is empty", "'lat' is not a number", "'lat' is not within"), strict=True
    ):
        assert f"row {line['sample_index']}" in line["message"] and words in line["message"]
    assert "1 finished, 4 failed" in result.stdout
    assert len(requests) == 3, "nothing is paid for a row that cannot be used"


def test_a_failed_teacher_turn_is_one_failed_sample(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    broken = photo_bytes(2)

    def script(request: dict[str, Any]) -> Any:
        if base64.b64encode(broken).decode() in json.dumps(request):
            return 400, {"error": {"message": "picture refused"}}
        return policy(request)

    result, _ = run_against(
        run_door, "demo_concurrent.py", photos, tmp_path, "--num_samples", 5, teacher=script
    )
    assert result.returncode == 1
    assert sorted(contents(tmp_path)) == [f"trace_0000{row}.json" for row in (0, 1, 3, 4)]
    (line,) = [json.loads(line) for line in (tmp_path / "failed_samples.jsonl").read_text().splitlines()]
    assert (line["sample_index"], line["kind"], line["status"]) == (2, "teacher", 400)
    again, _ = run_against(run_door, "demo_concurrent.py", photos, tmp_path, "--num_samples", 5)
    assert again.returncode == 0
    assert len(contents(tmp_path)) == 5
    assert not (tmp_path / "failed_samples.jsonl").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--num_samples", "-1"), "0 or more"),
        (("--max_workers", "0"), "1 or more"),
        (("--tools", "zoom,laser"), "known tools are zoom, rotate"),
        (("--coordinates", "inches"), "invalid choice"),
        (("--order", "height"), "locatability_score"),
        (("--user_prompt_file", "/nowhere/prompt.txt"), "/nowhere/prompt.txt"),
        (("--dataset_path", "/nowhere/data"), "/nowhere/data"),
        (("--output_dir", "/proc/no"), "/proc/no"),
    ],
)
def test_wrong_usage_is_one_clear_message_and_exit_2(
    flags: tuple[str, str], words: str, run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    result, _ = run_against(run_door, "demo_concurrent.py", photos, tmp_path, *flags)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("status", [401, 404])
def test_a_wrong_key_or_model_stops_the_run_with_one_line(
    status: int, run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    for mode in ("auto", "native"):
        result, requests = run_against(
            run_door, "demo_concurrent.py", photos, tmp_path, "--tool_mode", mode, "--num_samples", 12,
            teacher=lambda _: (status, {"error": {"message": "no such thing"}}),
        )  # fmt: skip
        assert result.returncode == 2
        assert f"HTTP {status}" in result.stderr and "no such thing" in result.stderr
        assert "Traceback" not in result.stderr
        assert len(requests) <= 6


def test_no_server_stops_the_run_with_one_line(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    for mode in ("auto", "text"):
        result = run_door(
            "demo_concurrent.py", "--api_base", "http://127.0.0.1:9/v1", "--model", "m", "--tool_mode", mode,
            "--dataset_path", photos, "--output_dir", tmp_path,
        )  # fmt: skip
        assert result.returncode == 2
        assert "no reply from http://127.0.0.1:9/v1" in result.stderr
        assert "Traceback" not in result.stderr


def test_several_models_are_listed_and_none_is_guessed(
    run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    with ScriptedTeacher(policy, models=("small-vl", "large-vl")) as server:
        result = run_door(
            "demo_concurrent.py",
            "--api_base",
            server.api_base,
            "--dataset_path",
            photos,
            "--output_dir",
            tmp_path,
        )
    assert result.returncode == 2
    assert "small-vl" in result.stderr and "large-vl" in result.stderr
    assert server.requests == []


def test_the_environment_names_the_server_and_the_key_is_in_no_file(
    run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    key = "sk-secret-0123456789abcdef"
    with ScriptedTeacher(policy) as server:
        result = run_door(
            "demo_concurrent.py", "--dataset_path", photos, "--output_dir", tmp_path, "--num_samples", 2,
            env={"OPENAI_BASE_URL": server.api_base, "OPENAI_API_KEY": key},
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {key}"}
    assert key not in result.stdout + result.stderr
    for path in tmp_path.iterdir():
        assert key not in path.read_text()


@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT, signal.SIGINT]])
def test_an_interrupt_keeps_finished_traces_and_leaves_soon(
    numbers: list[int], photos: Path, tmp_path: Path
) -> None:
    stuck = threading.Event()

    def script(request: dict[str, Any]) -> Any:
        if not is_probe(request) and len(server.requests) > 8:
            stuck.wait(60)
        return policy(request)

    with ScriptedTeacher(script) as server:
        child = start_door(
            "demo_concurrent.py", "--api_base", server.api_base, "--dataset_path", photos,
            "--output_dir", tmp_path, "--num_samples", "12", "--max_workers", "2", "--grace_seconds", "1",
            cwd=PACKAGE,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while len(contents(tmp_path)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        asked = time.monotonic()
        for number in numbers:
            child.send_signal(number)
            time.sleep(0.02)
        _, stderr = child.communicate(timeout=30)
        stuck.set()
    assert time.monotonic() - asked < 15
    assert child.returncode == 130
    if len(numbers) == 1:
        assert "interrupted; nothing is lost, the same command goes on from here" in stderr
    assert "Traceback" not in stderr
    for data in contents(tmp_path).values():
        json.loads(data)
    if len(numbers) == 1:  # the second leaves at once, and the next run removes what is half-written
        assert not list(tmp_path.glob(".*.tmp"))


def catches_sigterm(pid: int) -> bool:
    """Whether a process acts on SIGTERM itself: Python leaves that signal alone, so its door is open."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def interrupted_run(
    photos: Path, folder: Path, until: Callable[[int], bool], seconds: float, cold: bool
) -> tuple[int, str]:
    """A short run that gets a SIGINT so long after something holds of its process: exit code and stderr."""
    with ScriptedTeacher(lambda _: says("\\boxed{1, 2}")) as server:
        child = start_door(
            "demo_distillation.py", "--api_base", server.api_base, "--num_samples", "1",
            "--dataset_path", photos, "--output_dir", folder, cwd=PACKAGE, cold=cold,
        )  # fmt: skip
        while child.poll() is None and not until(child.pid):
            time.sleep(0.002)
        time.sleep(seconds)
        child.send_signal(signal.SIGINT)
        _, stderr = child.communicate(timeout=60)
    return child.returncode, stderr


def assert_left_in_order(code: int, stderr: str) -> None:
    assert code in (0, 130), stderr
    assert "Traceback" not in stderr
    assert code == 0 or "interrupted" in stderr


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.3, 0.7, 1.2])
def test_an_interrupt_while_a_door_opens_is_one_line(seconds: float, photos: Path, tmp_path: Path) -> None:
    assert_left_in_order(*interrupted_run(photos, tmp_path / "out", catches_sigterm, seconds, cold=True))


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.3])
def test_an_interrupt_while_a_door_closes_is_no_harm(seconds: float, photos: Path, tmp_path: Path) -> None:
    is_done = lambda _: any(tmp_path.glob("out/trace_*.json"))
    assert_left_in_order(*interrupted_run(photos, tmp_path / "out", is_done, seconds, cold=False))


def test_a_signal_that_was_ignored_stays_ignored(photos: Path, tmp_path: Path) -> None:
    with ScriptedTeacher(lambda _: time.sleep(1) or says("\\boxed{1, 2}")) as server:
        child = subprocess.Popen(
            ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", sys.executable, "demo_distillation.py",
             "--api_base", server.api_base, "--num_samples", "1", "--dataset_path", str(photos),
             "--output_dir", str(tmp_path)],
            cwd=PACKAGE, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        while child.poll() is None and not catches_sigterm(child.pid):
            time.sleep(0.01)
        while child.poll() is None:
            child.send_signal(signal.SIGINT)
            time.sleep(0.05)
        _, stderr = child.communicate(timeout=60)
    assert child.returncode == 0, stderr


def test_a_caller_of_a_door_keeps_its_signal_handlers(capsys: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert main(["view", "/nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_memory_does_not_grow_with_the_dataset(tmp_path: Path) -> None:
    """The rows' bytes do not stay resident: a run over 40 MB of photos peaks as one over 4 MB."""
    noisy = [photo_bytes(seed, (1600, 1200)) for seed in range(4)]
    peaks = []
    for rows in (20, 200):
        folder = save_photos(tmp_path / str(rows), [noisy[row % 4] for row in range(rows)])
        with ScriptedTeacher(lambda _: says("\\boxed{1, 2}")) as server:
            code = (
                "import re, sys; from distil.cli import run_door; "
                "status = run_door('demo_distillation.py', sys.argv[1:]); "
                "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]); sys.exit(status)"
            )
            result = subprocess.run(
                [sys.executable, "-c", code, "--api_base", server.api_base, "--dataset_path", str(folder),
                 "--output_dir", str(tmp_path / f"out{rows}"), "--num_samples", "0", "--max_workers", "2"],
                capture_output=True, text=True, check=False, timeout=120,
            )  # fmt: skip
        assert result.returncode == 0, result.stderr
        peaks.append(int(result.stdout.split()[-1]))
    assert peaks[1] < peaks[0] + 40_000, peaks


@pytest.mark.parametrize("status", [400, 404, 500])
def test_a_server_that_refuses_tools_is_asked_in_text(
    status: int, run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    def script(request: dict[str, Any]) -> Any:
        if "tools" in request:
            return status, {"error": {"message": "no tools here"}}
        return says("\\boxed{1, 2}")

    result, _ = run_against(
        run_door, "demo_concurrent.py", photos, tmp_path, "--num_samples", 1, teacher=script
    )
    assert result.returncode == 0, result.stderr
    assert "tool calls: text (the server takes no tools" in result.stdout


def test_a_busy_server_is_not_taken_for_one_without_tools(
    run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    def script(request: dict[str, Any]) -> Any:
        return (429, {"error": {"message": "slow down"}}) if "tools" in request else says("\\boxed{1, 2}")

    result, _ = run_against(
        run_door, "demo_concurrent.py", photos, tmp_path, "--num_samples", 1, teacher=script
    )
    assert result.returncode == 2
    assert "slow down" in result.stderr


def test_a_key_with_a_newline_works_and_one_that_no_header_can_carry_is_not_shown(
    run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    with ScriptedTeacher(policy) as server:
        arguments = ("demo_concurrent.py", "--api_base", server.api_base, "--dataset_path", photos,
                     "--output_dir", tmp_path, "--num_samples", 1)  # fmt: skip
        result = run_door(*arguments, env={"OPENAI_API_KEY": "sk-0123456789\n"})
        assert result.returncode == 0, result.stderr
        assert server.headers[0]["authorization"] == "Bearer sk-0123456789"
        result = run_door(*arguments, env={"OPENAI_API_KEY": "sk-0123\n456789"})
    assert result.returncode == 2
    assert "OPENAI_API_KEY" in result.stderr and "456789" not in result.stderr


@pytest.mark.parametrize(
    "url", ["http://[bad", "localhost:8000/v1", "http://127.0.0.1:99999/v1", "ftp://x/v1"]
)
def test_a_url_that_cannot_work_is_one_line(
    url: str, run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    result = run_door(
        "demo_concurrent.py", "--api_base", url, "--dataset_path", photos, "--output_dir", tmp_path
    )
    assert result.returncode == 2
    assert "http://HOST:PORT/v1" in result.stderr and "Traceback" not in result.stderr


def test_a_key_that_is_refused_in_mid_run_ends_it_without_waiting(
    run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    ended = threading.Event()
    asked = threading.Semaphore(1)

    def script(request: dict[str, Any]) -> Any:
        if is_probe(request):
            return policy(request)
        if asked.acquire(blocking=False):
            time.sleep(0.5)
            return 401, {"error": {"message": "expired"}}
        ended.wait(60)
        return policy(request)

    started = time.monotonic()
    result, _ = run_against(run_door, "demo_concurrent.py", photos, tmp_path, teacher=script)
    ended.set()
    assert result.returncode == 2 and "expired" in result.stderr
    assert time.monotonic() - started < 40


def test_two_runs_cannot_write_to_one_folder(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    tmp_path.joinpath(".lock").touch()
    with tmp_path.joinpath(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result, requests = run_against(run_door, "demo_concurrent.py", photos, tmp_path, "--num_samples", 2)
    assert result.returncode == 2
    assert "another run is writing" in result.stderr
    assert len(requests) == 0, "nothing is paid for a run that is refused"


def test_failures_are_kept_when_a_run_is_interrupted(run_door: RunDoor, tmp_path: Path) -> None:
    data = save_photos(tmp_path / "data", [b"broken", photo_bytes(1)])

    def script(request: dict[str, Any]) -> Any:
        return policy(request) if is_probe(request) else (401, {"error": {"message": "expired"}})

    result, _ = run_against(
        run_door, "demo_concurrent.py", data, tmp_path / "out", "--max_workers", 1, teacher=script
    )
    assert result.returncode == 2
    (line,) = (tmp_path / "out" / "failed_samples.jsonl").read_text().splitlines()
    assert json.loads(line)["sample_index"] == 0
    run_against(run_door, "demo_concurrent.py", data, tmp_path / "out")
    assert len((tmp_path / "out" / "failed_samples.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "boxes", "words"),
    [
        ((), [[500, 300, 200, 100]], "width, height"),
        (("--coordinates", "pixel"), [[10, 10, 30, 30], [40, 40, 60, 60]], "--crop_from original"),
        ((), [[0.1, 0.1, 0.5, 0.5]], "--coordinates rel1"),
        ((), [[1000, 900, 3900, 2900]], "--coordinates pixel"),
    ],
)
def test_the_box_warning_names_the_likely_setting(
    flags: tuple[str, ...],
    boxes: list[list[float]],
    words: str,
    run_door: RunDoor,
    photos: Path,
    tmp_path: Path,
) -> None:
    def script(request: dict[str, Any]) -> Any:
        turn = num_turns(request)
        if is_probe(request) or turn < len(boxes):
            return calls(("image_zoom_in_tool", {"bbox_2d": boxes[turn]}))
        return says("\\boxed{1, 2}")

    result, _ = run_against(run_door, "demo_concurrent.py", photos, tmp_path, *flags, teacher=script)
    assert words in result.stdout


@pytest.mark.parametrize(
    ("command", "output_dir", "tools", "max_turns", "max_workers"),
    [
        ("run", "traces_concurrent", "zoom,rotate", 10, 4),
        ("code", "traces_python_code", "python_code", 10, 4),
        ("with-tools", "traces_with_tools", "zoom,rotate", 10, 1),
        ("one-turn", "traces_demo", "none", 1, 1),
    ],
)
def test_each_door_says_its_own_defaults(
    command: str,
    output_dir: str,
    tools: str,
    max_turns: int,
    max_workers: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.partition("samples:")[2].split())
    stated = {"output_dir": output_dir, "tools": tools, "max_turns": max_turns, "max_workers": max_workers}
    for flag, value in stated.items():
        assert f"(default: {value})" in text.partition(f"--{flag} ")[2].partition(" --")[0], flag


def test_an_attempt_that_takes_too_long_is_made_again(
    run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    is_over, is_first = threading.Event(), threading.Semaphore(1)

    def script(request: dict[str, Any]) -> Any:
        if not is_probe(request) and is_first.acquire(blocking=False):
            is_over.wait(60)
        return policy(request)

    flags = ("--num_samples", 1, "--request_timeout_seconds", 2)
    started = time.monotonic()
    result, requests = run_against(run_door, "demo_concurrent.py", photos, tmp_path, *flags, teacher=script)
    is_over.set()
    assert result.returncode == 0, result.stderr
    assert time.monotonic() - started < 50
    states = [json.loads(line)["state"] for line in (tmp_path / "spending.jsonl").read_text().splitlines()]
    assert (states.count("answered"), states.count("retried")) == (3, 1)
    assert len(requests) == 4


def test_a_sample_that_takes_too_long_fails_and_keeps_its_turns(
    run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    def script(request: dict[str, Any]) -> Any:
        if not is_probe(request):
            time.sleep(0.5)
        return calls(("image_rotate_tool", {"angle": 90}))

    flags = ("--num_samples", 1, "--sample_timeout_seconds", 1.7, "--max_turns", 40)
    result, requests = run_against(run_door, "demo_concurrent.py", photos, tmp_path, *flags, teacher=script)
    assert result.returncode == 1, result.stderr
    (failure,) = map(json.loads, (tmp_path / "failed_samples.jsonl").read_text().splitlines())
    assert failure["kind"] == "deadline" and "sample's 1.7 s are over" in failure["message"]
    assert 1 <= failure["turns_spent"] < len(requests) < 10
    assert not contents(tmp_path)


def test_what_a_run_leaves_beside_its_traces(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    result, _ = run_against(
        run_door, "demo_concurrent.py", photos, tmp_path, "--num_samples", 5, "--max_workers", 3,
        "--fixed_workers",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "3 of 3 requests at once: as --fixed_workers says" in result.stderr, "the progress line"
    (record,) = json.loads((tmp_path / "run_record.json").read_text())["runs"]
    assert record["requests_at_once"]["level"] == record["requests_at_once"]["ceiling"] == 3
    assert (record["requests_at_once"]["reason"], record["options"]["fixed_workers"]) == ("fixed", True)
    stated = {"code_timeout": 10.0, "code_memory_mb": 2048, "request_timeout_seconds": 600.0}
    stated |= {"turn_timeout_seconds": 1800.0, "sample_timeout_seconds": 7200.0, "max_outage_seconds": 1800.0}
    assert record["options"] | stated == record["options"], "the defaults that --help states"
    timings = [json.loads(line) for line in (tmp_path / "timings.jsonl").read_text().splitlines()]
    assert sorted(line["sample_index"] for line in timings) == [0, 1, 2, 3, 4]
    for line in timings:
        assert len(line["turn_seconds"]) == 2
        assert line["seconds"] >= sum(line["turn_seconds"]) - 0.001
    spending = [json.loads(line) for line in (tmp_path / "spending.jsonl").read_text().splitlines()]
    assert [line["state"] for line in spending].count("sent") == 11, "with the probe"
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith((".", "trace_"))} == {
        "README.txt", "run_record.json", "spending.jsonl", "timings.jsonl"
    }  # fmt: skip


def test_no_secret_is_in_any_file_or_line_whatever_the_server_quotes(
    run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    key, password = "sk-quoted-0123456789", "hunter2-in-the-url"

    def script(request: dict[str, Any]) -> Any:
        if is_probe(request):
            return policy(request)
        return 400, {"error": {"message": f"nothing for Bearer {key}"}}

    with ScriptedTeacher(script) as server:
        url = server.api_base.replace("//", f"//user:{password}@")
        result = run_door(
            "demo_concurrent.py", "--api_base", url, "--dataset_path", photos, "--output_dir", tmp_path,
            "--num_samples", 2, env={"OPENAI_API_KEY": key},
        )  # fmt: skip
    assert result.returncode == 1, result.stderr
    files = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert "nothing for Bearer [key]" in files[tmp_path / "failed_samples.jsonl"]
    assert server.api_base in files[tmp_path / "run_record.json"]
    for text in (*files.values(), result.stdout, result.stderr):
        assert key not in text and password not in text


def test_a_second_run_asks_nothing_anew_about_the_server(
    run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    with ScriptedTeacher(policy) as server:
        flags = ("--api_base", server.api_base, "--dataset_path", photos, "--output_dir", tmp_path)
        for num_samples in (1, 3):
            server.requests.clear()
            result = run_door("demo_concurrent.py", *flags, "--num_samples", num_samples)
            assert result.returncode == 0, result.stderr
    assert len(server.requests) == 4 and not any(map(is_probe, server.requests))
    runs = json.loads((tmp_path / "run_record.json").read_text())["runs"]
    assert [run["probe"]["tool_mode"] for run in runs] == ["native", "native"]
