"""A trace and its pictures → the conversation that a student learns from, in no trainer's form yet."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from distil.errors import TraceError
from distil.exports.attribution import ATTRIBUTION, attribution_of
from distil.exports.escape import escaped, escaped_json, json_text
from distil.exports.options import ExportOptions
from distil.exports.pictures import Shown, ShownCall, box_frame
from distil.messages.compose import observation_text, size_sentence, system_text
from distil.messages.tags import split_thinking, tool_call_bodies
from distil.records import (
    FailedCalls,
    Frame,
    Json,
    Observation,
    Prompt,
    Reply,
    SentPicture,
    Size,
    StopReason,
    Thoughts,
    ToolMode,
)
from distil.rollout import stop_reason
from distil.store.trace_file import StoredTrace
from distil.tools.toolbox import find_tool, success_message

Part = str | SentPicture


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call: its name, its arguments as JSON text, and the two as the text within `<tool_call>`."""

    name: str
    arguments: str
    body: str


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a call: a text and perhaps a picture, which stands before it."""

    text: str
    picture: SentPicture | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """An assistant's turn: text and calls in the order in which they stand, and the results of the calls."""

    pieces: tuple[str | Call, ...]
    results: tuple[Result, ...]
    is_trained: bool

    @property
    def calls(self) -> tuple[Call, ...]:
        return tuple(piece for piece in self.pieces if isinstance(piece, Call))

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
class Conversation:
    """What a student learns from one trace; no text in it has special words but those placed here.

    It ends with its last turn that is trained. `origin` says which trace it is of.
    """

    origin: Mapping[str, Json]
    system: str  # without the description of the tools
    tools: tuple[Mapping[str, Json], ...]
    question: str
    photo: SentPicture = field(repr=False)
    turns: tuple[Turn, ...]

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
        results = [result for turn in self.turns for result in turn.results]
        return [self.photo, *(result.picture for result in results if result.picture is not None)]


def conversation_of(trace: StoredTrace, shown: Shown, options: ExportOptions) -> Conversation | None:
    """The conversation of a trace, given its pictures; None where nothing of it is left to train."""
    turns = _until_trained([turn for turn in _turns(trace, shown, options) if turn is not None])
    if not turns:
        return None
    return Conversation(
        origin=origin_of(trace, options),
        system=escaped(trace.prompt.system),
        tools=_tools(trace, options),
        question=_question(trace, shown, options),
        photo=shown.photo,
        turns=turns,
    )


def origin_of(trace: StoredTrace, options: ExportOptions) -> dict[str, Json]:
    """What tells an exported row's trace, for whoever wants to look at it or make the row again."""
    of_owner = {ATTRIBUTION: attribution_of(trace.json["sample_data"])} if options.has_attribution else {}
    return {
        "id": f"{trace.path.absolute().parent.name}/{trace.path.name}",
        "sample_index": trace.sample_id.index,
        "rollout": trace.sample_id.rollout,
        "trace_sha256": trace.json["integrity_sha256"],
        **of_owner,
    }


def _tools(trace: StoredTrace, options: ExportOptions) -> tuple[Mapping[str, Json], ...]:
    """The schemas that the teacher was offered, with boxes in the student's frame."""
    settings, boxes = trace.settings, box_frame(trace, options)
    if settings.tool_mode is ToolMode.NONE:
        return ()
    is_same = settings.coordinates is boxes.frame
    schemas = settings.tool_schemas if is_same else replace(settings.toolbox(), boxes=boxes).schemas()
    return tuple(escaped_json(schema) for schema in schemas)


def _question(trace: StoredTrace, shown: Shown, options: ExportOptions) -> str:
    question = escaped(trace.prompt.user)
    if trace.settings.states_size and options.coordinates is Frame.PIXEL:
        question += f"\n\n{size_sentence(shown.photo.size)}"
    return question


