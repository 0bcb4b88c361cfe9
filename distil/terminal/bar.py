"""The bars: of commands that work through traces, and of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from tqdm import tqdm

from distil.records import Outcome
from distil.store.summary import TraceSummary
from distil.teacher.climber import LevelState, Reason
from distil.teacher.slots import Slots
from distil.terminal.terminal import Terminal

_SHOWN_FAILURES = 5
_BAR_FORMAT = "{percentage:3.0f}%|{bar:4}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
_WHY = {
    Reason.START: "it has only begun",
    Reason.FIXED: "as --fixed_workers says",
    Reason.GAIN: "more of them gave more",
    Reason.QUEUE: "more only waited longer",
    Reason.NEEDED: "fewer gave less",
    Reason.REFUSED: "the server refused more",
    Reason.NO_DEMAND: "more were not needed",
    Reason.CLIENT: "this machine is too busy for more",
}


class Bar(tqdm):  # type: ignore[misc]
    """A bar without tqdm's own thread, beside which no process could fork."""

    monitor_interval = 0


def say_above_bar(terminal: Terminal, line: str, style: str = "") -> None:
    """A line in the terminal while a bar is drawn."""
    with Bar.external_write_mode():
        terminal.say(line, style)


@contextmanager
def telling_bar(**look: Any) -> Iterator[Callable[[int, int], None]]:
    """A bar that goes when it is done, by a function that is told how many of how many traces are read."""
    with tqdm(unit="trace", leave=False, **look) as bar:

        def tell(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield tell


class Progress:
    """The progress bar: samples done, mean score, calls, tokens; failed, a minute, level.

    A narrow terminal cuts off its end: what stands before it fits into 80 columns.
    """

    def __init__(self, total: int, already_done: int, slots: Slots, terminal: Terminal) -> None:
        self._terminal = terminal
        self._slots = slots
        self._bar = tqdm(
            total=total,
            initial=already_done,
            dynamic_ncols=True,
            smoothing=0.1,
            bar_format=_BAR_FORMAT,
            disable=terminal.is_quiet,
        )
        self._started = time.monotonic()
        self._finished = self._num_scores = self._failed = self._calls = self._tokens = 0
        self._sum_scores = 0.0

    def __enter__(self) -> Progress:
        self._show()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def write(self, line: str) -> None:
        """Write a line above the bar, from any thread."""
        self._terminal.say_above(partial(self._bar.write, file=self._terminal.file), line)

    def leave_out(self, num_samples: int) -> None:
        """So many samples are not to be done after all."""
        self._bar.total -= num_samples

    def end_here(self) -> None:
        """Nothing more is to be done."""
        self._bar.total = self._bar.n
        self._bar.refresh()

    def count(self, outcome: Outcome[TraceSummary], is_scored: bool = True) -> None:
        """Count a sample that ended; where it is not scored, its score is not in the mean."""
        if outcome.result is None:
            self._failed += 1
            if outcome.failure is not None and self._failed <= _SHOWN_FAILURES:
                self.write(f"sample {outcome.sample_id} failed: {outcome.failure.message}")
        else:
            summary = outcome.result
            self._finished += 1
            self._num_scores += is_scored
            self._sum_scores += summary.score * is_scored
            self._calls += sum(summary.calls.values())
            self._tokens += (summary.prompt_tokens or 0) + (summary.completion_tokens or 0)
        self._show(refresh=False)  # update() draws: the bar and its figures must not disagree
        self._bar.update()

    def _show(self, refresh: bool = True) -> None:
        minutes = (time.monotonic() - self._started) / 60
        score = f"{self._sum_scores / self._num_scores:.3f}" if self._num_scores else "–"
        rate = f"{(self._finished + self._failed) / minutes:.0f}/min" if minutes > 0.01 else "–"
        made = f"score {score}, {self._calls} calls, {_tokens_text(self._tokens)} tokens"
        going = f"{self._failed} failed, {rate}, {level_text(self._slots.state())}"
        self._bar.set_postfix_str(f"{made}, {going}", refresh=refresh)


def _tokens_text(tokens: int) -> str:
    return f"{tokens / 1e6:.1f}M" if tokens >= 999_500 else f"{tokens / 1000:.0f}k"


def level_text(state: LevelState) -> str:
    """`12 of 64 requests at once: more only waited longer`."""
    return f"{state.level} of {state.ceiling} requests at once: {_WHY[state.reason]}"
