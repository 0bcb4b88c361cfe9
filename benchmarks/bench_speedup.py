"""Storage saving and speed-up against workers, both on the embedded default.

Speed-up is measured twice: against the sign reader itself (whose OCR fills two cores, so it stops rising
there) and against the same server behind a fixed latency, which is what a teacher on another machine
looks like from here.

    python benchmarks/bench_speedup.py [--num_samples 40] [--latency_seconds 1.0]
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from distil.embedded.launch import drawn_signs, embedded_teacher

PACKAGE = Path(__file__).parent.parent / "distil"
WORKERS = (1, 2, 4, 8)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num_samples", type=int, default=40)
    parser.add_argument(
        "--latency_seconds", type=float, default=1.0, help="added to each request (default: 1)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, embedded_teacher() as api_base:
        drawn_signs()
        _print_storage(Path(folder), api_base, options.num_samples)
        _print_speedup("the sign reader alone", Path(folder), api_base, options.num_samples)
        with _behind_latency(api_base, options.latency_seconds) as slow_base:
            title = f"the sign reader behind {options.latency_seconds:g} s a request"
            _print_speedup(title, Path(folder) / "slow", slow_base, options.num_samples)


def _print_storage(folder: Path, api_base: str, num_samples: int) -> None:
    without, kept = folder / "arguments_only", folder / "pictures_kept"
    _run("demo_concurrent.py", without, api_base, num_samples, 2)
    _run("demo_distillation_with_tools.py", kept, api_base, num_samples, 2)
    sizes = [
        statistics.fmean(path.stat().st_size for path in run.glob("trace_*.json")) for run in (without, kept)
    ]
    print(f"storage: {sizes[0] / 1000:.1f} kB a trace, {sizes[1] / 1000:.1f} kB with pictures kept: ", end="")
    print(f"{1 - sizes[0] / sizes[1]:.0%} saved")


def _print_speedup(title: str, folder: Path, api_base: str, num_samples: int) -> None:
    print(f"{title}, {num_samples} samples:")
    seconds = {
        workers: _run("demo_concurrent.py", folder / str(workers), api_base, num_samples, workers)
        for workers in WORKERS
    }
    for workers, taken in seconds.items():
        print(f"  {workers} workers: {taken:6.1f} s, {seconds[1] / taken:.2f} times as fast as 1")


def _run(door: str, folder: Path, api_base: str, num_samples: int, workers: int) -> float:
    """Run a door; the seconds its samples took, as its run record has them."""
    flags = ["--num_samples", str(num_samples), "--max_workers", str(workers), "--output_dir", str(folder)]
    subprocess.run(
        [sys.executable, door, "--api_base", api_base, *flags], cwd=PACKAGE, check=True, capture_output=True
    )
    record = json.loads((folder / "run_record.json").read_text(encoding="utf-8"))
    return float(record["runs"][-1]["seconds"])


@contextmanager
def _behind_latency(api_base: str, latency_seconds: float) -> Iterator[str]:
    """A proxy on loopback that waits before it passes each request on."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_class(api_base, latency_seconds))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()


def _handler_class(api_base: str, latency_seconds: float) -> type[BaseHTTPRequestHandler]:
    address = urllib.parse.urlsplit(api_base).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._pass_on("GET", None)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(latency_seconds)
            self._pass_on("POST", body)

        def _pass_on(self, method: str, body: bytes | None) -> None:
            connection = http.client.HTTPConnection(address, timeout=120)
            connection.request(method, self.path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            data = response.read()
            connection.close()
            self.send_response(response.status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


if __name__ == "__main__":
    main()
