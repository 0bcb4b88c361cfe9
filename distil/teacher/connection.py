"""One thread's connection to the server: one attempt a call, cut off at its deadline or as the run ends.

A time-out of the HTTP client is one of each read, which a server that trickles bytes never meets. So a
watchdog shuts the socket down at the deadline: the thread that waits on it wakes at once, and the server
sees its client leave and can drop the generation.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import openai

MAX_REPLY_BYTES = 16 * 2**20
_CONNECT_SECONDS = 15.0
_IDLE_SECONDS = 3600.0


class ReplyTooLarge(openai.OpenAIError):
    """A reply went on beyond MAX_REPLY_BYTES and was not read to its end."""


class Connection:
    """An openai client that one thread uses, and that any thread may cut off."""

    def __init__(self, api_base: str, api_key: str) -> None:
        http_client = openai.DefaultHttpxClient(
            trust_env=not is_loopback(api_base),  # requests to this very machine never go through a proxy
            event_hooks={"request": [self._watch_socket], "response": [_limit_size]},
        )
        self._client = openai.OpenAI(
            base_url=api_base, api_key=api_key, max_retries=0, http_client=http_client
        )
        self._lock = threading.Lock()
        self._stream: Any = None  # the network stream that was opened last
        self._in_flight = self._is_cut = self._is_closed = False

    def post(self, path: str, body: bytes, seconds: float) -> bytes:
        """Send a JSON body; raises what openai raises, ReplyTooLarge, or ConnectionAbortedError if closed."""
        headers = {"Content-Type": "application/json"}
        with self._request():
            return self._client.post(
                path, cast_to=bytes, content=body, options={"headers": headers, "timeout": _timeout(seconds)}
            )

    def get(self, path: str, seconds: float) -> bytes:
        """Read a document; raises as `post` does."""
        with self._request():
            return self._client.get(path, cast_to=bytes, options={"timeout": _timeout(seconds)})

    def cut(self) -> None:
        """Break off the request in flight, from any thread."""
        with self._lock:
            if self._in_flight:
                self._is_cut = True
                _shut_down(self._stream)

    def close(self) -> None:
        """Break off what is in flight and take no more requests, from any thread."""
        self.cut()
        with self._lock:
            self._is_closed = True
            if self._in_flight:  # its own thread closes: a descriptor may be taken anew while it is waited on
                return
        self._client.close()

    @contextlib.contextmanager
    def _request(self) -> Iterator[None]:
        with self._lock:
            if self._is_closed:
                raise ConnectionAbortedError("closed")
            self._in_flight, self._is_cut = True, False
        try:
            yield
        finally:
            with self._lock:
                self._in_flight = False
                is_closed = self._is_closed
            if is_closed:
                self._client.close()

    def _watch_socket(self, request: Any) -> None:
        request.extensions["trace"] = self._on_event

    def _on_event(self, name: str, info: dict[str, Any]) -> None:
        if not name.endswith(("connect_tcp.complete", "start_tls.complete")):
            return
        with self._lock:
            self._stream = info["return_value"]
            if self._is_cut:  # the deadline passed while it connected
                _shut_down(self._stream)


@dataclass(eq=False, slots=True)
class Watch:
    """One attempt's deadline; `has_passed` once its connection was cut for it."""

    connection: Connection
    at: float
    has_passed: bool = False


class Watchdog:
    """Cuts connections at their deadlines; one thread for all of them, started when it is first needed."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watches: set[Watch] = set()
        self._thread: threading.Thread | None = None
        self._wakes_at = 0.0
        self._is_closed = False

    @contextlib.contextmanager
    def watching(self, connection: Connection, seconds: float) -> Iterator[Watch]:
        """Cut the connection if the block takes longer."""
        watch = Watch(connection, time.monotonic() + seconds)
        with self._changed:
            self._watches.add(watch)
            self._wake_for(watch)
        try:
            yield watch
        finally:
            with self._changed:
                self._watches.discard(watch)

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _wake_for(self, watch: Watch) -> None:
        if self._thread is None:
            self._wakes_at = watch.at
            self._thread = threading.Thread(target=self._run, name="teacher-watchdog", daemon=True)
            self._thread.start()
        elif watch.at < self._wakes_at:
            self._changed.notify_all()

    def _run(self) -> None:
        with self._changed:
            while not self._is_closed:
                now = time.monotonic()
                for watch in [watch for watch in self._watches if watch.at <= now]:
                    watch.has_passed = True
                    watch.connection.cut()
                    self._watches.discard(watch)
                self._wakes_at = min((watch.at for watch in self._watches), default=now + _IDLE_SECONDS)
                self._changed.wait(max(0.0, min(self._wakes_at - now, _IDLE_SECONDS)))


def shown_url(api_base: str) -> str:
    """A server's address as it may be shown and stored: without user name, password and query."""
    parts = urllib.parse.urlsplit(api_base)
    host = parts.netloc.rpartition("@")[2]
    return urllib.parse.urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))


def is_loopback(api_base: str) -> bool:
    """Whether an address is on this very machine."""
    host = urllib.parse.urlsplit(api_base).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _timeout(seconds: float) -> openai.Timeout:
    return openai.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS))


def _limit_size(response: Any) -> None:
    """Make the response, an error too, stop being read where it grows too large."""
    read_chunks = response.iter_bytes

    def limited(*arguments: Any) -> Iterator[bytes]:
        num_bytes = 0
        for chunk in read_chunks(*arguments):
            num_bytes += len(chunk)
            if num_bytes > MAX_REPLY_BYTES:
                raise ReplyTooLarge(f"the reply is larger than {MAX_REPLY_BYTES // 2**20} MiB")
            yield chunk

    response.iter_bytes = limited  # what `read` reads by; a limit of the client's own does not exist


def _shut_down(stream: Any) -> None:
    sock = stream.get_extra_info("socket") if stream is not None else None
    if sock is not None:
        with contextlib.suppress(OSError):  # closed by its own thread already
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # of the TCP connection below TLS too
