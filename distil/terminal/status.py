"""`distil status`: where a run's folder stands."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from distil.store.status import FolderStatus, read_status
from distil.terminal.summary import spent_lines
from distil.terminal.terminal import Terminal
from distil.terminal.words import duration_text, number


def show_status(folder: Path, terminal: Terminal) -> int:
    """Show it and return 0; raises UsageError where the folder is no run's."""
    status = read_status(folder)
    if terminal.gives_json:
        terminal.give(asdict(status))
        return 0
    terminal.say(f"{status.folder}: {_state_text(status)}")
    table = Table(box=None, show_header=False, pad_edge=False)
    for row in _rows(status):
        table.add_row(*row)
    terminal.show(table)
    for line in spent_lines(status.spent):
        terminal.say(line)
    return 0


def _state_text(status: FolderStatus) -> str:
    if status.state == "stopped":
        return f"stopped: {status.stopped_by}"
    if status.state != "broken off" or status.seconds_since_change is None:
        return status.state
    ago = duration_text(status.seconds_since_change)
    return f"broken off, or running on another machine (last change {ago} ago); the same command goes on"


def _rows(status: FolderStatus) -> list[tuple[str, str]]:
    wanted = "" if status.num_samples is None else f" (the last run was to have {status.num_samples:,})"
    rows = [("done", f"{status.num_done:,}{wanted}")]
    if status.num_rows is not None:
        accepted = "" if status.num_accepted is None else f"; accepted {status.num_accepted:,}"
        rows.append(("rows", f"{status.num_rows:,}{accepted}"))
    if status.num_without_tools:
        rows.append(
            ("no tools", f"{number(status.num_without_tools, 'trace')} of rows asked without tools too")
        )
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(status.failed.items()))
    rows.append(("failed", f"{sum(status.failed.values()):,}" + (f" ({kinds})" if kinds else "")))
    rows.append(("unfinished", f"{number(status.num_unfinished, 'sample')} with paid turns"))
    what = "in flight, or cut off by a kill" if status.state == "running" else "cut off, perhaps billed"
    if status.num_in_flight:
        rows.append(("in flight", f"{number(status.num_in_flight, 'request')}, {what}"))
    if status.num_left is not None:
        rows.append(("left", number(status.num_left, "sample")))
    if status.rate_per_minute is not None:
        rows.append(("rate", f"{status.rate_per_minute:.1f} a minute"))
    if status.seconds_left is not None:
        rows.append(("time left", duration_text(status.seconds_left)))
    rows.append(("runs", f"{status.num_runs:,}, together {duration_text(status.seconds_of_all_runs)}"))
    return rows
