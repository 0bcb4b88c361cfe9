"""The error tree: what can go wrong, by who has to act on it.

DistilError
├── UsageError          the command line is wrong: nothing was run, exit code 2
├── SourceError         a dataset cannot be opened, or lacks what the task needs
│   └── SampleError     one row cannot be used: it becomes a failed sample, the run goes on
├── ToolError           a tool call cannot be carried out: its message goes to the teacher
├── TeacherError        the teacher could not be asked, or its reply cannot be read
│   ├── TeacherRefused  wrong key, URL or model, or no server: every sample would fail, so the run stops
│   ├── ContextOverflow the conversation outgrew the teacher: the sample ends with what it has
│   └── DeadlinePassed  the time of a turn or a sample is over
├── SandboxUnavailable  model-written code cannot be contained here: code is not run
├── FolderError         the run's folder cannot be written: the run stops before more is paid for
├── RunHalted           a signal, or samples that are worthless: the run ends, nothing is lost
├── BudgetExceeded      one more request could pass a limit: the run ends, nothing is lost
└── TraceError          a trace file cannot be read, or is not a trace
"""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from types import TracebackType

_ADDRESS = re.compile(r"(<[^<>]*?) at 0x[0-9a-fA-F]+(?=[^<>]*>)")


class DistilError(Exception):
    """Base of every error that distil raises on purpose; its text is meant for the user."""


class UsageError(DistilError):
    """The command line asks for something that does not exist or cannot work."""


class SourceError(DistilError):
    """A dataset cannot be opened or lacks a column; the text names the path and what to do."""


class SampleError(SourceError):
    """One row cannot be used; the text names the row and the field."""


class ToolError(DistilError):
    """A tool call cannot be carried out; the text is for the teacher to act on, `stdout` what was printed."""

    def __init__(self, message: str, stdout: str | None = None) -> None:
        super().__init__(message)
        self.stdout = stdout


class TeacherError(DistilError):
    """The teacher could not be asked or its reply cannot be read.

    `status` is the HTTP status, if any, `attempts` how many requests were made for the turn.
    """

    def __init__(self, message: str, status: int | None = None, attempts: int = 1) -> None:
        super().__init__(message)
        self.status = status
        self.attempts = attempts


class TeacherRefused(TeacherError):
    """The server refuses every request of this run: wrong key, URL, model or parameters, or it stays away."""


class ContextOverflow(TeacherError):
    """The conversation does not fit the teacher's context any more."""


class DeadlinePassed(TeacherError):
    """The time that a turn or a sample may take is over."""


class FolderError(DistilError):
    """The run's folder cannot be written (full, read-only, gone); the text names the file and the cause."""


class BudgetExceeded(DistilError):
    """One more request could pass a limit; the text names the limit and what is used of it."""


class RunHalted(DistilError):
    """The run is being ended, by a signal or by what meets every sample: nothing more is asked.

    Where the samples so far are worthless, the text says in what way and what is likely.
    """


class SandboxUnavailable(DistilError):
    """This machine cannot contain model-written code; the text names what is missing and the remedy."""


class TraceError(DistilError):
    """A file is not a readable trace; the text names the path and the field."""


def error_text(error: BaseException) -> str:
    """What an error says, without the memory addresses of objects: the same inputs give the same words."""
    return _ADDRESS.sub(r"\1", str(error))


class Caught:
    """A context in which code of the user's own runs; afterwards `error` is what it raised, or None.

    Nobody can foresee what that is, so everything is taken but an interruption: `asyncio.CancelledError` and
    what else is no Exception would end the run.
    """

    error: BaseException | None = None

    def __enter__(self) -> Caught:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.error = error
        return error is not None and not isinstance(error, KeyboardInterrupt)

    def text(self, file: str | None = None) -> str:
        """What was raised, and in which line of that file, or else where; the same on every machine."""
        error = self.error
        line = error.lineno if isinstance(error, SyntaxError) and error.filename == file else None
        if error is not None and line is None:
            frames = traceback.extract_tb(error.__traceback__)
            frames = [frame for frame in frames if file in (None, frame.filename)]  # type: ignore[assignment]
            line = frames[-1].lineno if frames else None
            file = frames[-1].filename if frames else file
        said = error.msg if isinstance(error, SyntaxError) else "" if error is None else _said(error)
        where = "" if line is None or file is None else f" ({Path(file).name}, line {line})"
        return " ".join(f"{type(error).__name__}: {said}".removesuffix(": ").split()) + where


def _said(error: BaseException) -> str:
    """What an error says, as UTF-8 can carry it; nothing where it cannot even be asked."""
    with Caught():
        return error_text(error).encode("utf-8", "replace").decode("utf-8")
    return ""
