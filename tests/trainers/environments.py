"""The trainers' own environments, made once for their pins, and the student's processor that they share.

    python tests/trainers/environments.py [trl|others]

makes them and prints their folders. They lie in $DISTIL_TRAINERS_CACHE, or else in ~/.cache/distil-trainers, each
under a hash of what it is made of; a folder that no longer belongs to any pins may be deleted.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

HERE = Path(__file__).parent
READY = "ready"
# What is resolved together, and then what is taken as it is: some pins of these exclude each other on paper.
REQUIREMENTS = {
    "trl": (("trl.txt", ()), ("trl_alone.txt", ("--no-deps",))),
    "others": (("others.txt", ()), ("others_alone.txt", ("--no-deps",))),
}
BUILD_SECONDS = 1800


class CannotBuild(Exception):
    """An environment could not be made; says which, and what pip said."""


def cache_folder() -> Path:
    """Where environments lie."""
    return Path(os.environ.get("DISTIL_TRAINERS_CACHE") or "~/.cache/distil-trainers").expanduser()


def environment_python(name: str) -> Path:
    """The interpreter of an environment, made where it is missing; raises CannotBuild."""
    files = [HERE / file for file, _ in REQUIREMENTS[name]]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = _made_once(name, [version.encode(), *(file.read_bytes() for file in files)], _install)
    return folder / "bin" / "python"


def student_folder(family: str) -> Path:
    """The folder of a student's processor and tiny model; raises CannotBuild."""
    python = environment_python("trl")
    recipe = HERE / "student.py"

    def make(_: str, folder: Path) -> None:
        _run([str(python), str(recipe), family, str(folder)], f"the student {family}")

    made_of = [str(python).encode(), family.encode(), recipe.read_bytes()]
    return _made_once(f"student-{family}", made_of, make)


def _made_once(name: str, made_of: list[bytes], make: Callable[[str, Path], None]) -> Path:
    """The folder of that name and content; whoever comes first makes it, all others wait."""
    key = hashlib.sha256(b"\0".join(made_of)).hexdigest()[:12]
    folder = cache_folder() / f"{name}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / READY).exists():
            shutil.rmtree(folder, ignore_errors=True)
            started = time.monotonic()
            make(name, folder)
            (folder / READY).write_text(f"{time.monotonic() - started:.0f} s\n", encoding="utf-8")
    return folder


def _install(name: str, folder: Path) -> None:
    _run([sys.executable, "-m", "venv", str(folder)], f"the environment {name}")
    for file, options in REQUIREMENTS[name]:
        command = [
            str(folder / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "-q",
            *options,
            "-r",
            str(HERE / file),
        ]
        _run(command, f"the environment {name} ({file})")


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=BUILD_SECONDS)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise CannotBuild(f"{what} cannot be made: {' '.join(command)} ended with {done.returncode}\n{said}")


if __name__ == "__main__":
    for name in sys.argv[1:] or REQUIREMENTS:
        print(environment_python(name).parent.parent)
    for family in ("qwen3_vl", "qwen2_5_vl"):
        print(student_folder(family))
