"""Both READMEs say the same, and every command in them works."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import PACKAGE
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says
from seeing_teacher import Seeing

ROOT = PACKAGE.parent
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
SET_UP = re.compile(r'^python3 -m venv \.venv && \. \.venv/bin/activate && pip install -e "\.\[\w+\]" && ')


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def commands(path: Path) -> list[str]:
    return [line for block in blocks(path, "bash") for line in block.splitlines() if line.strip()]


def test_both_readmes_have_the_same_commands_code_and_flags() -> None:
    for language in ("bash", "json", "python"):
        assert blocks(ENGLISH, language) == blocks(CHINESE, language)
    texts = [path.read_text(encoding="utf-8") for path in (ENGLISH, CHINESE)]
    flags = [set(re.findall(r"--[a-z_]+", text)) for text in texts]
    assert flags[0] == flags[1]
    headings = [len(re.findall(r"^#+ ", text, re.MULTILINE)) for text in texts]
    assert headings[0] == headings[1]
    figures = [sorted(re.findall(r"\d+\.\d+", text)) for text in texts]
    assert figures[0] == figures[1]


def test_files_that_the_readmes_name_are_there() -> None:
    for path in (ENGLISH, CHINESE):
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (ROOT / target).exists(), target


def test_flags_that_the_readme_names_exist() -> None:
    help_text = subprocess.run(
        [sys.executable, "demo_concurrent.py", "--help"],
        cwd=PACKAGE,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    ours = set(re.findall(r"--[a-z_]+", help_text)) | {"--batch", "--verbose"}
    assert set(re.findall(r"--[a-z]+_[a-z_]+", ENGLISH.read_text(encoding="utf-8"))) <= ours


def test_set_up_lines_install_extras_that_exist() -> None:
    """The set-up itself needs a package index: `.ci/run` runs both lines in fresh clones."""
    lines = [line for line in commands(ENGLISH) if SET_UP.match(line)]
    assert [line.rpartition("&& ")[2].split()[1] for line in lines] == ["demo_concurrent.py", "-m"]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for line in lines:
        extra = re.search(r"\[(\w+)\]", line)
        assert extra is not None and f"\n{extra[1]} = [" in project


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The scripts in a `distil/` folder of their own, so that traces land outside the checkout."""
    folder = tmp_path / "clone" / "distil"
    folder.mkdir(parents=True)
    for script in PACKAGE.glob("*.py"):
        if script.name.startswith(("demo_", "view_")):
            shutil.copy(script, folder)
    return folder


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    return subprocess.run(
        ["bash", "-ec", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def zoom_once(request: dict[str, Any]) -> Any:
    if "tools" in request and (is_probe(request) or num_turns(request) == 0):
        return calls(("image_zoom_in_tool", {"bbox_2d": [100, 100, 600, 600]}))
    return says("\\boxed{48.85, 2.35}")


def test_the_embedded_commands_work(clone: Path) -> None:
    first = next(line for line in commands(ENGLISH) if "embedded" in line)
    result = shell(SET_UP.sub("", first).removeprefix("cd distil && "), clone)
    assert result.returncode == 0, result.stderr
    assert "10 finished, 0 failed" in result.stdout
    for command in commands(ENGLISH):
        if command.startswith(("python view_", "distil verify")):
            result = shell(command, clone)
            assert result.returncode == 0, result.stderr + result.stdout
    assert "10 matched, 0 mismatched, 0 unreadable" in result.stdout


def test_the_code_tools_commands_work(clone: Path) -> None:
    for command in commands(ENGLISH):
        if command.startswith(("python demo_python_code.py", "distil doctor --sandbox")):
            result = shell(command, clone)
            assert result.returncode == 0, result.stderr + result.stdout
    assert "seccomp" in result.stdout
    assert len(list((clone / "traces_python_code").glob("trace_*.json"))) == 10


def test_the_real_teachers_commands_work(clone: Path, photos: Path) -> None:
    lines = [line for line in commands(ENGLISH) if "demo" in line and "localhost:8000" in line]
    assert len(lines) == 1
    lines = [line for line in commands(ENGLISH) if line.startswith("export")] + lines
    with ScriptedTeacher(zoom_once) as server:
        command = "\n".join(lines).replace("http://localhost:8000/v1", server.api_base)
        result = shell(command.replace("/data/photos", str(photos)), clone)
    assert result.returncode == 0, result.stderr
    assert "12 finished, 0 failed" in result.stdout
    assert len(list((clone / "traces_concurrent_1k").glob("trace_*.json"))) == 12
    assert {request["model"] for request in server.requests} == {"Qwen/Qwen3-VL-235B-A22B-Instruct"}


def test_the_doctors_command_works(clone: Path) -> None:
    (line,) = (line for line in commands(ENGLISH) if line.startswith("distil doctor --api_base"))
    with ScriptedTeacher(Seeing(), models=("Qwen/Qwen3-VL-235B-A22B-Instruct",)) as server:
        result = shell(line.replace("http://localhost:8000/v1", server.api_base), clone)
    assert result.returncode == 0, result.stderr + result.stdout
    assert "The main job can run." in result.stdout


def test_the_readmes_restore_recipe_works(clone: Path, photos: Path) -> None:
    with ScriptedTeacher(zoom_once) as server:
        command = f"python demo_concurrent.py --api_base {server.api_base} --dataset_path {photos} --tool_mode native"
        assert shell(command, clone).returncode == 0
    (recipe,) = blocks(ENGLISH, "python")
    trace_path = str(clone / "traces_concurrent" / "trace_00000.json")
    scope: dict[str, Any] = {"json": json, "datasets": datasets}
    exec(recipe.replace("'trace_00000.json'", repr(trace_path)), scope)
    assert scope["image"].size == (320, 240)


def test_every_command_is_run_by_one_of_these_tests() -> None:
    run_here = ("python view_", "python demo_python_code.py", "distil verify", "distil doctor", "export ")
    for command in commands(ENGLISH):
        assert SET_UP.match(command) or command.startswith(run_here) or "localhost:8000" in command, command
