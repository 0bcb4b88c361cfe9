"""A run's folder: trace files, run record, failed samples, timings, journals of unfinished samples."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from enum import StrEnum
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import IO

from distil.errors import TraceError, UsageError
from distil.records import Failure, Json, Rollout
from distil.store.atomic import folder_errors, write_bytes, write_json
from distil.store.journal import Journals
from distil.store.spending import SpendingFile
from distil.store.trace_file import RunFacts, load_json, trace_json

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

RUN_RECORD = "run_record.json"
FAILED_SAMPLES = "failed_samples.jsonl"
TIMINGS = "timings.jsonl"


class OnChange(StrEnum):
    """What to do where a folder holds traces that were made with other settings."""

    REFUSE = "refuse"
    NEW = "new"  # write into a new folder beside it
    KEEP = "keep"  # keep those traces, make only what is missing
    REDO = "redo"  # make them again


def find_trace_files(folder: Path) -> list[Path]:
    """The trace files of a folder in the order of their sample index."""
    return sorted(folder.glob("trace_*.json"), key=lambda path: (len(path.name), path.name))


class RunFolder:
    """Writes one run's files; safe to write from many threads."""

    def __init__(self, path: Path, run: RunFacts) -> None:
        self.path = path
        self._run = run
        self._lock = threading.Lock()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--output_dir {path}: {error.strerror or error}") from None
        self._claim = _claim(path)
        leftovers = list(path.glob(".*.tmp"))  # of a run that was killed while it wrote
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)
        self._earlier_runs = read_runs(path)
        self._earlier_failures = _read_failures(path / FAILED_SAMPLES)
        self.spending = SpendingFile(path)
        self.journals = Journals(path, run.settings_sha256)
        for index in self.journals.unfinished():
            # Killed between the trace and the removal of its journal.
            if _settings_of(self.trace_path(index)) == run.settings_sha256:
                self.journals.remove(index)
        self.notes = _resume_notes(self.journals, len(leftovers))

    def trace_path(self, sample_index: int) -> Path:
        """Where the trace of a row is."""
        return self.path / f"trace_{sample_index:05d}.json"

    def failed(self) -> set[int]:
        """The rows that an earlier run recorded as failed and that have no trace."""
        failures = self._earlier_failures
        return {item.sample_index for item in failures if not self.trace_path(item.sample_index).exists()}

    def finished(self, indices: Sequence[int], on_change: OnChange) -> set[int]:
        """The rows that already have a trace which is to be kept.

        A trace made with other settings is kept, made again, or refused by UsageError: mixing them
        unasked would spoil the data.
        """
        done = set()
        for index in indices:
            path = self.trace_path(index)
            if path.exists() and (on_change is OnChange.KEEP or self._is_ours(path, on_change)):
                done.add(index)
        return done

    def write_trace(self, rollout: Rollout) -> dict[str, Json]:
        """Write the trace of a finished rollout and return it."""
        trace = trace_json(rollout, self._run)
        write_json(self.trace_path(rollout.sample.index), trace)
        return trace

    def write_timing(self, sample_index: int, seconds: float, turn_seconds: Sequence[float]) -> None:
        """Add a finished sample's wall-clock times, which have no place in its trace."""
        line = {"sample_index": sample_index, "seconds": seconds, "turn_seconds": list(turn_seconds)}
        self._append(TIMINGS, line)

    def write_failure(self, failure: Failure) -> Failure:
        """Add a failed sample as soon as it fails; returns it with its runs and turns spent."""
        before = (item.runs for item in self._earlier_failures if item.sample_index == failure.sample_index)
        failure = replace(
            failure,
            runs=max(before, default=0) + 1,
            turns_spent=self.journals.num_turns(failure.sample_index),
        )
        self._append(FAILED_SAMPLES, asdict(failure))
        return failure

    def write_failures(self, attempted: Collection[int], failures: Sequence[Failure]) -> None:
        """Put this run's failures in the place of what was known of the rows it attempted."""
        path = self.path / FAILED_SAMPLES
        kept = {failure.sample_index: failure for failure in self._earlier_failures}
        kept = {
            index: failure
            for index, failure in kept.items()
            if index not in attempted and not self.trace_path(index).exists()  # an interrupted run solved it
        }
        kept |= {failure.sample_index: failure for failure in failures}
        lines = [json.dumps(asdict(kept[index]), ensure_ascii=False) + "\n" for index in sorted(kept)]
        if lines:
            write_bytes(path, "".join(lines).encode())
        else:
            path.unlink(missing_ok=True)

    def write_run_record(self, record: Mapping[str, Json]) -> None:
        """Write this run's record beside those of earlier runs in the folder."""
        write_json(self.path / RUN_RECORD, {"runs": [*self._earlier_runs, dict(record)]})

    def close(self) -> None:
        """Close what is open and remove what a run without failures needs no more."""
        self.spending.close()
        self.journals.close()

    def _append(self, name: str, value: Json) -> None:
        path = self.path / name
        with self._lock, folder_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(value, ensure_ascii=False) + "\n")

    def _is_ours(self, path: Path, on_change: OnChange) -> bool:
        try:
            trace = load_json(path)
        except TraceError as error:
            raise UsageError(f"{error}; move it away, or choose another --output_dir") from None
        metadata = trace.get("metadata") or {}
        if metadata.get("settings_sha256") == self._run.settings_sha256:
            return True
        if on_change is OnChange.REDO:
            return False
        raise UsageError(
            f"{path} was made with other settings ({_differences(trace, self._run)}); "
            "choose another --output_dir, or say --on_change new, keep or redo"
        )


