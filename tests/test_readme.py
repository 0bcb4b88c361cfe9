"""Both READMEs say the same, and every command in them and on the pages of docs/ works."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from conftest import PACKAGE
from PIL import Image
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says
from seeing_teacher import Seeing
from warm_door import start_door

from distil.embedded.launch import TEACHER_NOTE

ROOT = PACKAGE.parent
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ENGLISH, CHINESE, ROOT / "CONTRIBUTING.md", *DOCS]
SET_UP = re.compile(r'^python3 -m venv \.venv && \. \.venv/bin/activate && pip install -e "\.\[[\w,]+\]" && ')
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MODEL = "Qwen/Qwen3-VL-235B-A22B-Instruct"


def blocks(path: Path, language: str) -> list[str]:
    """The code blocks of a language; those without one have the language ""."""
    return [text for name, text in BLOCK.findall(path.read_text(encoding="utf-8")) if name == language]


def commands(path: Path) -> list[str]:
    return [line for block in blocks(path, "bash") for line in block.splitlines() if line.strip()]


def test_both_readmes_have_the_same_blocks_flags_headings_and_figures() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ENGLISH, CHINESE)]
    assert BLOCK.findall(texts[0]) == BLOCK.findall(texts[1])
    for pattern in (r"--[a-z_]+", r"(?m)^#+ ", r"\d+\.\d+", r"\]\((docs/[^)]+)\)"):
        found = [sorted(re.findall(pattern, text)) for text in texts]
        assert found[0] == found[1]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_what_a_page_links_to_is_there(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", BLOCK.sub("", path.read_text(encoding="utf-8"))):
        if "://" not in target:
            name, _, heading = target.partition("#")
            page = path.parent / name if name else path
            assert page.exists(), target
            assert not heading or heading in headings(page), target


def headings(page: Path) -> set[str]:
    """The names that the headings of a page are linked by."""
    lines = re.findall(r"(?m)^#+ (.*)$", BLOCK.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines}


def test_flags_that_the_pages_name_exist() -> None:
    help_text = "".join(
        subprocess.run(
            [sys.executable, "-m", "distil", command, "--help"], capture_output=True, text=True, check=True
        ).stdout
        for command in ("estimate", "view", "export", "check")
    )
    ours = set(re.findall(r"--[a-z_]+", help_text))
    for path in (ENGLISH, *DOCS):
        named = set(re.findall(r"--[a-z]+_[a-z_]+", path.read_text(encoding="utf-8")))
        assert named <= ours, path.name


def test_every_room_stands_in_the_tree_of_the_house() -> None:
    tree = blocks(ROOT / "docs" / "house.md", "")[0]
    named = set(re.findall(r"[\w*]+(?:/|\.py)", tree)) - {
        "distil/",
        "docs/",
        "benchmarks/",
        "tests/",
        "trainers/",
    }
    rooms = {path.parent.name + "/" for path in PACKAGE.glob("*/__init__.py")}
    modules = {path.name for path in PACKAGE.glob("*.py") if path.name != "__init__.py"}
    scripts = {"make_map.py", "make_picture.py", "make_screenshots.py", "make_sign_data.py"}
    assert named - scripts == rooms | modules


def test_set_up_lines_install_extras_that_exist() -> None:
    """The set-up itself needs a package index: `.ci/run` runs both lines in fresh clones."""
    lines = [line for line in commands(ENGLISH) if SET_UP.match(line)]
    assert [line.rpartition("&& ")[2].split()[1] for line in lines] == ["demo_concurrent.py", "-m"]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for line in lines:
        extras = re.search(r"\[([\w,]+)\]", line)
        assert extras is not None and all(f"\n{extra} = [" in project for extra in extras[1].split(","))


def make_clone(folder: Path) -> Path:
    """The scripts in a `distil/` folder of their own, so that traces land outside the checkout."""
    scripts = folder / "clone" / "distil"
    scripts.mkdir(parents=True)
    for script in PACKAGE.glob("*.py"):
        if script.name.startswith(("demo_", "view_")):
            shutil.copy(script, scripts)
    return scripts


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    return make_clone(tmp_path)


def shell_environment() -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    return environment


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-ec", command],
        cwd=folder,
        env=shell_environment(),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def zoom_once(request: dict[str, Any]) -> Any:
    if "tools" in request and (is_probe(request) or num_turns(request) == 0):
        return calls(("image_zoom_in_tool", {"bbox_2d": [100, 100, 600, 600]}))
    return says("\\boxed{48.85, 2.35}")


# --- the first line, and what the README shows of it


@dataclass(frozen=True)
class Tried:
    """A clone in which the first line has been run, and what it printed."""

    folder: Path
    stdout: str

    @property
    def trace(self) -> dict[str, Any]:
        """The trace that the README shows."""
        (shown,) = (command for command in commands(ENGLISH) if command.endswith(".json"))
        text = (self.folder / shown.split()[-1]).read_text(encoding="utf-8")
        trace: dict[str, Any] = json.loads(text)
        return trace


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Tried:
    folder = make_clone(tmp_path_factory.mktemp("tried"))
    first = next(line for line in commands(ENGLISH) if "embedded" in line)
    result = shell(SET_UP.sub("", first).removeprefix("cd distil && "), folder)
    assert result.returncode == 0, result.stderr
    assert "10 finished, 0 failed" in result.stdout
    return Tried(folder, result.stdout)


def test_the_commands_of_training_data_export_in_all_formats(tried: Tried) -> None:
    run, export = (
        command for command in commands(ENGLISH) if re.search("--rollouts_per_sample|^for ", command)
    )
    formats = export.partition(" in ")[2].partition(";")[0].split()
    assert len(formats) == 6
    result = shell(f"{run}\n{export}", tried.folder)
    assert result.returncode == 0, result.stderr
    for name in formats:
        assert json.loads((tried.folder / "sft" / name / "card.json").read_text(encoding="utf-8"))
        assert (tried.folder / "sft" / name / "README.md").is_file()
    num_rows = re.findall(r"(\d+ train, \d+ validation) rows", result.stdout)
    assert len(num_rows) == 6 and len(set(num_rows)) == 1


def test_the_last_of_them_shows_the_traces_as_pages(tried: Tried) -> None:
    (line,) = (command for command in commands(ENGLISH) if "--serve" in command)
    viewer = subprocess.Popen(
        shlex.split(line),
        cwd=tried.folder,
        env=shell_environment() | {"BROWSER": "true", "PYTHONUNBUFFERED": "1"},  # which opens nothing
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert viewer.stdout is not None
        address = next(re.search(r"http://\S+", said) for said in viewer.stdout if "http://" in said)
        assert address is not None
        with urllib.request.urlopen(f"{address[0]}traces", timeout=60) as page:
            assert page.status == 200
    finally:
        viewer.send_signal(signal.SIGINT)
        assert viewer.wait(timeout=60) == 0


def test_the_commands_after_the_first_line_work(tried: Tried) -> None:
    printed = ""
    for command in commands(ENGLISH):
        if command.startswith(("python view_", "distil verify", "distil export")):
            result = shell(command, tried.folder)
            assert result.returncode == 0, result.stderr + result.stdout
            printed += result.stdout
    assert "10 matched, 0 mismatched, 0 unreadable" in printed
    assert "10 train rows with" in printed


def test_the_first_line_prints_what_the_readme_says(tried: Tried) -> None:
    (shown,) = blocks(ENGLISH, "")
    printed = iter(map(without_figures, tried.stdout.splitlines()))
    for line in shown.splitlines():
        pattern = ".*".join(map(re.escape, without_figures(line).split("…")))
        assert any(re.fullmatch(pattern, other) for other in printed), line


def test_every_trace_of_the_embedded_teacher_says_what_its_teacher_is(tried: Tried) -> None:
    traces = list((tried.folder / "traces_concurrent").glob("trace_*.json"))
    notes = [json.loads(path.read_text(encoding="utf-8"))["settings"].get("teacher_note") for path in traces]
    assert len(notes) == 10 and set(notes) == {TEACHER_NOTE}
    assert "not for training" in TEACHER_NOTE


def without_figures(line: str) -> str:
    """Times, the port and what another processor reads on a sign are not told apart."""
    return re.sub(r" +", " ", re.sub(r"\d[\d.,]*", "N", line))


def test_the_trace_in_the_readme_is_one_that_the_first_line_writes(tried: Tried) -> None:
    (shown,) = blocks(ENGLISH, "json")
    assert_shortened(json.loads(shown), tried.trace)


def assert_shortened(shown: Any, whole: Any) -> None:
    """Whether `shown` is `whole` with fields left out, texts cut at "…", and figures about the same."""
    if isinstance(shown, dict):
        assert shown.keys() <= whole.keys()
        for name, value in shown.items():
            assert_shortened(value, whole[name])
    elif isinstance(shown, list):
        assert len(shown) <= len(whole)
        for value, other in zip(shown, whole, strict=False):
            assert_shortened(value, other)
    elif isinstance(shown, str):
        pattern = ".*".join(map(re.escape, shown.split("…")))
        assert re.fullmatch(pattern, whole, re.DOTALL), (shown, whole)
    elif isinstance(shown, bool):
        assert shown is whole
    else:
        assert whole == pytest.approx(shown, abs=5)  # another processor's OCR is off by a pixel


def test_the_readmes_picture_is_that_of_its_trace(tried: Tried) -> None:
    spec = importlib.util.spec_from_file_location("make_picture", ROOT / "docs" / "make_picture.py")
    assert spec is not None and spec.loader is not None
    make_picture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_picture)
    drawn = make_picture.draw_trace(tried.trace)
    with Image.open(ROOT / "docs" / "trace.png") as stored:
        assert abs(stored.height - drawn.height) <= 3
        difference = np.asarray(stored.convert("RGB").resize(drawn.size)) - np.asarray(
            drawn, dtype=np.float64
        )
    assert np.abs(difference).mean() < 4


# --- a real teacher


def for_a_test(line: str, api_base: str, photos: Path) -> str:
    return line.replace("http://localhost:8000/v1", api_base).replace("/data/photos", str(photos))


def test_the_real_teachers_commands_work(clone: Path, photos: Path) -> None:
    lines = [
        line for line in commands(ENGLISH) if line.startswith(("export", "distil estimate", "distil run"))
    ]
    assert len(lines) == 3
    with ScriptedTeacher(zoom_once) as server:
        result = shell("\n".join(for_a_test(line, server.api_base, photos) for line in lines), clone)
    assert result.returncode == 0, result.stderr
    assert len(list((clone / "traces_1k").glob("trace_*.json"))) == 12
    assert {request["model"] for request in server.requests} == {MODEL}
    turns = [request for request in server.requests if not is_probe(request)]
    assert len(turns) == 2 * 12  # what the estimate paid for is not asked again


def test_the_doctors_command_works(clone: Path, photos: Path) -> None:
    (line,) = (line for line in commands(ENGLISH) if line.startswith("distil doctor --api_base"))
    with ScriptedTeacher(Seeing(), models=(MODEL,)) as server:
        result = shell(for_a_test(line, server.api_base, photos), clone)
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


def test_every_command_of_the_readme_is_run_by_one_of_these_tests() -> None:
    run_here = (
        "python view_",
        "python demo_concurrent.py --api_base embedded",
        "for format in",
        "distil verify",
        "distil export",
        "distil view",
        "distil doctor --api_base",
        "distil estimate",
        "distil run",
        "export ",
    )
    for command in commands(ENGLISH):
        assert SET_UP.match(command) or command.startswith(run_here), command


# --- the pages of docs/


def run_warm(line: str, folder: Path) -> str:
    """Run one command as a fork of a warm door; what it printed. The README's are run by a shell, and cold."""
    first, *words = shlex.split(line)
    script = str(PACKAGE / "__main__.py") if first == "distil" else words.pop(0)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    door = start_door(script, *words, cwd=folder, env=environment)
    stdout, stderr = door.communicate(timeout=280)
    assert door.wait() == 0, stderr + stdout
    return stdout


@pytest.mark.parametrize("page", [path for path in DOCS if commands(path)], ids=lambda path: path.name)
def test_the_commands_of_a_page_work(page: Path, clone: Path, photos: Path) -> None:
    for block in blocks(page, "python"):
        name = re.match(r"# (\w+\.py)\n", block)
        if name is not None:
            (clone / name[1]).write_text(block, encoding="utf-8")
    with ScriptedTeacher(zoom_once) as server:
        ending = [
            line for line in commands(page) if "--serve" not in line
        ]  # until Ctrl-C: test_view_server.py
        lines = [for_a_test(line, server.api_base, photos) for line in ending]
        printed = {line: run_warm(line, clone) for line in lines}
    for folder in {name for line in lines for name in re.findall(r"--output_dir (\S+)", line)}:
        assert len(list((clone / folder).glob("trace_*.json"))) in (10, 12)
    if page.name == "sandbox.md":
        assert "seccomp" in printed["distil doctor --sandbox"]
        assert len(list((clone / "traces_python_code").glob("trace_*.json"))) == 10
