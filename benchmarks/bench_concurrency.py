"""The level of requests in flight against servers of known capacity, next to every fixed level.

Each server is a process on loopback with some slots that serves one request in a known time, first come
first served. One queues whatever comes, as vLLM and SGLang do; one also answers 429 above a number of
requests in flight; one shares its speed among all it serves, as a server that batches does. The requests
go through the same client, slots and retries as a run's.

    python benchmarks/bench_concurrency.py [--seconds 12] [--ceiling 64]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection

from distil.errors import TeacherError
from distil.flags import TeacherFlags
from distil.run.plan import teacher_settings
from distil.teacher.attempts import RetryPolicy
from distil.teacher.client import Teacher
from distil.teacher.climber import LevelState
from distil.teacher.slots import Slots

FIXED_LEVELS = (1, 2, 4, 8, 16, 32, 64)
MESSAGES = [b'{"role": "user", "content": "x"}']
REPLY = json.dumps(
    {"choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "x"}}]}
).encode()


@dataclass(frozen=True)
class Capacity:
    """What a server can take; a reply takes `seconds` plus `seconds_per_neighbour` for each beside it."""

    name: str
    num_slots: int
    seconds: float
    refuses_above: int = 10**6
    sigma: float = 0.0  # of the log-normal factor on the time of a reply
    seconds_per_neighbour: float = 0.0


CAPACITIES = (
    Capacity("queues, 8 slots, 50 ms", 8, 0.05),
    Capacity("queues, 8 slots, 50 ms, noisy", 8, 0.05, sigma=0.5),
    Capacity("queues, 8 slots, 50 ms, 429 above 16", 8, 0.05, refuses_above=16),
    Capacity("16 slots, 100 ms, 429 above 16", 16, 0.1, refuses_above=16, sigma=0.3),
    Capacity("batches: 200 ms + 5 ms a neighbour, noisy", 1000, 0.2, sigma=0.3, seconds_per_neighbour=0.005),
    Capacity("no limit, 400 ms, noisy", 1000, 0.4, sigma=0.3),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=12.0, help="of each measurement (default: 12)")
    parser.add_argument("--ceiling", type=int, default=64)
    options = parser.parse_args()
    for capacity in CAPACITIES:
        fixed = {
            level: _measure(capacity, Slots(level, is_fixed=True), options.seconds)[1]
            for level in FIXED_LEVELS
        }
        slots = Slots(options.ceiling)
        whole, late = _measure(capacity, slots, 2 * options.seconds)
        _print(capacity, fixed, slots.state(), whole, late)


def _print(capacity: Capacity, fixed: dict[int, float], state: LevelState, whole: float, late: float) -> None:
    best = max(fixed, key=lambda level: fixed[level])
    print(f"{capacity.name}")
    print("  fixed:    " + "  ".join(f"{level}: {rate:.0f}/s" for level, rate in fixed.items()))
    print(
        f"  adaptive: level {state.level} of {state.ceiling} (highest {state.highest}), {late:.0f}/s = "
        f"{late / fixed[best]:.0%} of the best fixed ({best}); with its first half {whole / fixed[best]:.0%}"
    )
    print("            " + ", ".join(f"{reason}: {count}" for reason, count in state.changes.items()))
    sys.stdout.flush()


def _measure(capacity: Capacity, slots: Slots, seconds: float) -> tuple[float, float]:
    """Replies a second over the whole time, and over its second half."""
    ended: list[float] = []
    with _served(capacity) as api_base:
        settings = replace(
            teacher_settings(TeacherFlags(), api_base, "EMPTY"),
            model="m",
            retry=RetryPolicy(max_retries=20),
        )
        started = time.monotonic()
        with Teacher(settings, (), slots) as teacher:
            threads = [
                threading.Thread(target=_ask_until, args=(teacher, started + seconds, ended))
                for _ in range(slots.state().ceiling)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    times = [end - started for end in ended if end - started < seconds]
    late = [end for end in times if end >= seconds / 2]
    return len(times) / seconds, len(late) / (seconds / 2)


def _ask_until(teacher: Teacher, end: float, ended: list[float]) -> None:
    while time.monotonic() < end:
        try:
            teacher.ask(MESSAGES, 0)
        except TeacherError:
            continue
        ended.append(time.monotonic())


@contextmanager
def _served(capacity: Capacity) -> Iterator[str]:
    """The server in a process of its own, so that it has its own interpreter lock."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(capacity, theirs), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}/v1"
    finally:
        process.terminate()
        process.join()


def _serve(capacity: Capacity, port: Connection) -> None:
    server = _Server(("127.0.0.1", 0), _handler_class(capacity))
    port.send(server.server_address[1])
    server.serve_forever()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


def _handler_class(capacity: Capacity) -> type[BaseHTTPRequestHandler]:
    slots = threading.BoundedSemaphore(capacity.num_slots)
    lock = threading.Lock()
    generator = random.Random(0)
    in_flight = 0

    def enter(change: int) -> int:
        nonlocal in_flight
        with lock:
            in_flight += change
            return in_flight

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1  # the head and the body of a reply leave together

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            num_in_flight = enter(1)
            is_refused = num_in_flight > capacity.refuses_above
            if not is_refused:
                self._serve_one()
            enter(-1)
            self._reply(429 if is_refused else 200, b"{}" if is_refused else REPLY)

        def _serve_one(self) -> None:
            with slots:
                seconds = capacity.seconds + capacity.seconds_per_neighbour * (in_flight - 1)
                time.sleep(seconds * generator.lognormvariate(-(capacity.sigma**2) / 2, capacity.sigma))

        def _reply(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


if __name__ == "__main__":
    main()
