"""Finding out how a server can be asked, before the first sample: tool calls and request fields."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from PIL import Image, ImageDraw

from distil.budget import Budget
from distil.conversation import opening_messages
from distil.errors import TeacherError, TeacherRefused
from distil.pictures import ViewRule, encode_sent
from distil.records import Json, Prompt, Reply, SentPicture, ToolMode
from distil.teacher.client import Teacher, TeacherSettings, base_url_text, for_setup

_PROBE_SEED = 0
_ADAPTED = ("token_field", "sends_temperature", "sends_seed")  # settings that a server's refusals change
# What servers without a tool parser say to `tools` (llama.cpp: 500, OpenRouter: 404); too many requests
# or a time-out say nothing about tools.
_TOOLS_REFUSED = (400, 404, 405, 415, 422, 500, 501)


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The tool mode that a server is asked in, and why.

    `settings` are without the request fields that the server turned out not to know.
    """

    tool_mode: ToolMode
    reason: str
    settings: TeacherSettings

    def as_dict(self) -> dict[str, Json]:
        """What the run record keeps, for `recalled_probe` in a later run."""
        settings = self.settings
        return {
            "api_base": base_url_text(settings),
            "model": settings.model,
            "tool_mode": self.tool_mode.value,
            "reason": self.reason,
            **{name: getattr(settings, name) for name in _ADAPTED},
        }


def recalled_probe(settings: TeacherSettings, earlier: Mapping[str, Json]) -> ProbeResult | None:
    """What an earlier run into the folder found of this model at this address, None if it is of another.

    A teacher that calls tools now and then would otherwise change a run's tool mode half-way. Where the
    server has turned out to refuse a field that it took, nothing is recalled.
    """
    if earlier.get("refuses_fields"):
        return None
    try:
        adapted = replace(settings, **{name: earlier[name] for name in _ADAPTED})
        result = ProbeResult(ToolMode(earlier["tool_mode"]), earlier["reason"], adapted)
    except (KeyError, TypeError, ValueError):
        return None
    asked = (earlier.get("api_base"), earlier.get("model"))
    return result if asked == (base_url_text(settings), settings.model) else None


def probe_tool_mode(
    settings: TeacherSettings, prompt: Prompt, budget: Budget, tell: Callable[[str], None] = lambda _: None
) -> ProbeResult:
    """Ask once for a native tool call: native if one comes back, text otherwise.

    Where the server refuses `tools` altogether it is asked again in text form, so that a wrong key or
    model is told apart. Raises TeacherRefused where neither can be asked, BudgetExceeded.
    """
    native = replace(prompt, user=_question(prompt), tool_mode=ToolMode.NATIVE)
    ask = partial(_ask, budget=budget, tell=tell)
    try:
        reply, settings = ask(settings, native)
        tool_mode, reason = _judge(reply)
    except TeacherError as error:
        if error.status not in _TOOLS_REFUSED:
            raise TeacherRefused(str(error), error.status) from None
        tool_mode, reason = ToolMode.TEXT, f"the server takes no tools ({error})"
        try:
            _, settings = ask(settings, replace(native, tool_mode=ToolMode.TEXT))
        except TeacherError as text_error:
            raise TeacherRefused(str(text_error), text_error.status) from None
    return ProbeResult(tool_mode, reason, settings)


def probe_fields(
    settings: TeacherSettings, prompt: Prompt, budget: Budget, tell: Callable[[str], None] = lambda _: None
) -> TeacherSettings:
    """Ask once in the prompt's own tool mode: the settings without request fields that the server refuses.

    Raises TeacherRefused where it cannot be asked, BudgetExceeded.
    """
    try:
        _, settings = _ask(settings, replace(prompt, user=_question(prompt)), budget, tell)
    except TeacherError as error:
        raise TeacherRefused(str(error), error.status) from None
    return settings


def _question(prompt: Prompt) -> str:
    if not prompt.tools:
        return "Which colour has the square in the image? Answer with one word."
    name = prompt.tools[0]["function"]["name"]
    return f"Call the tool {name} once, on the whole image. Write nothing else."


def _judge(reply: Reply) -> tuple[ToolMode, str]:
    if reply.calls and reply.call_form is ToolMode.NATIVE:
        return ToolMode.NATIVE, "the server answered with a native tool call"
    if reply.calls:
        return ToolMode.TEXT, "the server passes tool calls on as text"
    if reply.finish_reason == "length":
        return ToolMode.TEXT, "the teacher was cut off before it made a native tool call; see --max_tokens"
    return ToolMode.TEXT, "the teacher made no native tool call when asked for one"


def _ask(
    settings: TeacherSettings, prompt: Prompt, budget: Budget, tell: Callable[[str], None]
) -> tuple[Reply, TeacherSettings]:
    """The reply, and the settings without what the server refused."""
    tools = prompt.tools if prompt.tool_mode is ToolMode.NATIVE else ()
    messages = [json.dumps(message).encode() for message in opening_messages(prompt, _probe_picture())]
    with Teacher(for_setup(settings), tools, budget=budget) as teacher:
        teacher.availability.tell = tell
        reply = teacher.ask(messages, _PROBE_SEED)
        adapted = {name: getattr(teacher.settings, name) for name in _ADAPTED}
        return reply, replace(settings, **adapted)


def _probe_picture() -> SentPicture:
    image = Image.new("RGB", (320, 240), "lightgrey")
    ImageDraw.Draw(image).rectangle((110, 70, 210, 170), fill="navy")
    return encode_sent(image, ViewRule())
