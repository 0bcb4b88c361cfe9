"""One run at a time writes into a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from distil.errors import UsageError
from distil.store.claim import lock_folder

fcntl = pytest.importorskip("fcntl")


def test_a_folder_is_one_runs_until_it_gives_it_back(tmp_path: Path) -> None:
    lock = lock_folder(tmp_path)
    with pytest.raises(UsageError, match="another run is writing to --output_dir"):
        lock_folder(tmp_path)
    assert lock is not None
    lock.release()
    assert lock_folder(tmp_path) is not None


def test_a_claim_keeps_out_whoever_locks_the_file_itself(tmp_path: Path) -> None:
    lock = lock_folder(tmp_path)
    with (tmp_path / ".lock").open("w") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert lock is not None


def test_whoever_locks_the_file_itself_keeps_a_claim_out(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another run"):
            lock_folder(tmp_path)
    assert lock_folder(tmp_path) is not None


def test_where_nothing_can_be_locked_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    (tmp_path / ".lock").symlink_to(tmp_path / "elsewhere")  # refused like a file system without locks
    assert lock_folder(tmp_path) is None
