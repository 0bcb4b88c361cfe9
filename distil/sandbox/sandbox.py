"""The client side: start the server, hand out its children, send jobs, check replies."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import re
import select
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings
import weakref
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import PIL
from PIL import Image

from distil.errors import SandboxUnavailable
from distil.sandbox import frames as wire
from distil.sandbox.layers import Layer, Levels, read_levels

SUCCESS_MESSAGE = "Success: Image processed successfully"
SERVER_FILE = Path(__file__).with_name("server.py")
SPARES_MAX = 2
START_SECONDS = 30.0  # the slowest start we wait for: a cold disk and a busy machine
CLOSE_SECONDS = 5.0
CANARY_SECONDS = 10.0  # a canary shall fail for what it finds, not for a busy machine
REPORT_BYTES_MAX = 64 * 1024
RESTART_EARNED_CALLS = 100
UNSTARTED_RETRIES = 3
LAYER_NAMES = frozenset({"namespaces", "privileges", "landlock", "seccomp"})
REMEDY = (
    "Run on Linux (x86_64 or aarch64, seccomp built in) or in a Linux container, do without the code tool, "
    "or accept the danger with --unsafe_exec."
)

COMMAND = struct.Struct("<cI")  # as in server.py
NUMBER = struct.Struct("<I")

# Everything but tab and newline that a terminal would obey instead of showing.
CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class ExecResult:
    """What came of one run; `kind` is ok, error, timeout, memory, no_result, bad_result or crashed."""

    picture: Image.Image | None
    message: str
    stdout: str
    duration_seconds: float
    kind: str = "ok"

    @property
    def success(self) -> bool:
        """Whether there is a picture."""
        return self.picture is not None


class _ServerDied(Exception):
    """The server closed its control socket."""


class _SpareDied(Exception):
    """A child ended before it was ready: nothing was run."""


class _FairSlots:
    """A semaphore that serves in order of arrival."""

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._free = count
        self._waiting: deque[threading.Event] = deque()

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one slot; waits as long as it takes."""
        with self._lock:
            turn = None if self._free else threading.Event()
            if turn is None:
                self._free -= 1
            else:
                self._waiting.append(turn)
        try:
            if turn is not None:
                turn.wait()
            yield
        finally:
            self._leave(turn)

    def _leave(self, turn: threading.Event | None) -> None:
        """Pass the slot on; one who was interrupted while waiting only leaves the queue."""
        with self._lock:
            if turn is not None and not turn.is_set():
                self._waiting.remove(turn)
            elif self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1


@dataclass
class _Spare:
    """A child that is good for one job."""

    number: int
    socket: socket.socket


