"""One run from its flags to its exit code: set up, solve the samples, write and print what came of it."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field

import datasets
import openai
from rich.console import Console

from distil.errors import FolderError, RunHalted, SandboxUnavailable, TeacherRefused
from distil.flags import RunFlags, flags_json
from distil.records import Failure, Json, Outcome, Reply, SampleId
from distil.rollout import run_rollout
from distil.run.plan import Plan
from distil.run.settle import chosen_task, read_user_prompt, settle
from distil.run.solver import open_rows, open_sandbox, open_teacher, rollout_settings
from distil.run.suspicion import Tally, signs_of
from distil.run.threads import run_samples
from distil.sandbox.sandbox import Sandbox
from distil.source.rows import Source
from distil.spending.budget import Spent
from distil.spending.estimate import Measured, SampleSpending, Selection, choose_samples, print_estimate
from distil.spending.prices import read_tokens
from distil.store.folder import RunFolder
from distil.store.summary import trace_facts
from distil.teacher.address import find_teacher, served
from distil.teacher.attempts import Deadline
from distil.teacher.client import Teacher
from distil.teacher.models import AnsweredModels
from distil.terminal.progress import BoxTally, Progress, RunTotals, Solved, print_summary, solved_from_trace


def run_distillation(flags: RunFlags, console: Console) -> int:
    """Run it; returns 0 where every sample has a trace, 1 where some failed.

    Raises UsageError, SourceError or TeacherRefused where nothing could be run.
    """
    named = find_teacher(flags.teacher.api_base)  # before anything is opened or drawn
    with open_sandbox(flags, console) as sandbox, ExitStack() as stack:
        user_prompt = read_user_prompt(flags.teacher.user_prompt_file)
        source, indices = open_rows(flags.samples, chosen_task(), console)
        address = stack.enter_context(served(named, console))
        plan, output = settle(flags, user_prompt, source, address, console)
        folder = RunFolder(output, plan.facts(), plan.on_change)
        with open_teacher(plan, plan.teacher(address.api_key), folder.spending) as teacher:
            solver = RolloutSolver(plan, source, folder, teacher, sandbox)
            return _run_samples(solver, _sample_ids(indices), console)


class RolloutSolver:
    """Solves one row at a time, in any thread, and writes its trace."""

    def __init__(
        self,
        plan: Plan,
        source: Source,
        folder: RunFolder,
        teacher: Teacher,
        sandbox: Sandbox | None = None,
    ) -> None:
        self.plan, self.source, self.folder = plan, source, folder
        self.teacher, self.sandbox = teacher, sandbox
        self.rollout = rollout_settings(plan.settings, sandbox)
        self.models = AnsweredModels()
        self.spending: list[SampleSpending] = []
        self.tally = Tally(plan.settings.max_tokens, plan.settings.max_turns, plan.seems_blind)

    def solve(self, sample_id: SampleId) -> Solved:
        """Load the row, run its rollout, write its trace; raises RunHalted where that has no point."""
        if self.halt is not None:
            raise RunHalted(self.halt)
        started = time.perf_counter()
        deadline = Deadline.after("sample", self.plan.flags.teacher.sample_timeout_seconds)
        sample = self.source.load(sample_id)
        journal = self.folder.journals.of(sample_id, sample.picture.file_sha256)
        is_resumed = journal.num_turns > 0
        with self.teacher.asking(deadline) as teacher:
            ask_or_recall = journal.journaled(teacher.ask)

            def ask_noted(messages: Sequence[bytes], seed: int) -> Reply:
                reply = ask_or_recall(messages, seed)
                self.models.note(reply.model)
                return reply

            rollout = run_rollout(sample, ask_noted, self.rollout)
        trace = self.folder.write_trace(rollout)
        journal.remove()
        seconds = round(time.perf_counter() - started, 4)
        self.folder.write_timing(sample_id, seconds, teacher.turn_seconds)
        self.spending.append(self._spending(trace, seconds))
        self.tally.add(signs_of(trace), is_resumed)
        return solved_from_trace(trace, trace_facts(trace))

    @property
    def halt(self) -> str | None:
        """Why no further sample should be started, or None."""
        return None if self.plan.flags.samples.keep_going else self.tally.halt

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

    solved: dict[SampleId, Solved] = field(default_factory=dict)
    failures: dict[SampleId, Failure] = field(default_factory=dict)
    stopped_by: str | None = None
    started: float = field(default_factory=time.monotonic)


def _run_samples(solver: RolloutSolver, wanted: Sequence[SampleId], console: Console) -> int:
    flags, folder, teacher = solver.plan.flags, solver.folder, solver.teacher
    done = folder.finished(wanted)
    left = [sample_id for sample_id in wanted if sample_id not in done]
    if flags.samples.retry_failed:
        failed_before = folder.failed()
        left = [sample_id for sample_id in left if sample_id in failed_before]
    todo, resumed = left, set[SampleId]()
    if flags.estimate_samples is not None:
        resumed = _resumed(folder, left)
        todo = choose_samples(left, resumed, flags.estimate_samples)
    for note in folder.resume_notes(todo):
        console.print(note, highlight=False, soft_wrap=True)
    spent_before = teacher.budget.spent  # the probe, and earlier runs
    record = _start_record(solver, len(wanted), len(done))
    folder.write_run_record(record)
    got = _Collected()
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
    if flags.estimate_samples is not None:
        num_samples, num_resumed = len(wanted), len(resumed.intersection(todo))
        selection = Selection(num_samples, num_samples - len(done), flags.samples.max_workers)
        is_cut_off = got.stopped_by not in (None, solver.halt)
        measured = _measured(totals, solver.spending, num_resumed, spent_before, is_cut_off)
        print_estimate(measured, selection, console)
    return 1 if got.failures or got.stopped_by else 0


def _sample_ids(indices: Sequence[int]) -> list[SampleId]:
    """The samples of the selected rows, in their order."""
    return [SampleId(index) for index in indices]


def _resumed(folder: RunFolder, left: Sequence[SampleId]) -> set[SampleId]:
    """The samples that go on from turns of an earlier run."""
    states = {sample_id: folder.journals.state(sample_id) for sample_id in left}
    return {sample_id for sample_id, state in states.items() if state and state.is_ours and state.num_turns}


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


def _solve(todo: Sequence[SampleId], num_done: int, solver: RolloutSolver, got: _Collected) -> None:
    """Solve the samples; `got` grows with each that ends, whatever ends the run."""
    with Progress(len(todo) + num_done, num_done, solver.teacher.slots) as progress:
        solver.teacher.tell_by(progress.write)
        solver.models.tell = solver.folder.journals.tell = progress.write

        def on_done(outcome: Outcome[Solved]) -> None:
            if outcome.result is not None:
                got.solved[outcome.sample_id] = outcome.result
            if outcome.failure is not None:
                got.failures[outcome.sample_id] = solver.folder.write_failure(outcome.failure)
            if outcome.stopped is not None:
                got.stopped_by = got.stopped_by or outcome.stopped
            else:
                progress.count(outcome)

        for _ in run_samples(todo, solver, solver.plan.flags.samples.max_workers, on_done):
            pass


def _end(solver: RolloutSolver, got: _Collected, num_skipped: int, record: Mapping[str, Json]) -> RunTotals:
    """Bring ledger and run record up to date; returns what the run came to."""
    folder, teacher = solver.folder, solver.teacher
    failures = [got.failures[sample_id] for sample_id in sorted(got.failures)]
    folder.write_failures(got.solved.keys(), failures)
    totals = RunTotals(
        folder=folder.path,
        facts=[got.solved[sample_id].facts for sample_id in sorted(got.solved)],
        failures=failures,
        num_skipped=num_skipped,
        seconds=time.monotonic() - got.started,
        spent=teacher.budget.spent,
        stopped_by=got.stopped_by,
        level=teacher.slots.state(),
        models=solver.models.counts,
        warnings=_warnings(solver, got),
    )
    probe = {**record["probe"], "refuses_fields": teacher.refuses_fields}
    folder.write_run_record({**record, **_end_record(totals), "probe": probe})
    return totals


def _warnings(solver: RolloutSolver, got: _Collected) -> list[str]:
    """All that is suspicious about the run, a line each."""
    settings = solver.plan.settings
    boxes = BoxTally(settings.coordinates, settings.crop_from)
    for solved in got.solved.values():
        boxes.add(solved)
    found = [
        solver.plan.sight_warning,
        solver.models.warning(),
        solver.folder.journals.warning(),
        *solver.tally.warnings(),
        boxes.warning(),
    ]
    return [warning for warning in found if warning is not None]


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
        "versions": {**facts.versions, "openai": openai.__version__, "datasets": datasets.__version__},
        "sandbox": sandbox.layers.as_dict() if sandbox is not None else None,
        "num_samples": num_samples,
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
