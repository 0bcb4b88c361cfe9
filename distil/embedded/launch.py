"""The embedded default: a sign reader as teacher, and drawn street signs or scenes as dataset.

Both are child processes: the pipeline meets the sign reader only as a server at the other end of the
ordinary client, and knows nothing of its inside.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distil import __version__
from distil.errors import SourceError, UsageError
from distil.interrupts import interruptible

NUM_SIGNS = 240
NAMES_OF_DATA = {"signs": "street signs", "scenes": "scenes of coloured shapes"}
KINDS = tuple(NAMES_OF_DATA)
DEFAULT_KIND = KINDS[0]
TEACHER_NOTE = (
    "embedded sign reader: OCR plus rules with templated sentences, for trying the pipeline, not for training"
)
_MODULE = "distil.embedded"
_NEEDED = ("rapidocr", "onnxruntime")


def check_installed() -> None:
    """Raise UsageError where the extra `local` is not installed."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"the embedded teacher needs {' and '.join(missing)}: pip install -e '.[local]'\n"
            "or use a real teacher: --api_base URL [--model NAME]"
        )


@contextmanager
def embedded_teacher() -> Iterator[str]:
    """Run the sign reader's server as a child process; yields its API base URL.

    Raises UsageError where the extra `local` is not installed. The child ends when its standard input
    closes, so it does not outlive this process whatever way that ends.
    """
    check_installed()
    child = subprocess.Popen(
        [sys.executable, "-m", _MODULE, "serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us to act on: the child ends with its standard input
        env=_child_environment(),
    )
    try:
        yield f"http://127.0.0.1:{_read_port(child)}/v1"
    finally:
        _end(child)


def _child_environment() -> dict[str, str]:
    """The environment without secrets: the sign reader needs none."""
    return {name: value for name, value in os.environ.items() if not name.endswith(("_KEY", "_TOKEN"))}


def _read_port(child: subprocess.Popen[bytes]) -> int:
    assert child.stdout is not None
    for line in child.stdout:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("event") == "ready":
            return int(event["port"])
    raise UsageError(f"the embedded teacher did not start (exit code {child.wait()}); see its message above")


def _end(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None and child.stdout is not None
    child.stdin.close()
    try:
        child.wait(timeout=5)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    child.stdout.close()


def drawn_data(kind: str) -> str:
    """The path of drawn data of a kind, drawn once per user and version (`$DISTIL_CACHE` overrides).

    Raises SourceError where it cannot be drawn.
    """
    folder = _cache_folder() / f"drawn_{kind}-{__version__}-{NUM_SIGNS}"
    if not (folder / "state.json").is_file():
        print(f"Drawing {NUM_SIGNS} {NAMES_OF_DATA[kind]}, once, into {folder}", flush=True)
        draw_data(folder, NUM_SIGNS, seed=0, kind=kind)
    return str(folder)


def draw_data(folder: Path, num_rows: int, seed: int, kind: str = DEFAULT_KIND) -> None:
    """Draw a dataset into a new folder, whole or not at all.

    Raises SourceError, and KeyboardInterrupt after a signal.
    """
    arguments = ["--output_dir", str(folder), "--num_rows", str(num_rows), "--seed", str(seed)]
    arguments += ["--kind", kind]
    name = NAMES_OF_DATA[kind]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        child = subprocess.Popen(
            [sys.executable, "-m", _MODULE, "draw", *arguments],
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us to pass on
        )
    except OSError as error:
        raise SourceError(
            f"the {name} cannot be drawn into {folder}: {error}; name another cache by $DISTIL_CACHE"
        ) from None
    with interruptible(wake=child.terminate):  # it clears away what it has drawn
        child.wait()
    if child.returncode != 0 and not (folder / "state.json").is_file():  # or another process was faster
        raise SourceError(f"the {name} could not be drawn into {folder}; see the message above")


def _cache_folder() -> Path:
    if "DISTIL_CACHE" in os.environ:
        return Path(os.environ["DISTIL_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distil"
