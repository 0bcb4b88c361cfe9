"""The summary that a run ends with."""

from __future__ import annotations

import shlex

from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from distil.spending.budget import Bill, Spent
from distil.store.run_totals import RunTotals
from distil.store.summary import Totals
from distil.teacher.climber import LevelState
from distil.terminal.bar import level_text
from distil.terminal.terminal import Terminal
from distil.terminal.words import NOT_REPORTED, figure, number, one_line


def print_summary(totals: RunTotals, terminal: Terminal) -> None:
    """Print the summary that a run ends with."""
    measured, num_finished = totals.measured, totals.traces.num_traces
    is_resumed = totals.whole.num_traces > num_finished
    if totals.whole.num_traces:
        title = f"this folder, {num_finished:,} of them by this run" if is_resumed else "this run"
        terminal.show(totals_table(totals.whole, title=title))
    parts = [f"{num_finished} finished", f"{measured.num_failed} failed"]
    if totals.num_skipped:
        parts.append(f"{totals.num_skipped} were there already")
    rate = f" ({60 * num_finished / measured.seconds:.1f} a minute)" if num_finished else ""
    whose = "This run: " if is_resumed else ""
    terminal.say(f"{whose}{', '.join(parts)} in {measured.seconds:.1f} s{rate}")
    if measured.num_failed:
        path = totals.folder / "failed_samples.jsonl"
        terminal.say(f"Failed samples, with their reasons: {path}")
    for line in [*_row_lines(totals), *_aim_lines(totals)]:
        terminal.say(line)
    terminal.say(_level_text(totals.level))
    for line in spent_lines(measured.spent_after):
        terminal.say(line)
    if totals.stopped_by is not None:
        terminal.say(f"Stopped: {totals.stopped_by}.")
    for warning in totals.warnings:
        terminal.say(f"Warning: {warning}")
    terminal.say(f"Traces: {totals.folder}")
    if num_finished or totals.num_skipped:
        folder = shlex.quote(str(totals.folder))
        terminal.say(f"Look at them: distil view {folder} --batch")
        terminal.say(f"Check them:   distil verify {folder}")


def totals_table(totals: Totals, title: str) -> RenderableType:
    """The totals of a batch, as a table of names and values."""
    table = plain_table()
    answered = round(totals.parse_rate * totals.num_traces)
    table.add_row("traces", str(totals.num_traces))
    table.add_row("with an answer", f"{answered} ({totals.parse_rate:.0%})")
    table.add_row("mean score", f"{totals.mean_score:.3f}")
    for name, text in totals.metrics.items():
        table.add_row(name, text)
    table.add_row("turns a trace", f"{totals.mean_turns:.2f}")
    table.add_row(
        "ended by", ", ".join(f"{name} {count}" for name, count in sorted(totals.stop_reasons.items()))
    )
    with_calls = f"{totals.num_with_calls} ({totals.num_with_calls / totals.num_traces:.0%})"
    table.add_row("traces with tool calls", with_calls)
    table.add_row("tool calls", f"{totals.num_calls} ({totals.num_calls / totals.num_traces:.2f} a trace)")
    for name in sorted(totals.calls):
        failed = totals.failed_calls.get(name, 0)
        table.add_row(f"  {name}", f"{totals.calls[name]}, {failed} failed")
    table.add_row("tokens", tokens_text(totals.prompt_tokens, totals.completion_tokens))
    return Panel(table, title=Text(one_line(title)), title_align="left", expand=False)


def tokens_text(prompt: int | None, completion: int | None) -> str:
    """How many went in and came out."""
    return f"{figure(prompt)} in, {figure(completion)} out"


def plain_table() -> Table:
    """A table of names and values."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table


def _row_lines(totals: RunTotals) -> list[str]:
    """What the rows' rollouts came to, where a row may have several."""
    rows, without = totals.rows, totals.without_tools
    lines = []
    if rows is not None:
        unneeded = f", {rows.num_not_needed:,} were not needed" if rows.num_not_needed else ""
        each = number(rows.num_each, "rollout")
        lines.append(
            f"{number(rows.num_rows, 'row')} of up to {each}: {rows.num_done:,} have a trace{unneeded}"
        )
    if rows is not None and rows.condition is not None:
        rate = f" ({rows.num_accepted / rows.num_done:.0%})" if rows.num_done else ""
        accepted = f"{rows.num_accepted:,} of {rows.num_done:,} traces{rate}"
        enough = f"{rows.num_rows_enough:,} of {rows.num_rows:,}"
        lines.append(
            f"Accepted ({one_line(rows.condition)}): {accepted}; rows with at least {rows.enough}: {enough}"
        )
    if rows is not None and rows.misses_target:
        lines.append(f"Not reached: --target_accepted {rows.target} (there are {rows.num_accepted})")
    if without is not None and without.measured.num_failed:
        lines.append(
            f"Without tools, {without.measured.num_failed} failed: {without.folder / 'failed_samples.jsonl'}"
        )
    if without is not None and without.whole.num_traces:
        beside = f", with tools {totals.whole.mean_score:.3f}" if totals.whole.num_traces else ""
        lines.append(
            f"Without tools: {number(without.whole.num_traces, 'trace')}, mean score "
            f"{without.whole.mean_score:.3f}{beside}: {without.folder}"
        )
    return lines


def _aim_lines(totals: RunTotals) -> list[str]:
    """What came of a run that aims at a target."""
    aim = totals.aim
    if aim is None:
        return []
    reached = "nothing" if aim.reached is None else f"{aim.reached:.3f}"
    text = (
        f"--target_acc {aim.target:g}: {reached} of {number(aim.num_counted, 'row')}, drawn by {aim.column}"
    )
    return [text] if aim.why_missed is None else [f"Not reached: {text}: {aim.why_missed}"]


def _level_text(state: LevelState) -> str:
    highest = f" (at most {state.highest})" if state.highest > state.level else ""
    return f"{level_text(state)}{highest}"


def spent_lines(spent: Spent) -> list[str]:
    """What was spent in a folder, in lines."""
    lines = [f"Spent in this folder: {_bill_text(spent.answered)}"]
    if spent.retried.requests:
        lines.append(f"Asked again, perhaps billed too: {_bill_text(spent.retried)}")
    if spent.refused:
        lines.append(f"Refused or not connected, free: {number(spent.refused, 'request')}")
    return lines


def _bill_text(bill: Bill) -> str:
    requests = number(bill.requests, "request")
    if bill.without_tokens == bill.requests:
        return f"{requests}, tokens {NOT_REPORTED}" if bill.requests else requests
    tokens = bill.tokens
    parts = [
        requests,
        f"{figure(tokens.prompt)} tokens in ({_of_which(tokens.cached, 'cached')})",
        f"{figure(tokens.completion)} out ({_of_which(tokens.reasoning, 'reasoning')})",
    ]
    if bill.cost_usd is not None:
        parts.append(f"{bill.cost_usd:.4f} USD")
    if bill.without_tokens:
        parts.append(f"{number(bill.without_tokens, 'request')} without figures")
    return ", ".join(parts)


def _of_which(tokens: int | None, kind: str) -> str:
    return f"{kind}: {NOT_REPORTED}" if tokens is None else f"{tokens:,} {kind}"
