"""HTTP as servers really speak it: what reaches them, how their replies are read, when a connection is used again."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import socket
import ssl
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_teacher import says
from test_attempts import wait_for
from test_teacher import KEY, MESSAGES, settings

from distil.errors import RunHalted, TeacherError
from distil.spending.budget import Budget
from distil.teacher import wire
from distil.teacher.availability import NEVER
from distil.teacher.client import Teacher
from distil.teacher.connection import Connection
from distil.teacher.wire import MAX_REPLY_BYTES, Received, ReplyTooLarge, Wire, httpx

CERTIFICATE = Path(__file__).parent / "tls_of_localhost.pem"  # its own authority, of localhost and 0.0.0.0
ANYWHERE = "0.0.0.0"  # leads to this machine, but is none of its names: no proxy is left out for it
ANSWER = json.dumps(says("hi")).encode()
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
    len(ANSWER),
    ANSWER,
)


def reply(body: bytes, status: int = 200, **fields: str) -> bytes:
    """A whole reply; fields have `_` for `-`."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


class RawServer:
    """Answers each request with the bytes that `answer` gives; keeps what came, connection by connection.

    `answer` gets the number of the request and the request; None closes the connection instead.
    """

    def __init__(
        self, answer: Callable[[int, bytes], bytes | None], host: str = "127.0.0.1", tls: bool = False
    ) -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self.connections: list[list[bytes]] = []
        self.stays_open = True
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if tls else None
        if self._tls is not None:
            self._tls.load_cert_chain(CERTIFICATE)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=64)
        shown = f"[{host}]" if ":" in host else host
        self.netloc = f"{shown}:{self._listener.getsockname()[1]}"
        self.api_base = f"http{'s' if tls else ''}://{self.netloc}/v1"

    def __enter__(self) -> RawServer:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
            self.connections.append(mine := [])
            with sock, sock.makefile("rb") as stream:
                while request := read_request(stream):
                    mine.append(request)
                    self.requests.append(request)
                    answer = self.answer(len(self.requests), request)
                    if answer is None:
                        return
                    sock.sendall(answer)
                    if not self.stays_open:
                        return


def read_request(stream: Any) -> bytes:
    """One request, head and body; nothing at the end of the connection."""
    head = b""
    while (line := stream.readline()) not in (b"\r\n", b""):
        head += line
    if not line:
        return b""
    lengths = [text for text in head.lower().splitlines() if text.startswith(b"content-length:")]
    return bytes(head + line + stream.read(int(lengths[0].split(b":")[1]) if lengths else 0))


def fields_of(request: bytes) -> dict[str, str]:
    """A request's line, by the name "", and its header fields, by names in lower case."""
    first, *lines = request.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    return {"": first} | {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }


def always(answer: bytes) -> Callable[[int, bytes], bytes]:
    return lambda *_: answer


def asked(api_base: str, **changes: Any) -> str:
    """What a teacher that is asked once says."""
    with Teacher(settings(api_base, **changes)) as teacher:
        return teacher.ask(MESSAGES, 7).content


# --- a reply is read as the standard library reads it


