"""All that a run is to ask, what is enough of it, and what came of it: its record and its totals."""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import chain, filterfalse, groupby

from distil.commands.flags import RolloutFlags, SampleFlags, ToolFlags, flags_json
from distil.errors import TraceError, UsageError
from distil.records import Json, Outcome, SampleId
from distil.run.draws import Draws, check_aim
from distil.run.schedule import Rollouts, Row, Schedule, WithoutTools, plain, rows_of, with_companions
from distil.run.solver import RolloutSolver
from distil.spending.budget import Spent
from distil.spending.estimate import Measured, SampleSelection, choose_samples
from distil.store.folder import RunFolder, write_readme
from distil.store.run_totals import RowTotals, RunTotals
from distil.store.summary import Totals, TraceSummary, read_summary
from distil.tools.toolbox import load_tools


def check_rollouts(samples: SampleFlags, asked: RolloutFlags, tools: ToolFlags, is_estimate: bool) -> None:
    """Raise UsageError for flags that make no sense together, before anything is opened."""
    check_aim(samples, asked, is_estimate)
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
    if asked.also_without_tools and not load_tools(tools.tools):
        raise UsageError("--also_without_tools: this run offers no tools")


@dataclass
class Part:
    """What one solver is to do, and what came of it."""

    solver: RolloutSolver
    wanted: Rollouts
    done: set[SampleId]  # of those that are wanted: there already
    accepted: set[SampleId]  # of those that are done
    only: set[SampleId] | None  # the ones that may be asked
    totals: RunTotals
    counts_spending: bool  # else what it takes is counted in another part
    record: dict[str, Json] = field(default_factory=dict)

    @classmethod
    def of(cls, solver: RolloutSolver, wanted: Rollouts, counts_spending: bool = True) -> Part:
        """Look at what the solver's folder has; raises UsageError where that cannot be kept."""
        folder, whole, accepted = solver.folder, Totals(), set[SampleId]()

        def show(trace: Mapping[str, Json]) -> None:
            with suppress(TraceError):  # of a task that is not known any more
                whole.add(read_summary(trace))
            if solver.accept is not None and solver.accept(trace):
                accepted.add(SampleId.from_json(trace))

        done = folder.finished(wanted, show)
        only = folder.failed() if solver.plan.flags.samples.retry_failed else None
        spent = solver.teacher.budget.spent if counts_spending else Spent()
        level = solver.teacher.slots.state()
        totals = RunTotals(folder.path, len(done), Measured(spent, spent), level, whole)
        return cls(solver, wanted, done, accepted & done, only, totals, counts_spending)

    @property
    def folder(self) -> RunFolder:
        """Where its traces are."""
        return self.solver.folder

    def is_left(self, sample_id: SampleId) -> bool:
        """Whether a sample is to be asked, if it is wanted."""
        return sample_id not in self.done and (self.only is None or sample_id in self.only)

    def left(self) -> Iterator[SampleId]:
        """The samples that are to be asked, looked up as they are asked for."""
        return filter(self.is_left, self.wanted)

    @property
    def num_left(self) -> int:
        """How many they are."""
        return len(self.wanted) - len(self.done) if self.only is None else sum(1 for _ in self.left())

    def num_accepted(self) -> Counter[int]:
        """How many accepted traces each row had already."""
        return Counter(each.index for each in self.accepted)

    def resumed(self) -> set[SampleId]:
        """The samples that go on from turns of an earlier run."""
        journal = self.folder.journal
        return set(filter(journal.num_turns, self.left())) if journal.unfinished() else set()

    def begin(self) -> None:
        """Write that a run has begun; its time is counted from here on."""
        self.record = _start_record(self.solver, len(self.wanted), len(self.done))
        for totals in (self.totals.rows, self.totals.aim):
            self.record |= totals.as_dict() if totals is not None else {}
        self.folder.write_run_record(self.record)
        write_readme(self.folder.path)
        self.totals.measured.begin()

    def add(self, outcome: Outcome[TraceSummary]) -> None:
        """Count a sample that ended, and write it down where it failed."""
        if outcome.failure is not None:
            self.folder.write_failure(replace(outcome.failure, sample_id=plain(outcome.sample_id)))
        self.totals.add(outcome)

    def end(self) -> None:
        """Bring failures, totals and run record up to date."""
        folder, teacher, totals = self.folder, self.solver.teacher, self.totals
        folder.write_failures()
        is_stopped = totals.stopped_by not in (None, self.solver.halt)
        totals.measured.end(teacher.budget.spent if self.counts_spending else Spent(), is_stopped=is_stopped)
        totals.level, totals.models = teacher.slots.state(), self.solver.models.counts
        totals.warnings = self.solver.warnings()
        probe = {**self.record["probe"], "refuses_fields": teacher.refuses_fields}
        folder.write_run_record({**self.record, **totals.as_dict(), "probe": probe})
        folder.flush()


