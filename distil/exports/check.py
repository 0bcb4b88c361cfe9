"""What a trainer's loader would find wrong with an export, found before: row by row, in flat memory."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shlex
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

from PIL import Image

from distil.commands.flags import FormFlags
from distil.errors import UsageError, error_text
from distil.exports.export import FORMAT, MANIFEST
from distil.exports.files import PICTURES, file_sha256
from distil.exports.pictures import MAX_STUDENT_RATIO
from distil.exports.tokens import TOKENS_A_MESSAGE, picture_tokens, text_tokens
from distil.exports.written import (
    RowFiles,
    WrittenCall,
    WrittenMessage,
    WrittenPicture,
    WrittenRow,
    find_row_files,
    read_rows,
    without_calls,
    without_joints,
)
from distil.records import CropFrom, ExportFormat, FailedCalls, Frame, Json, Size, Student
from distil.tools.base import BoxFrame
from distil.tools.toolbox import all_tools, find_tool

KEPT_FINDINGS = 1000  # of a kind; more are only counted
_MIN_TRUTH_CHARS = 4  # shorter ones stand in any text


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: where, what, and of which kind (a key of `REMEDIES`)."""

    kind: str
    file: str
    row: int | None  # from 1; None for a whole file
    field: str
    message: str

    def as_json(self) -> dict[str, Json]:
        """As the document has it."""
        return {
            "kind": self.kind,
            "file": self.file,
            "row": self.row,
            "field": self.field,
            "message": self.message,
            "remedy": REMEDIES[self.kind],
        }


# Each kind of finding, in the order in which they are told, with what to do about it.
REMEDIES: Mapping[str, str] = {
    "changed_file": "export again, or take it as it is if you changed it on purpose",
    "unreadable_row": "write the row anew: no loader reads it",
    "picture_count": "give each placeholder its picture: loaders raise, or shift all that follow",
    "picture_file": "put the picture back, or leave the row out",
    "role_order": "let user and assistant take turns, the assistant last: loaders drop or join such rows",
    "call": "write calls as JSON with name and arguments, or do not train the turn",
    "box": "write the box in the frame that the export says, inside the picture that it is of",
    "special_word": "escape it (a zero-width space behind its first sign): it becomes a token or a picture",
    "think": "leave empty thoughts out, and close each block that is opened",
    "length": "set a larger length in the trainer, or leave the row out: it would be cut or dropped",
    "loss": "train the assistant's sound turns and nothing else",
    "leak": "take the truth out of the prompt: a student would learn to copy it",
    "duplicate": "keep the conversation once",
    "shared_photo": "put all rows of a photo into one split: else the validation is not one",
}

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
class Setup:
    """What is asked of a check beside the place."""

    format: ExportFormat | None = None  # None for what the export says
    coordinates: Frame | None = None
    max_length: int | None = None  # tokens; None for what the export sets
    count_tokens: Callable[[str], int] = text_tokens
    traces: Path | None = None  # the run's folder, for the truth


@dataclass
class Findings:
    """What was found so far."""

    counts: Counter[str] = field(default_factory=Counter)
    kept: list[Finding] = field(default_factory=list)
    num_rows: Counter[str] = field(default_factory=Counter)  # by split
    num_pictures: int = 0
    longest: int = 0  # tokens
    num_truths: int = 0  # rows whose truth was looked for

    def add(self, finding: Finding) -> None:
        """Count a finding, and keep it unless there are many of its kind."""
        self.counts[finding.kind] += 1
        if self.counts[finding.kind] <= KEPT_FINDINGS:
            self.kept.append(finding)


