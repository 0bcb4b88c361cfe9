"""The sandbox's server as a process: started, asked for children, ended."""

from __future__ import annotations

import contextlib
import importlib.util
import select
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import PIL

from distil.errors import SandboxUnavailable
from distil.sandbox.control import COMMAND, NUMBER

SERVER_FILE = Path(__file__).with_name("fork_server.py")
START_SECONDS = 30.0  # the slowest start we wait for: a cold disk and a busy machine
_CLOSE_SECONDS = 5.0
_REPORT_BYTES_MAX = 64 * 1024


class ServerProcess:
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
            self.report = self._read(min(size, _REPORT_BYTES_MAX)).decode("utf-8", "replace")
        except OSError as error:
            self.close()
            raise SandboxUnavailable(
                "The sandbox's server ended while it started. Can this Python import PIL and numpy?"
            ) from error

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.control.recv(count - len(data))
            if not more:
                raise ConnectionError("the server closed its control socket")
            data += more
        return data

    @contextlib.contextmanager
    def spare(self) -> Iterator[socket.socket | None]:
        """The socket of the next child that waits, None where the server has died.

        The child is good for one job: in the end it is killed and the socket closed.
        """
        try:
            number, job = self._take()
        except OSError:
            yield None
            return
        try:
            yield job
        finally:
            job.close()
            with contextlib.suppress(OSError):
                self.control.sendall(COMMAND.pack(b"D", number))  # so few bytes go out whole, lock or no lock

    def _take(self) -> tuple[int, socket.socket]:
        with self._take_lock:
            data, fds, _, _ = socket.recv_fds(self.control, NUMBER.size, 1)
            if len(data) < NUMBER.size or not fds:
                raise ConnectionError("the server closed its control socket")
            job = socket.socket(fileno=fds[0])
            number = NUMBER.unpack(data)[0]
            self.control.sendall(COMMAND.pack(b"T", number))
        return number, job

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
            self._keeper.wait(_CLOSE_SECONDS)
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


def library_paths() -> list[str]:
    """The folders in which this process finds PIL and numpy; raises SandboxUnavailable."""
    numpy = importlib.util.find_spec("numpy")
    if numpy is None or numpy.origin is None:
        raise SandboxUnavailable("The code tool needs numpy: pip install numpy.")
    folders = [str(Path(origin).resolve().parent.parent) for origin in (PIL.__file__, numpy.origin)]
    return list(dict.fromkeys(folders))
