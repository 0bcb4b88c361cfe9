"""What a person may type, and what is said of a slip: flags, commands, values, examples."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from distil.cli import COMMANDS, Command, main, read_command, run_door
from distil.commands.flags import stated_flags


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The line in which a slip is told."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("flag", ["--max-workers", "--max_workers", "--max-work", "--max_work"])
@pytest.mark.parametrize("form", ["{} 7", "{}=7"])
def test_a_flag_may_be_written_with_dashes(flag: str, form: str) -> None:
    _, flags = read_command(["run", *form.format(flag).split(), "--system-prompt=a-b --c-d"])
    assert (flags.samples.max_workers, flags.teacher.system_prompt) == (7, "a-b --c-d")


def test_a_scripts_flags_may_be_written_with_dashes_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_door("view_traces_enhanced.py", ["traces", "--no-such-flag"])
    assert "unknown flag --no_such_flag" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "--max_wokers", "3"), "unknown flag --max_wokers: did you mean --max_workers?"),
        (("run", "--max-wokers=3"), "unknown flag --max_wokers: did you mean --max_workers?"),
        (("run", "--laser"), "unknown flag --laser; distil run --help lists them"),
        (("view", "traces", "--bach"), "unknown flag --bach: did you mean --batch?"),
        (("run", "photos"), "unexpected argument photos; flags begin with --"),
        (("rnu",), "unknown command rnu: did you mean run?"),
        (("with_tools",), "unknown command with_tools: did you mean with-tools?"),
        (("laser",), "unknown command laser; distil --help lists them"),
    ],
)
def test_a_slip_is_told_with_what_was_perhaps_meant(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in said(capsys, *arguments)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--max_workers", "must be a whole number of 1 or more"),
        ("--num_samples", "must be a whole number of 0 or more"),
        ("--seed", "must be a whole number"),
        ("--max_cost_usd", "must be an amount above 0"),
        ("--temperature", "must be a number from 0 to 2"),
        ("--code_timeout", "must be a number of seconds above 0"),
        ("--grace_seconds", "must be a number of seconds, 0 or more"),
        ("--price_per_million", "use IN,OUT"),
    ],
)
@pytest.mark.parametrize("value", ["many", "1_0x", "", "nan"])
def test_a_value_of_another_kind_is_told_without_names_of_the_code(
    flag: str, words: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = said(capsys, "run", flag, value)
    assert f"argument {flag}: {words}" in line
    assert "invalid" not in line and " _" not in line


def read_from_text(group: object) -> Iterator[str]:
    """The flags of a group, and of those within, that are read from their text."""
    for name, flag, value, _ in stated_flags(group):
        if flag.parse not in (str, Path) and not isinstance(value, bool):
            yield name


@pytest.mark.parametrize(
    ("command", "flag"),
    [(command.name, flag) for command in COMMANDS for flag in read_from_text(command.flags)],
)
def test_no_flags_error_shows_a_name_of_the_code(
    command: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = said(capsys, command, f"--{flag}", "many")
    assert f"argument --{flag}: " in line and "invalid" not in line and " _" not in line


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_help_has_examples_that_can_be_typed(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command.name, "--help"])
    text = capsys.readouterr().out
    lines = [line.strip() for line in text.splitlines() if line.startswith("  distil ")]
    assert 1 <= len(lines) <= 3
    for line in lines:
        chosen, _ = read_command(shlex.split(line.partition(" > ")[0])[1:])
        assert chosen is command


def test_the_help_of_a_script_shows_its_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_door("demo_concurrent.py", ["--help"])
    assert "  python demo_concurrent.py --api_base" in capsys.readouterr().out


def test_the_help_of_all_shows_examples(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert "examples:" in text and "  distil run --api_base" in text
