"""`distil export`: traces written for a trainer, and what became of each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from distil.exports.export import Found, Job, Refused, Report, export_traces
from distil.exports.options import ExportOptions
from distil.exports.selection import Pick
from distil.records import ExportFormat, FailedCalls
from distil.terminal.bar import Bar, say_above_bar
from distil.terminal.terminal import Terminal

_SHOWN = 20


def export(picks: Sequence[Pick], options: ExportOptions, job: Job, terminal: Terminal) -> int:
    """Export picked traces; returns 0, or 1 where one was refused."""
    num_refused = 0

    def look(found: Found) -> None:
        nonlocal num_refused
        if isinstance(found, Refused):
            num_refused += 1
            if num_refused <= _SHOWN:
                say_above_bar(terminal, f"{found.path.name}: refused: {found.reason}", "red")
        bar.update()

    with Bar(total=len(picks), unit="trace", miniters=1, dynamic_ncols=True, disable=None) as bar:
        report = export_traces(picks, options, job, look, partial(say_above_bar, terminal))
    for line in _lines(report, options, job):
        terminal.say(line)
    if terminal.gives_json:
        terminal.give({"out": str(job.out), **report.as_json()})
    return 1 if report.num_refused else 0


def _lines(report: Report, options: ExportOptions, job: Job) -> list[str]:
    num_rows = ", ".join(f"{count:,} {split}" for split, count in report.num_rows.items())
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
