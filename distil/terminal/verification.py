"""`distil verify`: every trace replayed, and what was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from functools import partial

from distil.commands.flags import VerifyFlags
from distil.errors import UsageError
from distil.records import Json
from distil.replay.processes import verify_traces
from distil.replay.verify import IMPORTED_NOT_PROVEN, RECIPE_NOT_RUN, REWARD_NOT_RUN, Verdict, Verification
from distil.store.trace_file import find_trace_files
from distil.terminal.bar import Bar, say_above_bar
from distil.terminal.terminal import Terminal

_SHOWN = 20
_NOTES = (RECIPE_NOT_RUN, REWARD_NOT_RUN, IMPORTED_NOT_PROVEN)


def verify(flags: VerifyFlags, terminal: Terminal) -> int:
    """Verify a trace file or a folder of them; returns 0 where all match, else 1.

    As JSON it lists what does not match, with `verbose` every trace. Raises UsageError where there is nothing
    to verify.
    """
    path, verbose = flags.path, flags.verbose
    files = [path] if path.is_file() else find_trace_files(path)
    if not files:
        raise UsageError(f"{path} is no trace file and holds no trace_*.json")
    counts: Counter[Verdict] = Counter()
    shown: list[Verification] = []  # the first bad ones, so that nothing grows with the traces; as JSON all
    not_run: dict[str, bool] = {}
    tell = partial(say_above_bar, terminal)
    with (
        Bar(total=len(files), unit="trace", miniters=1, dynamic_ncols=True, disable=None) as bar,
        closing(verify_traces(files, flags.dataset_path, flags.max_workers, tell)) as found,
    ):
        for result in found:
            counts[result.verdict] += 1
            if result.verdict is Verdict.MATCHED:
                not_run |= {note: True for note in _NOTES if note in result.detail}
            if terminal.gives_json:
                if verbose or result.verdict is not Verdict.MATCHED:
                    shown.append(result)
            elif verbose:
                say_above_bar(terminal, *_line(result))
            elif result.verdict is not Verdict.MATCHED and len(shown) < _SHOWN:
                shown.append(result)
            bar.update()
    bad = counts.total() - counts[Verdict.MATCHED]
    if terminal.gives_json:
        terminal.give(_document(counts, shown))
        return 1 if bad else 0
    for result in shown:
        terminal.say(*_line(result))
    if not verbose and bad > _SHOWN:
        terminal.say(f"… and {bad - _SHOWN} more (--verbose)")
    terminal.say(_totals(counts))
    for note in not_run:
        terminal.say(f"Matched, but {note}")
    return 1 if bad else 0


def _line(result: Verification) -> tuple[str, str]:
    """What is said of a trace, and its style."""
    style = "green" if result.verdict is Verdict.MATCHED else "red"
    line = f"{result.path.name}: {result.verdict.value.replace('_', ' ')}"
    return (f"{line}: {result.detail}" if result.detail else line), style


def _totals(counts: Counter[Verdict]) -> str:
    mismatched = {
        verdict: counts[verdict]
        for verdict in Verdict
        if counts[verdict] and verdict not in (Verdict.MATCHED, Verdict.UNREADABLE)
    }
    names = ", ".join(f"{verdict.value.replace('_', ' ')} {count}" for verdict, count in mismatched.items())
    return (
        f"{counts[Verdict.MATCHED]} matched, {sum(mismatched.values())} mismatched"
        f"{f' ({names})' if names else ''}, {counts[Verdict.UNREADABLE]} unreadable"
    )


def _document(counts: Mapping[Verdict, int], listed: Iterable[Verification]) -> dict[str, Json]:
    """How many traces got each verdict, and the traces that are listed."""
    return {
        "num_traces": sum(counts.values()),
        "num_matched": counts.get(Verdict.MATCHED, 0),
        "verdicts": {verdict.value: counts.get(verdict, 0) for verdict in Verdict},
        "traces": [
            {"path": str(each.path), "verdict": each.verdict.value, "detail": each.detail} for each in listed
        ],
    }
