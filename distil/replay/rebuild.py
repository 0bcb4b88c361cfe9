"""A trace → the trace that this code writes of the same replies, and where the two differ.

What a trace holds follows from three things: its settings, its dataset row and what the teacher replied. So
it is made again by the functions that made it, `run_rollout` and `trace_json`, with the stored replies in
place of a teacher, and compared leaf by leaf. Nothing but the replies, the options of the run and the
versions that wrote it has to be believed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from distil.errors import ContextOverflow
from distil.messages.read import parse_text_calls, recalled_native_call
from distil.records import DatasetIdentity, Json, Reply, Sample, ToolCall, ToolMode, Turn
from distil.rollout import RolloutSettings, run_rollout
from distil.sandbox.exchange import ExecResult, is_of_the_machine
from distil.store.trace_file import RunFacts, StoredTrace, trace_json
from distil.store.trace_settings import MAX_SHOWN_CHARS, TraceSettings, settings_sha256, short_json
from distil.tasks import task_of
from distil.tasks.rewards import reward_fields, reward_of
from distil.teacher.profile import UNKNOWN, find_profile, with_frame, with_max_area
from distil.tools.python_code import Executor
from distil.tools.toolbox import Toolbox

_FLOAT_TOLERANCE = 1e-9  # relative: the mathematics of two machines differs in the last digits
_DERIVED = ("profile", "view_rule", "states_size", "tool_schemas", "tool_mode")


@dataclass(frozen=True)
class Difference:
    """A field that is stored otherwise than it follows from the rest; absent values are `ABSENT`."""

    path: str  # such as tool_calls_log[2].clamped
    stored: Json
    now: Json

    def __str__(self) -> str:
        return f"{self.path}: stored {_shown(self.stored, self.now)}, now {_shown(self.now, self.stored)}"


ABSENT: Json = object()  # what stands in a Difference for a field that one of the two traces has not


def rebuilt_trace(
    trace: StoredTrace, sample: Sample, identity: DatasetIdentity, executor: Executor | None = None
) -> dict[str, Json]:
    """The trace as this code writes it, but for `integrity_sha256`; code runs in `executor`.

    Raises KeyError, ValueError or TypeError where the settings cannot be read, ContextOverflow where there is
    no turn, SandboxUnavailable where there is code but nothing to run it in.
    """
    settings = trace.settings
    toolbox = settings.toolbox(executor)
    replies = [_reply(trace, turn) for turn in trace.turns]

    def ask(messages: Sequence[bytes], seed: int) -> Reply:
        if not replies:
            raise ContextOverflow("the trace has no further turn")
        return replies.pop(0)

    task = task_of(trace.json)
    prompt, keeps = settings.prompt(), settings.keep_pictures
    run = RolloutSettings(task, prompt, toolbox, settings.max_turns, settings.seed, keeps)
    rollout = run_rollout(sample, ask, run)
    rebuilt = trace_json(rollout, RunFacts(identity, settings, trace.json["metadata"]["versions"]))
    stored = trace.json["settings"]  # with what other versions write
    rebuilt["settings"] = {**stored, **_derived_settings(settings, toolbox)}
    rebuilt["metadata"]["settings_sha256"] = settings_sha256(stored, identity.fingerprint)
    name, reward = reward_of(trace.json)
    if name is not None and reward is None:  # only a flag has the user's function imported
        rebuilt["reward_score"] |= reward_fields(trace.json["reward_score"])
    del rebuilt["integrity_sha256"]  # it says nothing of its own
    return rebuilt


def differences(stored: Json, now: Json, path: str = "") -> Iterator[Difference]:
    """Where two JSON values differ, in the order of the fields; 1, 1.0 and true are three values."""
    if isinstance(stored, dict) and isinstance(now, dict):
        for name in {**stored, **now}:
            inner = f"{path}.{name}" if path else name
            yield from differences(stored.get(name, ABSENT), now.get(name, ABSENT), inner)
    elif isinstance(stored, list) and isinstance(now, list):
        for position in range(max(len(stored), len(now))):
            one, other = (items[position] if position < len(items) else ABSENT for items in (stored, now))
            yield from differences(one, other, f"{path}[{position}]")
    elif type(stored) is not type(now) or not _is_same(stored, now):
        yield Difference(path, stored, now)


def _is_same(stored: Json, now: Json) -> Json:
    return math.isclose(stored, now, rel_tol=_FLOAT_TOLERANCE) if isinstance(stored, float) else stored == now


def _shown(value: Json, other: Json) -> str:
    """A value for a message; of long texts the part where they begin to differ."""
    if value is ABSENT:
        return "nothing"
    if isinstance(value, str) and isinstance(other, str):
        pairs = enumerate(zip(value, other, strict=False))
        start = next((position for position, (one, two) in pairs if one != two), 0)
        if start > MAX_SHOWN_CHARS // 2:
            value = "…" + value[start - 10 :]
    return short_json(value)


def _reply(trace: StoredTrace, turn: Turn) -> Reply:
    """A stored reply as it was read from the server: text calls read again, native ones as they are kept."""
    reply = turn.reply
    text_calls = parse_text_calls(reply.content)
    if reply.call_form is not ToolMode.NATIVE:
        return replace(reply, calls=text_calls)
    calls = tuple(recalled_native_call(call.raw, call.observation.message) for call in turn.calls)
    calls = calls or reply.calls
    # Without tools of its own in the request a server reads no calls out of the text: the text has them.
    if calls and calls == text_calls and trace.settings.tool_mode is ToolMode.TEXT:
        return replace(reply, calls=calls, call_form=ToolMode.TEXT)
    return replace(reply, calls=calls)


def _derived_settings(settings: TraceSettings, toolbox: Toolbox) -> dict[str, Json]:
    """The settings that follow from the others: what a teacher of this name is given to see and told."""
    profile = with_frame(find_profile(settings.model), settings.coordinates)
    max_area_px = settings.view_rule.max_area_px
    if max_area_px is None and profile.name == UNKNOWN.name:  # as sent before families not known had a bound
        profile = replace(profile, rule=replace(profile.rule, max_area_px=None))
    profile = with_max_area(profile, max_area_px)
    has_tools = bool(toolbox.tools)
    now = replace(
        settings,
        profile=profile.name,
        view_rule=profile.rule,
        states_size=profile.states_size and has_tools,
        tool_schemas=toolbox.schemas(),
        tool_mode=settings.tool_mode if has_tools else ToolMode.NONE,
    ).as_json()
    return {name: now[name] for name in _DERIVED}


class Reruns:
    """Runs a trace's code again: once for the same picture, though the restore recipe runs it too.

    What says more of the machine than of the code is taken as stored. Whether code runs out of time depends
    on the machine and its load; code without a sandbox can fail by anything that was there.
    """

    def __init__(self, executor: Executor, trace: StoredTrace) -> None:
        self._executor = executor
        self._runs: list[tuple[str, Image.Image, ExecResult]] = []
        self._calls = [call for call in trace.calls if "code" in call.arguments]
        self._limits = trace.settings.code

    workers = 1  # the calls of one trace

    def run(self, code: str, picture: Image.Image) -> ExecResult:
        """Run code on a picture; the calls come in the order of the trace."""
        call = self._calls.pop(0) if self._calls else None
        if call is not None and call.arguments["code"] == code and self._is_taken(call):
            stored = call.observation
            return ExecResult(None, stored.message, stored.stdout or "", 0.0, "error")
        for earlier_code, earlier_picture, result in self._runs:
            if earlier_picture is picture and earlier_code == code:
                return result
        result = self._executor.run(code, picture)
        self._runs.append((code, picture, result))
        return result

    def _is_taken(self, call: ToolCall) -> bool:
        limits, stored = self._limits, call.observation
        return (
            limits is not None
            and not stored.success
            and (limits.unsafe_exec or is_of_the_machine(stored.message, limits.timeout_seconds))
        )
