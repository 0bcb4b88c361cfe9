"""What a person sees of a run: progress while it goes, warnings, and the summary at its end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.text import Text
from tqdm import tqdm

from distil.records import CropFrom, Failure, Frame, Json, Outcome
from distil.spending.budget import Bill, Spent
from distil.store.summary import TraceFacts, add_up
from distil.teacher.climber import LevelState
from distil.teacher.slots import Slots
from distil.terminal.traces import totals_table
from distil.tools.toolbox import find_tool

_MAX_BAD_SHARE = 0.2  # of a run's boxes; a teacher in the right frame overshoots now and then
_MIN_BOXES = 5
_SHOWN_FAILURES = 5
_BAR_FORMAT = "{percentage:3.0f}%|{bar:8}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"


@dataclass(frozen=True, slots=True)
class ZoomBox:
    """A zoom box as the teacher wrote it, whether it fitted, and whether it is of the photo itself."""

    numbers: tuple[float, ...]
    fitted: bool
    is_first_view: bool


@dataclass(frozen=True, slots=True)
class Solved:
    """What a run's summary needs of a finished sample."""

    facts: TraceFacts
    boxes: tuple[ZoomBox, ...]


def solved_from_trace(trace: Mapping[str, Json], facts: TraceFacts) -> Solved:
    """The summary's share of a finished trace."""
    boxes = []
    is_first_view = True
    for call in trace["tool_calls_log"]:
        tool = find_tool(call["tool_name"])
        box = None if tool is None else tool.box_of(call.get("raw_arguments"))
        if box is not None:
            boxes.append(ZoomBox(box, call["success"] and not call["clamped"], is_first_view))
        is_first_view = is_first_view and not call["success"]
    return Solved(facts, tuple(boxes))


@dataclass
class BoxTally:
    """Whether a run's boxes fit their frame: many that do not mean a wrong setting."""

    frame: Frame
    crop_from: CropFrom = CropFrom.CURRENT
    boxes: list[ZoomBox] = field(default_factory=list)

    def add(self, solved: Solved) -> None:
        """Count a finished sample's boxes."""
        self.boxes += solved.boxes

    def warning(self) -> str | None:
        """The warning to end the run with, or None."""
        bad = [box for box in self.boxes if not box.fitted or self._is_tiny(box)]
        if len(self.boxes) < _MIN_BOXES or len(bad) < _MAX_BAD_SHARE * len(self.boxes):
            return None
        return (
            f"{len(bad)} of {len(self.boxes)} zoom boxes did not fit the picture as {self.frame.value!r}: "
            f"{self._advice(bad)}"
        )

    def _is_tiny(self, box: ZoomBox) -> bool:
        return self.frame is not Frame.REL1 and all(0 <= value <= 1 for value in box.numbers)

    def _advice(self, bad: Sequence[ZoomBox]) -> str:
        """The likely setting by what most bad boxes have in common."""
        most = len(bad) / 2
        if sum(map(self._is_tiny, bad)) > most:
            return "the teacher seems to state fractions. Look at some traces, then try --coordinates rel1"
        if sum(_is_backward(box) for box in bad) > most:
            return "their ends lie before their starts, perhaps [x, y, width, height], which no setting takes"
        if self.crop_from is CropFrom.CURRENT and not any(box.is_first_view for box in bad):
            return "only boxes after a first call. Look at some traces, then try --crop_from original"
        largest = max(max(box.numbers) for box in bad)
        if largest <= 1000 and self.frame in (Frame.PIXEL, Frame.REL1):
            return (
                "the teacher seems to state thousandths. Look at some traces, then try --coordinates rel1000"
            )
        if largest > 1000 and self.frame is not Frame.PIXEL:
            return "the teacher seems to state pixels. Look at some traces, then try --coordinates pixel"
        return "look at some traces; --coordinates and --crop_from say what boxes refer to"


def _is_backward(box: ZoomBox) -> bool:
    return box.numbers[2] <= box.numbers[0] or box.numbers[3] <= box.numbers[1]


