"""Signals: the first one ends a command in order or at once, the second at once; none is an exception.

An exception raised in a signal handler comes out of wherever the main thread happens to be: out of a
destructor or a weakref callback not at all (Python prints it and goes on), out of an import as another one,
and it may leave a lock held. So a handler ends the process where that is no harm, which is everywhere but
while samples are solved or signs are drawn; there it sets a flag that the waiting loop reads.

Only a door that is a process of its own handles signals: without `handle` nothing here does anything.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

EXIT_INTERRUPTED = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = b"\x1b[?25h"


@dataclass(frozen=True)
class _Leave:
    """Ends the process with a line where it is; the kernel closes what it has open."""

    prog: str
    advice: str

    def __call__(self, *_: object) -> None:
        _disarm()  # the next does not wait for the reader of our output
        with suppress(OSError, RuntimeError, ValueError):  # in the middle of a write
            sys.stdout.flush()
        with suppress(OSError):
            if os.isatty(1):
                os.write(1, _SHOW_CURSOR)  # a spinner hides it
            os.write(2, f"\n{interrupted_text(self.prog, self.advice)}\n".encode())
        os._exit(EXIT_INTERRUPTED)


@dataclass(eq=False)
class Interruption:
    """A flag that the first signal sets, and `wake`, which it calls: it must neither wait nor raise."""

    wake: Callable[[], object]
    is_set: bool = False

    def __call__(self, *_: object) -> None:
        _disarm()
        self.is_set = True
        self.wake()

    def check(self) -> None:
        """Raise KeyboardInterrupt if it is set."""
        if self.is_set:
            raise KeyboardInterrupt


def interrupted_text(prog: str, advice: str) -> str:
    """What is said of an interrupted command."""
    return f"{prog}: interrupted{advice}"


def handle(prog: str) -> None:
    """From here on a signal ends the process with a line; one that is ignored stays so."""
    leave = _Leave(prog, "")
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` and scripts with `&` set it
            signal.signal(number, leave)


def advise(advice: str) -> None:
    """From here on the line ends with an advice."""
    for number, leave in _leaving().items():
        signal.signal(number, _Leave(leave.prog, advice))


@contextmanager
def interruptible(wake: Callable[[], object]) -> Iterator[Interruption]:
    """While inside, the first signal sets a flag and calls `wake`: the block ends soon of itself.

    Raises KeyboardInterrupt where the block has ended and the flag is set. While an error of the block ends
    the command a signal does no more than set the flag.
    """
    interruption = Interruption(wake)
    before = _leaving()
    for number in before:
        signal.signal(number, interruption)
    yield interruption
    for number, leave in before.items():
        if signal.getsignal(number) is interruption:
            signal.signal(number, leave)
    interruption.check()  # last: it may have been set until here


@contextmanager
def held_back() -> Iterator[None]:
    """While inside, signals wait, and a process that is started has them wait until `leave_to_parent`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_parent() -> None:
    """In a process of ours that works for another: the terminal's signals are the other's, which ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def ignore() -> None:
    """From here on signals do nothing: the result is known, and a moment later the process ends."""
    for number in _handled():
        signal.signal(number, signal.SIG_IGN)


def _leaving() -> dict[int, _Leave]:
    """The signals that end the process with a line."""
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    return {number: handler for number, handler in handlers.items() if isinstance(handler, _Leave)}


def _handled() -> list[int]:
    return [number for number in _SIGNALS if isinstance(signal.getsignal(number), _Leave | Interruption)]


def _disarm() -> None:
    """A second signal leaves at once."""
    for number in _handled():
        signal.signal(number, _leave_at_once)


def _leave_at_once(*_: object) -> None:
    os._exit(EXIT_INTERRUPTED)
