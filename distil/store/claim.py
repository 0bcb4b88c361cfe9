"""A run's folder as one process takes it: others kept out, leftovers removed, earlier runs read."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from distil.errors import TraceError, UsageError
from distil.records import Json, SampleId, mapping_of
from distil.store.atomic import folder_errors, sync_files
from distil.store.journal import FOLDER, Journal, unfinished_samples
from distil.store.json_lines import open_regular
from distil.store.spending import SpendingFile
from distil.store.trace_file import TRACE_FILES, find_trace_files, load_json, sample_of_name, trace_name
from distil.store.trace_settings import TraceSettings, short_json

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


class Claim:
    """A folder that this process alone writes to, with what earlier runs left in it.

    Raises UsageError where it cannot be written or another run writes to it, or its record cannot be read.
    """

    def __init__(self, path: Path, number: int = 1, spending: SpendingFile | None = None) -> None:
        """`number` is from 2 for the folders beside it, `PATH-2`, `PATH-3` …

        `spending` is where what it takes is counted, where that is not in the folder itself.
        """
        self._first_path, self._number = path, number
        self.path = path = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(path)
            self.num_leftovers = remove_leftovers(path)
        except OSError as error:
            raise UsageError(f"--output_dir {path}: {error.strerror or error}") from None
        self.spending = spending or SpendingFile(path)
        self.earlier_runs = read_runs(path)

    @property
    def holds_samples(self) -> bool:
        """Whether there are traces, or turns that were paid for."""
        return any(self.path.glob(TRACE_FILES)) or bool(unfinished_samples(self.path))

    def refuse_changes(
        self, settings: TraceSettings, fingerprint: str, ignored: Collection[str] = ()
    ) -> None:
        """Raise UsageError, with the difference, where what it holds was made with other settings."""
        if not self.holds_samples or not self.earlier_runs:
            return
        texts = _change_texts(self.earlier_runs[-1], settings, fingerprint, ignored)
        if texts:
            raise other_settings(str(self.path), "; ".join(texts))

    def is_free_for(self, settings: TraceSettings, fingerprint: str, ignored: Collection[str] = ()) -> bool:
        """Whether it holds nothing that was made with other settings."""
        return not any(_change_texts(made, settings, fingerprint, ignored) for made in self._makers)

    def following(self) -> Claim:
        """The next of `PATH`, `PATH-2`, `PATH-3` …"""
        return Claim(self._first_path, self._number + 1)

    @cached_property
    def _makers(self) -> list[Mapping[str, Json]]:
        """A trace or run record for each way in which what it holds was made; an empty one if not known."""
        recorded = {record.get("settings_sha256"): record for record in self.earlier_runs}
        unfinished = unfinished_samples(self.path)
        makers: dict[Json, Mapping[str, Json]] = {
            sha256: recorded.get(sha256, {}) for sha256 in unfinished.values()
        }
        for path in find_trace_files(self.path):
            try:
                trace = load_json(path)
            except TraceError:
                if sample_of_name(path.name) in unfinished:
                    continue  # torn when the machine went down: it is made again from those turns
                trace = {}
            makers[made_with(trace)] = trace
        return list(makers.values())


def first_free(
    claim: Claim, settings: TraceSettings, fingerprint: str, ignored: Collection[str] = ()
) -> Claim:
    """`claim`, or the first folder after it that holds nothing made with other settings."""
    while not claim.is_free_for(settings, fingerprint, ignored):
        claim = claim.following()
    return claim


def is_made(path: Path, sample_id: SampleId, *settings_sha256: str) -> bool:
    """Whether there is a whole trace of a sample that was made with one of these settings."""
    try:
        trace = load_json(path)
    except TraceError:
        return False
    return made_with(trace) in settings_sha256 and stated_id(trace, sample_id) == sample_id


def made_with(trace: Mapping[str, Json]) -> Json:
    """The hash of the settings that a trace of any program says it was made with."""
    return mapping_of(trace.get("metadata")).get("settings_sha256")


def stated_id(trace: Mapping[str, Json], otherwise: SampleId) -> SampleId:
    """The sample that a trace says it is of: a copy under another's name is of another."""
    return SampleId(trace.get("sample_index", otherwise.index), trace.get("rollout", 0))


def _change_texts(
    made: Mapping[str, Json], settings: TraceSettings, fingerprint: str, ignored: Collection[str]
) -> list[str]:
    """What differs from the settings and dataset of a trace or run record, for a message."""
    texts = settings.changes_from(mapping_of(made.get("settings")), ignored)
    theirs = mapping_of(made.get("dataset")).get("fingerprint")
    if theirs != fingerprint:
        texts.append(f"dataset: fingerprint {short_json(theirs)} then, {short_json(fingerprint)} now")
    return texts


def other_settings(what: str, difference: str) -> UsageError:
    """A folder or a trace cannot be gone on with."""
    return UsageError(
        f"{what} was made with other settings ({difference}); "
        "choose another --output_dir, or say --on_change new, keep or redo"
    )


def clean_folder(folder: Path) -> list[str]:
    """Remove what a run's folder needs no more, and say what, a line each.

    Never a trace, a failure, what was spent, or a turn of use.
    Raises UsageError where it is no run's folder or a run writes to it, FolderError where that fails.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}")
    if not read_runs(folder) and not find_trace_files(folder):
        raise UsageError(f"{folder} is no run's folder: nothing is removed")
    with folder_errors(folder):
        lock = lock_folder(folder)
        num_leftovers = remove_leftovers(folder)
    removed = [f"half-written files: {num_leftovers}"] if num_leftovers else []
    num_bytes = _clean_journal(folder) if (folder / FOLDER).is_dir() else 0
    if num_bytes:
        removed.append(f"turns of samples that have their trace, from journal/: {num_bytes:,} bytes")
    with folder_errors(folder / LOCK):
        (folder / LOCK).unlink(missing_ok=True)  # while it is held
    if lock is not None:
        lock.release()
    return removed


def _clean_journal(folder: Path) -> int:
    """Drop the turns of samples whose trace is whole and durable; returns by how many bytes it shrank."""
    before = _num_bytes(folder / FOLDER)
    journal = Journal(folder, settings_sha256="")
    unfinished = journal.unfinished()
    made = [each for each in unfinished if is_made(folder / trace_name(each), each, unfinished[each])]
    if made:
        sync_files([folder / trace_name(each) for each in made])
    journal.drop(made)
    journal.close()
    return before - _num_bytes(folder / FOLDER)


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*")) if folder.is_dir() else 0
