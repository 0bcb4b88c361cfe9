"""Much work on many traces: by one process, or by several that each open what they need themselves."""

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
from typing import TypeVar

from distil import interrupts
from distil.errors import DistilError
from distil.replay.replay import Executors, Sources
from distil.replay.verify import Verification, verify_trace

_TRACES_A_PROCESS = 25  # fewer are done before another process would be ready for them
_BATCHES_AHEAD = 4  # a process: so many results may wait for one before them
_VERDICTS_A_BATCH = 8  # of what others find, one is some megabytes of pictures

FoundT = TypeVar("FoundT")
_Batch = Sequence[Path]
_Work = Callable[[Path, Sources, Executors], FoundT]  # on one trace; a function that pickles


def verify_traces(
    paths: Sequence[Path],
    dataset_path: str | None,
    max_workers: int,
    tell: Callable[[str], None] = lambda _: None,
) -> Generator[Verification, None, None]:
    """Verify every trace by at most `max_workers` processes; as `each_trace` does."""
    return each_trace(verify_trace, paths, max_workers, dataset_path, tell)


def each_trace(
    work: _Work[FoundT],
    paths: Sequence[Path],
    max_workers: int,
    dataset_path: str | None,
    tell: Callable[[str], None] = lambda _: None,
) -> Generator[FoundT, None, None]:
    """What `work` finds in every trace, by at most so many processes, in the order of `paths`.

    `tell` gets a line where a process was ended from outside. Raises DistilError where even one that is alone
    was, SandboxUnavailable where there is code but nothing to run it in.
    """
    processes = min(max_workers, len(paths) // _TRACES_A_PROCESS)
    if processes > 1 and _can_fork():
        size = _VERDICTS_A_BATCH if work is verify_trace else 1
        batches = [paths[start : start + size] for start in range(0, len(paths), size)]
        yield from _by_processes(work, batches, dataset_path, processes, tell)
        return
    sources = Sources(dataset_path)
    with Executors() as executors:
        for path in paths:
            yield work(path, sources, executors)


def _by_processes(
    work: _Work[FoundT],
    batches: Sequence[_Batch],
    dataset_path: str | None,
    processes: int,
    tell: Callable[[str], None],
) -> Generator[FoundT, None, None]:
    """By a pool; where that breaks, what is left by one of half as many: memory was perhaps too short."""
    done = 0
    while True:
        try:
            with closing(_by_pool(work, batches[done:], dataset_path, processes)) as found:
                for results in found:
                    done += 1
                    yield from results
            return
        except BrokenProcessPool:
            what = "a worker process was ended from outside (is the machine out of memory?)"
            if processes == 1:
                raise DistilError(
                    f"{what}, though it was alone: at {batches[done][0]} or soon after"
                ) from None
        processes //= 2
        tell(f"Warning: {what}; {'one goes' if processes == 1 else f'{processes} go'} on with what is left")


def _by_pool(
    work: _Work[FoundT], batches: Sequence[_Batch], dataset_path: str | None, processes: int
) -> Generator[list[FoundT], None, None]:
    """The results of each batch, in order; raises BrokenProcessPool."""
    pool = ProcessPoolExecutor(processes, get_context("fork"), _begin)
    waiting: deque[Future[list[FoundT]]] = deque()
    try:
        for batch in batches:
            with interrupts.held_back():  # a process that starts now takes no signal for its own
                waiting.append(pool.submit(_work_on, work, batch, dataset_path))
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


def _work_on(work: _Work[FoundT], paths: _Batch, dataset_path: str | None) -> list[FoundT]:
    sources, executors = _opened(dataset_path)
    return [work(path, sources, executors) for path in paths]


@cache
def _opened(dataset_path: str | None) -> tuple[Sources, Executors]:
    """What one process opens, once; a sandbox ends with the process."""
    return Sources(dataset_path), Executors()
