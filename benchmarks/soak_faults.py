"""A long run against a server that breaks one request in ten: nothing lost, nothing paid twice, nothing hung.

    python benchmarks/soak_faults.py [--num_samples 2000] [--max_workers 64] [--fault_share 0.1]

Faults are mixed: 500, 503, 429 with `retry-after`, garbage, a reply cut in half, a connection closed without
one. At the end the server's answered requests must equal the lines of `spending.jsonl`, and every sample must
have its trace or a line in `failed_samples.jsonl`. Exits with 1 where that does not hold.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

PACKAGE = Path(__file__).parent.parent / "distil"
FAULTS = ("500", "503", "429", "garbage", "cut", "closed")


class FaultyTeacher(ThreadingHTTPServer):
    """Zooms, rotates, answers; and breaks a share of the requests."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, fault_share: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fault_share = fault_share
        self.random = random.Random(1)
        self.counts: Counter[str] = Counter()
        self.answered: Counter[tuple[int, int]] = Counter()  # by seed and turn: which turn of which sample
        self.lock = threading.Lock()

    def draw_fault(self) -> str | None:
        """The fault of this request, or None."""
        with self.lock:
            fault = self.random.choice(FAULTS) if self.random.random() < self.fault_share else None
            self.counts[fault or "answered"] += 1
            return fault

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up on broken replies: that is expected here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyTeacher

    def do_GET(self) -> None:
        self._send(200, json.dumps({"data": [{"id": "faulty-qwen3-vl"}]}).encode())

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = self.server.draw_fault()
        if fault is None:
            turn = sum(message["role"] == "assistant" for message in request["messages"])
            with self.server.lock:
                self.server.answered[request["seed"], turn] += 1
            self._send(200, json.dumps(_completion(turn)).encode())
        else:
            self._break(fault)

    def _break(self, fault: str) -> None:
        if fault == "closed":
            self.close_connection = True
        elif fault == "garbage":
            self._send(200, b"<html>bad gateway</html>")
        elif fault == "cut":
            data = json.dumps(_completion(0)).encode()
            self._send(200, data[: len(data) // 2], length=len(data))
            self.close_connection = True
        else:
            self._send(
                int(fault), b'{"error": {"message": "busy"}}', retry_after="0.05" if fault == "429" else None
            )

    def _send(
        self, status: int, data: bytes, length: int | None = None, retry_after: str | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data) if length is None else length))
        if retry_after is not None:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _completion(turn: int) -> dict[str, object]:
    function = (
        {"name": "image_zoom_in_tool", "arguments": '{"bbox_2d": [100, 100, 900, 900]}'},
        {"name": "image_rotate_tool", "arguments": '{"angle": 90}'},
    )
    message: dict[str, object] = {"content": "\\boxed{1, 2}"}
    if turn < len(function):
        message = {"tool_calls": [{"id": "a", "type": "function", "function": function[turn]}]}
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num_samples", type=int, default=2000)
    parser.add_argument("--max_workers", type=int, default=64)
    parser.add_argument("--fault_share", type=float, default=0.1)
    options = parser.parse_args()
    server = FaultyTeacher(options.fault_share)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        dataset, out = Path(folder) / "photos", Path(folder) / "out"
        _save_photos(dataset, options.num_samples)
        started = time.monotonic()
        result = subprocess.run(
            [
                sys.executable, "demo_concurrent.py", "--dataset_path", str(dataset), "--output_dir", str(out),
                "--api_base", f"http://127.0.0.1:{server.server_address[1]}/v1", "--num_samples", "0",
                "--max_workers", str(options.max_workers), "--tool_mode", "native",
            ],
            cwd=PACKAGE, check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        seconds = time.monotonic() - started
        return _judge(server, out, options.num_samples, seconds, result.returncode)


def _judge(server: FaultyTeacher, out: Path, num_samples: int, seconds: float, status: int) -> int:
    traces = len(list(out.glob("trace_*.json")))
    failed_path = out / "failed_samples.jsonl"
    failed = len(failed_path.read_text().splitlines()) if failed_path.exists() else 0
    paid = len((out / "spending.jsonl").read_text().splitlines())
    faults = sum(server.counts[fault] for fault in FAULTS)
    doubled = sum(count - 1 for count in server.answered.values())
    print(f"{num_samples} samples in {seconds:.1f} s ({num_samples / seconds:.1f}/s), exit code {status}")
    print(f"{traces} traces, {failed} failed samples")
    print(f"server: {server.counts['answered']} answered, {faults} broken; paid by the run's count: {paid}")
    print(f"turns answered more than once: {doubled}")
    whole = traces + failed == num_samples and paid == server.counts["answered"] and doubled == 0
    print("nothing lost, nothing paid twice" if whole else "FAILED")
    return 0 if whole else 1


def _save_photos(folder: Path, rows: int) -> None:
    datasets.disable_progress_bars()
    features = datasets.Features(
        image=datasets.Image(), lat=datasets.Value("float64"), lon=datasets.Value("float64")
    )
    columns = {"image": [{"bytes": _photo(row), "path": None} for row in range(rows)]}
    columns |= {name: [1.0] * rows for name in ("lat", "lon")}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(folder))


def _photo(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
