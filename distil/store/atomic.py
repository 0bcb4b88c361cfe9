"""Files that are either whole or not there; and JSON for people to read, as they hold it."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from distil.errors import FolderError
from distil.records import Json

_quoted = json.encoder.encode_basestring  # in C
_int_text, _float_text = int.__repr__, float.__repr__  # those of a number's own class may differ
_CONSTANTS = {None: "null", True: "true", False: "false"}
# Of most values, looked up by their very class; others, and floats, take the longer way.
_TEXTS: dict[type, Callable[..., str]] = {str: _quoted, int: _int_text, bool: _CONSTANTS.__getitem__}


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


def indented(value: Json) -> str:
    """A value as JSON with an indent of one; raises ValueError or TypeError for what JSON lacks.

    The same text as `json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False)`, in a third of the
    time: the standard library indents in pure Python generators.
    """
    parts: list[str] = []
    _add(value, "\n", parts.append)
    return "".join(parts)


def _add(value: Json, newline: str, add: Callable[[str], None]) -> None:
    """Add the parts of a value whose line begins with `newline`, which has its indent."""
    if isinstance(value, dict) and value:
        separator, inner = "{" + newline + " ", newline + " "
        for key, item in value.items():
            name = _quoted(key if isinstance(key, str) else _scalar(key))
            if (text_of := _TEXTS.get(type(item))) is not None:
                add(f"{separator}{name}: {text_of(item)}")
            elif isinstance(item, (dict, list, tuple)):
                add(f"{separator}{name}: ")
                _add(item, inner, add)
            else:
                add(f"{separator}{name}: {_scalar(item)}")
            separator = "," + inner
        add(newline + "}")
    elif isinstance(value, (list, tuple)) and value:
        separator, inner = "[" + newline + " ", newline + " "
        for item in value:
            if (text_of := _TEXTS.get(type(item))) is not None:
                add(separator + text_of(item))
            else:
                add(separator)
                _add(item, inner, add)
            separator = "," + inner
        add(newline + "]")
    else:
        add("{}" if isinstance(value, dict) else "[]" if isinstance(value, (list, tuple)) else _scalar(value))


def _scalar(value: Json) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if value is None or value is True or value is False:
        return _CONSTANTS[value]
    if isinstance(value, int):
        return _int_text(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"Out of range float values are not JSON compliant: {value!r}")
        return _float_text(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
