"""Marks beside a run: the last one counts, several processes lose none, and no run takes them away."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import PACKAGE, RunDoor
from hypothesis import given
from hypothesis import strategies as st
from scripted_teacher import ScriptedTeacher, says

from distil.cli import main
from distil.errors import FolderError, UsageError
from distil.records import SampleId
from distil.store.folder import README
from distil.store.marks import MARKS, MAX_NOTE_CHARS, UNCHANGED, Mark, append_mark, read_marks

THREE, LATER = SampleId(3), SampleId(3, 1)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / MARKS).read_text(encoding="utf-8").splitlines()]


def test_a_folder_without_marks_has_none(tmp_path: Path) -> None:
    assert read_marks(tmp_path) == {}


def test_a_line_holds_what_changed_and_the_last_one_counts_for_each_field(tmp_path: Path) -> None:
    append_mark(tmp_path, THREE, mark="keep")
    append_mark(tmp_path, THREE, note="a wide sky — 天")
    append_mark(tmp_path, LATER, mark="drop", note="blurred")
    append_mark(tmp_path, THREE, mark="drop")
    assert read_marks(tmp_path) == {THREE: Mark("drop", "a wide sky — 天"), LATER: Mark("drop", "blurred")}
    assert [sorted(line) for line in lines(tmp_path)] == [
        ["at", "mark", "sample_index"],
        ["at", "note", "sample_index"],
        ["at", "mark", "note", "rollout", "sample_index"],
        ["at", "mark", "sample_index"],
    ]


def test_null_takes_a_mark_or_a_note_away(tmp_path: Path) -> None:
    append_mark(tmp_path, THREE, mark="keep", note="good")
    append_mark(tmp_path, THREE, mark=None)
    assert read_marks(tmp_path) == {THREE: Mark(None, "good")}
    append_mark(tmp_path, THREE, note=None)
    assert read_marks(tmp_path) == {}


def test_nothing_is_written_where_nothing_changes(tmp_path: Path) -> None:
    append_mark(tmp_path, THREE)
    assert not (tmp_path / MARKS).exists()


def test_a_mark_that_there_is_not_and_a_note_without_end_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'keep', 'drop' or null, not 'maybe'"):
        append_mark(tmp_path, THREE, mark="maybe")
    with pytest.raises(UsageError, match="at most 10,000 characters"):
        append_mark(tmp_path, THREE, note="x" * (MAX_NOTE_CHARS + 1))
    assert not (tmp_path / MARKS).exists()


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"marks.jsonl cannot be written"):
        append_mark(tmp_path / "gone", THREE, mark="keep")


@pytest.mark.parametrize(
    "torn", [b'{"sample_index": 4, "mark": "dr', b'{"sample_index": 4, "mark": "drop"}', b"\xff\xfe"]
)
def test_half_a_line_counts_for_nothing_and_spoils_no_other(tmp_path: Path, torn: bytes) -> None:
    append_mark(tmp_path, THREE, mark="keep")
    with (tmp_path / MARKS).open("ab") as file:
        file.write(torn)
    assert read_marks(tmp_path) == {THREE: Mark("keep")}
    append_mark(tmp_path, THREE, note="after")
    assert read_marks(tmp_path)[THREE] == Mark("keep", "after")


def test_lines_of_other_forms_are_passed_over(tmp_path: Path) -> None:
    written = [
        "[]", "3", "{}", '{"sample_index": "3", "mark": "keep"}', '{"sample_index": 3, "mark": "perhaps"}',
        '{"sample_index": 3, "mark": ["keep"]}', '{"sample_index": 3, "note": 5}', "",
        '{"sample_index": 3, "mark": "keep"}',
        '{"sample_index": 3, "mark": {"a": 1}, "note": "kept"}',
    ]  # fmt: skip
    (tmp_path / MARKS).write_text("\n".join(written) + "\n")
    assert read_marks(tmp_path) == {THREE: Mark("keep", "kept")}


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from(["keep", "drop", None, UNCHANGED]),
            st.sampled_from(["a", 'a "b"\n\\', "天", None, UNCHANGED]),
        ),
        max_size=8,
    )
)
def test_what_is_read_is_what_was_said_last(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, Any, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("marks")
    expected: dict[int, list[Any]] = {}
    for index, mark, note in changes:
        append_mark(folder, SampleId(index), mark=mark, note=note)
        kept = expected.setdefault(index, [None, None])
        expected[index] = [
            now if now is not UNCHANGED else before for now, before in zip((mark, note), kept, strict=True)
        ]
    assert read_marks(folder) == {
        SampleId(index): Mark(*kept) for index, kept in expected.items() if kept != [None, None]
    }


MARKER = """
import sys
from pathlib import Path
from distil.records import SampleId
from distil.store.marks import append_mark
first, folder = int(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
sys.stdin.read()  # until both are to start
for number in range(500):
    append_mark(folder, SampleId(first + 2 * number), mark="keep", note="x" * (number * 37 % 5000))
"""


def test_two_processes_that_mark_at_once_lose_nothing(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MARKER, str(first), str(tmp_path)],
            cwd=PACKAGE.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for first in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    marks = read_marks(tmp_path)
    assert set(marks) == {SampleId(index) for index in range(1000)}
    assert all(
        marks[SampleId(index)].note == "x" * (index // 2 * 37 % 5000) or index < 2 for index in range(1000)
    )


def test_marks_stay_when_a_run_goes_on_makes_all_again_or_is_cleaned_up(
    photos: Path, tmp_path: Path, run_door: RunDoor
) -> None:
    folder = tmp_path / "out"
    with ScriptedTeacher(lambda _: says("\\boxed{1, 2}")) as server:

        def run(*flags: object) -> None:
            result = run_door(
                "demo_distillation.py", "--api_base", server.api_base, "--dataset_path", photos,
                "--keep_going", "--num_samples", 2, "--output_dir", folder, *flags,
            )  # fmt: skip
            assert result.returncode == 0, result.stderr

        run()
        append_mark(folder, SampleId(1), mark="drop", note="no sky")
        before = (folder / MARKS).read_bytes()
        run()
        run("--temperature", 0.1, "--on_change", "redo")
        run("--temperature", 0.2, "--on_change", "keep")
    assert main(["clean", str(folder)]) == 0
    assert (folder / MARKS).read_bytes() == before
    said = (folder / README).read_text(encoding="utf-8")
    assert MARKS in said
    assert "index.sqlite" in said
