"""`distil estimate`: what a selection will take, as a table with notes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict

from rich.table import Table

from distil.records import Json
from distil.spending.estimate import (
    Estimate,
    Measured,
    SampleSelection,
    estimate_seconds,
    estimate_spending,
)
from distil.terminal.terminal import Terminal
from distil.terminal.words import duration_text


def show_estimate(measured: Measured, selection: SampleSelection, terminal: Terminal) -> None:
    """What the selection will take, with a 95 % range, and what of it is still to do; or as JSON."""
    left, notes = selection.num_to_do, _notes(measured, selection)
    estimates = _estimates(measured, selection)
    if terminal.gives_json:
        terminal.give(
            {
                "num_samples": selection.num_samples,
                "num_finished": measured.num_finished,
                "num_failed": measured.num_failed,
                "num_left": left,
                **{name: each and _estimate_json(each) for name, each in estimates.items()},
                "notes": notes,
            }
        )
        return
    if measured.num_finished:
        terminal.show(_table(estimates, selection.num_samples, left))
    for note in notes:
        terminal.say(note)
    if not left:
        terminal.say(f"All {selection.num_samples} samples have a trace: nothing is left to pay.")


def _estimate_json(estimate: Estimate) -> dict[str, Json]:
    return asdict(estimate) | {"whole_range": estimate.whole_range and list(estimate.whole_range)}


def _estimates(measured: Measured, selection: SampleSelection) -> dict[str, Estimate | None]:
    if not measured.num_finished:
        return {"seconds": None, "tokens": None, "cost_usd": None}
    tokens, costs = measured.sample_tokens, measured.sample_costs_usd
    return {
        "seconds": estimate_seconds(measured, selection),
        "tokens": estimate_spending(measured.tokens, tokens, measured, selection),
        "cost_usd": estimate_spending(measured.cost_usd, costs, measured, selection),
    }


def _table(estimates: Mapping[str, Estimate | None], num_samples: int, num_left: int) -> Table:
    headings = ("", "a sample", f"all {num_samples} samples", "95 % range", f"{num_left} still to do")
    table = Table(*headings, box=None, pad_edge=False)
    table.add_row("time", *_texts(estimates["seconds"], duration_text))
    table.add_row("tokens", *_texts(estimates["tokens"], _tokens_text))
    table.add_row("cost", *_texts(estimates["cost_usd"], _cost_text))
    return table


def _texts(estimate: Estimate | None, text: Callable[[float], str]) -> tuple[str, ...]:
    if estimate is None:
        return ("not known", "not known", "–", "not known")
    ends = estimate.whole_range
    whole_range = "–" if ends is None else f"{text(ends[0])} – {text(ends[1])}"
    return (text(estimate.sample), text(estimate.whole), whole_range, text(estimate.to_do))


def _notes(measured: Measured, selection: SampleSelection) -> list[str]:
    """What the figures rest on, and what makes them too low or too high."""
    if not measured.num_finished:
        return _nothing_measured(measured, selection.num_to_do)
    at_best = min(selection.max_workers, selection.num_samples)
    ended = f"{measured.num_finished} finished and {measured.num_failed} failed"
    notes = [
        f"From this run's {ended} in {duration_text(measured.seconds)}; "
        f"the range's best time is for {at_best} samples at once, each as fast as these."
    ]
    if measured.num_resumed:
        notes.append(f"{measured.num_resumed} of them went on from turns paid before: all will take more.")
    if measured.is_stopped:
        notes.append("The budget cut samples off, and what they took is counted: all will take less.")
    if measured.num_without_tokens and measured.tokens is not None:
        notes.append(f"Not counted: {measured.num_without_tokens} requests that report no tokens.")
    return [*notes, *selection.notes]


def _nothing_measured(measured: Measured, num_left: int) -> list[str]:
    if not num_left:
        return []
    if measured.num_failed:
        reason = f"none of this run's samples finished, {measured.num_failed} failed"
    elif measured.is_stopped:
        reason = "the budget stopped this run before a sample ended"
    else:
        reason = "this run had no sample to run; --retry_failed takes only those that failed before"
    return [f"Nothing to estimate from: {reason}. Still to do: {num_left} samples."]


def _tokens_text(tokens: float) -> str:
    return f"{tokens:,.0f}"


def _cost_text(cost_usd: float) -> str:
    return f"{cost_usd:,.4f} USD" if cost_usd < 1 else f"{cost_usd:,.2f} USD"