class _Server:
    """One running server process and the socket to it."""

    def __init__(self, command: list[str], timeout_seconds: float) -> None:
        self.control, theirs = socket.socketpair()
        self._take_lock = threading.Lock()
        try:
            self._keeper = subprocess.Popen(
                [word.replace("{fd}", str(theirs.fileno())) for word in command],
                env=_clean_environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except OSError as error:
            self.control.close()
            raise SandboxUnavailable(f"The sandbox's server cannot be started: {error}.") from error
        finally:
            theirs.close()
        self.control.settimeout(timeout_seconds)
        try:
            size = NUMBER.unpack(self._read(NUMBER.size))[0]
            self.report = self._read(min(size, REPORT_BYTES_MAX)).decode("utf-8", "replace")
        except (_ServerDied, OSError) as error:
            self.close()
            raise SandboxUnavailable(
                "The sandbox's server ended while it started. Can this Python import PIL and numpy?"
            ) from error

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.control.recv(count - len(data))
            if not more:
                raise _ServerDied
            data += more
        return data

    def take(self) -> _Spare:
        """The next child that waits; raises _ServerDied."""
        try:
            with self._take_lock:
                data, fds, _, _ = socket.recv_fds(self.control, NUMBER.size, 1)
                if len(data) < NUMBER.size or not fds:
                    raise _ServerDied
                job = socket.socket(fileno=fds[0])
                number = NUMBER.unpack(data)[0]
                self.control.sendall(COMMAND.pack(b"T", number))
        except OSError as error:
            raise _ServerDied from error
        return _Spare(number, job)

    def end(self, spare: _Spare) -> None:
        """Have a child killed and close its socket; never raises."""
        spare.socket.close()
        with contextlib.suppress(OSError):
            self.control.sendall(
                COMMAND.pack(b"D", spare.number)
            )  # so few bytes go out whole, lock or no lock

    def has_ended(self, within_seconds: float = 0.0) -> bool:
        """Whether the server's end of the control socket is closed."""
        poller = select.poll()
        try:
            poller.register(self.control, 0)  # POLLHUP is always reported
        except ValueError:
            return True  # closed by us
        return bool(poller.poll(within_seconds * 1000))

    def close(self) -> None:
        """End the server with all its children, and wait for it."""
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits in `take`; close does not
        self.control.close()
        try:
            self._keeper.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()

    def abandon(self) -> None:
        """In a forked copy of the process: close our copies, leave the server to its owner."""
        self.control.close()
        self._keeper.returncode = 0  # not our child: nothing to wait for


def _clean_environment() -> dict[str, str]:
    """All that the server gets to know; nothing of the caller's."""
    malloc = (
        "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=1073741824"
    )
    return {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "TZ": "UTC0",
        "PYTHONHASHSEED": "0",
        "GLIBC_TUNABLES": malloc,  # fewer, larger pages: a child then has a third of the page faults
        "OPENBLAS_NUM_THREADS": "1",  # a forked BLAS with threads waits for threads that are not there
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


def _library_paths() -> list[str]:
    """The folders in which this process finds PIL and numpy; raises SandboxUnavailable."""
    numpy = importlib.util.find_spec("numpy")
    if numpy is None or numpy.origin is None:
        raise SandboxUnavailable("The code tool needs numpy: pip install numpy.")
    folders = [str(Path(origin).resolve().parent.parent) for origin in (PIL.__file__, numpy.origin)]
    return list(dict.fromkeys(folders))


class Sandbox:
    """Runs model-written code on a picture, contained by the kernel; safe from many threads at once.

    Nothing is started before the first `run` or an explicit `start()`.
    """

    _unsafe = False

    def __init__(
        self,
        timeout_seconds: float = 10.0,
        memory_bytes: int = 2 * 1024**3,
        workers: int | None = None,
        *,
        _disable: tuple[str, ...] = (),
    ) -> None:
        """Bound each call in wall-clock seconds and in bytes, and how many run at once by `workers`.

        Raises ValueError for bounds that make no sense.
        """
        if timeout_seconds <= 0 or memory_bytes < 16 * 1024**2 or (workers is not None and workers < 1):
            raise ValueError("timeout_seconds > 0, memory_bytes >= 16 MiB and workers >= 1 are needed")
        self.timeout_seconds = timeout_seconds
        self.memory_bytes = memory_bytes
        self.workers = workers or max(2, os.cpu_count() or 2)
        self._disable = tuple(_disable)
        self._reset()
        _LIVE.add(self)

    def _reset(self) -> None:
        """The state of one that was never started."""
        self._slots = _FairSlots(self.workers)
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._levels: Levels | None = None
        self._closed = False
        self._calls_since_restart = RESTART_EARNED_CALLS

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy in a spawned process has the same bounds and a server of its own.
        return (_rebuild, (type(self), self.timeout_seconds, self.memory_bytes, self.workers, self._disable))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    # --- life cycle --------------------------------------------------------------------------------

    @property
    def levels(self) -> Levels:
        """What protects a run, as found at start (starts if need be); raises SandboxUnavailable."""
        self.start()
        assert self._levels is not None
        return self._levels

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

    def _running_server(self) -> _Server:
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

    def _start_server(self) -> _Server:
        server = _Server(self._command(), START_SECONDS)
        try:
            levels = read_levels(server.report, self._unsafe)
            self._require(levels)
            self._levels = self._with_canaries(server, levels)
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
        numbers = [
            os.getpid(),
            self.memory_bytes,
            int(self.timeout_seconds) + 2,
            min(SPARES_MAX, self.workers),
        ]
        disabled = ",".join(LAYER_NAMES if self._unsafe else self._disable)
        options = ["-P", "-s", "-S", "-B", "-X", "utf8"]
        return [
            sys.executable,
            *options,
            str(SERVER_FILE),
            "{fd}",
            *map(str, numbers),
            disabled,
            *_library_paths(),
        ]

    def _require(self, levels: Levels) -> None:
        """Refuse to go on without the layer that everything rests on."""
        if levels.status("seccomp") != "on":
            reason = next(
                (layer.detail for layer in levels.layers if layer.name == "seccomp"), "not reported"
            )
            raise SandboxUnavailable(
                f"Model-written code cannot be contained here: no seccomp ({reason}). {REMEDY}"
            )

    def _with_canaries(self, server: _Server, levels: Levels) -> Levels:
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
        canaries = Layer("canaries", "on", ", ".join(f"{name} held" for name in CANARIES))
        return Levels((*levels.layers, canaries), levels.unsafe)

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
        self, server: _Server | None, code: str, picture: Image.Image, timeout_seconds: float
    ) -> ExecResult:
        code_bytes = code.encode("utf-8", "surrogatepass")
        if len(code_bytes) > wire.CODE_BYTES_MAX:
            return ExecResult(None, "Error: the code is too long.", "", 0.0, "error")
        picture.load()
        if picture.mode not in wire.MODE_BITS:
            picture = picture.convert("RGBA")  # such as RGB;16 of a later PIL
        seed = zlib.crc32(code_bytes, zlib.crc32(repr((picture.mode, picture.size)).encode()))
        start = wire.JOB.pack(wire.JOB_MAGIC, seed, len(code_bytes)) + code_bytes
        for _ in range(UNSTARTED_RETRIES):
            owner = server or self._running_server()
            try:
                spare = owner.take()
            except _ServerDied:
                if server is not None:
                    break
                owner.has_ended(0.2)
                continue
            try:
                parts = itertools.chain([start], wire.picture_parts(picture)[1])
                return _converse(owner, spare, parts, timeout_seconds)
            except _SpareDied:
                continue
            finally:
                owner.end(spare)
        raise SandboxUnavailable(
            "The sandbox's server is up, but its children do not live long enough to run code."
        )


def _converse(server: _Server, spare: _Spare, parts: Iterator[bytes], timeout_seconds: float) -> ExecResult:
    """Send a job and read its reply; raises _SpareDied when the child was dead before it began."""
    reply = _Reply(spare.socket, time.monotonic() + START_SECONDS)
    try:
        reply.wait_until_ready()
    except (EOFError, OSError) as error:
        raise _SpareDied from error
    started = time.monotonic()
    reply.deadline = started + timeout_seconds
    try:
        for part in parts:
            reply.send(part)
    except (BrokenPipeError, ConnectionResetError):
        pass  # it may have said why before it ended
    except TimeoutError:
        return reply.result("timeout", _timeout_text(timeout_seconds), started)
    try:
        return reply.read_result(started)
    except TimeoutError:
        return reply.result("timeout", _timeout_text(timeout_seconds), started)
    except (EOFError, ConnectionError):
        ended = server.has_ended(0.05)
        return reply.result("crashed", SERVER_ENDED if ended else CHILD_ENDED, started)
    except wire.WireError as error:
        return reply.result("crashed", f"Error: the code sent a reply that is not valid ({error}).", started)


SERVER_ENDED = (
    "Error: the sandbox ended while this code ran; nothing was changed, the call can be made again."
)
CHILD_ENDED = (
    "Error: the code ended its process before it gave a result (a crash, an exit, or a limit of the sandbox)."
)


def _timeout_text(timeout_seconds: float) -> str:
    return (
        f"Error: the code took longer than {timeout_seconds:g} seconds and was stopped.\n"
        "Hint: work on a smaller picture or use numpy instead of loops over pixels."
    )


def is_of_the_machine(message: str, timeout_seconds: float) -> bool:
    """Whether a failed run says more of the machine than of its code: another time it may succeed."""
    return message in (_timeout_text(timeout_seconds), SERVER_ENDED)


class _Reply:
    """The client's reading end of one job: every byte counted, every number checked, all under a deadline."""

    def __init__(self, job: socket.socket, deadline: float) -> None:
        self._socket = job
        self.deadline = deadline
        self._output = bytearray()

    def send(self, data: bytes) -> None:
        """Send all of it before the deadline; raises TimeoutError."""
        view = memoryview(data)
        while view:
            self._set_timeout()
            view = view[self._socket.send(view) :]

    def _set_timeout(self) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)

    def _read(self, count: int) -> bytearray:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            self._set_timeout()
            got = self._socket.recv_into(view)
            if got == 0:
                raise EOFError
            view = view[got:]
        return data

    def _read_frame(self) -> tuple[bytes, int]:
        kind, length = wire.FRAME.unpack(self._read(wire.FRAME.size))
        return kind, length

    def wait_until_ready(self) -> None:
        """Wait for the child's first frame; raises EOFError."""
        if self._read_frame() != (wire.READY, 0):
            raise EOFError

    def read_result(self, started: float) -> ExecResult:
        """Read output until the result is there; raises TimeoutError, EOFError or WireError."""
        while True:
            kind, length = self._read_frame()
            if kind == wire.OUTPUT:
                self._read_output(length)
            elif kind == wire.FAILURE:
                return self._read_failure(length, started)
            elif kind == wire.PICTURE:
                return self._read_picture(length, started)
            else:
                raise wire.WireError("unknown frame")

    def _read_output(self, length: int) -> None:
        if not 1 <= length <= wire.STDOUT_BYTES_MAX + 1 - len(self._output):
            raise wire.WireError("output length")
        self._output += self._read(length)

    def _read_failure(self, length: int, started: float) -> ExecResult:
        if not 1 <= length <= wire.MESSAGE_BYTES_MAX + 1:
            raise wire.WireError("message length")
        data = bytes(self._read(length))
        kind = wire.FAILURE_KINDS.get(data[:1])
        if kind is None:
            raise wire.WireError("message kind")
        return self.result(
            kind, _printable(data[1:], wire.MESSAGE_BYTES_MAX) or "Error: no reason given.", started
        )

    def _read_picture(self, length: int, started: float) -> ExecResult:
        consumed = 0

        def read_counted(count: int) -> bytearray:
            nonlocal consumed
            consumed += count
            if consumed > length:
                raise wire.WireError("picture length")
            return self._read(count)

        try:
            picture = wire.read_picture(read_counted, wire.RESULT_PIXELS_MAX)
        except (ValueError, TypeError, OverflowError, MemoryError, struct.error) as error:
            if isinstance(error, wire.WireError):
                raise
            raise wire.WireError(str(error)) from error
        if consumed != length:
            raise wire.WireError("picture length")
        return self.result("ok", SUCCESS_MESSAGE, started, picture)

    def result(
        self, kind: str, message: str, started: float, picture: Image.Image | None = None
    ) -> ExecResult:
        """An ExecResult with the output so far."""
        cut = len(self._output) > wire.STDOUT_BYTES_MAX
        kept = bytes(self._output[: wire.STDOUT_BYTES_MAX])
        stdout = _printable(kept, wire.STDOUT_BYTES_MAX) + (wire.CUT_MARK if cut else "")
        return ExecResult(picture, message, stdout, time.monotonic() - started, kind)


