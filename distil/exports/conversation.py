"""A trace and its pictures → the conversation that a student learns from, in no trainer's form yet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from distil.commands.flags import FormFlags
from distil.errors import TraceError
from distil.exports.escape import escaped, escaped_json, json_text
from distil.exports.pictures import ShownCall, box_frame, has_box
from distil.messages.compose import observation_text, size_sentence, system_text
from distil.messages.tags import split_thinking, tool_call_bodies
from distil.records import (
    Frame,
    Json,
    Prompt,
    Reply,
    SentPicture,
    StopReason,
    Thoughts,
    ToolMode,
)
from distil.rollout import stop_reason
from distil.store.trace_file import StoredTrace
from distil.tools.toolbox import success_message

Part = str | SentPicture
ATTRIBUTION = "attribution"  # the column of an export's rows
_NAMES = re.compile(
    r"(?<![a-z])(licen[cs]es?|attributions?|authors?|sources?|credits?|copyrights?|photographers?|owners?)(?![a-z])"
)


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call and what came of it: a text and perhaps a picture, which stands before it.

    `arguments` are JSON text, `body` is the call as the text within `<tool_call>`.
    """

    name: str
    arguments: str
    body: str
    succeeded: bool
    result: str
    picture: SentPicture | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class StudentTurn:
    """An assistant's turn: text and calls in the order in which they stand."""

    pieces: tuple[str | Call, ...]
    is_trained: bool
    is_answered: bool = True  # whether the results of its calls follow

    @property
    def calls(self) -> tuple[Call, ...]:
        return tuple(piece for piece in self.pieces if isinstance(piece, Call))

    @property
    def results(self) -> tuple[Call, ...]:
        """The calls whose results follow it."""
        return self.calls if self.is_answered else ()

    @property
    def text(self) -> str:
        """What it says beside its calls."""
        return "".join(piece for piece in self.pieces if isinstance(piece, str)).strip()

    def written(self) -> str:
        """All of it in the text call form."""
        return "".join(
            f"<tool_call>\n{piece.body}\n</tool_call>" if isinstance(piece, Call) else piece
            for piece in self.pieces
        )


@dataclass(frozen=True, slots=True)
class Message:
    """A message in the text call form: parts in order; `is_trained` is None but for an assistant's."""

    role: str
    parts: tuple[Part, ...]
    is_trained: bool | None = None

    @property
    def pictures(self) -> list[SentPicture]:
        return [part for part in self.parts if not isinstance(part, str)]

    def text(self, placeholder: str) -> str:
        """All of it as one text, with a placeholder for each picture."""
        return "".join(part if isinstance(part, str) else placeholder for part in self.parts)


@dataclass(frozen=True, slots=True)
class StudentConversation:
    """What a student learns from one trace; no text in it has special words but those placed here.

    It ends with its last turn that is trained. `origin` says which trace it is of.
    """

    origin: Mapping[str, Json]
    system: str  # without the description of the tools
    tools: tuple[Mapping[str, Json], ...]
    question: str
    photo: SentPicture = field(repr=False)
    turns: tuple[StudentTurn, ...]

    def messages(self) -> list[Message]:
        """The text call form."""
        described = self.described_system()
        messages = [Message("system", (described,))] if described else []
        messages.append(Message("user", (self.photo, self.question)))
        for turn in self.turns:
            messages.append(Message("assistant", (turn.written(),), turn.is_trained))
            if turn.results:
                messages.append(Message("user", tuple(_response_parts(turn.results))))
        return messages

    def described_system(self) -> str:
        """The system text with the description of the tools."""
        return system_text(Prompt(self.system, "", self.tools, ToolMode.TEXT))

    def pictures(self) -> list[SentPicture]:
        """All pictures in their order."""
        answered = [call for turn in self.turns for call in turn.results]
        return [self.photo, *(call.picture for call in answered if call.picture is not None)]


def conversation_of(
    trace: StoredTrace, photo: SentPicture, calls: Sequence[ShownCall], form: FormFlags
) -> StudentConversation | None:
    """The conversation of a trace as it is shown; None where nothing of it is left to train.

    Raises TraceError where user and assistant do not take turns.
    """
    turns = _until_trained([turn for turn in _turns(trace, calls, form) if turn is not None])
    if not turns:
        return None
    conversation = StudentConversation(
        origin=origin_of(trace, form),
        system=escaped(trace.prompt.system),
        tools=_tools(trace, form),
        question=_question(trace, photo, form),
        photo=photo,
        turns=turns,
    )
    _check_roles(conversation.messages())
    return conversation


