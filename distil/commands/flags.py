"""Every flag once: its name, type, default and help, in the group that one room is handed whole.

A group is a frozen dataclass. A field with a `Flag` is a flag, one with a text alone a group within, and the
text its heading in the help; any other is a value that a command fixes. A flag with a text stands below that
heading too. To add a flag, add its field here and read it where its group goes.
Defaults stand here and nowhere else; a command has others by the group that it is made with (`distil.cli`).
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_args, get_type_hints

from distil.embedded.launch import DEFAULT_KIND, KINDS, NUM_SIGNS
from distil.records import (
    CropFrom,
    ExportFormat,
    FailedCalls,
    Frame,
    Json,
    NearDuplicates,
    OnChange,
    Protocol,
    Student,
    Thoughts,
    ToolMode,
)
from distil.sandbox.bounds import MEMORY_BYTES, TIMEOUT_SECONDS
from distil.spending.prices import FixedPrices, parse_prices

AUTO: Final = "auto"
VIEW_PORT = 8642  # of the web page
REPORT_TRACES = 200  # of a report, with all their pictures
_NATIVE_OR_TEXT = (ToolMode.NATIVE, ToolMode.TEXT)

GroupT = TypeVar("GroupT")
ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class Flag:
    """How a field is given on the command line; `{default}` in `help` is its default.

    `parse` reads the text, and raises ValueError or ArgumentTypeError, `from_json` what a run's record keeps.
    A field of type bool needs neither. Where `choices` are members of an enum the value is the one named.
    """

    help: str | None = None
    metavar: str | None = None
    parse: Callable[[str], object] = str
    choices: Iterable[str] | None = None
    from_json: Callable[[Json], object] = lambda value: value
    is_positional: bool = False
    is_required: bool = False
    is_many: bool = False  # a positional that may be given several times: its value is a tuple

    def read(self, text: str) -> object:
        """The value that a text gives; raises ValueError or ArgumentTypeError."""
        return self._chosen(self.parse(text))

    def stored(self, value: Json) -> object:
        """The value that a run's record keeps."""
        return self._chosen(self.from_json(value))

    def _chosen(self, value: object) -> object:
        return next((choice for choice in self.choices or () if choice == value), value)


def add_flags(parser: argparse._ActionsContainer, flags: object) -> None:
    """Give a parser the flags of a group and of those within, with the values that it has as defaults."""
    sections = {"": parser}
    for name, flag, default, heading in stated_flags(flags):
        if heading not in sections:
            sections[heading] = parser.add_argument_group(heading)
        _add_flag(sections[heading], name, flag, default)


def _add_flag(section: argparse._ActionsContainer, name: str, flag: Flag, default: object) -> None:
    if isinstance(default, bool):
        section.add_argument(f"--{name}", action="store_true", help=flag.help)
        # The other is for who has it on in a file or in the environment.
        section.add_argument(
            f"--no_{name}", dest=name, action="store_false", default=default, help=argparse.SUPPRESS
        )
        return
    kept: dict[str, Any] = {} if flag.is_positional else {"default": default, "required": flag.is_required}
    if flag.is_many:
        kept["nargs"] = "+"
    section.add_argument(
        name if flag.is_positional else f"--{name}",
        type=flag.read,
        metavar=flag.metavar,
        choices=flag.choices and tuple(map(str, flag.choices)),
        help=flag.help and flag_text(flag.help, default),
        **kept,
    )


def flag_text(text: str, default: object) -> str:
    """What is said of a flag, with its default."""
    return text.replace("{default}", f"{default:g}" if isinstance(default, float) else str(default))


def stated_flags(flags: object) -> Iterator[tuple[str, Flag, Any, str]]:
    """Each flag of a group and of those within: its name, how it is given, its value, its heading."""
    for name, flag, heading in _stated(flags):
        value = getattr(flags, name)
        if flag is not None:
            yield name, flag, value, heading
            continue
        for within in stated_flags(value):
            yield *within[:3], heading