def read(data: bytes, is_closed: bool = True) -> tuple[Received, Wire]:
    """A reply as the wire reads it, from a server that sends these bytes, and perhaps closes."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(data)
        if is_closed:
            theirs.shutdown(socket.SHUT_WR)
        one = Wire(ours)
        try:
            return one.ask((b"GET / HTTP/1.1\r\n\r\n",)), one
        finally:
            ours.close()


def in_chunks(body: bytes, sizes: list[int], trailer: bytes) -> bytes:
    """A body in chunks of these sizes, over and over."""
    data, at, number = b"", 0, 0
    while at < len(body):
        part = body[at : at + sizes[number % len(sizes)]]
        data += b"%x%s\r\n%s\r\n" % (len(part), b";a=b" if number % 2 else b"", part)
        at, number = at + len(part), number + 1
    return data + b"0\r\n" + trailer + b"\r\n"


@st.composite
def replies(draw: st.DrawFn) -> bytes:
    """Replies of any framing, perhaps after interim ones."""
    body = draw(st.binary(max_size=60))
    end = draw(st.sampled_from([b"\r\n", b"\n"]))
    interim = draw(st.sampled_from([b"", b"HTTP/1.1 100 Continue" + end + b"A: b" + end + end]))
    status = draw(st.sampled_from([b"200 OK", b"200", b"500 Internal Server Error", b"429 \xc3\xa4"]))
    more = draw(st.sampled_from([b"", b"X: y" + end, b"Set-Cookie: a=b" + end + b"Set-Cookie: c" + end]))
    head = interim + draw(st.sampled_from([b"HTTP/1.1 ", b"HTTP/1.0 "])) + status + end + more
    framing = draw(st.sampled_from(["length", "chunks", "close"]))
    if framing == "length":
        return head + b"content-length: %d" % len(body) + end + end + body
    if framing == "chunks":
        sizes = draw(st.lists(st.integers(1, 20), min_size=1, max_size=3))
        trailer = draw(st.sampled_from([b"", b"T: u\r\n"]))
        return head + b"Transfer-Encoding: Chunked" + end + end + in_chunks(body, sizes, trailer)
    return head + end + body


@given(replies(), st.integers(1, 200))
def test_any_reply_in_any_pieces_is_what_the_standard_library_reads(data: bytes, read_bytes: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        expected = http.client.HTTPResponse(ours)
        expected.begin()
        body = expected.read()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "_READ_BYTES", read_bytes)
        received, _ = read(data)
    assert (received.status, received.body) == (expected.status, body)
    expected_fields = [(name.lower(), value) for name, value in expected.getheaders()]
    assert [(name.decode(), value.decode()) for name, value in received.fields] == expected_fields


FRAMED = [
    WHOLE,
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + in_chunks(ANSWER, [50, 7], b"T: u\r\n"),
]


@pytest.mark.parametrize("data", FRAMED, ids=["length", "chunks"])
def test_a_reply_that_breaks_off_anywhere_is_an_error(data: bytes) -> None:
    assert read(data)[0].body == ANSWER
    for end in range(len(data)):
        with pytest.raises(httpx.RemoteProtocolError):
            read(data[:end])


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01 no HTTP\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno field\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\x00\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n0123456789",
        b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
    ],
)
def test_what_is_no_http_is_an_error(data: bytes) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        read(data)


@pytest.mark.parametrize(
    ("head", "is_idle"),
    [
        (b"HTTP/1.1 200 OK\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: Keep-Alive, Close\r\n", False),
        (b"HTTP/1.0 200 OK\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n", False),  # and a length beside it
    ],
)
def test_a_connection_is_kept_where_both_sides_mean_to(head: bytes, is_idle: bool) -> None:
    body = b"2\r\nhi\r\n0\r\n\r\n" if b"chunked" in head else b"hi"
    received, one = read(head + b"Content-Length: 2\r\n\r\n" + body, is_closed=False)
    assert (received.body, one.is_idle) == (b"hi", is_idle)


def test_a_connection_on_which_more_came_than_was_asked_for_is_not_used_again() -> None:
    assert not read(WHOLE + b"x", is_closed=False)[1].is_idle
    assert not read(WHOLE + WHOLE, is_closed=False)[1].is_idle


@pytest.mark.parametrize("status", [204, 304])
def test_a_reply_that_has_no_body_by_its_status_is_not_waited_for(status: int) -> None:
    received, one = read(f"HTTP/1.1 {status} X\r\nContent-Length: 9\r\n\r\n".encode(), is_closed=False)
    assert (received.body, one.is_idle) == (b"", True)


def test_a_folded_header_line_is_one() -> None:
    received, _ = read(b"HTTP/1.1 200 OK\r\nX: a\r\n  b\r\nContent-Length: 0\r\n\r\n")
    assert received.value(b"x") == b"a b"


@pytest.mark.parametrize("framing", ["length", "chunks", "close"])
def test_a_reply_of_the_largest_size_is_read_and_a_larger_one_is_not(
    framing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "MAX_REPLY_BYTES", 100)

    def framed(body: bytes) -> bytes:
        if framing == "length":
            return reply(body)
        if framing == "chunks":
            return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + in_chunks(body, [30], b"")
        return b"HTTP/1.1 200 OK\r\n\r\n" + body

    assert read(framed(b"x" * 100))[0].body == b"x" * 100
    with pytest.raises(ReplyTooLarge):
        read(framed(b"x" * 101))


# --- what is sent is what the openai client sends


@pytest.mark.parametrize(
    ("prefix", "path"),
    [("", "/v1"), ("", "/v1/"), ("", ""), ("", "/a%20b/ä/v1?key=1&x=%2F"), ("user:p%40ss@", "/v1")],
)
def test_head_and_body_are_those_that_the_openai_client_sends(
    prefix: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-1")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Team: maps\nX-Other: 1")
    with RawServer(always(WHOLE)) as server:
        api_base = f"http://{prefix}{server.netloc}{path}"
        with Teacher(settings(api_base)) as teacher:
            teacher.ask(MESSAGES, 7)
            teacher.ask(MESSAGES, 7)
            with teacher.asking() as sample:
                sample.fetch("/models")
        body = server.requests[0].partition(b"\r\n\r\n")[2]
        with openai.OpenAI(base_url=api_base, api_key=KEY, max_retries=0) as client:
            options: Any = {"headers": {"Content-Type": "application/json"}, "timeout": 20}
            client.post("/chat/completions", cast_to=bytes, content=body, options=options)
            client.get("/models", cast_to=bytes, options={"timeout": 20})
    first, second, models, *theirs = (fields_of(request) for request in server.requests)
    assert first["x-stainless-read-timeout"].startswith(("20", "19.9"))
    for fields in (first, second, models, *theirs):
        fields.pop("x-stainless-read-timeout")
    assert [first, models] == theirs
    assert second == first
    assert (first["openai-organization"], first["openai-project"]) == ("org-1", "proj-1")
    assert json.loads(body)["messages"] == [json.loads(message) for message in MESSAGES]


def test_a_header_that_would_be_two_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1\r\nX-Smuggled: 1")
    with RawServer(always(WHOLE)) as server, pytest.raises(TeacherError, match="Illegal header value"):
        asked(server.api_base)
    assert server.requests == []


def test_a_body_leaves_without_being_copied() -> None:
    num_bytes = 24 * 2**20
    message = b'{"role": "user", "content": "%s"}' % (b"x" * num_bytes)
    with RawServer(lambda *_: WHOLE) as server:
        server.requests = Nothing()  # type: ignore[assignment]
        with Teacher(settings(server.api_base)) as teacher:
            teacher.ask(MESSAGES, 7)
            copies: list[int] = []
            send = Wire._send

            def measured(self: Wire, pieces: Any) -> None:
                copies.append(tracemalloc.get_traced_memory()[0])
                assert any(piece is message for piece in pieces)
                send(self, pieces)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Wire, "_send", measured)
                tracemalloc.start()
                try:
                    teacher.ask([*MESSAGES, message], 7)
                finally:
                    tracemalloc.stop()
    assert copies[0] < num_bytes / 8, "of what was made since the ask began"


class Nothing(list[bytes]):
    """Keeps nothing."""

    def append(self, _: bytes) -> None:
        pass


@pytest.mark.parametrize("tls", [False, True])
def test_a_large_body_of_many_pieces_arrives_to_the_byte(tls: bool) -> None:
    messages = [
        b'{"role": "user", "content": "%d %s"}' % (number, b"x" * (number % 7 * 9_001))
        for number in range(1500)
    ]
    with RawServer(always(WHOLE), "127.0.0.1" if not tls else ANYWHERE, tls) as server:
        with pytest.MonkeyPatch.context() as patch, Teacher(settings(server.api_base)) as teacher:
            patch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
            teacher.ask(messages, 7)
    (request,) = server.requests
    assert json.loads(request.partition(b"\r\n\r\n")[2])["messages"] == [json.loads(one) for one in messages]


# --- whole replies in other forms


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("gzip", gzip.compress(ANSWER, mtime=0)),
        ("GZIP", gzip.compress(ANSWER, mtime=0)),
        ("deflate", zlib.compress(ANSWER)),
        ("identity", ANSWER),
    ],
)
def test_a_packed_reply_is_unpacked(coding: str, packed: bytes) -> None:
    with RawServer(always(reply(packed, content_encoding=coding))) as server:
        assert asked(server.api_base) == "hi"
        (request,) = server.requests
    assert "gzip" in fields_of(request)["accept-encoding"]


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_packed_reply_that_grows_too_large_is_not_unpacked(status: int, coding: str) -> None:
    pack = gzip.compress if coding == "gzip" else zlib.compress
    bomb = reply(pack(b" " * (MAX_REPLY_BYTES + 1)), status, content_encoding=coding)
    with RawServer(always(bomb)) as server, pytest.raises(TeacherError, match="larger than 16 MiB"):
        asked(server.api_base)
    assert len(server.requests) == 1


def test_a_packed_error_is_read() -> None:
    error = gzip.compress(json.dumps({"error": {"message": "no such thing"}}).encode())
    with RawServer(always(reply(error, 400, content_encoding="gzip"))) as server:
        with pytest.raises(TeacherError, match=r"HTTP 400.*no such thing"):
            asked(server.api_base)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_as_the_client_follows_it(status: int) -> None:
    with RawServer(always(WHOLE)) as there:
        moved = reply(b"", status, location=f"http://{there.netloc}/v2/chat")
        with RawServer(always(moved)) as server:
            assert asked(server.api_base) == "hi"
        (request,) = there.requests
        method = "GET" if status in (301, 302, 303) else "POST"
        assert fields_of(request)[""] == f"{method} /v2/chat HTTP/1.1"
        assert request.partition(b"\r\n\r\n")[2] == (
            b"" if method == "GET" else server.requests[0].partition(b"\r\n\r\n")[2]
        )


def test_a_refusal_before_the_body_was_read_is_read() -> None:
    refusal = reply(b'{"error": {"message": "too large"}}', 413, connection="close")
    listener = socket.create_server(("127.0.0.1", 0))

    def refuse() -> None:
        sock, _ = listener.accept()
        with sock:  # which is reset as it closes, since there is more to read
            sock.recv(1000)
            sock.sendall(refusal)

    threading.Thread(target=refuse, daemon=True).start()
    with listener, Teacher(settings(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")) as teacher:
        with pytest.raises(TeacherError, match=r"HTTP 413.*too large"):
            teacher.ask([b'"%s"' % (b"x" * 2**24)], 7)


# --- connections are kept, and given up in time


def test_a_connection_is_used_again() -> None:
    with RawServer(always(WHOLE)) as server, Teacher(settings(server.api_base)) as teacher:
        for seed in range(3):
            teacher.ask(MESSAGES, seed)
    assert [len(requests) for requests in server.connections] == [3]


def test_a_connection_that_the_server_closed_while_idle_costs_no_attempt() -> None:
    budget = Budget()
    with RawServer(always(WHOLE)) as server:
        server.stays_open = False  # and says nothing of it
        with Teacher(settings(server.api_base), budget=budget) as teacher:
            for seed in range(3):
                teacher.ask(MESSAGES, seed)
                time.sleep(0.05)
    assert (budget.spent.answered.requests, budget.spent.retried.requests) == (3, 0)
    assert [len(requests) for requests in server.connections] == [1, 1, 1]


def test_what_a_server_says_unasked_is_never_taken_for_a_reply() -> None:
    other = json.dumps(says("of another conversation")).encode()
    with RawServer(lambda number, _: WHOLE + (reply(other) if number == 1 else b"")) as server:
        with Teacher(settings(server.api_base)) as teacher:
            assert [teacher.ask(MESSAGES, seed).content for seed in range(2)] == ["hi", "hi"]
    assert len(server.connections) == 2


def test_cookies_are_of_their_connection_and_of_their_time() -> None:
    given_by_number = {1: "lb=a; Path=/", 3: "lb=b; Path=/v1", 5: "lb=; Path=/v1; Max-Age=0"}

    def answer(number: int, _: bytes) -> bytes:
        cookie = given_by_number.get(number)
        return reply(ANSWER, **({"set_cookie": cookie} if cookie else {}))

    with RawServer(answer) as server, Teacher(settings(server.api_base)) as teacher:
        for seed in range(6):
            teacher.ask(MESSAGES, seed)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(teacher.ask, MESSAGES, 6).result()
    cookies = [fields_of(request).get("cookie") for request in server.requests]
    assert cookies[:3] == [None, "lb=a", "lb=a"]
    assert {"lb=a", "lb=b"} == set((cookies[3] or "").split("; ")), "each of its path"
    assert cookies[5] == "lb=a"
    assert cookies[6] is None


def test_a_server_at_an_ipv6_address_is_asked() -> None:
    try:
        server = RawServer(always(WHOLE), "::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    with server:
        assert asked(server.api_base) == "hi"
    assert fields_of(server.requests[0])["host"] == server.netloc


# --- TLS


def test_a_certificate_is_checked_with_the_authorities_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with RawServer(always(WHOLE), ANYWHERE, tls=True) as server:
        budget = Budget()
        with Teacher(settings(server.api_base), budget=budget) as teacher:
            with pytest.raises(TeacherError, match=r"ConnectError.*certificate verify failed"):
                teacher.ask(MESSAGES, 7)
        assert (budget.spent.refused, server.requests) == (1, [])
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        with Teacher(settings(server.api_base)) as teacher:
            assert [teacher.ask(MESSAGES, seed).content for seed in range(2)] == ["hi", "hi"]
    assert [len(requests) for requests in server.connections] == [2]


def test_a_certificate_of_another_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    with RawServer(always(WHOLE), ANYWHERE, tls=True) as server:
        elsewhere = server.api_base.replace(ANYWHERE, "[::ffff:127.0.0.1]")
        with pytest.raises(TeacherError, match=r"ConnectError.*certificate"):
            asked(elsewhere)


@contextlib.contextmanager
def silent(scheme: str) -> Iterator[tuple[str, list[socket.socket]]]:
    """A server that takes connections and says nothing, in a TLS handshake neither."""
    listener, taken = socket.create_server(("127.0.0.1", 0)), list[socket.socket]()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                taken.append(listener.accept()[0])

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/v1", taken
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for sock in taken:
            sock.close()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_attempt_that_is_answered_nothing_is_cut_off_wherever_it_is(scheme: str) -> None:
    with silent(scheme) as (api_base, taken):
        started = time.monotonic()
        with pytest.raises(TeacherError, match="time-out"):
            asked(api_base, timeout_seconds=0.3)
        assert 0.2 < time.monotonic() - started < 5
        taken[0].settimeout(5)
        while taken[0].recv(65536):  # the server sees its client leave
            pass


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_closing_cuts_off_what_is_in_flight_wherever_it_is(scheme: str) -> None:
    with silent(scheme) as (api_base, taken), ThreadPoolExecutor(1) as pool:
        teacher = Teacher(settings(api_base))
        asking = pool.submit(teacher.ask, MESSAGES, 7)
        wait_for(lambda: taken)
        time.sleep(0.05)
        started = time.monotonic()
        teacher.close()
        with pytest.raises(RunHalted, match="given up"):
            asking.result(10)
        assert time.monotonic() - started < 5


def test_a_reply_without_a_length_that_is_cut_off_is_not_taken_for_whole() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + ANSWER)
            while sock.recv(65536):
                pass
            time.sleep(0.1)

    threading.Thread(target=answer, daemon=True).start()
    with listener, pytest.raises(TeacherError, match="time-out"):
        asked(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", timeout_seconds=0.3)


def test_a_connection_that_was_cut_off_takes_the_next_request_and_no_cut_meets_it() -> None:
    """Many requests that end about when they are cut off: each ends in time, and none hangs."""
    with RawServer(lambda *_: time.sleep(0.002) or WHOLE) as server:
        never_down = settings(server.api_base, timeout_seconds=0.0025, num_failures=NEVER)
        with Teacher(never_down) as teacher:
            for seed in range(60):
                with contextlib.suppress(TeacherError):
                    teacher.ask(MESSAGES, seed)
            assert not teacher._watchdog._deadlines
        with Teacher(settings(server.api_base)) as teacher:
            teacher.ask(MESSAGES, 7)


def test_a_cut_that_comes_before_the_request_is_not_lost() -> None:
    with silent("http") as (api_base, _), Teacher(settings(api_base)) as teacher:
        connection = teacher._connection(api_base)
        with teacher._watchdog.watching(connection, 0.001):
            wait_for(lambda: connection.is_cut)
            with pytest.raises(openai.APIConnectionError):
                connection.ask("/chat/completions", [b"{}"], 600)
        with teacher._watchdog.watching(connection, 600):
            assert not connection.is_cut


def test_a_deadline_that_passes_as_its_request_ends_does_not_cut_the_next() -> None:
    class EndsWhileItIsLookedThrough(dict[Any, Any]):
        """As if the request ended, and the next began, between the watchdog's look and its cut."""

        def copy(self) -> dict[Any, Any]:
            seen = dict(self)
            if seen and not following and time.monotonic() > until:
                first.__exit__(None, None, None)
                following.append(watchdog.watching(connection, 600))
                following[0].__enter__()
            return seen

    with silent("http") as (api_base, _), Teacher(settings(api_base)) as teacher:
        connection, watchdog = teacher._connection(api_base), teacher._watchdog
        following: list[Any] = []
        watchdog._deadlines = EndsWhileItIsLookedThrough()
        until = time.monotonic() + 0.05
        first = watchdog.watching(connection, 0.05)
        first.__enter__()
        wait_for(lambda: following)
        with watchdog._changed:  # once it has looked
            assert not connection.is_cut
        following[0].__exit__(None, None, None)


