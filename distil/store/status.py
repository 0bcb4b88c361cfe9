"""Where a run's folder stands, read without touching it: also while a run writes to it."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distil.errors import UsageError
from distil.records import Json, SampleId
from distil.spending.budget import RequestState, Spent
from distil.spending.prices import Tokens, stored_tokens
from distil.store.claim import LOCK, RUN_RECORD, read_runs
from distil.store.folder import FAILED_SAMPLES, TIMINGS, WITHOUT_TOOLS, read_failures
from distil.store.journal import unfinished_samples
from distil.store.spending import SPENDING, SpendingFile
from distil.store.trace_file import sample_of_name

_TRIES = 5  # files are replaced and removed while a run goes on
_LOCKS = Path("/proc/locks")  # of Linux: who holds which, without taking one


@dataclass(frozen=True)
class FolderStatus:
    """What a run's folder holds, and how the last run into it goes; None where that cannot be known."""

    folder: str
    state: str  # running, ended, stopped or broken off
    stopped_by: str | None
    num_samples: int | None  # that the last run was to have, or fewer where some were not needed
    num_rows: int | None  # that these are of, where a row may have several or some are accepted
    num_accepted: int | None  # as of the end of the last run that said which are
    num_done: int  # traces in the folder
    num_without_tools: int  # traces of rows that were asked without tools too
    failed: Mapping[str, int]  # samples without a trace, by the kind of their failure
    num_unfinished: int  # samples that have paid turns and no trace
    num_in_flight: int  # requests that have not ended; those of a process that was killed never do
    num_left: int | None  # samples that neither have a trace nor failed, perhaps not all of them needed
    rate_per_minute: float | None  # traces of the last run
    seconds_left: float | None  # at that rate, while it runs
    seconds_since_change: float | None
    num_runs: int
    seconds_of_all_runs: float  # of those that came to an end
    spent: Spent  # by all runs


def read_status(folder: Path) -> FolderStatus:
    """Where a folder stands; raises UsageError where it is no run's, or its record says what none does."""
    for _ in range(_TRIES):
        try:
            return _read(folder)
        except FileNotFoundError:  # since it was listed
            continue
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            raise UsageError(f"{folder / RUN_RECORD}: a field has the wrong form: {error}") from None
    raise UsageError(f"{folder} changes too fast to be read: try again")


def _read(folder: Path) -> FolderStatus:
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}")
    runs = read_runs(folder)
    made = _made_at(folder)
    if not runs and not made and not (folder / SPENDING).exists():
        raise UsageError(f"{folder} is no run's folder: it holds neither {RUN_RECORD} nor trace_*.json")
    last: Mapping[str, Json] = runs[-1] if runs else {}
    is_running = _is_locked(folder / LOCK)
    failures = [
        each for each in read_failures(folder / FAILED_SAMPLES)[0].values() if each.sample_id not in made
    ]
    num_samples = last.get("num_samples")
    num_left = None if num_samples is None else max(0, num_samples - len(made) - len(failures))
    if num_left is not None and "num_not_needed" in last:
        num_left = max(0, num_left - last["num_not_needed"])
    rate = _rate_per_minute(last, made)
    spent, num_in_flight = _spending(folder)
    return FolderStatus(
        folder=str(folder),
        state=_state(last, is_running),
        stopped_by=None if is_running else last.get("stopped_by"),
        num_samples=num_samples,
        num_rows=last.get("num_rows"),
        num_accepted=last.get("num_accepted"),
        num_done=len(made),
        num_without_tools=len(_made_at(folder / WITHOUT_TOOLS)) if (folder / WITHOUT_TOOLS).is_dir() else 0,
        failed=dict(Counter(failure.kind.value for failure in failures)),
        num_unfinished=sum(each not in made for each in unfinished_samples(folder)),
        num_in_flight=num_in_flight,
        num_left=num_left,
        rate_per_minute=rate,
        seconds_left=60 * num_left / rate if is_running and rate and num_left is not None else None,
        seconds_since_change=_seconds_since_change(folder),
        num_runs=len(runs),
        seconds_of_all_runs=sum(run.get("seconds") or 0.0 for run in runs),
        spent=spent,
    )


def _state(last: Mapping[str, Json], is_running: bool) -> str:
    if is_running:
        return "running"
    if "seconds" not in last:
        return "broken off"  # killed; or it runs on another machine
    return "stopped" if last.get("stopped_by") else "ended"


def _made_at(folder: Path) -> dict[SampleId, float]:
    """When each trace was written."""
    made = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("trace_") and entry.name.endswith(".json"):
                sample_id = sample_of_name(entry.name)
                if sample_id is not None:
                    made[sample_id] = entry.stat().st_mtime
    return made


def _rate_per_minute(last: Mapping[str, Json], made: Mapping[SampleId, float]) -> float | None:
    """Of a run that has ended by its record, else by the times of the traces since it began."""
    if "seconds" in last:
        return (
            60 * last["num_finished"] / last["seconds"] if last["num_finished"] and last["seconds"] else None
        )
    if "started_at" not in last:
        return None
    began = dt.datetime.fromisoformat(last["started_at"]).timestamp()
    since = [at for at in made.values() if at >= began]
    seconds = max(since) - began if since else 0.0
    return 60 * len(since) / seconds if seconds > 0 else None


def _spending(folder: Path) -> tuple[Spent, int]:
    """What was spent, and how many requests have been sent and have not ended."""
    spent = Spent()
    in_flight: set[int] = set()
    for entry in SpendingFile(folder).entries():
        number, state = entry["request"], RequestState(entry["state"])
        if state is RequestState.SENT:
            in_flight.add(number)
            continue
        in_flight.discard(number)
        tokens = Tokens() if state is RequestState.REFUSED else stored_tokens(entry)
        spent = spent.plus(state, tokens, entry.get("cost_usd"))
    return spent, len(in_flight)


def _seconds_since_change(folder: Path) -> float | None:
    changed = [path.stat().st_mtime for name in _CHANGING if (path := folder / name).exists()]
    return max(0.0, time.time() - max(changed)) if changed else None


_CHANGING: Sequence[str] = (RUN_RECORD, SPENDING, TIMINGS, FAILED_SAMPLES)


def _is_locked(path: Path) -> bool:
    """Whether a process of this machine holds a run's lock; where no list says so, it counts as not held."""
    if not path.exists() or not _LOCKS.exists():
        return False
    inode = str(path.stat().st_ino)  # alone: file systems on top of others list the device beneath
    held = [line.split() for line in _LOCKS.read_text().splitlines()]
    return any(word.rpartition(":")[2] == inode for words in held for word in words if word.count(":") == 2)
