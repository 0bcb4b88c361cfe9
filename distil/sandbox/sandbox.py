"""The sandbox: its bounds, its server's life, and one run."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import sys
import threading
import warnings
import weakref
import zlib
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any, Self

from PIL import Image

from distil.errors import SandboxUnavailable
from distil.sandbox import frames
from distil.sandbox.bounds import MEMORY_BYTES, TIMEOUT_SECONDS, LayerRow, Layers, read_row
from distil.sandbox.exchange import ExecResult, converse
from distil.sandbox.server_process import SERVER_FILE, START_SECONDS, ServerProcess, library_paths

SPARES_MAX = 2
CANARY_SECONDS = 10.0  # a canary shall fail for what it finds, not for a busy machine
RESTART_EARNED_CALLS = 100
UNSTARTED_RETRIES = 3
LAYER_NAMES = frozenset({"namespaces", "privileges", "landlock", "seccomp"})
REMEDY = (
    "Run on Linux (x86_64 or aarch64, seccomp built in) or in a Linux container, do without the code tool, "
    "or accept the danger with --unsafe_exec."
)
UNSAFE_WARNING = (
    "UNSAFE: model-written code runs WITHOUT a sandbox; it can read, write and send everything that you can."
)

# Known attacks that are tried at start, through the path that every code takes.
_CANARY = """
try:
    {attempt}
    print("escaped")
except OSError:
    print("held")
result_image = image
"""
CANARIES = {  # {file}: a file that is there
    "file": _CANARY.replace("{attempt}", "open('{file}')"),
    "socket": _CANARY.replace("{attempt}", "import socket; socket.socket()"),
    "process": _CANARY.replace("{attempt}", "import os; os.fork() or os._exit(0)"),
}


class FairSlots:
    """A semaphore that serves in order of arrival: with a plain one a thread can wait ten times as long."""

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._free = count
        self._waiting: deque[threading.Event] = deque()

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one slot; waits as long as it takes."""
        turn = threading.Event()
        with self._lock:
            self._waiting.append(turn)
            self._give()
        try:
            turn.wait()
            yield
        finally:
            with self._lock:
                if turn.is_set():
                    self._free += 1
                else:
                    self._waiting.remove(turn)  # interrupted while it waited
                self._give()

    def _give(self) -> None:
        while self._free and self._waiting:
            self._free -= 1
            self._waiting.popleft().set()


