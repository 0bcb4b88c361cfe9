"""One thread's connection to the server: one attempt a call, cut off at its deadline or as the run ends.

What is sent besides the body is asked of the `openai` client once for each server, and what a refusal means
is asked of it as refusals come; what lies between, a request that is answered, goes over a `Wire`. No lock
is taken for it, since a thread that holds one while it waits for the interpreter makes all others wait.

A time-out of a read is none that a server which trickles bytes ever meets. So a watchdog shuts the socket
down at the deadline: the thread that waits on it wakes at once, and the server sees its client leave and
can drop the generation.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import ssl
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import openai

from distil.teacher.wire import (
    IS_POSSIBLE,
    MAX_REPLY_BYTES,
    Received,
    ReplyTooLarge,
    Wire,
    httpx,
    opened,
    unpacked,
)

_CONNECT_SECONDS = 15.0
_IDLE_SECONDS = 3600.0
_PART_BYTES = 2**14  # of a body that is decoded: of 1 MiB of zeros gzip makes 1 KiB
_REDIRECTS = (301, 302, 303, 307, 308)
_READ_TIMEOUT = "x-stainless-read-timeout"
_OWN_FIELDS = ("content-length", "transfer-encoding", "cookie", _READ_TIMEOUT)  # told for each request


class Server:
    """A server as the openai client sees it: the heads of requests to it, what its refusals mean.

    `is_direct`: requests go straight to it, and nobody wants the client's log of them.
    """

    def __init__(self, api_base: str, api_key: str) -> None:
        self.is_direct = IS_POSSIBLE and not _is_proxied(api_base) and not _is_logged()
        self._address = (api_base, api_key)
        self._told: Received | Exception | None = None
        self._asked: Any = None  # a request as the client makes it
        self._heads: dict[str, tuple[Any, bytes]] = {}
        self.tells_read_timeout = False
        self._lock = threading.Lock()

    @cached_property
    def tls(self) -> ssl.SSLContext | None:
        """How certificates are checked, as the HTTP library does it; None without TLS."""
        api_base, _ = self._address
        if urllib.parse.urlsplit(api_base).scheme != "https":
            return None
        context: ssl.SSLContext = httpx.create_ssl_context(trust_env=not is_loopback(api_base))
        context.set_alpn_protocols(["http/1.1"])
        return context

    def client(self, **options: Any) -> openai.OpenAI:
        """A new openai client of the server; `options` are its HTTP client's."""
        api_base, api_key = self._address
        options.setdefault("trust_env", not is_loopback(api_base))  # no proxy to this very machine
        hooks = {"response": [_limit_size], **options.pop("event_hooks", {})}
        http_client = openai.DefaultHttpxClient(event_hooks=hooks, **options)
        return openai.OpenAI(base_url=api_base, api_key=api_key, max_retries=0, http_client=http_client)

    def head(self, path: str, has_body: bool) -> tuple[Any, bytes]:
        """The URL of the requests for a path, and their head without what differs from one to the next."""
        if path not in self._heads:
            with self._lock:
                self._tell(path, has_body, Received(200, [], b""))
                self.tells_read_timeout = _READ_TIMEOUT in self._asked.headers
                self._heads[path] = self._asked.url, _head(self._asked)
        return self._heads[path]

    def judged(self, path: str, has_body: bool, told: Received | Exception) -> bytes:
        """The body of a reply as the client decodes it, or the error that it makes of it or of a failure."""
        with self._lock:
            return self._tell(path, has_body, told)

    def _tell(self, path: str, has_body: bool, told: Received | Exception) -> bytes:
        self._told = told
        try:
            return asked_by(self._client, path, b"" if has_body else None, 1.0)
        finally:
            self._told = None  # with an error's traceback it would keep the request's pictures

    @cached_property
    def _client(self) -> openai.OpenAI:
        return self.client(transport=self, follow_redirects=False)

    def handle_request(self, request: Any) -> Any:
        """As the transport of the client: no request leaves, and the answer is what was told already."""
        self._asked = request
        if not isinstance(self._told, Received):
            raise self._told or RuntimeError
        return httpx.Response(self._told.status, headers=self._told.fields, content=_parts(self._told.body))

    def close(self) -> None:
        """As the transport of a client."""


