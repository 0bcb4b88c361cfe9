"""What version 0.2.0 left in a folder is still read: its traces verify, its turns are not paid for again.

`made_before/` holds runs of that version over four photos. Two were killed in a last turn: one with native calls,
one with calls as text, boxes in pixels and crops of the original. `unknown` is of a model whose family is not known.
Never make them anew.
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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MADE, tmp_path / "made"))


def stored(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("trace_*.json")}


@pytest.mark.parametrize("name", [*FLAGS, "unknown"])
def test_its_traces_verify(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    num_traces = len(stored(folder / name))
    assert num_traces >= 2
    assert main(["verify", str(folder / name), "--dataset_path", str(folder / "photos")]) == 0
    assert f"{num_traces} matched, 0 mismatched" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", FLAGS)
def test_its_traces_are_kept_and_its_turns_used(name: str, folder: Path) -> None:
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
