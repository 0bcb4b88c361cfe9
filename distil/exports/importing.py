"""Conversations of others → traces that view, select and export understand.

What a message says is kept; what a call did is believed only where it is seen: a crop or a rotation that
gives the very picture in the message is stored as the action alone, every other picture as it came.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import datasets

from distil.errors import ToolError, TraceError, UsageError
from distil.exports.written import (
    RowProblem,
    WrittenCall,
    WrittenMessage,
    WrittenPicture,
    WrittenRow,
    find_row_files,
    read_rows,
)
from distil.messages.compose import system_text
from distil.pictures import data_url, encode_sent, picture_facts
from distil.records import (
    CropFrom,
    ExportFormat,
    Frame,
    Json,
    Prompt,
    SampleId,
    SentPicture,
    StopReason,
    ToolMode,
)
from distil.replay.imported import AS_IT_IS, decoded, sent_of, tools_of_ours
from distil.sandbox.bounds import MEMORY_BYTES, TIMEOUT_SECONDS
from distil.source.rows import Source, open_source
from distil.store.atomic import folder_errors, write_json
from distil.store.claim import RUN_RECORD
from distil.store.trace_file import (
    IMPORTED,
    dataset_json,
    facts_json,
    sent_json,
    trace_name,
    versions_now,
)
from distil.store.trace_settings import CodeLimits, TraceSettings, json_sha256
from distil.tasks import IMPORTED_TASK
from distil.tools.base import Scene, SeenSizes
from distil.tools.toolbox import Toolbox, find_tool

PHOTOS = "photos"  # the dataset in the folder
_FILES = "photo_files"  # while it is written
_TOOLS_BLOCK = re.compile(r"\n\n# Tools\n\n.*<tools>\n(?P<schemas>.*)\n</tools>\n.*\Z", re.DOTALL)
_RESPONSE = re.compile(r"<tool_response>\n?(.*?)\n?</tool_response>", re.DOTALL)
_SLOT = "\0"  # where a picture stands in the text of a message
_ERROR = "Error:"
_Turn = tuple[WrittenMessage, Sequence[tuple[str, SentPicture | None]]]  # what is said, what its calls gave
_Plain = tuple[Prompt, SentPicture, Sequence[_Turn]]  # a row as a trace can hold it: with its photo


@dataclass
class Imported:
    """What became of the rows."""

    num_traces: int = 0
    num_photos: int = 0
    num_calls: int = 0
    num_verified: int = 0  # calls that gave the very picture again
    num_kept: int = 0  # pictures that stand in traces
    refused: Counter[str] = field(default_factory=Counter)  # by reason

    def add(self, calls: Sequence[Mapping[str, Json]]) -> None:
        """Count a trace with these calls."""
        self.num_traces += 1
        self.num_calls += len(calls)
        self.num_verified += sum(call.get("verified", False) for call in calls)
        self.num_kept += sum("picture" in call for call in calls)

    def as_json(self) -> dict[str, Json]:
        """For a document."""
        return {**asdict(self), "refused": dict(sorted(self.refused.items()))}


def import_rows(
    files: Sequence[Path],
    out: Path,
    frame: Frame,
    tell: Callable[[str], None] = lambda _: None,
) -> Imported:
    """Write a trace for each row of files of chat messages; `tell` gets a line for each that is refused.

    Rows are read twice: first their photos, which become a dataset, and then all else. Raises UsageError
    where something is at `out` already, or no row can be imported.
    """
    if out.exists():
        raise UsageError(f"--output_dir {out} exists already: an import makes a new folder")
    done = Imported()
    with folder_errors(out):
        (out / _FILES).mkdir(parents=True)
        try:
            places = _write_photos(files, out, done, tell)
            if not places:
                raise UsageError("no row can be imported: each was refused, as said above")
            _save_dataset(places, out)
            source = open_source(str((out / PHOTOS).absolute()))
            for sample_id, trace in _traces(files, places, source, frame):
                write_json(out / trace_name(sample_id), trace)
                done.add(trace["tool_calls_log"])
            write_json(out / RUN_RECORD, {"runs": [_run_record(files, source, done)]})
        except BaseException:
            shutil.rmtree(out, ignore_errors=True)
            raise
        shutil.rmtree(out / _FILES)
    return done


_Places = dict[str, int]  # by the hash of a photo its row


def _plain_rows(
    files: Sequence[Path], refuse: Callable[[WrittenRow, RowProblem], None]
) -> Iterator[tuple[WrittenRow, _Plain]]:
    for file in files:
        folder, found = find_row_files(file)
        for row in read_rows(folder, found, ExportFormat.OPENAI):
            try:
                yield row, _plain(row, folder)
            except RowProblem as problem:
                refuse(row, problem)


def _write_photos(files: Sequence[Path], out: Path, done: Imported, tell: Callable[[str], None]) -> _Places:
    def refuse(row: WrittenRow, problem: RowProblem) -> None:
        done.refused[str(problem)] += 1
        tell(f"{row.file}, row {row.number}: not imported: {problem}")

    places: _Places = {}
    for _, (_, photo, _) in _plain_rows(files, refuse):
        if photo.sha256 not in places:
            places[photo.sha256] = len(places)
            (out / _FILES / photo.sha256).write_bytes(photo.data)
    done.num_photos = len(places)
    return places


def _save_dataset(places: _Places, out: Path) -> None:
    paths = [str((out / _FILES / sha256).absolute()) for sha256 in places]
    features = datasets.Features({"image": datasets.Image(), "photo_sha256": datasets.Value("string")})
    table = datasets.Dataset.from_dict({"image": paths, "photo_sha256": list(places)}, features=features)
    table.save_to_disk(out / PHOTOS)


def _traces(
    files: Sequence[Path], places: _Places, source: Source, frame: Frame
) -> Iterator[tuple[SampleId, dict[str, Json]]]:
    num_of: Counter[int] = Counter()
    for row, plain in _plain_rows(files, lambda row, problem: None):
        index = places[plain[1].sha256]
        sample_id = SampleId(index, num_of[index])
        num_of[index] += 1
        yield sample_id, _trace(row, plain, source, sample_id, frame)


def _run_record(files: Sequence[Path], source: Source, done: Imported) -> dict[str, Json]:
    return {
        "imported": [str(file) for file in files],
        "versions": versions_now(),
        "seconds": 0.0,
        "num_finished": done.num_traces,
        "dataset": {"path": source.identity.path, **dataset_json(source.identity)},
    }


# --- a row as turns


def _plain(row: WrittenRow, folder: Path) -> _Plain:
    """A row of chat messages as turns with results; raises RowProblem where a trace cannot hold it."""
    if row.problem is not None:
        raise RowProblem(f"{row.problem[0] or 'the row'}: {row.problem[1]}")
    pictures = iter([_read(picture, folder) for picture in row.pictures])
    messages = list(row.messages)
    system = ""
    if messages[0].role in ("system", "developer"):
        system = messages.pop(0).text
    if not messages or messages[0].role != "user":
        raise RowProblem("the user does not speak first")
    question = messages.pop(0)
    if question.num_pictures != 1:
        raise RowProblem(f"the question has {question.num_pictures} pictures, and a trace is of one photo")
    photo = next(pictures)
    turns = tuple(_turns(messages, pictures))
    if not turns:
        raise RowProblem("the assistant says nothing")
    text = "".join(part for part in question.parts if part is not None)
    prompt = _prompt(system, text, row.stored.get("tools"))
    if not prompt.tools and any(message.calls for message, _ in turns):
        prompt = replace(prompt, tool_mode=ToolMode.TEXT)
    return prompt, photo, turns


def _read(picture: WrittenPicture, folder: Path) -> SentPicture:
    """A picture of a message: of a data URL or a file; nothing is fetched."""
    data = picture.data
    if data is None:
        if not picture.name:
            raise RowProblem(f"{picture.at}: {picture.problem}")
        url = urlsplit(picture.name)
        if url.scheme not in ("", "file") or url.netloc:
            raise RowProblem("a picture lies at a URL: nothing is fetched, store it beside the rows")
        try:
            data = (folder / unquote(url.path) if url.scheme else folder / picture.name).read_bytes()
        except (OSError, ValueError) as error:
            raise RowProblem(f"a picture's file cannot be read: {error}") from None
    try:
        return sent_of(data)
    except TraceError as error:
        raise RowProblem(f"a picture: {error}") from None


def _prompt(system: str, question: str, stated: Json) -> Prompt:
    """What is said first, the description of the tools taken out: they are stated, or read of the text."""
    if isinstance(stated, str):
        try:
            stated = json.loads(stated)
        except ValueError:
            raise RowProblem("tools: it is no JSON") from None
    if stated:
        if not isinstance(stated, list) or not all(map(_is_schema, stated)):
            raise RowProblem("tools: it is no list of function schemas")
        return Prompt(system, question, tuple(stated), ToolMode.NATIVE)
    plain, described = Prompt(system, question, (), ToolMode.NONE), _TOOLS_BLOCK.search(system)
    if described is None:
        return plain
    try:
        schemas = tuple(json.loads(line) for line in described["schemas"].split("\n"))
    except ValueError:
        return plain
    own = Prompt(system[: described.start()], question, schemas, ToolMode.TEXT)
    return own if all(map(_is_schema, schemas)) and system_text(own) == system else plain


def _is_schema(value: Json) -> bool:
    function = value.get("function") if isinstance(value, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _turns(messages: Sequence[WrittenMessage], pictures: Iterator[SentPicture]) -> Iterator[_Turn]:
    position = 0
    while position < len(messages):
        said = messages[position]
        if said.role != "assistant":
            raise RowProblem(f"{said.role} speaks where the assistant should")
        if said.num_pictures:
            raise RowProblem("the assistant's message has a picture")
        following = list(takewhile(lambda each: each.role in ("user", "tool"), messages[position + 1 :]))
        position += 1 + len(following)
        if following and not said.calls:
            raise RowProblem("the user speaks again where no tool was called")
        shown = [next(pictures) for message in following for _ in range(message.num_pictures)]
        yield said, _results(said.calls, following, shown) if following else ()


def _results(
    calls: Sequence[WrittenCall], messages: Sequence[WrittenMessage], pictures: Sequence[SentPicture]
) -> list[tuple[str, SentPicture | None]]:
    """The results of a turn's calls, each with its picture, if it has one."""
    texts = _result_texts(messages)
    if len(texts) != len(calls):
        raise RowProblem(f"{len(calls)} calls have {len(texts)} results")
    if any(text.count(_SLOT) > 1 for text in texts):
        raise RowProblem("a result has several pictures")
    if not any(_SLOT in text for text in texts) and pictures:  # they stand in a message behind the results
        shown = [not text.startswith(_ERROR) for text in texts]
        if sum(shown) != len(pictures):
            raise RowProblem(f"{sum(shown)} results that are no errors have {len(pictures)} pictures")
    else:
        shown = [_SLOT in text for text in texts]
    left = iter(pictures)
    return [
        (text.replace(f"{_SLOT}\n", "").replace(_SLOT, ""), next(left) if has_picture else None)
        for text, has_picture in zip(texts, shown, strict=True)
    ]


