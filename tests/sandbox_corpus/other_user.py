"""Run a command as an ordinary user, though this interpreter may lie in root's home.

As a program: python other_user.py COMMAND… (needs root).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

NOBODY = 65534
MS_BIND_TREE = 0x1000 | 0x4000
MS_PRIVATE_TREE = 0x40000 | 0x4000


def as_nobody(command: list[str]) -> list[str]:
    """The command that runs `command` as an ordinary user."""
    return [sys.executable, __file__, *command]


def hidden_folders() -> list[Path]:
    """The closed folders above what a Python program needs."""
    needed = {
        sys.executable,
        os.path.realpath(sys.executable),
        sys.base_prefix,
        sys.prefix,
        __file__,
        *sys.path,
    }
    above = {parent for path in needed if path for parent in Path(path).resolve().parents}
    return sorted(folder for folder in above if folder.is_dir() and not folder.stat().st_mode & 0o001)


def open_folder(folder: Path) -> None:
    """In a mount namespace of our own, show a closed folder's contents in an open one."""
    import ctypes  # noqa: PLC0415

    libc = ctypes.CDLL(None, use_errno=True)

    def mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
        if (
            libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())
            != 0
        ):
            raise OSError(ctypes.get_errno(), f"mount {target}")

    if libc.unshare(0x00020000) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    mount("none", "/", "", MS_PRIVATE_TREE, "")
    aside = next(place for place in ("/mnt", "/media", "/srv") if Path(place).is_dir())
    mount(str(folder), aside, "", MS_BIND_TREE, "")
    mount("none", str(folder), "tmpfs", 0, "mode=0755")
    for path in Path(aside).iterdir():
        if path.is_dir() and not path.is_symlink():
            (folder / path.name).mkdir()
            mount(str(path), str(folder / path.name), "", MS_BIND_TREE, "")


if __name__ == "__main__":
    for closed in hidden_folders():
        open_folder(closed)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    os.environ["HOME"] = "/nonexistent"
    os.execv(sys.argv[1], sys.argv[1:])
