"""What is wrong with what a row says: its roles, calls, boxes, words, thoughts and losses, and the truth."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import dropwhile, takewhile
from pathlib import Path

from distil.commands.flags import CheckFlags, FormFlags
from distil.exports.written import WrittenCall, WrittenMessage, WrittenRow, without_calls, without_joints
from distil.records import CropFrom, ExportFormat, FailedCalls, Frame, Json, Size, Student
from distil.tools.base import BoxFrame
from distil.tools.toolbox import all_tools, find_tool

Problem = tuple[str, str]  # the field, and what is wrong with it
_MIN_TRUTH_CHARS = 4  # shorter ones stand in any text
_ROLE_KINDS = {
    "system": "S",
    "developer": "S",
    "user": "U",
    "assistant": "A",
    "function_call": "A",
    "tool_call": "C",
    "tool": "R",
    "observation": "R",
    "tool_response": "R",
}
_STRING_ROLES = frozenset({"system", "user", "assistant"})
_ROLES: Mapping[ExportFormat, frozenset[str]] = {
    ExportFormat.TRL: _STRING_ROLES | {"tool"},
    ExportFormat.HF: _STRING_ROLES | {"tool"},
    ExportFormat.VERL: _STRING_ROLES | {"tool"},
    ExportFormat.LLAMAFACTORY: _STRING_ROLES | {"function_call", "observation"},
    ExportFormat.MS_SWIFT: _STRING_ROLES | {"tool", "tool_call", "tool_response"},
    ExportFormat.OPENAI: _STRING_ROLES | {"tool", "developer"},
}
_FOLLOWERS = {"": "SU", "S": "U", "U": "A", "A": "UR", "R": "A"}
_OWN_FOLLOWERS: Mapping[ExportFormat, Mapping[str, str]] = {  # what further roles may follow on which
    ExportFormat.TRL: {"R": "AR"},
    ExportFormat.HF: {"R": "AR"},
    ExportFormat.MS_SWIFT: {"U": "AC", "A": "URC", "C": "CUR", "R": "ACR"},
    ExportFormat.OPENAI: {"R": "ARU"},
}
_READS_LOSS = (ExportFormat.TRL, ExportFormat.VERL, ExportFormat.MS_SWIFT, ExportFormat.HF)
# Where the length stands that an export sets.
_LENGTHS: Mapping[ExportFormat, tuple[str, str]] = {
    ExportFormat.TRL: ("train.py", r"\bmax_length=(\d+)"),
    ExportFormat.VERL: ("README.md", r"\bdata\.max_length=(\d+)"),
    ExportFormat.LLAMAFACTORY: ("train.yaml", r"(?m)^cutoff_len: (\d+)"),
    ExportFormat.MS_SWIFT: ("README.md", r"--max_length (\d+)"),
}
_CONTROL = re.compile(r"<\|\w+\|>")
_PLACEHOLDER = re.compile(r"<(?:image|video|audio)>")
_TAG = re.compile(r"</?(?:tool_call|tool_response|think|thinking)>")
_RESPONSE_TAG = re.compile(r"</?tool_response>")
_EMPTY_THINK = re.compile(r"<(think|thinking)>\s*</\1>")
_THINK_TAG = re.compile(r"<(/?)(?:think|thinking)>")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w]|\.\d)")


@dataclass(frozen=True)
class Subject:
    """What is checked, with all that is known of it."""

    asked: CheckFlags
    folder: Path
    files: Sequence[Path]
    format: ExportFormat
    manifest: Mapping[str, Json]  # {} for a file that no export of distil is

    @cached_property
    def form(self) -> FormFlags:
        """How the student sees pictures."""
        stated = self.manifest.get("options", {})
        return FormFlags(
            coordinates=self.asked.coordinates or Frame(stated.get("coordinates", Frame.REL1000)),
            student=Student(stated.get("student", Student.QWEN3_VL)),
        )

    @cached_property
    def errors(self) -> FailedCalls | None:
        """What the export says of turns with a failed call."""
        stated = self.manifest.get("options", {}).get("errors")
        return None if stated is None else FailedCalls(stated)

    @cached_property
    def max_length(self) -> int | None:
        """The length that rows may have, in tokens; None where nothing limits it."""
        if self.asked.max_length is not None or self.format not in _LENGTHS:
            return self.asked.max_length
        name, pattern = _LENGTHS[self.format]
        found = re.search(pattern, self._beside(name))
        return None if found is None else int(found[1])

    @cached_property
    def masks_history(self) -> bool:
        """Whether only the last turn of each row is trained (LLaMA-Factory)."""
        is_factory = self.format is ExportFormat.LLAMAFACTORY
        return is_factory and re.search(r"(?m)^mask_history: true", self._beside("train.yaml")) is not None

    @cached_property
    def trace_folders(self) -> tuple[Path, ...]:
        """The folders that rows may have their traces in."""
        if self.asked.traces is not None:
            return (self.asked.traces,)
        words = shlex.split(str(self.manifest.get("command", "")))[2:]
        end = next((position for position, word in enumerate(words) if word.startswith("-")), len(words))
        named = [Path(word) for word in words[:end]]
        return tuple(path if path.is_dir() else path.parent for path in named if path.exists())

    def is_trained(self, row: WrittenRow, message: WrittenMessage) -> bool:
        """Whether a message is trained, as its trainer is told."""
        if not message.is_assistant:
            return False
        if self.format is ExportFormat.OPENAI:
            return message.stored.get("weight") != 0
        if self.format is ExportFormat.LLAMAFACTORY:
            return not self.masks_history or message is row.messages[-1]
        return message.stored.get("loss") is not False

    def _beside(self, name: str) -> str:
        try:
            return (self.folder / name).read_text(encoding="utf-8") if self.manifest else ""
        except (OSError, ValueError):
            return ""


def _picture_counts(row: WrittenRow, subject: Subject) -> Iterator[Problem]:
    if subject.format is ExportFormat.OPENAI:
        for message in row.messages:
            if message.num_pictures and message.role in _ROLES[subject.format] - {"user"}:
                yield (
                    f"{message.at}.content",
                    f"a picture in a message of the role {message.role}: only the user's may have one",
                )
        return
    num_placed = sum(message.num_pictures for message in row.messages)
    if num_placed != len(row.pictures):
        yield "images", f"{num_placed} placeholders in the messages, {len(row.pictures)} pictures"
    if subject.format in (ExportFormat.TRL, ExportFormat.HF):
        for message in row.messages:
            if message.role == "tool" and message.num_pictures:
                yield f"{message.at}.content", "a picture in the role tool: TRL counts none there"
            if isinstance(message.stored.get("content"), str) and row.pictures:
                yield (
                    f"{message.at}.content",
                    "a plain text beside pictures: TRL puts all pictures into the first user message",
                )


def _role_order(row: WrittenRow, subject: Subject) -> Iterator[Problem]:
    kinds = ""
    followers = {**_FOLLOWERS, **_OWN_FOLLOWERS.get(subject.format, {})}
    for message in row.messages:
        if message.role not in _ROLES[subject.format]:
            yield f"{message.at}.role", f"the role {message.role!r} is none of {subject.format.value}"
            return
        kind = _ROLE_KINDS[message.role]
        if kind not in followers[kinds[-1:]]:
            before = f"after {row.messages[len(kinds) - 1].role}" if kinds else "at the beginning"
            yield f"{message.at}.role", f"{message.role} {before}"
            return
        kinds += kind
    if kinds[-1:] not in ("A", "C"):
        yield f"{row.messages[-1].at}.role", f"the row ends with {row.messages[-1].role}"


def _calls(row: WrittenRow, subject: Subject) -> Iterator[Problem]:
    for position, message in enumerate(row.messages):
        if subject.is_trained(row, message):
            for call in message.calls:
                if call.problem is not None:
                    yield call.at, call.problem
        if subject.format is ExportFormat.OPENAI:
            yield from _unanswered(message, row.messages[position + 1 :])


def _unanswered(message: WrittenMessage, following: Sequence[WrittenMessage]) -> Iterator[Problem]:
    """Calls of the API's own form that are not answered, although the conversation goes on."""
    stored = message.stored.get("tool_calls") or []
    wanted = [call.get("id") for call in stored if isinstance(call, dict)]
    answers = takewhile(lambda each: each.role == "tool", following)
    answered = [each.stored.get("tool_call_id") for each in answers]
    if following and wanted != answered:
        yield f"{message.at}.tool_calls", f"calls {wanted} are answered by {answered}"


