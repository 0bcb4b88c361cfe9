"""`--json` gives one document on standard output, `--quiet` nothing, `--log_file` all that is said."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import PACKAGE, RunDoor
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says
from seeing_teacher import Seeing

from distil.errors import UsageError
from distil.terminal.terminal import Terminal


def policy(request: dict[str, Any]) -> Any:
    if is_probe(request) or num_turns(request) == 0:
        return calls(("image_zoom_in_tool", {"bbox_2d": [0, 0, 500, 500]}))
    return says("\\boxed{48.8566, 2.3522}")


@pytest.fixture(scope="module")
def traces(photos: Path, run_door: RunDoor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("json") / "traces"
    with ScriptedTeacher(policy) as server:
        run_door(
            "demo_concurrent.py", "--api_base", server.api_base, "--dataset_path", photos, "--num_samples", 4,
            "--output_dir", folder,
        )  # fmt: skip
    return folder


def document(result: Any) -> dict[str, Any]:
    """All of standard output, read as one document."""
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_view_gives_one_trace(traces: Path, run_door: RunDoor) -> None:
    found = document(run_door("view_traces_enhanced.py", traces / "trace_00000.json", "--json"))
    assert (found["sample_index"], found["turns"], found["score"]) == (0, 2, 1.0)
    assert found["calls"] == {"image_zoom_in_tool": 1} and found["metrics"] == {"distance@km": 0.0}
    assert (found["answer"], found["truth"]) == ({"lat": 48.8566, "lon": 2.3522},) * 2
    assert (found["prompt_tokens"], found["completion_tokens"]) == (200, 20)


def test_view_gives_a_folder_and_what_is_broken_in_it(
    traces: Path, run_door: RunDoor, tmp_path: Path
) -> None:
    found = document(run_door("view_traces_enhanced.py", traces, "--json"))
    assert [trace["sample_index"] for trace in found["traces"]] == [0, 1, 2, 3]
    totals = found["totals"]
    assert (totals["num_traces"], totals["num_answers"], totals["calls"]) == (4, 4, {"image_zoom_in_tool": 4})
    assert totals["metrics"]["distance@km"]["median"] > 0
    (tmp_path / "trace_00009.json").write_text("{")
    result = run_door("view_traces_enhanced.py", tmp_path, "--json", "--batch")
    assert result.returncode == 1 and len(document(result)["broken"]) == 1
    assert document(result)["totals"]["mean_score"] is None


def test_verify_gives_counts_and_what_does_not_match(traces: Path, run_door: RunDoor, tmp_path: Path) -> None:
    result = run_door("cli.py", "verify", traces, "--json")
    assert result.returncode == 0, result.stderr
    found = document(result)
    assert (found["num_traces"], found["num_matched"], found["traces"]) == (4, 4, [])
    assert len(document(run_door("cli.py", "verify", traces, "--json", "--verbose"))["traces"]) == 4
    text = (traces / "trace_00001.json").read_text()
    edited = tmp_path / "trace_00001.json"
    edited.write_text(text.replace("\\\\boxed", "\\\\boxes"))
    result = run_door("cli.py", "verify", tmp_path, "--json")
    assert result.returncode == 1
    ((bad,), found) = (document(result)["traces"], document(result))
    assert (bad["path"], bad["verdict"]) == (str(edited), "edited_trace")
    assert found["verdicts"]["edited_trace"] == 1 and found["verdicts"]["matched"] == 0


def test_the_doctor_gives_what_it_found(run_door: RunDoor) -> None:
    with ScriptedTeacher(Seeing()) as server:
        result = run_door("cli.py", "doctor", "--api_base", server.api_base, "--json")
    found = document(result)
    (one,) = found["servers"]
    assert (one["api_base"], one["model"], one["tool_mode"]) == (
        server.api_base,
        "scripted-qwen3-vl",
        "native",
    )
    assert {finding["result"] for finding in one["findings"]} <= {"yes", "partly", "no", "not asked"}
    assert found["exit_code"] == result.returncode


def test_an_estimate_gives_figures(photos: Path, run_door: RunDoor, tmp_path: Path) -> None:
    with ScriptedTeacher(policy) as server:
        result = run_door(
            "cli.py", "estimate", "--api_base", server.api_base, "--dataset_path", photos, "--num_samples", 0,
            "--estimate_samples", 3, "--output_dir", tmp_path / "out", "--json", "--price_per_million", "1,2",
        )  # fmt: skip
    found = document(result)
    assert (found["num_samples"], found["num_finished"], found["num_left"]) == (12, 3, 9)
    assert found["tokens"]["sample"] == 220 and found["tokens"]["to_do"] == 9 * 220
    assert found["cost_usd"]["whole"] == pytest.approx(12 * (200 + 40) / 1e6)
    assert len(found["seconds"]["whole_range"]) == 2 and found["notes"]
    assert "Model: scripted-qwen3-vl" in result.stderr


def run(run_door: RunDoor, photos: Path, folder: Path, *flags: object, teacher: Any = policy) -> Any:
    with ScriptedTeacher(teacher) as server:
        return run_door(
            "demo_concurrent.py", "--api_base", server.api_base, "--dataset_path", photos, "--num_samples", 3,
            "--output_dir", folder, *flags,
        )  # fmt: skip


def test_a_quiet_run_says_nothing(photos: Path, run_door: RunDoor, tmp_path: Path) -> None:
    def plausible(request: dict[str, Any]) -> Any:
        usage = {"prompt_tokens": 5000 * (1 + num_turns(request)), "completion_tokens": 10}
        return policy(request) | {"usage": usage}

    result = run(run_door, photos, tmp_path / "out", "--quiet", teacher=plausible)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert len(list((tmp_path / "out").glob("trace_*.json"))) == 3


def test_a_quiet_run_says_its_warnings(photos: Path, run_door: RunDoor, tmp_path: Path) -> None:
    result = run(run_door, photos, tmp_path / "out", "--quiet", teacher=lambda _: says("I do not know."))
    assert result.stdout == "" and result.stderr.startswith("Warning: ")
    assert all(line.startswith("Warning: ") for line in result.stderr.splitlines())


def test_the_log_file_has_all_that_is_said_with_its_time(
    photos: Path, run_door: RunDoor, tmp_path: Path
) -> None:
    log = tmp_path / "run.log"
    result = run(run_door, photos, tmp_path / "out", "--log_file", log)
    lines = log.read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d ", line) for line in lines)
    logged = [line.partition(" ")[2] for line in lines]
    for said in result.stdout.splitlines():
        if not said.startswith(("│", "╭", "╰")):
            assert said in logged
    assert any("mean score" in line for line in logged)
    again = run(run_door, photos, tmp_path / "out", "--log_file", log, "--quiet", "--max_turns", 2)
    assert again.returncode == 2
    added = log.read_text(encoding="utf-8").splitlines()[len(lines) :]
    assert "Error: " in added[-1] and "made with other settings" in added[-1]


def test_a_log_file_that_cannot_be_opened_is_told(photos: Path, run_door: RunDoor, tmp_path: Path) -> None:
    result = run(run_door, photos, tmp_path / "out", "--log_file", "/nowhere/run.log")
    assert result.returncode == 2 and "--log_file /nowhere/run.log: No such file" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full disk")
def test_a_log_file_on_a_full_disk_is_given_up_and_nothing_else() -> None:
    said = io.StringIO()
    terminal = Terminal(said, 200)
    with terminal.logging_to("/dev/full"):
        terminal.say("one")
        terminal.say("two")
    lines = said.getvalue().splitlines()
    assert lines[1:] == ["one", "two"] and "given up: No space left" in lines[0]


def test_an_error_ends_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(UsageError), Terminal(io.StringIO()).logging_to(str(log)):
        raise UsageError("wrong\nin two lines")
    assert log.read_text().endswith(" Error: wrong in two lines\n")


@pytest.mark.parametrize("flags", ["", "--json", "--batch"])
def test_a_view_whose_reader_leaves_ends_with_0(flags: str, traces: Path, tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    data = (traces / "trace_00000.json").read_bytes()
    for number in range(800):
        (many / f"trace_{number:05d}.json").write_bytes(data)
    command = (
        f"set -o pipefail; {sys.executable} view_traces_enhanced.py {many} --verbose {flags} | head -n 1"
    )
    result = subprocess.run(
        ["bash", "-c", command], check=False, cwd=PACKAGE, capture_output=True, text=True, timeout=120
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_a_run_whose_reader_leaves_goes_on(photos: Path, tmp_path: Path) -> None:
    def one_fails(request: dict[str, Any]) -> Any:
        fails = not is_probe(request) and request["seed"] % 3 == 0
        return (400, {"error": {"message": "no"}}) if fails else policy(request)

    with ScriptedTeacher(one_fails) as server:
        command = (
            f"{sys.executable} demo_concurrent.py --api_base {server.api_base} --dataset_path {photos} "
            f"--num_samples 12 --output_dir {tmp_path}/out; echo $? > {tmp_path}/rc"
        )
        subprocess.run(["bash", "-c", f"({command}) | true"], cwd=PACKAGE, timeout=120, check=True)
    failed = (tmp_path / "out" / "failed_samples.jsonl").read_text().splitlines()
    assert (tmp_path / "rc").read_text() == "1\n"
    assert failed and len(list((tmp_path / "out").glob("trace_*.json"))) == 12 - len(failed)


def test_every_key_of_a_document_stands_in_the_docs(traces: Path, run_door: RunDoor) -> None:
    page = (PACKAGE.parent / "docs" / "running.md").read_text(encoding="utf-8")
    one = document(run_door("view_traces_enhanced.py", traces / "trace_00000.json", "--json"))
    folder = document(run_door("view_traces_enhanced.py", traces, "--json"))
    checked = document(run_door("cli.py", "verify", traces, "--json"))
    for key in {*one, *folder, *folder["totals"], *checked} - {"rollout"}:
        assert f"`{key}`" in page, key
