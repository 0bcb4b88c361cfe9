"""One run from its flags to its exit code: set up, solve the samples, write and print what came of it."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from typing import overload

from distil.errors import FolderError, SandboxUnavailable, TeacherRefused, TraceError
from distil.flags import RunFlags, flags_json
from distil.process import reuse_memory
from distil.records import Json, SampleId
from distil.run.settle import settle, what_is_asked
from distil.run.solver import RolloutSolver, open_rows, open_sandbox, open_teacher
from distil.run.threads import run_samples
from distil.spending.estimate import Measured, Selection, choose_samples
from distil.store.folder import RunFolder
from distil.store.readme import write_readme
from distil.store.run_totals import RunTotals
from distil.store.summary import Totals, read_summary
from distil.teacher.address import find_teacher, served
from distil.terminal.terminal import Terminal

_SAVED = ("state.json", "dataset_dict.json")


def run_distillation(flags: RunFlags, terminal: Terminal) -> int:
    """Run it; returns 0 where every sample has a trace, 1 where some failed.

    Raises UsageError, SourceError or TeacherRefused where nothing could be run.
    """
    _announce(flags.samples.dataset_path, terminal)
    if flags.output.dry_run:
        from distil.run.dry_run import show_first_request  # noqa: PLC0415

        show_first_request(flags, terminal.say)
        return 0
    reuse_memory()
    named = find_teacher(flags.teacher.api_base)  # before anything is opened or drawn
    with ExitStack() as stack:
        asked = stack.enter_context(what_is_asked(flags, terminal.say))
        sandbox = stack.enter_context(open_sandbox(flags, terminal.say))
        source, indices = open_rows(flags.samples, asked.task, terminal.say)
        address = stack.enter_context(served(named, terminal.say))
        plan, claim = settle(flags, asked, source, address, terminal.say)
        folder = RunFolder(claim, plan.facts(), plan.on_change)
        with open_teacher(plan, plan.teacher(address.api_key), folder.spending) as teacher:
            solver = RolloutSolver(plan, source, folder, teacher, sandbox)
            return _run_samples(solver, _sample_ids(indices), terminal)


def _announce(dataset_path: str | None, terminal: Terminal) -> None:
    """Say what is read before a library shows its own progress with it; a saved dataset is opened at once."""
    if dataset_path is None or any(os.path.exists(f"{dataset_path}/{name}") for name in _SAVED):  # noqa: PTH110
        return  # Path's own raises where the folder may not be entered
    terminal.say(f"Dataset: {dataset_path}")


def _run_samples(solver: RolloutSolver, wanted: Sequence[SampleId], terminal: Terminal) -> int:
    # What draws is imported here: by now the teacher has been asked, and no sample waits for it later.
    from distil.terminal.estimate import give_estimate, print_estimate  # noqa: PLC0415
    from distil.terminal.summary import print_summary  # noqa: PLC0415

    flags, folder, teacher = solver.plan.flags, solver.folder, solver.teacher
    whole = Totals()
    done = folder.finished(wanted, partial(_add_trace, whole))
    todo, num_resumed = _to_do(solver, wanted, done)
    for note in folder.resume_notes(todo):
        terminal.say(note)
    spent = teacher.budget.spent  # the probe, and earlier runs
    record = _start_record(solver, len(wanted), len(done))
    folder.write_run_record(record)
    write_readme(folder.path)
    measured = Measured(spent, spent, num_resumed)
    totals = RunTotals(folder.path, len(done), measured, teacher.slots.state(), whole)
    try:
        _solve(todo, solver, totals, terminal)
    except (TeacherRefused, FolderError, SandboxUnavailable, KeyboardInterrupt) as error:
        totals.stopped_by = str(error) or "interrupted"
        with suppress(FolderError, BrokenPipeError, SystemExit):  # Ctrl-C ends the reader of our output too
            _end(solver, totals, record)
            if totals.traces.num_traces:
                print_summary(totals, terminal)
                if not isinstance(error, KeyboardInterrupt):  # whose last line says so
                    terminal.say("The same command goes on from here.")
        raise
    _end(solver, totals, record)
    folder.close()  # not where threads may still write
    print_summary(totals, terminal)
    if flags.estimate_samples is not None:
        num_samples = len(wanted)
        selection = Selection(num_samples, num_samples - len(done), flags.samples.max_workers)
        (give_estimate if terminal.gives_json else print_estimate)(measured, selection, terminal)
    return 1 if measured.num_failed or totals.stopped_by else 0


def _add_trace(totals: Totals, trace: Mapping[str, Json]) -> None:
    with suppress(TraceError):  # of a task that is not known any more
        totals.add(read_summary(trace))


def _to_do(
    solver: RolloutSolver, wanted: Sequence[SampleId], done: Collection[SampleId]
) -> tuple[Sequence[SampleId], int]:
    """The samples to solve, and for an estimate, how many of them go on from turns of an earlier run.

    Those come first, so that a limit is spent on finishing them; in an estimate last.
    """
    flags, folder = solver.plan.flags, solver.folder
    left = [sample_id for sample_id in wanted if sample_id not in done] if done else wanted
    if flags.samples.retry_failed:
        failed_before = folder.failed()
        left = [sample_id for sample_id in left if sample_id in failed_before]
    if flags.estimate_samples is None:
        return _paid_first(folder, left), 0
    resumed = _resumed(folder, left)
    todo = choose_samples(left, resumed, flags.estimate_samples)
    return todo, len(resumed.intersection(todo))


def _sample_ids(indices: Sequence[int]) -> Sequence[SampleId]:
    """The samples of the selected rows, in their order."""
    return _FirstRollouts(indices)


class _FirstRollouts(Sequence[SampleId]):
    """The first rollout of each row, made as it is asked for: a list of a million takes 85 MB."""

    def __init__(self, indices: Sequence[int]) -> None:
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[SampleId]:
        return map(SampleId, self._indices)

    @overload
    def __getitem__(self, place: int) -> SampleId: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[SampleId]: ...

    def __getitem__(self, place: int | slice) -> SampleId | Sequence[SampleId]:
        if isinstance(place, slice):
            return _FirstRollouts(self._indices[place])
        return SampleId(self._indices[place])


def _paid_first(folder: RunFolder, left: Sequence[SampleId]) -> Sequence[SampleId]:
    """The samples, first those that have paid turns."""
    if not folder.journal.unfinished():
        return left
    resumed = _resumed(folder, left)
    return [*(each for each in left if each in resumed), *(each for each in left if each not in resumed)]


def _resumed(folder: RunFolder, left: Sequence[SampleId]) -> set[SampleId]:
    """The samples that go on from turns of an earlier run."""
    return {sample_id for sample_id in left if folder.journal.num_turns(sample_id)}


def _solve(todo: Sequence[SampleId], solver: RolloutSolver, totals: RunTotals, terminal: Terminal) -> None:
    """Solve the samples; `totals` count each that ends, whatever ends the run."""
    from distil.terminal.progress import Progress  # noqa: PLC0415

    num_done = totals.num_skipped
    with Progress(len(todo) + num_done, num_done, solver.teacher.slots, terminal) as progress:
        solver.teacher.tell_by(progress.write)
        solver.models.tell = solver.folder.journal.tell = progress.write
        outcomes = run_samples(todo, solver, solver.plan.flags.samples.max_workers)
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
    """Bring failures, totals and run record up to date."""
    folder, teacher = solver.folder, solver.teacher
    folder.write_failures()
    totals.measured.end(teacher.budget.spent, is_stopped=totals.stopped_by not in (None, solver.halt))
    totals.level, totals.models = teacher.slots.state(), solver.models.counts
    totals.warnings = solver.warnings()
    probe = {**record["probe"], "refuses_fields": teacher.refuses_fields}
    folder.write_run_record({**record, **totals.as_dict(), "probe": probe})
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
