"""The chat-completions protocol: from a request body to facts, and from decisions to a reply."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from distil.embedded.shapes import Box

MODEL_ID = "distil-sign-reader"
DESCRIPTION = (
    "OCR plus rules with templated sentences, for trying the pipeline, not for training. "
    "It reads level Latin and Han place names in a fixed view of the picture (long side 512 px) "
    "and looks them up in a gazetteer; asked for the number or word in a coloured shape, it finds that by "
    "its colour and reads it. Boxes are pixels of the picture as sent (x1, y1, x2, y2); "
    "angles are degrees counter-clockwise. Tokens are counted as characters / 4 plus picture area / 1024."
)
ZOOM_TOOL, ROTATE_TOOL, CODE_TOOL = "image_zoom_in_tool", "image_rotate_tool", "python_code_tool"
KNOWN_TOOLS = (ZOOM_TOOL, ROTATE_TOOL, CODE_TOOL)
MAX_CHOICES = 16
CHARACTERS_PER_TOKEN = 4
PIXELS_PER_TOKEN = 32 * 32
UNKNOWN_SIZE_PX = (1000, 1000)  # for the box of a "Call the tool" request that came without a picture

Json = dict[str, Any]


class BadRequest(Exception):
    """The request body cannot be answered; the text goes to the client with status 400."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """Everything that a reply depends on, rebuilt from one request body."""

    picture: bytes | None  # the newest one, still encoded
    size_px: tuple[int, int]
    tools: tuple[str, ...]
    is_native: bool
    told_to_call: str | None
    asked: str  # the first message of the user
    calls_made: int
    has_flipped: bool
    last_call_failed: bool
    temperature: float
    seed: int
    choices: int
    max_tokens: int | None
    prompt_tokens: int
    digest: str

    @property
    def can_zoom(self) -> bool:
        """Whether a tool on offer can cut the picture."""
        return ZOOM_TOOL in self.tools or CODE_TOOL in self.tools

    @property
    def can_turn(self) -> bool:
        """Whether a tool on offer can turn the picture."""
        return ROTATE_TOOL in self.tools or CODE_TOOL in self.tools


@dataclass(frozen=True, slots=True)
class Decision:
    """One reply: a sentence, and a box to zoom into, an answer, or else an angle to turn the picture by."""

    sentence: str
    zoom_px: Box | None = None  # in pixels of the picture as sent
    turn_degrees: int = 0  # counter-clockwise
    boxed: str | None = None


# --- reading ---


def parse_request(body: bytes) -> ChatRequest:
    """Parse a request body; raises BadRequest with a text that says what is wrong."""
    fields = parse_json_object(body)
    if fields.get("stream"):
        raise BadRequest("'stream' is not supported: send the request without it")
    messages = parse_messages(fields.get("messages"))
    native = native_tool_names(fields)
    tools = native or text_tool_names(messages)
    pictures = [parse_picture(url) for message in messages for url in picture_urls(message)]
    picture, size_px = pictures[-1] if pictures else (None, UNKNOWN_SIZE_PX)
    calls = [arguments for message in messages for arguments in calls_in(message)]
    return ChatRequest(
        picture=picture,
        size_px=size_px,
        tools=tools,
        is_native=bool(native),
        told_to_call=tool_named_in_order(messages, tools),
        asked=next((message_text(message) for message in messages if message["role"] == "user"), ""),
        calls_made=len(calls),
        has_flipped=any(is_flip(arguments) for arguments in calls),
        last_call_failed=bool(calls) and not has_new_picture(messages),
        temperature=parse_number(fields, "temperature", 1.0, 0.0, 2.0),
        seed=int(parse_number(fields, "seed", 0, -(2**63), 2**63)),
        choices=int(parse_number(fields, "n", 1, 1, MAX_CHOICES)),
        max_tokens=parse_max_tokens(fields),
        prompt_tokens=count_prompt_tokens(messages, [size for _, size in pictures]),
        digest=hashlib.sha256(body).hexdigest(),
    )


def parse_json_object(body: bytes) -> Json:
    """Parse a body that must be one JSON object."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as wrong:
        raise BadRequest(f"the body is not JSON: {wrong}") from wrong
    if not isinstance(fields, dict):
        raise BadRequest("the body must be a JSON object")
    return fields