@dataclass
class Work:
    """A run's rollouts, and those without tools where rows are asked so too; told what comes of each."""

    main: Part
    without: Part | None
    schedule: Schedule
    num_left: int  # rollouts with tools
    chosen: list[SampleId] | None = None  # all of them, where they are the few that an estimate takes
    draws: Draws | None = None  # where the rows are chosen by what comes of others

    @classmethod
    def of(cls, solver: RolloutSolver, wanted: Rollouts, draws: Draws | None = None) -> Work:
        """What is left to do; raises UsageError where a folder's traces cannot be kept.

        With draws, the rows that are wanted are those that may be drawn.
        """
        main, without, num_few = Part.of(solver, wanted), None, solver.plan.flags.estimate_samples
        if draws is not None:
            return cls._of_draws(main, draws)
        if num_few is not None:
            return cls._of_few(main, num_few)
        if solver.plan.flags.rollouts.also_without_tools:
            without = Part.of(solver.without_tools(), Rollouts(wanted.rows), counts_spending=False)
            main.totals.without_tools = without.totals
        schedule = Schedule(_rows(main, without), len(main.accepted), *_enough(main))
        return cls(main, without, schedule, main.num_left)

    @classmethod
    def _of_draws(cls, main: Part, draws: Draws) -> Work:
        """Rows that are drawn as the run goes on, after those that are drawn already."""
        draws.go_on(main.folder.path)
        rows = draws.rows(main.done, main.accepted, main.only)
        main.wanted = draws.wanted()
        main.done = main.done.intersection(main.wanted)
        main.accepted = main.accepted & main.done
        main.totals.num_skipped = len(main.done)
        num_left = draws.num_samples - len(main.done) if main.only is None else main.num_left
        return cls(main, None, Schedule(rows, len(main.accepted)), num_left, draws=draws)

    @classmethod
    def _of_few(cls, main: Part, number: int) -> Work:
        """The few that are measured: of many rows, and none that is not needed in any case."""
        needed = sorted(_needed(main), key=lambda each: each.rollout)
        resumed = main.resumed()
        chosen = choose_samples(needed, resumed, number)
        main.totals.measured.num_resumed = len(resumed.intersection(chosen))
        rows = [Row(each.index, deque([each])) for each in chosen]
        return cls(main, None, Schedule(rows, len(main.accepted)), len(chosen), chosen)

    @property
    def parts(self) -> list[Part]:
        """One for each folder."""
        return [self.main] if self.without is None else [self.main, self.without]

    @property
    def num_done(self) -> int:
        """The samples that there were already, with tools or without."""
        return sum(len(part.done) for part in self.parts)

    @property
    def num_samples(self) -> int:
        """All samples, done or not."""
        return self.num_left + self.num_done + (self.without.num_left if self.without is not None else 0)

    @property
    def is_lacking(self) -> bool:
        """Whether the run has not come to what it was to."""
        totals = self.main.totals
        num_failed = sum(part.totals.measured.num_failed for part in self.parts)
        misses_target = totals.rows is not None and totals.rows.misses_target
        misses_aim = totals.aim is not None and totals.aim.why_missed is not None
        return bool(num_failed or totals.stopped_by or misses_target or misses_aim)

    def part_of(self, sample_id: SampleId) -> Part:
        """The one that a sample is of."""
        if self.without is not None and isinstance(sample_id, WithoutTools):
            return self.without
        return self.main

    def solve(self, sample_id: SampleId) -> TraceSummary:
        """Solve a sample in the way that it is to be asked, in any thread."""
        return self.part_of(sample_id).solver.solve(plain(sample_id))

    def begin(self) -> None:
        """Write that the run has begun."""
        self._take_totals()
        for part in self.parts:
            part.begin()

    def add(self, outcome: Outcome[TraceSummary]) -> int:
        """Count a sample that ended; returns how many others it makes needless."""
        self.part_of(outcome.sample_id).add(outcome)
        self.main.totals.stopped_by = self.main.totals.stopped_by or outcome.stopped
        before = self.schedule.num_not_needed
        is_accepted = outcome.result is not None and bool(outcome.result.is_accepted)
        self.schedule.note(outcome.sample_id, is_accepted)
        if self.draws is not None:
            self.draws.note(outcome.sample_id, None if outcome.result is None else is_accepted)
            return self.draws.take_found()
        return self.schedule.num_not_needed - before

    def end(self) -> None:
        """Bring all records up to date."""
        if self.draws is not None:
            self.draws.close()
        self._take_totals()
        for part in self.parts:
            part.totals.stopped_by = self.main.totals.stopped_by
            part.end()

    def _take_totals(self) -> None:
        self.main.totals.rows = self._row_totals()
        self.main.totals.aim = None if self.draws is None else self.draws.totals()

    def selection(self) -> SampleSelection:
        """What an estimate is for."""
        plan, wanted, done = self.main.solver.plan, self.main.wanted, self.main.done
        num_left = len(wanted) - len(done)
        if plan.flags.rollouts.stops_early:
            num_accepted, (of_row, _) = self.main.num_accepted(), _enough(self.main)
            num_left = sum(each not in done and num_accepted[each.index] < of_row for each in wanted)
        num_left -= self.main.totals.measured.num_finished
        return SampleSelection(len(wanted), num_left, plan.flags.samples.max_workers, tuple(self._notes()))

    def _notes(self) -> Iterator[str]:
        """What an estimate of several rollouts a row is to be read with."""
        flags, wanted = self.main.solver.plan.flags.rollouts, self.main.wanted
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
        plan, wanted, schedule = self.main.solver.plan, self.main.wanted, self.schedule
        asked = plan.flags.rollouts
        if wanted.num_each == 1 and asked.accept is None:
            return None
        enough = asked.accepted_per_sample or 1
        is_enough = schedule.is_reached and not self.main.totals.stopped_by
        return RowTotals(
            num_rows=len(wanted.rows),
            num_each=wanted.num_each,
            num_done=len(self.main.done) + self.main.totals.traces.num_traces,
            enough=enough,
            target=None if plan.flags.estimate_samples is not None else asked.target_accepted,
            condition=asked.accept,
            num_accepted=schedule.num_accepted,
            num_rows_enough=schedule.num_rows_enough
            + sum(number >= enough for number in self.main.num_accepted().values()),
            num_not_needed=self.num_left - schedule.num_begun if is_enough else schedule.num_not_needed,
        )


