"""One run from options to exit code: set up, solve the samples, write and print what came of it."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, replace

import datasets
import openai
from rich.console import Console

from distil.errors import FolderError, RunHalted, SandboxUnavailable, TeacherRefused
from distil.records import Json, Reply
from distil.rollout import run_rollout
from distil.run.boxes import BoxTally
from distil.run.finished import summary_of
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
from distil.run.suspicion import Tally
from distil.run.threads import run_samples
from distil.spending.estimate import Measured, Selection, choose_samples, print_estimate
from distil.store.folder import RunFolder
from distil.store.run_totals import RunTotals
from distil.store.summary import TraceSummary
from distil.teacher.address import find_teacher, started
from distil.teacher.attempts import Deadline
from distil.teacher.models import AnsweredModels
from distil.teacher.replicas import ReplicatedTeacher
from distil.teacher.slots import Level
from distil.terminal.progress import Progress
from distil.terminal.summary import print_summary
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
        options = run.job.options
        self.tally = Tally(options.max_tokens, options.max_turns, run.probe.seems_blind)
        self.boxes = BoxTally(run.profile.frame, CropFrom(options.crop_from))

    def solve(self, index: int) -> TraceSummary:
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
        self.folder.write_trace(rollout)
        journal.remove()
        seconds = round(time.perf_counter() - started, 4)
        self.folder.write_timing(index, seconds, turn_seconds)
        summary = summary_of(rollout, self.run.rollout.prompt, self.teacher.budget.cost_usd)
        summary = replace(summary, seconds=seconds, is_resumed=is_resumed)
        self.tally.add(summary)
        return summary

    def warnings(self) -> list[str]:
        """All that is suspicious about the run, a line each."""
        probe = self.run.probe
        found = [probe.sight_warning, self.models.warning(), *self.tally.warnings(), self.boxes.warning()]
        return [warning for warning in found if warning is not None]

    @property
    def halt(self) -> str | None:
        """Why no further sample should be started, or None."""
        return None if self.run.job.options.keep_going else self.tally.halt

    def abort(self) -> None:
        """Close the teacher: requests in flight, pauses and waits for it end at once."""
        self.teacher.close()


def _run_samples(run: Run, teacher: ReplicatedTeacher, console: Console) -> int:
    folder = run.folder
    done = folder.finished(run.job.indices)
    todo, num_resumed = _to_do(run, done)
    for note in folder.resume_notes(todo):
        console.print(note, highlight=False, soft_wrap=True)
    spent = teacher.budget.spent  # the probe, and earlier runs
    record = _start_record(run, len(done))
    folder.write_run_record(record)
    solver = RolloutSolver(run, teacher)
    measured = Measured(spent, spent, num_resumed)
    totals = RunTotals(folder.path, len(done), measured, teacher.level.state())
    try:
        _solve(todo, solver, totals)
    except (TeacherRefused, FolderError, SandboxUnavailable, KeyboardInterrupt) as error:
        totals.stopped_by = str(error) or "interrupted"
        with suppress(FolderError):
            _end(solver, totals, record)
            if totals.traces.num_traces and not isinstance(error, KeyboardInterrupt):
                print_summary(totals, console)
                console.print("The same command goes on from here.")
        raise
    _end(solver, totals, record)
    folder.close()  # not where threads may still write
    print_summary(totals, console)
    if run.job.options.estimate_samples is not None:
        num_samples = len(run.job.indices)
        selection = Selection(num_samples, num_samples - len(done), run.job.options.max_workers)
        print_estimate(measured, selection, console)
    return 1 if measured.num_failed or totals.stopped_by else 0


def _to_do(run: Run, done: Collection[int]) -> tuple[Sequence[int], int]:
    """The rows to solve; and for an estimate, how many of them go on from turns of an earlier run."""
    options, folder = run.job.options, run.folder
    left = [index for index in run.job.indices if index not in done]
    if options.retry_failed:
        failed_before = folder.failed()
        left = [index for index in left if index in failed_before]
    if options.estimate_samples is None:
        return left, 0
    resumed = _resumed(folder, left)
    todo = choose_samples(left, resumed, options.estimate_samples)
    return todo, len(resumed.intersection(todo))


def _resumed(folder: RunFolder, left: Sequence[int]) -> set[int]:
    """The rows that go on from turns of an earlier run."""
    states = {index: folder.journals.state(index) for index in left}
    return {index for index, state in states.items() if state and state.is_ours and state.num_turns}


def _solve(todo: Sequence[int], solver: RolloutSolver, totals: RunTotals) -> None:
    """Solve the rows; `totals` count each that ends, whatever ends the run."""
    num_done = totals.num_skipped
    with Progress(len(todo) + num_done, num_done, solver.teacher.level) as progress:
        solver.teacher.tell_by(progress.write)
        solver.models.tell = progress.write
        outcomes = run_samples(todo, solver, solver.run.job.options.max_workers)
        with closing(outcomes):  # at once where a failure cannot be written
            for outcome in outcomes:
                if outcome.failure is not None:
                    solver.folder.write_failure(outcome.failure)
                if outcome.result is not None:
                    solver.boxes.add(outcome.result.boxes)
                totals.add(outcome)
                if outcome.stopped is None:
                    progress.count(outcome)


def _end(solver: RolloutSolver, totals: RunTotals, record: Mapping[str, Json]) -> None:
    """Bring ledger, totals and run record up to date."""
    folder, teacher = solver.folder, solver.teacher
    folder.write_failures()
    totals.measured.end(teacher.budget.spent, is_stopped=totals.stopped_by not in (None, solver.halt))
    totals.level, totals.models = teacher.level.state(), solver.models.counts
    totals.warnings = solver.warnings()
    probe = {**record["probe"], "refuses_fields": teacher.refuses_fields}
    folder.write_run_record({**record, **totals.as_dict(), "probe": probe})


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
