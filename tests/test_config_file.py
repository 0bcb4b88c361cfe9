"""Flags from a TOML file and from the environment: who wins, what is said of a slip, and such a file written."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import RunDoor
from hypothesis import given
from hypothesis import strategies as st
from scripted_teacher import ScriptedTeacher, says

from distil.cli import COMMANDS, main, read_command
from distil.commands.config_file import config_text
from distil.commands.flags import flags_json


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "distil.toml"
    path.write_text('max_workers = 6\nmax-turns = 3\nmodel = "a"\nkeep_going = true\nmax_cost_usd = 2.5\n')
    return path


def flags_of(*arguments: object, command: str = "run") -> dict[str, Any]:
    return flags_json(read_command([command, *map(str, arguments)])[1])


def test_flags_come_from_a_file(file: Path) -> None:
    found = flags_of("--config", file)
    expected = {"max_workers": 6, "max_turns": 3, "model": "a", "keep_going": True, "max_cost_usd": 2.5}
    assert {name: found[name] for name in expected} == expected
    assert flags_of(f"--config={file}") == found


def test_flags_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTIL_MAX_WORKERS", "8")
    monkeypatch.setenv("DISTIL_RETRY_FAILED", "yes")
    monkeypatch.setenv("DISTIL_MODEL", "")
    monkeypatch.setenv("DISTIL_CACHE", "/nowhere")
    found = flags_of()
    assert (found["max_workers"], found["retry_failed"], found["model"]) == (8, True, None)


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTIL_MAX_WORKERS", "8")
    monkeypatch.setenv("DISTIL_CONFIG", str(file))
    found = flags_of("--model", "b", "--no-keep-going")
    assert (found["max_workers"], found["max_turns"]) == (8, 3)
    assert (found["model"], found["keep_going"]) == ("b", False)
    assert flags_of("--max_workers", 4)["max_workers"] == 4  # though it is the default


def test_a_file_serves_several_commands(file: Path) -> None:
    assert flags_of("--config", file, command="doctor")["model"] == "a"
    assert flags_of("traces", "--config", file, command="verify")["max_workers"] == 6


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("max_wokers = 3", "unknown key max_wokers: did you mean max_workers?"),
        ("laser = 3", "unknown key laser; distil run --dump_config lists them"),
        ("max_workers = 'many'", 'max_workers = "many": must be a whole number of 1 or more'),
        ("max_workers = 2.5", "max_workers = 2.5: must be a whole number of 1 or more"),
        ("max_workers = true", "max_workers = true: must be a text or a number"),
        ("max_workers = [1, 2]", "max_workers = [1, 2]: must be a text or a number"),
        ("keep_going = 'yes'", 'keep_going = "yes": must be true or false'),
        ("tool_mode = 'natve'", 'tool_mode = "natve": must be one of auto, native, text'),
        ("[run]\nmax_workers = 2", "unknown key run"),
        ("max_workers = ", "is no TOML: Invalid value"),
        ("api_key = 'sk-secret-1'", "api_key: a key is never read from a file: export OPENAI_API_KEY"),
        ("api_base = 'http://me:sk-secret-1@host/v1'", "api_base holds a user name, password or query"),
        ("api_base = 'http://host/v1?key=sk-secret-1'", "api_base holds a user name, password or query"),
    ],
)
def test_a_slip_in_a_file_is_told_with_file_key_and_value(
    line: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.toml"
    path.write_text(line)
    with pytest.raises(SystemExit) as left:
        flags_of("--config", path)
    assert left.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert str(path) in said and words in said and "sk-secret" not in said


def test_a_file_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        flags_of("--config", "/nowhere/own.toml")
    assert "--config /nowhere/own.toml: No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("DISTIL_MAX_WORKER", "8", "DISTIL_MAX_WORKER names no flag: did you mean DISTIL_MAX_WORKERS?"),
        ("DISTIL_MAX_WORKERS", "0", "DISTIL_MAX_WORKERS=0: must be a whole number of 1 or more"),
        ("DISTIL_KEEP_GOING", "perhaps", "DISTIL_KEEP_GOING=perhaps: must be 1 or 0"),
        ("DISTIL_API_KEY", "sk-secret-1", "DISTIL_API_KEY is not read: export OPENAI_API_KEY"),
    ],
)
def test_a_slip_in_the_environment_is_told(
    variable: str,
    value: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as left:
        flags_of()
    said = capsys.readouterr().err
    assert left.value.code == 2 and words in said and "sk-secret" not in said


@pytest.mark.parametrize(
    "variable", ["DISTIL_TEST_CONTROLS", "DISTIL_ALL_MUTATIONS", "DISTIL_HOME", "DISTIL_"]
)
def test_variables_of_others_are_left_alone(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "1")
    flags_of()


def test_help_is_given_whatever_the_file_says(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["run", "--config", "/nowhere", "--help"])
    assert left.value.code == 0 and "--config FILE" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", [each.name for each in COMMANDS if each.takes_config and each.name != "verify"]
)
def test_a_dumped_file_says_the_same_again(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", 'a "b" \\ ü\x7f\n', "--max_tokens", "77", "--request_timeout_seconds", "0.1"]
    assert main([command, *given, "--dump_config"]) == 0
    text = capsys.readouterr().out
    assert set(tomllib.loads(text)) == {"model", "max_tokens", "request_timeout_seconds"}
    path = tmp_path / "dumped.toml"
    path.write_text(text)
    assert flags_of("--config", path, command=command) == flags_of(*given, command=command)


def test_a_dumped_file_explains_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "--max_workers", "8", "--price_per_million", "1,2,0.5", "--dump_config"])
    text = capsys.readouterr().out
    assert "# --- teacher ---" in text and "# of one turn (default: 2048)\n# max_tokens = 2048\n" in text
    assert "(default: 4)\nmax_workers = 8\n" in text
    assert 'price_per_million = "1.0,2.0,0.5"' in text
    uncommented = "\n".join(line.removeprefix("# ") for line in text.splitlines() if " = " in line)
    left_out = {"dry_run", "keep_pictures", "estimate_samples", "json"}  # those of one run, or of no flag
    assert set(tomllib.loads(uncommented)) == set(flags_of()) - left_out


def test_no_password_goes_into_a_dumped_file(capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "--api_base", "http://a/v1,http://me:sk-secret-1@host/v1", "--dump_config"])
    text = capsys.readouterr().out
    assert "sk-secret" not in text and "# api_base: holds" in text


@given(st.text(st.characters(exclude_categories=["Cs"])).filter(bool))
def test_every_text_comes_back_from_a_dumped_file(text: str) -> None:
    _, flags = read_command(["run", f"--system_prompt={text}"])
    assert tomllib.loads(config_text("run", flags, COMMANDS[0].flags)) == {"system_prompt": text}


def test_a_run_by_file_and_environment_keeps_what_came_of_them_in_its_record(
    run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    config = tmp_path / "own.toml"
    with ScriptedTeacher(lambda _: says("\\boxed{1, 2}")) as server:
        config.write_text(
            f"api_base = {server.api_base!r}\ndataset_path = {str(photos)!r}\nnum_samples = 5\n"
        )
        result = run_door(
            "demo_concurrent.py", "--config", config, "--output-dir", tmp_path / "out",
            env={"DISTIL_NUM_SAMPLES": "2", "DISTIL_TOOL_MODE": "native"},
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (record,) = json.loads((tmp_path / "out" / "run_record.json").read_text())["runs"]
    assert (record["options"]["num_samples"], record["options"]["tool_mode"]) == (2, "native")
    assert len(list((tmp_path / "out").glob("trace_*.json"))) == 2
