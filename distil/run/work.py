"""All that a run is to ask, what is enough of it, and what came of it."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from distil.commands.flags import RolloutFlags, RunFlags
from distil.errors import UsageError
from distil.records import Outcome, SampleId
from distil.run.draws import Bins, Draws, check_aim
from distil.run.part import Part
from distil.run.schedule import (
    Goal,
    Left,
    Rollouts,
    Row,
    Schedule,
    WithoutTools,
    paid_first,
    rows_of,
    with_companions,
)
from distil.run.solver import RolloutSolver
from distil.run.without_tools import solver_without_tools
from distil.spending.estimate import Selection, choose_samples
from distil.store.folder import DrawsFile
from distil.store.run_totals import RowTotals
from distil.store.summary import TraceSummary
from distil.tools.toolbox import load_tools


def check_rollouts(flags: RunFlags) -> None:
    """Raise UsageError for flags that make no sense together, before anything is opened."""
    check_aim(flags)
    asked = flags.rollouts
    for name, value in (
        ("accepted_per_sample", asked.accepted_per_sample),
        ("target_accepted", asked.target_accepted),
    ):
        if value is not None and asked.accept is None:
            raise UsageError(f'--{name} needs --accept, which says what is accepted: --accept "score > 0.8"')
    if (asked.accepted_per_sample or 0) > asked.rollouts_per_sample:
        raise UsageError(
            f"--accepted_per_sample {asked.accepted_per_sample} is more than a row has rollouts: "
            f"--rollouts_per_sample {asked.rollouts_per_sample}"
        )
    if asked.also_without_tools and not load_tools(flags.tools.tools):
        raise UsageError("--also_without_tools: this run offers no tools")


def goal_of(flags: RolloutFlags) -> Goal:
    """How many accepted traces are enough."""
    of_row, of_run = flags.accepted_per_sample, flags.target_accepted
    return Goal(math.inf if of_row is None else of_row, math.inf if of_run is None else of_run)


@dataclass
class Work:
    """A run's rollouts, and those without tools where rows are asked so too; told what comes of each."""

    main: Part
    without: Part | None
    schedule: Schedule
    num_left: int  # rollouts with tools
    chosen: list[SampleId] | None = None  # all of them, where they are the few that an estimate takes
    draws: Draws | None = None  # where the rows are chosen by what comes of others
    num_found_told: int = 0  # of its rollouts that had their trace already

    @classmethod
    def of(cls, solver: RolloutSolver, wanted: Rollouts, bins: Bins | None = None) -> Work:
        """What is left to do; raises UsageError where a folder's traces cannot be kept.

        With bins, the rows that are wanted are those that may be drawn.
        """
        flags = solver.plan.flags
        main, without = Part.of(solver, wanted), None
        if bins is not None:
            return cls._of_draws(main, bins)
        if flags.estimate_samples is not None:
            return cls._of_few(main, flags.estimate_samples)
        if flags.rollouts.also_without_tools:
            without = Part.of(solver_without_tools(solver), Rollouts(wanted.rows), counts_spending=False)
            main.totals.without_tools = without.totals
        schedule = Schedule(_rows(main, without), goal_of(flags.rollouts), len(main.accepted))
        return cls(main, without, schedule, len(main.left))

    @classmethod
    def _of_draws(cls, main: Part, bins: Bins) -> Work:
        """Rows that are drawn as the run goes on, after those that are drawn already."""
        flags = main.solver.plan.flags
        draws = Draws(bins, flags, DrawsFile(main.folder.path, bins.drawn_from))
        of_all, accepted = main.left, main.accepted
        drawn = draws.wanted()
        done = {each for each in drawn if each in of_all.done} if drawn.rows else set()
        main.left = Left(drawn, done, of_all.only)
        main.totals.num_skipped, main.accepted = len(done), accepted & done
        is_retry = flags.samples.retry_failed
        num_left = len(main.left) if is_retry else draws.num_samples - len(done)
        rows = draws.rows(of_all, accepted, draws_more=not is_retry)
        return cls(main, None, Schedule(rows, Goal(), len(main.accepted)), num_left, draws=draws)

    @classmethod
    def _of_few(cls, main: Part, number: int) -> Work:
        """The few that are measured: of many rows, and none that is not needed in any case."""
        needed = sorted(_needed(main), key=lambda each: each.rollout)
        resumed = main.resumed()
        chosen = choose_samples(needed, resumed, number)
        main.totals.measured.num_resumed = len(resumed.intersection(chosen))
        rows = [Row(each.index, deque([each])) for each in chosen]
        return cls(main, None, Schedule(rows, Goal(), len(main.accepted)), len(chosen), chosen)

    @property
    def parts(self) -> list[Part]:
        """One for each folder."""
        return [self.main] if self.without is None else [self.main, self.without]

    @property
    def num_done(self) -> int:
        """The samples that there were already, with tools or without."""
        return sum(len(part.left.done) for part in self.parts)

    @property
    def num_samples(self) -> int:
        """All samples, done or not."""
        num_without = len(self.without.left) if self.without is not None else 0
        return self.num_left + num_without + self.num_done

    @property
    def is_lacking(self) -> bool:
        """Whether the run has not come to what it was to."""
        totals = self.main.totals
        num_failed = sum(part.totals.measured.num_failed for part in self.parts)
        misses_target = totals.rows is not None and totals.rows.misses_target
        misses_aim = totals.aim is not None and totals.aim.why_missed is not None
        return bool(num_failed or totals.stopped_by or misses_target or misses_aim)

    def begin(self) -> None:
        """Write that the run has begun."""
        self.main.totals.rows = self._row_totals()
        self.main.totals.aim = None if self.draws is None else self.draws.totals()
        for part in self.parts:
            part.begin()

    def add(self, outcome: Outcome[TraceSummary]) -> int:
        """Count a sample that ended; returns how many others it makes needless."""
        is_without = isinstance(outcome.sample_id, WithoutTools) and self.without is not None
        part = self.without if is_without and self.without is not None else self.main
        part.add(outcome)
        self.main.totals.stopped_by = self.main.totals.stopped_by or outcome.stopped
        before = self.schedule.num_not_needed
        is_accepted = outcome.result is not None and bool(outcome.result.is_accepted)
        self.schedule.note(outcome.sample_id, is_accepted)
        if self.draws is not None:
            self.draws.note(outcome.sample_id, None if outcome.result is None else is_accepted)
            found, self.num_found_told = self.draws.num_found - self.num_found_told, self.draws.num_found
            return found
        return self.schedule.num_not_needed - before

    def end(self) -> None:
        """Bring all records up to date."""
        if self.draws is not None:
            self.draws.close()
        self.main.totals.rows = self._row_totals()
        self.main.totals.aim = None if self.draws is None else self.draws.totals()
        for part in self.parts:
            part.totals.stopped_by = self.main.totals.stopped_by
            part.end()

    def selection(self) -> Selection:
        """What an estimate is for."""
        flags, wanted, done = self.main.solver.plan.flags, self.main.left.wanted, self.main.left.done
        num_left = len(wanted) - len(done)
        if flags.rollouts.stops_early:
            num_left = sum(1 for _ in _of_lacking_rows(self.main, Left(wanted, done)))
        return Selection(len(wanted), num_left, flags.samples.max_workers, tuple(self._notes()))

    def _notes(self) -> Iterator[str]:
        """What an estimate of several rollouts a row is to be read with."""
        flags, wanted = self.main.solver.plan.flags.rollouts, self.main.left.wanted
        if wanted.num_each > 1:
            yield f"{len(wanted.rows):,} rows of {wanted.num_each} rollouts each."
        if flags.accept is not None:
            num_accepted = self.schedule.num_accepted - len(self.main.accepted)
            accepted = (
                f"{num_accepted} of this run's {self.main.totals.traces.num_traces} traces are accepted"
            )
            ends = "; all is the most that it may take" if flags.stops_early else ""
            yield f"{accepted}{ends}."
        if flags.also_without_tools:
            yield f"Not counted: a request without tools for each of {len(wanted.rows):,} rows."

    def _row_totals(self) -> RowTotals | None:
        """What the rows' rollouts came to; None where each has one and nobody asks which are accepted."""
        flags, wanted, schedule = self.main.solver.plan.flags, self.main.left.wanted, self.schedule
        asked = flags.rollouts
        if wanted.num_each == 1 and asked.accept is None:
            return None
        goal = goal_of(asked)
        is_enough = schedule.is_reached and not self.main.totals.stopped_by
        return RowTotals(
            num_rows=len(wanted.rows),
            num_each=wanted.num_each,
            num_done=len(self.main.left.done) + self.main.totals.traces.num_traces,
            enough=int(goal.enough),
            target=None if flags.estimate_samples is not None else asked.target_accepted,
            condition=asked.accept,
            num_accepted=schedule.num_accepted,
            num_rows_enough=schedule.num_rows_enough + _num_enough(self.main, goal),
            num_not_needed=self.num_left - schedule.num_begun if is_enough else schedule.num_not_needed,
        )