def command_text(command: str, flags: object, defaults: object, left_out: Collection[str] = ()) -> str:
    """The command line of these flags, those that have their defaults left out."""
    usual = {name: value for name, _, value, _ in stated_flags(defaults)}
    words = [command]
    for name, flag, value, _ in stated_flags(flags):
        if flag.is_positional:
            words += [shlex.quote(str(each)) for each in (value if flag.is_many else [value])]
        elif name not in left_out and (flag.is_required or value != usual[name]):
            words += [f"--{name}"] if value is True else [f"--{name}", shlex.quote(str(value))]
    return " ".join(words)


def read_flags(namespace: argparse.Namespace, flags: GroupT) -> GroupT:
    """The group with what was given on the command line."""
    given = {
        name: read_flags(namespace, getattr(flags, name)) if flag is None else getattr(namespace, name)
        for name, flag, _ in _stated(flags)
    }
    return replace(flags, **given)  # type: ignore[type-var]


def flags_json(flags: object) -> dict[str, Json]:
    """All fields of a group and of those within, by name, as a run's record keeps them."""
    values: dict[str, Json] = {}
    groups = {name for name, flag, _ in _stated(flags) if flag is None}
    for name, value in vars(flags).items():
        if name in groups:
            values |= flags_json(value)
        else:
            values[name] = asdict(value) if is_dataclass(value) else value  # type: ignore[arg-type]
    return values


def flags_from_json(flags: GroupT, values: Mapping[str, Json]) -> GroupT:
    """The group with the values of `flags_json`."""
    stated = {name: flag for name, flag, _ in _stated(flags)}
    given = {}
    for name, value in vars(flags).items():
        if name not in stated:
            given[name] = values[name]
        elif (flag := stated[name]) is None:
            given[name] = flags_from_json(value, values)
        else:
            given[name] = flag.stored(values[name])
    return replace(flags, **given)  # type: ignore[type-var]


def _stated(flags: object) -> Iterator[tuple[str, Flag | None, str]]:
    """The fields that are flags, and groups of them (None), in their order, each with its heading."""
    hints = get_type_hints(type(flags), include_extras=True)
    for item in fields(flags):  # type: ignore[arg-type]
        stated = getattr(hints[item.name], "__metadata__", ())
        if stated:
            flag = next((each for each in stated if isinstance(each, Flag)), None)
            heading = next((each for each in stated if isinstance(each, str)), "")
            yield item.name, flag, heading


# --- what is read from a text ---


def _reader(
    read: Callable[[str], ValueT], told: str, fits: Callable[[ValueT], bool] = lambda _: True
) -> Callable[[str], ValueT]:
    """What reads a value that fits, and raises ArgumentTypeError saying what is told for any other text."""

    def parse(text: str) -> ValueT:
        with suppress(ValueError):
            value = read(text)
            if fits(value):
                return value
        raise argparse.ArgumentTypeError(told)

    return parse


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _shares(text: str) -> str:
    """Shares from LOW to HIGH, both included; an end may be left out."""
    low, dots, high = text.partition("..")
    first, last = float(low or 0), float(high or 1)
    if not dots or not 0 <= first <= last <= 1:
        raise ValueError(text)
    return "..".join(repr(share).removesuffix(".0") for share in (first, last))  # exactly: 1/3 is a share


_whole = _reader(int, "must be a whole number")
_count = _reader(int, "must be a whole number of 0 or more", lambda value: value >= 0)
_positive = _reader(int, "must be a whole number of 1 or more", lambda value: value >= 1)
_amount = _reader(_finite, "must be an amount above 0", lambda value: value > 0)
_part = _reader(_finite, "must be a share between 0 and 1", lambda value: 0 < value < 1)
_share = _reader(_finite, "must be a number from 0 to 1", lambda value: 0 <= value <= 1)
_temperature = _reader(_finite, "must be a number from 0 to 2", lambda value: 0 <= value <= 2)
_seconds = _reader(_finite, "must be a number of seconds above 0", lambda value: value > 0)
_grace = _reader(_finite, "must be a number of seconds, 0 or more", lambda value: value >= 0)
_bits = _reader(lambda text: list[float](range(33)).index(float(text)), "must be a whole number from 0 to 32")
_band = _reader(_shares, "use LOW..HIGH, two shares from 0 to 1, as 0.2..0.8")
_prices = _reader(parse_prices, "use IN,OUT or IN,OUT,CACHED_IN, USD per million tokens")