def _until_trained(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns up to the last that is trained, whose results nobody reads."""
    trained = [position for position, turn in enumerate(turns) if turn.is_trained]
    if not trained:
        return ()
    last = trained[-1]
    return (*turns[:last], replace(turns[last], results=()))


def _turns(trace: StoredTrace, shown: Shown, options: ExportOptions) -> Iterator[Turn | None]:
    for number, reply in enumerate(trace.replies, start=1):
        calls = [call for call in shown.calls if call.stored.turn == number]
        turn = _turn(trace, reply, calls, options)
        is_masked = trace.json["conversation_log"][number - 1].get("trained") is False  # of an imported one
        yield replace(turn, is_trained=False) if turn is not None and is_masked else turn


def _turn(
    trace: StoredTrace, reply: Reply, calls: Sequence[ShownCall], options: ExportOptions
) -> Turn | None:
    """A turn as the student is shown it; None where nothing of it is left."""
    failed = [call for call in calls if not call.stored.success]
    drops = options.failed_calls is FailedCalls.DROP
    if drops and failed and len(failed) == len(calls):
        return None
    thoughts, pieces = _pieces(trace, reply, calls, options)
    results = [_result(trace, call, options) for call in calls]
    if drops:
        pieces = [piece for piece in pieces if not (isinstance(piece, _Placed) and not piece.succeeded)]
        results = [result for call, result in zip(calls, results, strict=True) if call.stored.success]
    said = _stripped([piece.call if isinstance(piece, _Placed) else piece for piece in pieces])
    whole = tuple(_with_thoughts(thoughts, said, options.thoughts))
    is_whole = stop_reason(reply) not in (StopReason.TRUNCATED, StopReason.REFUSED)
    is_trained = is_whole and bool(whole) and (drops or not failed or _may_train(trace, failed, options))
    return Turn(whole, tuple(results), is_trained)


def _may_train(trace: StoredTrace, failed: Sequence[ShownCall], options: ExportOptions) -> bool:
    """Whether a turn with failed calls is trained: not where a box of them stands in another frame."""
    if options.failed_calls is not FailedCalls.TRAIN:
        return False
    return all(_is_in_frame(trace, call, options) for call in failed)


def _is_in_frame(trace: StoredTrace, call: ShownCall, options: ExportOptions) -> bool:
    tool = find_tool(call.stored.raw.name)
    if call.arguments is not None or tool is None or tool.box_of(call.stored.raw.arguments) is None:
        return True
    return trace.settings.coordinates is options.coordinates is not Frame.PIXEL


@dataclass(frozen=True, slots=True)
class _Placed:
    """A call where it stands in its turn."""

    call: Call
    succeeded: bool


def _pieces(
    trace: StoredTrace, reply: Reply, calls: Sequence[ShownCall], options: ExportOptions
) -> tuple[str, list[str | _Placed]]:
    """A turn's thoughts, escaped, and what else it says, which is not, with its calls in place."""
    thoughts, said = split_thinking(reply.content)
    if reply.reasoning and reply.reasoning_field != "content":
        thoughts = "\n".join(dict.fromkeys(text for text in (reply.reasoning.strip(), thoughts) if text))
    bodies = list(tool_call_bodies(said))
    if reply.call_form is ToolMode.NATIVE or len(bodies) != len(calls):
        text = said.strip()
        placed: list[str | _Placed] = []
        for call in calls:
            placed += ["\n", _placed(call, None)]
        return escaped(thoughts), [text, *placed[0 if text else 1 :]]
    pieces: list[str | _Placed] = []
    position = 0
    for (start, end, body), call in zip(bodies, calls, strict=True):
        pieces += [said[position:start], _placed(call, body)]
        position = end
    return escaped(thoughts), [*pieces, said[position:]]


def _placed(call: ShownCall, written: str | None) -> _Placed:
    """A call with the arguments that the student is to write; `written` is its body by the teacher."""
    raw = call.stored.raw
    name = json_text(raw.name)
    arguments = escaped(raw.arguments) if isinstance(raw.arguments, str) else json_text(raw.arguments)
    if call.arguments is not None:
        arguments = json_text(dict(call.arguments))
    body = f'{{"name": {name}, "arguments": {arguments}}}'
    if written is not None and (not raw.name or isinstance(raw.arguments, str)):
        body = escaped(written.strip())  # no call that can be read: as it stands
    return _Placed(Call(json.loads(name), arguments, body), call.stored.success)


def _result(trace: StoredTrace, call: ShownCall, options: ExportOptions) -> Result:
    stored, message = call.stored, call.stored.message
    if stored.success and call.sent_size is not None and call.picture is not None:
        message = _restated_message(message, call.sent_size, call.picture.size, options)
    observation = Observation(stored.success, message, stdout=stored.stdout)
    return Result(escaped(observation_text(observation)), call.picture)


def _restated_message(message: str, sent: Size, exported: Size, options: ExportOptions) -> str:
    """The message of a call that worked, with the picture's size as exported where it is of use."""
    if message != success_message(sent):
        return message
    return success_message(exported if options.coordinates is Frame.PIXEL else None)


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
    if not thoughts or kind is Thoughts.DROP:
        return list(said)
    text = f"<think>\n{thoughts}\n</think>" if kind is Thoughts.THINK else thoughts
    return [f"{text}\n\n", *said] if said else [text]


def _response_parts(results: Sequence[Result]) -> Iterator[Part]:
    for number, result in enumerate(results):
        yield "<tool_response>\n" if number == 0 else "\n<tool_response>\n"
        if result.picture is not None:
            yield result.picture
            yield "\n"
        yield f"{result.text}\n</tool_response>"


def check_roles(messages: Sequence[Message]) -> None:
    """Raise TraceError where user and assistant do not take turns, which trainers refuse or join."""
    roles = [message.role for message in messages if message.role != "system"]
    if any(role != ("user", "assistant")[position % 2] for position, role in enumerate(roles)):
        raise TraceError("user and assistant do not take turns in it")