def _rows(main: Part, without: Part | None) -> Iterator[Row]:
    """The rows that have something left, in the order in which they are to be asked.

    Those that have paid turns come first, so that a limit is spent on finishing them; but not where rows are
    counted up to a target, which goes by their order.
    """
    flags = main.solver.plan.flags.rollouts
    paid = main.resumed() if flags.target_accepted is None else set()
    left = paid_first(main.left, paid, whole_rows=flags.accept is not None)
    rows = rows_of(left, _num_accepted(main))
    if without is None:
        return rows
    begun, left_without = {each.index for each in main.left.done}, without.left
    return with_companions(rows, main.left.wanted.rows, begun, lambda row: SampleId(row) in left_without)


def _of_lacking_rows(main: Part, left: Left) -> Iterator[SampleId]:
    """Of the rollouts that are left, those of rows without enough accepted traces."""
    goal, num_accepted = (
        goal_of(main.solver.plan.flags.rollouts),
        Counter(each.index for each in main.accepted),
    )
    return (each for each in left if num_accepted[each.index] < goal.of_row)


def _needed(main: Part) -> Iterator[SampleId]:
    """The rollouts that are needed whatever comes of the others."""
    goal, num_accepted = (
        goal_of(main.solver.plan.flags.rollouts),
        Counter(each.index for each in main.accepted),
    )
    num_lacking = goal.of_run - len(main.accepted)
    for index, left in groupby(_of_lacking_rows(main, main.left), lambda each: each.index):
        for place, sample_id in enumerate(left):
            if place < goal.of_row - num_accepted[index] and num_lacking > 0:
                num_lacking -= 1
                yield sample_id


def _num_enough(main: Part, goal: Goal) -> int:
    """How many rows had enough accepted traces already."""
    return sum(number >= goal.enough for number in _num_accepted(main).values())


def _num_accepted(main: Part) -> Counter[int]:
    """How many accepted traces each row had already."""
    return Counter(each.index for each in main.accepted)