def free_folder(path: Path, run: RunFacts) -> Path:
    """The folder itself if it holds no traces of other settings, else the first of `PATH-2`, `PATH-3` … ."""
    for number in count(2):
        files = find_trace_files(path)
        if not files or _settings_of(files[0]) == run.settings_sha256:
            return path
        path = path.with_name(f"{path.name.rpartition('-')[0] if number > 2 else path.name}-{number}")
    raise AssertionError("count() does not end")


def _settings_of(path: Path) -> Json:
    try:
        return (load_json(path).get("metadata") or {}).get("settings_sha256")
    except TraceError:
        return None


def _resume_notes(journals: Journals, num_leftovers: int) -> list[str]:
    """What an earlier run left behind, in lines for the user."""
    unfinished = list(journals.unfinished())
    num_torn = sum(journals.is_torn(index) for index in unfinished)
    notes = []
    if unfinished:
        num_turns = sum(journals.num_turns(index) for index in unfinished)
        notes.append(f"{len(unfinished)} samples go on where they were: {num_turns} paid turns are kept.")
    if num_torn or num_leftovers:
        torn, leftovers = f"{num_torn} torn journals mended", f"{num_leftovers} half-written files removed"
        notes.append(f"Repaired: {torn}, {leftovers}.")
    return notes


def _claim(folder: Path) -> IO[str] | None:
    """Keep other processes' runs out of the folder for as long as the returned file is open.

    Two runs at once would pay for every sample twice and delete each other's temporary files.
    """
    if fcntl is None:
        return None
    file = (folder / ".lock").open("w", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UsageError(
            f"another run is writing to --output_dir {folder}: wait, or choose another"
        ) from None
    except OSError:  # a file system without locks
        file.close()
        return None
    return file


def read_runs(folder: Path) -> list[Json]:
    """The records of earlier runs into a folder; raises UsageError where they cannot be read."""
    path = folder / RUN_RECORD
    if not path.exists():
        return []
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        return list(runs)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} cannot be read ({error}); move it away, or choose another --output_dir"
        ) from None


def _read_failures(path: Path) -> list[Failure]:
    if not path.exists():
        return []
    failures = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            failures.append(Failure(**json.loads(line)))
        except (ValueError, TypeError):
            continue  # a line that a crash cut off; its row has no trace and is simply tried again
    return failures


def _differences(trace: Mapping[str, Json], run: RunFacts) -> str:
    """The settings that differ, by name, for a message."""
    theirs = trace.get("settings")
    if not isinstance(theirs, dict):
        return "or by another program"
    names = [name for name in run.settings if theirs.get(name) != run.settings[name]]
    texts = [f"{name}: {_short(theirs.get(name))} then, {_short(run.settings[name])} now" for name in names]
    return "; ".join(texts) or "another dataset"


def _short(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:60] + "…"
