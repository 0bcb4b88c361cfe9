"""Whole conversations of strange replies over every kind of picture, broken off and resumed.

Nothing a reply holds may lose a sample: each ends as a trace that is readable, verified, restored by the
recipe and the same to the byte after a resume, or as a failure that says of what kind it is.

The first NUM_CASES of one seed are held, the same in every run; `--fuzz_seconds 3600` goes on for an hour;
`--fuzz_case SEED:NUMBER` runs the one case a failure names.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import pytest
from builders import saved
from conversations import Bench, Bodies, Body, Run, read_figures
from scripted_teacher import says
from strange_replies import PICTURES, Strange

from distil.errors import FolderError, TeacherError
from distil.records import Failure, Outcome, SampleId
from distil.sandbox.sandbox import Sandbox
from distil.store.summary import TraceSummary, read_summary

KINDS = ("sample", "teacher", "context_overflow")  # what may become of a sample; never "unexpected"
MODELS = ("Qwen3-VL", "qwen2.5-vl", "gemini-3", "claude-5", "gpt-5", "gpt-4o", "pixel-reasoner", "unheard-of")
FRAMES = ("auto", "pixel", "rel1000", "rel1000_yx", "rel1")
HTTP_SHARE, VIEW_SHARE, NUM_SETTINGS = 0.1, 0.3, 24
NUM_CASES = 500
NUM_BAD_PICTURES = 5  # the last of PICTURES: their rows fail


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("fuzz")
    rows = [
        {"image": None if data is None else {"bytes": data, "path": None}, "lat": 48.85, "lon": 2.35, "city": name, "score": score, "tags": tags}
        for (name, data), score, tags in zip(
            PICTURES.items(), [0.5, float("nan"), None, float("inf")] * 20, [["a", None], [], None, ["é"]] * 20,
            strict=False,
        )
    ]  # fmt: skip
    features = {
        "city": datasets.Value("string"),
        "score": datasets.Value("float64"),
        "tags": datasets.List(datasets.Value("string")),
    }
    with Sandbox(timeout_seconds=5) as sandbox:
        sandbox.start()
        with Bench(saved(folder / "data", rows, features), folder, sandbox) as bench:
            yield bench


@dataclass(frozen=True)
class Case:
    """One conversation: how its run is set up, its row, and what the teacher says."""

    flags: tuple[str, ...]
    row: int
    bodies: list[Body]
    chance: random.Random  # for what is done to it

    @classmethod
    def draw(cls, seed: str, number: int) -> Case:
        chance = random.Random(f"{seed}:{number}")
        flags, frame, has_code = _flags(random.Random(f"{seed}:flags {chance.randrange(NUM_SETTINGS)}"))
        strange = Strange(f"{seed}:{number}:replies", frame, has_code)
        return cls(flags, chance.randrange(len(PICTURES)), strange.bodies(), chance)


def _flags(chance: random.Random) -> tuple[tuple[str, ...], str, bool]:
    frame = chance.choice(FRAMES)
    tools = chance.choice(["zoom,rotate", "zoom,rotate", "zoom,rotate,python_code", "python_code", "none"])
    flags = ["--model", chance.choice(MODELS), "--coordinates", frame, "--tools", tools]
    flags += ["--tool_mode", chance.choice(["native", "text"]), "--max_turns", chance.choice(["1", "3", "6"])]
    flags += ["--crop_from", chance.choice(["current", "current", "original"]), "--code_timeout", "5"]
    if chance.random() < 0.3:
        flags += ["--image_max_pixels", "50000"]
    return tuple(flags), frame, "python_code" in tools


def test_whole_conversations_end_in_a_true_trace_or_a_typed_failure(
    bench: Bench, request: pytest.FixtureRequest
) -> None:
    seed, _, only = (request.config.getoption("--fuzz_case") or "0:").partition(":")
    seconds = request.config.getoption("--fuzz_seconds")
    until = None if seconds is None else time.monotonic() + seconds
    ends: Counter[str] = Counter()
    number = int(only or 0)
    while not ends or (not only and _goes_on(number, until)):
        try:
            ends[check(bench, Case.draw(seed, number))] += 1
        except BaseException:
            print(f"\nagain: python -m pytest tests/test_fuzz_conversations.py --fuzz_case {seed}:{number}")
            raise
        bench.clear()
        number += 1
    print(f"\n{number} conversations: {dict(ends)}")
    if not only and (until is None or number > 1000):
        stops = ("answered", "max_turns", "truncated", "refused", "context_overflow", *KINDS)
        assert all(ends[end] for end in stops), ends  # else it does not go where it should


def _goes_on(number: int, until: float | None) -> bool:
    return number < NUM_CASES if until is None else time.monotonic() < until


def check(bench: Bench, case: Case) -> str:
    """Run a case in every way it may run; how it ended, a stop reason or a failure's kind."""
    run = bench.run_with(*case.flags)
    outcome, asked = bench.solve(run, case.row, case.bodies)
    assert isinstance(outcome, Outcome)
    path = run.folder.trace_path(SampleId(case.row))
    if outcome.failure is not None:
        assert outcome.failure.kind in KINDS, outcome.failure
        assert (outcome.failure.kind == "sample") == (case.row >= len(PICTURES) - NUM_BAD_PICTURES)
        assert not path.exists()
        assert run.folder.write_failure(outcome.failure).turns_spent == len(asked.replies)
        if outcome.failure.kind != "sample":
            _check_gone_on(bench, case, path, asked, run)
        return outcome.failure.kind
    trace = bench.check_trace(path, asked, shown=case.chance.random() < VIEW_SHARE)
    assert outcome.result is not None
    assert read_figures(outcome.result) == read_figures(read_summary(trace))
    run.folder.sync_traces()
    assert run.folder.journal.unfinished() == {}
    _check_resumed(bench, case, path.read_bytes(), len(asked.replies))
    if case.chance.random() < HTTP_SHARE:
        _check_over_http(bench, case, path.read_bytes())
    return str(trace["metadata"]["stop_reason"])