def _start_record(solver: RolloutSolver, num_samples: int, num_skipped: int) -> dict[str, Json]:
    """The run's record: the facts of the clock, the machine and the server, kept out of the traces."""
    plan, facts, sandbox = solver.plan, solver.plan.facts(), solver.sandbox
    return {
        "started_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "options": flags_json(plan.flags) | {"api_base": plan.shown_urls},
        "dataset": asdict(plan.dataset),
        "probe": dict(plan.probe),
        "settings": plan.settings.as_json(),
        "settings_sha256": facts.settings_sha256,
        "versions": {**facts.versions, "openai": version("openai"), "datasets": version("datasets")},
        "sandbox": sandbox.layers.as_dict() if sandbox is not None else None,
        "num_samples": num_samples,
        "num_skipped": num_skipped,
    }


def _enough(main: Part) -> tuple[float, float]:
    """How many accepted traces are enough, of a row and of the run; infinity for all that there can be."""
    flags = main.solver.plan.flags.rollouts
    return flags.accepted_per_sample or math.inf, flags.target_accepted or math.inf


def _rows(main: Part, without: Part | None) -> Iterator[Row]:
    """The rows that have something left, in the order in which they are to be asked.

    Those that have paid turns come first, so that a limit is spent on finishing them; but not where rows are
    counted up to a target, which goes by their order.
    """
    flags = main.solver.plan.flags.rollouts
    paid = main.resumed() if flags.target_accepted is None else set()
    whole_rows = {each.index for each in paid} if flags.accept is not None else set()

    def is_paid(sample_id: SampleId) -> bool:
        return sample_id.index in whole_rows or sample_id in paid

    in_order = chain(filter(is_paid, main.left()), filterfalse(is_paid, main.left())) if paid else main.left()
    rows = rows_of(in_order, main.num_accepted())
    if without is None:
        return rows
    begun = {each.index for each in main.done}
    return with_companions(rows, main.wanted.rows, begun, lambda row: without.is_left(SampleId(row)))


def _needed(main: Part) -> Iterator[SampleId]:
    """The rollouts that are needed whatever comes of the others."""
    num_accepted, (of_row, of_run) = main.num_accepted(), _enough(main)
    num_lacking = of_run - len(main.accepted)
    for index, left in groupby(main.left(), lambda each: each.index):
        for place, sample_id in enumerate(left):
            if place < of_row - num_accepted[index] and num_lacking > 0:
                num_lacking -= 1
                yield sample_id