def parse_messages(messages: object) -> list[Json]:
    """Check that the messages have the shape that the rest of this module relies on."""
    if not isinstance(messages, list) or not messages:
        raise BadRequest("'messages' must be a non-empty list")
    for at, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequest(f"messages[{at}] must be an object with a 'role'")
        content = message.get("content")
        is_parts = isinstance(content, list) and all(isinstance(part, dict) for part in content)
        if not isinstance(message.get("tool_calls") or [], list):
            raise BadRequest(f"messages[{at}].tool_calls must be a list or null")
        if not (content is None or isinstance(content, str) or is_parts):
            raise BadRequest(f"messages[{at}].content must be a string, a list of parts or null")
    return messages


def parse_number(fields: Json, name: str, default: float, low: float, high: float) -> float:
    """Read a number field inside its range; null means the default."""
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadRequest(f"'{name}' must be a number from {low:g} to {high:g}")
    return value


def parse_max_tokens(fields: Json) -> int | None:
    """Read the limit on the reply under either of its two names."""
    given = [name for name in ("max_completion_tokens", "max_tokens") if fields.get(name) is not None]
    return int(parse_number(fields, given[0], 0, 1, 2**31)) if given else None


def message_text(message: Json) -> str:
    """Join the text of one message."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if part.get("type") == "text")
    return content or ""


def picture_urls(message: Json) -> Iterator[str]:
    """Yield the address of each picture in one message."""
    content = message.get("content")
    for part in content if isinstance(content, list) else ():
        if part.get("type") == "image_url":
            address = part.get("image_url")
            yield str(address.get("url", "") if isinstance(address, dict) else address)


def parse_picture(url: str) -> tuple[bytes, tuple[int, int]]:
    """Decode a data URL far enough to know the picture's size: the encoded picture, and width and height."""
    head, _, data = url.partition(",")
    if not head.startswith("data:") or not head.endswith(";base64"):
        raise BadRequest("pictures must be base64 data URLs (data:image/jpeg;base64,…)")
    try:
        encoded = base64.b64decode(data, validate=True)
        with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG", "WEBP")) as picture:
            return encoded, picture.size
    except (binascii.Error, OSError, Image.DecompressionBombError) as wrong:
        raise BadRequest(f"a picture cannot be decoded: {wrong}") from wrong


def native_tool_names(fields: Json) -> tuple[str, ...]:
    """List the known tools offered in the request's own `tools` field."""
    tools = fields.get("tools")
    if tools is None or fields.get("tool_choice") == "none":
        return ()
    if not isinstance(tools, list):
        raise BadRequest("'tools' must be a list")
    return known_names(tools)


def text_tool_names(messages: list[Json]) -> tuple[str, ...]:
    """List the known tools that the system message describes in a <tools> block, one JSON schema a line."""
    system = "\n".join(message_text(message) for message in messages if message["role"] == "system")
    # All blocks: the usual wording names "<tools></tools>" in its own text before the real one.
    blocks = re.findall(r"<tools>(.*?)</tools>", system, re.DOTALL)
    return known_names([parse_or_none(line) for line in "\n".join(blocks).splitlines()])


def known_names(tools: Sequence[object]) -> tuple[str, ...]:
    """Pick the tools that this model can use, in a fixed order."""
    named = [tool_name(tool) for tool in tools]
    return tuple(name for name in KNOWN_TOOLS if name in named)


def tool_name(tool: object) -> object:
    """Return the name in a function tool's schema, or None if it is no such schema."""
    function = tool.get("function") if isinstance(tool, dict) else None
    return function.get("name") if isinstance(function, dict) else None


