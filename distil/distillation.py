"""One run from options to exit code: set up, solve the samples, write and print what came of it."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import datasets
import openai
from rich.console import Console

from distil.address import find_teacher, started
from distil.budget import Budget, Limits
from distil.concurrency import Level
from distil.preparation import Options, Run, code_sandbox, offered_natively, read_job, set_up, urls_text
from distil.prices import find_prices, read_tokens
from distil.records import Failure, Json, Reply
from distil.report import (
    BoxTally,
    Progress,
    RunTotals,
    SampleSpending,
    Solved,
    print_estimate,
    print_summary,
    solved_from_trace,
)
from distil.rollout import run_rollout
from distil.sampler import Outcome, run_samples
from distil.store import OnChange, RunFolder, free_folder
from distil.teacher import (
    Deadline,
    ReplicatedTeacher,
)
from distil.teacher.client import OPENAI_URL
from distil.tools import CropFrom
from distil.viewer.facts import TraceFacts, trace_facts


def run_distillation(options: Options, console: Console) -> int:
    """Run it; returns 0 where every sample has a trace, 1 where some failed.

    Raises UsageError, SourceError or TeacherRefused where nothing could be run.
    """
    named = find_teacher(options.api_base)  # before anything is opened or drawn
    with code_sandbox(options, console) as sandbox, ExitStack() as stack:
        job = read_job(options, sandbox, console)
        address = stack.enter_context(started(named, console))
        run = set_up(job, address, console)
        folder = _open_folder(run, console)
        level = Level(options.max_workers, options.fixed_workers)
        offered = offered_natively(run.rollout.prompt)
        budget = _open_budget(run, folder)
        with ReplicatedTeacher(run.teacher, run.api_bases, offered, level, budget) as teacher:
            return _run_samples(run, teacher, folder, console)


class RolloutSolver:
    """Solves one row at a time, in any thread, and writes its trace."""

    def __init__(self, run: Run, teacher: ReplicatedTeacher, folder: RunFolder) -> None:
        self._run = run
        self._teacher = teacher
        self._folder = folder
        self.spending: list[SampleSpending] = []

    def solve(self, index: int) -> Solved:
        """Load the row, run its rollout, write its trace."""
        started = time.perf_counter()
        turn_seconds: list[float] = []
        deadline = Deadline.after("sample", self._run.job.options.sample_timeout_seconds)
        sample = self._run.job.source.load(index, self._run.job.task)
        journal = self._folder.journals.of(index, sample.picture.file_sha256)
        with self._teacher.asking() as ask_teacher:

            def ask(messages: Sequence[bytes], seed: int) -> Reply:
                asked = time.perf_counter()
                reply = ask_teacher(messages, seed, deadline)
                turn_seconds.append(round(time.perf_counter() - asked, 4))
                return reply

            rollout = run_rollout(sample, journal.journaled(ask), self._run.rollout)
        trace = self._folder.write_trace(rollout)
        journal.remove()
        seconds = round(time.perf_counter() - started, 4)
        self._folder.write_timing(index, seconds, turn_seconds)
        self.spending.append(self._spending(trace, seconds))
        return solved_from_trace(trace, trace_facts(trace))

    def _spending(self, trace: Json, seconds: float) -> SampleSpending:
        tokens = [read_tokens(turn["usage"]) for turn in trace["conversation_log"]]
        costs = [self._teacher.budget.cost_usd(item) for item in tokens]
        return SampleSpending(seconds, _sum([item.total for item in tokens]), _sum(costs))

    def abort(self) -> None:
        """Close the teacher: requests in flight, pauses and waits for it end at once."""
        self._teacher.close()


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _open_folder(run: Run, console: Console) -> RunFolder:
    path = Path(run.job.options.output_dir)
    is_new = OnChange(run.job.options.on_change) is OnChange.NEW
    folder = RunFolder(free_folder(path, run.facts) if is_new else path, run.facts)
    for note in folder.notes:
        console.print(note, highlight=False, soft_wrap=True)
    return folder


def _open_budget(run: Run, folder: RunFolder) -> Budget:
    options = run.job.options
    limits = Limits(options.max_cost_usd, options.max_total_tokens, options.max_calls)
    prices = find_prices(options.price_per_million, run.teacher.model, run.teacher.api_base or OPENAI_URL)
    spending = folder.spending
    budget = Budget(limits, prices, options.max_tokens, spending.entries(), spending.append)
    budget.count(run.probe.requests)
    return budget


def _run_samples(run: Run, teacher: ReplicatedTeacher, folder: RunFolder, console: Console) -> int:
    options = run.job.options
    done = folder.finished(run.job.indices, OnChange(options.on_change))
    left = [index for index in run.job.indices if index not in done]
    if options.retry_failed:
        failed_before = folder.failed()
        left = [index for index in left if index in failed_before]
    todo = left[: options.estimate_samples]
    record = _start_record(run, len(done))
    folder.write_run_record(record)
    started = time.monotonic()
    facts: list[TraceFacts] = []
    failures: dict[int, Failure] = {}
    stops: list[str] = []
    tally = BoxTally(run.profile.frame, CropFrom(options.crop_from))
    solver = RolloutSolver(run, teacher, folder)
    with Progress(len(todo) + len(done), len(done), teacher.level) as progress:
        teacher.tell_by(progress.write)

        def on_done(outcome: Outcome[Solved]) -> None:
            if outcome.failure is not None:
                failures[outcome.sample_index] = folder.write_failure(outcome.failure)
            if outcome.stopped is not None:
                stops.append(outcome.stopped)
            else:
                progress.count(outcome)

        for outcome in run_samples(todo, solver, options.max_workers, on_done):
            if outcome.result is not None:
                facts.append(outcome.result.facts)
                tally.add(outcome.result)
    failed = [failures[index] for index in sorted(failures)]
    folder.write_failures(todo, failed)
    folder.close()
    stop = stops[0] if stops else None
    totals = RunTotals(
        folder=folder.path,
        facts=facts,
        failures=failed,
        num_skipped=len(done),
        seconds=time.monotonic() - started,
        spent=teacher.budget.spent,
        stopped_by=stop,
        level=teacher.level.state(),
    )
    folder.write_run_record(record | _end_record(totals, tally.warning()))
    print_summary(totals, tally.warning(), console)
    if options.estimate_samples is not None:
        print_estimate(solver.spending, len(run.job.indices), len(left), options.max_workers, console)
    return 1 if failed or stop else 0


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
        "sandbox": run.job.sandbox.levels.as_dict() if run.job.sandbox is not None else None,
        "num_samples": len(run.job.indices),
        "num_skipped": num_skipped,
    }


def _end_record(totals: RunTotals, warning: str | None) -> dict[str, Json]:
    return {
        "seconds": round(totals.seconds, 3),
        "num_finished": len(totals.facts),
        "num_failed": len(totals.failures),
        "spent": asdict(totals.spent),
        "stopped_by": totals.stopped_by,
        "requests_at_once": totals.level.as_dict(),
        "warning": warning,
    }