def _port(text: str) -> int:
    port = _count(text)
    if port > 65535:
        raise argparse.ArgumentTypeError("must be a port from 0 to 65535")
    return port


def _stored_prices(value: Json) -> FixedPrices | None:
    return None if value is None else FixedPrices(**value)


def _cores() -> int:
    """How many processor cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- the user's own code ---

_OWN = "the task, and code of your own, which may do anything that you may"
_TASK = Flag(
    "what is asked: the name of a task, such as vqa, or FILE:NAME of your own (default: where a "
    "photo was taken)",
    "NAME",
)
_TASK_OF_TRACES = Flag("the task of your own that the traces are of", "FILE:NAME")
_TOOL_MODULE = Flag("Python files with tools of your own; --tools offers them by their names", "FILE[,FILE…]")
_REWARD = Flag(
    "a function of your own, with the signature of verl's compute_score, that scores each answer too",
    "FILE:FUNCTION",
)


# --- a run ---


@dataclass(frozen=True)
class SampleFlags:
    """Which samples, where to, and how many at once."""

    dataset_path: Annotated[
        str | None,
        Flag(
            "save_to_disk folder, folder of pictures or files, parquet / JSONL / CSV / TSV / tar file, "
            "quoted glob, or hf://NAME; PATH:split for a split (default: what is drawn for the task)",
            metavar="PATH",
        ),
    ] = None
    image_column: Annotated[
        str | None, Flag("the column of the picture (default: image, or guessed by name and type)", "NAME")
    ] = None
    lat_column: Annotated[
        str | None,
        Flag("of degrees north; A.B is a field of a struct (default: by name, or as EXIF says)", "NAME"),
    ] = None
    lon_column: Annotated[str | None, Flag("of degrees east (default: the same)", "NAME")] = None
    question_column: Annotated[
        str | None, Flag("of the question, where each row has its own (default: by name)", "NAME")
    ] = None
    answer_column: Annotated[str | None, Flag("of its answer (default: by name)", "NAME")] = None
    num_samples: Annotated[int, Flag("0 for all (default: {default})", "N", _count)] = 10
    order: Annotated[
        str,
        Flag(
            "dataset, random, COLUMN or COLUMN:desc; a trace keeps its true row number (default: {default})",
            metavar="ORDER",
        ),
    ] = "dataset"
    where_row: Annotated[
        str | None,
        Flag(
            'only rows that meet a condition in SQL over the dataset\'s columns, as "year > 2010"; '
            "no picture is read for it (default: all rows)",
            "CONDITION",
        ),
    ] = None
    target_acc: Annotated[
        float | None,
        Flag(
            "choose rows by what came of others so that this share of them is accepted (--accept) or "
            "solved, 0 to 1 (default: rows in --order)",
            "A",
            _share,
        ),
    ] = None
    difficulty_column: Annotated[
        str | None,
        Flag("a number that says how easy or hard a row is, for --target_acc (default: the task's)", "NAME"),
    ] = None
    seed: Annotated[int, Flag("of random order and of every request (default: {default})", parse=_whole)] = 0
    output_dir: Annotated[str, Flag("(default: {default})", metavar="DIR")] = "traces_concurrent"
    on_change: Annotated[
        OnChange,
        Flag(
            "what to do with traces in DIR that were made with other settings (default: refuse to run)",
            choices=get_args(OnChange),
        ),
    ] = "refuse"
    retry_failed: Annotated[bool, Flag("only the samples that failed before")] = False
    keep_going: Annotated[
        bool, Flag("go on where the first 20 samples have no answer, or all tool calls fail")
    ] = False
    max_workers: Annotated[
        int,
        Flag(
            "samples at once, and the ceiling of requests at once, whose number follows what the server "
            "can take (default: {default})",
            "K",
            _positive,
        ),
    ] = 4
    fixed_workers: Annotated[bool, Flag("K requests at once, whatever the server makes of them")] = False


@dataclass(frozen=True)
class RolloutFlags:
    """How often a row is asked, and when it has been asked often enough."""

    rollouts_per_sample: Annotated[
        int, Flag("how often each row is asked, with seeds of its own (default: {default})", "K", _positive)
    ] = 1
    accept: Annotated[
        str | None,
        Flag('which traces are accepted: SQL over a trace\'s columns, as "score > 0.8"', "CONDITION"),
    ] = None
    accepted_per_sample: Annotated[
        int | None,
        Flag("a row with N accepted traces is asked no more (default: all K are made)", "N", _positive),
    ] = None
    target_accepted: Annotated[
        int | None,
        Flag("nothing more is asked once DIR has N accepted traces (default: no end)", "N", _positive),
    ] = None
    also_without_tools: Annotated[
        bool, Flag("ask each row once more in one turn without tools, into DIR/without_tools")
    ] = False

    @property
    def stops_early(self) -> bool:
        """Whether what comes of some rollouts decides on others."""
        return self.accepted_per_sample is not None or self.target_accepted is not None


@dataclass(frozen=True)
class TeacherFlags:
    """Who is asked, for what, and how long is waited."""

    api_base: Annotated[
        str | None,
        Flag(
            "OpenAI-compatible server, several replicas of one, or 'embedded' (default: $OPENAI_BASE_URL; "
            "its key: $OPENAI_API_KEY; with neither, the embedded sign reader)",
            metavar="URL[,URL…]",
        ),
    ] = None
    model: Annotated[str | None, Flag("(default: the server's only model)")] = None
    temperature: Annotated[float, Flag("(default: {default})", parse=_temperature)] = 0.7
    max_tokens: Annotated[int, Flag("of one turn (default: {default})", "N", _positive)] = 2048
    request_timeout_seconds: Annotated[
        float, Flag("of one attempt at a reply (default: {default})", "S", _seconds)
    ] = 600.0
    turn_timeout_seconds: Annotated[
        float, Flag("of all attempts at one reply (default: {default})", "S", _seconds)
    ] = 1800.0
    sample_timeout_seconds: Annotated[
        float,
        Flag(
            "of all turns of one sample; pauses that the server asks for are not counted "
            "(default: {default})",
            "S",
            _seconds,
        ),
    ] = 7200.0
    max_outage_seconds: Annotated[
        float, Flag("how long a server that is down is waited for (default: {default})", "S", _seconds)
    ] = 1800.0
    grace_seconds: Annotated[
        float,
        Flag(
            "how long requests in flight are waited for after Ctrl-C or SIGTERM; 0 for not at all "
            "(default: {default})",
            "S",
            _grace,
        ),
    ] = 30.0
    system_prompt: Annotated[str | None, Flag("(default: You are a helpful assistant.)", "TEXT")] = None
    user_prompt_file: Annotated[
        str | None, Flag("a text file to ask instead of the standard prompt", "FILE")
    ] = None


@dataclass(frozen=True)
class ToolFlags:
    """The tools, and how the teacher calls them and sees pictures."""

    tools: Annotated[
        str,
        Flag("of zoom, rotate, python_code and your own; or none (default: {default})", "NAMES"),
    ] = "zoom,rotate"
    max_turns: Annotated[int, Flag("of one sample (default: {default})", "N", _positive)] = 10
    tool_mode: Annotated[
        ToolMode | Literal["auto"],
        Flag(
            "how tool calls are written; auto asks for one to find out (default: {default})",
            choices=(AUTO, *_NATIVE_OR_TEXT),
        ),
    ] = AUTO
    coordinates: Annotated[
        Frame | Literal["auto"],
        Flag(
            "the frame of the teacher's boxes; auto goes by the model's name (default: {default})",
            choices=(AUTO, *Frame),
        ),
    ] = AUTO
    crop_from: Annotated[
        CropFrom, Flag("the picture that boxes refer to (default: {default})", choices=CropFrom)
    ] = CropFrom.CURRENT
    image_max_pixels: Annotated[
        int | None,
        Flag(
            "send pictures at no more than N pixels; crops are cut at full resolution all the same "
            "(default: as the teacher's family needs; 4194304 where it is not known)",
            "N",
            _positive,
        ),
    ] = None


@dataclass(frozen=True)
class CodeFlags:
    """The bounds of model-written code."""

    code_timeout: Annotated[float, Flag("seconds of a call (default: {default})", "S", _seconds)] = (
        TIMEOUT_SECONDS
    )
    code_memory_mb: Annotated[int, Flag("memory of a call (default: {default})", "N", _positive)] = (
        MEMORY_BYTES // 2**20
    )
    sandbox_workers: Annotated[
        int | None, Flag("calls at once (default: one per processor)", "N", _positive)
    ] = None
    unsafe_exec: Annotated[
        bool, Flag("DANGER: run model-written code without containment; recorded in every trace")
    ] = False


@dataclass(frozen=True)
class BudgetFlags:
    """What may be spent."""

    max_cost_usd: Annotated[float | None, Flag(None, "USD", _amount)] = None
    max_total_tokens: Annotated[int | None, Flag("prompt and completion", "N", _positive)] = None
    max_calls: Annotated[int | None, Flag("without those that end in an error status", "N", _positive)] = None
    price_per_million: Annotated[
        FixedPrices | None,
        Flag(
            "USD per million tokens (default: as the extra 'prices' knows them)",
            "IN,OUT[,CACHED_IN]",
            _prices,
            from_json=_stored_prices,
        ),
    ] = None


_SAID = "what is said"  # while it runs, and of what would


@dataclass(frozen=True)
class RunFlags:
    """All flags of a run, and what the command itself says of it."""

    samples: Annotated[SampleFlags, "samples"] = SampleFlags()
    rollouts: Annotated[RolloutFlags, "rollouts of a sample"] = RolloutFlags()
    teacher: Annotated[TeacherFlags, "teacher"] = TeacherFlags()
    tools: Annotated[ToolFlags, "tools"] = ToolFlags()
    code: Annotated[CodeFlags, "the code tool"] = CodeFlags()
    task: Annotated[str | None, _OWN, _TASK] = None
    tool_module: Annotated[str | None, _OWN, _TOOL_MODULE] = None
    reward: Annotated[str | None, _OWN, _REWARD] = None
    budget: Annotated[BudgetFlags, "budget, counted over all runs into DIR"] = BudgetFlags()
    dry_run: Annotated[
        bool, _SAID, Flag("check all and show the first request, pictures as sizes; nothing is sent")
    ] = False
    quiet: Annotated[bool, _SAID, Flag("say nothing but warnings and errors")] = False
    log_file: Annotated[
        str | None, _SAID, Flag("add all that is said to FILE too, each line with its time", "FILE")
    ] = None
    keep_pictures: bool = False
    estimate_samples: int | None = None
    json: bool = False


_JSON = Flag("one JSON document on standard output and nothing else there")


@dataclass(frozen=True)
class EstimateFlags(RunFlags):
    """Those of a run, and how many samples to run."""

    estimate_samples: Annotated[int | None, Flag("(default: {default})", "N", _positive)] = 8
    json: Annotated[bool, _JSON] = False


# --- the other commands ---

_TRACES = Flag("a trace file or a folder of them", "PATH", Path, is_positional=True)
_DATASET_NOW = Flag("where the dataset is now (default: as the traces say)", "PATH")
_PAGE, _REPORT = "a web page", "a report"


@dataclass(frozen=True)
class ViewFlags:
    """The flags of `distil view`."""

    paths: Annotated[
        tuple[Path, ...],
        Flag("trace files, or folders of them", "PATH", Path, is_positional=True, is_many=True),
    ] = ()
    batch: Annotated[bool, Flag("totals over the folder")] = False
    verbose: Annotated[bool, Flag("nothing shortened; with --batch a line per trace")] = False
    where: Annotated[
        str, Flag("only traces of which this is true, as \"score > 0.9 and country = 'France'\"", "SQL")
    ] = ""
    json: Annotated[bool, _JSON] = False
    pictures: Annotated[
        Protocol,
        Flag(
            "how pictures are shown in the terminal: auto where it can, else not (default: {default})",
            choices=Protocol,
        ),
    ] = Protocol.AUTO
    serve: Annotated[bool, _PAGE, Flag("show the folders as a local web page, until Ctrl-C")] = False
    port: Annotated[
        int | None, _PAGE, Flag(f"0 for any (default: {VIEW_PORT}, or a free one)", "N", _port)
    ] = None
    host: Annotated[
        str,
        _PAGE,
        Flag(
            "the address to serve at; where others can ask, the URL holds a key (default: {default})", "ADDR"
        ),
    ] = "127.0.0.1"
    no_open: Annotated[bool, _PAGE, Flag("do not open the browser")] = False
    dataset_path: Annotated[str | None, _PAGE, _DATASET_NOW] = None
    html: Annotated[
        Path | None,
        _REPORT,
        Flag("write one file with charts, list, traces and pictures, which opens from disk", "FILE", Path),
    ] = None
    limit: Annotated[
        int | None, _REPORT, Flag(f"how many traces it holds (default: {REPORT_TRACES})", "N", _positive)
    ] = None
    task: Annotated[str | None, _OWN, _TASK_OF_TRACES] = None
    tool_module: Annotated[str | None, _OWN, _TOOL_MODULE] = None


@dataclass(frozen=True)
class VerifyFlags:
    """The flags of `distil verify`."""

    path: Annotated[Path, _TRACES] = Path()
    dataset_path: Annotated[str | None, _DATASET_NOW] = None
    max_workers: Annotated[int, Flag("(default: {default})", "K", _positive)] = _cores()
    verbose: Annotated[bool, Flag("a line per trace, matched ones too")] = False
    json: Annotated[bool, _JSON] = False
    task: Annotated[str | None, _OWN, _TASK_OF_TRACES] = None
    tool_module: Annotated[str | None, _OWN, _TOOL_MODULE] = None
    reward: Annotated[str | None, _OWN, _REWARD] = None


@dataclass(frozen=True)
class ScoreFlags:
    """The flags of `distil score`."""

    path: Annotated[Path, _TRACES] = Path()
    reward: Annotated[str | None, _REWARD] = None
    json: Annotated[bool, _JSON] = False


@dataclass(frozen=True)
class FormFlags:
    """What the rows of an export are like."""

    reasoning: Annotated[
        Thoughts,
        Flag(
            "the teacher's: as plain text, left out, or within <think> (default: {default})",
            choices=get_args(Thoughts),
        ),
    ] = "think"
    errors: Annotated[
        FailedCalls,
        Flag(
            "turns with a failed call: there but not trained, trained, or cut out (default: {default})",
            choices=get_args(FailedCalls),
        ),
    ] = "mask"
    coordinates: Annotated[
        Frame,
        Flag(
            "boxes in thousandths of a picture, or in its pixels; then pictures get the sizes that the "
            "student's processor would give them (default: {default})",
            choices=(Frame.REL1000, Frame.PIXEL),
        ),
    ] = Frame.REL1000
    image_max_pixels: Annotated[
        int | None, Flag("make larger pictures smaller (default: as the teacher got them)", "N", _positive)
    ] = None
    student: Annotated[
        Student,
        Flag(
            "the family that learns: how it sizes pictures (default: {default})",
            choices=get_args(Student),
        ),
    ] = "qwen3-vl"
    call_form: Annotated[
        ToolMode,
        Flag(
            "calls as text, which every trainer reads alike, or as its own fields (default: {default})",
            choices=(ToolMode.TEXT, ToolMode.NATIVE),
        ),
    ] = ToolMode.TEXT
    has_attribution: bool = False  # rows say whose they are: where their dataset does


@dataclass(frozen=True)
class SelectionFlags:
    """Which traces are exported, and which of them are kept for validation."""

    only_kept: Annotated[bool, Flag("only traces that are marked keep; those marked drop never are")] = False
    ignore_marks: Annotated[bool, Flag("traces that are marked drop, too")] = False
    pass_rate: Annotated[
        str | None,
        Flag("only rows of which such a share of all their traces passes: 0.2..0.8", "LOW..HIGH", _band),
    ] = None
    accept: Annotated[str | None, Flag('which of them pass, as "score > 0.8"', "SQL")] = None
    drop_repeats: Annotated[bool, Flag("of a row's traces that say the same only the first")] = False
    near_duplicates: Annotated[
        NearDuplicates | None,
        Flag(
            "photos that are nearly the same: only one of them, or all on one side of the split",
            choices=get_args(NearDuplicates),
        ),
    ] = None
    near_bits: Annotated[
        int,
        Flag("in how many bits of 64 their perceptual hashes may differ (default: {default})", "N", _bits),
    ] = 4
    best_of: Annotated[int | None, Flag("of a row the K traces with the best scores", "K", _positive)] = None
    max_per_sample: Annotated[
        int | None, Flag("of a row at most N traces, the first ones", "N", _positive)
    ] = None
    balance: Annotated[
        str | None,
        Flag("as many traces for each value of a column, drawn at random: those of the rarest", "COLUMN"),
    ] = None
    balance_max: Annotated[
        int | None, Flag("of each value at most N, however rare others are", "N", _positive)
    ] = None
    validation: Annotated[
        float | None,
        Flag("keep such a share for validation; a photo is never on both sides", "SHARE", _part),
    ] = None
    split_by: Annotated[
        str | None,
        Flag("columns of which a value is never on both sides either, as country", "COLUMN[,COLUMN]"),
    ] = None
    split_step: Annotated[
        float | None,
        Flag("take their numbers in steps of N: of two coordinates cells are made", "N", _amount),
    ] = None
    shuffle: Annotated[bool, Flag("rows in random order, of which --limit takes the first")] = False
    seed: Annotated[int, Flag("of all that is drawn (default: {default})", parse=_whole)] = 0


@dataclass(frozen=True)
class ExportFlags:
    """The flags of `distil export`."""

    paths: Annotated[
        tuple[Path, ...],
        Flag("runs' folders, or trace files", "DIR", Path, is_positional=True, is_many=True),
    ] = ()
    format: Annotated[ExportFormat, Flag("who reads it", choices=ExportFormat, is_required=True)] = (
        ExportFormat.TRL
    )
    out: Annotated[Path, Flag("the folder to write (needed but for --preview)", "PATH", Path)] = Path()
    preview: Annotated[
        int | None,
        Flag("show the first N rows as the student will see them, and write nothing", "N", _positive),
    ] = None
    where: Annotated[
        str | None,
        Flag('of the folders only these traces, as "score > 0.8 AND calls > 0" (default: all)', "SQL"),
    ] = None
    limit: Annotated[int | None, Flag("at most so many rows (default: all)", "N", _positive)] = None
    all: Annotated[
        bool, Flag("also traces that ended without an answer, or with one that cannot be read")
    ] = False
    selection: Annotated[SelectionFlags, "which traces"] = SelectionFlags()
    form: Annotated[FormFlags, "what a row is like"] = FormFlags()
    overwrite: Annotated[bool, Flag("replace an export that is there")] = False
    dry_run: Annotated[bool, Flag("only say how many traces each filter leaves; nothing is written")] = False
    dataset_path: Annotated[str | None, _DATASET_NOW] = None
    max_workers: Annotated[int, Flag("(default: {default})", "K", _positive)] = _cores()
    json: Annotated[bool, _JSON] = False
    task: Annotated[str | None, _OWN, _TASK_OF_TRACES] = None
    tool_module: Annotated[str | None, _OWN, _TOOL_MODULE] = None


@dataclass(frozen=True)
class CheckFlags:
    """The flags of `distil check`."""

    path: Annotated[
        Path, Flag("an export's folder, or a file of rows", "EXPORT", Path, is_positional=True)
    ] = Path()
    format: Annotated[
        ExportFormat | None, Flag("who reads it (default: as the export says)", choices=ExportFormat)
    ] = None
    coordinates: Annotated[
        Frame | None,
        Flag(
            "the frame of its boxes (default: as the export says, else rel1000)",
            choices=(Frame.REL1000, Frame.PIXEL),
        ),
    ] = None
    max_length: Annotated[
        int | None, Flag("of a row, in tokens (default: as the export sets it)", "N", _positive)
    ] = None
    tokenizer: Annotated[
        Path | None, Flag("a model's folder, to count tokens by (default: they are estimated)", "DIR", Path)
    ] = None
    traces: Annotated[
        Path | None,
        Flag("the run's folder, for the truth (default: where the export's command says)", "DIR", Path),
    ] = None
    json: Annotated[bool, _JSON] = False


@dataclass(frozen=True)
class ImportFlags:
    """The flags of `distil import`."""

    paths: Annotated[
        tuple[Path, ...],
        Flag(
            "files of conversations: .jsonl, .json or .parquet",
            "FILE",
            Path,
            is_positional=True,
            is_many=True,
        ),
    ] = ()
    output_dir: Annotated[Path, Flag("the folder to make", "DIR", Path, is_required=True)] = Path()
    format: Annotated[
        ExportFormat, Flag("how they are written (default: {default})", choices=(ExportFormat.OPENAI,))
    ] = ExportFormat.OPENAI
    coordinates: Annotated[
        Frame, Flag("the frame of their boxes (default: {default})", choices=(Frame.REL1000, Frame.PIXEL))
    ] = Frame.REL1000
    json: Annotated[bool, _JSON] = False


@dataclass(frozen=True)
class StatusFlags:
    """The flags of `distil status`."""

    path: Annotated[Path, Flag("a run's folder", "DIR", Path, is_positional=True)] = Path()
    json: Annotated[bool, _JSON] = False


@dataclass(frozen=True)
class CleanFlags:
    """The flags of `distil clean`."""

    path: Annotated[Path, Flag("a run's folder", "DIR", Path, is_positional=True)] = Path()


@dataclass(frozen=True)
class CompletionFlags:
    """The flags of `distil completion`."""

    shell: Annotated[str, Flag("which shell", choices=("bash", "zsh", "fish"), is_positional=True)] = "bash"


@dataclass(frozen=True)
class DoctorFlags:
    """The flags of `distil doctor`."""

    sandbox: Annotated[bool, Flag("the layers that contain code")] = False
    api_base: Annotated[
        str | None,
        Flag(
            "the teacher to examine with about ten small requests to each replica, or 'embedded' (its key: "
            "$OPENAI_API_KEY)",
            "URL[,URL…]",
        ),
    ] = None
    model: Annotated[
        str | None, Flag("(default: the server's only model; without --api_base at $OPENAI_BASE_URL)")
    ] = None
    coordinates: Annotated[
        Frame | Literal["auto"],
        Flag(
            "the frame to tell the teacher; auto goes by the model's name (default: {default})",
            choices=(AUTO, *Frame),
        ),
    ] = AUTO
    max_tokens: Annotated[int, Flag("of one reply (default: {default})", "N", _positive)] = (
        TeacherFlags.max_tokens
    )
    request_timeout_seconds: Annotated[float, Flag("of one request (default: {default})", "S", _seconds)] = (
        120.0
    )
    json: Annotated[bool, _JSON] = False

    @property
    def names_teacher(self) -> bool:
        """Whether there is a teacher to examine."""
        return self.api_base is not None or self.model is not None


@dataclass(frozen=True)
class SignsFlags:
    """The flags of `distil signs`."""

    kind: Annotated[
        str,
        Flag(
            "signs name a place; scenes hold words and numbers that --task vqa asks for (default: {default})",
            choices=KINDS,
        ),
    ] = DEFAULT_KIND
    output_dir: Annotated[Path, Flag(None, "DIR", Path, is_required=True)] = Path()
    num_rows: Annotated[int, Flag("(default: {default})", "N", _positive)] = NUM_SIGNS
    seed: Annotated[int, Flag("(default: {default})", parse=_whole)] = 0
