"""A scripted teacher in a process of its own that costs next to nothing: it must not be what is measured.

It reads a request's body into one buffer that all connections share, counts the assistant's turns in it and
drops it; the reply comes after a time, on slots, or both. Three turns: a zoom, a zoom, an answer.

    python benchmarks/teacher_server.py --seconds_per_call 0.2

prints its port and serves until its standard input is closed. `GET /stats` says what it saw.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields

MODEL = "scripted-qwen3-vl"
BOXES = ([100, 100, 700, 700], [200, 200, 800, 800])  # from 0 to 1000, each of the picture before
ANSWER = (47.3769, 8.5417)

_BUFFER_BYTES = 2**20
_TURN_MARK = b'"assistant"'  # a base64 picture has no quotation mark
_PROBE_MARKS = (b"name the word in the image", b"Which word is written in the image")
_PROBE_TAIL_BYTES = 2048
_PROSE = (
    "The road has a yellow centre line, and the houses have steep roofs of red tiles and wooden shutters; "
    "the hills behind them are green and wooded, the light is that of a temperate summer. "
)


@dataclass(frozen=True)
class Capacity:
    """What a server can take; a reply takes `seconds_per_call` and `seconds_per_neighbour` for each beside it."""

    seconds_per_call: float = 0.0
    num_slots: int = 0  # 0: as many as come; further requests wait in line
    refuses_above: int = 0  # 429 above so many in flight; 0: never
    sigma: float = 0.0  # of the log-normal factor on the time of a reply
    seconds_per_neighbour: float = 0.0
    num_turns: int = 3  # 1: the answer at once
    seconds_per_probe: float = 0.0


# --- for who measures ---


@dataclass(frozen=True)
class Seen:
    """What the server saw of a run. Times are of the system's monotonic clock; probes are not counted."""

    first_request_at: float | None  # of any, the probe too
    first_call_at: float | None
    replied_at: list[float] = field(repr=False)
    num_refused: int
    max_in_flight: int
    mean_body_bytes: float
    cpu_ms_per_call: float


class Teacher:
    """A running server."""

    def __init__(self, port: int) -> None:
        self._root = f"http://127.0.0.1:{port}"
        self.api_base = f"{self._root}/v1"

    def seen(self) -> Seen:
        """What it saw so far."""
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            f"{self._root}/stats"
        ) as reply:
            return Seen(**json.load(reply))


