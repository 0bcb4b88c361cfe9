"""What makes a run suspicious: worthless traces cost as much as good ones, and from afar they look alike.

A finished sample is read once for its `Signs`; a run's `Tally` adds them up as samples end, says why the
run should not go on, and what to look at when it has ended.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from distil.messages.tags import text_outside
from distil.records import Json, SampleId, Size, StopReason
from distil.spending.prices import read_tokens
from distil.spending.tokens import PICTURES_DROPPED, fewest_prompt_tokens

FIRST_SAMPLES = 20  # of a teacher that answers every second time, one run in a million begins without any
_MIN_HALTING_CALLS = 20
_MIN_WARNED_CALLS = 5
_MANY_SHARE, _MIN_MANY = 0.2, 3  # healthy teachers miss an answer or a limit now and then
_SAME_SHARE, _MIN_SAME = 0.5, 5  # a short answer to photos of one place may well be the same
_MIN_SAME_TURNS = 4  # of one sample: turning a picture by 90 degrees three times is no loop
_MAX_TEXTS = 1024  # that are remembered: a run's memory does not grow with its length
_MAX_TEXT_CHARS = 60
_MAX_FAILURE_CHARS = 200

_HALT_ADVICE = "Set it right and use another --output_dir, or go on all the same with --keep_going"
_TOO_FEW = f"{PICTURES_DROPPED}; or it leaves them, or cached tokens, out of its figures"


@dataclass(frozen=True, slots=True)
class TooFewTokens:
    """The first turn of a sample whose prompt tokens cannot hold its pictures."""

    turn: int
    prompt_tokens: int
    needed: int


@dataclass(frozen=True, slots=True)
class Signs:
    """What a finished sample says of the whole run's health."""

    sample_id: SampleId
    has_answer: bool
    stop_reason: str
    num_calls: int
    num_failed_calls: int
    first_failure: str | None  # what the teacher was told of its first failed call
    reports_tokens: bool  # of every turn
    too_few_tokens: TooFewTokens | None
    final_text: str  # shortened, and told apart all the same
    repeats_itself: bool


def signs_of(trace: Mapping[str, Json]) -> Signs:
    """The signs of a finished trace of ours."""
    turns, calls = trace["conversation_log"], trace["tool_calls_log"]
    failures = [str(call["message"]) for call in calls if not call["success"]]
    prompts = [_prompt_tokens(turn) for turn in turns]
    return Signs(
        sample_id=SampleId.from_json(trace),
        has_answer=bool(trace["reward_score"]["parse_success"]),
        stop_reason=trace["metadata"]["stop_reason"],
        num_calls=len(calls),
        num_failed_calls=len(failures),
        first_failure=failures[0] if failures else None,
        reports_tokens=None not in prompts,
        too_few_tokens=_too_few_tokens(trace, prompts),
        final_text=_short(trace["final_response"]),
        repeats_itself=_repeats_itself(turns, calls),
    )


def _prompt_tokens(turn: Mapping[str, Json]) -> int | None:
    return read_tokens(turn["usage"]).prompt or None  # gateways that do not know say 0


def _too_few_tokens(trace: Mapping[str, Json], prompts: list[int | None]) -> TooFewTokens | None:
    """The first turn with fewer prompt tokens than the turn before and all that was added to it take."""
    settings = trace["settings"]
    needed = fewest_prompt_tokens(
        [settings["system_prompt"], settings["user_prompt"]], [_size(trace["image"]["sent"])]
    )
    for turn, prompt in zip(trace["conversation_log"], prompts, strict=True):
        if prompt is not None and prompt < needed:
            return TooFewTokens(turn["turn"], prompt, needed)
        calls = [call for call in trace["tool_calls_log"] if call["turn"] == turn["turn"]]
        said = text_outside(turn["assistant_response"], thinking=True, tool_calls=False)
        pictures = [_size(call["result"]["sent"]) for call in calls if call["success"]]
        added = fewest_prompt_tokens([said, *(call["message"] for call in calls)], pictures)
        needed = (needed if prompt is None else prompt) + added
    return None


def _size(sent: Mapping[str, Json]) -> Size:
    return sent["width_px"], sent["height_px"]


