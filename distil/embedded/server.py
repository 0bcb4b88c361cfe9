"""The loopback HTTP server: two routes, bounded work, ends with its parent."""

from __future__ import annotations

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from distil.embedded.eyes import Eyes, Look
from distil.embedded.gazetteer import load_gazetteer
from distil.embedded.protocol import (
    MODEL_ID,
    BadRequest,
    ChatRequest,
    Decision,
    Json,
    parse_request,
    write_models,
    write_reply,
)
from distil.embedded.scene_reader import decide_scene, read_question
from distil.embedded.sign_reader import Mood, answer, decide

MAX_BODY_BYTES = 256 * 1024 * 1024
IDLE_SECONDS = 600.0  # a kept-alive connection that says nothing for this long is let go


class SignReaderServer(ThreadingHTTPServer):
    """The server and what its requests share: the OCR engines."""

    daemon_threads = True
    request_queue_size = 128  # many clients connect at once; the default backlog of 5 drops them

    def __init__(self, port: int, eyes: Eyes) -> None:
        super().__init__(("127.0.0.1", port), Routes)
        self.eyes = eyes

    def reply(self, body: bytes) -> Json:
        """Answer one chat request."""
        request = parse_request(body)
        return write_reply(request, self._decisions(request))

    def _decisions(self, request: ChatRequest) -> list[Decision]:
        moods = [Mood(request, choice) for choice in range(request.choices)]
        if request.told_to_call is not None:
            return [Decision("Calling the tool as told.") for _ in moods]
        if request.picture is None:
            return [answer(None, mood) for mood in moods]
        question = read_question(request.asked)
        look = self._look(request.picture, None if question is None else question.colour)
        if question is None:
            return [decide(look, request, mood) for mood in moods]
        return [decide_scene(look, question, request, mood) for mood in moods]

    def _look(self, encoded: bytes, colour: str | None) -> Look:
        try:
            return self.eyes.look(encoded, colour)
        except (OSError, SyntaxError, ValueError) as wrong:  # what Pillow raises for damaged files
            raise BadRequest(f"the newest picture cannot be decoded: {wrong}") from wrong

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent about clients that hang up; a real fault was already sent as a 500."""


class Routes(BaseHTTPRequestHandler):
    """GET /v1/models and POST /v1/chat/completions; everything else is a 404."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else the body waits for the acknowledgement of the headers
    timeout = IDLE_SECONDS
    server: SignReaderServer

    def do_GET(self) -> None:
        """Serve the list of models."""
        if self.path.split("?")[0] == "/v1/models":
            self._send(200, write_models())
        else:
            self._send_unknown_path()

    def do_POST(self) -> None:
        """Serve a chat completion."""
        body = self._read_body()
        if body is None:
            return
        if self.path.split("?")[0] != "/v1/chat/completions":
            self._send_unknown_path()
            return
        try:
            self._send(200, self.server.reply(body))
        except BadRequest as wrong:
            self._send_error(400, str(wrong), "bad_request")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except Exception as fault:  # noqa: BLE001  the client must get an answer whatever went wrong
            self._send_error(500, f"{type(fault).__name__}: {fault}", "internal_error")

    def _read_body(self) -> bytes | None:
        length = self.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) <= MAX_BODY_BYTES:
            return self.rfile.read(int(length))
        self.close_connection = True  # what follows on this connection cannot be told apart from the body
        if length.isdecimal():
            self._send_error(413, "the body is too large", "too_large")
        else:
            self._send_error(411, "send a Content-Length", "no_length")
        return None

    def _send_unknown_path(self) -> None:
        self._send_error(404, f"unknown path {self.path}", "not_found")

    def _send_error(self, status: int, message: str, code: str) -> None:
        kind = "server_error" if status >= 500 else "invalid_request_error"
        self._send(status, {"error": {"message": message, "type": kind, "param": None, "code": code}})

    def _send(self, status: int, reply: Json) -> None:
        body = json.dumps(reply, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet: the parent's terminal is not a log."""


def serve(port: int, concurrency: int) -> None:
    """Load everything, say that the server is ready, and serve until stdin closes."""
    eyes = Eyes(concurrency)
    load_gazetteer()
    server = SignReaderServer(port, eyes)
    threading.Thread(target=stop_with_parent, args=(server,), daemon=True).start()
    print(json.dumps({"event": "ready", "port": server.server_port, "model": MODEL_ID}), flush=True)
    server.serve_forever(poll_interval=0.1)


def stop_with_parent(server: SignReaderServer) -> None:
    """Wait for stdin to close, as it does when the parent ends, then end this process too."""
    while sys.stdin.buffer.read(4096):
        pass
    server.shutdown()
    # Not sys.exit: an OCR run in another thread would keep the interpreter from closing down.
    os._exit(0)