def parse_or_none(text: str) -> Any:
    """Parse JSON, or return None where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def tool_named_in_order(messages: list[Json], tools: tuple[str, ...]) -> str | None:
    """Return the tool that the newest message orders with "Call the tool NAME", if it is on offer."""
    if messages[-1]["role"] != "user":
        return None
    order = re.search(r"Call the tool `?(\w+)", message_text(messages[-1]))
    return order[1] if order and order[1] in tools else None


def has_new_picture(messages: list[Json]) -> bool:
    """Say whether a picture came after the last message of the assistant."""
    last = max(at for at, message in enumerate(messages) if message["role"] == "assistant")
    return any(True for message in messages[last:] for _ in picture_urls(message))


def calls_in(message: Json) -> list[Json]:
    """List the arguments of the tool calls in one assistant message, whichever form they have."""
    if message["role"] != "assistant":
        return []
    written = re.findall(r"<tool_call>(.*?)</tool_call>", message_text(message), re.DOTALL)
    native = [call.get("function") for call in message.get("tool_calls") or () if isinstance(call, dict)]
    return [arguments_of(call) for call in [*native, *map(parse_or_none, written)] if isinstance(call, dict)]


def arguments_of(call: Json) -> Json:
    """Return the arguments of a call, which may be an object or its JSON text."""
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        arguments = parse_or_none(arguments)
    return arguments if isinstance(arguments, dict) else {}


def is_flip(arguments: Json) -> bool:
    """Say whether a call turned the picture upside down."""
    return arguments.get("angle") == 180 or "rotate(180" in str(arguments.get("code", ""))


def count_prompt_tokens(messages: list[Json], sizes_px: list[tuple[int, int]]) -> int:
    """Count tokens by the rule that the description states."""
    characters = sum(len(message_text(message)) for message in messages)
    area = sum(width * height for width, height in sizes_px)
    return characters // CHARACTERS_PER_TOKEN + area // PIXELS_PER_TOKEN


# --- writing ---


def write_models() -> Json:
    """Write the reply to GET /v1/models."""
    model = {"id": MODEL_ID, "object": "model", "created": 0, "owned_by": "distil"}
    return {"object": "list", "data": [model | {"description": DESCRIPTION}]}


def write_reply(request: ChatRequest, decisions: Sequence[Decision]) -> Json:
    """Write the reply to a chat request; the same request gives the same bytes."""
    choices = [write_choice(request, decision, at) for at, decision in enumerate(decisions)]
    completion = sum(count_completion_tokens(choice["message"]) for choice in choices)
    return {
        "id": f"chatcmpl-{request.digest[:24]}",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL_ID,
        "system_fingerprint": "ocr-and-rules",
        "choices": choices,
        "usage": {
            "prompt_tokens": request.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": request.prompt_tokens + completion,
        },
    }


def write_choice(request: ChatRequest, decision: Decision, at: int) -> Json:
    """Write one choice, in the call form that the request uses."""
    message, finish_reason = write_message(request, decision, at)
    limit = request.max_tokens
    if limit is not None and count_completion_tokens(message) > limit:
        cut = (message["content"] or "")[: limit * CHARACTERS_PER_TOKEN]
        message, finish_reason = {"role": "assistant", "content": cut}, "length"
    return {"index": at, "message": message, "logprobs": None, "finish_reason": finish_reason}


def write_message(request: ChatRequest, decision: Decision, at: int) -> tuple[Json, str]:
    """Write the assistant message and how it ended."""
    if decision.boxed is not None:
        return {"role": "assistant", "content": f"{decision.sentence}\n\\boxed{{{decision.boxed}}}"}, "stop"
    name, arguments = write_call(request, decision)
    if not request.is_native:
        call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
        content = f"{decision.sentence}\n<tool_call>\n{call}\n</tool_call>"
        return {"role": "assistant", "content": content}, "stop"
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    native = {"id": f"call_{request.digest[:20]}_{at}", "type": "function", "function": function}
    return {"role": "assistant", "content": decision.sentence, "tool_calls": [native]}, "tool_calls"


def write_call(request: ChatRequest, decision: Decision) -> tuple[str, Json]:
    """Write a step as a call of a tool on offer: zoom and rotate where there are such, else code."""
    if request.told_to_call is not None:
        whole: dict[str, Json] = {
            ZOOM_TOOL: {"bbox_2d": [0, 0, *request.size_px]},
            ROTATE_TOOL: {"angle": 90},
            CODE_TOOL: {"code": "result_image = image"},
        }
        return request.told_to_call, whole[request.told_to_call]
    if decision.zoom_px is not None:
        if ZOOM_TOOL in request.tools:
            return ZOOM_TOOL, {"bbox_2d": list(decision.zoom_px)}
        return CODE_TOOL, {"code": crop_code(decision.zoom_px, request.size_px)}
    if ROTATE_TOOL in request.tools:
        return ROTATE_TOOL, {"angle": decision.turn_degrees}
    return CODE_TOOL, {"code": f"result_image = image.rotate({decision.turn_degrees}, expand=True)"}


def crop_code(box: Box, size_px: tuple[int, int]) -> str:
    """Write a crop as code in shares of the picture: the code may get a larger picture than the one sent."""
    (left, top, right, bottom), (width, height) = box, size_px
    return (
        "width, height = image.size\n"
        f"left, right = int(width * {left / width:.4f}), int(width * {right / width:.4f})\n"
        f"top, bottom = int(height * {top / height:.4f}), int(height * {bottom / height:.4f})\n"
        "result_image = image.crop((left, top, right, bottom))"
    )


def count_completion_tokens(message: Json) -> int:
    """Count the tokens of a reply by the rule that the description states."""
    called = "".join(call["function"]["arguments"] for call in message.get("tool_calls", ()))
    return -(-len((message["content"] or "") + called) // CHARACTERS_PER_TOKEN)
