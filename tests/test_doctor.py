"""`distil doctor` against teachers of several characters, as a user runs it."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from typing import Any

import pytest
from conftest import RunDoor
from scripted_teacher import ScriptedTeacher, completion
from seeing_teacher import Seeing, error, read_word
from test_teacher import closed_port

from distil.pictures import Frame
from distil.teacher.marks import MARKS, BoxAnswer, FoundFrame, draw_sign, find_frame

QWEN = "Qwen/Qwen3-VL-235B-A22B-Instruct"
KEY = "sk-test-0123456789"
Result = subprocess.CompletedProcess[str]


def doctor(run_door: RunDoor, script: Any, *flags: str, model: str = QWEN) -> tuple[Result, ScriptedTeacher]:
    env = {"OPENAI_API_KEY": KEY, "COLUMNS": "300"}
    with ScriptedTeacher(script, models=(model,)) as server:
        result = run_door("cli.py", "doctor", "--api_base", server.api_base, *flags, env=env)
    assert "Traceback" not in result.stderr
    assert KEY not in result.stdout + result.stderr
    assert len(server.requests) < 15, "with the list of models: at most 15"
    return result, server


def row(result: Result, probe: str) -> str:
    """What the table says of a probe: the result and the detail."""
    (line,) = (line for line in result.stdout.splitlines() if line.startswith(f"{probe}  "))
    return " ".join(line.removeprefix(probe).split())


def test_a_server_that_can_everything_is_ready(run_door: RunDoor) -> None:
    result, server = doctor(run_door, Seeing(reasoning_field="reasoning"))
    assert result.returncode == 0, result.stdout + result.stderr
    for probe in (
        "models list",
        "plain text",
        "picture",
        "native calls",
        "text calls",
        "parallel calls",
        "picture in tool result (native)",
        "coordinates",
        "reasoning field",
        "usage fields",
        "token-limit field",
        "token limit kept",
        "seed",
        "temperature",
    ):
        assert row(result, probe).startswith("yes "), probe
    assert row(result, "reasoning field") == "yes reasoning"
    assert "Profile by name: qwen-vl (boxes rel1000; max_tokens)" in result.stdout
    assert "Frame found: rel1000 (sure: 3 marks hit" in result.stdout
    assert "Suggested: --tool_mode native" in result.stdout
    assert "Suggested: --coordinates rel1000 (3 of 3" in result.stdout
    assert "Warning" not in result.stdout and "Needed" not in result.stdout
    assert f"Requests: {len(server.requests) + 1}" in result.stdout
    assert len(server.requests) == 8
