"""`distil view --serve`: folders of traces as a local web page."""

from __future__ import annotations

import os
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlencode

from tqdm import tqdm

from distil import process
from distil.errors import UsageError
from distil.records import SampleId
from distil.store.claim import LOCK, RUN_RECORD
from distil.store.folder import find_trace_files
from distil.store.spending import SPENDING
from distil.terminal.terminal import Terminal

_OF_A_RUN = (LOCK, RUN_RECORD, SPENDING)
_NEEDED = ("starlette", "uvicorn", "jinja2")


@dataclass(frozen=True)
class Page:
    """Where a page is served, and how; `may_be_another` port where that one is taken."""

    host: str
    port: int
    may_be_another: bool
    dataset_path: str | None = None
    where: str = ""  # of the traces that it opens with
    opens: bool = True  # the browser


def serve_traces(paths: Sequence[Path], page: Page, terminal: Terminal) -> int:
    """Serve folders, or those of trace files, until a signal; raises UsageError where that cannot be."""
    check_installed("the web page")
    from distil.index.index import TraceIndex  # noqa: PLC0415
    from distil.viewer.guard import is_loopback, new_token  # noqa: PLC0415
    from distil.viewer.server import bind, serve_until_interrupted, url_of  # noqa: PLC0415
    from distil.viewer.viewer import Viewer  # noqa: PLC0415

    folders = list(dict.fromkeys(map(folder_of, paths)))
    with bind(page.host, page.port, page.may_be_another) as listening:
        with reading_bar() as tell_progress:
            index = TraceIndex.open(folders, tell_progress)
        token = None if is_loopback(page.host) else new_token()
        viewer = Viewer(tuple(folders), index, token, page.dataset_path)
        url = url_of(listening, page.host, token, _first(paths, page.where))
        named = ", ".join(map(str, folders))

        def ready() -> None:
            terminal.say(f"{named}: {url}")
            terminal.say("Ctrl-C ends it.", "dim")
            if page.opens and _has_browser():
                threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()

        serve_until_interrupted(viewer, listening, page.host, ready)
    return process.EXIT_DONE


def check_installed(what: str) -> None:
    """Raise UsageError where something is missing that `what` is made with."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(f'{what} needs {", ".join(missing)}: pip install "distil[view]"')


def folder_of(path: Path) -> Path:
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


@contextmanager
def reading_bar() -> Iterator[Callable[[int, int], None]]:
    """A function that is told how many of how many files are read."""
    with tqdm(unit="trace", leave=False, delay=0.5, dynamic_ncols=True) as bar:

        def tell(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield tell
