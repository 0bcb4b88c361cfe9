"""Finding out, before the first sample, how a server can be asked and whether it sees: a call on a sign."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from distil.errors import TeacherError, TeacherRefused
from distil.messages.compose import opening_messages
from distil.messages.read import quote
from distil.pictures import ResizeRule, encode_sent
from distil.records import Json, Prompt, Reply, SentPicture, ToolMode
from distil.spending.budget import Budget
from distil.spending.prices import PICTURES_DROPPED, fewest_prompt_tokens, read_tokens
from distil.teacher.client import ADAPTED, Teacher, TeacherSettings, for_setup
from distil.teacher.connection import shown_url
from distil.teacher.refusals import Means, meaning
from distil.teacher.sign import SIGN_QUESTION, SIGN_WORD, draw_sign

_PROBE_SEED = 0
_MAX_QUOTED_CHARS = 60


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The tool mode that a server is asked in, and why.

    `settings` are without the request fields that the server turned out not to know; `sight_warning` says
    why the teacher seems not to see pictures, None where it does, or was not asked. `replicas` are the
    further servers that were asked for their request fields, as they may be shown.
    """

    tool_mode: ToolMode
    reason: str
    settings: TeacherSettings
    sight_warning: str | None = None
    replicas: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Json]:
        """What the run record keeps, for `recalled_probe` in a later run."""
        settings = self.settings
        return {
            "api_base": shown_url(settings.api_base),
            "model": settings.model,
            "tool_mode": self.tool_mode.value,
            "reason": self.reason,
            "sight_warning": self.sight_warning,
            "replicas": list(self.replicas),
            **{name: getattr(settings, name) for name in ADAPTED},
        }


def recalled_probe(settings: TeacherSettings, earlier: Mapping[str, Json]) -> ProbeResult | None:
    """What an earlier run into the folder found of this model at this address, None if it is of another.

    A teacher that calls tools now and then would otherwise change a run's tool mode half-way. Where the
    server has turned out to refuse a field that it took, nothing is recalled.
    """
    if earlier.get("refuses_fields"):
        return None
    try:
        adapted = replace(settings, **{name: earlier[name] for name in ADAPTED})
        mode, sight_warning = ToolMode(earlier["tool_mode"]), earlier.get("sight_warning")
        replicas = tuple(earlier.get("replicas", ()))
        result = ProbeResult(mode, earlier["reason"], adapted, sight_warning, replicas)
    except (KeyError, TypeError, ValueError):
        return None
    asked = (earlier.get("api_base"), earlier.get("model"))
    return result if asked == (shown_url(settings.api_base), settings.model) else None


def probe_tool_mode(
    settings: TeacherSettings,
    prompt: Prompt,
    budget: Budget,
    tell: Callable[[str], None] = lambda _: None,
    told: tuple[ToolMode, str] | None = None,
) -> ProbeResult:
    """Ask for a tool call on a sign, and for its word: what the server refuses, and whether it sees.

    `told` are the tool mode and why; without it a native call is asked for: native if one comes back, else
    text. Where the server refuses `tools` altogether it is then asked again in text form, so that a wrong key
    or model is told apart. Where the word does not come with the call, it is asked for alone: some teachers
    say nothing beside a call. So this takes one request, and three at the most. Raises TeacherRefused where
    the teacher cannot be asked, BudgetExceeded.
    """
    asked = replace(prompt, user=_question(prompt), tool_mode=told[0] if told else ToolMode.NATIVE)
    ask = partial(_ask, budget=budget, tell=tell)
    try:
        reply, settings = ask(settings, asked)
        tool_mode, reason = told or _judge(reply)
    except TeacherError as error:
        if told or Means.TOOLS_REFUSED not in meaning(error.status):
            raise TeacherRefused(str(error), error.status) from None
        tool_mode, reason = ToolMode.TEXT, f"the server takes no tools ({error})"
        reply, settings = _ask_or_refuse(ask, settings, replace(asked, tool_mode=ToolMode.TEXT))
    return _seen(ask, reply, asked, ProbeResult(tool_mode, reason, settings))


