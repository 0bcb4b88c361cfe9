"""What makes a run suspicious: worthless traces cost as much as good ones, and from afar they look alike.

A run's `Tally` adds up what its samples' summaries say, says why the run should not go on, and what to look
at when it has ended.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator

from distil.records import CropFrom, Frame, SampleId, StopReason
from distil.spending.prices import PICTURES_DROPPED
from distil.store.summary import StatedBox, TraceSummary

FIRST_SAMPLES = 20  # of a teacher that answers every second time, one run in a million begins without any
_MIN_HALTING_CALLS = 20
_MIN_WARNED_CALLS = 5
_MANY_SHARE, _MIN_MANY = 0.2, 3  # healthy teachers miss an answer or a limit now and then
_SAME_SHARE, _MIN_SAME = 0.5, 5  # a short answer to photos of one place may well be the same
_MAX_TEXTS = 1024  # that are remembered: a run's memory does not grow with its length
_MAX_FAILURE_CHARS = 200
_MAX_BAD_SHARE = 0.2  # of a run's boxes; a teacher in the right frame overshoots now and then
_MIN_BOXES = 5

_HALT_ADVICE = "Set it right and use another --output_dir, or go on all the same with --keep_going"
_TOO_FEW = f"{PICTURES_DROPPED}; or it leaves them, or cached tokens, out of its figures"


class Tally:
    """What a run's samples say, added up as they end, in any order; safe from many threads.

    `seems_blind` is whether the probe's word was not read.
    """

    def __init__(
        self,
        max_tokens: int,
        max_turns: int,
        seems_blind: bool = False,
        frame: Frame = Frame.PIXEL,
        crop_from: CropFrom = CropFrom.CURRENT,
    ) -> None:
        self._max_tokens, self._max_turns, self._seems_blind = max_tokens, max_turns, seems_blind
        self._frame, self._crop_from = frame, crop_from
        self._lock = threading.Lock()
        self._num_samples = self._num_fresh = self._num_fresh_answers = 0
        self._without_answer: Counter[str] = Counter()  # by stop reason
        self._num_truncated = self._num_calls = self._num_failed_calls = self._num_repeating = 0
        self._num_reporting = self._num_too_few = 0
        self._first_failure: tuple[SampleId, str] | None = None  # of the first sample
        self._first_too_few: tuple[SampleId, str] | None = None
        self._texts: Counter[str] = Counter()
        self._num_boxes = self._num_bad_boxes = 0
        self._num_tiny = self._num_backward = self._num_of_photos = 0  # of the bad ones, as the next
        self._largest_number = 0.0
        self._num_without_reward = 0
        self._reward_error: str | None = None  # the first by its text
        self._halt: str | None = None

    def add(self, sample: TraceSummary, reward_error: str | None = None) -> None:
        """Count a finished sample; one that went on from an earlier run's turns ends no run.

        `reward_error` is what the user's own function raised.

        What a killed run leaves behind are its longest samples, and many of those may have no answer.
        """
        with self._lock:
            self._num_samples += 1
            self._add_answer(sample)
            self._add_calls(sample)
            self._add_tokens(sample)
            self._add_texts(sample)
            for box in sample.boxes:
                self._add_box(box)
            if reward_error is not None:
                self._num_without_reward += 1
                self._reward_error = min(reward_error, self._reward_error or reward_error)
            if not sample.is_resumed:
                self._num_fresh += 1
                self._num_fresh_answers += sample.parse_success
                self._halt = self._halt or self._reason_to_halt()

    def _add_answer(self, sample: TraceSummary) -> None:
        self._num_truncated += sample.stop_reason == StopReason.TRUNCATED
        if not sample.parse_success:
            self._without_answer[sample.stop_reason or ""] += 1

    def _add_calls(self, sample: TraceSummary) -> None:
        self._num_calls += sum(sample.calls.values())
        self._num_failed_calls += sum(sample.failed_calls.values())
        if sample.first_failure is not None:
            failure = (sample.sample_id, _cut(sample.first_failure))
            self._first_failure = min(failure, self._first_failure or failure)

    def _add_tokens(self, sample: TraceSummary) -> None:
        self._num_reporting += sample.reports_tokens or sample.too_few_tokens is not None
        if sample.too_few_tokens is not None:
            self._num_too_few += 1
            found = (sample.sample_id, sample.too_few_tokens)
            self._first_too_few = min(found, self._first_too_few or found)

    def _add_texts(self, sample: TraceSummary) -> None:
        self._num_repeating += sample.repeats_itself
        if sample.final_text:
            self._texts[sample.final_text] += 1
        if len(self._texts) > _MAX_TEXTS:
            self._texts = Counter({text: number for text, number in self._texts.items() if number > 1})

    def _add_box(self, box: StatedBox) -> None:
        is_tiny = self._frame is not Frame.REL1 and all(0 <= value <= 1 for value in box.numbers)
        self._num_boxes += 1
        if not box.fitted or is_tiny:
            self._num_bad_boxes += 1
            self._num_tiny += is_tiny
            self._num_backward += box.numbers[2] <= box.numbers[0] or box.numbers[3] <= box.numbers[1]
            self._num_of_photos += box.is_first_view
            self._largest_number = max(*box.numbers, self._largest_number)

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
            return [*self._warnings_of_answers(), *self._warnings_of_pictures()]

    def _warnings_of_answers(self) -> Iterator[str]:
        num_samples, num_silent = self._num_samples, self._without_answer.total()
        if self._num_without_reward:
            yield (
                f"the reward failed for {self._num_without_reward} of this run's samples, which have no "
                f"score of it: {self._reward_error}. Once it is mended, distil score gives them one"
            )
        if _are_many(num_silent, num_samples):
            yield f"{_of(num_silent, num_samples)} have no answer; {self._likely_cause()}"
        if _are_many(self._num_truncated, num_samples):
            yield (
                f"{_of(self._num_truncated, num_samples)} ended in a turn that was cut off: "
                f"--max_tokens {self._max_tokens} may be too small"
            )
        if self._num_calls >= _MIN_WARNED_CALLS and self._all_fail:
            yield self._failed_calls()

    def _warnings_of_pictures(self) -> Iterator[str]:
        num_samples = self._num_samples
        if self._first_too_few is not None and _are_many(self._num_too_few, self._num_reporting):
            sample_id, turn = self._first_too_few
            yield (
                f"{_of(self._num_too_few, self._num_reporting)} report fewer prompt tokens than text and "
                f"picture need (sample {sample_id}, {turn}); {_TOO_FEW}"
            )
        text, number = max(self._texts.items(), key=lambda item: (item[1], item[0]), default=("", 0))
        if number >= max(_MIN_SAME, _SAME_SHARE * num_samples):
            yield (
                f"{_of(number, num_samples)} end with the same reply (“{text}”): the teacher may not see the "
                "pictures"
            )
        if _are_many(self._num_repeating, num_samples):
            yield (
                f"in {_of(self._num_repeating, num_samples)} the teacher said and called the same again and "
                "again: it may not see what its calls give (distil doctor finds out)"
            )
        if self._num_boxes >= _MIN_BOXES and self._num_bad_boxes >= _MAX_BAD_SHARE * self._num_boxes:
            yield (
                f"{self._num_bad_boxes} of {self._num_boxes} zoom boxes did not fit the picture as "
                f"{self._frame.value!r}: {self._boxes_advice()}"
            )

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

    def _failed_calls(self) -> str:
        sample_id, message = self._first_failure or (SampleId(0), "")
        return (
            f"all {self._num_calls} tool calls failed, in sample {sample_id} with “{message}”: the likely "
            "settings are --coordinates, --crop_from and --tool_mode (distil doctor finds them out)"
        )

    def _boxes_advice(self) -> str:
        """The likely setting by what most bad boxes have in common."""
        most, try_it = self._num_bad_boxes / 2, "Look at some traces, then try"
        if self._num_tiny > most:
            return f"the teacher seems to state fractions. {try_it} --coordinates rel1"
        if self._num_backward > most:
            return "their ends lie before their starts, perhaps [x, y, width, height], which no setting takes"
        if self._crop_from is CropFrom.CURRENT and not self._num_of_photos:
            return f"only boxes after a first call. {try_it} --crop_from original"
        if self._largest_number <= 1000 and self._frame in (Frame.PIXEL, Frame.REL1):
            return f"the teacher seems to state thousandths. {try_it} --coordinates rel1000"
        if self._largest_number > 1000 and self._frame is not Frame.PIXEL:
            return f"the teacher seems to state pixels. {try_it} --coordinates pixel"
        return "look at some traces; --coordinates and --crop_from say what boxes refer to"


def _are_many(number: int, total: int) -> bool:
    """Whether so many of a run's samples are more than an accident; of the smallest runs only all."""
    return number > 0 and (number == total or number >= max(_MIN_MANY, _MANY_SHARE * total))


def _of(number: int, total: int) -> str:
    return f"{number} of {total} sample{'' if total == 1 else 's'}"


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MAX_FAILURE_CHARS else text[:_MAX_FAILURE_CHARS] + "…"
