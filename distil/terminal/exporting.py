"""`distil export`: traces written for a trainer, and what became of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from distil.exports.export import Found, Job, Refused, Report, export_traces
from distil.exports.filters import Reader
from distil.exports.options import ExportOptions
from distil.exports.selection import VALIDATION, Selected, Selection, select_traces
from distil.records import ExportFormat, FailedCalls, Json
from distil.terminal.bar import Bar, say_above_bar
from distil.terminal.terminal import Terminal

_SHOWN = 20


def export(
    paths: Sequence[Path], selection: Selection, options: ExportOptions, job: Job, terminal: Terminal
) -> int:
    """Export the traces that are chosen; returns 0, or 1 where one was refused."""
    selected = _select(paths, selection, job, terminal)
    num_refused = 0

    def look(found: Found) -> None:
        nonlocal num_refused
        if isinstance(found, Refused):
            num_refused += 1
            if num_refused <= _SHOWN:
                say_above_bar(terminal, f"{found.path.name}: refused: {found.reason}", "red")
        bar.update()

    with Bar(total=len(selected.picks), unit="trace", miniters=1, dynamic_ncols=True, disable=None) as bar:
        report = export_traces(selected, options, job, look, partial(say_above_bar, terminal))
    wants_validation = selection.splitting is not None
    if wants_validation and not report.num_rows[VALIDATION]:
        terminal.say("Warning: no row is for validation: none was among the first rows; try --shuffle")
    for line in [*_selection_lines(selected), *_lines(report, options, job)]:
        terminal.say(line)
    if terminal.gives_json:
        terminal.give({"out": str(job.out), "selection": _selection_json(selected), **report.as_json()})
    return 1 if report.num_refused else 0


def show_selection(paths: Sequence[Path], selection: Selection, job: Job, terminal: Terminal) -> int:
    """Say how many traces each filter leaves, and write nothing; returns 0."""
    selected = _select(paths, selection, job, terminal)
    splits = Counter(pick.split for pick in selected.picks)
    lines = [f"{count:,} left out: {reason}" for reason, count in sorted(selected.left_out.items())]
    rows = ", ".join(f"{count:,} {split}" for split, count in sorted(splits.items()))
    for line in [
        *_selection_lines(selected),
        *lines,
        f"{rows or 'no'} traces would be exported; nothing is written",
    ]:
        terminal.say(line)
    if terminal.gives_json:
        terminal.give({"selection": _selection_json(selected), "picked": dict(sorted(splits.items()))})
    return 0


def show_rows(
    paths: Sequence[Path], selection: Selection, options: ExportOptions, job: Job, terminal: Terminal
) -> int:
    """Show the first rows of an export as the student will see them, `job.limit` of them, and write nothing.

    Returns 0, or 1 where a trace was refused before. Raises UsageError where no row is left.
    """
    from distil.terminal.previewing import preview  # noqa: PLC0415

    selected = _select(paths, selection, job, terminal)
    return preview(selected.picks, options, job.limit or 1, job.dataset_path, terminal)


def _select(paths: Sequence[Path], selection: Selection, job: Job, terminal: Terminal) -> Selected:
    with _progress() as tell_progress:
        tell = partial(say_above_bar, terminal)
        return select_traces(paths, selection, Reader(job.dataset_path, job.max_workers, tell_progress, tell))


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each kind of thing that is read."""
    bars: dict[str, Bar] = {}

    def tell_progress(what: str, done: int, num: int) -> None:
        if what not in bars:
            bars[what] = Bar(total=num, unit=f" {what}", dynamic_ncols=True, disable=None, leave=False)
        bars[what].total = num
        bars[what].update(done - bars[what].n)

    try:
        yield tell_progress
    finally:
        for bar in bars.values():
            bar.close()


def _selection_lines(selected: Selected) -> list[str]:
    """What the filters left, those that left all of it out."""
    return [
        f"{step.after:,} of {step.before:,} traces: {step.name}"
        for step in selected.steps
        if step.after < step.before
    ]


def _selection_json(selected: Selected) -> list[Json]:
    return [step.as_json() for step in selected.steps]


def _lines(report: Report, options: ExportOptions, job: Job) -> list[str]:
    num_rows = ", ".join(f"{count:,} {split}" for split, count in sorted(report.num_rows.items()))
    lines = [f"{num_rows} rows with {report.num_pictures:,} pictures for {options.format.value}: {job.out}"]
    lines += [f"{count:,} left out: {reason}" for reason, count in sorted(report.left_out.items())]
    if report.num_refused:
        lines.append(f"{report.num_refused:,} refused, none of them is in the export")
    if report.num_masked_turns:
        lines.append(_masked_line(report, options))
    lengths = report.lengths.as_json()
    lines.append(
        f"The longest row has about {lengths['longest']:,} tokens: set {lengths['to_set']:,}. "
        f"How to start: {job.out / 'README.md'}"
    )
    return lines


def _masked_line(report: Report, options: ExportOptions) -> str:
    line = f"{report.num_masked_turns:,} of {report.num_turns:,} turns are there but not trained"
    if options.failed_calls is FailedCalls.TRAIN:
        line += ": a box of theirs failed in another frame than the exported one"
    if options.format is ExportFormat.LLAMAFACTORY:
        num_trained = report.num_turns - report.num_masked_turns
        line += (
            f"; LLaMA-Factory cannot mark them: the rows are split, {num_trained:,} with a trained turn each"
        )
    return line
