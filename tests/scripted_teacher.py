"""A real HTTP server that speaks chat completions and says what a test's script tells it to."""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

from distil.teacher.sign import SIGN_QUESTION, SIGN_WORD

Script = Callable[[dict[str, Any]], Any]  # a request body to a completion, or (status, body)


class _QuietServer(ThreadingHTTPServer):
    """Says nothing of clients that leave: that is what many tests are about."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class ScriptedTeacher:
    """`with ScriptedTeacher(script) as teacher:` serves on loopback and keeps every request.

    Whatever the script says to the probe, the word in its picture stands beside it, unless `sees` is False.
    """

    def __init__(
        self,
        script: Script,
        models: tuple[str, ...] = ("scripted-qwen3-vl",),
        listing: tuple[int, Any] | None = None,  # what `/models` answers in place of the list
        sees: bool = True,
    ) -> None:
        self.script = script
        self.sees = sees
        self.models = models
        self.listing = listing
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []  # the requests as they came over the wire
        self._lock = threading.Lock()
        self._server = _QuietServer(("127.0.0.1", 0), self._handler_class())
        self.api_base = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> ScriptedTeacher:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def keep(self, request: dict[str, Any], headers: dict[str, str], body: bytes) -> None:
        with self._lock:
            self.requests.append(request)
            self.bodies.append(body)
            self.headers.append(headers)

    def _handler_class(self) -> type[BaseHTTPRequestHandler]:
        teacher = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # the body must not wait 40 ms for the client to take the head

            def do_GET(self) -> None:
                models = [
                    {"id": name, "object": "model", "created": 0, "owned_by": "test"}
                    for name in teacher.models
                ]
                self._send(*(teacher.listing or (200, {"object": "list", "data": models})))

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                request = json.loads(data)
                teacher.keep(request, {name.lower(): value for name, value in self.headers.items()}, data)
                answer = teacher.script(request)
                status, body = answer if isinstance(answer, tuple) else (200, answer)
                if teacher.sees and status == 200 and is_probe(request):
                    body = naming_the_word(body)
                self._send(status, body)

            def _send(self, status: int, body: Any) -> None:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def completion(
    message: dict[str, Any], finish_reason: str = "stop", usage: Any = "default"
) -> dict[str, Any]:
    """A chat completion around one assistant message."""
    if usage == "default":
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", **message}}
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


def says(content: str | None, finish_reason: str = "stop", **fields: Any) -> dict[str, Any]:
    """A completion with text and perhaps further message fields."""
    return completion({"content": content, **fields}, finish_reason)


def calls(*named: tuple[str, Any], content: str | None = None, **fields: Any) -> dict[str, Any]:
    """A completion with native tool calls; arguments go as a JSON string unless they are a string already."""
    entries = [
        {
            "id": f"call-{position}",
            "type": "function",
            "function": {
                "name": name,
                "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments),
            },
        }
        for position, (name, arguments) in enumerate(named)
    ]
    return completion({"content": content, "tool_calls": entries, **fields}, "tool_calls")


def text_call(name: str, arguments: Any) -> str:
    """A tool call as text."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def num_turns(request: dict[str, Any]) -> int:
    """How many turns the teacher has had in the conversation of a request."""
    return sum(message["role"] == "assistant" for message in request["messages"])


def turns(*replies: Any) -> Script:
    """A script that answers by the turn a conversation is in; the probe gets a native call."""

    def script(request: dict[str, Any]) -> Any:
        if is_probe(request):
            return calls((request["tools"][0]["function"]["name"], {}))
        return replies[min(num_turns(request), len(replies) - 1)]

    return script


def is_probe(request: dict[str, Any]) -> bool:
    """Whether a request is the probe that comes before a run."""
    question = "".join(texts(message) for message in request["messages"][1:2])
    return "Call the tool" in question or question.endswith(SIGN_QUESTION)


def naming_the_word(body: Any) -> Any:
    """The completion with the word of the probe's picture at the head of its text."""
    try:
        (choice,) = body["choices"]
        message = choice["message"]
        content = f"{SIGN_WORD} {message.get('content') or ''}"
    except (AttributeError, KeyError, TypeError, ValueError):  # no completion: a fault that is tested
        return body
    return body | {"choices": [choice | {"message": message | {"content": content}}]}


def counted(request: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any]:
    """The completion with prompt tokens as a healthy server counts them: a quarter of the text's
    characters, and one for 32×32 pixels of a picture."""
    num_chars = sum(len(texts(message)) for message in request["messages"])
    tokens = 20 + num_chars // 4 + sum(area_px // 1024 for area_px in picture_areas(request))
    return reply | {"usage": {"prompt_tokens": tokens, "completion_tokens": 10, "total_tokens": tokens + 10}}


def picture_areas(request: dict[str, Any]) -> list[int]:
    """The area of each picture that a request carries, in pixels."""
    urls = [
        part["image_url"]["url"]
        for message in request["messages"]
        if isinstance(message.get("content"), list)
        for part in message["content"]
        if part["type"] == "image_url"
    ]
    sizes = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size for url in urls]
    return [width * height for width, height in sizes]


def texts(message: dict[str, Any]) -> str:
    """All the text of a message."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or [])


def num_pictures(request: dict[str, Any]) -> int:
    """How many pictures a request carries."""
    return sum(
        part["type"] == "image_url"
        for message in request["messages"]
        if isinstance(message.get("content"), list)
        for part in message["content"]
    )
