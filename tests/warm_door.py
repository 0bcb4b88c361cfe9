"""Doors started warm: one process imports what doors import, and each run is a fork of it.

A run costs a fifth of the processor time of a cold one. The fork runs the very script, with its own working
folder, arguments, environment, standard streams and session, and ends as the script ends: its pid takes
signals, SIGKILL too. `start_door` falls back to a cold start where a fork would not be the same.

The server ends, and every door with it, when the socket to the process of the tests closes.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

# What the interpreter or a library reads as it starts: a run with other values of these starts cold.
_READ_AT_START = ("PYTHON", "HF_", "LD_", "OMP_", "OPENBLAS_", "ARROW_", "TQDM_", "LANG", "LC_", "MALLOC_")
_MODULES = (  # what a run is seen to import, where it is installed
    "distil.cli",
    "distil.exports.card",
    "distil.exports.check",
    "distil.exports.export",
    "distil.exports.importing",
    "distil.exports.near_duplicates",
    "distil.exports.preview",
    "distil.run.distillation",
    "distil.source.library",
    "distil.terminal.estimate",
    "distil.terminal.bar",
    "distil.terminal.summary",
    "distil.terminal.traces",
    "distil.terminal.verification",
    "distil.terminal.doctor",
    "distil.terminal.exporting",
    "distil.terminal.web",
    "distil.viewer.report",
    "encodings.idna",
    "genai_prices.data_snapshot",
    "imagehash",
    "jinja2",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "multiprocessing.synchronize",
    "openai.resources.chat.completions",
    "openai.resources.models",
    "pandas",
    "pyarrow.parquet",
    "pygments.formatters",
    "pygments.lexers",
    "rich.status",
    "rich.syntax",
    "PIL.BmpImagePlugin",
    "PIL.GifImagePlugin",
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
    "PIL.PpmImagePlugin",
    "PIL.WebPImagePlugin",
)
_LENGTH_BYTES = 4
_CAN_WAIT_FOR_A_PID = hasattr(os, "pidfd_open")  # Linux


def start_door(
    script: str, *arguments: object, cwd: Path, env: Mapping[str, str] | None = None, cold: bool = False
) -> subprocess.Popen[str] | WarmDoor:
    """Start a script of a folder, warm unless told otherwise; its output is read by `communicate`."""
    environment = dict(os.environ if env is None else env)
    argv = [script, *map(str, arguments)]
    if cold or not _CAN_WAIT_FOR_A_PID or _at_start(environment) != _at_start(os.environ):
        return subprocess.Popen(
            [sys.executable, *argv],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    return _server().start(argv, cwd, environment)


def _at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_READ_AT_START)}


class WarmDoor:
    """A forked run, with as much of Popen's face as the tests use."""

    def __init__(self, pid: int, args: Sequence[str], ended: IO[bytes], outputs: Sequence[IO[str]]) -> None:
        self.pid = pid
        self.args = args
        self.returncode: int | None = None
        self._ended = ended
        self._texts = ["", ""]
        self._readers = [
            threading.Thread(target=self._read, args=(position, output), daemon=True)
            for position, output in enumerate(outputs)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, position: int, output: IO[str]) -> None:
        with output:
            self._texts[position] = output.read()

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        if self.returncode is None and select.select([self._ended], [], [], 0)[0]:
            self._read_exit()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; raises TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._ended], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self._read_exit()
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end, and for that of all who hold its output; raises TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self.wait(timeout)
        for reader in self._readers:
            reader.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self._texts[0], self._texts[1]

    def send_signal(self, number: int) -> None:
        """Send it a signal unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _read_exit(self) -> None:
        data = self._ended.read()
        self._ended.close()
        # Without a number the server itself is gone, and its doors with it.
        self.returncode = int(data) if data else -signal.SIGKILL


class _Server:
    """The tests' end of the warm process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.socket, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C is for the tests
        )
        theirs.close()

    def start(self, argv: list[str], cwd: Path, environment: dict[str, str]) -> WarmDoor:
        """Fork a run."""
        stdin = os.open(os.devnull, os.O_RDONLY)
        stdout, theirs_out = os.pipe()
        stderr, theirs_err = os.pipe()
        ended, theirs_ended = os.pipe()
        sent = [stdin, theirs_out, theirs_err, theirs_ended]
        message = json.dumps({"argv": argv, "cwd": str(cwd), "env": environment}).encode()
        try:
            with self._lock:
                self.socket.sendmsg(
                    [len(message).to_bytes(_LENGTH_BYTES, "big")],
                    [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", sent))],
                )
                self.socket.sendall(message)
                pid = int.from_bytes(_receive(self.socket, _LENGTH_BYTES), "big")
        finally:
            for descriptor in sent:
                os.close(descriptor)
        outputs = [os.fdopen(descriptor, encoding="utf-8") for descriptor in (stdout, stderr)]
        return WarmDoor(pid, argv, os.fdopen(ended, "rb"), outputs)

    def close(self) -> None:
        """End it; it ends its doors."""
        self.socket.close()
        self.process.wait(timeout=30)


_servers: list[_Server] = []


def _server() -> _Server:
    if not _servers:
        _servers.append(_Server())
        atexit.register(_servers[0].close)
    return _servers[0]


# --- the warm process ---


def _receive(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return data


def _receive_order(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What to run and the descriptors to run it on; raises EOFError when the tests are gone."""
    room = socket.CMSG_SPACE(4 * 4)
    head, ancillary, _, _ = sock.recvmsg(_LENGTH_BYTES, room)
    if not head:
        raise EOFError
    head += _receive(sock, _LENGTH_BYTES - len(head))
    descriptors = array.array("i")
    for _, _, data in ancillary:
        descriptors.frombytes(data)
    return json.loads(_receive(sock, int.from_bytes(head, "big"))), list(descriptors)


def _serve(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork a door for each order and report how it ended; returns the order in each fork."""
    selector = selectors.DefaultSelector()
    selector.register(sock, selectors.EVENT_READ)
    doors: dict[int, tuple[int, int]] = {}  # by the descriptor of the pid: the pid, and where to report
    while True:
        for key, _ in selector.select():
            if key.fileobj is not sock:
                _report(key.fd, *doors.pop(key.fd), selector)
                continue
            try:
                order, descriptors = _receive_order(sock)
            except (EOFError, ConnectionError):
                _end(doors)
            *standard, report = descriptors
            pid = os.fork()
            if pid == 0:
                for descriptor, (_, other) in doors.items():
                    os.close(descriptor)
                    os.close(other)
                os.close(report)
                sock.close()
                selector.close()
                return order, standard
            for descriptor in standard:
                os.close(descriptor)
            watched = os.pidfd_open(pid)
            doors[watched] = (pid, report)
            selector.register(watched, selectors.EVENT_READ)
            sock.sendall(pid.to_bytes(_LENGTH_BYTES, "big"))


def _report(watched: int, pid: int, report: int, selector: selectors.BaseSelector) -> None:
    selector.unregister(watched)
    os.close(watched)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(BrokenPipeError):
        os.write(report, str(os.waitstatus_to_exitcode(status)).encode())
    os.close(report)


def _end(doors: Mapping[int, tuple[int, int]]) -> NoReturn:
    for pid, _ in doors.values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    os._exit(0)


def _become_door(order: dict[str, Any], standard: Sequence[int]) -> None:
    """Take on what a process is started with, then run the script to its end."""
    os.setsid()
    for number, descriptor in enumerate(standard):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(  # noqa: SIM115
        2, "w", buffering=1, closefd=False, errors="backslashreplace"
    )
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.argv = order["argv"]
    sys.path[0] = str(Path(order["cwd"], sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    for name in _MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # the collector must not touch, and so copy, what the forks share
    _become_door(*_serve(socket.socket(fileno=int(sys.argv[1]))))