@contextmanager
def serving(capacity: Capacity) -> Iterator[Teacher]:
    """Serve in a process of its own while the block runs."""
    flags = [text for name, value in asdict(capacity).items() for text in (f"--{name}", str(value))]
    with subprocess.Popen(
        [sys.executable, __file__, *flags], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield Teacher(int(process.stdout.readline()))
        finally:
            process.stdin.close()


# --- the process ---


class _Script:
    """Answers after the time that the capacity says, and keeps count."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._replies = _replies(capacity.num_turns)
        self._generator = random.Random(0)
        self._waiting: deque[tuple[_Connection, int]] = deque()
        self._num_busy = self._in_flight = 0
        self._num_calls = self._num_bytes = self._num_refused = self._max_in_flight = 0
        self._first_request_at: float | None = None
        self._first_call_at: float | None = None
        self._replied_at: list[float] = []
        self._cpu_seconds_before = 0.0

    def take(self, connection: _Connection, num_turns: int, num_bytes: int, is_probe: bool) -> None:
        now = time.monotonic()
        self._first_request_at = self._first_request_at or now
        if is_probe:
            asyncio.get_running_loop().call_later(self._capacity.seconds_per_probe, connection.reply, _PROBED)
            return
        if self._first_call_at is None:
            self._first_call_at, self._cpu_seconds_before = now, _cpu_seconds()
        self._num_calls += 1
        self._num_bytes += num_bytes
        capacity = self._capacity
        if capacity.refuses_above and self._in_flight >= capacity.refuses_above:
            self._num_refused += 1
            connection.reply(_REFUSED)
            return
        self._in_flight += 1
        self._max_in_flight = max(self._max_in_flight, self._in_flight)
        if capacity.num_slots and self._num_busy == capacity.num_slots:
            self._waiting.append((connection, num_turns))
        else:
            self._serve(connection, num_turns)

    def _serve(self, connection: _Connection, num_turns: int) -> None:
        self._num_busy += 1
        capacity = self._capacity
        seconds = capacity.seconds_per_call + capacity.seconds_per_neighbour * (self._in_flight - 1)
        if capacity.sigma:
            seconds *= self._generator.lognormvariate(-(capacity.sigma**2) / 2, capacity.sigma)
        if seconds:
            asyncio.get_running_loop().call_later(seconds, self._end, connection, num_turns)
        else:
            self._end(connection, num_turns)

    def _end(self, connection: _Connection, num_turns: int) -> None:
        connection.reply(self._replies[min(num_turns, len(self._replies) - 1)])
        self._replied_at.append(time.monotonic())
        self._num_busy -= 1
        self._in_flight -= 1
        if self._waiting:
            self._serve(*self._waiting.popleft())

    def stats(self) -> bytes:
        num_calls = max(1, self._num_calls)
        seen = Seen(
            first_request_at=self._first_request_at,
            first_call_at=self._first_call_at,
            replied_at=self._replied_at,
            num_refused=self._num_refused,
            max_in_flight=self._max_in_flight,
            mean_body_bytes=self._num_bytes / num_calls,
            cpu_ms_per_call=1000 * (_cpu_seconds() - self._cpu_seconds_before) / num_calls,
        )
        return json.dumps(asdict(seen)).encode()


class _Connection(asyncio.BufferedProtocol):
    """One client's: bodies go through the buffer of all, which is read before another fills it."""

    buffer = bytearray(_BUFFER_BYTES)
    view = memoryview(buffer)

    def __init__(self, script: _Script) -> None:
        self._script = script
        self._transport: asyncio.Transport | None = None
        self._start()

    def _start(self) -> None:
        self._head = b""
        self._num_bytes = self._num_left = self._num_turns = 0
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.view

    def buffer_updated(self, num_bytes: int) -> None:
        if self._num_left:
            self._take_body(self.buffer, 0, num_bytes)
            return
        start = len(self._head)
        self._head += self.view[:num_bytes]
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            return
        head, self._head = self._head[:end], b""
        if not head.startswith(b"POST"):
            self.reply(_ok(self._script.stats()) if b" /stats " in head else _MODELS)
            return
        self._num_bytes = self._num_left = _content_length(head)
        if end + 4 - start < num_bytes:
            self._take_body(self.buffer, end + 4 - start, num_bytes)

    def _take_body(self, data: bytearray, start: int, end: int) -> None:
        self._num_left -= end - start
        seam = self._tail[-len(_TURN_MARK) + 1 :] + data[start : min(end, start + len(_TURN_MARK) - 1)]
        self._num_turns += data.count(_TURN_MARK, start, end) + seam.count(_TURN_MARK)
        self._tail = (self._tail + data[max(start, end - _PROBE_TAIL_BYTES) : end])[-_PROBE_TAIL_BYTES:]
        if self._num_left > 0:
            return
        assert self._num_left == 0, "a client sent more than it said"
        is_probe = any(mark in self._tail for mark in _PROBE_MARKS)
        num_turns, num_bytes = self._num_turns, self._num_bytes
        self._start()
        self._script.take(self, num_turns, num_bytes, is_probe)

    def reply(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)


def _content_length(head: bytes) -> int:
    _, found, rest = head.lower().partition(b"\r\ncontent-length:")
    assert found, "a request needs a Content-Length"
    return int(rest.partition(b"\r\n")[0])


def _ok(body: bytes, status: bytes = b"200 OK") -> bytes:
    head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (
        status,
        len(body),
    )
    return head + body


def _completion(text: str, finish_reason: str = "stop") -> bytes:
    message = {"role": "assistant", "content": text}
    body = {
        "id": "chatcmpl-benchmark",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [{"index": 0, "finish_reason": finish_reason, "message": message}],
        "usage": {"prompt_tokens": 3000, "completion_tokens": 120, "total_tokens": 3120},
    }
    return _ok(json.dumps(body).encode())


def zoom_text(box: list[int]) -> str:
    """A turn that zooms."""
    call = {"name": "image_zoom_in_tool", "arguments": {"bbox_2d": box}}
    return f"{_PROSE}\n<tool_call>\n{json.dumps(call)}\n</tool_call>"


def _replies(num_turns: int) -> list[bytes]:
    """Of each turn; text calls, so that every client reads the same."""
    zooms = [_completion(zoom_text(box)) for box in BOXES]
    answer = _completion(f"{_PROSE * 2}\n\\boxed{{{ANSWER[0]}, {ANSWER[1]}}}")
    return [*zooms[: num_turns - 1], answer]


_MODELS = _ok(
    json.dumps(
        {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "x"}]}
    ).encode()
)
_PROBED = _completion("OSLO")
_REFUSED = _ok(b'{"error": {"message": "too many requests"}}', b"429 Too Many Requests")


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def _serve(capacity: Capacity) -> None:
    loop = asyncio.get_running_loop()
    script = _Script(capacity)
    server = await loop.create_server(lambda: _Connection(script), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    parent_left = asyncio.Event()

    def wait_for_parent() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(parent_left.set)

    threading.Thread(target=wait_for_parent, daemon=True).start()
    await parent_left.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for item in fields(Capacity):
        parser.add_argument(f"--{item.name}", type=type(item.default), default=item.default)
    asyncio.run(_serve(Capacity(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
