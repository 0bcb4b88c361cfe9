"""A finished rollout in one small record: the same figures that are read from its trace, and a run's own."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence

from distil.messages.tags import text_outside
from distil.records import Prompt, Rollout, Size, ToolCall, Turn
from distil.rollout import RolloutSettings
from distil.spending.prices import Tokens, fewest_prompt_tokens, read_tokens
from distil.store.summary import StatedBox, TraceSummary, reported_tokens, stated_metrics, sum_or_none
from distil.tools.toolbox import find_tool

_MIN_SAME_TURNS = 4  # of one sample: turning a picture by 90 degrees three times is no loop
_MAX_TEXT_CHARS = 60


def summary_of(
    rollout: Rollout, settings: RolloutSettings, cost_usd: Callable[[Tokens], float | None]
) -> TraceSummary:
    """The summary of a rollout that was made with `settings`; `cost_usd` says what a turn's tokens cost."""
    turns, score = rollout.turns, rollout.score
    calls = [call for turn in turns for call in turn.calls]
    failed = [call for call in calls if not call.observation.success]
    usages = [turn.reply.usage for turn in turns]
    tokens = list(map(read_tokens, usages))
    return TraceSummary(
        sample_id=rollout.sample.id,
        task=settings.task.name,
        parse_success=score.parse_success,
        metrics=stated_metrics(settings.task, score.details, {}),
        score=score.value,
        turns=len(turns),
        stop_reason=rollout.stop_reason.value,
        calls=Counter(map(_name, calls)),
        failed_calls=Counter(map(_name, failed)),
        prompt_tokens=reported_tokens(usages, "prompt_tokens"),
        completion_tokens=reported_tokens(usages, "completion_tokens"),
        billed_tokens=sum_or_none([item.total for item in tokens]),
        cost_usd=sum_or_none([cost_usd(item) for item in tokens]),
        boxes=tuple(_boxes(calls)),
        first_failure=failed[0].observation.message if failed else None,
        reports_tokens=all(item.prompt for item in tokens),
        too_few_tokens=_too_few_tokens(rollout, settings.prompt),
        final_text=_short(turns[-1].reply.content),
        repeats_itself=_repeats_itself(turns),
    )


def _name(call: ToolCall) -> str:
    return call.raw.name or "unknown"


def _boxes(calls: Sequence[ToolCall]) -> list[StatedBox]:
    boxes = []
    is_first_view = True
    for call in calls:
        success = call.observation.success
        tool = find_tool(call.raw.name)
        numbers = None if tool is None else tool.box_of(call.raw.arguments)
        if numbers is not None:
            boxes.append(StatedBox(numbers, success and not call.clamped, is_first_view))
        is_first_view = is_first_view and not success
    return boxes


def _too_few_tokens(rollout: Rollout, prompt: Prompt) -> str | None:
    """The first turn with fewer prompt tokens than the turn before and all that was added to it take."""
    needed = fewest_prompt_tokens([prompt.system, prompt.user], [rollout.sent.size])
    for turn in rollout.turns:
        reported = read_tokens(turn.reply.usage).prompt or None  # gateways that do not know say 0
        if reported is not None and reported < needed:
            return f"turn {turn.number}: {reported}, but at least {needed}"
        needed = (needed if reported is None else reported) + _added_tokens(turn)
    return None


def _added_tokens(turn: Turn) -> int:
    """The fewest tokens that a turn adds to the next one's prompt."""
    seen = [call.observation for call in turn.calls]
    said = text_outside(turn.reply.content, thinking=True, tool_calls=False)
    pictures: list[Size] = [item.sent.size for item in seen if item.sent is not None]
    return fewest_prompt_tokens([said, *(item.message for item in seen)], pictures)


def _repeats_itself(turns: Sequence[Turn]) -> bool:
    """Whether most turns said the same and called the same."""
    actions = [
        repr([turn.reply.content, *([call.raw.name, call.raw.arguments] for call in turn.calls)])
        for turn in turns
    ]
    most = max(Counter(actions).values(), default=0)
    return most >= _MIN_SAME_TURNS and 2 * most > len(turns)


def _short(text: str) -> str:
    """A text of one line, shortened; longer ones that begin alike stay different."""
    text = " ".join(text.split())
    if len(text) <= _MAX_TEXT_CHARS:
        return text
    return f"{text[:_MAX_TEXT_CHARS]}… ({hashlib.sha256(text.encode()).hexdigest()[:16]})"
