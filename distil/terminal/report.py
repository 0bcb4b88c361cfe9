"""`distil view --html`: folders of traces as one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distil import process
from distil.errors import UsageError
from distil.terminal.terminal import Terminal
from distil.terminal.web import check_installed, folder_of, reading_bar
from distil.terminal.words import number

_LARGE_BYTES = 50_000_000  # from here on a browser takes its time to open a file


@dataclass(frozen=True)
class Report:
    """The file to write, how many traces it is to hold, and which: an SQL expression, or empty for all."""

    file: Path
    limit: int
    where: str = ""
    dataset_path: str | None = None


def write_html(paths: Sequence[Path], asked: Report, terminal: Terminal) -> int:
    """Write a report of folders, or of trace files; raises UsageError or FolderError where that cannot be."""
    check_installed("a report")
    from distil.index.index import TraceIndex  # noqa: PLC0415
    from distil.index.query import Filter, Query  # noqa: PLC0415
    from distil.viewer.report import write_report  # noqa: PLC0415
    from distil.viewer.viewer import Viewer  # noqa: PLC0415

    if asked.file.is_dir():
        raise UsageError(f"--html {asked.file} is a folder: name a file")
    folders = list(dict.fromkeys(map(folder_of, paths)))
    files = [path.name for path in paths if path.is_file()]
    filters = (Filter("file", "in", files),) if len(files) == len(paths) else ()
    with reading_bar() as tell_progress:
        index = TraceIndex.open(folders, tell_progress)
    viewer = Viewer(tuple(folders), index, None, asked.dataset_path)
    query = Query(filters, where=asked.where)
    with reading_bar() as tell_progress:
        num_without = write_report(asked.file, viewer, query, asked.limit, tell_progress)
    num_found, num_bytes = index.count(query), asked.file.stat().st_size
    of = f" of {num_found:,}" if asked.limit < num_found else ""
    terminal.say(
        f"{asked.file}: {number(min(asked.limit, num_found), 'trace')}{of}, {num_bytes / 1e6:.1f} MB"
        + ("" if not of else "; more of them: --limit")
    )
    if num_without:
        terminal.say(
            f"Warning: {number(num_without, 'trace')} without pictures, each says why; "
            "where the dataset has moved: --dataset_path"
        )
    if num_bytes > _LARGE_BYTES:
        terminal.say("A browser takes a while to open a file as large: --limit makes it smaller.")
    return process.EXIT_DONE
