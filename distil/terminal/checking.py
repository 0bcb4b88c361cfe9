"""`distil check`: what a trainer would find wrong with an export, line by line and counted."""

from __future__ import annotations

from distil.commands.flags import CheckFlags
from distil.exports.check import REMEDIES, ExportFinding, Findings, check_export
from distil.exports.row_checks import Subject
from distil.exports.tokens import token_counter
from distil.exports.written import WrittenRow
from distil.records import ExportFormat, Json
from distil.terminal.bar import Bar
from distil.terminal.terminal import Terminal

_SHOWN = 10  # of a kind


def check(asked: CheckFlags, terminal: Terminal) -> int:
    """Check an export, or a file of rows; returns 0 where nothing is wrong, else 1.

    Raises UsageError where there is nothing to check.
    """
    count_tokens, how = token_counter(asked.tokenizer)

    def look(_: WrittenRow) -> None:
        bar.update()

    with Bar(unit="row", dynamic_ncols=True, disable=None) as bar:
        subject, findings = check_export(asked, count_tokens, look)
    for line in _lines(subject, findings, how):
        terminal.say(*line)
    if terminal.gives_json:
        terminal.give(_document(subject, findings, how))
    return 1 if findings.counts else 0


def _lines(subject: Subject, findings: Findings, how: str) -> list[tuple[str, str]]:
    """What is said, with its style: each kind with its first findings, then what was looked at."""
    lines: list[tuple[str, str]] = []
    for kind, remedy in REMEDIES.items():
        if kind not in findings.counts:
            continue
        lines.append((f"{findings.counts[kind]:,} × {kind.replace('_', ' ')}: {remedy}", "bold"))
        shown = [finding for finding in findings.kept if finding.kind == kind][:_SHOWN]
        lines += [(f"  {_line(finding)}", "red") for finding in shown]
        if (num_more := findings.counts[kind] - len(shown)) > 0:
            lines.append((f"  … and {num_more:,} more", ""))
    return [*lines, *((line, "") for line in _facts(subject, findings, how))]


def _line(finding: ExportFinding) -> str:
    row = "" if finding.row is None else f", row {finding.row:,}"
    place = f"{finding.file}{row}{f', {finding.field}' if finding.field else ''}"
    return f"{place}: {finding.message}"


def _facts(subject: Subject, findings: Findings, how: str) -> list[str]:
    rows = ", ".join(f"{count:,} {split}" for split, count in findings.num_rows.items()) or "0"
    found = findings.counts.total()
    length = f"The longest row has about {findings.longest:,} tokens ({how})"
    limit = subject.max_length
    lines = [
        f"{rows} rows with {findings.num_pictures:,} pictures for {subject.format.value}: "
        f"{f'{found:,} findings' if found else 'nothing found'}",
        f"{length}; {'no length is set' if limit is None else f'{limit:,} are set'}",
    ]
    if findings.num_truths < findings.num_rows.total():
        lines.append(
            f"A truth in prompts was looked for in {findings.num_truths:,} rows: of the others none is known "
            "(--traces DIR)"
        )
    if not subject.manifest and subject.format is not ExportFormat.HF:
        lines.append(f"No export of distil says how boxes stand: taken as {subject.form.coordinates.value}")
    return lines


def _document(subject: Subject, findings: Findings, how: str) -> dict[str, Json]:
    return {
        "export": str(subject.asked.path),
        "format": subject.format.value,
        "rows": dict(findings.num_rows),
        "num_pictures": findings.num_pictures,
        "longest_tokens": findings.longest,
        "tokens": how,
        "max_length": subject.max_length,
        "coordinates": subject.form.coordinates.value,
        "num_truths": findings.num_truths,
        "counts": {kind: findings.counts[kind] for kind in REMEDIES if findings.counts[kind]},
        "findings": [finding.as_json() for finding in findings.kept],
    }