class Sandbox:
    """Runs model-written code on a picture, contained by the kernel; safe from many threads at once.

    Nothing is started before the first `run` or an explicit `start()`. With `unsafe` only the bounds of time
    and memory are kept: code can then do whatever the user can (`--unsafe_exec`).
    """

    def __init__(
        self,
        timeout_seconds: float = TIMEOUT_SECONDS,
        memory_bytes: int = MEMORY_BYTES,
        workers: int | None = None,
        *,
        unsafe: bool = False,
        _disable: tuple[str, ...] = (),
    ) -> None:
        """Bound each call in wall-clock seconds and in bytes, and how many run at once by `workers`.

        Raises ValueError for bounds that make no sense; warns where it is to be unsafe.
        """
        if timeout_seconds <= 0 or memory_bytes < 16 * 1024**2 or (workers is not None and workers < 1):
            raise ValueError("timeout_seconds > 0, memory_bytes >= 16 MiB and workers >= 1 are needed")
        self.timeout_seconds = timeout_seconds
        self.memory_bytes = memory_bytes
        self.workers = workers or max(2, os.cpu_count() or 2)
        self.unsafe = unsafe
        self._disable = tuple(_disable)
        self._reset()
        _LIVE.add(self)
        if unsafe:
            warnings.warn(UNSAFE_WARNING, RuntimeWarning, stacklevel=2)

    def _reset(self) -> None:
        """The state of one that was never started."""
        self._slots = FairSlots(self.workers)
        self._lock = threading.Lock()
        self._server: ServerProcess | None = None
        self._layers: Layers | None = None
        self._closed = False
        self._calls_since_restart = RESTART_EARNED_CALLS

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy in a spawned process has the same bounds and a server of its own.
        make = partial(Sandbox, unsafe=self.unsafe, _disable=self._disable)
        return make, (self.timeout_seconds, self.memory_bytes, self.workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    # --- life cycle --------------------------------------------------------------------------------

    @property
    def layers(self) -> Layers:
        """What protects a run, as found at start (starts if need be); raises SandboxUnavailable."""
        self.start()
        assert self._layers is not None
        return self._layers

    def start(self) -> None:
        """Start the server and see with canary jobs that it holds; raises SandboxUnavailable."""
        self._running_server()

    def close(self) -> None:
        """End the server and everything in it; runs in other threads come back as crashed."""
        with self._lock:
            self._closed = True
            server, self._server = self._server, None
        if server is not None:
            server.close()

    def _running_server(self) -> ServerProcess:
        with self._lock:
            if self._closed:
                raise SandboxUnavailable("This sandbox is closed.")
            if self._server is not None and self._server.has_ended():
                self._count_death()
                self._server.close()
                self._server = None
            if self._server is None:
                self._server = self._start_server()
            return self._server

    def _count_death(self) -> None:
        """Allow one restart, and another after many good calls; raises SandboxUnavailable."""
        if self._calls_since_restart < RESTART_EARNED_CALLS:
            raise SandboxUnavailable(
                "The sandbox's server ended twice in a short time; is the machine out of memory?"
            )
        self._calls_since_restart = 0

    def _start_server(self) -> ServerProcess:
        server = ServerProcess(self._command(), START_SECONDS)
        try:
            rows = [read_row(line) for line in server.report.splitlines()]
            if not self.unsafe:
                _require_seccomp(rows)
                rows.append(self._try_canaries(server))
            self._layers = Layers(tuple(rows), self.unsafe)
        except BaseException:
            server.close()
            raise
        return server

    def _command(self) -> list[str]:
        if os.name != "posix" or not hasattr(socket, "recv_fds"):
            raise SandboxUnavailable(f"Model-written code cannot be run on {sys.platform}. {REMEDY}")
        if not sys.executable:
            raise SandboxUnavailable(
                "This program has no Python interpreter to start (sys.executable is empty)."
            )
        python = [sys.executable, "-P", "-s", "-S", "-B", "-X", "utf8", str(SERVER_FILE)]
        cpu_seconds, spares = int(self.timeout_seconds) + 2, min(SPARES_MAX, self.workers)
        numbers = map(str, (os.getpid(), self.memory_bytes, cpu_seconds, spares))
        disabled = ",".join(LAYER_NAMES if self.unsafe else self._disable)
        return [*python, "{fd}", *numbers, disabled, *library_paths()]

    def _try_canaries(self, server: ServerProcess) -> LayerRow:
        """Run known attacks through the real path; raises SandboxUnavailable when one gets through."""
        picture = Image.new("RGB", (2, 2))
        for name, code in CANARIES.items():
            seconds = max(self.timeout_seconds, CANARY_SECONDS)
            result = self._run_on(server, code.replace("{file}", str(SERVER_FILE)), picture, seconds)
            if result.stdout.strip() != "held" or not result.success:
                raise SandboxUnavailable(
                    f"Model-written code cannot be contained here: the {name} canary was not held "
                    f"({result.stdout.strip() or result.message}). {REMEDY}"
                )
        return "canaries", "on", ", ".join(f"{name} held" for name in CANARIES)

    def _after_fork(self) -> None:
        """In a forked copy: the server belongs to the parent; start afresh on the next run."""
        server, closed = self._server, self._closed
        self._reset()
        self._closed = closed
        if server is not None:
            server.abandon()

    # --- one run -----------------------------------------------------------------------------------------

    def run(self, code: str, picture: Image.Image) -> ExecResult:
        """Run `code` on `picture` within the bounds; whatever the code does is in the result.

        Raises SandboxUnavailable when code cannot be contained, and whatever PIL raises when `picture`
        itself cannot be read.
        """
        with self._slots.slot():
            result = self._run_on(None, code, picture, self.timeout_seconds)
        self._calls_since_restart += 1
        return result

    def _run_on(
        self, server: ServerProcess | None, code: str, picture: Image.Image, timeout_seconds: float
    ) -> ExecResult:
        code_bytes = code.encode("utf-8", "surrogatepass")
        if len(code_bytes) > frames.CODE_BYTES_MAX:
            return ExecResult(None, "Error: the code is too long.", "", 0.0, "error")
        picture.load()
        if picture.mode not in frames.MODE_BITS:
            picture = picture.convert("RGBA")  # such as RGB;16 of a later PIL
        seed = zlib.crc32(code_bytes, zlib.crc32(repr((picture.mode, picture.size)).encode()))
        start = frames.JOB.pack(frames.JOB_MAGIC, seed, len(code_bytes)) + code_bytes
        for _ in range(UNSTARTED_RETRIES):
            owner = server or self._running_server()
            with owner.spare() as job:
                if job is None and server is not None:
                    break
                if job is None:
                    owner.has_ended(0.2)
                    continue
                parts = itertools.chain([start], frames.picture_parts(picture)[1])
                result = converse(owner, job, parts, timeout_seconds)
            if result is not None:
                return result
        raise SandboxUnavailable(
            "The sandbox's server is up, but its children do not live long enough to run code."
        )


def _require_seccomp(rows: list[LayerRow]) -> None:
    """Refuse to go on without the layer that everything rests on; raises SandboxUnavailable."""
    _, status, reason = next((row for row in rows if row[0] == "seccomp"), ("", "off", "not reported"))
    if status != "on":
        raise SandboxUnavailable(
            f"Model-written code cannot be contained here: no seccomp ({reason}). {REMEDY}"
        )


_LIVE: weakref.WeakSet[Sandbox] = weakref.WeakSet()


def _reset_after_fork() -> None:
    for sandbox in list(_LIVE):
        sandbox._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