@dataclass(frozen=True)
class Subject:
    """What is checked, with all that is known of it."""

    place: RowFiles
    format: ExportFormat
    manifest: Mapping[str, Json]  # {} for a file that no export of distil is
    setup: Setup

    @cached_property
    def options(self) -> FormFlags:
        """How the student sees pictures."""
        stated = self.manifest.get("options", {})
        return FormFlags(
            coordinates=self.setup.coordinates or Frame(stated.get("coordinates", Frame.REL1000)),
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
        if self.setup.max_length is not None or self.format not in _LENGTHS:
            return self.setup.max_length
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
        if self.setup.traces is not None:
            return (self.setup.traces,)
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
            return (self.place.folder / name).read_text(encoding="utf-8") if self.manifest else ""
        except (OSError, ValueError):
            return ""


@dataclass(frozen=True)
class Seen:
    """A row with what its pictures are: their sizes, None for one that cannot be read."""

    row: WrittenRow
    sizes: tuple[Size | None, ...]
    digests: tuple[str, ...]
    picture_problems: tuple[tuple[str, str], ...]


Problem = tuple[str, str]  # the field, and what is wrong with it


def check_export(
    path: Path, setup: Setup, look: Callable[[WrittenRow], None] = lambda _: None
) -> tuple[Subject, Findings]:
    """Check an export, or a file of rows; `look` gets each row as it is read.

    Raises UsageError where there is nothing to check, or where it does not say what it is.
    """
    place = find_row_files(path)
    manifest = _manifest(path)
    stated = manifest.get("options", {}).get("format")
    if setup.format is None and stated is None:
        raise UsageError(f"{path} has no {MANIFEST} that says who reads it: name the --format")
    subject = Subject(place, setup.format or ExportFormat(stated), manifest, setup)
    findings = Findings()
    for finding in _changed_files(subject):
        findings.add(finding)
    with closing(_Digests()) as digests:
        for row in read_rows(place, subject.format):
            look(row)
            findings.num_rows[row.split] += 1
            for finding in _row_findings(row, subject, findings, digests):
                findings.add(finding)
    return subject, findings


def _manifest(path: Path) -> Mapping[str, Json]:
    folder = path if path.is_dir() else path.parent
    try:
        found = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return {}
    is_ours = isinstance(found, dict) and found.get("format") == FORMAT
    return found if is_ours and (path.is_dir() or path.name in found["files"]) else {}


def _changed_files(subject: Subject) -> Iterator[Finding]:
    stated: Mapping[str, str] = subject.manifest.get("files", {})
    for name, sha256 in stated.items():
        path = subject.place.folder / name
        if not path.is_file():
            yield Finding("changed_file", name, None, "", "it is in the export's list and not there")
        elif file_sha256(path) != sha256:
            yield Finding("changed_file", name, None, "", "its content is not what was exported")
    for path in subject.place.files if stated else ():
        name = str(path.relative_to(subject.place.folder))
        if name not in stated:
            yield Finding("changed_file", name, None, "", "it is not in the export's list")


def _row_findings(
    row: WrittenRow, subject: Subject, findings: Findings, digests: _Digests
) -> Iterator[Finding]:
    def found(kind: str, problem: Problem) -> Finding:
        return Finding(kind, row.file, row.number, *problem)

    if row.problem is not None:
        yield found("unreadable_row", row.problem)
        return
    seen = _seen(row, subject)
    findings.num_pictures += len(row.pictures)
    for problem in seen.picture_problems:
        yield found("picture_file", problem)
    for kind, check in _CHECKS:
        for problem in check(seen, subject):
            yield found(kind, problem)
    length = _length(seen, subject)
    findings.longest = max(findings.longest, length)
    if subject.max_length is not None and length > subject.max_length:
        yield found("length", ("messages", f"about {length:,} tokens, and {subject.max_length:,} are set"))
    truths = _truths(row, subject)
    findings.num_truths += bool(truths)
    for problem in _leaks(row, truths):
        yield found("leak", problem)
    yield from (found(*each) for each in digests.repeats(seen))


# --- pictures


def _seen(row: WrittenRow, subject: Subject) -> Seen:
    sizes: list[Size | None] = []
    digests: list[str] = []
    problems: list[Problem] = []
    for picture in row.pictures:
        size, digest, problem = _look_at(picture, subject)
        sizes.append(size)
        digests.append(digest)
        if problem is not None:
            problems.append((picture.at, problem))
    return Seen(row, tuple(sizes), tuple(digests), tuple(problems))


def _look_at(picture: WrittenPicture, subject: Subject) -> tuple[Size | None, str, str | None]:
    """A picture's size, its hash, and what is wrong with it."""
    if picture.problem is not None:
        return None, picture.name, picture.problem
    if subject.format is ExportFormat.MS_SWIFT and picture.data is None and not picture.name.startswith("/"):
        return None, picture.name, f"{picture.name!r} is looked for in the folder that the trainer runs in"
    try:
        data = picture.read(subject.place.folder)
    except OSError as error:
        return None, picture.name, f"{picture.name!r} cannot be read: {error.strerror}"
    digest = hashlib.sha256(data).hexdigest()
    stem = Path(picture.name).stem
    size, problem = _decoded(digest, data)
    is_named_by_content = bool(subject.manifest) and Path(picture.name).parent.name == PICTURES
    if problem is None and is_named_by_content and stem != digest:
        problem = f"{picture.name!r} has another content than its name says"
    if problem is None and size is not None and max(size) >= MAX_STUDENT_RATIO * min(size):
        problem = f"{size[0]}×{size[1]} pixels: processors refuse sides of {MAX_STUDENT_RATIO}:1 and more"
    return size, digest, problem


class _File:
    """A picture's file, told from others by its hash alone."""

    def __init__(self, digest: str, data: bytes) -> None:
        self.digest, self.data = digest, data

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _File) and self.digest == other.digest


