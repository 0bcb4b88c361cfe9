"""What a run's folder needs no more, removed: never a trace, a failure, what was spent, or a turn of use."""

from __future__ import annotations

from pathlib import Path

from distil.errors import TraceError, UsageError
from distil.records import SampleId
from distil.store.atomic import folder_errors, sync_files
from distil.store.claim import LOCK, lock_folder, read_runs, remove_leftovers
from distil.store.folder import find_trace_files
from distil.store.journal import FOLDER, Journal
from distil.store.trace_file import load_json, trace_name


def clean_folder(folder: Path) -> list[str]:
    """Remove it and say what, a line each.

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
    made = [each for each, made_with in journal.unfinished().items() if _is_made(folder, each, made_with)]
    if made:
        sync_files([folder / trace_name(each) for each in made])
    journal.drop(made)
    journal.close()
    return before - _num_bytes(folder / FOLDER)


def _is_made(folder: Path, sample_id: SampleId, settings_sha256: str) -> bool:
    """Whether a sample has a whole trace by the settings of its turns: others would still be of use."""
    try:
        trace = load_json(folder / trace_name(sample_id))
    except TraceError:
        return False
    metadata = trace.get("metadata")
    return isinstance(metadata, dict) and metadata.get("settings_sha256") == settings_sha256


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*")) if folder.is_dir() else 0
