"""What a teacher can do, found by asking it: a dozen small requests, at most `MAX_REQUESTS`.

The teacher is asked just as the main job asks it, with the schema of the zoom tool and the picture sizes
of its profile, so what is found is what the main job will meet.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from PIL import Image

from distil.doctor.findings import (
    Ability,
    Examination,
    Probe,
    problems_of,
    suggestions_of,
    warnings_of,
    working_mode,
)
from distil.doctor.marks import MARKS, DrawnMark, FoundFrame, FourNumbers, find_frame
from distil.errors import TeacherError, TeacherRefused
from distil.messages.compose import Message, opening_messages, turn_messages
from distil.messages.read import quote
from distil.messages.tags import text_outside
from distil.pictures import encode_sent
from distil.records import (
    SUCCESS_MESSAGE,
    Frame,
    Json,
    Observation,
    Prompt,
    RawCall,
    Reply,
    Size,
    ToolCall,
    ToolMode,
    Turn,
)
from distil.teacher.client import ADAPTED, Teacher, TeacherSettings, without_key
from distil.teacher.models import ask_models, nearest_names
from distil.teacher.profile import Profile, find_profile, with_frame
from distil.teacher.refusals import Means, meaning
from distil.teacher.sign import SIGN_QUESTION, SIGN_WORD, draw_sign
from distil.tools.base import BoxFrame, finite_number
from distil.tools.zoom import BOX_ARGUMENT, ZoomTool

MAX_REQUESTS = 15
_SEED = 0
_SYSTEM = "You are a helpful assistant."
_PASSING_WAIT_SECONDS = 2.0  # before a busy server is asked once more
_MAX_WAIT_SECONDS = 10.0  # someone is looking on
_MAX_UNANSWERED = 2  # each may take the whole time-out
_LIMIT_TOKENS = 16
_MAX_QUOTED_CHARS = 80
_MAX_LISTED_MODELS = 5
_ZOOMED_WORD = "LIMA"  # another place name than SIGN_WORD
_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_BOX_TEXT = re.compile(rf"[\[(]{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}[\])]")


Models = tuple[tuple[str, ...], str | None]  # their names, and why there are none


def ask_models_soon(settings: TeacherSettings) -> Models:
    """The models, not waited for long; raises TeacherRefused where nothing answers or the key is wrong."""
    patience = replace(settings.patience, max_advised_seconds=_MAX_WAIT_SECONDS)
    settings = replace(settings, patience=patience)
    return ask_models(settings, fatal=Means.WRONG_KEY | Means.FORBIDDEN)


def examine(settings: TeacherSettings, models: Models, frame: Frame | None = None) -> Examination:
    """Ask the teacher everything; `frame` is the one to tell it instead of its profile's.

    Raises TeacherRefused where not even a word of text can be asked for.
    """
    named = find_profile(settings.model)
    settings = replace(settings, token_field=named.token_field, sends_temperature=named.sends_temperature)
    interview = _Interview(settings, with_frame(named, frame))
    text = _probe_text(interview)
    picture = _probe_picture(interview)
    native = _probe_calls(interview, ToolMode.NATIVE, MARKS[0])
    written = _probe_calls(interview, ToolMode.TEXT, MARKS[1])
    _ask_for_other_boxes(interview, native, written)
    found = find_frame(interview.boxes)
    results = _probe_results(interview, native, written)
    tool_mode = working_mode(results)
    parallel = _probe_parallel(interview, tool_mode)
    limit = _probe_limit(interview)
    findings = (
        _models_finding(settings.model, *models),
        text,
        picture,
        native,
        written,
        parallel,
        *results.values(),
        _boxes_finding(found),
        *_report_findings(interview),
        limit,
        *_field_findings(settings, interview),
    )
    return Examination(
        model=settings.model,
        profile=named,
        findings=tuple(
            replace(finding, detail=without_key(finding.detail, settings.api_key)) for finding in findings
        ),
        found_frame=found,
        tool_mode=tool_mode,
        suggestions=suggestions_of(named, found, tool_mode, native),
        warnings=warnings_of(named, found, frame, picture),
        problems=problems_of(picture, (native, written), results, found),
        num_requests=interview.num_requests + 1,  # and the list of models
    )


Judge = Callable[[Reply], tuple[Ability, str]]


class _Interview:
    """Asks within the limit of requests, and keeps what the replies have in common."""

    def __init__(self, settings: TeacherSettings, profile: Profile) -> None:
        once = replace(settings.patience, max_retries=0)  # so that every request is counted
        self.settings = replace(settings, patience=once, may_adapt=True)
        self.profile = profile
        self.num_requests = 0
        self.replies: list[Reply] = []
        self.boxes: dict[DrawnMark, tuple[Size, FourNumbers]] = {}  # one for each mark that was found
        self._num_unanswered = 0  # requests in a row that no status came back for

    def ask(self, messages: Sequence[Message], tools: Sequence[Json] = (), **changes: Json) -> Reply:
        """One reply; raises TeacherError, also where the limit of requests is reached."""
        try:
            return self._ask(messages, tools, changes)
        except TeacherError as error:
            if Means.PASSING not in meaning(error.status):
                raise
        time.sleep(_PASSING_WAIT_SECONDS)
        return self._ask(messages, tools, changes)

    def probe(
        self,
        name: str,
        judge: Judge,
        messages: Sequence[Message],
        tools: Sequence[Json] = (),
        **changes: Json,
    ) -> Probe:
        """What comes of one question, judged by the reply to it."""
        try:
            return Probe(name, *judge(self.ask(messages, tools, **changes)))
        except TeacherError as error:
            return _failed(name, error)

    def _ask(self, messages: Sequence[Message], tools: Sequence[Json], changes: Mapping[str, Json]) -> Reply:
        if self.num_requests + 1 >= MAX_REQUESTS:
            raise TeacherError(f"{MAX_REQUESTS} requests were made already", attempts=0)
        if self._num_unanswered >= _MAX_UNANSWERED:
            raise TeacherError("the server has stopped answering", attempts=0)
        encoded = [json.dumps(message).encode() for message in messages]
        with Teacher(replace(self.settings, **changes), tools) as teacher:
            try:
                reply = teacher.ask(encoded, _SEED)
            except TeacherError as error:
                self._num_unanswered = self._num_unanswered + 1 if error.status is None else 0
                raise
            finally:
                self._adapt(teacher.settings)
        self._num_unanswered = 0
        self.replies.append(reply)
        return reply

    def _adapt(self, settings: TeacherSettings) -> None:
        """Count the request, and one more for each request field that the server refused by name."""
        adapted = self.settings.adapted_like(settings)
        self.num_requests += 1 + len(_refused_fields(self.settings, adapted))
        self.settings = adapted


# --- text, fields and pictures ---


def _probe_text(interview: _Interview) -> Probe:
    try:
        reply = interview.ask(_text_messages("Reply with the one word: ready"))
    except TeacherError as error:
        if error.status is None or Means.PLAINLY_REFUSED in meaning(error.status):
            raise TeacherRefused(str(error), error.status) from None
        return _failed("plain text", error)
    if not _said(reply):
        return Probe("plain text", Ability.PARTLY, _silence(reply))
    return Probe("plain text", Ability.YES, quote(_said(reply), _MAX_QUOTED_CHARS))


def _field_findings(before: TeacherSettings, interview: _Interview) -> tuple[Probe, ...]:
    after, refused = interview.settings, _refused_fields(before, interview.settings)
    token_detail = after.token_field
    if "token_field" in refused:
        token_detail += f" ({before.token_field} is refused; a run finds this out by itself)"
    findings = [Probe("token-limit field", Ability.YES, token_detail)]
    for name in ("seed", "temperature"):
        result, detail = Ability.YES, "accepted"
        if f"sends_{name}" in refused:
            result, detail = Ability.NO, "refused; a run leaves it out by itself"
        elif not getattr(before, f"sends_{name}"):
            result, detail = Ability.NOT_ASKED, "this family refuses it: it is never sent"
        findings.append(Probe(name, result, detail))
    if not interview.replies:
        return tuple(replace(finding, result=Ability.NOT_ASKED, detail="no reply") for finding in findings)
    return tuple(findings)


def _refused_fields(before: TeacherSettings, after: TeacherSettings) -> list[str]:
    return [name for name in ADAPTED if getattr(before, name) != getattr(after, name)]


def _probe_picture(interview: _Interview) -> Probe:
    messages = _opening(interview, Prompt(_SYSTEM, SIGN_QUESTION), draw_sign(SIGN_WORD))
    return interview.probe("picture", partial(_reading, SIGN_WORD), messages)


def _reading(word: str, reply: Reply) -> tuple[Ability, str]:
    said = _said(reply)
    if word.lower() in said.lower():
        return Ability.YES, f"seen: the word {word} was read"
    unread = f"accepted, but the word {word} was not read: {quote(said, _MAX_QUOTED_CHARS)}"
    return Ability.PARTLY, unread if said else _silence(reply)


def _probe_limit(interview: _Interview) -> Probe:
    """Whether the reply ends at the limit: some servers accept a field that they do not know."""
    question = _text_messages("Write the numbers from 1 to 100, separated by spaces.")
    return interview.probe("token limit kept", _keeping_limit, question, max_tokens=_LIMIT_TOKENS)


def _keeping_limit(reply: Reply) -> tuple[Ability, str]:
    if reply.finish_reason == "length":
        return Ability.YES, f"cut off after {_LIMIT_TOKENS} tokens, and said so"
    detail = f"{_LIMIT_TOKENS} tokens were allowed, the reply has {len(reply.content)} characters"
    return Ability.PARTLY, f"{detail} and finish_reason {reply.finish_reason}"


# --- calls and boxes ---


def _probe_calls(interview: _Interview, tool_mode: ToolMode, mark: DrawnMark) -> Probe:
    """Whether a call comes back, or an answer alone, with the box of a mark, which the interview keeps."""
    schema = ZoomTool().schema(BoxFrame(interview.profile.frame))
    tools = () if tool_mode is ToolMode.NONE else (schema,)
    question = _box_question(schema, tool_mode)
    prompt = Prompt(_SYSTEM, question, tools, tool_mode, interview.profile.states_size)
    sent = encode_sent(mark.draw(), interview.profile.rule)

    def keep_box(reply: Reply) -> tuple[Ability, str]:
        numbers = _box_numbers(reply)
        if numbers is not None:
            interview.boxes[mark] = sent.size, numbers
        return _calling(tool_mode, reply)

    name = f"{tool_mode.value} calls"
    return interview.probe(name, keep_box, opening_messages(prompt, sent), prompt.native_tools)


def _calling(tool_mode: ToolMode, reply: Reply) -> tuple[Ability, str]:
    if not reply.calls:
        detail = _silence(reply) if not _said(reply) else f"no call: {quote(_said(reply), _MAX_QUOTED_CHARS)}"
        return Ability.NO, detail
    problem = reply.calls[0].problem
    if problem is not None:
        return Ability.PARTLY, problem
    if tool_mode is ToolMode.NATIVE and reply.call_form is ToolMode.TEXT:
        return Ability.PARTLY, "the server passes calls on as text"
    detail = f"{reply.calls[0].name} {json.dumps(reply.calls[0].arguments)}"
    return Ability.YES, quote(detail, _MAX_QUOTED_CHARS)


def _box_question(schema: Mapping[str, Json], tool_mode: ToolMode) -> str:
    function = schema["function"]
    if tool_mode is not ToolMode.NONE:
        return (
            f"Call the tool {function['name']} once, with the box of the red rectangle. Write nothing else."
        )
    description = function["parameters"]["properties"][BOX_ARGUMENT]["description"]
    form = description.partition(", ")[2]
    return f"Where is the red rectangle? Answer with its box alone, as {form}"


def _box_numbers(reply: Reply) -> FourNumbers | None:
    for call in reply.calls:
        value = call.arguments.get(BOX_ARGUMENT) if isinstance(call.arguments, dict) else None
        numbers = _four_numbers(value if isinstance(value, list) else _BOX_TEXT.findall(str(value)))
        if numbers is not None:
            return numbers
    return _four_numbers(_BOX_TEXT.findall(_said(reply)))


def _four_numbers(values: Sequence[Json]) -> FourNumbers | None:
    """The four finite numbers of a list, or of the last match of `_BOX_TEXT`."""
    if values and isinstance(values[-1], tuple):
        values = values[-1]
    numbers = [number for number in map(finite_number, values) if number is not None]
    if len(numbers) != len(values) or len(numbers) != 4:
        return None
    return numbers[0], numbers[1], numbers[2], numbers[3]


def _ask_for_other_boxes(interview: _Interview, native: Probe, written: Probe) -> None:
    """Ask for the boxes of the marks that the call probes did not bring, in a form of calls that works."""
    tool_mode = ToolMode.NONE
    for mode, finding in ((ToolMode.TEXT, written), (ToolMode.NATIVE, native)):
        tool_mode = mode if finding.result is Ability.YES else tool_mode
    for mark in MARKS:
        if mark not in interview.boxes:
            _probe_calls(interview, tool_mode, mark)


def _boxes_finding(found: FoundFrame) -> Probe:
    detail = f"{found.num_hits} of {len(MARKS)} marks hit, mean overlap {found.overlap:.2f}"
    if found.frame is None:
        why = "no box came back" if not found.num_answers else f"the boxes miss the marks ({detail})"
        return Probe("coordinates", Ability.NO, why)
    if found.max_area_px is not None:
        detail = f"of a picture shrunk to about {found.max_area_px} pixels; {detail}"
    sure = Ability.YES if found.is_sure else Ability.PARTLY
    return Probe("coordinates", sure, f"{found.frame.value}: {detail}")


def _probe_parallel(interview: _Interview, tool_mode: ToolMode) -> Probe:
    probe = "parallel calls"
    if tool_mode is ToolMode.NONE:
        return Probe(probe, Ability.NOT_ASKED, "no form of calls works")
    tools = (ZoomTool().schema(BoxFrame(interview.profile.frame)),)
    question = (
        f"In one reply, call the tool {ZoomTool().name} two times: with the left half of the image, and with "
        "its right half. Write nothing else."
    )
    prompt = Prompt(_SYSTEM, question, tools, tool_mode, interview.profile.states_size)
    messages = _opening(interview, prompt, draw_sign(SIGN_WORD))
    return interview.probe(probe, _calling_twice, messages, prompt.native_tools)


def _calling_twice(reply: Reply) -> tuple[Ability, str]:
    result = Ability.YES if len(reply.calls) > 1 else Ability.NO
    return result, f"{len(reply.calls)} of 2 calls in one turn; a run needs only one"


# --- pictures in tool results ---


def _probe_results(interview: _Interview, native: Probe, written: Probe) -> dict[ToolMode, Probe]:
    """A finding per form of calls that works, the second only where the first does not take pictures."""
    findings: dict[ToolMode, Probe] = {}
    for tool_mode, calls in ((ToolMode.NATIVE, native), (ToolMode.TEXT, written)):
        is_settled = any(finding.result is not Ability.NO for finding in findings.values())
        if calls.result is Ability.YES and not is_settled:
            findings[tool_mode] = _probe_result(interview, tool_mode)
    if not findings:
        reason = "no form of calls works"
        return {ToolMode.NONE: Probe("picture in tool result", Ability.NOT_ASKED, reason)}
    return findings


def _probe_result(interview: _Interview, tool_mode: ToolMode) -> Probe:
    probe = f"picture in tool result ({tool_mode.value})"
    tools = (ZoomTool().schema(BoxFrame(interview.profile.frame)),)
    question = "Zoom in on the sign once. Then answer with the word that the zoomed image shows, alone."
    prompt = Prompt(_SYSTEM, question, tools, tool_mode, interview.profile.states_size)
    messages = _opening(interview, prompt, draw_sign("· · ·"))
    messages += turn_messages(_zoomed_turn(interview, tool_mode))
    return interview.probe(probe, partial(_reading, _ZOOMED_WORD), messages, prompt.native_tools)


def _zoomed_turn(interview: _Interview, tool_mode: ToolMode) -> Turn:
    """A turn of a teacher that has zoomed in, as the main job would send it back."""
    call = RawCall(ZoomTool().name, {BOX_ARGUMENT: [80, 120, 560, 360]}, "call_1")
    written = json.dumps({"name": call.name, "arguments": call.arguments})
    content = f"<tool_call>\n{written}\n</tool_call>" if tool_mode is ToolMode.TEXT else ""
    reply = Reply(content, None, None, None, (call,), tool_mode, None)
    sent = encode_sent(draw_sign(_ZOOMED_WORD), interview.profile.rule)
    observation = Observation(True, SUCCESS_MESSAGE, sent=sent)
    return Turn(1, reply, (ToolCall(call, call.arguments, False, observation),))


# --- what the replies report ---


def _models_finding(model: str, names: Sequence[str], problem: str | None) -> Probe:
    if problem is not None:
        return Probe("models list", Ability.NO, problem)
    listed = ", ".join(names[:_MAX_LISTED_MODELS]) or "empty"
    listed += ", …" if len(names) > _MAX_LISTED_MODELS else ""
    if model in names:
        return Probe("models list", Ability.YES, listed)
    near = ", ".join(nearest_names(model, names))
    return Probe("models list", Ability.PARTLY, f"{model} is not in it; the nearest there: {near or 'none'}")


def _report_findings(interview: _Interview) -> tuple[Probe, Probe]:
    fields = sorted({reply.reasoning_field for reply in interview.replies if reply.reasoning_field})
    reasoning = Probe("reasoning field", Ability.NO, "no reply carried reasoning")
    if fields:
        places = ["<think> in content" if field == "content" else field for field in fields]
        reasoning = Probe("reasoning field", Ability.YES, ", ".join(places))
    usages = [reply.usage for reply in interview.replies if reply.usage]
    names = sorted({name for usage in usages for name in _usage_names(usage)})
    if not names:
        return reasoning, Probe("usage fields", Ability.NO, "not reported: a run's tokens are not known")
    has_both = {"prompt_tokens", "completion_tokens"} <= set(names)
    is_whole = has_both and len(usages) == len(interview.replies)
    return reasoning, Probe("usage fields", Ability.YES if is_whole else Ability.PARTLY, ", ".join(names))


def _usage_names(usage: Mapping[str, Json]) -> list[str]:
    """The names of the numbers that are reported; details as `group.name`."""
    names = [name for name, value in usage.items() if isinstance(value, int)]
    groups = [(name, value) for name, value in usage.items() if isinstance(value, dict)]
    return names + [f"{group}.{name}" for group, each in groups for name in each if each[name] is not None]


# --- messages and words ---


def _text_messages(question: str) -> list[Message]:
    content = [{"type": "text", "text": question}]
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": content}]


def _opening(interview: _Interview, prompt: Prompt, image: Image.Image) -> list[Message]:
    return opening_messages(prompt, encode_sent(image, interview.profile.rule))


def _failed(probe: str, error: TeacherError) -> Probe:
    return Probe(probe, Ability.NO if error.attempts else Ability.NOT_ASKED, str(error))


def _said(reply: Reply) -> str:
    return text_outside(reply.content, thinking=True, tool_calls=True).strip()


def _silence(reply: Reply) -> str:
    if reply.calls:
        return "accepted, but answered with a tool call"
    if reply.finish_reason == "length":
        return "cut off before it said anything; see --max_tokens"
    return reply.refusal or "an empty reply"