def origin_of(trace: StoredTrace, form: FormFlags) -> dict[str, Json]:
    """What tells an exported row's trace, for whoever wants to look at it or make the row again."""
    of_owner = {ATTRIBUTION: attribution_of(trace.json["sample_data"])} if form.has_attribution else {}
    return {
        "id": f"{trace.path.absolute().parent.name}/{trace.path.name}",
        "sample_index": trace.sample_id.index,
        "rollout": trace.sample_id.rollout,
        "trace_sha256": trace.json["integrity_sha256"],
        **of_owner,
    }


def _tools(trace: StoredTrace, form: FormFlags) -> tuple[Mapping[str, Json], ...]:
    """The schemas that the teacher was offered, with boxes in the student's frame."""
    settings, boxes = trace.settings, box_frame(trace, form)
    if settings.tool_mode is ToolMode.NONE:
        return ()
    is_same = settings.coordinates is boxes.frame
    schemas = settings.tool_schemas if is_same else replace(settings.toolbox(), boxes=boxes).schemas()
    return tuple(escaped_json(schema) for schema in schemas)


def _question(trace: StoredTrace, photo: SentPicture, form: FormFlags) -> str:
    question = escaped(trace.prompt.user)
    if trace.settings.states_size and form.coordinates is Frame.PIXEL:
        question += f"\n\n{size_sentence(photo.size)}"
    return question


def _until_trained(turns: Sequence[StudentTurn]) -> tuple[StudentTurn, ...]:
    """The turns up to the last that is trained, whose results nobody reads."""
    trained = [position for position, turn in enumerate(turns) if turn.is_trained]
    if not trained:
        return ()
    last = trained[-1]
    return (*turns[:last], replace(turns[last], is_answered=False))


def _turns(trace: StoredTrace, shown: Sequence[ShownCall], form: FormFlags) -> Iterator[StudentTurn | None]:
    log = trace.json["tool_calls_log"]
    for had, entry in zip(trace.turns, trace.json["conversation_log"], strict=True):
        calls = [call for call, logged in zip(shown, log, strict=True) if logged["turn"] == had.number]
        turn = _turn(trace, had.reply, calls, form)
        is_masked = entry.get("trained") is False  # of an imported one
        yield replace(turn, is_trained=False) if turn is not None and is_masked else turn


def _turn(
    trace: StoredTrace, reply: Reply, calls: Sequence[ShownCall], form: FormFlags
) -> StudentTurn | None:
    """A turn as the student is shown it; None where nothing of it is left."""
    failed = [call for call in calls if not call.stored.observation.success]
    drops = form.errors == "drop"
    if drops and failed and len(failed) == len(calls):
        return None
    thoughts, pieces = _pieces(reply, calls, form)
    if drops:
        pieces = [piece for piece in pieces if isinstance(piece, str) or piece.succeeded]
    whole = tuple(_with_thoughts(thoughts, _stripped(pieces), form.reasoning))
    is_whole = stop_reason(reply) not in (StopReason.TRUNCATED, StopReason.REFUSED)
    is_trained = is_whole and bool(whole) and (drops or not failed or _may_train(trace, failed, form))
    return StudentTurn(whole, is_trained)


def _may_train(trace: StoredTrace, failed: Sequence[ShownCall], form: FormFlags) -> bool:
    """Whether a turn with failed calls is trained: not where a box of them stands in another frame."""
    if form.errors != "train":
        return False
    return all(_is_in_frame(trace, call, form) for call in failed)


def _is_in_frame(trace: StoredTrace, call: ShownCall, form: FormFlags) -> bool:
    if call.arguments is not None or not has_box(call.stored):
        return True
    return trace.settings.coordinates is form.coordinates is not Frame.PIXEL


