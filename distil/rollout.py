"""One sample to one rollout: ask, run the calls, show what they gave, until the teacher answers."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace

from distil.errors import ContextOverflow, SampleError
from distil.messages.compose import encoded, opening_messages, turn_messages
from distil.pictures import encode_sent
from distil.records import (
    Json,
    Observation,
    Prompt,
    Reply,
    Rollout,
    Sample,
    SampleId,
    SentPicture,
    StopReason,
    ToolCall,
    Turn,
)
from distil.tasks.base import Task
from distil.tools.base import Scene
from distil.tools.toolbox import Toolbox

Ask = Callable[[Sequence[bytes], int], Reply]  # encoded messages and a seed to a reply

MAX_CALLS_A_TURN = 32  # each may bring a picture, which every further request carries

_STOPS = {"length": StopReason.TRUNCATED, "content_filter": StopReason.REFUSED}


@dataclass(frozen=True)
class RolloutSettings:
    """What every rollout of a run shares."""

    task: Task
    prompt: Prompt
    toolbox: Toolbox
    max_turns: int
    seed: int
    keeps_pictures: bool = True  # the files of what tools made, in the rollout's turns


def run_rollout(sample: Sample, ask: Ask, settings: RolloutSettings) -> Rollout:
    """Solve one sample; raises what `ask` raises, but a context overflow ends a sample that has turns.

    Raises SampleError before anything is asked where the row has no truth.
    """
    return run_conversation(Conversation.start(sample, settings), ask)


def run_conversation(conversation: Conversation, ask: Ask) -> Rollout:
    """Go on from the opening of a conversation to its end; raises as `run_rollout` does."""
    settings, sample_id = conversation.settings, conversation.sample.id
    stop: StopReason | None = None
    for number in range(1, settings.max_turns + 1):
        try:
            reply = ask(conversation.messages, turn_seed(settings.seed, sample_id, number))
        except ContextOverflow:
            if not conversation.turns:
                raise
            stop = StopReason.CONTEXT_OVERFLOW
            break
        stop = stop_reason(reply)
        calls = () if stop else conversation.run_calls(reply)
        conversation.append(Turn(number, reply, calls))
        if stop:
            break
    return _finish(conversation, stop or StopReason.MAX_TURNS)


def stop_reason(reply: Reply) -> StopReason | None:
    """Why a reply ends the rollout, or None where its calls have to be run first."""
    if reply.finish_reason in _STOPS:
        return _STOPS[reply.finish_reason]
    if reply.calls:
        return None
    return StopReason.REFUSED if reply.refusal and not reply.content else StopReason.ANSWERED


def turn_seed(seed: int, sample_id: SampleId, turn: int) -> int:
    """The seed of one request: 31 bits that depend on the run's seed, the sample and the turn alone."""
    digest = hashlib.sha256(f"{seed}:{sample_id}:{turn}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


@dataclass
class Conversation:
    """A sample's state: what was said so far, encoded once, and the scene that the calls made.

    It waits for the teacher nearly all the time, so of its pictures it holds no more than the messages.
    """

    sample: Sample
    truth: Mapping[str, Json]
    settings: RolloutSettings
    sent: SentPicture
    scene: Scene
    current_sent: SentPicture
    messages: list[bytes] = field(repr=False)
    turns: list[Turn] = field(default_factory=list)
    prompt_fields: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def start(cls, sample: Sample, settings: RolloutSettings) -> Conversation:
        """The conversation before the first turn; raises SampleError where its row cannot be used."""
        truth, prompt_fields = _read_row(sample, settings.task)
        prompt = settings.prompt.filled(prompt_fields)
        sent = encode_sent(sample.picture.image, settings.toolbox.rule, sample.picture)
        messages = [encoded(message) for message in opening_messages(prompt, sent)]
        scene = Scene.start(sample.picture.picture)
        scene.rest()
        sent = sent.without_data()
        return cls(sample, truth, settings, sent, scene, sent, messages, prompt_fields=prompt_fields)

    def run_calls(self, reply: Reply) -> tuple[ToolCall, ...]:
        """Run the calls of a reply in order, each on the picture that the one before made.

        Of a teacher that repeats itself without end only the first calls are run.
        """
        calls = []
        for raw in reply.calls[:MAX_CALLS_A_TURN]:
            call, self.scene = self.settings.toolbox.run(raw, self.scene, self.sent, self.current_sent)
            self.current_sent = call.observation.sent or self.current_sent
            calls.append(call)
        not_run = Observation(False, f"Error: only the first {MAX_CALLS_A_TURN} calls of a turn are run")
        calls += [ToolCall(raw, {}, False, not_run) for raw in reply.calls[MAX_CALLS_A_TURN:]]
        return tuple(calls)

    def append(self, turn: Turn) -> None:
        """Add a turn whose calls have been run."""
        # What stands stays byte-identical from turn to turn, or the server's prefix cache is lost.
        self.messages += [encoded(message) for message in turn_messages(turn)]
        self.turns.append(turn if self.settings.keeps_pictures else _without_pictures(turn))


def _without_pictures(turn: Turn) -> Turn:
    """The turn without the files of its pictures, which stand in the messages."""
    calls = (
        replace(call, observation=replace(call.observation, sent=call.observation.sent.without_data()))
        if call.observation.sent
        else call
        for call in turn.calls
    )
    return replace(turn, calls=tuple(calls))


def _read_row(sample: Sample, task: Task) -> tuple[Mapping[str, Json], Mapping[str, str]]:
    """A row's truth, and its texts for the prompt."""
    row = {**sample.data, **sample.fields}
    try:
        return _as_kept(task.truth(row)), task.prompt_fields(row)
    except SampleError as error:
        raise SampleError(f"{sample.name}: {error}") from None


def _as_kept(truth: Mapping[str, Json]) -> Mapping[str, Json]:
    """A truth as a trace will hold it; raises SampleError, before anything is paid, for one that none can."""
    try:
        text = json.dumps(dict(truth), ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError) as error:
        raise SampleError(f"its truth is no JSON object: {error}") from None
    kept: Mapping[str, Json] = json.loads(text)
    return kept


def _finish(conversation: Conversation, stop: StopReason) -> Rollout:
    task, truth, turns = conversation.settings.task, conversation.truth, tuple(conversation.turns)
    answer = _answer(turns[-1].reply, stop, task)
    score = task.score(deepcopy(answer), deepcopy(truth))  # what it does to them is not done to the trace
    if not math.isfinite(score.value):
        raise SampleError(f"{conversation.sample.name}: the task's score is {score.value}, no finite number")
    fields = conversation.prompt_fields
    return Rollout(conversation.sample, truth, conversation.sent, turns, stop, answer, score, fields)


def _answer(reply: Reply, stop: StopReason, task: Task) -> Mapping[str, Json] | None:
    """The answer in the last turn; a turn that was cut off or refused has none."""
    if stop in (StopReason.ANSWERED, StopReason.MAX_TURNS, StopReason.CONTEXT_OVERFLOW):
        return task.parse_answer(reply.content)
    return None
