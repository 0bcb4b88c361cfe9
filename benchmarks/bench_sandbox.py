"""What the sandbox costs: python benchmarks/bench_sandbox.py [--calls N] [--soak N]

All designs take turns in one run, so that a busy machine slows them alike. The job: rotate and crop of a
1280×960 RGB picture. `--soak` makes that many calls of every kind and counts what is left.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from distil.sandbox.exchange import ExecResult
from distil.sandbox.sandbox import Sandbox

JOB = "result_image = image.rotate(45).crop((100, 100, 500, 500))"
FRESH = f"""
import sys
import numpy as np
from PIL import Image
scope = {{"image": Image.frombytes("RGB", (1280, 960), sys.stdin.buffer.read()), "Image": Image, "np": np}}
exec({JOB!r}, scope)
sys.stdout.buffer.write(scope["result_image"].tobytes())
"""
THREADS = 8


def photo() -> Image.Image:
    """1280×960 pixels with structure."""
    return Image.effect_noise((1280, 960), 80).convert("RGB")


def run_in_process(picture: Image.Image) -> None:
    scope = {"image": picture, "Image": Image, "result_image": None}
    exec(JOB, scope)


def run_fresh(picture: Image.Image) -> None:
    """A new interpreter per call, as subprocess-based tools do it."""
    subprocess.run(
        [sys.executable, "-I", "-c", FRESH], input=picture.tobytes(), capture_output=True, check=True
    )


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def idle_bytes(sandbox: Sandbox) -> int:
    """The proportional memory of the server and its children."""
    assert sandbox._server is not None
    session = os.getsid(sandbox._server._keeper.pid)
    total = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(path.name)) == session:
                text = (path / "smaps_rollup").read_text()
                total += int(text.split("\nPss:")[1].split()[0]) * 1024
        except OSError:
            continue
    return total


def compare(designs: dict[str, Callable[[Image.Image], object]], calls: int, picture: Image.Image) -> None:
    """One call of each design in turn; prints p50 and p95 in milliseconds and p50 against the first."""
    times: dict[str, list[float]] = {name: [] for name in designs}
    for number in range(calls):
        for name, run in designs.items():
            if name == "fresh python -I" and number % 5:
                continue
            time.sleep(0.01)  # as between the calls of a run; also lets a server fork its next child
            times[name].append(timed(lambda run=run: run(picture)))  # type: ignore[misc]
    first = statistics.median(times[next(iter(times))])
    print(f"{'one thread':28} {'p50 ms':>8} {'p95 ms':>8} {'× first':>8}")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:28} {median:8.1f} {percentile(values, 0.95):8.1f} {median / first:8.1f}")


def load(designs: dict[str, Callable[[Image.Image], object]], calls: int, picture: Image.Image) -> None:
    """All threads at once; prints calls a second and the time of one call, its wait for a slot included."""
    print(f"{f'{THREADS} threads':28} {'calls/s':>8} {'p50 ms':>8} {'p95 ms':>8}   p95 ms from its slot on")
    for name, run in designs.items():
        count = calls // 6 if name == "fresh python -I" else calls
        own: list[float] = []

        def call(_: int, run: Callable[[Image.Image], object] = run, own: list[float] = own) -> float:
            started = time.perf_counter()
            result = run(picture)
            seconds = time.perf_counter() - started
            own.append(1000 * (result.duration_seconds if isinstance(result, ExecResult) else seconds))
            return 1000 * seconds

        with ThreadPoolExecutor(THREADS) as pool:
            started = time.perf_counter()
            values = list(pool.map(call, range(count)))
            rate = count / (time.perf_counter() - started)
        tail = percentile(values, 0.95)
        print(
            f"{name:28} {rate:8.0f} {statistics.median(values):8.1f} {tail:8.1f} {percentile(own, 0.95):8.1f}"
        )


def soak(calls: int) -> None:
    """Calls of every kind; prints what was there before and after."""
    codes = [
        JOB,
        JOB,
        "1 / 0",
        "import os\nos._exit(0)",
        "import ctypes\nctypes.string_at(0)",
        "print('x' * 99999)",
    ]
    picture = photo().resize((64, 48))

    def counts(sandbox: Sandbox) -> str:
        fds = len(list(Path("/proc/self/fd").iterdir()))
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20
        processes = sum(1 for path in Path("/proc").glob("[0-9]*/stat"))
        idle = idle_bytes(sandbox) // 2**20
        return f"fds {fds}, processes {processes}, resident {resident} MiB, sandbox {idle} MiB"

    with Sandbox() as sandbox, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda code: sandbox.run(code, picture).kind, codes * 4))
        time.sleep(0.3)
        print("before", counts(sandbox))
        started = time.perf_counter()
        list(pool.map(lambda number: sandbox.run(codes[number % len(codes)], picture).kind, range(calls)))
        seconds = time.perf_counter() - started
        time.sleep(0.3)
        print("after ", counts(sandbox), f"({calls} calls, {calls / seconds:.0f} a second)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--soak", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)
    picture = photo()
    with Sandbox() as jailed, Sandbox(unsafe=True) as unjailed:
        print(f"start {timed(jailed.start):.0f} ms (with the canaries)")
        unjailed.start()
        time.sleep(0.3)
        print(f"idle memory {idle_bytes(jailed) / 2**20:.0f} MiB (proportional set size)")
        print(jailed.layers.text)
        designs: dict[str, Callable[[Image.Image], object]] = {
            "exec in process": run_in_process,
            "fork server, no jail": lambda image: unjailed.run(JOB, image),
            "sandbox": lambda image: jailed.run(JOB, image),
            "fresh python -I": run_fresh,
        }
        compare(designs, arguments.calls, picture)
        load(designs, arguments.calls, picture)
    if arguments.soak:
        soak(arguments.soak)


if __name__ == "__main__":
    main()