def _results_after(messages: Sequence[WrittenMessage], position: int) -> list[str]:
    """The results of the calls of a turn, of which a message is the one at this position."""
    following = dropwhile(lambda message: message.is_assistant, messages[position + 1 :])
    answers = takewhile(lambda message: not message.is_assistant, following)
    return [result for message in answers for result in message.results]


def _has_failed(result: str) -> bool:
    return result.lstrip().startswith("Error:")


def _boxes(row: WrittenRow, subject: Subject) -> Iterator[Problem]:
    """Boxes of calls that are trained and did not fail."""
    is_of_photo = _boxes_are_of_photo(row, subject)
    num_shown = 0
    for position, message in enumerate(row.messages):
        num_shown += message.num_pictures
        if not subject.is_trained(row, message) or not num_shown:
            continue
        number = 0 if is_of_photo else num_shown - 1
        size = row.pictures[number].size if number < len(row.pictures) else None
        results = _results_after(row.messages, position)
        for order, call in enumerate(message.calls):
            if order < len(results) and _has_failed(results[order]):
                continue
            if order == 0 or is_of_photo:  # a later one is of a picture that an earlier one made
                yield from _box(call, size, subject)


def _box(call: WrittenCall, size: Size | None, subject: Subject) -> Iterator[Problem]:
    tool = find_tool(call.name)
    box = None if tool is None or call.problem is not None else tool.box_of(call.arguments)
    if box is None:
        return
    if subject.form.coordinates is not Frame.PIXEL:
        width, height = 1000, 1000
    elif size is None:
        return
    else:
        width, height = size
    x1, y1, x2, y2 = box
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        unit = "pixels" if subject.form.coordinates is Frame.PIXEL else "thousandths"
        yield call.at, f"the box {list(box)} does not lie within {width}×{height} {unit}"


