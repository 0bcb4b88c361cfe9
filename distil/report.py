"""What a person sees of a run: progress while it goes, warnings, and the summary at its end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.text import Text
from tqdm import tqdm

from distil.pictures import Frame
from distil.records import Failure, Json
from distil.sampler import Outcome
from distil.viewer.facts import TraceFacts, add_up, mapping_of
from distil.viewer.terminal import totals_table

_MAX_BAD_SHARE = 0.2  # of a run's boxes; a teacher in the right frame overshoots now and then
_MIN_BOXES = 5
_SHOWN_FAILURES = 5


@dataclass(frozen=True, slots=True)
class Solved:
    """What a run's summary needs of a finished sample."""

    facts: TraceFacts
    boxes: tuple[tuple[bool, tuple[float, ...]], ...]  # per zoom: did the box not fit; its numbers


def solved_from_trace(trace: Mapping[str, Json], facts: TraceFacts) -> Solved:
    """The summary's share of a finished trace."""
    boxes = []
    for call in trace["tool_calls_log"]:
        raw = mapping_of(call.get("raw_arguments")).get("bbox_2d")
        if isinstance(raw, list) and len(raw) == 4 and all(isinstance(value, int | float) for value in raw):
            boxes.append((bool(call["clamped"] or not call["success"]), tuple(raw)))
    return Solved(facts, tuple(boxes))


@dataclass
class BoxTally:
    """Whether a run's boxes fit their frame: many that do not mean a wrong `--coordinates`."""

    frame: Frame
    boxes: list[tuple[bool, tuple[float, ...]]] = field(default_factory=list)

    def add(self, solved: Solved) -> None:
        """Count a finished sample's boxes."""
        self.boxes += solved.boxes

    def warning(self) -> str | None:
        """The warning to end the run with, or None."""
        tiny = [
            all(0 <= value <= 1 for value in box) and self.frame is not Frame.REL1 for _, box in self.boxes
        ]
        bad = sum(not_fitting or is_tiny for (not_fitting, _), is_tiny in zip(self.boxes, tiny, strict=True))
        if len(self.boxes) < _MIN_BOXES or bad < _MAX_BAD_SHARE * len(self.boxes):
            return None
        likely = self._likely_frame(sum(tiny) / len(tiny))
        return (
            f"{bad} of {len(self.boxes)} zoom boxes did not fit the picture: the teacher probably does not "
            f"state them as {self.frame.value!r}. Look at some traces, then try --coordinates {likely.value}"
        )

    def _likely_frame(self, tiny_share: float) -> Frame:
        if tiny_share > 0.5:
            return Frame.REL1
        largest = max(max(box) for _, box in self.boxes)
        if self.frame in (Frame.REL1000, Frame.REL1000_YX) and largest > 1000:
            return Frame.PIXEL
        if self.frame is Frame.REL1 and largest > 1000:
            return Frame.PIXEL
        return Frame.REL1000


class Progress:
    """The progress bar: finished and failed, mean score, tool calls, tokens, samples a minute, time left."""

    def __init__(self, total: int, already_done: int) -> None:
        self._bar = tqdm(total=total, initial=already_done, unit="sample", dynamic_ncols=True, smoothing=0.1)
        self._started = time.monotonic()
        self._scores: list[float] = []
        self._failed = self._calls = self._tokens = 0

    def __enter__(self) -> Progress:
        self._show()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def count(self, outcome: Outcome[Solved]) -> None:
        """Count a sample that ended."""
        if outcome.result is None:
            self._failed += 1
            if outcome.failure is not None and self._failed <= _SHOWN_FAILURES:
                self._bar.write(f"sample {outcome.sample_index} failed: {outcome.failure.message}")
        else:
            facts = outcome.result.facts
            self._scores.append(facts.score)
            self._calls += sum(facts.calls.values())
            self._tokens += (facts.prompt_tokens or 0) + (facts.completion_tokens or 0)
        self._bar.update()
        self._show()

    def _show(self) -> None:
        finished = len(self._scores)
        minutes = (time.monotonic() - self._started) / 60
        score = f"{sum(self._scores) / finished:.3f}" if finished else "–"
        rate = f"{(finished + self._failed) / minutes:.0f}/min" if minutes > 0.01 else "–"
        self._bar.set_postfix_str(
            f"{finished} finished, {self._failed} failed, score {score}, "
            f"{self._calls} calls, {self._tokens / 1000:.0f}k tokens, {rate}"
        )


@dataclass(frozen=True)
class RunTotals:
    """What a run came to."""

    folder: Path
    facts: Sequence[TraceFacts]
    failures: Sequence[Failure]
    num_skipped: int
    seconds: float


def print_summary(totals: RunTotals, warning: str | None, console: Console) -> None:
    """Print the summary that a run ends with."""
    batch = add_up(totals.facts)
    if batch is not None:
        console.print(totals_table(batch, title="this run"))
    rate = 60 * len(totals.facts) / totals.seconds if totals.seconds else 0
    parts = [f"{len(totals.facts)} finished", f"{len(totals.failures)} failed"]
    if totals.num_skipped:
        parts.append(f"{totals.num_skipped} were there already")
    console.print(f"{', '.join(parts)} in {totals.seconds:.1f} s ({rate:.1f} a minute)", highlight=False)
    for failure in totals.failures[:_SHOWN_FAILURES]:
        line = f"  sample {failure.sample_index} ({failure.kind}): {failure.message}"
        console.print(Text(line, style="red"), soft_wrap=True)
    if len(totals.failures) > _SHOWN_FAILURES:
        console.print(f"  … all of them in {totals.folder / 'failed_samples.jsonl'}", highlight=False)
    if warning is not None:
        console.print(Text(f"Warning: {warning}", style="yellow"), soft_wrap=True)
    console.print(f"Traces: {totals.folder}", highlight=False, soft_wrap=True)
    if totals.facts or totals.num_skipped:
        console.print(f"Look at them: distil view {totals.folder} --batch", highlight=False, soft_wrap=True)
        console.print(f"Check them:   distil verify {totals.folder}", highlight=False, soft_wrap=True)
