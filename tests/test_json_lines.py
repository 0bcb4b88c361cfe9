"""Files of one object a line: what a crash leaves of a line is no line, and harms no other."""

from __future__ import annotations

import json
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distil.store.json_lines import LineFile, read_lines

objects = st.dictionaries(st.text(max_size=9), st.one_of(st.integers(), st.text("a\r\n\u2028é", max_size=9)))


def add(path: Path, *values: Any) -> None:
    with closing(LineFile(path)) as file:
        file.append(*values)


def whole(path: Path) -> list[Any]:
    return [value for value, _ in read_lines(path) if value is not None]


@given(st.lists(objects.filter(bool), max_size=5), objects)
def test_a_file_torn_at_any_byte_gives_its_whole_lines_and_takes_another(
    values: list[Any], more: Any
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lines.jsonl"
        add(path, *values)
        data = path.read_bytes()
        for cut in range(len(data) + 1):
            path.write_bytes(data[:cut])
            kept = values[: data[:cut].count(b"\n")]
            assert whole(path) == kept
            add(path, more)
            assert whole(path) == [*kept, more]


def test_a_long_torn_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n' + b"x" * 20_000)
    add(path, {"b": 2})
    assert path.read_bytes() == b'{"a": 1}\n{"b": 2}\n'


@pytest.mark.parametrize(
    "damage", [b"[]\n", b"7\n", b"\n", b"\xff\n", b"{'a'}\n", b"[" * 100_000 + b"\n", b"\x00\x00\x00{}\n"]
)
def test_a_damaged_line_is_told_apart_and_hides_no_other(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n' + damage + json.dumps({"b": 2}).encode() + b"\n")
    first = len(b'{"a": 1}\n')
    assert [value for value, _ in read_lines(path)] == [{"a": 1}, None, {"b": 2}]
    assert [end for _, end in read_lines(path)] == [first, first + len(damage), path.stat().st_size]


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert list(read_lines(tmp_path / "lines.jsonl")) == []