class Connection:
    """A connection that one thread uses, and that any thread may cut off."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._wire: Wire | None = None
        self._socket: socket.socket | None = None  # that was opened last
        self._cookies: Any = None
        self._cookie: str | None = None
        self._is_direct = server.is_direct
        # What several threads look at is written before the other thread's is read, by each of them.
        self._in_flight = self.is_cut = self._is_closed = False

    def ask(self, path: str, pieces: Sequence[bytes], seconds: float) -> bytes:
        """Send a JSON body, or read a document where there are no pieces.

        Raises what openai raises, ReplyTooLarge, or ConnectionAbortedError if closed.
        """
        with self._request():
            if self._is_direct:
                told = self._received(path, pieces, seconds)
                if isinstance(told, Received) and told.status == 200 and (body := unpacked(told)) is not None:
                    return body
                if not (isinstance(told, Received) and told.status in _REDIRECTS and told.value(b"location")):
                    return self._server.judged(path, bool(pieces), told)
                self._is_direct = False
            return asked_by(self._client, path, b"".join(pieces) if pieces else None, seconds)

    def cut(self) -> None:
        """Break off the request in flight, from any thread; the caller sees to it that it is still that."""
        self.is_cut = True
        _shut_down(self._socket)

    def mend(self) -> None:
        """Take requests again after a cut, by its own thread."""
        self.is_cut = self._is_closed

    def close(self) -> None:
        """Break off what is in flight and take no more requests, from any thread."""
        self._is_closed = True
        if self._in_flight:  # its own thread closes: a descriptor may be taken anew while it is waited on
            self.cut()
        else:
            self._release()

    @contextlib.contextmanager
    def _request(self) -> Iterator[None]:
        self._in_flight = True
        try:
            if self._is_closed:
                raise ConnectionAbortedError("closed")
            yield
        finally:
            self._in_flight = False
            if self._is_closed:
                self._release()

    def _received(self, path: str, pieces: Sequence[bytes], seconds: float) -> Received | Exception:
        """What came, or the error that the HTTP library would have raised."""
        try:
            url, head = self._server.head(path, bool(pieces))
            wire = self._free_wire(url, min(seconds, _CONNECT_SECONDS))
            try:
                received = wire.ask((head + self._own_fields(sum(map(len, pieces)), seconds), *pieces))
            finally:
                if self.is_cut or not wire.is_idle:
                    self._wire = None
                    wire.close()
            if self.is_cut:
                raise httpx.ReadError("cut off")  # what ends with its connection may look whole
        except httpx.TransportError as error:
            return error  # type: ignore[no-any-return]
        if received.value(b"set-cookie") is not None:
            self._keep_cookies(url, received)
        return received

    def _own_fields(self, num_bytes: int, seconds: float) -> bytes:
        """The end of the head of a request with so many bytes of body."""
        fields = b"Content-Length: %d\r\n" % num_bytes if num_bytes else b""
        if self._server.tells_read_timeout:
            fields += f"{_READ_TIMEOUT}: {seconds:.3f}\r\n".encode()
        if self._cookie:
            fields += f"Cookie: {self._cookie}\r\n".encode("latin-1")
        return fields + b"\r\n"

    def _free_wire(self, url: Any, seconds: float) -> Wire:
        if self._wire is not None and self._wire.is_stale():
            self._wire.close()
            self._wire = None
        if self._wire is None:
            host, port = url.raw_host.decode(), url.port or (443 if url.scheme == "https" else 80)
            self._wire = opened(host, port, self._server.tls, seconds, self._show)
        return self._wire

    def _show(self, sock: socket.socket) -> None:
        """Have a new socket cut off as well, at once where the deadline passed before it was there."""
        self._socket = sock
        if self.is_cut:
            _shut_down(sock)
            raise ConnectionAbortedError("cut off")

    def _keep_cookies(self, url: Any, received: Received) -> None:
        """Take in cookies, by which a balancer may know this connection's server again."""
        self._cookies = self._cookies or httpx.Cookies()
        request = httpx.Request("GET", url)
        self._cookies.extract_cookies(
            httpx.Response(received.status, headers=received.fields, request=request)
        )
        with contextlib.suppress(UnicodeError):  # one that is not ASCII: the reply is good without it
            self._cookies.set_cookie_header(request)
        self._cookie = request.headers.get("cookie")

    @cached_property
    def _client(self) -> openai.OpenAI:
        """A client with the HTTP library's own transport: for proxies, redirects and its log."""
        return self._server.client(event_hooks={"request": [self._watch_socket]})

    def _watch_socket(self, request: Any) -> None:
        request.extensions["trace"] = self._on_event

    def _on_event(self, name: str, info: dict[str, Any]) -> None:
        if name.endswith(("connect_tcp.complete", "start_tls.complete")):
            sock = info["return_value"].get_extra_info("socket")
            if sock is not None:
                self._socket = sock
                if self.is_cut:  # the deadline passed while it connected
                    _shut_down(sock)

    def _release(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()
        if "_client" in self.__dict__:
            self._client.close()


class Watchdog:
    """Cuts connections at their deadlines; one thread for all of them, started when it is first needed.

    Who takes a deadline out of the dictionary, the connection's own thread or the watchdog, has it: a cut
    never meets the request after. The lock is taken only where one of them has to wait for the other.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._deadlines: dict[tuple[Connection, float], None] = {}  # with when: the next request's is another
        self._thread: threading.Thread | None = None
        self._wakes_at = math.inf  # a deadline that is added while the thread looks through them wakes it
        self._is_closed = False

    @property
    def num_watched(self) -> int:
        """How many requests are in flight."""
        return len(self._deadlines)

    @contextlib.contextmanager
    def watching(self, connection: Connection, seconds: float) -> Iterator[None]:
        """Cut the connection if the block takes longer; `is_cut` tells, until it is watched again."""
        connection.mend()
        deadline = connection, time.monotonic() + seconds
        self._deadlines[deadline] = None
        if deadline[1] < self._wakes_at:
            self._wake()
        try:
            yield
        finally:
            if self._deadlines.pop(deadline, deadline) is not None:
                with self._changed:  # until the cut is done
                    pass

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="teacher-watchdog", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _run(self) -> None:
        with self._changed:
            while not self._is_closed:
                self._wakes_at = math.inf  # before they are listed, so that none is missed
                now = time.monotonic()
                deadlines = self._deadlines.copy()
                for deadline in deadlines:
                    if deadline[1] <= now and self._deadlines.pop(deadline, deadline) is None:
                        deadline[0].cut()
                left = [at for _, at in deadlines if at > now]
                self._wakes_at = min(left, default=now + _IDLE_SECONDS)
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


def asked_by(client: openai.OpenAI, path: str, body: bytes | None, seconds: float) -> bytes:
    """The body of what a client gets: for a JSON body, or a document where there is none."""
    timeout = openai.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS))
    if body is None:
        return client.get(path, cast_to=bytes, options={"timeout": timeout})
    headers = {"Content-Type": "application/json"}
    return client.post(path, cast_to=bytes, content=body, options={"headers": headers, "timeout": timeout})


def _head(request: Any) -> bytes:
    fields = request.headers.raw
    if any(mark in text for field in fields for text in field for mark in (b"\r", b"\n", b"\0")):
        raise httpx.LocalProtocolError("Illegal header value")
    lines = [b"%s %s HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    lines += [b"%s: %s" % field for field in fields if field[0].lower().decode() not in _OWN_FIELDS]
    return b"\r\n".join(lines) + b"\r\n"


def _is_proxied(api_base: str) -> bool:
    """Whether a proxy of the environment may apply; in doubt it does, and the HTTP library looks closer."""
    proxies = urllib.request.getproxies()
    parts = urllib.parse.urlsplit(api_base)
    if is_loopback(api_base) or not any(proxies.get(scheme) for scheme in (parts.scheme, "all")):
        return False
    host = parts.hostname or ""
    exempt = [name.strip().lower() for name in proxies.get("no", "").split(",") if name.strip()]
    return not any(name in ("*", host) or host.endswith("." + name.lstrip(".")) for name in exempt)


def _is_logged() -> bool:
    """Whether the client's log of its requests is wanted (`OPENAI_LOG`)."""
    names = (openai.__name__, httpx.__name__)
    return any(logging.getLogger(name).isEnabledFor(logging.INFO) for name in names)


def _parts(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), _PART_BYTES):
        yield body[start : start + _PART_BYTES]


def _limit_size(response: Any) -> None:
    """Make the response, an error too, stop being read where it grows too large."""
    read_chunks = response.iter_bytes

    def limited(*arguments: Any) -> Iterator[bytes]:
        num_bytes = 0
        for chunk in read_chunks(*arguments):
            num_bytes += len(chunk)
            if num_bytes > MAX_REPLY_BYTES:
                raise ReplyTooLarge
            yield chunk

    response.iter_bytes = limited  # what `read` reads by; a limit of the client's own does not exist


def _shut_down(sock: Any) -> None:
    if sock is not None:
        with contextlib.suppress(OSError):  # closed by its own thread already
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # of the TCP connection below TLS too
