"""A folder's share of a run: what is wanted of it, what it has already, its record and its totals."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version

from distil.commands.flags import flags_json
from distil.errors import TraceError
from distil.records import Failure, Json, Outcome, SampleId
from distil.run.schedule import Left, Rollouts
from distil.run.solver import RolloutSolver
from distil.spending.budget import Spent
from distil.spending.estimate import Measured
from distil.store.folder import RunFolder, write_readme
from distil.store.run_totals import RunTotals
from distil.store.summary import Totals, TraceSummary, read_summary


@dataclass
class Part:
    """What one solver is to do, and what came of it; what it `left` is looked up as it is asked for."""

    solver: RolloutSolver
    left: Left
    totals: RunTotals
    accepted: set[SampleId] = field(default_factory=set)  # of those that were there already
    record: dict[str, Json] = field(default_factory=dict)
    counts_spending: bool = True  # else what it takes is counted in another part

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
        totals = RunTotals(
            folder.path, len(done), Measured(spent, spent), solver.teacher.slots.state(), whole
        )
        return cls(solver, Left(wanted, done, only), totals, accepted & done, counts_spending=counts_spending)

    @property
    def folder(self) -> RunFolder:
        """Where its traces are."""
        return self.solver.folder

    def resumed(self) -> set[SampleId]:
        """The samples that go on from turns of an earlier run."""
        journal = self.folder.journal
        if not journal.unfinished():
            return set()
        return {sample_id for sample_id in self.left if journal.num_turns(sample_id)}

    def begin(self) -> None:
        """Write that a run has begun; its time is counted from here on."""
        self.record = _start_record(self.solver, len(self.left.wanted), len(self.left.done))
        if self.totals.rows is not None:
            self.record |= self.totals.rows.as_dict()
        if self.totals.aim is not None:
            self.record |= self.totals.aim.as_dict()
        self.folder.write_run_record(self.record)
        write_readme(self.folder.path)
        measured = self.totals.measured
        self.totals.measured = Measured(measured.spent_before, measured.spent_before, measured.num_resumed)

    def add(self, outcome: Outcome[TraceSummary]) -> None:
        """Count a sample that ended, and write it down where it failed."""
        if outcome.failure is not None:
            self.folder.write_failure(_plain(outcome.failure))
        if outcome.result is not None:
            self.solver.boxes.add(outcome.result.boxes)
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


def _plain(failure: Failure) -> Failure:
    """A failure as its folder knows it."""
    sample_id = failure.sample_id
    return replace(failure, sample_id=SampleId(sample_id.index, sample_id.rollout))


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
