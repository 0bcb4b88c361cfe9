"""`distil export` and `distil import`: traces written for a trainer, conversations of others as traces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from distil.commands.flags import ExportFlags, ImportFlags
from distil.exports.export import Found, NotExported, export_traces
from distil.exports.form import ExportReport
from distil.exports.importing import import_rows
from distil.exports.selection import VALIDATION, Selected, select_traces
from distil.records import ExportFormat, FailedCalls, Json
from distil.terminal.bar import Bar, say_above_bar
from distil.terminal.terminal import Terminal

_SHOWN = 20


def export(asked: ExportFlags, terminal: Terminal) -> int:
    """Export the traces that are chosen; returns 0, or 1 where one was refused."""
    selected = _select(asked, terminal)
    num_refused = 0

    def look(found: Found) -> None:
        nonlocal num_refused
        if isinstance(found, NotExported) and found.is_refused:
            num_refused += 1
            if num_refused <= _SHOWN:
                say_above_bar(terminal, f"{found.path.name}: refused: {found.reason}", "red")
        bar.update()

    with Bar(total=len(selected.picks), unit="trace", miniters=1, dynamic_ncols=True, disable=None) as bar:
        report = export_traces(selected, asked, look, partial(say_above_bar, terminal))
    if asked.selection.validation is not None and not report.num_rows[VALIDATION]:
        terminal.say("Warning: no row is for validation: none was among the first rows; try --shuffle")
    for line in [*_selection_lines(selected), *_lines(report, asked)]:
        terminal.say(line)
    if terminal.gives_json:
        terminal.give({"out": str(asked.out), "selection": _selection_json(selected), **report.as_json()})
    return 1 if report.refused else 0


def show_selection(asked: ExportFlags, terminal: Terminal) -> int:
    """Say how many traces each filter leaves, and write nothing; returns 0."""
    selected = _select(asked, terminal)
    splits = Counter(selected.picks.values())
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


def show_rows(asked: ExportFlags, terminal: Terminal) -> int:
    """Show the first rows of an export, `asked.preview` of them, as the student will see them; write nothing.

    Returns 0, or 1 where a trace was refused before. Raises UsageError where no row is left.
    """
    from distil.terminal.previewing import preview  # noqa: PLC0415

    selected = _select(asked, terminal)
    return preview(list(selected.picks), asked, terminal)


def _select(asked: ExportFlags, terminal: Terminal) -> Selected:
    with _progress() as tell_progress:
        return select_traces(asked, tell_progress, partial(say_above_bar, terminal))


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


def _lines(report: ExportReport, asked: ExportFlags) -> list[str]:
    num_rows = ", ".join(f"{count:,} {split}" for split, count in sorted(report.num_rows.items()))
    lines = [f"{num_rows} rows with {report.num_pictures:,} pictures for {asked.format.value}: {asked.out}"]
    lines += [f"{count:,} left out: {reason}" for reason, count in sorted(report.left_out.items())]
    if report.refused:
        lines.append(f"{report.refused.total():,} refused, none of them is in the export")
    if report.num_masked_turns:
        lines.append(_masked_line(report, asked))
    lines.append(
        f"The longest row has about {max(report.row_tokens):,} tokens: set {report.max_length:,}. "
        f"How to start: {asked.out / 'README.md'}"
    )
    return lines


def _masked_line(report: ExportReport, asked: ExportFlags) -> str:
    line = f"{report.num_masked_turns:,} of {report.num_turns:,} turns are there but not trained"
    if asked.form.errors is FailedCalls.TRAIN:
        line += ": a box of theirs failed in another frame than the exported one"
    if asked.format is ExportFormat.LLAMAFACTORY:
        num_trained = report.num_turns - report.num_masked_turns
        line += (
            f"; LLaMA-Factory cannot mark them: the rows are split, {num_trained:,} with a trained turn each"
        )
    return line


def import_files(asked: ImportFlags, terminal: Terminal) -> int:
    """Import files of chat messages into a new folder; returns 0, or 1 where a row was refused.

    Raises UsageError where nothing can be imported.
    """
    num_told = 0

    def tell(line: str) -> None:
        nonlocal num_told
        num_told += 1
        if num_told <= _SHOWN:
            terminal.say(line, "red")

    out = asked.output_dir
    done = import_rows(asked.paths, out, asked.coordinates, tell)
    terminal.say(
        f"{done.num_traces:,} traces of {done.num_photos:,} photos: {out}. Of {done.num_calls:,} calls "
        f"{done.num_verified:,} give their pictures again, {done.num_kept:,} pictures are kept as they came"
    )
    if done.refused:
        terminal.say(f"{done.refused.total():,} rows are not imported")
    if terminal.gives_json:
        terminal.give({"out": str(out), **done.as_json()})
    return 1 if done.refused else 0
