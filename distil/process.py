"""A command as a process of its own: errors for the user, exit codes, signals and broken pipes."""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from distil import interrupts
from distil.errors import DistilError, FolderError, TeacherRefused

EXIT_DONE, EXIT_USAGE = 0, 2  # and 1, some samples failed: the commands return it
_SAMPLES_BETWEEN_TRIMS = 8
_samples = itertools.count(1)
_M_MMAP_THRESHOLD, _MAPPED_APART_BYTES = -3, 256 * 1024  # malloc.h of glibc


def enter(name: str, command: Callable[[], int]) -> NoReturn:
    """Run a command to the end of this process: from here on no signal leaves a traceback."""
    interrupts.handle(name)
    gc.disable()  # while modules are imported, which make much that stays and no garbage
    try:
        status = command()
    except SystemExit as leaving:  # argparse, after --help and on wrong usage
        status = leaving.code if isinstance(leaving.code, int) else EXIT_DONE
    interrupts.ignore()
    _leave(status)


def trim_memory() -> None:
    """Called once a sample: every few of them, give what is free within glibc's arenas back to the kernel.

    Messages and pieces of pictures, made and freed in many threads, leave holes there: with 256 threads as
    much as all that is in use.
    """
    if next(_samples) % _SAMPLES_BETWEEN_TRIMS == 0:
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def return_memory() -> None:
    """Have glibc give large blocks back to the kernel as soon as they are free.

    It raises the size of what it maps apart to that of the pictures it has seen freed, up to 32 MiB: from
    then on each of its arenas keeps the holes that pictures leave, hundreds of megabytes with many threads.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MAPPED_APART_BYTES)


def exit_code_of(
    command: Callable[[], int], name: str, advice: str = "", spell: Callable[[str], str] = str
) -> int:
    """Run a command; every error that is meant for the user becomes one message and an exit code.

    `advice` ends what is said of an interrupted one; `spell` makes an error's words fit for the terminal.
    """
    interrupts.advise(advice)
    if not gc.isenabled():
        gc.freeze()  # what was imported is never looked through
        gc.enable()
    try:
        status = command()
        interrupts.ignore()
        return status
    except (TeacherRefused, FolderError) as error:
        print(f"{name}: {spell(str(error))}", file=sys.stderr)
        _leave(EXIT_USAGE)  # other samples' requests may be in flight: their answers are of no use
    except DistilError as error:
        print(f"{name}: {spell(str(error))}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print(f"\n{interrupts.interrupted_text(name, advice)}", file=sys.stderr)
        _leave(interrupts.EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of our output (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE


def _leave(status: int) -> NoReturn:
    """Exit without waiting for threads that are blocked in a request; the kernel closes their connections."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass  # the reader has seen enough
    except OSError as error:
        print(f"standard output cannot be written: {error.strerror}", file=sys.stderr)
        status = status or EXIT_USAGE
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(status)
