"""Contestants as processes, measured from outside: by the kernel's count of each, and by what the server saw.

CPU is user and system time of the process and of all it waited for, its start included. Peak memory is of the
largest process of a contestant; who measures has to stay smaller than all of them, since a child's peak starts
at its parent's size at the fork.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from photos import dataset
from teacher_server import MODEL, Capacity, Seen, serving

HERE = Path(__file__).parent
BYTES_A_MB = 1e6
MAX_ERROR_CHARS = 500
Row = dict[str, Any]


@dataclass(frozen=True)
class Tree:
    """A distil to measure: a checkout, which this interpreter runs, or an interpreter that has it installed."""

    name: str
    python: str = sys.executable
    checkout: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Tree:
        """From NAME=PATH; raises ValueError where there is no such thing."""
        name, found, place = text.partition("=")
        path = Path(place).absolute()
        if not (found and name and path.exists()):
            raise ValueError(text)
        if path.is_dir():
            if not (path / "distil" / "cli.py").exists():
                raise ValueError(f"{path} is no checkout of distil")
            return cls(name, checkout=path)
        return cls(name, python=str(path))

    def environment(self) -> dict[str, str]:
        """Nothing of this shell's that changes who is asked, or how."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "PYTHON"))
        }
        own = {} if self.checkout is None else {"PYTHONPATH": str(self.checkout)}
        return kept | own | {"OPENAI_API_KEY": "EMPTY"}

    def version(self) -> str:
        """What it says of itself, with the commit of a checkout."""
        command = [self.python, "-c", "import distil; print(distil.__version__)"]
        version = _first_line(command, self.environment(), HERE)
        if self.checkout is None:
            return version
        commit = _first_line(["git", "describe", "--always", "--dirty"], os.environ, self.checkout)
        return f"{version} {commit}".strip()

    def distil(self, *arguments: object) -> list[str]:
        """A `distil` command."""
        return [self.python, "-m", "distil", *map(str, arguments)]


@dataclass(frozen=True)
class Usage:
    """What the kernel counted of a process. Times are in seconds; `started_at` is of the monotonic clock."""

    started_at: float
    wall_seconds: float
    cpu_seconds: float
    num_switches: int  # of context, voluntary and not
    num_voluntary: int
    peak_bytes: int
    output: str = field(repr=False)


