"""Finding out how a server wants tool calls, by asking it for one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

from distil.conversation import opening_messages
from distil.errors import TeacherError, TeacherRefused
from distil.pictures import ViewRule, encode_sent
from distil.records import Json, Prompt, Reply, SentPicture, ToolMode
from distil.teacher.client import Teacher, TeacherSettings, for_setup

_PROBE_SEED = 0
# What servers without a tool parser say to `tools` (llama.cpp: 500, OpenRouter: 404); too many requests
# or a time-out say nothing about tools.
_TOOLS_REFUSED = (400, 404, 405, 415, 422, 500, 501)


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The tool mode that a server can be asked in, with what was seen and how often it was asked.

    `settings` are without the request fields that the server turned out not to know.
    """

    tool_mode: ToolMode
    reason: str
    num_requests: int
    settings: TeacherSettings
    usages: tuple[Mapping[str, Json] | None, ...] = ()  # of the requests that were answered


def probe_tool_mode(settings: TeacherSettings, prompt: Prompt) -> ProbeResult:
    """Ask once for a native tool call: native if one comes back, text otherwise.

    Where the server refuses `tools` altogether it is asked again in text form, so that a wrong key or
    model is told apart. Raises TeacherRefused where neither can be asked.
    """
    name = prompt.tools[0]["function"]["name"]
    question = f"Call the tool {name} once, on the whole image. Write nothing else."
    native = replace(prompt, user=question, tool_mode=ToolMode.NATIVE)
    try:
        reply, settings = _ask(settings, native)
    except TeacherError as error:
        if error.status not in _TOOLS_REFUSED:
            raise TeacherRefused(str(error), error.status) from None
        return _probe_text(settings, replace(native, tool_mode=ToolMode.TEXT), error)
    tool_mode, reason = _judge(reply)
    return ProbeResult(tool_mode, reason, 1, settings, (reply.usage,))


def _judge(reply: Reply) -> tuple[ToolMode, str]:
    if reply.calls and reply.call_form is ToolMode.NATIVE:
        return ToolMode.NATIVE, "the server answered with a native tool call"
    if reply.calls:
        return ToolMode.TEXT, "the server passes tool calls on as text"
    if reply.finish_reason == "length":
        return ToolMode.TEXT, "the teacher was cut off before it made a native tool call; see --max_tokens"
    return ToolMode.TEXT, "the teacher made no native tool call when asked for one"


def _probe_text(settings: TeacherSettings, prompt: Prompt, native_error: TeacherError) -> ProbeResult:
    try:
        reply, settings = _ask(settings, prompt)
    except TeacherError as error:
        raise TeacherRefused(str(error), error.status) from None
    return ProbeResult(
        ToolMode.TEXT, f"the server takes no tools ({native_error})", 2, settings, (reply.usage,)
    )


def _ask(settings: TeacherSettings, prompt: Prompt) -> tuple[Reply, TeacherSettings]:
    """The reply, and the settings without what the server refused."""
    tools = prompt.tools if prompt.tool_mode is ToolMode.NATIVE else ()
    messages = [json.dumps(message).encode() for message in opening_messages(prompt, _probe_picture())]
    with Teacher(for_setup(settings), tools) as teacher:
        reply = teacher.ask(messages, _PROBE_SEED)
        return reply, replace(teacher.settings, retry=settings.retry)


def _probe_picture() -> SentPicture:
    image = Image.new("RGB", (320, 240), "lightgrey")
    ImageDraw.Draw(image).rectangle((110, 70, 210, 170), fill="navy")
    return encode_sent(image, ViewRule())