class Progress:
    """The progress bar: samples done and failed, a minute, level, mean score, calls, tokens.

    A narrow terminal cuts off its end.
    """

    def __init__(self, total: int, already_done: int, slots: Slots) -> None:
        self._slots = slots
        self._bar = tqdm(
            total=total, initial=already_done, dynamic_ncols=True, smoothing=0.1, bar_format=_BAR_FORMAT
        )
        self._started = time.monotonic()
        self._scores: list[float] = []
        self._failed = self._calls = self._tokens = 0

    def __enter__(self) -> Progress:
        self._show()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def write(self, line: str) -> None:
        """Write a line above the bar, from any thread."""
        self._bar.write(line)

    def count(self, outcome: Outcome[Solved]) -> None:
        """Count a sample that ended."""
        if outcome.result is None:
            self._failed += 1
            if outcome.failure is not None and self._failed <= _SHOWN_FAILURES:
                self._bar.write(f"sample {outcome.sample_id} failed: {outcome.failure.message}")
        else:
            facts = outcome.result.facts
            self._scores.append(facts.score)
            self._calls += sum(facts.calls.values())
            self._tokens += (facts.prompt_tokens or 0) + (facts.completion_tokens or 0)
        self._show(refresh=False)  # update() draws: the bar and its figures must not disagree
        self._bar.update()

    def _show(self, refresh: bool = True) -> None:
        finished = len(self._scores)
        minutes = (time.monotonic() - self._started) / 60
        score = f"{sum(self._scores) / finished:.3f}" if finished else "–"
        rate = f"{(finished + self._failed) / minutes:.0f}/min" if minutes > 0.01 else "–"
        state = self._slots.state()
        self._bar.set_postfix_str(
            f"{self._failed} failed, {rate}, {state.level}/{state.ceiling} at once ({state.reason}), "
            f"score {score}, {self._calls} calls, {self._tokens / 1000:.0f}k tokens",
            refresh=refresh,
        )


@dataclass(frozen=True)
class RunTotals:
    """What a run came to."""

    folder: Path
    facts: Sequence[TraceFacts]
    failures: Sequence[Failure]
    num_skipped: int
    seconds: float
    spent: Spent  # by all runs into the folder
    stopped_by: str | None  # the limit, or the worthless samples, that ended the run early
    level: LevelState
    models: Mapping[str, int]  # replies by the name that they give their model
    warnings: Sequence[str]  # what is suspicious


def print_summary(totals: RunTotals, console: Console) -> None:
    """Print the summary that a run ends with."""
    batch = add_up(totals.facts)
    if batch is not None:
        console.print(totals_table(batch, title="this run"))
    parts = [f"{len(totals.facts)} finished", f"{len(totals.failures)} failed"]
    if totals.num_skipped:
        parts.append(f"{totals.num_skipped} were there already")
    rate = f" ({60 * len(totals.facts) / totals.seconds:.1f} a minute)" if totals.facts else ""
    console.print(f"{', '.join(parts)} in {totals.seconds:.1f} s{rate}", highlight=False)
    if totals.failures:
        path = totals.folder / "failed_samples.jsonl"
        console.print(f"Failed samples, with their reasons: {path}", highlight=False, soft_wrap=True)
    console.print(f"Requests at once: {_level_text(totals.level)}", highlight=False, soft_wrap=True)
    for line in _spent_lines(totals.spent):
        console.print(line, highlight=False, soft_wrap=True)
    if totals.stopped_by is not None:
        console.print(Text(f"Stopped: {totals.stopped_by}.", style="yellow"), soft_wrap=True)
    for warning in totals.warnings:
        console.print(Text(f"Warning: {warning}", style="yellow"), soft_wrap=True)
    console.print(f"Traces: {totals.folder}", highlight=False, soft_wrap=True)
    if totals.facts or totals.num_skipped:
        console.print(f"Look at them: distil view {totals.folder} --batch", highlight=False, soft_wrap=True)
        console.print(f"Check them:   distil verify {totals.folder}", highlight=False, soft_wrap=True)


def _level_text(state: LevelState) -> str:
    highest = f", at most {state.highest}" if state.highest > state.level else ""
    return f"{state.level} of {state.ceiling} ({state.reason}{highest})"


def _spent_lines(spent: Spent) -> list[str]:
    lines = [f"Spent in this folder: {_bill_text(spent.answered)}"]
    if spent.retried.requests:
        lines.append(f"Asked again, perhaps billed too: {_bill_text(spent.retried)}")
    if spent.refused:
        lines.append(f"Refused or not connected, free: {_number(spent.refused, 'request')}")
    return lines


def _bill_text(bill: Bill) -> str:
    requests = _number(bill.requests, "request")
    if bill.without_tokens == bill.requests:
        return f"{requests}, tokens not reported" if bill.requests else requests
    tokens = bill.tokens
    parts = [
        requests,
        f"{tokens.prompt:,} tokens in ({_of_which(tokens.cached, 'cached')})",
        f"{tokens.completion:,} out ({_of_which(tokens.reasoning, 'reasoning')})",
    ]
    if bill.cost_usd is not None:
        parts.append(f"{bill.cost_usd:.4f} USD")
    if bill.without_tokens:
        parts.append(f"{_number(bill.without_tokens, 'request')} without figures")
    return ", ".join(parts)


def _number(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _of_which(tokens: int | None, kind: str) -> str:
    return f"{kind}: not reported" if tokens is None else f"{tokens:,} {kind}"