def _repeats_itself(turns: list[Json], calls: list[Json]) -> bool:
    """Whether most turns said the same and called the same."""
    actions = {turn["turn"]: [turn["assistant_response"]] for turn in turns}
    for call in calls:
        arguments = call.get("raw_arguments", call.get("code"))
        actions[call["turn"]].append([call["tool_name"], arguments])
    most = max(Counter(map(repr, actions.values())).values(), default=0)
    return most >= _MIN_SAME_TURNS and 2 * most > len(turns)


def _short(text: str) -> str:
    """A text of one line, shortened; longer ones that begin alike stay different."""
    text = " ".join(text.split())
    if len(text) <= _MAX_TEXT_CHARS:
        return text
    return f"{text[:_MAX_TEXT_CHARS]}… ({hashlib.sha256(text.encode()).hexdigest()[:16]})"


class Tally:
    """A run's signs, added up as samples end, in any order; safe from many threads.

    `seems_blind` is whether the probe's word was not read.
    """

    def __init__(self, max_tokens: int, max_turns: int, seems_blind: bool = False) -> None:
        self._max_tokens, self._max_turns, self._seems_blind = max_tokens, max_turns, seems_blind
        self._lock = threading.Lock()
        self._num_samples = self._num_fresh = self._num_fresh_answers = 0
        self._without_answer: Counter[str] = Counter()  # by stop reason
        self._num_truncated = self._num_calls = self._num_failed_calls = self._num_repeating = 0
        self._num_reporting = self._num_too_few = 0
        self._first_failure: tuple[SampleId, str] | None = None  # of the first sample
        self._first_too_few: tuple[SampleId, TooFewTokens] | None = None
        self._texts: Counter[str] = Counter()
        self._halt: str | None = None

    def add(self, signs: Signs, is_resumed: bool = False) -> None:
        """Count a finished sample; one that went on from an earlier run's turns ends no run.

        What a killed run leaves behind are its longest samples, and many of those may have no answer.
        """
        with self._lock:
            self._num_samples += 1
            self._add_answer(signs)
            self._add_calls(signs)
            self._add_tokens(signs)
            self._add_texts(signs)
            if not is_resumed:
                self._num_fresh += 1
                self._num_fresh_answers += signs.has_answer
                self._halt = self._halt or self._reason_to_halt()

    def _add_answer(self, signs: Signs) -> None:
        self._num_truncated += signs.stop_reason == StopReason.TRUNCATED
        if not signs.has_answer:
            self._without_answer[signs.stop_reason] += 1

    def _add_calls(self, signs: Signs) -> None:
        self._num_calls += signs.num_calls
        self._num_failed_calls += signs.num_failed_calls
        if signs.first_failure is not None:
            failure = (signs.sample_id, _cut(signs.first_failure))
            self._first_failure = min(failure, self._first_failure or failure)

    def _add_tokens(self, signs: Signs) -> None:
        self._num_reporting += signs.reports_tokens or signs.too_few_tokens is not None
        if signs.too_few_tokens is not None:
            self._num_too_few += 1
            earlier = self._first_too_few
            if earlier is None or signs.sample_id < earlier[0]:
                self._first_too_few = (signs.sample_id, signs.too_few_tokens)

    def _add_texts(self, signs: Signs) -> None:
        self._num_repeating += signs.repeats_itself
        if signs.final_text:
            self._texts[signs.final_text] += 1
        if len(self._texts) > _MAX_TEXTS:
            self._texts = Counter({text: number for text, number in self._texts.items() if number > 1})

    @property
    def halt(self) -> str | None:
        """Why the run should not go on, with what is likely, or None; it stays once it is there."""
        return self._halt

    def _reason_to_halt(self) -> str | None:
        if self._num_fresh == FIRST_SAMPLES and self._num_fresh_answers == 0:
            none = f"none of the first {FIRST_SAMPLES} samples has an answer"
            return f"{none}; {self._likely_cause()}. {_HALT_ADVICE}"
        if self._num_fresh >= FIRST_SAMPLES and self._num_calls >= _MIN_HALTING_CALLS and self._all_fail:
            return f"{self._failed_calls()}. {_HALT_ADVICE}"
        return None

    @property
    def _all_fail(self) -> bool:
        return self._num_failed_calls == self._num_calls

    def warnings(self) -> list[str]:
        """What to look at, a line each, with figures; nothing for a healthy run."""
        with self._lock:
            lines = (
                self._answers_warning(),
                self._truncation_warning(),
                self._calls_warning(),
                self._tokens_warning(),
                self._same_text_warning(),
                self._repetition_warning(),
            )
            return [line for line in lines if line is not None]

    def _answers_warning(self) -> str | None:
        number = self._without_answer.total()
        if not _are_many(number, self._num_samples):
            return None
        return f"{_of(number, self._num_samples)} have no answer; {self._likely_cause()}"

    def _likely_cause(self) -> str:
        """What most samples without an answer have in common."""
        if self._seems_blind or 2 * self._num_too_few > self._num_samples:
            return PICTURES_DROPPED
        most = self._without_answer.total() / 2
        for reason, cause in (
            (StopReason.TRUNCATED, f"most were cut off: --max_tokens {self._max_tokens} may be too small"),
            (
                StopReason.MAX_TURNS,
                f"most still called tools in turn {self._max_turns}: --max_turns may be too small, or the "
                "teacher does not see what its calls give (distil doctor finds out)",
            ),
            (StopReason.REFUSED, "the teacher, or its content filter, declined most of them"),
            (StopReason.CONTEXT_OVERFLOW, "most outgrew the teacher's context: try --image_max_pixels"),
        ):
            if self._without_answer[reason] > most:
                return cause
        if self._num_calls >= _MIN_WARNED_CALLS and self._all_fail:
            return self._failed_calls()
        return (
            "the teacher may not see the pictures (a text-only model, a wrong chat template), or not keep to "
            "the form of the answer: look at some traces, and ask distil doctor"
        )

    def _truncation_warning(self) -> str | None:
        if not _are_many(self._num_truncated, self._num_samples):
            return None
        return (
            f"{_of(self._num_truncated, self._num_samples)} ended in a turn that was cut off: "
            f"--max_tokens {self._max_tokens} may be too small"
        )

    def _calls_warning(self) -> str | None:
        return self._failed_calls() if self._num_calls >= _MIN_WARNED_CALLS and self._all_fail else None

    def _failed_calls(self) -> str:
        sample_id, message = self._first_failure or (SampleId(0), "")
        return (
            f"all {self._num_calls} tool calls failed, in sample {sample_id} with “{message}”: the likely "
            "settings are --coordinates, --crop_from and --tool_mode (distil doctor finds them out)"
        )

    def _tokens_warning(self) -> str | None:
        if self._first_too_few is None or not _are_many(self._num_too_few, self._num_reporting):
            return None
        sample_id, found = self._first_too_few
        return (
            f"{_of(self._num_too_few, self._num_reporting)} report fewer prompt tokens than text and picture "
            f"need (sample {sample_id}, turn {found.turn}: {found.prompt_tokens}, but at least "
            f"{found.needed}); {_TOO_FEW}"
        )

    def _same_text_warning(self) -> str | None:
        text, number = max(self._texts.items(), key=lambda item: (item[1], item[0]), default=("", 0))
        if number < max(_MIN_SAME, _SAME_SHARE * self._num_samples):
            return None
        return (
            f"{_of(number, self._num_samples)} end with the same reply (“{text}”): the teacher may not see "
            "the pictures"
        )

    def _repetition_warning(self) -> str | None:
        if not _are_many(self._num_repeating, self._num_samples):
            return None
        return (
            f"in {_of(self._num_repeating, self._num_samples)} the teacher said and called the same again "
            "and again: it may not see what its calls give (distil doctor finds out)"
        )


def _are_many(number: int, total: int) -> bool:
    """Whether so many of a run's samples are more than an accident; of the smallest runs only all."""
    return number > 0 and (number == total or number >= max(_MIN_MANY, _MANY_SHARE * total))


def _of(number: int, total: int) -> str:
    return f"{number} of {total} sample{'' if total == 1 else 's'}"


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MAX_FAILURE_CHARS else text[:_MAX_FAILURE_CHARS] + "…"