def run_child(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> Usage:
    """Run a command to its end in a folder; raises RuntimeError where it fails."""
    with tempfile.TemporaryFile(dir=folder) as output:
        started_at = time.monotonic()
        process = subprocess.Popen(
            command, env=dict(environment), cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            raise
        wall_seconds = time.monotonic() - started_at
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode(errors="replace")
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{text[-3000:]}")
    return Usage(
        started_at=started_at,
        wall_seconds=wall_seconds,
        cpu_seconds=used.ru_utime + used.ru_stime,
        num_switches=used.ru_nvcsw + used.ru_nivcsw,
        num_voluntary=used.ru_nvcsw,
        peak_bytes=used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        output=text,
    )


@contextlib.contextmanager
def open_child(
    command: Sequence[str], environment: Mapping[str, str], folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A command that is ended with the block."""
    with subprocess.Popen(
        command,
        env=dict(environment),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def cpu_seconds_of(pid: int) -> float:
    """What a process that runs has used, its children left out; not a number where the system has no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return math.nan
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Job:
    """What every contestant of a comparison does."""

    dataset_kind: str
    num_rows: int
    num_samples: int
    max_workers: int
    capacity: Capacity


DISTIL = {  # contestant → further flags
    "distil_fixed": ("--fixed_workers",),
    "distil": (),
}
# Without a part of durability: patched from outside, so that the program itself has no such switch.
WITHOUT = {
    "without syncs": "os.fsync = os.fdatasync = lambda descriptor: None",
    "without journal": (
        "os.fsync = os.fdatasync = lambda descriptor: None; import distil.store.journal as journal; "
        "journal.SampleJournal.journaled; journal.SampleJournal.journaled = lambda self, ask: ask"
    ),
}


@dataclass(frozen=True)
class Bench:
    """Where and how to measure."""

    trees: tuple[Tree, ...]
    cache_dir: Path
    is_quick: bool
    num_repeats: int
    failures: list[str] = field(default_factory=list)
    _start_cpu_seconds: dict[str, float] = field(default_factory=dict)

    def contestants(self, *names: str) -> list[str]:
        """Names of contestants, those of distil once for each tree."""
        given: list[str] = []
        for name in names:
            is_ours = name.partition(", ")[0] in DISTIL
            given += [self.label(name, tree) for tree in self.trees] if is_ours else [name]
        return given

    def label(self, name: str, tree: Tree) -> str:
        """A name with its tree, where there are several."""
        return name if len(self.trees) == 1 else f"{name}@{tree.name}"

    def tree(self, contestant: str) -> Tree:
        """The tree of a contestant."""
        name = contestant.partition("@")[2]
        return next((tree for tree in self.trees if tree.name == name), self.trees[0])

    def dataset(self, kind: str, num_rows: int) -> Path:
        """The folder of a dataset."""
        return dataset(self.cache_dir, kind, num_rows)

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder that is removed again, on the disk of the cache: a sync costs nothing in a RAM disk."""
        folder = Path(tempfile.mkdtemp(dir=self.cache_dir, prefix="run_"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def compare(
        self, contestants: Iterable[str], job: Job, num_repeats: int | None = None, **facts: Any
    ) -> list[Row]:
        """A row of medians for each contestant; they take turns, so that a busy machine slows them alike."""
        contestants = list(contestants)
        rows: dict[str, list[Row]] = {name: [] for name in contestants}
        for _ in range(num_repeats or self.num_repeats):
            for name in contestants:
                try:
                    rows[name].append(self.run(name, job))
                except RuntimeError as error:  # an hour's figures are not lost for one that fails
                    say(f"  FAILED: {error}")
                    self.failures.append(f"{name}, {job.max_workers} workers: {str(error)[:MAX_ERROR_CHARS]}")
        return [{"contestant": name, **facts, **medians(own)} for name, own in rows.items() if own]

    def run(self, contestant: str, job: Job) -> Row:
        """One contestant, one time."""
        usage, seen = self._run(contestant, job)
        row = figures(usage, seen, job)
        if not self.is_quick:
            start_cpu_seconds = self._start_of(contestant, job)
            own_cpu_seconds = max(0.0, usage.cpu_seconds - start_cpu_seconds)
            row["cpu_ms_per_call_without_start"] = 1000 * own_cpu_seconds / len(seen.replied_at)
        shown = f"{row['calls_a_second']:.1f} calls/s, {row['cpu_ms_per_call']:.2f} ms CPU a call"
        say(f"  {contestant}, {job.max_workers} workers: {shown}, {row['peak_mb']:.0f} MB")
        return row

    def _start_of(self, contestant: str, job: Job) -> float:
        """The CPU seconds of a run of one call; measured once."""
        if contestant not in self._start_cpu_seconds:
            first = replace(job, num_samples=1, max_workers=1, capacity=Capacity(num_turns=1))
            self._start_cpu_seconds[contestant] = self._run(contestant, first)[0].cpu_seconds
        return self._start_cpu_seconds[contestant]

    def _run(self, contestant: str, job: Job) -> tuple[Usage, Seen]:
        dataset_path = self.dataset(job.dataset_kind, job.num_rows)
        with self.folder() as folder, serving(job.capacity) as teacher:
            command = self._command(contestant, job, teacher.api_base, dataset_path)
            usage = run_child(command, self.tree(contestant).environment(), folder)
            seen = teacher.seen()
            num_traces = len(list((folder / "traces").glob("trace_*.json")))
        num_calls = len(seen.replied_at)
        expected = job.num_samples * job.capacity.num_turns
        if (num_calls, num_traces) != (expected, job.num_samples):
            raise RuntimeError(
                f"{contestant}: {num_calls} calls of {expected}, {num_traces} traces\n{usage.output[-3000:]}"
            )
        return usage, seen

    def _command(self, contestant: str, job: Job, api_base: str, dataset_path: Path) -> list[str]:
        flags = ["--api_base", api_base, "--dataset_path", dataset_path, "--num_samples", job.num_samples]
        flags += ["--max_workers", job.max_workers, "--output_dir", "traces"]
        name, _, without = contestant.partition("@")[0].partition(", ")
        tree = self.tree(contestant)
        if name not in DISTIL:
            return [sys.executable, str(HERE / "contestants.py"), name, *map(str, flags)]
        arguments = ["run", *flags, "--model", MODEL, "--tool_mode", "text", *DISTIL[name]]
        if not without:
            return tree.distil(*arguments)
        start = f"import os, sys; {WITHOUT[without]}; from distil.cli import main; sys.exit(main())"
        return [tree.python, "-c", start, *map(str, arguments)]


def figures(usage: Usage, seen: Seen, job: Job) -> Row:
    """What a run is judged by. The start ends with the first call, which a probe may come before."""
    assert seen.first_request_at is not None
    assert seen.first_call_at is not None
    num_calls = len(seen.replied_at)
    seconds = seen.replied_at[-1] - seen.first_call_at
    capacity = job.capacity
    # Perfect: samples are dealt out evenly, and a worker does nothing but wait.
    rounds = -(-job.num_samples // job.max_workers)
    ideal_seconds = rounds * capacity.num_turns * capacity.seconds_per_call
    late = seen.replied_at[num_calls // 2 : num_calls * 9 // 10] or seen.replied_at
    return {
        "workers": job.max_workers,
        "num_samples": job.num_samples,
        "seconds_per_call": capacity.seconds_per_call,
        "calls_a_second": num_calls / seconds,
        "calls_a_second_with_start": num_calls / usage.wall_seconds,
        "calls_a_second_late": (len(late) - 1) / ((late[-1] - late[0]) or seconds),
        "share_of_ideal": ideal_seconds / seconds,
        "cpu_ms_per_call": 1000 * usage.cpu_seconds / num_calls,
        "switches_per_call": usage.num_switches / num_calls,
        "voluntary_switches_per_call": usage.num_voluntary / num_calls,
        "peak_mb": usage.peak_bytes / BYTES_A_MB,
        "wall_seconds": usage.wall_seconds,
        "first_request_seconds": seen.first_request_at - usage.started_at,
        "first_call_seconds": seen.first_call_at - usage.started_at,
        "max_in_flight": seen.max_in_flight,
        "num_refused": seen.num_refused,
        "body_kb": seen.mean_body_bytes / 1000,
        "server_cpu_ms_per_call": seen.cpu_ms_per_call,
    }


def medians(rows: Sequence[Row]) -> Row:
    """The median of each figure; the rates of all repeats stand beside it."""
    row: Row = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    if len(rows) > 1:
        row["repeats"] = {name: [row[name] for row in rows] for name in ("calls_a_second", "cpu_ms_per_call")}
    return row


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which a part of all lie."""
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def say(text: str) -> None:
    """A line for who waits."""
    print(text, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """What it was measured on."""
    names = ("openai", "httpx", "datasets", "pyarrow", "pillow", "numpy", "orjson", "matplotlib")
    versions = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "num_cores": num_cores(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions,
    }


def _first_line(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> str:
    try:
        return subprocess.run(
            command, env=dict(environment), cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or no checkout
        return ""


def num_cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()