def _result_texts(messages: Sequence[WrittenMessage]) -> list[str]:
    texts = [message for message in messages if message.role == "tool"]
    users = [
        "".join(_SLOT if part is None else part for part in message.parts)
        for message in messages
        if message.role == "user"
    ]
    if texts:
        if any(text.replace(_SLOT, "").strip() for text in users):
            raise RowProblem("the user says something beside the results of calls")
        return [message.text for message in texts]
    if len(users) > 1:
        raise RowProblem("the user speaks twice")
    blocks = _RESPONSE.findall(users[0])
    if _RESPONSE.sub("", users[0]).strip() and blocks:
        raise RowProblem("the user says something beside the results of calls")
    return blocks or [users[0].strip("\n")]


# --- turns as a trace


def _trace(
    row: WrittenRow, plain: _Plain, source: Source, sample_id: SampleId, frame: Frame
) -> dict[str, Json]:
    prompt, _, turns = plain
    sample = source.load(sample_id)
    sent = encode_sent(sample.picture.image, AS_IT_IS, sample.picture)
    settings = _settings(prompt, len(turns), frame)
    calls = list(_calls(turns, Scene.start(sample.picture.picture), sent, tools_of_ours(frame)))
    last, _ = turns[-1]
    stop = StopReason.MAX_TURNS if last.calls else StopReason.ANSWERED
    trace: dict[str, Json] = {
        "format": IMPORTED,
        "dataset_path": source.identity.path,
        **sample_id.as_json(),
        "sample_data": {**dict(sample.data), **_origin(row)},
        "conversation_log": [_turn(number, said) for number, (said, _) in enumerate(turns, start=1)],
        "tool_calls_log": calls,
        "final_response": last.text,
        "reward_score": {},
        "metadata": {
            "total_turns": len(turns),
            "num_tool_calls": len(calls),
            "parse_success": stop is StopReason.ANSWERED,  # it has an answer; no task reads it
            "stop_reason": stop.value,
            "answer": None,
            "truth": {},
            "num_failed_tool_calls": sum(not call["success"] for call in calls),
            "recipe_restores": all(call.get("verified", not call["success"]) for call in calls),
            "settings_sha256": settings.sha256(source.identity.fingerprint),
            "versions": versions_now(),
        },
        "dataset": dataset_json(source.identity),
        "image": {
            "file_sha256": sample.picture.file_sha256,
            "file_format": sample.picture.file_format,
            "exif_orientation": sample.picture.exif_orientation,
            **facts_json(sample.picture.facts),
            "sent": sent_json(sent),
        },
        "settings": settings.as_json(),
    }
    trace["integrity_sha256"] = json_sha256(trace)
    return trace


