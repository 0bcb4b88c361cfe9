"""The summary that a run ends with."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from distil.spending.budget import Bill, Spent
from distil.store.run_totals import RunTotals
from distil.teacher.climber import LevelState
from distil.terminal.traces import totals_table


def print_summary(totals: RunTotals, console: Console) -> None:
    """Print the summary that a run ends with."""
    measured, num_finished = totals.measured, totals.traces.num_traces
    if num_finished:
        console.print(totals_table(totals.traces, title="this run"))
    parts = [f"{num_finished} finished", f"{measured.num_failed} failed"]
    if totals.num_skipped:
        parts.append(f"{totals.num_skipped} were there already")
    rate = f" ({60 * num_finished / measured.seconds:.1f} a minute)" if num_finished else ""
    console.print(f"{', '.join(parts)} in {measured.seconds:.1f} s{rate}", highlight=False)
    if measured.num_failed:
        path = totals.folder / "failed_samples.jsonl"
        console.print(f"Failed samples, with their reasons: {path}", highlight=False, soft_wrap=True)
    console.print(f"Requests at once: {_level_text(totals.level)}", highlight=False, soft_wrap=True)
    for line in _spent_lines(measured.spent_after):
        console.print(line, highlight=False, soft_wrap=True)
    if totals.stopped_by is not None:
        console.print(Text(f"Stopped: {totals.stopped_by}.", style="yellow"), soft_wrap=True)
    for warning in totals.warnings:
        console.print(Text(f"Warning: {warning}", style="yellow"), soft_wrap=True)
    console.print(f"Traces: {totals.folder}", highlight=False, soft_wrap=True)
    if num_finished or totals.num_skipped:
        console.print(f"Look at them: distil view {totals.folder} --batch", highlight=False, soft_wrap=True)
        console.print(f"Check them:   distil verify {totals.folder}", highlight=False, soft_wrap=True)


def _level_text(state: LevelState) -> str:
    highest = f", at most {state.highest}" if state.highest > state.level else ""
    return f"{state.level} of {state.ceiling} ({state.reason}{highest})"


def _spent_lines(spent: Spent) -> list[str]:
    lines = [f"Spent in this folder: {_bill_text(spent.answered)}"]
    if spent.retried.requests:
        lines.append(f"Asked again, perhaps billed too: {_bill_text(spent.retried)}")
    if spent.refused:
        lines.append(f"Refused or not connected, free: {_number(spent.refused, 'request')}")
    return lines


def _bill_text(bill: Bill) -> str:
    requests = _number(bill.requests, "request")
    if bill.without_tokens == bill.requests:
        return f"{requests}, tokens not reported" if bill.requests else requests
    tokens = bill.tokens
    parts = [
        requests,
        f"{tokens.prompt:,} tokens in ({_of_which(tokens.cached, 'cached')})",
        f"{tokens.completion:,} out ({_of_which(tokens.reasoning, 'reasoning')})",
    ]
    if bill.cost_usd is not None:
        parts.append(f"{bill.cost_usd:.4f} USD")
    if bill.without_tokens:
        parts.append(f"{_number(bill.without_tokens, 'request')} without figures")
    return ", ".join(parts)


def _number(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _of_which(tokens: int | None, kind: str) -> str:
    return f"{kind}: not reported" if tokens is None else f"{tokens:,} {kind}"