def _decoded(digest: str, data: bytes) -> tuple[Size | None, str | None]:
    file = _File(digest, data)
    found = _decoded_once(file)
    file.data = b""  # the cache keeps what it was asked with
    return found


@lru_cache(4096)
def _decoded_once(file: _File) -> tuple[Size | None, str | None]:
    try:
        with Image.open(io.BytesIO(file.data)) as image:
            size = image.size
            image.draft("RGB", (1, 1))  # a JPEG is read whole, but not made in full size
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return None, f"it is no picture that can be read: {error_text(error).partition(' <_io')[0]}"
    return size, None


def _picture_counts(seen: Seen, subject: Subject) -> Iterator[Problem]:
    if subject.format is ExportFormat.OPENAI:
        for message in seen.row.messages:
            if message.num_pictures and message.role in _ROLES[subject.format] - {"user"}:
                yield (
                    f"{message.at}.content",
                    f"a picture in a message of the role {message.role}: only the user's may have one",
                )
        return
    num_placed = sum(message.num_pictures for message in seen.row.messages)
    if num_placed != len(seen.row.pictures):
        yield "images", f"{num_placed} placeholders in the messages, {len(seen.row.pictures)} pictures"
    if subject.format in (ExportFormat.TRL, ExportFormat.HF):
        for message in seen.row.messages:
            if message.role == "tool" and message.num_pictures:
                yield f"{message.at}.content", "a picture in the role tool: TRL counts none there"
            if isinstance(message.stored.get("content"), str) and seen.row.pictures:
                yield (
                    f"{message.at}.content",
                    "a plain text beside pictures: TRL puts all pictures into the first user message",
                )


# --- what is said


def _role_order(seen: Seen, subject: Subject) -> Iterator[Problem]:
    kinds = ""
    followers = {**_FOLLOWERS, **_OWN_FOLLOWERS.get(subject.format, {})}
    for message in seen.row.messages:
        if message.role not in _ROLES[subject.format]:
            yield f"{message.at}.role", f"the role {message.role!r} is none of {subject.format.value}"
            return
        kind = _ROLE_KINDS[message.role]
        if kind not in followers[kinds[-1:]]:
            before = f"after {seen.row.messages[len(kinds) - 1].role}" if kinds else "at the beginning"
            yield f"{message.at}.role", f"{message.role} {before}"
            return
        kinds += kind
    if kinds[-1:] not in ("A", "C"):
        yield f"{seen.row.messages[-1].at}.role", f"the row ends with {seen.row.messages[-1].role}"


def _calls(seen: Seen, subject: Subject) -> Iterator[Problem]:
    for position, message in enumerate(seen.row.messages):
        if subject.is_trained(seen.row, message):
            for call in message.calls:
                if call.problem is not None:
                    yield call.at, call.problem
        if subject.format is ExportFormat.OPENAI:
            yield from _unanswered(message, seen.row.messages[position + 1 :])


def _unanswered(message: WrittenMessage, following: Sequence[WrittenMessage]) -> Iterator[Problem]:
    """Calls of the API's own form that are not answered, although the conversation goes on."""
    stored = message.stored.get("tool_calls") or []
    wanted = [call.get("id") for call in stored if isinstance(call, dict)]
    answered = []
    for each in following:
        if each.role != "tool":
            break
        answered.append(each.stored.get("tool_call_id"))
    if following and wanted != answered:
        yield f"{message.at}.tool_calls", f"calls {wanted} are answered by {answered}"


def _results_after(messages: Sequence[WrittenMessage], position: int) -> list[str]:
    """The results of the calls of a turn, of which a message is the one at this position."""
    results = []
    is_past = False
    for message in messages[position + 1 :]:
        if message.is_assistant and is_past:
            break
        if not message.is_assistant:
            is_past = True
            results += message.results
    return results


def _has_failed(result: str) -> bool:
    return result.lstrip().startswith("Error:")


def _boxes(seen: Seen, subject: Subject) -> Iterator[Problem]:
    """Boxes of calls that are trained and did not fail."""
    is_of_photo = _boxes_are_of_photo(seen.row, subject)
    num_shown = 0
    for position, message in enumerate(seen.row.messages):
        num_shown += message.num_pictures
        if not subject.is_trained(seen.row, message) or not num_shown:
            continue
        number = 0 if is_of_photo else num_shown - 1
        size = seen.sizes[number] if number < len(seen.sizes) else None
        results = _results_after(seen.row.messages, position)
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
    if subject.options.coordinates is not Frame.PIXEL:
        width, height = 1000, 1000
    elif size is None:
        return
    else:
        width, height = size
    x1, y1, x2, y2 = box
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        unit = "pixels" if subject.options.coordinates is Frame.PIXEL else "thousandths"
        yield call.at, f"the box {list(box)} does not lie within {width}×{height} {unit}"


