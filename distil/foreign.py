"""Code of the user's own, run in this process: what it raises is told, with the line of its file."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import TracebackType

from distil.errors import error_text


class Caught:
    """A context in which such code runs; afterwards `error` is what it raised, and None where it did not.

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
