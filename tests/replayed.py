"""A trace and its dataset row → every picture the teacher saw.

Replay applies the stored actions with the same function that sampling used, so a trace that verifies is a
trace from which everything can be recovered.
"""

from __future__ import annotations

from dataclasses import dataclass

from distil.messages.compose import Message, opening_messages, turn_messages
from distil.pictures import encode_sent
from distil.records import Observation, Sample, SentPicture, Turn
from distil.replay.replay import turns_of
from distil.source.rows import Source
from distil.store.trace_file import StoredTrace
from distil.tools.base import Scene
from distil.tools.python_code import Executor


@dataclass(frozen=True)
class Replay:
    """A trace with its pictures: the scene after each call that succeeded, and what was sent."""

    trace: StoredTrace
    sample: Sample
    sent: SentPicture
    observations: tuple[Observation, ...]  # one per stored call; a failed call's has no picture
    scene: Scene

    def turns(self) -> tuple[Turn, ...]:
        """The turns as the rollout had them."""
        return turns_of(self.trace, [observation.sent for observation in self.observations])

    def messages(self) -> list[Message]:
        """The conversation exactly as the teacher saw it, with its own last turn at the end."""
        messages = opening_messages(self.trace.prompt, self.sent)
        for turn in self.turns():
            messages += turn_messages(turn)
        return messages


def replay(trace: StoredTrace, source: Source, executor: Executor | None = None) -> Replay:
    """Apply a trace's stored actions to its row; code runs in `executor`.

    Raises SourceError where the row cannot be read, ToolError where an action no longer applies and
    SandboxUnavailable where there is code but nothing to run it in; compares nothing.
    """
    sample = source.load(trace.sample_id)
    toolbox = trace.settings.toolbox(executor)
    sent = encode_sent(sample.picture.image, toolbox.rule, sample.picture)
    scene = Scene.start(sample.picture.picture)
    observations = []
    for call in trace.calls:
        observation = call.observation
        if observation.success:
            observation, scene = toolbox.observe(call.raw.name, call.arguments, scene)
        observations.append(observation)
    return Replay(trace, sample, sent, tuple(observations), scene)
