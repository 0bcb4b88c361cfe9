"""What version 0.2.0 left in a folder is still read: its traces verify, its turns are not paid for again.

`made_before/` holds two runs of that version over four photos, each killed in its last turn but one row: with
native calls, and with calls as text, boxes in pixels and crops of the original. Never make them anew.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says

from distil.cli import main

MADE = Path(__file__).parent / "made_before"
FLAGS = {
    "native": (),
    "text": ("--tool_mode", "text", "--crop_from", "original", "--coordinates", "pixel"),
}
NUM_ROWS = 4


@pytest.fixture(params=FLAGS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    shutil.copytree(MADE, tmp_path / "made")
    return request.param, tmp_path / "made"


def stored(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("trace_*.json")}


def test_its_traces_verify(made: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    name, folder = made
    num_traces = len(stored(folder / name))
    assert num_traces >= 2
    assert main(["verify", str(folder / name), "--dataset_path", str(folder / "photos")]) == 0
    assert f"{num_traces} matched, 0 mismatched" in " ".join(capsys.readouterr().out.split())


def test_its_traces_are_kept_and_its_turns_used(made: tuple[str, Path]) -> None:
    name, folder = made
    before = stored(folder / name)
    asked: list[int] = []

    def teacher(request: dict[str, Any]) -> Any:
        if is_probe(request):
            tools = request.get("tools")
            return calls((tools[0]["function"]["name"], {})) if tools else says("no")
        asked.append(num_turns(request))
        return says("\\boxed{48.9, 2.35}")

    with ScriptedTeacher(teacher) as server:
        base = ("--api_base", server.api_base, "--dataset_path", str(folder / "photos"))
        tools = ("--tools", "zoom,rotate,python_code", "--output_dir", str(folder / name))
        assert main(["run", *base, *tools, *FLAGS[name]]) == 0
    after = stored(folder / name)
    assert len(after) == NUM_ROWS
    assert {file: after[file] for file in before} == before
    num_untouched = NUM_ROWS - len(before) - 1
    assert sorted(asked) == [0] * num_untouched + [2], "the unfinished row goes on from its two turns"
    (finished,) = [
        json.loads(after[file]) for file in after.keys() - before.keys() if _num_turns(after[file]) == 3
    ]
    assert finished["metadata"]["stop_reason"] == "answered"


def _num_turns(trace: bytes) -> int:
    return len(json.loads(trace)["conversation_log"])
