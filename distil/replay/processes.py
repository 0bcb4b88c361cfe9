"""Many traces verified: by one process, or by several that each open what they need themselves."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import cache
from multiprocessing import get_context, parent_process
from pathlib import Path

from distil import interrupts
from distil.errors import DistilError
from distil.replay.replay import Executors, Sources
from distil.replay.verify import Verification, verify_trace

_TRACES_A_PROCESS = 25  # fewer are verified before another process would be ready for them
_BATCH_TRACES = 8
_BATCHES_AHEAD = 4  # a process: so many verdicts may wait for one before them

_Batch = Sequence[Path]


def verify_traces(
    paths: Sequence[Path],
    dataset_path: str | None,
    max_workers: int,
    tell: Callable[[str], None] = lambda _: None,
) -> Generator[Verification, None, None]:
    """Verify every trace by at most `max_workers` processes; verdicts come in the order of `paths`.

    `tell` gets a line where a process was ended from outside. Raises DistilError where even one that is alone
    was, SandboxUnavailable where there is code but nothing to run it in.
    """
    processes = min(max_workers, len(paths) // _TRACES_A_PROCESS)
    if processes > 1 and _can_fork():
        batches = [paths[start : start + _BATCH_TRACES] for start in range(0, len(paths), _BATCH_TRACES)]
        yield from _by_processes(batches, dataset_path, processes, tell)
        return
    sources = Sources(dataset_path)
    with Executors() as executors:
        for path in paths:
            yield verify_trace(path, sources, executors)


def _by_processes(
    batches: Sequence[_Batch], dataset_path: str | None, processes: int, tell: Callable[[str], None]
) -> Generator[Verification, None, None]:
    """By a pool; where that breaks, what is left by one of half as many: memory was perhaps too short."""
    done = 0
    while True:
        try:
            with closing(_by_pool(batches[done:], dataset_path, processes)) as found:
                for verifications in found:
                    done += 1
                    yield from verifications
            return
        except BrokenProcessPool:
            what = "a verifying process was ended from outside (is the machine out of memory?)"
            if processes == 1:
                raise DistilError(
                    f"{what}, though it was alone: at {batches[done][0]} or soon after"
                ) from None
        processes //= 2
        tell(f"Warning: {what}; {'one goes' if processes == 1 else f'{processes} go'} on with what is left")


def _by_pool(
    batches: Sequence[_Batch], dataset_path: str | None, processes: int
) -> Generator[list[Verification], None, None]:
    """The verdicts of each batch, in order; raises BrokenProcessPool."""
    pool = ProcessPoolExecutor(processes, get_context("fork"), _begin)
    waiting: deque[Future[list[Verification]]] = deque()
    try:
        for batch in batches:
            with interrupts.held_back():  # a process that starts now takes no signal for its own
                waiting.append(pool.submit(_verify_batch, batch, dataset_path))
            if len(waiting) == processes * _BATCHES_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _can_fork() -> bool:
    """Whether a copy of this process is sound: no other thread of Python may hold a lock in it.

    Nothing has been opened by then, no dataset, sandbox or connection; what is imported the copies share.
    """
    return sys.platform == "linux" and threading.active_count() == 1


def _begin() -> None:
    """In a process of the pool: leave signals to the parent, and end when it does."""
    interrupts.leave_to_parent()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _verify_batch(paths: _Batch, dataset_path: str | None) -> list[Verification]:
    sources, executors = _opened(dataset_path)
    return [verify_trace(path, sources, executors) for path in paths]


@cache
def _opened(dataset_path: str | None) -> tuple[Sources, Executors]:
    """What one process opens, once; a sandbox ends with the process."""
    return Sources(dataset_path), Executors()
