"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from distil.errors import FolderError
from distil.records import Json
from distil.store.json_text import indented


def write_json(path: Path, value: Json) -> None:
    """Write a value as UTF-8 JSON with a newline at the end, atomically and durably."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Json) -> bytes:
    """A value as UTF-8 JSON with a newline at the end; raises ValueError for what JSON or UTF-8 lacks."""
    return (indented(value) + "\n").encode()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file through a temporary one beside it: a crash leaves the old file or the new one.

    Raises FolderError where the folder cannot be written.
    """
    with folder_errors(path):
        _write_bytes(path, data, is_synced=True)
        sync_folder(path.parent)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file that is whole to every reader, and durable only after `sync_files`; raises FolderError.

    When a machine goes down before, what is left may be the old file, the new one or a torn one.
    """
    with folder_errors(path):
        _write_bytes(path, data, is_synced=False)


def sync_files(paths: Sequence[Path]) -> None:
    """Make files of one folder durable, with their names; one that was removed since is no error.

    Raises FolderError.
    """
    for path in paths:
        with folder_errors(path), contextlib.suppress(FileNotFoundError):
            _sync(os.open(path, os.O_RDWR))  # Windows syncs none that is open for reading alone
    for folder in {path.parent for path in paths}:
        with folder_errors(folder):
            sync_folder(folder)


@contextlib.contextmanager
def folder_errors(path: Path, what: str = "written") -> Iterator[None]:
    """Turn an OSError of the block into FolderError: on a full disk every further turn would be lost."""
    try:
        yield
    except OSError as error:
        raise FolderError(f"{path} cannot be {what}: {error.strerror or error}") from error


def _write_bytes(path: Path, data: bytes, is_synced: bool) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        # Each call lets go of the interpreter, and has to wait for it again: a file object makes two more.
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666
        )
        try:
            write_all(descriptor, data)
            if is_synced:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise


def write_all(descriptor: int, data: bytes) -> None:
    """Write in one call; raises OSError where not all of it is taken."""
    if os.write(descriptor, data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def sync_folder(folder: Path) -> None:
    """Make a new name in a folder durable; a system that cannot open folders makes it so by itself."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows
        return
    _sync(descriptor)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