def probe_replicas(
    result: ProbeResult,
    prompt: Prompt,
    api_bases: Sequence[str],
    budget: Budget,
    tell: Callable[[str], None] = lambda _: None,
) -> ProbeResult:
    """The result without the request fields that any of these further replicas refuses.

    One request each, in the result's tool mode, none where an earlier run has asked; `tell` gets a line for
    one that is not there. Raises TeacherRefused where one takes no such request, BudgetExceeded.
    """
    asked = replace(prompt, user=_question(prompt), tool_mode=result.tool_mode)
    for api_base in api_bases:
        name = shown_url(api_base)
        if name in result.replicas:
            continue
        try:
            _, found = _ask(replace(result.settings, api_base=api_base), asked, budget, tell)
        except TeacherError as error:
            if error.status is not None and Means.RETRIED not in meaning(error.status):
                raise TeacherRefused(str(error), error.status) from None
            tell(f"A replica is not there: {error}")
            continue
        settings = replace(found, api_base=result.settings.api_base)
        result = replace(result, settings=settings, replicas=(*result.replicas, name))
    return result


_Ask = Callable[[TeacherSettings, Prompt], tuple[Reply, TeacherSettings]]


def _seen(ask: _Ask, reply: Reply, asked: Prompt, result: ProbeResult) -> ProbeResult:
    """The result with what is to be said of the teacher's sight."""
    settings = result.settings
    if not _names_word(reply) and asked.user != SIGN_QUESTION:
        asked = Prompt(asked.system, SIGN_QUESTION)
        reply, settings = _ask_or_refuse(ask, settings, asked)
    sight_warning = _sight_warning(reply, (asked.system, asked.user), _probe_picture())
    return replace(result, settings=settings, sight_warning=sight_warning)


def _ask_or_refuse(ask: _Ask, settings: TeacherSettings, prompt: Prompt) -> tuple[Reply, TeacherSettings]:
    try:
        return ask(settings, prompt)
    except TeacherError as error:
        raise TeacherRefused(str(error), error.status) from None


def _names_word(reply: Reply) -> bool:
    """Whether the sign's word stands anywhere in a reply, its thinking and its calls too."""
    arguments = json.dumps([call.arguments for call in reply.calls])
    return SIGN_WORD.lower() in f"{reply.content} {reply.reasoning} {arguments}".lower()


def _sight_warning(reply: Reply, texts: Sequence[str], sent: SentPicture) -> str | None:
    """Why the teacher seems not to have seen the sign, by what it said and by its prompt tokens.

    Tool schemas are not counted: servers render them in their own ways, some much shorter.
    """
    prompt, needed = read_tokens(reply.usage).prompt, fewest_prompt_tokens(texts, [sent.size])
    tokens = f"{prompt} prompt tokens were reported, where text and picture need at least {needed}"
    if prompt and prompt < needed:
        if _names_word(reply):
            return f"the teacher read the word in a picture, but {tokens}: figures of tokens may be too low"
        return f"the teacher did not name the word in a picture, and {tokens}: {PICTURES_DROPPED}"
    if _names_word(reply):
        return None
    if reply.finish_reason == "length":
        return "the teacher was cut off before it named the word in a picture; see --max_tokens"
    said = quote(reply.content, _MAX_QUOTED_CHARS)
    return (
        f"the teacher did not name the word {SIGN_WORD} in a picture: it said “{said}”. Perhaps "
        f"{PICTURES_DROPPED} (distil doctor finds out)"
    )


def _question(prompt: Prompt) -> str:
    if not prompt.tools:
        return SIGN_QUESTION
    name = prompt.tools[0]["function"]["name"]
    return f"Call the tool {name} once, on the whole image, and beside it name the word in the image."


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
    messages = [json.dumps(message).encode() for message in opening_messages(prompt, _probe_picture())]
    with Teacher(for_setup(settings), prompt.native_tools, budget=budget) as teacher:
        teacher.tell_by(tell)
        reply = teacher.ask(messages, _PROBE_SEED)
        return reply, settings.adapted_like(teacher.settings)


def _probe_picture() -> SentPicture:
    return encode_sent(draw_sign(SIGN_WORD), ResizeRule())
