"""Settings that no run can have are never called right, although checksum and hash of the settings fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import photo_bytes, save_photos
from scripted_teacher import ScriptedTeacher, calls, num_turns, says

from distil.cli import run_door
from distil.replay.replay import Sources
from distil.replay.verify import Verdict, verify_trace
from distil.store.trace_file import find_trace_files
from distil.store.trace_settings import json_sha256, settings_sha256

CODE = {"timeout_seconds": 10.0, "memory_bytes": 2**30, "unsafe_exec": False}


def policy(request: dict[str, Any]) -> Any:
    if num_turns(request) == 0:
        return calls(("image_zoom_in_tool", {"bbox_2d": [100, 100, 800, 700]}))
    return says("\\boxed{48.86, 2.35}")


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("settings")
    photos = save_photos(folder / "photos", [photo_bytes(0, (64, 48))])
    with ScriptedTeacher(policy) as server:
        flags = [
            "--api_base",
            server.api_base,
            "--dataset_path",
            str(photos),
            "--output_dir",
            str(folder / "out"),
        ]
        assert run_door("demo_concurrent.py", [*flags, "--tool_mode", "native"]) == 0
    value: dict[str, Any] = json.loads(find_trace_files(folder / "out")[0].read_text())
    return value


def verdict(trace: dict[str, Any], folder: Path, **changes: Any) -> Verdict:
    """The verdict on the trace with other settings, all hashes made to fit."""
    value = json.loads(json.dumps(trace))
    value["settings"].update(changes)
    value["metadata"]["settings_sha256"] = settings_sha256(value["settings"], value["dataset"]["fingerprint"])
    del value["integrity_sha256"]
    value["integrity_sha256"] = json_sha256(value)
    path = folder / "trace_00000.json"
    path.write_text(json.dumps(value))
    return verify_trace(path, Sources()).verdict


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", "1"), ("max_tokens", True), ("max_tokens", None), ("max_turns", "9"), ("max_turns", 9.5),
        ("temperature", "hot"), ("temperature", False), ("seed", "hot"), ("seed", 1.5), ("seed", True),
        ("sends_seed", "yes"), ("sends_seed", 1), ("token_field", "tokens"), ("token_field", None),
        ("code", CODE), ("code", "none"), ("teacher_note", 1), ("keep_pictures", "no"), ("model", 1),
        ("system_prompt", 1), ("user_prompt", None),
    ],
)  # fmt: skip
def test_a_setting_that_no_run_can_have_is_not_called_right(
    name: str, value: Any, trace: dict[str, Any], tmp_path: Path
) -> None:
    assert verdict(trace, tmp_path, **{name: value}) in (Verdict.UNREADABLE, Verdict.INCONSISTENT)


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", None), ("temperature", 1), ("sends_seed", False), ("code", None),
     ("token_field", "max_completion_tokens"), ("teacher_note", "a note")],
)  # fmt: skip
def test_settings_that_a_run_can_have_are(
    name: str, value: Any, trace: dict[str, Any], tmp_path: Path
) -> None:
    assert verdict(trace, tmp_path, **{name: value}) is Verdict.MATCHED