def _pieces(reply: Reply, calls: Sequence[ShownCall], form: FormFlags) -> tuple[str, list[str | Call]]:
    """A turn's thoughts, escaped, and what else it says, which is not, with its calls in place."""
    thoughts, said = split_thinking(reply.content)
    if reply.reasoning and reply.reasoning_field != "content":
        thoughts = "\n".join(dict.fromkeys(text for text in (reply.reasoning.strip(), thoughts) if text))
    bodies = list(tool_call_bodies(said))
    if reply.call_form is ToolMode.NATIVE or len(bodies) != len(calls):
        text = said.strip()
        placed: list[str | Call] = []
        for call in calls:
            placed += ["\n", _call(call, None, form)]
        return escaped(thoughts), [text, *placed[0 if text else 1 :]]
    pieces: list[str | Call] = []
    position = 0
    for (start, end, body), call in zip(bodies, calls, strict=True):
        pieces += [said[position:start], _call(call, body, form)]
        position = end
    return escaped(thoughts), [*pieces, said[position:]]


def _call(call: ShownCall, written: str | None, form: FormFlags) -> Call:
    """A call with the arguments that the student is to write; `written` is its body by the teacher."""
    raw = call.stored.raw
    name = json_text(raw.name)
    arguments = escaped(raw.arguments) if isinstance(raw.arguments, str) else json_text(raw.arguments)
    if call.arguments is not None:
        arguments = json_text(dict(call.arguments))
    body = f'{{"name": {name}, "arguments": {arguments}}}'
    if written is not None and (not raw.name or isinstance(raw.arguments, str)):
        body = escaped(written.strip())  # no call that can be read: as it stands
    succeeded = call.stored.observation.success
    return Call(json.loads(name), arguments, body, succeeded, _result_text(call, form), call.picture)


def _result_text(call: ShownCall, form: FormFlags) -> str:
    """What came of a call; a message that is its picture's size says it as exported, where it is of use."""
    stored, message = call.stored.observation, call.stored.observation.message
    if call.picture is not None and message == success_message(call.sent_size):
        message = success_message(call.picture.size if form.coordinates is Frame.PIXEL else None)
    return escaped(observation_text(replace(stored, message=message)))


def _stripped(pieces: Sequence[str | Call]) -> list[str | Call]:
    """The pieces without white space at both ends, their texts escaped.

    Texts between which a call was left out are one: together they may be a special word.
    """
    kept: list[str | Call] = []
    for piece in pieces:
        if isinstance(piece, str) and kept and isinstance(kept[-1], str):
            kept[-1] += piece
        else:
            kept.append(piece)
    if kept and isinstance(kept[0], str):
        kept[0] = kept[0].lstrip()
    if kept and isinstance(kept[-1], str):
        kept[-1] = kept[-1].rstrip()
    return [escaped(piece) if isinstance(piece, str) else piece for piece in kept if piece]


def _with_thoughts(thoughts: str, said: Sequence[str | Call], kind: Thoughts) -> list[str | Call]:
    if not thoughts or kind == "drop":
        return list(said)
    text = f"<think>\n{thoughts}\n</think>" if kind == "think" else thoughts
    return [f"{text}\n\n", *said] if said else [text]


def _response_parts(results: Sequence[Call]) -> Iterator[Part]:
    for number, call in enumerate(results):
        yield "<tool_response>\n" if number == 0 else "\n<tool_response>\n"
        if call.picture is not None:
            yield call.picture
            yield "\n"
        yield f"{call.result}\n</tool_response>"


def _check_roles(messages: Sequence[Message]) -> None:
    """Raise TraceError where user and assistant do not take turns, which trainers refuse or join."""
    roles = [message.role for message in messages if message.role != "system"]
    if any(role != ("user", "assistant")[position % 2] for position, role in enumerate(roles)):
        raise TraceError("user and assistant do not take turns in it")


# --- whose a row is: the columns of its dataset that name a licence, an author or a source ---


def is_attribution(name: str) -> bool:
    """Whether a column's name, or one of the words in it, says that it is of licence or origin."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    return _NAMES.search(words) is not None


def attribution_of(row: Mapping[str, Json]) -> str:
    """What a row of a dataset says of licence and origin, as JSON text, for Arrow has no other free form."""
    return json.dumps(dict(_stated(row)), ensure_ascii=False, sort_keys=True)


def _stated(row: Mapping[str, Json], before: str = "") -> Iterator[tuple[str, Json]]:
    for key, value in row.items():
        name = before + key
        if isinstance(value, dict):
            yield from _stated(value, f"{name}.")
        elif is_attribution(name) and value is not None:
            yield name, value
