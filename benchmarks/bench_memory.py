"""Peak memory of a run against the number of rows: it must not grow with the dataset.

    python benchmarks/bench_memory.py [--rows 200 2000] [--max_workers 4]

The teacher is a server in this process that zooms once and then answers.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

PACKAGE = Path(__file__).parent.parent / "distil"
PICTURE_SIZE = (1280, 960)
RUN = """
import pathlib, sys
from distil.cli import run_door
status = run_door("demo_concurrent.py", sys.argv[1:])
print(pathlib.Path("/proc/self/status").read_text())
sys.exit(status)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--max_workers", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, _answering_server() as api_base:
        for rows in options.rows:
            dataset = Path(folder) / f"photos_{rows}"
            _save_photos(dataset, rows)
            size_mb = sum(path.stat().st_size for path in dataset.iterdir()) / 1e6
            peak_mb = _peak_bytes(dataset, api_base, options.max_workers) / 1e6
            print(
                f"{rows} rows of {PICTURE_SIZE[0]}×{PICTURE_SIZE[1]} ({size_mb:.0f} MB): peak {peak_mb:.0f} MB"
            )


def _save_photos(folder: Path, rows: int) -> None:
    datasets.disable_progress_bars()
    features = datasets.Features(
        image=datasets.Image(), lat=datasets.Value("float64"), lon=datasets.Value("float64")
    )
    columns = {"image": [{"bytes": _photo(row % 50), "path": None} for row in range(rows)]}
    columns |= {name: [1.0] * rows for name in ("lat", "lon")}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(folder))


def _photo(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(
        0, 256, (PICTURE_SIZE[1] // 4, PICTURE_SIZE[0] // 4, 3), dtype=np.uint8
    )
    buffer = io.BytesIO()
    Image.fromarray(noise).resize(PICTURE_SIZE, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _peak_bytes(dataset: Path, api_base: str, max_workers: int) -> int:
    flags = ["--api_base", api_base, "--dataset_path", str(dataset), "--output_dir", f"{dataset}_traces"]
    flags += ["--num_samples", "0", "--max_workers", str(max_workers)]
    result = subprocess.run(
        [sys.executable, "-c", RUN, *flags], cwd=PACKAGE, check=True, capture_output=True, text=True
    )
    # Not `ru_maxrss`: a child's starts at its parent's size at the fork.
    match = re.search(r"VmHWM:\s+(\d+) kB", result.stdout)
    assert match is not None
    return int(match[1]) * 1024


@contextmanager
def _answering_server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send({"data": [{"id": "answering-qwen3-vl"}]})

    def do_POST(self) -> None:
        request = self.rfile.read(int(self.headers["Content-Length"]))
        function = {"name": "image_zoom_in_tool", "arguments": '{"bbox_2d": [100, 100, 600, 600]}'}
        message = {"content": "\\boxed{1, 2}"}
        if b'"assistant"' not in request:
            message = {"tool_calls": [{"id": "a", "type": "function", "function": function}]}
        self._send({"choices": [{"message": message, "finish_reason": "stop"}]})

    def _send(self, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    main()