def _origin(row: WrittenRow) -> dict[str, Json]:
    """Where a row came from, and what plain values it had beside its messages."""
    others = {
        f"row_{name}": value
        for name, value in row.stored.items()
        if isinstance(value, str | int | float | bool) and name not in ("messages", "images", "tools")
    }
    return {"imported_from": row.file, "imported_row": row.number, **others}


def _settings(prompt: Prompt, num_turns: int, frame: Frame) -> TraceSettings:
    names = [find_tool(schema["function"]["name"]) for schema in prompt.tools]
    runs_code = any(tool is not None and tool.runs_code for tool in names)
    return TraceSettings(
        task=IMPORTED_TASK,
        model="",
        profile="",
        tool_mode=prompt.tool_mode,
        coordinates=frame,
        crop_from=CropFrom.CURRENT,
        temperature=None,
        max_tokens=0,
        max_turns=num_turns,
        seed=0,
        sends_seed=False,
        view_rule=AS_IT_IS,
        states_size=False,
        system_prompt=prompt.system,
        user_prompt=prompt.user,
        tool_schemas=prompt.tools,
        keep_pictures=True,
        code=CodeLimits(TIMEOUT_SECONDS, MEMORY_BYTES, unsafe_exec=False) if runs_code else None,
    )


def _turn(number: int, message: WrittenMessage) -> dict[str, Json]:
    form = ToolMode.NATIVE if message.stored.get("tool_calls") else ToolMode.TEXT
    entry: dict[str, Json] = {
        "turn": number,
        "assistant_response": message.text,
        "reasoning": None,
        "reasoning_field": None,
        "finish_reason": None,
        "call_form": form.value if message.calls else None,
        "usage": None,
    }
    return entry | {"trained": False} if message.stored.get("weight") == 0 else entry