def _printable(data: bytes, bytes_max: int) -> str:
    """Text from a child, without what a terminal would obey; as UTF-8 not longer than `bytes_max`."""
    text = CONTROL_CHARACTERS.sub("", data.decode("utf-8", "replace"))
    # Each byte that is not UTF-8 has become a replacement character of three.
    return text.encode()[:bytes_max].decode("utf-8", "ignore")


class UnsafeExecutor(Sandbox):
    """The same interface and time limit with no containment at all: only for `--unsafe_exec`."""

    _unsafe = True

    def __init__(
        self, timeout_seconds: float = 10.0, memory_bytes: int = 2 * 1024**3, workers: int | None = None
    ) -> None:
        """As Sandbox; warns, because code run by it can do whatever the user can."""
        super().__init__(timeout_seconds, memory_bytes, workers)
        warnings.warn(
            "UNSAFE: model-written code runs WITHOUT a sandbox; it can read, write and send everything "
            "that you can.",
            RuntimeWarning,
            stacklevel=2,
        )

    def _require(self, levels: Levels) -> None:
        pass

    def _with_canaries(self, server: _Server, levels: Levels) -> Levels:
        return levels


def _rebuild(
    kind: type[Sandbox], timeout_seconds: float, memory_bytes: int, workers: int, disable: Any
) -> Sandbox:
    if issubclass(kind, UnsafeExecutor):
        return kind(timeout_seconds, memory_bytes, workers)
    return kind(timeout_seconds, memory_bytes, workers, _disable=disable)


_LIVE: weakref.WeakSet[Sandbox] = weakref.WeakSet()


def _reset_after_fork() -> None:
    for sandbox in list(_LIVE):
        sandbox._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)

CANARY = """
try:
    {attempt}
    print("escaped")
except OSError:
    print("held")
result_image = image
"""
CANARIES = {
    "file": CANARY.replace("{attempt}", "open({file!r})").replace("{file!r}", "'{file}'"),
    "socket": CANARY.replace("{attempt}", "import socket; socket.socket()"),
    "process": CANARY.replace("{attempt}", "import os; os.fork() or os._exit(0)"),
}
