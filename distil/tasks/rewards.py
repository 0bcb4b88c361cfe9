"""Rewards of the user's own: functions with the signature that verl takes for `custom_reward_function`.

`compute_score(data_source, solution_str, ground_truth, extra_info=None)` returns a number, or an object with
`score` and more. So the function that trains the student can score its teacher (docs/tasks.md).
"""

from __future__ import annotations

import inspect
import json
import math
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from distil.errors import Caught
from distil.messages.read import clean_text
from distil.records import Json

_PREFIX = "reward@"  # begins their fields in a trace's `reward_score`
_MAX_TEXT_CHARS = 1000

REWARDS: dict[str, Reward] = {}  # those that are at hand, by name; a trace names its own


@dataclass(frozen=True)
class Scored:
    """What a reward gave: a score and more, or what went wrong instead."""

    score: float | None
    details: Mapping[str, Json] = field(default_factory=dict)
    error: str | None = None

    def fields(self, name: str) -> dict[str, Json]:
        """As a trace's `reward_score` has it."""
        found: dict[str, Json] = {f"{_PREFIX}{name}": self.score}
        found |= {f"{_PREFIX}{name}/{key}": value for key, value in self.details.items()}
        return found if self.error is None else found | {f"{_PREFIX}{name}/error": self.error}


@dataclass(frozen=True)
class Reward:
    """A function of the user's, by its name, and the file that it is in."""

    name: str
    function: Callable[..., Any] = field(repr=False)
    file: str
    sha256: str

    def of(self, trace: Mapping[str, Json], solution: str) -> Scored:
        """Score a trace whose turns read as `solution`; what the function raises is in what it gave."""
        with Caught() as caught:
            value = self.function(
                data_source=trace["settings"]["task"] if "settings" in trace else "",
                solution_str=solution,
                ground_truth=_copy(trace["metadata"]["truth"]),
                extra_info=_extra_info(trace),
            )
            if inspect.isawaitable(value):
                import asyncio  # noqa: PLC0415 - for the few that need it

                value = asyncio.run(_awaited(value))
            return _scored(value)
        return Scored(None, error=caught.text(self.file))


def reward_of(trace: Mapping[str, Json]) -> tuple[str | None, Reward | None]:
    """The name of the reward that a trace's run had, and that reward where it is at hand."""
    settings = trace.get("settings")
    own_code = settings.get("own_code") if isinstance(settings, dict) else None
    stated = own_code.get("reward") if isinstance(own_code, dict) else None
    name = stated.get("function") if isinstance(stated, dict) else None
    return (name, REWARDS.get(name)) if isinstance(name, str) else (None, None)


def reward_fields(scores: Mapping[str, Json]) -> dict[str, Json]:
    """What of a trace's `reward_score` the user's own rewards gave."""
    return {name: value for name, value in scores.items() if name.startswith(_PREFIX)}


def reward_error(scores: Mapping[str, Json]) -> str | None:
    """What went wrong in a reward of the user's own, None where nothing did."""
    for name, value in reward_fields(scores).items():
        if name.endswith("/error") and scores.get(name.removesuffix("/error"), 0) is None:
            return str(value)
    return None


def _extra_info(trace: Mapping[str, Json]) -> dict[str, Json]:
    """What verl's own loop gives too (`index`, `num_turns`), and all that is known beside it."""
    metadata, turns = trace["metadata"], trace["conversation_log"]
    answered = {call["turn"] for call in trace["tool_calls_log"]}
    scores = {name: value for name, value in trace["reward_score"].items() if not name.startswith(_PREFIX)}
    return {
        "index": trace["sample_index"],
        "rollout": trace.get("rollout", 0),
        "num_turns": 1 + len(turns) + len(answered),
        "final_response": trace["final_response"],
        "answer": _copy(metadata["answer"]),
        "stop_reason": metadata["stop_reason"],
        "row": _copy(trace["sample_data"]),
        "trace": _copy({**trace, "reward_score": scores} | {"integrity_sha256": None}),
    }


def _copy(value: Json) -> Json:
    """A copy, so that what a function does to its arguments is not done to the trace."""
    return json.loads(json.dumps(value))


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


def _scored(value: Any) -> Scored:
    given = value if isinstance(value, Mapping) else {"score": value}
    if "score" not in given:
        return Scored(None, error="it gave an object without 'score'")
    score = _plain(given["score"])
    if not isinstance(score, int | float):
        return Scored(None, error="it gave a score that is no finite number")
    details = {clean_text(str(key)): _plain(each) for key, each in given.items() if key != "score"}
    return Scored(float(score), {key: each for key, each in details.items() if each is not _NOT_PLAIN})


_NOT_PLAIN = object()


def _plain(value: Any) -> Any:
    """A number, a text, true, false or null as JSON has it, also of numpy; `_NOT_PLAIN` for anything else.

    Of a whole number that no float holds JSON knows nothing either, and of lone surrogates UTF-8.
    """
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else _NOT_PLAIN
    if isinstance(value, str):
        return clean_text(str(value)[:_MAX_TEXT_CHARS])
    if value is None or isinstance(value, bool):
        return value
    return int(value) if isinstance(value, int) and abs(value) <= sys.float_info.max else _NOT_PLAIN
