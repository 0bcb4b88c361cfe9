"""A real server on a raw socket that does to each request what its schedule says, down to the byte."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable

from scripted_teacher import says

Fault = Callable[["Exchange"], None]


class Exchange:
    """One request: what was asked, and the socket to answer on."""

    def __init__(self, server: FaultServer, sock: socket.socket, request: bytes) -> None:
        self.server = server
        self.sock = sock
        self.request = request
        self.is_whole = False  # a whole reply was sent: the connection can be used again

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def reply(self, status: int, body: bytes, headers: str = "") -> None:
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self.send((head + headers + "\r\n").encode() + body)
        self.is_whole = True

    def await_disconnect(self, seconds: float) -> bool:
        """Whether the client leaves within so many seconds; noted by the server."""
        self.sock.settimeout(seconds)
        with contextlib.suppress(TimeoutError):
            gone = False
            with contextlib.suppress(ConnectionError):
                gone = self.sock.recv(1) == b""
            self.server.disconnects.append(time.monotonic())
            return gone
        return False


class FaultServer:
    """`with FaultServer(reset, ok) as server:` does the first to the first request; the last one lasts.

    `choose` takes the place of the schedule: it is given each request and says what to do to it.
    """

    def __init__(
        self, *schedule: Fault, port: int = 0, choose: Callable[[bytes], Fault] | None = None
    ) -> None:
        self.schedule = schedule
        self.choose = choose
        self.arrivals: list[float] = []
        self.requests: list[bytes] = []
        self.disconnects: list[float] = []
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.api_base = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> FaultServer:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        self._open.add(sock)
        with sock, contextlib.suppress(OSError):
            while request := _read_request(sock):
                with self._lock:
                    fault = self._next_fault(request)
                    self.arrivals.append(time.monotonic())
                exchange = Exchange(self, sock, request)
                fault(exchange)
                if not exchange.is_whole:
                    return

    def _next_fault(self, request: bytes) -> Fault:
        if self.choose is not None:
            return self.choose(request)
        self.requests.append(request)
        return self.schedule[min(len(self.requests), len(self.schedule)) - 1]


def _read_request(sock: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = sock.recv(65536)
        if not chunk:
            return b""
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    length = int(lengths[0].split(b":")[1]) if lengths else 0
    while len(body) < length:
        body += sock.recv(65536)
    return body or head


ANSWER = json.dumps(says("hi")).encode()


def ok(exchange: Exchange) -> None:
    exchange.reply(200, ANSWER)


def reset(exchange: Exchange) -> None:
    """RST instead of a reply."""
    exchange.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    exchange.sock.close()


def hang_up(exchange: Exchange) -> None:
    exchange.sock.shutdown(socket.SHUT_RDWR)


def truncated(exchange: Exchange) -> None:
    """Half of the body that the head promises."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(ANSWER)}\r\n\r\n"
    exchange.send(head.encode() + ANSWER[: len(ANSWER) // 2])


def reset_in_body(exchange: Exchange) -> None:
    truncated(exchange)
    reset(exchange)


def garbage(exchange: Exchange) -> None:
    exchange.reply(200, b"<html>\xff\xfe upstream</html>")


def half_json(exchange: Exchange) -> None:
    exchange.reply(200, ANSWER[: len(ANSWER) // 2])


def not_utf8(exchange: Exchange) -> None:
    exchange.reply(200, ANSWER.replace(b'"hi"', b'"\xff\xe9"'))


def no_http(exchange: Exchange) -> None:
    exchange.send(b"\x00\x01 this is no HTTP\r\n\r\n")


def empty_choices(exchange: Exchange) -> None:
    exchange.reply(200, json.dumps(says("hi") | {"choices": []}).encode())


def bad_gzip(exchange: Exchange) -> None:
    exchange.reply(200, b"no gzip at all", "Content-Encoding: gzip\r\n")


def stall(exchange: Exchange) -> None:
    """No byte, until the client leaves."""
    exchange.await_disconnect(30)


def trickle_body(exchange: Exchange) -> None:
    exchange.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
    _trickle(exchange, b" ")


def trickle_head(exchange: Exchange) -> None:
    exchange.send(b"HTTP/1.1 200 OK\r\nX-Long: ")
    _trickle(exchange, b"x")


def trickle_error(exchange: Exchange) -> None:
    exchange.send(b"HTTP/1.1 500 Oh\r\nContent-Length: 100000\r\n\r\n")
    _trickle(exchange, b"e")


def _trickle(exchange: Exchange, byte: bytes) -> None:
    for _ in range(1000):
        exchange.send(byte)
        if exchange.await_disconnect(0.03):
            return


def endless(status: int, by_chunks: bool) -> Fault:
    """A body that goes on for 64 MiB unless the client leaves."""

    def fault(exchange: Exchange) -> None:
        length = "Transfer-Encoding: chunked" if by_chunks else f"Content-Length: {64 * 2**20}"
        exchange.send(f"HTTP/1.1 {status} X\r\n{length}\r\n\r\n".encode())
        block = b"x" * 2**20
        for sent in range(64):
            exchange.send(b"100000\r\n" + block + b"\r\n" if by_chunks else block)
            exchange.server.sent_mib = sent + 1  # type: ignore[attr-defined]

    return fault


class Status:
    """A refusal with a status, perhaps headers and a message."""

    def __init__(self, status: int, headers: str = "", error: dict[str, object] | None = None) -> None:
        self.status = status
        self.headers = headers
        self.error = error or {"message": f"scripted {status}"}

    def __call__(self, exchange: Exchange) -> None:
        exchange.reply(self.status, json.dumps({"error": self.error}).encode(), self.headers)