def _boxes_are_of_photo(row: WrittenRow, subject: Subject) -> bool:
    """Whether the tools are described as working on the photo, whatever was done since."""
    told = "".join(message.text for message in row.messages if message.role == "system")
    told += str(row.stored.get("tools", ""))
    frame = subject.options.coordinates
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


def _special_words(seen: Seen, subject: Subject) -> Iterator[Problem]:
    for message in seen.row.messages:
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


def _thoughts(seen: Seen, subject: Subject) -> Iterator[Problem]:
    for message in seen.row.messages:
        if not message.is_assistant:
            continue
        if _EMPTY_THINK.search(message.text):
            yield f"{message.at}.content", "an empty block of thoughts, which is trained"
        elif (tags := _THINK_TAG.findall(message.text)) != ["", "/"] * (len(tags) // 2):
            yield f"{message.at}.content", "a block of thoughts is not closed, or not opened"


def _loss(seen: Seen, subject: Subject) -> Iterator[Problem]:
    row, has_trained = seen.row, False
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


_CHECKS: tuple[tuple[str, Callable[[Seen, Subject], Iterator[Problem]]], ...] = (
    ("picture_count", _picture_counts),
    ("role_order", _role_order),
    ("call", _calls),
    ("box", _boxes),
    ("special_word", _special_words),
    ("think", _thoughts),
    ("loss", _loss),
)


def _length(seen: Seen, subject: Subject) -> int:
    """The tokens of a row."""
    count = subject.setup.count_tokens
    texts = [part for message in seen.row.messages for part in message.parts if part is not None]
    texts += [
        f"{call.name}{json.dumps(call.arguments, ensure_ascii=False)}"
        for message in seen.row.messages
        for call in message.calls
        if "tool_calls" in call.at
    ]
    if seen.row.stored.get("tools"):
        texts.append(json.dumps(seen.row.stored["tools"], ensure_ascii=False, default=str))
    pictures = sum(picture_tokens(size, subject.options) for size in seen.sizes if size is not None)
    return sum(map(count, texts)) + pictures + TOKENS_A_MESSAGE * len(seen.row.messages)


# --- the truth


def _truths(row: WrittenRow, subject: Subject) -> list[Json]:
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


def _leaks(row: WrittenRow, truths: Sequence[Json]) -> Iterator[Problem]:
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


# --- the same again


class _Digests:
    """The hashes of all rows so far, in a table on disk."""

    def __init__(self) -> None:
        self._table = sqlite3.connect("", isolation_level=None)  # a file that nobody else sees, removed
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.execute("CREATE TABLE conversations (digest BLOB PRIMARY KEY, place TEXT) WITHOUT ROWID")
        self._table.execute(
            "CREATE TABLE photos (digest BLOB, split TEXT, place TEXT, PRIMARY KEY (digest, split)) "
            "WITHOUT ROWID"
        )
        self._table.execute("BEGIN")

    def close(self) -> None:
        """Remove the table."""
        self._table.close()

    def repeats(self, seen: Seen) -> Iterator[tuple[str, Problem]]:
        """What of a row was there before."""
        row, place = seen.row, f"{seen.row.file}, row {seen.row.number}"
        said = json.dumps([row.stored.get("messages"), seen.digests], sort_keys=True, default=str)
        digest = hashlib.sha256(said.encode("utf-8", "surrogatepass")).digest()
        before = self._first("conversations", "digest = ?", (digest,))
        if before is None:
            self._table.execute("INSERT INTO conversations VALUES (?, ?)", (digest, place))
        else:
            yield "duplicate", ("messages", f"the same conversation as {before}")
        if not seen.digests:
            return
        photo = (seen.digests[0].encode(), row.split)
        other = self._first("photos", "digest = ? AND split != ?", photo)
        self._table.execute("INSERT OR IGNORE INTO photos VALUES (?, ?, ?)", (*photo, place))
        if other is not None:
            yield "shared_photo", (row.pictures[0].at, f"the same photo as {other}")

    def _first(self, table: str, where: str, values: tuple[object, ...]) -> str | None:
        found = self._table.execute(f"SELECT place FROM {table} WHERE {where} LIMIT 1", values).fetchone()  # noqa: S608
        return None if found is None else str(found[0])