def _boxes_are_of_photo(row: WrittenRow, subject: Subject) -> bool:
    """Whether the tools are described as working on the photo, whatever was done since."""
    told = "".join(message.text for message in row.messages if message.role == "system")
    told += str(row.stored.get("tools", ""))
    frame = subject.form.coordinates
    return any(
        text in told
        for tool in all_tools()
        for text in _box_texts(tool.schema(BoxFrame(frame, CropFrom.ORIGINAL)))
        - _box_texts(tool.schema(BoxFrame(frame)))
    )


def _box_texts(schema: Mapping[str, Json]) -> set[str]:
    """What a schema says of its arguments."""
    properties = schema.get("function", {}).get("parameters", {}).get("properties", {})
    return {str(each.get("description")) for each in properties.values()}


def _special_words(row: WrittenRow, subject: Subject) -> Iterator[Problem]:
    for message in row.messages:
        text = "\n".join(part for part in message.parts if part is not None)
        called = json.dumps([call.arguments for call in message.calls], ensure_ascii=False)
        found = {*_CONTROL.findall(text + called), *_PLACEHOLDER.findall(text + called)}
        found |= set(_misplaced_tags(message))
        for word in sorted(found):
            yield f"{message.at}.content", f"{word} in the text of {message.role}"


def _misplaced_tags(message: WrittenMessage) -> list[str]:
    """Tags in a text that stand for nothing there."""
    if message.role in ("system", "developer"):
        return []  # the tools are described with them
    if message.is_assistant:
        return [tag for tag in _TAG.findall(without_calls(message.text)) if "think" not in tag]
    if message.role == "user":
        opened = [tag == "<tool_response>" for tag in _RESPONSE_TAG.findall(message.text)]
        others = [tag for tag in _TAG.findall(message.text) if "tool_response" not in tag]
        is_even = opened == [True, False] * (len(opened) // 2)
        return others if is_even else [*others, "<tool_response>"]
    return _TAG.findall(without_joints(message))


def _thoughts(row: WrittenRow, subject: Subject) -> Iterator[Problem]:
    for message in row.messages:
        if not message.is_assistant:
            continue
        if _EMPTY_THINK.search(message.text):
            yield f"{message.at}.content", "an empty block of thoughts, which is trained"
        elif (tags := _THINK_TAG.findall(message.text)) != ["", "/"] * (len(tags) // 2):
            yield f"{message.at}.content", "a block of thoughts is not closed, or not opened"


def _loss(row: WrittenRow, subject: Subject) -> Iterator[Problem]:
    has_trained = False
    for position, message in enumerate(row.messages):
        yield from _loss_field(message, subject)
        is_trained = subject.is_trained(row, message)
        has_trained |= is_trained
        if not message.is_assistant:
            continue
        failed = any(map(_has_failed, _results_after(row.messages, position)))
        if failed and is_trained and subject.errors is FailedCalls.MASK:
            yield message.at, "a turn with a failed call is trained, and the export says mask"
        if failed and subject.errors is FailedCalls.DROP:
            yield message.at, "a failed call is in the row, and the export says drop"
    last = row.messages[-1]
    if not has_trained:
        yield "messages", "no turn of the row is trained"
    elif last.is_assistant and not subject.is_trained(row, last):
        yield last.at, "the row ends with a turn that is not trained"


def _loss_field(message: WrittenMessage, subject: Subject) -> Iterator[Problem]:
    loss, weight = message.stored.get("loss"), message.stored.get("weight")
    if subject.format in _READS_LOSS:
        if loss is not None and not message.is_assistant:
            yield f"{message.at}.loss", f"a message of the role {message.role} has a loss"
        elif loss is not None and not isinstance(loss, bool):
            yield f"{message.at}.loss", f"it is {loss!r}: only true and false are read"
        if weight is not None:
            yield f"{message.at}.weight", "no trainer of this format reads it: write loss"
    elif subject.format is ExportFormat.LLAMAFACTORY:
        if loss is not None or weight is not None:
            yield message.at, "LLaMA-Factory reads no loss of a message: split the row, mask_history: true"
    else:
        if loss is not None:
            yield f"{message.at}.loss", "a chat API does not read it: write weight"
        if weight is not None and (weight not in (0, 1) or not message.is_assistant):
            yield f"{message.at}.weight", f"it is {weight!r} of {message.role}: 0 or 1 of the assistant"


ROW_CHECKS: tuple[tuple[str, Callable[[WrittenRow, Subject], Iterator[Problem]]], ...] = (
    ("picture_count", _picture_counts),
    ("role_order", _role_order),
    ("call", _calls),
    ("box", _boxes),
    ("special_word", _special_words),
    ("think", _thoughts),
    ("loss", _loss),
)


# --- the truth


def truths_of(row: WrittenRow, subject: Subject) -> list[Json]:
    """What the truth is made of: by the trace where that is at hand, else by the answer at the end."""
    trace = _trace_of(row, subject)
    if trace is not None:
        truth = trace.get("metadata", {}).get("truth")
        return [value for value in truth.values() if value] if isinstance(truth, dict) else []
    boxed = _BOXED.findall(row.messages[-1].text)
    return [float(number) for number in _NUMBER.findall(boxed[-1])] if boxed else []


def _trace_of(row: WrittenRow, subject: Subject) -> Mapping[str, Json] | None:
    name = str(row.stored.get("id", "")).partition("#")[0]
    folder, _, file = name.rpartition("/")
    for path in subject.trace_folders:
        if path.absolute().name == folder or len(subject.trace_folders) == 1:
            try:
                found = json.loads((path / Path(file).name).read_bytes())
            except (OSError, ValueError):
                continue
            return found if isinstance(found, dict) else None
    return None


def leaks_of(row: WrittenRow, truths: Sequence[Json]) -> Iterator[Problem]:
    """Texts of others than the assistant that say the truth: all of its numbers, or one of its texts."""
    numbers = [value for value in truths if isinstance(value, int | float) and not isinstance(value, bool)]
    texts = [value for value in truths if isinstance(value, str) and len(value) >= _MIN_TRUTH_CHARS]
    for message in row.messages:
        if message.is_assistant:
            continue
        if numbers and _says_numbers(message.text, numbers):
            yield f"{message.at}.content", f"it holds the truth: {', '.join(map(str, numbers))}"
        for text in texts:
            if re.search(rf"(?<!\w){re.escape(text)}(?!\w)", message.text, re.IGNORECASE):
                yield f"{message.at}.content", f"it holds the truth: {text!r}"


def _says_numbers(text: str, numbers: Sequence[float]) -> bool:
    """Whether all of these stand in a text, with two decimals or more, or in full."""
    written = _NUMBER.findall(text)
    return all(any(_is_said(number, each) for each in written) for number in numbers)


def _is_said(number: float, written: str) -> bool:
    decimals = len(written.partition(".")[2])
    if decimals < 2 and len(written.lstrip("-")) < _MIN_TRUTH_CHARS:
        return False
    return abs(float(written) - number) < 0.51 * 10**-decimals and (decimals >= 2 or float(written) == number)