# --- proxies


@pytest.mark.parametrize(
    ("variables", "is_proxied"),
    [
        ({"HTTP_PROXY": "PROXY"}, True),
        ({"ALL_PROXY": "PROXY"}, True),
        ({"HTTPS_PROXY": "PROXY"}, False),
        ({"HTTP_PROXY": "PROXY", "NO_PROXY": "example.com, 0.0.0.0"}, False),
        ({"HTTP_PROXY": "PROXY", "NO_PROXY": "*"}, False),
        ({"HTTP_PROXY": "PROXY", "NO_PROXY": "example.com"}, True),
        ({"HTTP_PROXY": ""}, False),
    ],
)
def test_proxies_of_the_environment_are_used_where_they_apply(
    variables: dict[str, str], is_proxied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    with RawServer(always(WHOLE)) as proxy, RawServer(always(WHOLE), ANYWHERE) as server:
        for name, value in variables.items():
            monkeypatch.setenv(name, value.replace("PROXY", f"http://{proxy.netloc}"))
        assert asked(server.api_base) == "hi"
        assert (len(proxy.requests), len(server.requests)) == ((1, 0) if is_proxied else (0, 1))
    if is_proxied:
        assert fields_of(proxy.requests[0])[""] == f"POST {server.api_base}/chat/completions HTTP/1.1"


def test_the_clients_log_of_its_requests_is_written_where_it_is_wanted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with RawServer(always(WHOLE)) as server, caplog.at_level("INFO", httpx.__name__):
        asked(server.api_base)
    assert "/v1/chat/completions" in caplog.text


def test_a_connection_opened_for_another_thread_is_not_shared() -> None:
    with RawServer(always(WHOLE)) as server, Teacher(settings(server.api_base)) as teacher:
        found: list[Connection] = []
        for _ in range(2):
            thread = threading.Thread(target=lambda: found.append(teacher._connection(server.api_base)))
            thread.start()
            thread.join()
        assert found[0] is not found[1]
        assert found[0]._server is found[1]._server, "which is asked for its heads once"
