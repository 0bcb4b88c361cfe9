"""One run from options to exit code: set up, solve the samples, write and print what came of it."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, field

import datasets
import openai
from rich.console import Console

from distil.errors import FolderError, RunHalted, SandboxUnavailable, TeacherRefused
from distil.records import Failure, Json, Outcome, Reply
from distil.rollout import run_rollout
from distil.run.preparation import (
    Options,
    Run,
    code_sandbox,
    offered_natively,
    open_budget,
    read_job,
    set_up,
    urls_text,
)
from distil.run.suspicion import Tally, signs_of
from distil.run.threads import run_samples
from distil.spending.budget import Spent
from distil.spending.estimate import Measured, SampleSpending, Selection, choose_samples, print_estimate
from distil.spending.prices import read_tokens
from distil.store.folder import RunFolder
from distil.store.summary import trace_facts
from distil.teacher.address import find_teacher, started
from distil.teacher.attempts import Deadline
from distil.teacher.models import AnsweredModels
from distil.teacher.replicas import ReplicatedTeacher
from distil.teacher.slots import Level
from distil.terminal.progress import BoxTally, Progress, RunTotals, Solved, print_summary, solved_from_trace
from distil.tools.base import CropFrom


def run_distillation(options: Options, console: Console) -> int:
    """Run it; returns 0 where every sample has a trace, 1 where some failed.

    Raises UsageError, SourceError or TeacherRefused where nothing could be run.
    """
    named = find_teacher(options.api_base)  # before anything is opened or drawn
    with code_sandbox(options, console) as sandbox, ExitStack() as stack:
        job = read_job(options, sandbox, console)
        address = stack.enter_context(started(named, console))
        run = set_up(job, address, console)
        level = Level(options.max_workers, options.fixed_workers)
        offered = offered_natively(run.rollout.prompt)
        budget = open_budget(options, run.teacher, run.folder.spending)
        with ReplicatedTeacher(run.teacher, run.api_bases, offered, level, budget) as teacher:
            return _run_samples(run, teacher, console)


class RolloutSolver:
    """Solves one row at a time, in any thread, and writes its trace."""

    def __init__(self, run: Run, teacher: ReplicatedTeacher) -> None:
        self.run, self.teacher, self.folder = run, teacher, run.folder
        self.models = AnsweredModels()
        self.spending: list[SampleSpending] = []
        options = run.job.options
        self.tally = Tally(options.max_tokens, options.max_turns, run.probe.seems_blind)

    def solve(self, index: int) -> Solved:
        """Load the row, run its rollout, write its trace; raises RunHalted where that has no point."""
        if self.halt is not None:
            raise RunHalted(self.halt)
        started = time.perf_counter()
        turn_seconds: list[float] = []
        deadline = Deadline.after("sample", self.run.job.options.sample_timeout_seconds)
        sample = self.run.job.source.load(index, self.run.job.task)
        journal = self.folder.journals.of(index, sample.picture.file_sha256)
        is_resumed = journal.num_turns > 0
        with self.teacher.asking() as ask_teacher:

            def ask(messages: Sequence[bytes], seed: int) -> Reply:
                asked = time.perf_counter()
                reply = ask_teacher(messages, seed, deadline)
                turn_seconds.append(round(time.perf_counter() - asked, 4))
                return reply

            ask_or_recall = journal.journaled(ask)

            def ask_noted(messages: Sequence[bytes], seed: int) -> Reply:
                reply = ask_or_recall(messages, seed)
                self.models.note(reply.model)
                return reply

            rollout = run_rollout(sample, ask_noted, self.run.rollout)
        trace = self.folder.write_trace(rollout)
        journal.remove()
        seconds = round(time.perf_counter() - started, 4)
        self.folder.write_timing(index, seconds, turn_seconds)
        self.spending.append(self._spending(trace, seconds))
        self.tally.add(signs_of(trace), is_resumed)
        return solved_from_trace(trace, trace_facts(trace))

    @property
    def halt(self) -> str | None:
        """Why no further sample should be started, or None."""
        return None if self.run.job.options.keep_going else self.tally.halt

    def _spending(self, trace: Json, seconds: float) -> SampleSpending:
        tokens = [read_tokens(turn["usage"]) for turn in trace["conversation_log"]]
        costs = [self.teacher.budget.cost_usd(item) for item in tokens]
        return SampleSpending(seconds, _sum([item.total for item in tokens]), _sum(costs))

    def abort(self) -> None:
        """Close the teacher: requests in flight, pauses and waits for it end at once."""
        self.teacher.close()


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


@dataclass
class _Collected:
    """What has come of the samples so far."""

    solved: dict[int, Solved] = field(default_factory=dict)
    failures: dict[int, Failure] = field(default_factory=dict)
    stopped_by: str | None = None
    started: float = field(default_factory=time.monotonic)


def _run_samples(run: Run, teacher: ReplicatedTeacher, console: Console) -> int:
    options, folder = run.job.options, run.folder
    done = folder.finished(run.job.indices)
    left = [index for index in run.job.indices if index not in done]
    if options.retry_failed:
        failed_before = folder.failed()
        left = [index for index in left if index in failed_before]
    todo, resumed = left, set[int]()
    if options.estimate_samples is not None:
        resumed = _resumed(folder, left)
        todo = choose_samples(left, resumed, options.estimate_samples)
    for note in folder.resume_notes(todo):
        console.print(note, highlight=False, soft_wrap=True)
    spent_before = teacher.budget.spent  # the probe, and earlier runs
    record = _start_record(run, len(done))
    folder.write_run_record(record)
    solver, got = RolloutSolver(run, teacher), _Collected()
    try:
        _solve(todo, len(done), solver, got)
    except (TeacherRefused, FolderError, SandboxUnavailable, KeyboardInterrupt) as error:
        got.stopped_by = str(error) or "interrupted"
        with suppress(FolderError):
            totals = _end(solver, got, len(done), record)
            if got.solved and not isinstance(error, KeyboardInterrupt):
                print_summary(totals, console)
                console.print("The same command goes on from here.")
        raise
    totals = _end(solver, got, len(done), record)
    folder.close()  # not where threads may still write
    print_summary(totals, console)
    if options.estimate_samples is not None:
        num_samples, num_resumed = len(run.job.indices), len(resumed.intersection(todo))
        selection = Selection(num_samples, num_samples - len(done), options.max_workers)
        is_cut_off = got.stopped_by not in (None, solver.halt)
        measured = _measured(totals, solver.spending, num_resumed, spent_before, is_cut_off)
        print_estimate(measured, selection, console)
    return 1 if got.failures or got.stopped_by else 0


def _resumed(folder: RunFolder, left: Sequence[int]) -> set[int]:
    """The rows that go on from turns of an earlier run."""
    states = {index: folder.journals.state(index) for index in left}
    return {index for index, state in states.items() if state and state.is_ours and state.num_turns}


def _measured(
    totals: RunTotals,
    finished: Sequence[SampleSpending],
    num_resumed: int,
    spent_before: Spent,
    is_cut_off: bool,
) -> Measured:
    return Measured(
        finished=finished,
        num_failed=len(totals.failures),
        num_resumed=num_resumed,
        is_stopped=is_cut_off,
        seconds=totals.seconds,
        spent_before=spent_before,
        spent_after=totals.spent,
    )


def _solve(todo: Sequence[int], num_done: int, solver: RolloutSolver, got: _Collected) -> None:
    """Solve the rows; `got` grows with each that ends, whatever ends the run."""
    with Progress(len(todo) + num_done, num_done, solver.teacher.level) as progress:
        solver.teacher.tell_by(progress.write)
        solver.models.tell = progress.write

        outcomes = run_samples(todo, solver, solver.run.job.options.max_workers)
        with closing(outcomes):  # at once where an outcome cannot be written
            for outcome in outcomes:
                _count(outcome, solver, got)
                if outcome.stopped is None:
                    progress.count(outcome)


def _count(outcome: Outcome[Solved], solver: RolloutSolver, got: _Collected) -> None:
    if outcome.result is not None:
        got.solved[outcome.sample_index] = outcome.result
    if outcome.failure is not None:
        got.failures[outcome.sample_index] = solver.folder.write_failure(outcome.failure)
    got.stopped_by = got.stopped_by or outcome.stopped


def _end(solver: RolloutSolver, got: _Collected, num_skipped: int, record: Mapping[str, Json]) -> RunTotals:
    """Bring ledger and run record up to date; returns what the run came to."""
    run, teacher = solver.run, solver.teacher
    failures = [got.failures[index] for index in sorted(got.failures)]
    run.folder.write_failures(got.solved.keys(), failures)
    totals = RunTotals(
        folder=run.folder.path,
        facts=[got.solved[index].facts for index in run.job.indices if index in got.solved],
        failures=failures,
        num_skipped=num_skipped,
        seconds=time.monotonic() - got.started,
        spent=teacher.budget.spent,
        stopped_by=got.stopped_by,
        level=teacher.level.state(),
        models=solver.models.counts,
        warnings=_warnings(solver, got),
    )
    probe = {**record["probe"], "refuses_fields": teacher.refuses_fields}
    run.folder.write_run_record({**record, **_end_record(totals), "probe": probe})
    return totals


def _warnings(solver: RolloutSolver, got: _Collected) -> list[str]:
    """All that is suspicious about the run, a line each."""
    run = solver.run
    boxes = BoxTally(run.profile.frame, CropFrom(run.job.options.crop_from))
    for solved in got.solved.values():
        boxes.add(solved)
    found = [run.probe.sight_warning, solver.models.warning(), *solver.tally.warnings(), boxes.warning()]
    return [warning for warning in found if warning is not None]


def _start_record(run: Run, num_skipped: int) -> dict[str, Json]:
    """The run's record: the facts of the clock, the machine and the server, kept out of the traces."""
    options = asdict(run.job.options)
    return {
        "started_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "options": options | {"api_base": urls_text(run.teacher, run.api_bases)},
        "dataset": asdict(run.job.source.identity),
        "probe": run.probe.as_dict(),
        "settings": dict(run.facts.settings),
        "settings_sha256": run.facts.settings_sha256,
        "versions": {**run.facts.versions, "openai": openai.__version__, "datasets": datasets.__version__},
        "sandbox": run.job.sandbox.layers.as_dict() if run.job.sandbox is not None else None,
        "num_samples": len(run.job.indices),
        "num_skipped": num_skipped,
    }


def _end_record(totals: RunTotals) -> dict[str, Json]:
    return {
        "seconds": round(totals.seconds, 3),
        "num_finished": len(totals.facts),
        "num_failed": len(totals.failures),
        "spent": asdict(totals.spent),
        "stopped_by": totals.stopped_by,
        "requests_at_once": totals.level.as_dict(),
        "models": dict(totals.models),
        "warnings": list(totals.warnings),
    }
