"""The nouns that travel between the rooms: frozen, almost without behaviour, importing nothing of ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:  # not at run time: the flags take their choices from here, and --help is to be quick
    from PIL import Image

    from distil.lazy_picture import LazyPicture

Json = Any  # a value that json.dumps writes as it is: dict, list, str, int, float, bool or None
Size = tuple[int, int]  # width and height in pixels
Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in whole pixels, the far edge excluded
GreyRange = tuple[float, float]  # the values that are shown black and white


ResultT_co = TypeVar("ResultT_co", covariant=True)


class StopReason(StrEnum):
    """Why a rollout ended; a sample that ends in an error has no trace and so no stop reason."""

    ANSWERED = "answered"  # a turn without tool calls; whether it parses is the score's business
    MAX_TURNS = "max_turns"  # the last allowed turn still called tools
    TRUNCATED = "truncated"  # the server cut the turn off (finish_reason "length")
    REFUSED = "refused"  # the teacher or its content filter declined
    CONTEXT_OVERFLOW = "context_overflow"  # the conversation so far is longer than the teacher takes


class ToolMode(StrEnum):
    """How tool calls are written: the server's own field, `<tool_call>` text, or no tools at all."""

    NATIVE = "native"
    TEXT = "text"
    NONE = "none"


class Frame(StrEnum):
    """The frame a teacher's boxes are in."""

    PIXEL = "pixel"  # pixels of the sent picture, x1 y1 x2 y2
    REL1000 = "rel1000"  # thousandths of its width and height, x1 y1 x2 y2
    REL1000_YX = "rel1000_yx"  # the same as y1 x1 y2 x2
    REL1 = "rel1"  # fractions of its width and height, x1 y1 x2 y2


class CropFrom(StrEnum):
    """Which picture a zoom box refers to."""

    CURRENT = "current"  # the one that the previous call made
    ORIGINAL = "original"  # the photo, whatever was done since (DeepEyes, verl, Thyme)


class OnChange(StrEnum):
    """What to do where a folder holds traces that were made with other settings."""

    REFUSE = "refuse"
    NEW = "new"  # write into a new folder beside it
    KEEP = "keep"  # keep those traces, make only what is missing
    REDO = "redo"  # make them again


class ExportFormat(StrEnum):
    """Who reads an export."""

    TRL = "trl"
    VERL = "verl"
    LLAMAFACTORY = "llamafactory"
    MS_SWIFT = "ms_swift"
    OPENAI = "openai"
    HF = "hf"


class Thoughts(StrEnum):
    """What becomes of a teacher's reasoning in an export."""

    KEEP = "keep"  # plain text in front of the turn's own
    DROP = "drop"
    THINK = "think"  # within <think> tags in front of it


class FailedCalls(StrEnum):
    """What becomes in an export of turns with a call that failed."""

    MASK = "mask"  # they are there, and not trained
    TRAIN = "train"
    DROP = "drop"  # the call and its result are left out, and a turn of nothing else


class Protocol(StrEnum):
    """How a terminal takes a picture."""

    AUTO = "auto"  # the one that it understands, if any
    KITTY = "kitty"  # its graphics protocol: Ghostty too
    ITERM = "iterm"  # inline images of iTerm2: WezTerm and mintty too
    SIXEL = "sixel"  # foot, mlterm, contour, Konsole, Windows Terminal, xterm where it is built with it
    NONE = "none"


class NearDuplicates(StrEnum):
    """What becomes in an export of photos that are nearly the same."""

    DROP = "drop"  # one of them stays
    TOGETHER = "together"  # all stay, on one side of a split