def _check_gone_on(bench: Bench, case: Case, path: Path, failed: Bodies, run: Run) -> None:
    """Let the teacher answer where a sample failed: no turn is asked for again."""
    kept = [case.bodies[min(turn, len(case.bodies) - 1)] for turn in range(len(failed.replies))]
    bodies = [*kept, json.dumps(says("\\boxed{1, 2}")).encode()]
    outcome, asked = bench.solve(run, case.row, bodies)
    assert _kind(outcome) is None, outcome
    assert len(asked.replies) == 1
    whole = bench.run_with(*case.flags)
    outcome, asked = bench.solve(whole, case.row, bodies)
    assert _kind(outcome) is None, outcome
    bench.check_trace(whole.folder.trace_path(SampleId(case.row)), asked, shown=False)
    assert path.read_bytes() == whole.folder.trace_path(SampleId(case.row)).read_bytes()


def _check_resumed(bench: Bench, case: Case, whole: bytes, num_turns: int) -> None:
    """Break a conversation off in some way, resume it, and compare the trace."""
    run = bench.run_with(*case.flags)
    path = run.folder.trace_path(SampleId(case.row))
    journal = run.folder.path / "journal" / "00001.jsonl"
    if case.chance.random() < 0.5:  # a turn fails
        turn = case.chance.randint(1, num_turns)
        outcome, _ = bench.solve(run, case.row, case.bodies, {turn: TeacherError("no reply")})
        num_kept = turn - 1
        assert _kind(outcome) == "teacher"
    else:  # all is paid for when the trace cannot be written; then a kill cuts the journal anywhere
        path.mkdir()
        outcome, _ = bench.solve(run, case.row, case.bodies)
        assert isinstance(outcome, FolderError)
        path.rmdir()
        data = journal.read_bytes()
        data = data[: case.chance.choice([len(data), case.chance.randrange(len(data) + 1)])]
        journal.write_bytes(data)
        num_kept = data.count(b"\n")
        run = bench.reopened(run)
    outcome, asked = bench.solve(run, case.row, case.bodies)
    assert _kind(outcome) is None, outcome
    assert len(asked.replies) == num_turns - num_kept
    assert path.read_bytes() == whole
    run.folder.close()
    assert not journal.parent.exists()


def _check_over_http(bench: Bench, case: Case, whole: bytes) -> None:
    if any(isinstance(body, Exception) for body in case.bodies):
        return
    run = bench.run_with(*case.flags)
    outcome = bench.solve_over_http(run, case.row, case.bodies)
    assert _kind(outcome) is None, outcome
    assert run.folder.trace_path(SampleId(case.row)).read_bytes() == whole


def _kind(outcome: Outcome[TraceSummary] | FolderError) -> str | None:
    assert isinstance(outcome, Outcome), outcome
    failure: Failure | None = outcome.failure
    return None if failure is None else failure.kind
