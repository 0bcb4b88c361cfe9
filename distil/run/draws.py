"""`--target_acc` in a run: the bins, what comes of their rows, and the draws that are written down."""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from distil.commands.flags import RolloutFlags, SampleFlags
from distil.errors import SourceError, UsageError
from distil.records import Json, SampleId
from distil.run.aim import Aim, quantile_bins
from distil.run.schedule import Rollouts, Row
from distil.source.cells import Cells
from distil.source.rows import Source
from distil.store.folder import DrawsFile
from distil.store.run_totals import AimTotals
from distil.tasks.base import Task

_ROWS_AT_ONCE = 10_000


def check_aim(samples: SampleFlags, rollouts: RolloutFlags, is_estimate: bool) -> None:
    """Raise UsageError for flags that say nothing beside `--target_acc`, or without it."""
    if samples.target_acc is None:
        if samples.difficulty_column is not None:
            raise UsageError("--difficulty_column is for --target_acc, which says what to aim at")
        return
    others = {
        f"--order {samples.order}": samples.order not in ("dataset", "random"),
        "--accepted_per_sample": rollouts.accepted_per_sample is not None,
        "--target_accepted": rollouts.target_accepted is not None,
        "--also_without_tools": rollouts.also_without_tools,
        "distil estimate": is_estimate,
    }
    for name, is_given in others.items():
        if is_given:
            raise UsageError(f"--target_acc draws the rows itself: it cannot be combined with {name}")
    if samples.num_samples == 0:
        raise UsageError("--target_acc needs --num_samples N, fewer than there are rows to choose from")


def open_draws(
    samples: SampleFlags, num_each: int, task: Task, source: Source, rows: Sequence[int]
) -> Draws | None:
    """What draws the rows by their difficulty, None where no target is aimed at; raises UsageError."""
    if samples.target_acc is None:
        return None
    cells = source.cells
    column = _difficulty_column(samples.difficulty_column, task, cells)
    values = array("d")
    try:
        for _, (piece,) in cells.slices([column], _ROWS_AT_ONCE):
            values.extend(math.nan if value is None else float(value) for value in piece)
    except SourceError as error:
        raise UsageError(f"--difficulty_column {column!r}: {error}") from None
    bins = quantile_bins(rows, np.asarray(values)[np.asarray(rows, np.int64)])
    if not bins:
        raise UsageError(f"--difficulty_column {column!r}: no row has a value in it")
    drawn_from = {
        "fingerprint": source.identity.fingerprint,
        "where_row": samples.where_row,
        "difficulty_column": column,
        "seed": samples.seed,
    }
    aim = Aim(samples.target_acc, samples.num_samples, bins, samples.seed)
    return Draws(aim, drawn_from, num_each)


def _difficulty_column(asked: str | None, task: Task, cells: Cells) -> str:
    numbers = [name for name in cells.names if cells.is_number(name)]
    column = asked or task.difficulty
    if column in numbers:
        return column
    listed = f"the dataset's columns of numbers: {', '.join(numbers) or 'none'}"
    if asked is None:
        usual = "" if column is None else f" {column!r}"
        raise UsageError(
            f"--target_acc needs a number that says how easy or hard a row is, and there is no column"
            f"{usual}: name one by --difficulty_column; {listed}"
        )
    is_there = "holds no numbers" if asked in cells.names else "is not there"
    raise UsageError(f"--difficulty_column {asked!r} {is_there}; {listed}")


class Draws:
    """Rows as they are drawn, and what comes of each; used by one thread."""

    def __init__(self, aim: Aim, drawn_from: dict[str, Json], num_each: int) -> None:
        self.aim, self.num_each = aim, num_each
        self._drawn_from = drawn_from
        self._file: DrawsFile  # of the folder that it goes on in
        self._num_found = 0  # rollouts that had their trace when their row was drawn
        self._num_left: dict[int, int] = {}  # by row, of those that have not ended
        self._outcomes: dict[int, list[bool]] = {}  # by row, of those that gave something

    def first(self) -> list[int]:
        """The rows that a new folder's run draws before anything came of one."""
        while self.aim.draw() is not None:
            pass
        return self.aim.rows

    def go_on(self, folder: Path) -> None:
        """Take up what was drawn in a folder; raises UsageError where rows were that are none of these."""
        self._file = DrawsFile(folder, self._drawn_from)
        try:
            self.aim.go_on(self._file.rows)
        except KeyError:
            told = "draws.jsonl holds rows that may not be drawn; choose another --output_dir"
            raise UsageError(told) from None

    @property
    def num_samples(self) -> int:
        """How many rollouts there are to be."""
        return self.aim.num_draws * self.num_each

    def wanted(self) -> Rollouts:
        """The rollouts of the rows that are drawn, which become more."""
        return Rollouts(self.aim.rows, self.num_each)

    def rows(
        self, done: Collection[SampleId], accepted: Collection[SampleId], only: Collection[SampleId] | None
    ) -> Iterator[Row | None]:
        """The rows that have something left, as they are drawn; None while the next is not known.

        `done` and `accepted` know of all rows that may be drawn; none is where `only` some may be asked.
        """

        def begin(index: int) -> Row:
            rollouts = [SampleId(index, rollout) for rollout in range(self.num_each)]
            left = [each for each in rollouts if each not in done and (only is None or each in only)]
            outcomes = [each in accepted for each in rollouts if each in done]
            self._outcomes[index], self._num_left[index] = outcomes, len(left)
            self._note_if_ended(index)
            return Row(index, deque(left), sum(outcomes))

        drawn_before = list(map(begin, self.aim.rows))
        yield from (row for row in drawn_before if row.left)
        while only is None and not self.aim.is_over:
            index = self.aim.draw()
            if index is None:
                yield None
                continue
            self._file.add(index)
            row = begin(index)
            self._num_found += self.num_each - len(row.left)
            if row.left:
                yield row

    def take_found(self) -> int:
        """How many rollouts had their trace when their row was drawn, since this was asked."""
        found, self._num_found = self._num_found, 0
        return found

    def note(self, sample_id: SampleId, is_accepted: bool | None) -> None:
        """A rollout has ended: accepted or not, None where nothing came of it."""
        index = sample_id.index
        if is_accepted is not None:
            self._outcomes[index].append(is_accepted)
        self._num_left[index] -= 1
        self._note_if_ended(index)

    def totals(self) -> AimTotals:
        """What it came to."""
        aim, column = self.aim, self._drawn_from["difficulty_column"]
        why_missed, num_drawn = aim.why_missed(), len(aim.rows)
        return AimTotals(
            aim.target, self.num_samples, num_drawn, aim.num_counted, aim.reached, column, why_missed
        )

    def close(self) -> None:
        """Close the file of the draws."""
        self._file.close()

    def _note_if_ended(self, index: int) -> None:
        if self._num_left[index]:
            return
        outcomes = self._outcomes.pop(index)
        del self._num_left[index]
        self.aim.note(index, sum(outcomes) / len(outcomes) if outcomes else None)
