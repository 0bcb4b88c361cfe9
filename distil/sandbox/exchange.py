"""One job: sent to a child, its reply read and checked number by number, all under a deadline."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from distil.records import SUCCESS_MESSAGE
from distil.sandbox import frames
from distil.sandbox.server_process import START_SECONDS, ServerProcess

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


def converse(
    server: ServerProcess, job: socket.socket, parts: Iterator[bytes], timeout_seconds: float
) -> ExecResult | None:
    """Send a job and read its reply; None when the child was dead before it began: nothing was run."""
    reply = ReplyReader(job, START_SECONDS)
    try:
        reply.wait_until_ready()
    except (EOFError, OSError):
        return None
    reply.start_clock(timeout_seconds)
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have said why it ends
            for part in parts:
                reply.send(part)
        return reply.read_result()
    except TimeoutError:
        return reply.result("timeout", _timeout_text(timeout_seconds))
    except (EOFError, ConnectionError):
        ended = server.has_ended(0.05)
        return reply.result("crashed", SERVER_ENDED if ended else CHILD_ENDED)
    except frames.FrameError as error:
        return reply.result("crashed", f"Error: the code sent a reply that is not valid ({error}).")


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


class ReplyReader:
    """The client's reading end of one job: every byte counted, every number checked, all under a deadline."""

    def __init__(self, job: socket.socket, within_seconds: float) -> None:
        self._socket = job
        self._output = bytearray()
        self.start_clock(within_seconds)

    def start_clock(self, within_seconds: float) -> None:
        """Count the time from now on, and wait no longer than this for all that follows."""
        self._started = time.monotonic()
        self._deadline = self._started + within_seconds

    def send(self, data: bytes) -> None:
        """Send all of it before the deadline; raises TimeoutError."""
        view = memoryview(data)
        while view:
            self._set_timeout()
            view = view[self._socket.send(view) :]

    def _set_timeout(self) -> None:
        left = self._deadline - time.monotonic()
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
        kind, length = frames.FRAME.unpack(self._read(frames.FRAME.size))
        return kind, length

    def wait_until_ready(self) -> None:
        """Wait for the child's first frame; raises EOFError."""
        if self._read_frame() != (frames.READY, 0):
            raise EOFError

    def read_result(self) -> ExecResult:
        """Read output until the result is there; raises TimeoutError, EOFError or FrameError."""
        while True:
            kind, length = self._read_frame()
            if kind == frames.OUTPUT:
                self._read_output(length)
            elif kind == frames.FAILURE:
                return self._read_failure(length)
            elif kind == frames.PICTURE:
                return self._read_picture(length)
            else:
                raise frames.FrameError("unknown frame")

    def _read_output(self, length: int) -> None:
        if not 1 <= length <= frames.STDOUT_BYTES_MAX + 1 - len(self._output):
            raise frames.FrameError("output length")
        self._output += self._read(length)

    def _read_failure(self, length: int) -> ExecResult:
        if not 1 <= length <= frames.MESSAGE_BYTES_MAX + 1:
            raise frames.FrameError("message length")
        data = bytes(self._read(length))
        kind = frames.FAILURE_KINDS.get(data[:1])
        if kind is None:
            raise frames.FrameError("message kind")
        return self.result(kind, _printable(data[1:], frames.MESSAGE_BYTES_MAX) or "Error: no reason given.")

    def _read_picture(self, length: int) -> ExecResult:
        consumed = 0

        def read_counted(count: int) -> bytearray:
            nonlocal consumed
            consumed += count
            if consumed > length:
                raise frames.FrameError("picture length")
            return self._read(count)

        try:
            picture = frames.read_picture(read_counted, frames.RESULT_PIXELS_MAX)
        except (ValueError, TypeError, OverflowError, MemoryError, struct.error) as error:
            if isinstance(error, frames.FrameError):
                raise
            raise frames.FrameError(str(error)) from error
        if consumed != length:
            raise frames.FrameError("picture length")
        return self.result("ok", SUCCESS_MESSAGE, picture)

    def result(self, kind: str, message: str, picture: Image.Image | None = None) -> ExecResult:
        """An ExecResult with the output and the time so far."""
        cut = len(self._output) > frames.STDOUT_BYTES_MAX
        kept = bytes(self._output[: frames.STDOUT_BYTES_MAX])
        stdout = _printable(kept, frames.STDOUT_BYTES_MAX) + (frames.CUT_MARK if cut else "")
        return ExecResult(picture, message, stdout, time.monotonic() - self._started, kind)


def _printable(data: bytes, bytes_max: int) -> str:
    """Text from a child, without what a terminal would obey; as UTF-8 not longer than `bytes_max`."""
    text = CONTROL_CHARACTERS.sub("", data.decode("utf-8", "replace"))
    # Each byte that is not UTF-8 has become a replacement character of three.
    return text.encode()[:bytes_max].decode("utf-8", "ignore")