@dataclass(frozen=True, slots=True)
class Band:
    """Shares from `low` to `high`, both included."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}"

    @classmethod
    def parse(cls, text: str) -> Band:
        """Read `0.2..0.8`; an end may be left out. Raises ValueError."""
        low, dots, high = text.partition("..")
        band = cls(float(low or 0), float(high or 1))
        if not dots or not 0 <= band.low <= band.high <= 1:
            raise ValueError(text)
        return band


class Student(StrEnum):
    """The family of models that learns from an export: how its processor sizes pictures."""

    QWEN3_VL = "qwen3-vl"
    QWEN25_VL = "qwen2.5-vl"


@dataclass(frozen=True, slots=True, order=True)
class SampleId:
    """Which sample: its row in the dataset, and which of the row's rollouts it is, counted from 0.

    The one place that says how this is written. A row's first rollout is known by the row alone; a later one
    has its number behind it. So a row's rollouts lie side by side in the order of names, and where each row
    has but one, nothing says `rollout` anywhere.

    | where                  | first rollout         | a later one                        |
    |------------------------|-----------------------|------------------------------------|
    | file name of its trace | `trace_00012.json`    | `trace_00012_r1.json`              |
    | JSON                   | `{"sample_index": 12}`| `{"sample_index": 12, "rollout": 1}` |
    | messages, seeds        | `12`                  | `12_r1`                            |
    """

    index: int
    rollout: int = 0

    def __str__(self) -> str:
        return f"{self.index}{self._later}"

    @property
    def file_part(self) -> str:
        """What a file of this sample has in its name."""
        return f"{self.index:05d}{self._later}"

    @property
    def _later(self) -> str:
        return f"_r{self.rollout}" if self.rollout else ""

    @classmethod
    def from_file_part(cls, text: str) -> SampleId | None:
        """The sample that a file is of, None where its name has another form."""
        match = re.fullmatch(r"([0-9]+)(?:_r([0-9]+))?", text)
        sample_id = None if match is None else cls(int(match[1]), int(match[2] or 0))
        return sample_id if sample_id is not None and sample_id.file_part == text else None

    def as_json(self) -> dict[str, Json]:
        """The fields that name this sample in a JSON object."""
        return {"sample_index": self.index} | ({"rollout": self.rollout} if self.rollout else {})

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> SampleId:
        """The sample that a JSON object is of; raises KeyError or TypeError where it does not say."""
        sample_id = cls(value["sample_index"], value.get("rollout", 0))
        if not all(type(number) is int for number in (sample_id.index, sample_id.rollout)):
            raise TypeError(f"{sample_id!r} is no sample")
        return sample_id


@dataclass(frozen=True, slots=True)
class DatasetIdentity:
    """What a trace records of its dataset; `path` is what `load_from_disk` takes, `source` what was given."""

    path: str
    source: str
    kind: str  # "saved" (save_to_disk), "file", "folder" (of files), "imagefolder" or "hub"
    split: str | None
    fingerprint: str
    num_rows: int


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """What identifies a decoded picture: size in pixels, PIL mode, hash over mode, size and pixels."""

    width_px: int
    height_px: int
    mode: str
    pixel_sha256: str


@dataclass(frozen=True, slots=True)
class SentPicture:
    """A picture as the teacher gets it: an encoded file of `size` pixels, without metadata.

    `grey_range` says how deep grey was scaled to 8 bits, None where the picture is of another kind.
    `data` may be left out, as b"", once it stands in a message.
    """

    media_type: str
    size: Size
    data: bytes
    num_bytes: int
    sha256: str
    grey_range: GreyRange | None = None

    def without_data(self) -> SentPicture:
        """What a trace says of it."""
        return replace(self, data=b"")


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """The picture file of a dataset row, with its picture decoded exactly as `datasets` decodes it.

    Neither lies in memory for as long as a sample takes: `data` and `image` are read again, and raise
    SampleError where the file is another by now.
    """

    file_sha256: str
    file_format: str
    file_mode: str  # the picture's is another where the dataset's column asks for one
    exif_orientation: int | None
    facts: PictureFacts
    read: Callable[[], bytes] = field(repr=False, compare=False)
    picture: LazyPicture = field(repr=False, compare=False)

    @property
    def data(self) -> bytes:
        """The file."""
        return self.read()

    @property
    def image(self) -> Image.Image:
        """The picture."""
        return self.picture.image()


@dataclass(frozen=True, slots=True)
class Sample:
    """One row to solve; its number is that in the dataset, whatever the order or selection."""

    id: SampleId
    name: str  # for messages: which row of which dataset
    data: Mapping[str, Json]  # every column but the image, as JSON values
    picture: StoredPicture
    fields: Mapping[str, Json] = field(default_factory=dict)  # what the task reads under another name


@dataclass(frozen=True, slots=True)
class RawCall:
    """A tool call as the teacher wrote it; `problem` says why it cannot be read, if so."""

    name: str
    arguments: Json  # the parsed object, or the text as it came where it cannot be parsed
    call_id: str | None = None  # native calls only
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """One teacher reply, read: what it said, thought and called, and what the server reported."""

    content: str
    reasoning: str | None
    reasoning_field: str | None  # where the server put it: a message field's name, or "content"
    finish_reason: str | None
    calls: tuple[RawCall, ...]
    call_form: ToolMode  # how the calls of this very turn were written
    usage: Mapping[str, Json] | None
    refusal: str | None = None
    other_reasoning: Mapping[str, str] = field(default_factory=dict)  # what other places said beside it
    model: str | None = None  # as the server names the one that replied


SUCCESS_MESSAGE = "Success: Image processed successfully"  # what a call that worked tells the teacher


@dataclass(frozen=True, slots=True)
class Observation:
    """What a tool call gave: a message for the teacher and, if it succeeded, a picture.

    `stdout` is what model-written code printed, None for tools that run no code.
    """

    success: bool
    message: str
    facts: PictureFacts | None = None
    sent: SentPicture | None = None
    stdout: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call with what came of it; `arguments` are resolved: whole pixels of the picture cropped."""

    raw: RawCall
    arguments: Mapping[str, Json]  # {} where the call could not be resolved
    clamped: bool
    observation: Observation


