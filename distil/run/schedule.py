"""Which rollouts to ask for next: a row's side by side, and none that is not known to be needed.

A rollout is begun when it is needed whatever comes of those before it: its row lacks more accepted traces
than it has in flight, and so does the run. So which rollouts there are follows from what the teacher replies
and not from who replies first, and none is paid for in vain: a row's end with the one that made it enough,
and the run's likewise, in the order of rows and rollouts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from distil.records import SampleId


@dataclass(frozen=True, slots=True, order=True)
class WithoutTools(SampleId):
    """The rollout of a row that is asked in one turn without tools."""

    def __str__(self) -> str:
        return f"{plain(self)} without tools"


def plain(sample_id: SampleId) -> SampleId:
    """What a sample is known by in its own folder."""
    return SampleId(sample_id.index, sample_id.rollout)


class Rollouts:
    """So many rollouts of each row, a row's side by side, made as they are asked for.

    A list of a million takes 85 MB.
    """

    def __init__(self, rows: Sequence[int], num_each: int = 1) -> None:
        self.rows, self.num_each = rows, num_each

    def __len__(self) -> int:
        return len(self.rows) * self.num_each

    def __iter__(self) -> Iterator[SampleId]:
        if self.num_each == 1:
            return map(SampleId, self.rows)
        return (SampleId(row, rollout) for row in self.rows for rollout in range(self.num_each))


@dataclass(eq=False, slots=True)
class Row:
    """A row's rollouts that are left, in their order; and how many of the others are accepted."""

    index: int
    left: deque[SampleId] = field(default_factory=deque)
    num_accepted: int = 0
    without_tools: WithoutTools | None = None  # is left too
    num_in_flight: int = 0


def rows_of(sample_ids: Iterable[SampleId], num_accepted: Mapping[int, int]) -> Iterator[Row]:
    """The rows of rollouts that come row by row, with how many others of them are accepted, by row."""
    for index, rollouts in groupby(sample_ids, lambda each: each.index):
        yield Row(index, deque(rollouts), num_accepted.get(index, 0))


def with_companions(
    rows: Iterable[Row], all_rows: Sequence[int], is_begun: Collection[int], is_left: Callable[[int], bool]
) -> Iterator[Row]:
    """The rows, each with the rollout without tools that it lacks; first that of those that are begun.

    A row that has traces gets it whether or not it is asked again; any other when its first is begun.
    """
    for index in all_rows:
        if index in is_begun and is_left(index):
            yield Row(index, without_tools=WithoutTools(index))
    for row in rows:
        if row.index not in is_begun and is_left(row.index):
            row.without_tools = WithoutTools(row.index)
        yield row


class Schedule:
    """Gives rollouts one after another, None where the next is not known before another ends.

    It is told what comes of each; used by one thread.
    """

    def __init__(
        self,
        rows: Iterable[Row | None],
        num_accepted: int = 0,
        of_row: float = math.inf,
        of_run: float = math.inf,
    ) -> None:
        """None of `rows` is one not known yet; `num_accepted` are those that there are already.

        `of_row` and `of_run` are how many accepted are enough, of a row and of all.
        """
        self.num_accepted, self._of_row, self._of_run = num_accepted, of_row, of_run
        self._enough_of_row = of_row if math.isfinite(of_row) else 1
        self.num_rows_enough = 0  # that have come to it since
        self.num_begun = self.num_not_needed = 0  # without those that are asked without tools
        self._rows = iter(rows)
        self._next_row: Row | None = None  # taken, and not begun
        self._open: dict[Row, None] = {}  # that may still come to something, in the order of their begin
        self._in_flight: dict[SampleId, Row] = {}

    @property
    def is_reached(self) -> bool:
        """Whether the run has all that it was to have."""
        return self.num_accepted >= self._of_run

    def __iter__(self) -> Iterator[SampleId | None]:
        while True:
            yield self._next()

    def note(self, sample_id: SampleId, is_accepted: bool) -> None:
        """A rollout has ended, whatever came of it."""
        if isinstance(sample_id, WithoutTools):
            return
        row = self._in_flight.pop(sample_id)
        row.num_in_flight -= 1
        row.num_accepted += is_accepted
        self.num_accepted += is_accepted
        self.num_rows_enough += is_accepted and row.num_accepted == self._enough_of_row
        self._close_if_done(row)

    def _next(self) -> SampleId | None:
        """The first rollout that is needed whatever becomes of those in flight."""
        ahead = float(self.num_accepted)  # the most that there can be before a row's own
        for row in self._open:
            is_wanted = row.left and row.num_accepted + row.num_in_flight < self._of_row
            if is_wanted and ahead + row.num_in_flight < self._of_run:
                return self._begin(row)
            ahead += min(self._of_row - row.num_accepted, row.num_in_flight + len(row.left))
        while (new := self._new_row()) is not None:
            if new.left and ahead >= self._of_run:
                return None
            self._next_row = None
            self._open[new] = None
            self._close_if_done(new)
            if new.without_tools is not None:
                return new.without_tools
            if new.left:
                return self._begin(new)
        return None

    def _new_row(self) -> Row | None:
        """The next row that is not begun yet; it stays the next one."""
        if self._next_row is None:
            self._next_row = next(self._rows, None)
        return self._next_row

    def _begin(self, row: Row) -> SampleId:
        sample_id = row.left.popleft()
        self._in_flight[sample_id] = row
        row.num_in_flight += 1
        self.num_begun += 1
        self._close_if_done(row)
        return sample_id

    def _close_if_done(self, row: Row) -> None:
        """Look at a row no more once nothing depends on it."""
        if row.num_accepted >= self._of_row:
            self.num_not_needed += len(row.left)
            row.left.clear()
        if not row.left and not (row.num_in_flight and math.isfinite(self._of_run)):
            self._open.pop(row, None)
