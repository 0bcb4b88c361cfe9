"""Folders of traces in a browser: `distil view --serve`, a local web page, and `--html`, one file."""

from __future__ import annotations

import os
import sys
import threading
import webbrowser
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from distil import process
from distil.commands.flags import REPORT_TRACES, VIEW_PORT, ViewFlags
from distil.errors import UsageError
from distil.records import SampleId
from distil.store.claim import LOCK, RUN_RECORD
from distil.store.spending import SPENDING
from distil.store.trace_file import find_trace_files
from distil.terminal.bar import telling_bar
from distil.terminal.terminal import Terminal
from distil.terminal.words import number

if TYPE_CHECKING:
    from distil.viewer.viewer import Viewer

_OF_A_RUN = (LOCK, RUN_RECORD, SPENDING)
_NEEDED = ("starlette", "uvicorn", "jinja2")
_BAR = {"delay": 0.5, "dynamic_ncols": True}
_LARGE_BYTES = 50_000_000  # from here on a browser takes its time to open a file


def serve_traces(flags: ViewFlags, terminal: Terminal) -> int:
    """Serve folders, or those of trace files, until a signal; raises UsageError where that cannot be."""
    _check_installed("the web page")
    from distil.viewer.guard import is_loopback, new_token  # noqa: PLC0415
    from distil.viewer.server import bind, serve_until_interrupted, url_of  # noqa: PLC0415

    folders = _folders_of(flags.paths)
    port, may_be_another = (VIEW_PORT, True) if flags.port is None else (flags.port, False)
    with bind(flags.host, port, may_be_another) as listening:
        token = None if is_loopback(flags.host) else new_token()
        viewer = _open_viewer(folders, token, flags.dataset_path)
        url = url_of(listening, flags.host, token, _first(flags.paths, flags.where))

        def ready() -> None:
            terminal.say(f"{', '.join(map(str, folders))}: {url}")
            terminal.say("Ctrl-C ends it.", "dim")
            if not flags.no_open and _has_browser():
                threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()

        serve_until_interrupted(viewer, listening, flags.host, ready)
    return process.EXIT_DONE


def write_html(file: Path, flags: ViewFlags, terminal: Terminal) -> int:
    """Write a report of folders, or of trace files; raises UsageError or FolderError where that cannot be."""
    _check_installed("a report")
    from distil.index.query import Filter, Query  # noqa: PLC0415
    from distil.viewer.report import write_report  # noqa: PLC0415

    if file.is_dir():
        raise UsageError(f"--html {file} is a folder: name a file")
    names = [path.name for path in flags.paths if path.is_file()]
    filters = (Filter("file", "in", names),) if len(names) == len(flags.paths) else ()
    viewer = _open_viewer(_folders_of(flags.paths), None, flags.dataset_path)
    query, limit = Query(filters, where=flags.where), flags.limit or REPORT_TRACES
    with telling_bar(**_BAR) as tell_progress:
        num_without = write_report(file, viewer, query, limit, tell_progress)
    num_found, num_bytes = viewer.index.count(query), file.stat().st_size
    of = f" of {num_found:,}" if limit < num_found else ""
    terminal.say(
        f"{file}: {number(min(limit, num_found), 'trace')}{of}, {num_bytes / 1e6:.1f} MB"
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


def _open_viewer(folders: Sequence[Path], token: str | None, dataset_path: str | None) -> Viewer:
    from distil.index.index import TraceIndex  # noqa: PLC0415
    from distil.viewer.viewer import Viewer  # noqa: PLC0415

    with telling_bar(**_BAR) as tell_progress:
        index = TraceIndex.open(folders, tell_progress)
    return Viewer(tuple(folders), index, token, dataset_path)


def _check_installed(what: str) -> None:
    """Raise UsageError where something is missing that `what` is made with."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(f'{what} needs {", ".join(missing)}: pip install "distil[view]"')


def _folders_of(paths: Iterable[Path]) -> list[Path]:
    """The folders to show, each once; raises UsageError."""
    return list(dict.fromkeys(map(_folder_of, paths)))


def _folder_of(path: Path) -> Path:
    """The folder to show; one without traces is, where a run has begun to write into it.

    Raises UsageError where it is none.
    """
    if path.is_dir():
        if not find_trace_files(path) and not any((path / name).exists() for name in _OF_A_RUN):
            raise UsageError(f"{path} holds no trace_*.json")
        return path
    if path.is_file() and _file_part(path) is not None:
        return path.parent
    raise UsageError(f"there is no folder {path}" if not path.exists() else f"{path} is no trace_*.json")


def _file_part(path: Path) -> str | None:
    sample_id = SampleId.from_file_part(path.stem.removeprefix("trace_"))
    return None if sample_id is None else sample_id.file_part


def _first(paths: Sequence[Path], where: str) -> str:
    """What follows the address: the trace, where it is a single one that was named; or the list of some."""
    if where:
        return f"traces?{urlencode({'where': where})}"
    if len(paths) == 1 and paths[0].is_file():
        return f"trace/0/{_file_part(paths[0])}"
    return ""


def _has_browser() -> bool:
    """Whether there is one with a window: others would take the terminal."""
    if sys.platform.startswith("linux"):
        return any(os.environ.get(name) for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"))
    return True
