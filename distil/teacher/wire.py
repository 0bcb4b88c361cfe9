"""HTTP/1.1 on one socket: a request in one send, its reply in as few reads as the server's writes allow.

Every send, read and poll lets go of the interpreter's lock, which a thread among many waits for to get back.
Errors are those of the openai client's HTTP library, in the words that it has for them.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import select
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import openai

MAX_REPLY_BYTES = 16 * 2**20
_HTTP_LIBRARY = openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0]  # httpx, or its successor
httpx: Any = importlib.import_module(_HTTP_LIBRARY)

IS_POSSIBLE = hasattr(socket.socket, "sendmsg") and hasattr(select, "poll")  # not on Windows
_READ_BYTES = 2**16
_MAX_HEAD_BYTES = 100 * 2**10
_MAX_LINE_BYTES = 2**16  # between chunks
_MAX_BUFFERS = 512  # of one send: half of what Linux takes
_TLS_BYTES = 2**14  # of a record
_HEAD_END = re.compile(rb"\n\r?\n")
_STATUS_LINE = re.compile(rb"HTTP/(1\.[01]) ([1-9][0-9]{2})(?: [^\0\r]*)?\r?")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([^\0\r]*)\r?")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")
_GZIP_WINDOW = 31  # zlib's word for gzip


class ReplyTooLarge(openai.OpenAIError):
    """A reply went on beyond MAX_REPLY_BYTES and was not read to its end."""

    def __init__(self) -> None:
        super().__init__(f"the reply is larger than {MAX_REPLY_BYTES // 2**20} MiB")


class Received(NamedTuple):
    """A whole reply, its body as it was sent but for chunks."""

    status: int
    fields: list[tuple[bytes, bytes]]  # of the head, names in lower case
    body: bytes

    def value(self, name: bytes) -> bytes | None:
        """A header's values, joined by commas; None where it has none."""
        return b",".join(values) if (values := [text for key, text in self.fields if key == name]) else None


