"""The child's part: read one job, run its code, send what came of it.

Standard library, PIL and numpy only. Everything here shares a process with hostile code once that code
runs, so nothing here is a defence: the kernel layers and the client's checks are. This file makes honest
code comfortable: its output, its errors, its random numbers.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import linecache
import os
import random
import sys
import traceback
import types
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy
from PIL import Image

if TYPE_CHECKING:
    from distil.sandbox import frames
else:
    import frames  # by path: the server runs without the distil package

CODE_NAME = "<code>"
TYPE_NAME = type.__dict__["__name__"]  # what a metaclass cannot override
PLAIN_SEED = random.Random.seed
NOT_A_PICTURE = "assign a PIL image to `result_image`"


class JobOutput(io.RawIOBase):
    """The bottom of `sys.stdout`: sends frames up to the bound, then swallows."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._room_bytes = frames.STDOUT_BYTES_MAX + 1  # one more tells the client that something was cut

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        kept = bytes(data[: self._room_bytes])
        self._room_bytes -= len(kept)
        if kept:
            send(self._fd, [frames.FRAME.pack(frames.OUTPUT, len(kept)), kept])
        return len(data)


def send(fd: int, parts: Iterable[bytes]) -> None:
    """Write all parts to the job's socket."""
    for part in parts:
        view = memoryview(part)
        while view:
            view = view[os.write(fd, view) :]


def read_exactly(fd: int, count: int) -> bytearray:
    """Read `count` bytes; ends this process when the client has gone."""
    data = bytearray(count)
    view = memoryview(data)
    while view:
        got = os.readv(fd, [view])
        if got == 0:
            os._exit(0)
        view = view[got:]
    return data


def fix_randomness(seed: int) -> None:
    """Make every source of chance in Python and numpy a function of the job."""
    stream = random.Random(seed)  # noqa: S311 - reproducibility is the point

    def seed_generator(self: random.Random, a: Any = None, version: int = 2) -> None:
        PLAIN_SEED(self, stream.getrandbits(64) if a is None else a, version)

    random.Random.seed = seed_generator  # type: ignore[method-assign]
    os.urandom = random._urandom = stream.randbytes  # type: ignore[attr-defined]
    numpy.random.bit_generator.randbits = stream.getrandbits  # type: ignore[attr-defined]
    random.seed(seed)
    numpy.random.seed(seed)


def replace_streams(fd: int) -> io.TextIOWrapper:
    """Point print, warnings and tracebacks at the client; nothing can be read from stdin."""
    buffered = io.BufferedWriter(JobOutput(fd), 4096)
    output = io.TextIOWrapper(buffered, encoding="utf-8", errors="replace", line_buffering=True)
    sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = output  # type: ignore[misc]
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.BytesIO())  # type: ignore[misc]
    warnings.formatwarning = lambda message, category, *_: f"{category.__name__}: {message}\n"
    return output


def forget_ourselves() -> None:
    """Take the server's own modules and paths out of sight; a tidiness, not a defence."""
    for name in ("control", "frames", "job", "jail", "preload"):
        sys.modules.pop(name, None)
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv, sys.path, sys.executable, sys.orig_argv = [""], [], "", []


# --- errors in the model's own terms -----------------------------------------------------------------


def hint_for(error: BaseException) -> str:  # noqa: PLR0911 - one return per hint
    """What to do about a common error, or nothing."""
    text = str(error)
    if isinstance(error, ModuleNotFoundError):
        return "Only PIL, numpy and most of the Python standard library can be imported here."
    if isinstance(error, MemoryError):
        return "Work on a smaller picture or a smaller data type (np.uint8, np.float32)."
    if isinstance(error, OSError) and "resource" in text:
        return "Font files cannot be read here: use ImageFont.load_default(size)."
    if isinstance(error, (PermissionError, FileNotFoundError, BlockingIOError)) or "new thread" in text:
        return (
            "There are no files, network, threads or processes here. "
            "The picture is already open as `image`; use io.BytesIO where a file is needed."
        )
    if isinstance(error, AttributeError) and "ANTIALIAS" in text:
        return "Image.ANTIALIAS was removed in Pillow 10: use Image.Resampling.LANCZOS."
    if isinstance(error, (SystemExit, KeyboardInterrupt)):
        return "Do not end the program: let the code run to its last line."
    return ""


def only_their_frames(trace: traceback.TracebackException) -> None:
    """Drop the frames of our files and of libraries, here and in every chained error."""
    trace.stack[:] = [
        frame for frame in trace.stack if frame.filename[:1] == "<" and frame.filename[:7] != "<frozen"
    ]
    for inner in (trace.__cause__, trace.__context__, *(getattr(trace, "exceptions", None) or ())):
        if inner is not None:
            only_their_frames(inner)


