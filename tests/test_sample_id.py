"""A sample is known by its row and rollout: names, seeds and lines take that from one place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says

from distil.cli import main
from distil.messages.read import parse_reply
from distil.records import Reply, SampleId
from distil.rollout import turn_seed
from distil.store.journal import Journal, unfinished_samples
from distil.store.trace_file import find_trace_files, trace_name

SAMPLE_IDS = st.builds(SampleId, st.integers(0, 10**6), st.integers(0, 300))


def test_a_rows_first_rollout_is_written_as_if_there_were_no_other() -> None:
    sample_id = SampleId(12)
    assert (trace_name(sample_id), str(sample_id)) == ("trace_00012.json", "12")
    assert json.dumps(sample_id.as_json()) == '{"sample_index": 12}'
    assert [turn_seed(3, sample_id, turn) for turn in (1, 2)] == [96557955, 1838149391]


def test_a_later_rollout_has_its_number_behind_the_row() -> None:
    sample_id = SampleId(12, 1)
    assert (trace_name(sample_id), str(sample_id)) == ("trace_00012_r1.json", "12_r1")
    assert sample_id.as_json() == {"sample_index": 12, "rollout": 1}
    assert turn_seed(3, sample_id, 1) != turn_seed(3, SampleId(12), 1)


@given(SAMPLE_IDS)
def test_what_is_written_of_a_sample_is_read_back(sample_id: SampleId) -> None:
    assert SampleId.from_json(json.loads(json.dumps(sample_id.as_json()))) == sample_id
    assert SampleId.from_file_part(sample_id.file_part) == sample_id


@pytest.mark.parametrize(
    "text", ["", "12", "00012_r0", "00012_r01", "00012_", "00012_r", "x", "00012.5", "-0001", "٠٠٠١٢"]
)
def test_other_names_are_of_no_sample(text: str) -> None:
    assert SampleId.from_file_part(text) is None


@pytest.mark.parametrize(
    "value", [{"sample_index": "1"}, {"sample_index": True}, {"sample_index": 1, "rollout": 0.5}]
)
def test_what_is_no_number_names_no_sample(value: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="no sample"):
        SampleId.from_json(value)


@given(st.lists(SAMPLE_IDS, unique=True, max_size=20))
def test_traces_are_listed_by_row_and_then_by_rollout(
    tmp_path_factory: Any, sample_ids: list[SampleId]
) -> None:
    folder = tmp_path_factory.mktemp("names")
    for name in (*map(trace_name, sample_ids), "trace_copy.json"):
        (folder / name).touch()
    names = [path.name for path in find_trace_files(folder)]
    assert names == [*map(trace_name, sorted(sample_ids)), "trace_copy.json"]


def test_each_rollout_has_a_journal_of_its_own(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "s")
    for sample_id in (SampleId(3, 1), SampleId(3)):
        journal.of(sample_id, "f").journaled(lambda *_: _reply())([b"?"], 0)
    assert list(unfinished_samples(tmp_path)) == [SampleId(3), SampleId(3, 1)]
    journal.drop([SampleId(3)])
    assert (journal.num_turns(SampleId(3)), journal.num_turns(SampleId(3, 1))) == (0, 1)


def _reply() -> Reply:
    return parse_reply(json.dumps(says("yes")).encode())


# --- a run of two rollouts a row

TWICE = ("--rollouts_per_sample", "2")


def teacher(request: dict[str, Any]) -> Any:
    """One zoom, then an answer by the seed; the second rollout of row 1 is not answered."""
    if is_probe(request) or num_turns(request) == 0:
        return calls(("image_zoom_in_tool", {"bbox_2d": [0, 0, 500, 500]}))
    if request["seed"] == turn_seed(0, SampleId(1, 1), 2):
        return 400, {"error": {"message": "no", "type": "invalid_request_error"}}
    return says(f"It is \\boxed{{{request['seed'] % 90}, 2.35}}")


def test_several_rollouts_of_a_row_run_resume_verify_and_are_shown(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    with ScriptedTeacher(teacher) as server:
        flags = [
            "--api_base",
            server.api_base,
            "--dataset_path",
            str(photos),
            "--output_dir",
            str(folder),
            *TWICE,
        ]
        assert main(["run", *flags, "--num_samples", "2"]) == 1
        num_asked = len(server.requests)
        assert main(["run", *flags, "--num_samples", "2"]) == 1
        assert len(server.requests) == num_asked + 1, "only the turn that failed is asked again"
    names = [path.name for path in find_trace_files(folder)]
    assert names == ["trace_00000.json", "trace_00000_r1.json", "trace_00001.json"]
    first, second = (json.loads((folder / name).read_text()) for name in names[:2])
    assert (first["sample_index"], second["sample_index"], second["rollout"]) == (0, 0, 1)
    assert "rollout" not in first
    assert first["final_response"] != second["final_response"], "each rollout has seeds of its own"
    timings = [json.loads(line) for line in (folder / "timings.jsonl").read_text().splitlines()]
    assert sorted((line["sample_index"], line.get("rollout", 0)) for line in timings) == [
        (0, 0),
        (0, 1),
        (1, 0),
    ]
    (failure,) = map(json.loads, (folder / "failed_samples.jsonl").read_text().splitlines())
    assert (failure["sample_index"], failure["rollout"], failure["runs"], failure["turns_spent"]) == (
        1,
        1,
        2,
        1,
    )
    assert list(failure)[:3] == ["sample_index", "rollout", "kind"]
    assert list(unfinished_samples(folder)) == [SampleId(1, 1)]
    capsys.readouterr()
    assert main(["verify", str(folder)]) == 0
    assert main(["view", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "3 matched" in printed and "0_r1" in printed


def test_a_rollout_under_anothers_name_is_found_out(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    with ScriptedTeacher(teacher) as server:
        flags = [
            "--api_base",
            server.api_base,
            "--dataset_path",
            str(photos),
            "--output_dir",
            str(folder),
            *TWICE,
        ]
        assert main(["run", *flags, "--num_samples", "1"]) == 0
        (folder / "trace_00000.json").write_bytes((folder / "trace_00000_r1.json").read_bytes())
        assert main(["verify", str(folder)]) == 1
        assert "it is of row 0_r1, whose file is trace_00000_r1.json" in capsys.readouterr().out
        assert main(["run", *flags, "--num_samples", "1"]) == 2
        assert "holds the trace of row 0_r1, not of row 0" in capsys.readouterr().err
