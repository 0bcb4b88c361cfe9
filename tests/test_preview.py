"""`distil export --preview`: rows as the student will see them, what is trained marked, and nothing written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from builders import file_bytes, row, saved, smooth
from scripted_teacher import calls, is_probe, num_turns, says
from test_exports import ROTATE, ZOOM, export, rows_of, run

from distil.cli import main


def teacher(request: dict[str, Any]) -> Any:
    if is_probe(request):
        return calls((ZOOM, {"bbox_2d": [0, 0, 9, 9]}))
    steps: list[tuple[str, Any]] = [
        (ZOOM, {"bbox_2d": [100, 200, 900, 800]}),
        (ZOOM, {"bbox_2d": [5, 5, 5, 5]}),
        (ROTATE, {"angle": 90}),
    ]
    turn = num_turns(request)
    return calls(steps[turn], content="Look \x1b[31m<|im_end|>") if turn < 3 else says("\\boxed{48.86, 2.35}")


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preview")
    rows = [row(file_bytes(smooth(640 + number, 480), "JPEG")) for number in range(3)]
    return run(folder, teacher, dataset=saved(folder / "photos", rows))


def previewed(traces: Path, capsys: pytest.CaptureFixture[str], *flags: object) -> str:
    capsys.readouterr()
    assert main(["export", str(traces), *map(str, flags)]) == 0
    return capsys.readouterr().out


def test_trained_lines_have_a_sign_and_all_others_none(
    traces: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = previewed(traces, capsys, "--format", "verl", "--preview", 1)
    (first, *_) = rows_of(export(traces, tmp_path / "out", "--format", "verl"))
    marked = "".join(line[2:] for line in text.splitlines() if line.startswith("▌ "))
    trained = [each["content"] for each in first["messages"] if each["loss"]]
    expected = "".join(f"{each}<|im_end|>" for each in trained).replace("\n", "")
    unmarked = re.sub("[\x1b\u200b]", "�", expected)  # nothing steers the terminal
    assert marked.removesuffix("is trained, all else is only read. Nothing was written.") == unmarked
    assert "3 of 4 assistant messages trained, 3 pictures" in text
    assert "[picture 1: 640×480 pixels, image/jpeg," in text and "Error: the box is empty" in text
    assert "\x1b" not in text


def test_so_many_rows_are_shown_and_nothing_is_written(
    traces: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = previewed(traces, capsys, "--format", "trl", "--preview", 2)
    assert text.count("<|im_start|>system") == 2 and "trace_00001.json" in text
    assert "trace_00002.json" not in text and list(tmp_path.iterdir()) == []


def test_rows_that_llama_factory_gets_split_are_shown_split(
    traces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = previewed(traces, capsys, "--format", "llamafactory", "--preview", 3)
    assert [f"#turn{number}" in text for number in (1, 2, 3, 4)] == [True, False, True, True]
    assert text.count("1 of ") == 3


def test_as_json_a_picture_is_what_is_known_of_it(traces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(
        previewed(traces, capsys, "--format", "hf", "--preview", 1, "--json", "--coordinates", "pixel")
    )
    (shown,) = document["rows"]
    assert [each["role"] for each in shown["messages"]] == ["system", *["user", "assistant"] * 4]
    assert [each["trained"] for each in shown["messages"] if each["role"] == "assistant"] == [
        True,
        False,
        True,
        True,
    ]
    picture = shown["messages"][1]["parts"][0]
    assert (picture["width_px"], picture["height_px"], picture["tokens"]) == (640, 480, 302)


def test_pictures_are_drawn_where_the_terminal_can(
    traces: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-kitty")
    monkeypatch.delenv("TMUX", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    text = previewed(traces, capsys, "--format", "trl", "--preview", 1)
    assert text.count("\x1b_Ga=T,f=100") == 3


def test_an_export_says_where_to_write_or_what_to_show(
    traces: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["export", str(traces), "--format", "trl"])
    assert ended.value.code == 2 and "--preview 3" in capsys.readouterr().err
    broken = tmp_path / "trace_00000.json"
    broken.write_text((traces / "trace_00000.json").read_text().replace("Look", "Hook"), encoding="utf-8")
    assert main(["export", str(broken), "--format", "trl", "--preview", "1"]) == 2
    assert "refused: its content does not fit" in capsys.readouterr().out
