"""Before a run writes into a folder: others are kept out, leftovers removed, earlier runs read."""

from __future__ import annotations

import json
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from distil.errors import UsageError
from distil.records import Json
from distil.store.json_lines import open_regular

RUN_RECORD = "run_record.json"
LOCK = ".lock"


def lock_folder(folder: Path) -> BaseFileLock | None:
    """Keep other processes' runs out of the folder for as long as the returned lock is kept.

    Two runs at once would pay for every sample twice and delete each other's temporary files. None on a file
    system without locks; raises UsageError where another run has the lock, OSError where nothing can be
    written.
    """
    path = folder / LOCK
    path.open("a").close()
    lock = FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(
            f"another run is writing to --output_dir {folder}: wait, or choose another"
        ) from None
    except (OSError, NotImplementedError):
        return None
    return lock


def remove_leftovers(folder: Path) -> int:
    """Remove temporary files of runs that were killed while they wrote; returns how many."""
    leftovers = list(folder.glob(".*.tmp"))
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return len(leftovers)


def read_runs(folder: Path) -> list[Json]:
    """The records of earlier runs into a folder; raises UsageError where they cannot be read."""
    path = folder / RUN_RECORD
    if not path.exists():
        return []
    try:
        with open_regular(path) as file:
            runs = list(json.loads(file.read().decode("utf-8"))["runs"])
        if not all(isinstance(run, dict) for run in runs):
            raise TypeError("a run is no object")
        return runs
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{path} cannot be read ({error}); move it away, or choose another --output_dir"
        ) from None
