"""A failed sample's line: its kinds are those of the page, and what is read back is what was written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from distil.records import Failure, FailureKind, SampleId
from distil.store.folder import FAILED_SAMPLES, _failure_json, read_failures

PAGE = Path(__file__).parent.parent / "docs" / "trace-format.md"


def test_the_kinds_of_failures_are_those_of_the_page() -> None:
    found = re.search(r"`failed_samples.jsonl` \|.*?`kind` \((.*?)\)", PAGE.read_text(encoding="utf-8"))
    assert found is not None
    assert re.findall(r"`(\w+)`", found[1]) == list(FailureKind)


@pytest.mark.parametrize("kind", FailureKind)
def test_a_failure_is_read_back_as_it_was_written(kind: FailureKind, tmp_path: Path) -> None:
    failure = Failure(SampleId(7), kind, "no\u2028reply", 503, 3, 2, 1)
    path = tmp_path / FAILED_SAMPLES
    path.write_text(json.dumps(_failure_json(failure), ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_failures(path) == ({failure.sample_id: failure}, 0)
    assert type(read_failures(path)[0][failure.sample_id].kind) is FailureKind


@pytest.mark.parametrize(
    "line",
    [
        '{"sample_index": 7, "kind": "other", "message": "no"}',
        '{"sample_index": "7", "kind": "file", "message": "no"}',
        '{"sample_index": 7, "message": "no"}',
        '{"sample_index": 7, "kind": "file", "mess',
    ],
)
def test_a_line_that_is_no_failure_is_counted(line: str, tmp_path: Path) -> None:
    path = tmp_path / FAILED_SAMPLES
    path.write_text(line + "\n", encoding="utf-8")
    assert read_failures(path) == ({}, 1)
