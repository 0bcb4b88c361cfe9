"""What a run says can be used as it stands: the bar at 80 columns, the folder's summary, commands, levels."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import PACKAGE, RunDoor, photo_bytes
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says

from distil.records import Outcome, SampleId
from distil.store.summary import TraceSummary
from distil.teacher.climber import LevelState, Reason
from distil.teacher.slots import Slots
from distil.terminal import bar as bars
from distil.terminal.bar import level_text
from distil.terminal.terminal import Terminal


def zoom_once(request: dict[str, Any]) -> Any:
    if is_probe(request) or num_turns(request) == 0:
        return calls(("image_zoom_in_tool", {"bbox_2d": [0, 0, 500, 500]}))
    return says("\\boxed{48.8566, 2.3522}")


@pytest.mark.parametrize("reason", Reason)
def test_the_level_is_told_in_words_that_mean_something(reason: Reason) -> None:
    text = level_text(LevelState(12, 64, 20, reason, {}))
    assert text.startswith("12 of 64 requests at once: ")
    if reason is Reason.QUEUE:
        assert text == "12 of 64 requests at once: more only waited longer"


def summary(number: int, tokens: int) -> TraceSummary:
    return TraceSummary(
        sample_id=SampleId(number), task="geolocation", parse_success=True, metrics={"distance@km": 1.0},
        score=0.708, turns=2, stop_reason="answered", calls={"zoom": 12_345}, failed_calls={},
        prompt_tokens=tokens, completion_tokens=0,
    )  # fmt: skip


@pytest.mark.parametrize("tokens", [999_400, 12_300_000])
def test_score_calls_and_tokens_are_seen_at_80_columns(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    made: Any = bars.tqdm
    narrow = {"file": shown, "ncols": 80, "dynamic_ncols": False, "mininterval": 0}
    monkeypatch.setattr(bars, "tqdm", lambda **kept: made(**kept | narrow))
    bar = bars.Progress(10_000, 4_511, Slots(64), Terminal(io.StringIO()))
    bar._bar.start_t -= 4354  # an hour, 12 minutes and 34 seconds ago
    with bar:
        bar.count(Outcome(SampleId(0), summary(0, tokens), None))
        (*_, last) = shown.getvalue().split("\r")
    text = "12.3M" if tokens > 1e6 else "999k"
    assert f", score 0.708, 12345 calls, {text} tokens" in last
    assert len(last.rstrip()) <= 80


def run(run_door: RunDoor, server: ScriptedTeacher, photos: Path, folder: Path, *flags: object) -> Any:
    return run_door(
        "demo_concurrent.py", "--api_base", server.api_base, "--dataset_path", photos, "--output_dir", folder,
        *flags,
    )  # fmt: skip


def test_after_a_resume_the_summary_is_of_the_folder(photos: Path, tmp_path: Path, run_door: RunDoor) -> None:
    with ScriptedTeacher(zoom_once) as server:
        first = run(run_door, server, photos, tmp_path, "--num_samples", 4)
        second = run(run_door, server, photos, tmp_path, "--num_samples", 6)
        third = run(run_door, server, photos, tmp_path, "--num_samples", 6)
        fewer = run(run_door, server, photos, tmp_path, "--num_samples", 1)
    assert "─ this run ─" in first.stdout and "4 finished, 0 failed in" in first.stdout
    assert "─ this folder, 2 of them by this run ─" in second.stdout
    assert "│ tool calls              6 (1.00 a trace) " in second.stdout
    assert "This run: 2 finished, 0 failed, 4 were there already in" in second.stdout
    for later in (third, fewer):
        assert "─ this folder, 0 of them by this run ─" in later.stdout
        assert "│ traces                  6 " in later.stdout


def test_the_commands_at_the_end_can_be_pasted(photos: Path, tmp_path: Path, run_door: RunDoor) -> None:
    folder = tmp_path / "my 'first' traces; $HOME"
    with ScriptedTeacher(zoom_once) as server:
        result = run(run_door, server, photos, folder, "--num_samples", 1)
    lines = [line for line in result.stdout.splitlines() if ": " in line and "distil v" in line]
    assert [shlex.split(line.partition(": ")[2])[2] for line in lines] == [str(folder)] * 2


@pytest.mark.parametrize(
    ("key", "words"), [("", ", which is not set)"), ("sk-of-nobody-1", "OPENAI_API_KEY's)")]
)
def test_a_refused_key_is_told_with_the_name_of_its_variable(
    key: str, words: str, photos: Path, tmp_path: Path, run_door: RunDoor
) -> None:
    refuses = (401, {"error": {"message": "bad key"}})
    with ScriptedTeacher(lambda _: refuses, listing=refuses) as server:
        result = run_door(
            "demo_concurrent.py", "--api_base", server.api_base, "--dataset_path", photos,
            "--output_dir", tmp_path, env={"OPENAI_API_KEY": key},
        )  # fmt: skip
    assert result.returncode == 2
    assert "bad key (the key is OPENAI_API_KEY's" in result.stderr and words in result.stderr


def pictures(folder: Path, photos_of: bytes) -> Path:
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.jpg").write_bytes(photos_of)
    rows = "".join(f"{number}.jpg,1,2\n" for number in range(2))
    (folder / "metadata.csv").write_text("file_name,lat,lon\n" + rows)
    return folder


@pytest.mark.parametrize("flags", [(), ("--quiet",)])
def test_a_librarys_chatter_does_not_come_before_our_own_line(flags: tuple[str, ...], tmp_path: Path) -> None:
    data = pictures(tmp_path / "photos", photo_bytes(1))
    log = tmp_path / "both"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf")}
    environment.pop("HF_DATASETS_DISABLE_PROGRESS_BARS", None)  # of a command that ran in this process
    with log.open("w") as both:
        subprocess.run(
            [sys.executable, "demo_concurrent.py", "--api_base", "http://127.0.0.1:9/v1", "--dataset_path", data,
             "--dry_run", "--output_dir", tmp_path / "out", *flags],
            cwd=PACKAGE, env=environment, stdout=both, stderr=both, check=True,
        )  # fmt: skip
    lines = [line for line in log.read_text().replace("\r", "\n").split("\n") if line.strip()]
    if flags:
        assert lines == []
    else:
        assert lines[0] == f"Dataset: {data}" and any("examples" in line for line in lines)