def _calls(
    turns: Sequence[_Turn], scene: Scene, photo: SentPicture, toolbox: Toolbox
) -> Iterator[dict[str, Json]]:
    current = photo
    for number, (message, found) in enumerate(turns, start=1):
        results = found or (("", None),) * len(message.calls)
        for call, (text, picture) in zip(message.calls, results, strict=True):
            entry: dict[str, Json] = {
                "turn": number,
                "tool_name": call.name,
                "tool_arguments": {},
                "raw_arguments": call.arguments,
                "success": not text.startswith(_ERROR) if picture is None else True,
                "message": text,
                "clamped": False,
            }
            if picture is not None:
                shown, scene = _seen(call, picture, SeenSizes(scene, photo.size, current.size), toolbox)
                entry |= shown
                current = picture
            yield entry


def _seen(
    call: WrittenCall, picture: SentPicture, seen: SeenSizes, toolbox: Toolbox
) -> tuple[dict[str, Json], Scene]:
    """What is stored of a call's picture, verified where our tool gives that one, and the scene after it."""
    image = decoded(picture)
    facts = picture_facts(image)
    tool = find_tool(call.name)
    if tool is not None and not tool.runs_code and call.problem is None:
        try:
            resolved = tool.resolve(call.arguments, seen, toolbox.boxes)
            observation, scene = toolbox.observe(tool.name, resolved.arguments, seen.scene)
        except ToolError:
            pass
        else:
            made = observation.sent
            assert made is not None and observation.facts is not None
            is_same_file = made.sha256 == picture.sha256
            if is_same_file or observation.facts == facts:
                entry = {
                    "tool_arguments": dict(resolved.arguments),
                    "clamped": resolved.clamped,
                    "verified": True,
                    "result": {**facts_json(observation.facts), "sent": sent_json(picture)},
                }
                return entry if is_same_file else entry | {"picture": data_url(picture)}, scene
    entry = {
        "verified": False,
        "result": {**facts_json(facts), "sent": sent_json(picture)},
        "picture": data_url(picture),
    }
    return entry, seen.scene.replaced(image)