def describe(error: BaseException) -> str:
    """The error as its author should see it: their lines, no paths of ours, a hint."""
    trace = traceback.TracebackException.from_exception(error, limit=200)
    only_their_frames(trace)
    first = "".join(trace.format_exception_only()).strip().splitlines()
    hint = hint_for(error)
    lines = [f"Error: {first[-1] if first else type(error).__name__}", "".join(trace.format()).rstrip()]
    return "\n".join([*lines, f"Hint: {hint}"] if hint else lines)


def describe_safely(error: BaseException, scope: dict[str, Any]) -> str:
    """`describe`, for errors whose own text fails and for a memory that is full."""
    try:
        return describe(error)
    except BaseException:  # noqa: BLE001 - hostile `__str__`, or no memory left to describe with
        scope.clear()
        error.__traceback__ = None
        return f"Error: {TYPE_NAME.__get__(type(error))}"


def shorten(text: str) -> bytes:
    """Text as UTF-8 within the bound, the middle cut out: the first and the last lines say most."""
    data = text.encode("utf-8", "replace")
    room = frames.MESSAGE_BYTES_MAX - len(frames.CUT_MARK.encode()) - 16
    if len(data) <= room:
        return data
    return data[: room // 4] + frames.CUT_MARK.encode() + b"\n" + data[-(room * 3 // 4) :]


# --- one job ---------------------------------------------------------------------------------------


def refusal(code: str, result: Any) -> tuple[bytes, str] | None:
    """Why `result_image` cannot be sent, or None."""
    if result is None:
        text = f"Error: result_image was not set.\nHint: {NOT_A_PICTURE}."
        if "__main__" in code:
            text += ' `if __name__ == "__main__":` is not true here: put the code at the top level.'
        return b"n", text
    if not isinstance(result, Image.Image):
        hint = "Image.fromarray(result_image) makes one of a uint8 array"
        hint = hint if isinstance(result, numpy.ndarray) else NOT_A_PICTURE
        return b"b", f"Error: result_image is not a picture but {type(result).__name__}.\nHint: {hint}."
    width, height = result.size
    if width < 1 or height < 1:
        return b"b", f"Error: result_image is empty ({width}×{height} pixels).\nHint: check the crop box."
    if width * height > frames.RESULT_PIXELS_MAX:
        limit = frames.RESULT_PIXELS_MAX // 1024**2
        return b"b", f"Error: result_image is too large ({width}×{height}); the limit is {limit} megapixels."
    if result.mode not in frames.MODE_BITS:
        return b"b", f'Error: result_image has mode {result.mode}.\nHint: result_image.convert("RGB").'
    return None


def failure(kind: bytes, text: str) -> tuple[bytes, int, Iterable[bytes]]:
    """A failure's frame."""
    data = kind + shorten(text)
    return frames.FAILURE, len(data), [data]


def run_code(code: str, scope: dict[str, Any]) -> tuple[bytes, int, Iterable[bytes]]:
    """Execute the code in its scope; returns a frame's kind, length and parts."""
    try:
        linecache.cache[CODE_NAME] = (len(code), None, code.splitlines(keepends=True), CODE_NAME)
        exec(compile(code, CODE_NAME, "exec", dont_inherit=True), scope)  # noqa: S102 - the whole purpose
        result: Any = scope.get("result_image")
        refused = refusal(code, result)
        if refused:
            return failure(*refused)
        return frames.PICTURE, *frames.picture_parts(result)
    except BaseException as error:  # noqa: BLE001 - whatever the code did is its result
        kind = b"m" if isinstance(error, MemoryError) else b"e"
        return failure(kind, describe_safely(error, scope))


def prepare(fd: int) -> io.TextIOWrapper:
    """What is the same for all jobs: done in the server, once, and inherited by every child."""
    output = replace_streams(fd)
    forget_ourselves()
    fix_randomness(0)
    return output


def read_job(fd: int) -> tuple[str, Image.Image]:
    """The code and the picture of one job; seeds all chance from it."""
    magic, seed, code_bytes = frames.JOB.unpack(read_exactly(fd, frames.JOB.size))
    if magic != frames.JOB_MAGIC:
        os._exit(0)
    code = read_exactly(fd, code_bytes).decode("utf-8", "surrogatepass")
    picture = frames.read_picture(lambda count: read_exactly(fd, count))
    fix_randomness(seed)
    return code, picture


def serve_one(fd: int, output: io.TextIOWrapper) -> None:
    """Say that this child is ready, read one job, run it, send its reply, and return."""
    send(fd, [frames.FRAME.pack(frames.READY, 0)])
    try:
        code, picture = read_job(fd)
    except MemoryError:
        kind, length, parts = failure(
            b"m", "Error: the picture does not fit into the memory of the code tool."
        )
    else:
        scope: dict[str, Any] = {"image": picture, "Image": Image, "np": numpy, "result_image": None}
        kind, length, parts = run_code(code, scope)
    with contextlib.suppress(BaseException):  # a closed or broken stdout must not cost the result
        output.flush()
    send(fd, itertools.chain([frames.FRAME.pack(kind, length)], parts))
