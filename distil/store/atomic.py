"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
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
        _write_bytes(path, data)


@contextlib.contextmanager
def folder_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into FolderError: on a full disk every further turn would be lost."""
    try:
        yield
    except OSError as error:
        raise FolderError(f"{path} cannot be written: {error.strerror or error}") from error


def _write_bytes(path: Path, data: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise


def sync_folder(folder: Path) -> None:
    """Make a new name in a folder durable; a system that cannot open folders makes it so by itself."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


_UMASK = _read_umask()  # once, at import: setting it to read it is a race between threads


def _umask() -> int:
    return _UMASK
