"""`--dry_run` checks all that can be checked, shows the first request as it would be, and asks nobody."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import RunDoor, photo_bytes, save_photos
from scripted_teacher import ScriptedTeacher, is_probe, says

MODEL = "scripted-qwen3-vl"


def shown(stdout: str) -> dict[str, Any]:
    """The request that was shown."""
    lines = stdout.splitlines()
    found: dict[str, Any] = json.loads("\n".join(lines[lines.index("{") : lines.index("}") + 1]))
    return found


@pytest.mark.parametrize("mode", ["native", "text"])
def test_the_request_that_is_shown_is_the_first_that_is_sent(
    mode: str, photos: Path, tmp_path: Path, run_door: RunDoor
) -> None:
    with ScriptedTeacher(lambda _: says("\\boxed{1, 2}")) as server:
        flags = (
            "--api_base", server.api_base, "--dataset_path", photos, "--model", MODEL, "--tool_mode", mode,
            "--order", "random", "--num_samples", 3, "--max_workers", 1, "--output_dir", tmp_path / "out",
        )  # fmt: skip
        dry = run_door("demo_concurrent.py", *flags, "--dry_run")
        assert dry.returncode == 0, dry.stderr
        assert server.requests == [] and server.headers == [] and not (tmp_path / "out").exists()
        assert run_door("demo_concurrent.py", *flags).returncode == 0
        again = run_door("demo_concurrent.py", *flags, "--dry_run")
    sent = next(request for request in server.requests if not is_probe(request))
    request = shown(dry.stdout)
    content = sent["messages"][1]["content"]
    data = base64.b64decode(content[0]["image_url"]["url"].partition(",")[2])
    assert request["messages"][1]["content"][0]["image_url"]["url"] == (
        f"<image/jpeg, 640×480, {len(data):,} bytes>"
    )
    content[0]["image_url"]["url"] = request["messages"][1]["content"][0]["image_url"]["url"]
    assert request == sent
    assert "3 samples are selected, 0 of them have a trace" in dry.stdout
    assert "Nothing is left to ask." in again.stdout


def test_where_the_tool_mode_is_found_out_the_request_has_native_tools(
    photos: Path, tmp_path: Path, run_door: RunDoor
) -> None:
    flags = ("--api_base", "http://127.0.0.1:9/v1", "--dataset_path", photos, "--model", MODEL)
    dry = run_door("demo_concurrent.py", *flags, "--output_dir", tmp_path / "out", "--dry_run")
    assert dry.returncode == 0, dry.stderr
    assert [tool["function"]["name"] for tool in shown(dry.stdout)["tools"]] == [
        "image_zoom_in_tool",
        "image_rotate_tool",
    ]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--dataset_path", "/nowhere/data"), "/nowhere/data"),
        (("--order", "height"), "locatability_score"),
        (("--output_dir", "/proc/no"), "--output_dir /proc/no: No such file"),
        (("--user_prompt_file", "/nowhere/prompt"), "/nowhere/prompt"),
        (("--tools", "zoom,laser"), "known tools are"),
        (("--max_cost_usd", "1", "--model", "nobody-s"), "price_per_million"),
        (("--api_base", "localhost:8000"), "--api_base"),
    ],
)
def test_what_a_run_would_refuse_is_refused(
    flags: tuple[str, str], words: str, photos: Path, tmp_path: Path, run_door: RunDoor
) -> None:
    given = (
        "--api_base",
        "http://127.0.0.1:9/v1",
        "--dataset_path",
        photos,
        "--output_dir",
        tmp_path / "out",
    )
    result = run_door("demo_concurrent.py", *given, "--dry_run", *flags)
    assert result.returncode == 2
    assert words in result.stderr and "Traceback" not in result.stderr


def test_a_folder_of_other_settings_is_refused(photos: Path, tmp_path: Path, run_door: RunDoor) -> None:
    with ScriptedTeacher(lambda _: says("\\boxed{1, 2}")) as server:
        flags = ("--api_base", server.api_base, "--dataset_path", photos, "--num_samples", 1)
        run_door("demo_concurrent.py", *flags, "--output_dir", tmp_path)
        same = run_door("demo_concurrent.py", *flags, "--output_dir", tmp_path, "--dry_run")
        other = run_door(
            "demo_concurrent.py", *flags, "--output_dir", tmp_path, "--dry_run", "--max_turns", 2
        )
    assert same.returncode == 0, same.stderr
    assert other.returncode == 2 and "made with other settings (max_turns" in other.stderr


def test_without_a_model_and_with_the_embedded_teacher_nobody_is_started(
    tmp_path: Path, run_door: RunDoor
) -> None:
    data = save_photos(tmp_path / "photos", [photo_bytes(1)])
    result = run_door(
        "demo_concurrent.py", "--api_base", "embedded", "--dataset_path", data, "--dry_run",
        "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert shown(result.stdout)["model"] == "(the server's only model)"
    assert "127.0.0.1" not in result.stdout
