"""One run from its flags to its exit code: set up, solve the samples, write and print what came of it."""

from __future__ import annotations

import os
from contextlib import ExitStack, closing, suppress

from distil.commands.flags import RunFlags
from distil.errors import FolderError, SandboxUnavailable, TeacherRefused
from distil.process import reuse_memory
from distil.run.draws import Draws, open_draws
from distil.run.schedule import Rollouts, WithoutTools
from distil.run.settle import foresee, open_acceptance, settle, what_is_asked
from distil.run.solver import RolloutSolver, open_rows, open_sandbox, open_teacher
from distil.run.threads import run_samples
from distil.run.work import Work, check_rollouts
from distil.store.folder import RunFolder
from distil.tasks import TASKS
from distil.teacher.address import find_teacher, served
from distil.terminal.terminal import Terminal

_SAVED = ("state.json", "dataset_dict.json")


def run_distillation(flags: RunFlags, terminal: Terminal) -> int:
    """Run it; returns 0 where every sample has a trace, 1 where some failed or too few are accepted.

    Raises UsageError, SourceError or TeacherRefused where nothing could be run.
    """
    check_rollouts(flags.samples, flags.rollouts, flags.tools, flags.estimate_samples is not None)
    _announce(flags.samples.dataset_path, terminal)
    reuse_memory()
    named = find_teacher(flags.teacher.api_base)  # before anything is opened or drawn
    with ExitStack() as stack:
        asked = stack.enter_context(what_is_asked(flags, terminal.say))
        sandbox = stack.enter_context(open_sandbox(flags.tools, flags.code, terminal.say))
        task, num_each = TASKS[asked.task], flags.rollouts.rollouts_per_sample
        source, indices = open_rows(flags.samples, task, terminal.say)
        draws = open_draws(flags.samples, num_each, task, source, indices)
        accept = open_acceptance(flags, asked, source, indices)
        if flags.dry_run:
            from distil.run.dry_run import first_drawn, show_first_request  # noqa: PLC0415

            wanted = Rollouts(indices if draws is None else first_drawn(draws, terminal.say), num_each)
            show_first_request(foresee(flags, asked, source, named), wanted, source, terminal.say)
            return 0
        address = stack.enter_context(served(named, terminal.say))
        plan, claim = settle(flags, asked, source, address, terminal.say)
        folder = RunFolder(claim, plan.facts(), plan.on_change)
        with open_teacher(plan, plan.teacher(address.api_key), folder.spending) as teacher:
            solver = RolloutSolver(plan, source, folder, teacher, sandbox)
            solver.accept = accept
            return _run_samples(solver, Rollouts(indices, num_each), draws, terminal)


def _announce(dataset_path: str | None, terminal: Terminal) -> None:
    """Say what is read before a library shows its own progress with it; a saved dataset is opened at once."""
    if dataset_path is None or any(os.path.exists(f"{dataset_path}/{name}") for name in _SAVED):  # noqa: PTH110
        return  # Path's own raises where the folder may not be entered
    terminal.say(f"Dataset: {dataset_path}")


def _run_samples(solver: RolloutSolver, wanted: Rollouts, draws: Draws | None, terminal: Terminal) -> int:
    # What draws is imported here: by now the teacher has been asked, and no sample waits for it later.
    from distil.terminal.estimate import show_estimate  # noqa: PLC0415
    from distil.terminal.summary import print_summary  # noqa: PLC0415

    if wanted.num_each > 1 and solver.plan.settings.temperature == 0:
        terminal.say("Warning: at --temperature 0 the rollouts of a row are likely to be equal")
    work = Work.of(solver, wanted, draws)
    main, totals = work.main, work.main.totals
    for note in main.folder.resume_notes(main.left() if work.chosen is None else work.chosen):
        terminal.say(note)
    work.begin()
    try:
        _solve(work, terminal)
    except (TeacherRefused, FolderError, SandboxUnavailable, KeyboardInterrupt) as error:
        totals.stopped_by = str(error) or "interrupted"
        with suppress(FolderError, BrokenPipeError, SystemExit):  # Ctrl-C ends the reader of our output too
            work.end()
            if totals.traces.num_traces:
                print_summary(totals, terminal)
                if not isinstance(error, KeyboardInterrupt):  # whose last line says so
                    terminal.say("The same command goes on from here.")
        raise
    work.end()
    for part in work.parts:
        part.folder.close()  # not where threads may still write
    print_summary(totals, terminal)
    if solver.plan.flags.estimate_samples is not None:
        show_estimate(totals.measured, work.selection(), terminal)
    return 1 if work.is_lacking else 0


def _solve(work: Work, terminal: Terminal) -> None:
    """Solve the samples; what they came to is counted as each ends, whatever ends the run."""
    from distil.terminal.bar import Progress  # noqa: PLC0415

    solver, num_done = work.main.solver, work.num_done
    with Progress(work.num_samples, num_done, solver.teacher.slots, terminal) as progress:
        solver.teacher.tell_by(progress.write)
        for part in work.parts:
            part.solver.models.tell = part.folder.journal.tell = progress.write
        max_workers = solver.plan.flags.samples.max_workers
        outcomes = run_samples(work.schedule, work.solve, max_workers, solver.drain, solver.teacher.close)
        with closing(outcomes):  # at once where a failure cannot be written
            for outcome in outcomes:
                num_needless = work.add(outcome)
                if num_needless:
                    progress.leave_out(num_needless)
                if outcome.stopped is None:
                    progress.count(outcome, is_scored=not isinstance(outcome.sample_id, WithoutTools))
        if work.schedule.is_reached:
            progress.end_here()
