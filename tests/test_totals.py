"""What becomes of finished samples: one summary, the same as its trace's, and totals that keep no sample."""

from __future__ import annotations

import gc
import itertools
import json
import statistics
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conversations import KEY, Bench, Run, quiet, read_figures
from hypothesis import given
from hypothesis import strategies as st
from scripted_teacher import calls, completion, says, text_call

from distil.errors import SampleError
from distil.records import CropFrom, Frame, Outcome, SampleId
from distil.run.distillation import _solve
from distil.run.schedule import Rollouts
from distil.run.solver import RolloutSolver, open_budget
from distil.run.suspicion import Tally
from distil.run.work import Work
from distil.store.run_totals import RunTotals
from distil.store.summary import StatedBox, Totals, TraceSummary, read_summary
from distil.tasks.geolocation import DISTANCE
from distil.teacher.client import Teacher
from distil.teacher.slots import Slots

ZOOM = "image_zoom_in_tool"
ANSWER = says("\\boxed{1, 2}")


@pytest.fixture(scope="module")
def bench(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Bench(photos, tmp_path_factory.mktemp("bench")) as bench:
        yield bench


def summary(index: int, **changes: Any) -> TraceSummary:
    fields: dict[str, Any] = {
        "sample_id": SampleId(index), "task": "geolocation", "parse_success": index % 5 > 0,
        "metrics": {DISTANCE.name: 1.5 * index}, "score": 1 / (1 + index), "turns": 2, "stop_reason": "answered", "calls": {ZOOM: 1}, "failed_calls": {}, "prompt_tokens": 1000,
        "completion_tokens": 50, "seconds": 0.25 * (index % 7), "billed_tokens": 1000 + index, "cost_usd": 0.01,
        "boxes": (StatedBox((1.0, 2.0, 3.0 + index, 4.0), bool(index % 3), is_first_view=True),),
        "final_text": f"text {index % 100}",
    }  # fmt: skip
    return TraceSummary(**fields | changes)


# --- a summary


@pytest.mark.parametrize(
    "replies",
    [
        [ANSWER],
        [says("I do not know.")],
        [calls((ZOOM, {"bbox_2d": [100, 100, 600, 600]})), ANSWER],
        [calls((ZOOM, {"bbox_2d": [9, 9, 1, 1]}), ("no tool", {}), ("", {})), calls((ZOOM, {})), ANSWER],
        [says(f"I look. {text_call(ZOOM, {'bbox_2d': [-5, 0, 9000, 9000]})}"), ANSWER],
        [completion({"content": "Well"}, "length", usage=None)],
        [completion({"content": "x"}, usage={"prompt_tokens": 0, "completion_tokens": True}), ANSWER],
        [calls(("image_rotate_tool", {"angle": 90}))] * 10,
    ],
)
def test_a_summary_is_what_is_read_from_the_trace(replies: Sequence[Any], bench: Bench) -> None:
    run = bench.run_with("--tool_mode", "native")
    outcome, _ = bench.solve(run, 0, [json.dumps(reply).encode() for reply in replies])
    assert isinstance(outcome, Outcome) and outcome.result is not None, outcome
    trace = json.loads(run.folder.trace_path(SampleId(0)).read_bytes())
    assert read_figures(outcome.result) == read_figures(read_summary(trace))


def test_a_summary_says_of_each_box_whether_it_fitted_and_what_it_was_of(bench: Bench) -> None:
    replies = [
        calls((ZOOM, {"bbox_2d": [9, 9, 1, 1]}), (ZOOM, {"bbox_2d": [0, 0, 2000, 500]})),
        calls((ZOOM, {"bbox_2d": [100, 100, 600, 600]}), (ZOOM, {"bbox_2d": "here"})),
        ANSWER,
    ]
    outcome, _ = bench.solve(
        bench.run_with("--tool_mode", "native"), 0, [json.dumps(r).encode() for r in replies]
    )
    assert isinstance(outcome, Outcome) and outcome.result is not None, outcome
    found = outcome.result
    assert found.boxes == (
        ((9, 9, 1, 1), False, True),
        ((0, 0, 2000, 500), False, True),
        ((100, 100, 600, 600), True, False),
    )
    assert found.first_failure is not None and "Error" in found.first_failure
    assert (found.is_resumed, found.final_text, found.billed_tokens) == (False, "\\boxed{1, 2}", 330)
    assert found.seconds is not None and found.seconds > 0


# --- totals


@given(st.lists(st.integers(0, 20_000), max_size=50))
def test_totals_are_those_of_the_samples_that_they_do_not_keep(indices: list[int]) -> None:
    samples, totals = [summary(index) for index in indices], Totals()
    for item in samples:
        totals.add(item)
    assert totals.num_traces == len(samples)
    if not samples:
        return
    distances = [item.metrics[DISTANCE.name] for item in samples if item.parse_success]
    assert totals.mean_score == pytest.approx(statistics.fmean(item.score for item in samples))
    assert totals.parse_rate == len(distances) / len(samples)
    assert totals.metrics == DISTANCE.over_many(distances, len(samples))
    assert totals.num_calls == len(samples) and totals.mean_turns == 2
    assert (totals.prompt_tokens, totals.completion_tokens) == (1000 * len(samples), 50 * len(samples))


def test_tokens_are_not_known_where_one_trace_does_not_say() -> None:
    for samples in itertools.permutations([summary(1), summary(2, prompt_tokens=None), summary(3)]):
        totals = Totals()
        for item in samples:
            totals.add(item)
        assert (totals.prompt_tokens, totals.completion_tokens) == (None, 150)


class Trivial(RolloutSolver):
    """A run's solver that makes its summaries up: all around it is the run's own."""

    def solve(self, sample_id: SampleId) -> TraceSummary:
        found = summary(sample_id.index)
        self.tally.add(found)
        return found


def quick_teacher(run: Run) -> Teacher:
    """A run's teacher, which nothing holds back."""
    settings, offered = run.plan.teacher(KEY), run.plan.settings.prompt().native_tools
    budget = open_budget(run.plan.flags.budget, settings, run.folder.spending)
    return Teacher(settings, offered, Slots.unlimited(), budget, run.plan.api_bases)


def num_kept() -> int:
    """How many samples' results there are: other tests' modules hold some."""
    gc.collect()
    return sum(type(item) in (Outcome, TraceSummary) for item in gc.get_objects())


def run_of(bench: Bench, num_samples: int, num_each: int = 1) -> tuple[RunTotals, int]:
    """What so many samples come to, and how many bytes of memory are held when the last has ended."""
    run = bench.run_with("--keep_going")
    with quick_teacher(run) as teacher:
        solver = Trivial(run.plan, run.source, run.folder, teacher)
        work = Work.of(solver, Rollouts(range(num_samples // num_each), num_each))
        num_before = num_kept()
        tracemalloc.start()
        _solve(work, quiet())
        gc.collect()
        held_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert num_kept() == num_before
    return work.main.totals, held_bytes


@pytest.mark.parametrize("num_each", [1, 8])
def test_a_run_keeps_no_sample_however_many_there_are(bench: Bench, num_each: int) -> None:
    run_of(bench, 200, num_each)
    few, held_by_few = run_of(bench, 200, num_each)
    many, held_by_many = run_of(bench, 4000, num_each)
    assert (few.traces.num_traces, many.traces.num_traces) == (200, 4000)
    assert (many.measured.num_finished, many.measured.sample_costs_usd.number) == (4000, 4000)
    assert many.measured.sample_tokens.mean == pytest.approx(1000 + (4000 / num_each - 1) / 2)
    assert (held_by_many - held_by_few) / 3800 < 16, "a distance of 8 bytes; an object takes 50 at the least"


def test_a_run_counts_what_failed_and_why_it_stopped(bench: Bench) -> None:
    class Failing(Trivial):
        def solve(self, sample_id: SampleId) -> TraceSummary:
            if sample_id.index % 2:
                raise SampleError(f"row {sample_id}: no picture")
            return super().solve(sample_id)

    run = bench.run_with()
    with quick_teacher(run) as teacher:
        work = Work.of(Failing(run.plan, run.source, run.folder, teacher), Rollouts(range(11)))
        _solve(work, quiet())
    totals = work.main.totals
    totals.stopped_by = "a limit"
    assert (totals.measured.num_finished, totals.measured.num_failed, totals.measured.num_ended) == (6, 5, 11)
    record = totals.as_dict()
    assert (record["num_finished"], record["num_failed"], record["stopped_by"]) == (6, 5, "a limit")
    run.folder.write_failures()
    lines = (run.folder.path / "failed_samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["sample_index"] for line in lines] == [1, 3, 5, 7, 9]


# --- boxes


def box(*numbers: float, fitted: bool = False, first: bool = True) -> StatedBox:
    return StatedBox(numbers, fitted, first)


@pytest.mark.parametrize(
    ("frame", "crop_from", "boxes", "words"),
    [
        (Frame.PIXEL, CropFrom.CURRENT, [box(0.1, 0.1, 0.9, 0.9, fitted=True)] * 5, "try --coordinates rel1"),
        (Frame.PIXEL, CropFrom.CURRENT, [box(90, 90, 10, 10)] * 5, "perhaps [x, y, width, height]"),
        (Frame.PIXEL, CropFrom.CURRENT, [box(1, 1, 2000, 900, first=False)] * 5, "try --crop_from original"),
        (Frame.PIXEL, CropFrom.ORIGINAL, [box(1, 1, 1000, 900)] * 5, "try --coordinates rel1000"),
        (Frame.REL1000, CropFrom.CURRENT, [box(1, 1, 1001, 900)] * 5, "try --coordinates pixel"),
        (Frame.PIXEL, CropFrom.CURRENT, [box(1, 1, 2000, 900)] * 5, "say what boxes refer to"),
        (Frame.REL1, CropFrom.CURRENT, [box(0.5, 0.5, 0.6, 1, fitted=True)] * 5, None),
        (Frame.PIXEL, CropFrom.CURRENT, [box(1, 1, 2000, 900)] * 4, None),
        (Frame.PIXEL, CropFrom.CURRENT, [box(1, 1, 9, 9, fitted=True)] * 5 + [box(1, 1, 2000, 9)], None),
    ],
)  # fmt: skip
def test_boxes_that_do_not_fit_name_the_likely_setting(
    frame: Frame, crop_from: CropFrom, boxes: list[StatedBox], words: str | None
) -> None:
    tally = Tally(2048, 10, frame=frame, crop_from=crop_from)
    for number, each in enumerate(boxes):
        tally.add(summary(number, boxes=(each,)))
    (warning,) = tally.warnings() or [None]
    assert warning is None if words is None else warning is not None and words in warning
    assert warning is None or f"5 of 5 zoom boxes did not fit the picture as {frame.value!r}" in warning
