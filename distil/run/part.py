"""A folder's share of a run: what is wanted of it, what it has already, its record and its totals."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version

from distil.commands.flags import flags_json
from distil.errors import TraceError
from distil.records import Json, Outcome, SampleId
from distil.run.schedule import Rollouts, plain
from distil.run.solver import RolloutSolver
from distil.spending.budget import Spent
from distil.spending.estimate import Measured
from distil.store.folder import RunFolder, write_readme
from distil.store.run_totals import RunTotals
from distil.store.summary import Totals, TraceSummary, read_summary


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