class Wire:
    """An open connection, used by one thread; `is_idle` while the next request may go over it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._data, self._at = b"", 0  # what was read, and how far it was used
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self.is_idle = True

    def is_stale(self) -> bool:
        """Whether the server has closed an idle connection, or said something without being asked."""
        return bool(self._poll.poll(0))

    def ask(self, pieces: Sequence[bytes]) -> Received:
        """Send a request, head and body, and read the reply; raises ReplyTooLarge and errors of `httpx`."""
        self.is_idle = False
        with contextlib.suppress(OSError):  # a server may refuse a request before it has read all of it
            self._send(pieces)
        try:
            return self._receive()
        except OSError as error:
            raise httpx.ReadError(str(error)) from None

    def close(self) -> None:
        """Close the socket."""
        self.is_idle = False
        self._sock.close()

    def _send(self, pieces: Sequence[bytes]) -> None:
        if isinstance(self._sock, ssl.SSLSocket):
            for record in _records(pieces):
                self._sock.sendall(record)
            return
        for start in range(0, len(pieces), _MAX_BUFFERS):
            buffers = pieces[start : start + _MAX_BUFFERS]
            num_left = sum(map(len, buffers)) - self._sock.sendmsg(buffers)
            if num_left:  # rare: a socket that blocks takes all
                self._sock.sendall(memoryview(b"".join(buffers))[-num_left:])

    def _receive(self) -> Received:
        while True:
            version, status, fields = self._read_head()
            if status >= 200:
                break
            if status == 101:
                raise httpx.RemoteProtocolError("the server changed to another protocol")
        received = Received(status, fields, b"")
        codings, length = received.value(b"transfer-encoding"), received.value(b"content-length")
        is_kept = version == b"1.1" and b"close" not in _tokens(received.value(b"connection"))
        if status in (204, 304):
            body = b""
        elif codings is not None:
            if codings.lower() != b"chunked":
                raise httpx.RemoteProtocolError(f"cannot read the transfer encoding {codings!r}")
            body = self._read_chunks()
            is_kept = is_kept and length is None
        elif length is not None:
            body = self._read_body(_content_length(length))
        else:
            body, is_kept = self._read_to_end(), False
        self.is_idle = is_kept and self._at == len(self._data)
        self._data, self._at = b"", 0
        return received._replace(body=body)

    def _read_head(self) -> tuple[bytes, int, list[tuple[bytes, bytes]]]:
        """The version, the status and the header fields of the next head."""
        searched = self._at
        while (end := _HEAD_END.search(self._data, searched)) is None:
            num_bytes = len(self._data) - self._at
            if num_bytes > _MAX_HEAD_BYTES:
                raise httpx.RemoteProtocolError("the head of the reply is too long")
            if not self._read_more():
                text = "a whole head" if num_bytes else "sending a response"
                raise httpx.RemoteProtocolError(f"Server disconnected without {text}.")
            searched = max(0, num_bytes - 2)
        first, *lines = self._data[self._at : end.start()].split(b"\n")
        self._at = end.end()
        status = _STATUS_LINE.fullmatch(first)
        if status is None:
            raise httpx.RemoteProtocolError(f"illegal status line: {first[:80]!r}")
        return status[1], int(status[2]), list(_fields(lines))

    def _read_body(self, num_bytes: int) -> bytes:
        if num_bytes > MAX_REPLY_BYTES:
            raise ReplyTooLarge
        parts: list[bytes] = []
        num_left = num_bytes
        while True:
            if part := self._data[self._at : self._at + num_left]:
                self._at += len(part)
                parts.append(part)
                num_left -= len(part)
            if num_left == 0:
                return b"".join(parts)  # of one part it is that part
            if not self._read_more(num_left):
                raise httpx.RemoteProtocolError(
                    "peer closed connection without sending complete message body "
                    f"(received {num_bytes - num_left} bytes, expected {num_bytes})"
                )

    def _read_chunks(self) -> bytes:
        parts: list[bytes] = []
        num_left = MAX_REPLY_BYTES
        while True:
            size = _CHUNK_SIZE.fullmatch(line := self._read_line())
            if size is None:
                raise httpx.RemoteProtocolError(f"illegal chunk header: {line[:80]!r}")
            num_bytes = int(size[1], 16)
            num_left -= num_bytes
            if num_left < 0:
                raise ReplyTooLarge
            if num_bytes == 0:
                break
            parts.append(self._read_body(num_bytes))
            if self._read_body(2) != b"\r\n":
                raise httpx.RemoteProtocolError("a chunk is longer than its header says")
        while self._read_line().strip(b"\r\n"):  # trailers
            pass
        return b"".join(parts)

    def _read_line(self) -> bytes:
        while (end := self._data.find(b"\n", self._at)) < 0:
            if len(self._data) - self._at > _MAX_LINE_BYTES:
                raise httpx.RemoteProtocolError("a line between chunks is too long")
            if not self._read_more():
                raise httpx.RemoteProtocolError(
                    "peer closed connection without sending complete message body (incomplete chunked read)"
                )
        line = self._data[self._at : end + 1]
        self._at = end + 1
        return line

    def _read_to_end(self) -> bytes:
        parts: list[bytes] = []
        num_bytes = 0
        while True:
            parts.append(self._data[self._at :])
            self._at = len(self._data)
            num_bytes += len(parts[-1])
            if num_bytes > MAX_REPLY_BYTES:
                raise ReplyTooLarge
            if not self._read_more():
                return b"".join(parts)

    def _read_more(self, num_bytes: int = 0) -> bool:
        """Read on, behind what was not used yet; False at the end of the connection."""
        data = self._sock.recv(min(max(_READ_BYTES, num_bytes), 2**20))
        self._data, self._at = self._data[self._at :] + data, 0
        return bool(data)


def opened(
    host: str, port: int, tls: ssl.SSLContext | None, seconds: float, show: Callable[[socket.socket], None]
) -> Wire:
    """A connection to a server, made within so many seconds; raises errors of `httpx`.

    `show` is given each socket before anything is waited for on it, so that another thread may shut it down.
    """
    until = time.monotonic() + seconds
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for number, (family, kind, protocol, _, address) in enumerate(addresses, 1):
            sock = socket.socket(family, kind, protocol)
            try:
                show(sock)
                sock.settimeout(max(0.001, until - time.monotonic()))
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if tls is not None:
                    sock = _secured(sock, tls, host, show)
                sock.settimeout(None)  # a watchdog keeps the deadline; this one would poll before each read
                return Wire(sock)
            except OSError:
                sock.close()
                if number == len(addresses):
                    raise
    except TimeoutError as error:
        raise httpx.ConnectTimeout(str(error)) from None
    except (OSError, UnicodeError) as error:
        raise httpx.ConnectError(str(error)) from None
    raise httpx.ConnectError(f"no address of {host}")


def _secured(
    sock: socket.socket, tls: ssl.SSLContext, host: str, show: Callable[[socket.socket], None]
) -> socket.socket:
    """The connection with TLS above it; it can be shut down in the handshake too."""
    with sock.dup() as handle:  # the handshake takes the socket itself away
        show(handle)
        secured = tls.wrap_socket(sock, server_hostname=host)
        show(secured)
    return secured


def unpacked(received: Received) -> bytes | None:
    """The body of a reply without its content coding, None where that is not a whole gzip or none."""
    coding = received.value(b"content-encoding")
    if coding is None:
        return received.body
    if coding.strip().lower() != b"gzip":
        return None
    unzip = zlib.decompressobj(_GZIP_WINDOW)
    try:
        body = unzip.decompress(received.body, MAX_REPLY_BYTES + 1)
    except zlib.error:
        return None
    if len(body) > MAX_REPLY_BYTES:
        raise ReplyTooLarge
    return body if unzip.eof else None


def _records(pieces: Sequence[bytes]) -> Iterator[bytes]:
    """The same bytes with small pieces joined: for TLS each is encrypted and sent alone."""
    small: list[bytes] = []
    num_bytes = 0
    for piece in pieces:
        if small and num_bytes + len(piece) > _TLS_BYTES:
            yield b"".join(small)
            small, num_bytes = [], 0
        if len(piece) > _TLS_BYTES:
            yield piece
        else:
            small.append(piece)
            num_bytes += len(piece)
    if small:
        yield b"".join(small)


def _fields(lines: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The header fields of a head's lines; a line that begins with a space goes on from the one before."""
    unfolded: list[bytes] = []
    for line in lines:
        if line[:1] in (b" ", b"\t") and unfolded:
            unfolded[-1] = unfolded[-1].rstrip(b"\r") + b" " + line.strip(b" \t")
        else:
            unfolded.append(line)
    for line in unfolded:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise httpx.RemoteProtocolError(f"illegal header line: {line[:80]!r}")
        yield field[1].lower(), field[2].strip(b" \t")


def _tokens(value: bytes | None) -> list[bytes]:
    return [] if value is None else [token.strip().lower() for token in value.split(b",")]


def _content_length(value: bytes) -> int:
    (length, *others) = set(_tokens(value))
    if others or not re.fullmatch(rb"[0-9]{1,20}", length):
        raise httpx.RemoteProtocolError(f"illegal Content-Length: {value[:80]!r}")
    return int(length)
