"""`distil verify`: every trace replayed, and what was found."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from distil.errors import UsageError
from distil.replay.verify import RECIPE_NOT_RUN, Verdict, verify_traces
from distil.store.folder import find_trace_files
from distil.terminal.terminal import Terminal

_SHOWN = 20


def verify(path: Path, dataset_path: str | None, max_workers: int, verbose: bool, terminal: Terminal) -> int:
    """Verify a trace file or a folder of them; returns 0 where all match, else 1.

    Raises UsageError where there is nothing to verify.
    """
    files = [path] if path.is_file() else find_trace_files(path)
    if not files:
        raise UsageError(f"{path} is no trace file and holds no trace_*.json")
    results = list(tqdm(verify_traces(files, dataset_path, max_workers), total=len(files), unit="trace"))
    bad = [result for result in results if result.verdict is not Verdict.MATCHED]
    for result in results if verbose else bad[:_SHOWN]:
        style = "green" if result.verdict is Verdict.MATCHED else "red"
        line = f"{result.path.name}: {result.verdict.value.replace('_', ' ')}"
        terminal.say(f"{line}: {result.detail}" if result.detail else line, style)
    if not verbose and len(bad) > _SHOWN:
        terminal.say(f"… and {len(bad) - _SHOWN} more (--verbose)")
    counts = {verdict: sum(result.verdict is verdict for result in results) for verdict in Verdict}
    matched, unreadable = counts.pop(Verdict.MATCHED), counts.pop(Verdict.UNREADABLE)
    mismatched = ", ".join(
        f"{name.value.replace('_', ' ')} {count}" for name, count in counts.items() if count
    )
    terminal.say(
        f"{matched} matched, {sum(counts.values())} mismatched{f' ({mismatched})' if mismatched else ''}, "
        f"{unreadable} unreadable"
    )
    if any(result.detail == RECIPE_NOT_RUN for result in results):
        terminal.say(f"Matched, but {RECIPE_NOT_RUN}")
    return 1 if bad else 0