@dataclass(frozen=True, slots=True)
class Turn:
    """One teacher reply and the tool calls that followed from it; turns count from 1."""

    number: int
    reply: Reply
    calls: tuple[ToolCall, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """The reward of an answer, or of none: then `parse_success` is false.

    `details` are the task's own figures by the keys that a trace's `reward_score` has for them, in their
    order; one called `parse_success` only says where that stands among them.
    """

    value: float
    parse_success: bool
    details: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Rollout:
    """A finished sample: everything that a trace is written from; truth and answer are the task's."""

    sample: Sample
    truth: Mapping[str, Json]
    sent: SentPicture
    turns: tuple[Turn, ...]
    stop_reason: StopReason
    answer: Mapping[str, Json] | None
    score: Score
    prompt_fields: Mapping[str, str] = field(default_factory=dict)  # the row's texts in the prompt


class FailureKind(StrEnum):
    """What a sample failed of."""

    SAMPLE = "sample"  # its row cannot be used
    TEACHER = "teacher"  # no reply, or none that can be read
    DEADLINE = "deadline"
    CONTEXT_OVERFLOW = "context_overflow"  # of its first request
    TOOL = "tool"
    TRACE = "trace"  # it could not be read back
    FILE = "file"  # of the dataset, say
    UNEXPECTED = "unexpected"  # a defect of ours


@dataclass(frozen=True, slots=True)
class Failure:
    """A sample that has no trace: what it failed of, and a `message` for the user.

    `attempts` are the requests for the turn that failed, 0 where the failure was not the teacher's; `runs`
    how often the sample was tried; `turns_spent` the turns that were paid for and are kept for the next run.
    """

    sample_id: SampleId
    kind: FailureKind
    message: str
    status: int | None = None
    attempts: int = 0
    runs: int = 1
    turns_spent: int = 0


@dataclass(frozen=True, slots=True)
class Outcome(Generic[ResultT_co]):
    """What became of one sample: what `solve` returned, or a failure."""

    sample_id: SampleId
    result: ResultT_co | None
    failure: Failure | None
    stopped: str | None = None  # why it was not finished although it did not fail: the run ends early


@dataclass(frozen=True, slots=True)
class Prompt:
    """What opens the conversations of a run, and the tools it offers."""

    system: str
    user: str
    tools: tuple[Mapping[str, Json], ...] = ()  # function schemas, as the OpenAI API takes them
    tool_mode: ToolMode = ToolMode.NONE
    states_size: bool = False  # say each picture's size in words: boxes are pixels of it

    def filled(self, fields: Mapping[str, str]) -> Prompt:
        """The prompt of one row: each `{FIELD}` of the question is that row's text, put in all at once."""
        if not fields:
            return self
        pattern = "|".join(re.escape(f"{{{name}}}") for name in fields)
        return replace(self, user=re.sub(pattern, lambda match: fields[match[0][1:-1]], self.user))

    @property
    def native_tools(self) -> tuple[Mapping[str, Json], ...]:
        """The tools that go into the request's own field."""
        return self.tools if self.tool_mode is ToolMode.NATIVE else ()
