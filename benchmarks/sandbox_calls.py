"""Calls of the code tool in this process, their figures as JSON in the last line.

    python benchmarks/sandbox_calls.py [--calls N] [--soak N]

All designs take turns, so that a busy machine slows them alike. `--soak` makes that many calls of every kind
and says what is left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from measure import percentile
from PIL import Image

from distil.sandbox.exchange import ExecResult
from distil.sandbox.sandbox import Sandbox

JOB = "result_image = image.rotate(45).crop((100, 100, 500, 500))"
FRESH_NAME = "fresh python -I"
FRESH = f"""
import sys
import numpy as np
from PIL import Image
scope = {{"image": Image.frombytes("RGB", (1280, 960), sys.stdin.buffer.read()), "Image": Image, "np": np}}
exec({JOB!r}, scope)
sys.stdout.buffer.write(scope["result_image"].tobytes())
"""
THREADS = 8
FRESH_SHARE = 5  # one call of a new interpreter for so many of the others

Design = Callable[[Image.Image], object]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--soak", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)
    picture = photo()
    with Sandbox() as jailed, Sandbox(unsafe=True) as unjailed:
        start_ms = timed_ms(jailed.start)
        unjailed.start()
        time.sleep(0.3)
        print(f"start {start_ms:.0f} ms (with the canaries); {jailed.layers.text}")
        designs: dict[str, Design] = {
            "exec in process": run_in_process,
            "fork server, no jail": lambda image: unjailed.run(JOB, image),
            "sandbox": lambda image: jailed.run(JOB, image),
            FRESH_NAME: run_fresh,
        }
        one_by_one = alone(designs, options.calls, picture)
        at_once = loaded(designs, options.calls, picture)
        idle_mb = idle_bytes(jailed) / 1e6
    if options.soak:
        soak(options.soak)
    rows = [{"contestant": name, **one_by_one[name], **at_once[name]} for name in designs]
    print(
        json.dumps(
            [
                row | ({"start_ms": start_ms, "idle_mb": idle_mb} if row["contestant"] == "sandbox" else {})
                for row in rows
            ]
        )
    )


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


def timed_ms(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000


def alone(designs: dict[str, Design], calls: int, picture: Image.Image) -> dict[str, dict[str, float]]:
    """One call of each design in turn."""
    times: dict[str, list[float]] = {name: [] for name in designs}
    for number in range(calls):
        for name, run in designs.items():
            if name != FRESH_NAME or number % FRESH_SHARE == 0:
                time.sleep(0.01)  # as between the calls of a run; also lets a server fork its next child
                times[name].append(timed_ms(lambda run=run: run(picture)))  # type: ignore[misc]
    return {
        name: {"p50_ms": statistics.median(values), "p95_ms": percentile(values, 0.95)}
        for name, values in times.items()
    }


def loaded(designs: dict[str, Design], calls: int, picture: Image.Image) -> dict[str, dict[str, float]]:
    """All threads at once; the time of one call with its wait for a slot, and from its slot on."""
    figures = {}
    for name, run in designs.items():
        count = calls // FRESH_SHARE if name == FRESH_NAME else calls
        own: list[float] = []

        def call(_: int, run: Design = run, own: list[float] = own) -> float:
            started = time.perf_counter()
            result = run(picture)
            ms = 1000 * (time.perf_counter() - started)
            own.append(1000 * result.duration_seconds if isinstance(result, ExecResult) else ms)
            return ms

        with ThreadPoolExecutor(THREADS) as pool:
            started = time.perf_counter()
            values = list(pool.map(call, range(count)))
            rate = count / (time.perf_counter() - started)
        figures[name] = {
            "loaded_calls_a_second": rate,
            "loaded_p50_ms": statistics.median(values),
            "loaded_p95_ms": percentile(values, 0.95),
            "loaded_p95_ms_in_slot": percentile(own, 0.95),
        }
    return figures


def idle_bytes(sandbox: Sandbox) -> int:
    """The proportional memory of the server and its children, 0 where the system does not say."""
    with contextlib.suppress(AttributeError, OSError):
        return _session_bytes(os.getsid(sandbox._server._keeper.pid))  # type: ignore[union-attr]
    return 0


def _session_bytes(session: int) -> int:
    total = 0
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(path.name)) == session:
                text = (path / "smaps_rollup").read_text()
                total += int(text.split("\nPss:")[1].split()[0]) * 1024
    return total


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

    def counts(sandbox: Sandbox) -> dict[str, Any]:
        return {
            "fds": len(list(Path("/proc/self/fd").iterdir())),
            "processes": sum(1 for _ in Path("/proc").glob("[0-9]*/stat")),
            "resident MiB": int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20,
            "sandbox MiB": idle_bytes(sandbox) // 2**20,
        }

    with Sandbox() as sandbox, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda code: sandbox.run(code, picture).kind, codes * 4))
        time.sleep(0.3)
        print("before", counts(sandbox))
        list(pool.map(lambda number: sandbox.run(codes[number % len(codes)], picture).kind, range(calls)))
        time.sleep(0.3)
        print("after ", counts(sandbox), f"({calls} calls)")


if __name__ == "__main__":
    main()
