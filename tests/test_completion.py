"""Commands, flags and their values are completed: in a real shell where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from distil.cli import COMMANDS, main


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("distil", "ver"), "verify"),
        (("distil", "run", "--max_w"), "--max_workers"),
        (("distil", "run", "--tool_mode", "na"), "native"),
        (("distil", "run", "--output_dir", "trac"), "traces"),
        (("distil", "completion", "z"), "zsh"),
    ],
)
def test_bash_completes(
    words: tuple[str, ...], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "traces").mkdir()
    path = tmp_path / "distil.bash"
    path.write_text(script("bash", capsys))
    line = " ".join(words)
    command = (
        f"source {path}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; COMP_LINE='{line}'; "
        f"COMP_POINT={len(line)}; $(complete -p distil | sed 's/.*-F \\([^ ]*\\).*/\\1/') distil {words[-1]} "
        f'{words[-2]}; echo "${{COMPREPLY[@]}}"'
    )
    result = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True
    )
    assert result.stdout.split() == [expected], result.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_names_every_command_and_is_sound(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = script(shell, capsys)
    for command in COMMANDS:
        assert command.name in text
    assert "max_workers" in text and "no_keep_going" not in text
    path = tmp_path / "script"
    path.write_text(text)
    if shutil.which(shell):
        subprocess.run([shell, "-n", str(path)], timeout=30, check=True)


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("distil ver", "verify"),
        ("distil run --max_w", "--max_workers"),
        ("distil run --tool_mode na", "native"),
    ],
)
def test_fish_completes(line: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "distil.fish"
    path.write_text(script("fish", capsys))
    command = f"source {path}; complete -C '{line}'"
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    result = subprocess.run(
        ["fish", "-c", command], env=environment, capture_output=True, text=True, timeout=30, check=True
    )
    assert [found.split("\t")[0] for found in result.stdout.splitlines()] == [expected], result.stderr
