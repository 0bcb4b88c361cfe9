"""Many samples at once: a thread pool, a bounded window, outcomes as the samples end."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import TypeVar

from distil.errors import (
    BudgetExceeded,
    ContextOverflow,
    DeadlinePassed,
    FolderError,
    RunHalted,
    SampleError,
    SandboxUnavailable,
    TeacherError,
    TeacherRefused,
    ToolError,
    TraceError,
    error_text,
)
from distil.interrupts import interruptible
from distil.records import Failure, FailureKind, Outcome, SampleId

ResultT = TypeVar("ResultT")
ItemT = TypeVar("ItemT")

_FAILURE_KINDS: tuple[tuple[type[Exception], FailureKind], ...] = (  # the first that fits
    (SampleError, FailureKind.SAMPLE),
    (DeadlinePassed, FailureKind.DEADLINE),
    (ContextOverflow, FailureKind.CONTEXT_OVERFLOW),
    (TeacherError, FailureKind.TEACHER),
    (ToolError, FailureKind.TOOL),
    (TraceError, FailureKind.TRACE),
    (OSError, FailureKind.FILE),
)


def run_samples(
    sample_ids: Iterable[SampleId | None],
    solve: Callable[[SampleId], ResultT],
    max_workers: int,
    drain: Callable[[], float] = lambda: 0.0,
    abort: Callable[[], None] = lambda: None,
) -> Generator[Outcome[ResultT], None, None]:
    """Call `solve` for every sample in up to `max_workers` threads; yield each outcome as it ends.

    Where there is None in place of a sample, the next one is asked for when another has ended, and it is the
    end where none is in flight.

    Nothing is kept of what was yielded, and no more samples are submitted than can be worked on: memory does
    not grow with their number. An exception in one sample is its failure; BudgetExceeded and RunHalted end
    the run once the samples in flight have ended; what would meet every sample (TeacherRefused,
    SandboxUnavailable, FolderError) ends it at once, and so does closing the iterator.
    Whatever ends it at once, `abort` is called to break off what is in flight. After a signal no sample is
    begun, those in flight have the seconds that `drain` grants, and then it raises KeyboardInterrupt; those
    end with RunHalted that would have to ask again.
    """
    pool = ThreadPoolExecutor(max_workers, thread_name_prefix="rollout")
    try:
        yield from _completed(pool, sample_ids, solve, max_workers, drain)
    except BaseException:
        # Not waited for: a thread that is inside a tool cannot be woken, only left behind.
        pool.shutdown(wait=False, cancel_futures=True)
        abort()
        raise
    pool.shutdown()


def _completed(
    pool: ThreadPoolExecutor,
    sample_ids: Iterable[SampleId | None],
    solve: Callable[[SampleId], ResultT],
    max_workers: int,
    drain: Callable[[], float],
) -> Generator[Outcome[ResultT], None, None]:
    """Outcomes as they come; one more sample than there are workers waits, so that none is ever idle."""
    waiting = iter(sample_ids)
    num_in_flight = 0
    until: float | None = None  # on the monotonic clock, after a signal
    ended: SimpleQueue[Future[Outcome[ResultT]] | None] = SimpleQueue()
    with interruptible(wake=lambda: ended.put(None)) as interruption:
        while True:
            for sample_id in waiting:
                if interruption.is_set or sample_id is None:
                    break
                pool.submit(_attempt, sample_id, solve).add_done_callback(ended.put)
                num_in_flight += 1
                if num_in_flight > max_workers:
                    break
            if not num_in_flight:
                interruption.check()
                return
            future = _next_ended(ended, until)
            if future is None and until is not None:  # its time is over
                raise KeyboardInterrupt
            if future is None:
                until = drain() + time.monotonic()
                waiting = iter(())
                continue
            num_in_flight -= 1
            outcome = future.result()
            if outcome.stopped is not None:
                waiting = iter(())
            yield outcome


def _next_ended(ended: SimpleQueue[ItemT | None], until: float | None) -> ItemT | None:
    """What ends next; None for a signal, and where nothing ends in time."""
    try:
        return ended.get(timeout=None if until is None else max(0.0, until - time.monotonic()))
    except Empty:
        return None


def _attempt(sample_id: SampleId, solve: Callable[[SampleId], ResultT]) -> Outcome[ResultT]:
    try:
        return Outcome(sample_id, solve(sample_id), None)
    except (TeacherRefused, SandboxUnavailable, FolderError, KeyboardInterrupt):
        raise
    except BudgetExceeded as error:
        return Outcome(sample_id, None, None, f"limit reached, {error}")
    except RunHalted as error:
        return Outcome(sample_id, None, None, str(error))
    except BaseException as error:  # noqa: BLE001 - the one place where a sample's failure becomes data
        # Code of the user's own may raise anything: its sys.exit(0) must not end the run as if all were done.
        return Outcome(sample_id, None, _failure(sample_id, error))


def _failure(sample_id: SampleId, error: BaseException) -> Failure:
    kinds = (kind for kind_class, kind in _FAILURE_KINDS if isinstance(error, kind_class))
    kind, text = next(kinds, FailureKind.UNEXPECTED), error_text(error)
    if kind is FailureKind.UNEXPECTED:
        text = f"{type(error).__name__}: {text}"
    status, attempts = getattr(error, "status", None), getattr(error, "attempts", 0)
    return Failure(sample_id, kind, text, status, attempts)
