"""Rows of an export, or of a file in the same form that somebody else wrote, read back one by one."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distil.errors import UsageError
from distil.exports.form import PLACEHOLDER
from distil.exports.to_hf import FOLDER
from distil.messages.tags import CALL_TAG, tool_call_bodies
from distil.records import ExportFormat, Json, Size

_BATCH_ROWS = 8  # of Parquet: rows bring megabytes of pictures
_SUFFIXES = (".jsonl", ".json", ".parquet")
_TYPED = (ExportFormat.TRL, ExportFormat.HF, ExportFormat.OPENAI)
_JOINT = "\n</tool_response>\n<tool_response>\n"  # between the results that one message holds
_RESPONSE = re.compile(r"<tool_response>(.*?)</tool_response>", re.DOTALL)
_RESULT_ROLES = ("tool", "observation", "tool_response")
_ROLES = {"human": "user", "gpt": "assistant"}  # of sharegpt
ASSISTANT_ROLES = ("assistant", "function_call", "tool_call")


@dataclass(frozen=True, slots=True)
class WrittenPicture:
    """A picture of a row: a file within it, or one that it names."""

    at: str  # the field of the row
    name: str = ""  # of the file, as the row has it
    data: bytes | None = field(default=None, repr=False)
    problem: str | None = None  # why there is none
    size: Size | None = None  # once it is looked at
    sha256: str = ""  # then too

    def read(self, folder: Path) -> bytes:
        """The file; raises OSError."""
        return self.data if self.data is not None else (folder / self.name).read_bytes()


@dataclass(frozen=True, slots=True)
class WrittenCall:
    """A call of an assistant's message; `problem` says why it cannot be read."""

    at: str
    name: str
    arguments: Json
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class WrittenMessage:
    """A message: its texts and, as None, where a picture stands among them."""

    role: str
    parts: tuple[str | None, ...]
    calls: tuple[WrittenCall, ...]
    stored: Mapping[str, Json] = field(repr=False)
    at: str

    @property
    def text(self) -> str:
        """All of it as one text."""
        return "".join(PLACEHOLDER if part is None else part for part in self.parts)

    @property
    def num_pictures(self) -> int:
        return sum(part is None for part in self.parts)

    @property
    def is_assistant(self) -> bool:
        return self.role in ASSISTANT_ROLES

    @property
    def results(self) -> list[str]:
        """The results of calls that it holds."""
        if self.role in _RESULT_ROLES:
            return self.text.split(_JOINT)
        return [match[1].strip("\n") for match in _RESPONSE.finditer(self.text)]


@dataclass(frozen=True, slots=True)
class WrittenRow:
    """A row; `problem` says why it cannot be read, and then it has no messages."""

    file: str
    number: int  # from 1
    split: str
    stored: Mapping[str, Json] = field(repr=False)
    messages: tuple[WrittenMessage, ...] = ()
    pictures: tuple[WrittenPicture, ...] = ()
    problem: tuple[str, str] | None = None  # the field, and what is wrong with it


class RowProblem(Exception):
    """What is wrong with a row, or with a field of it."""

    def __init__(self, problem: str, field_name: str = "") -> None:
        super().__init__(problem)
        self.field = field_name


def find_row_files(path: Path) -> tuple[Path, list[Path]]:
    """The folder of an export and its files of rows, or of the one that is named.

    Raises UsageError where there is none.
    """
    if path.is_file():
        if path.suffix not in _SUFFIXES:
            raise UsageError(f"{path} is no file of rows: it must be one of {', '.join(_SUFFIXES)}")
        return path.parent, [path]
    if not path.is_dir():
        raise UsageError(f"{path} does not exist")
    found = [*path.glob("*.jsonl"), *path.glob("*.parquet"), *(path / FOLDER).glob("*.parquet")]
    if not found:
        raise UsageError(f"{path} holds no rows: no *.jsonl, no *.parquet, no {FOLDER}/*.parquet")
    return path, sorted(found)


def read_rows(folder: Path, files: Sequence[Path], form: ExportFormat) -> Iterator[WrittenRow]:
    """All rows of files in a folder, one after another; raises UsageError where one is none of its kind."""
    for path in files:
        name = str(path.relative_to(folder))
        split = re.split(r"[.-]", path.name)[0]
        for number, stored in enumerate(_stored_rows(path), start=1):
            if isinstance(stored, str):
                yield WrittenRow(name, number, split, {}, problem=("", stored))
            else:
                yield _row(WrittenRow(name, number, split, stored), form)


def _stored_rows(path: Path) -> Iterator[Mapping[str, Json] | str]:
    """The rows of a file, or what is wrong with one."""
    try:
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as table:
                for batch in table.iter_batches(_BATCH_ROWS):
                    yield from batch.to_pylist()
        elif path.suffix == ".json":
            found = json.loads(path.read_bytes())
            yield from map(_object, found if isinstance(found, list) else [found])
        else:
            with path.open("rb") as lines:
                yield from (_line(line) for line in lines if line.strip())
    except (OSError, pa.ArrowException, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None


def _line(line: bytes) -> Mapping[str, Json] | str:
    try:
        return _object(json.loads(line))
    except (ValueError, RecursionError) as error:
        return f"it is no JSON: {error}"


def _object(value: Json) -> Mapping[str, Json] | str:
    return value if isinstance(value, dict) else "it is no JSON object"


def _row(row: WrittenRow, form: ExportFormat) -> WrittenRow:
    name = "messages" if "messages" in row.stored else "conversations"
    stored = row.stored.get(name)
    inline: list[WrittenPicture] = []
    try:
        if not isinstance(stored, list) or not stored:
            raise RowProblem("it has no messages", "messages")
        messages = tuple(
            _message(each, form, f"{name}[{number}]", inline) for number, each in enumerate(stored)
        )
        pictures = tuple(inline) if form is ExportFormat.OPENAI else tuple(_pictures(row.stored))
    except RowProblem as problem:
        return replace(row, problem=(problem.field, str(problem)))
    return replace(row, messages=messages, pictures=pictures)


def _pictures(stored: Mapping[str, Json]) -> Iterator[WrittenPicture]:
    found = stored.get("images")
    if found is None:
        found = []
    if not isinstance(found, list):
        raise RowProblem("it is no list", "images")
    for number, each in enumerate(found):
        name = f"images[{number}]"
        if isinstance(each, str):
            yield WrittenPicture(name, each)
        elif isinstance(each, dict) and isinstance(each.get("bytes"), bytes):
            yield WrittenPicture(name, data=each["bytes"])
        elif isinstance(each, dict) and isinstance(each.get("path"), str):
            yield WrittenPicture(name, each["path"])
        else:
            yield WrittenPicture(name, problem="it holds neither a file nor the name of one")


def _message(stored: Json, form: ExportFormat, name: str, inline: list[WrittenPicture]) -> WrittenMessage:
    if not isinstance(stored, dict):
        raise RowProblem("it is no object", name)
    role = stored.get("role", stored.get("from"))
    if not isinstance(role, str):
        raise RowProblem("it is no text", f"{name}.role")
    role = _ROLES.get(role, role)
    content = stored.get("content", stored.get("value"))
    native = stored.get("tool_calls") or []
    if isinstance(content, list):
        parts = tuple(_parts(content, f"{name}.content", inline))
    elif isinstance(content, str):
        parts = (content,) if form in _TYPED else tuple(_split(content))
    elif content is None and native and form in (ExportFormat.OPENAI, ExportFormat.MS_SWIFT):
        parts = ()
    else:
        raise RowProblem(f"it is {type(content).__name__}, no text and no list of parts", f"{name}.content")
    if not isinstance(native, list):
        raise RowProblem("it is no list", f"{name}.tool_calls")
    text = "".join(part for part in parts if part is not None)
    calls = [_native_call(each, f"{name}.tool_calls[{number}]") for number, each in enumerate(native)]
    calls += _text_calls(role, text, f"{name}.content")
    return WrittenMessage(role, parts, tuple(calls), stored, name)


def _split(content: str) -> Iterator[str | None]:
    for number, text in enumerate(content.split(PLACEHOLDER)):
        if number:
            yield None
        if text:
            yield text


def _parts(content: Sequence[Json], name: str, inline: list[WrittenPicture]) -> Iterator[str | None]:
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            yield part["text"]
        elif kind == "image":
            yield None
        elif kind == "image_url":
            inline.append(_inline(part, f"{name}[{number}]"))
            yield None
        else:
            raise RowProblem("it is neither a text nor a picture", f"{name}[{number}]")


def _inline(part: Mapping[str, Json], name: str) -> WrittenPicture:
    url: Any = part.get("image_url")
    url = url.get("url") if isinstance(url, dict) else url
    if not isinstance(url, str):
        return WrittenPicture(name, problem="it has no URL")
    if not url.startswith("data:"):
        return WrittenPicture(name, url, problem=f"{url[:80]!r} is no data URL")
    try:
        return WrittenPicture(name, data=base64.b64decode(url.partition(",")[2], validate=True))
    except (binascii.Error, ValueError) as error:
        return WrittenPicture(name, problem=f"its data URL cannot be read: {error}")


def _native_call(stored: Json, name: str) -> WrittenCall:
    function = stored.get("function") if isinstance(stored, dict) else None
    if not isinstance(function, dict):
        return WrittenCall(name, "", None, "it has no function")
    return _call(function, name)


def _text_calls(role: str, text: str, name: str) -> list[WrittenCall]:
    """The calls in the text of an assistant."""
    if role not in ASSISTANT_ROLES:
        return []
    bodies = [body for _, _, body in tool_call_bodies(text)]
    if role == "assistant" or bodies:
        return [call for body in bodies for call in _parsed(body, name)]
    return _parsed(text.rpartition("</think>")[2], name)  # `function_call` and `tool_call` are JSON alone


def _parsed(body: str, name: str) -> list[WrittenCall]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        return [WrittenCall(name, "", None, f"a call that is no JSON: {error}")]
    return [_call(each, name) for each in (found if isinstance(found, list) else [found])]


def _call(stored: Json, name: str) -> WrittenCall:
    if not isinstance(stored, dict) or not isinstance(stored.get("name"), str) or not stored["name"]:
        return WrittenCall(name, "", None, "a call without a name")
    arguments = stored.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            return WrittenCall(name, stored["name"], arguments, f"arguments that are no JSON: {error}")
    if not isinstance(arguments, dict):
        return WrittenCall(name, stored["name"], arguments, "a call whose arguments are no object")
    return WrittenCall(name, stored["name"], arguments)


def without_calls(text: str) -> str:
    """A text with a space for each whole call in it: what is left of the tag is a stray one."""
    kept, position = [], 0
    for start, end, _ in tool_call_bodies(text):
        if text[start:end].endswith(f"</{CALL_TAG}>"):
            kept.append(text[position:start])
            position = end
    return " ".join([*kept, text[position:]])


def without_joints(message: WrittenMessage) -> str:
    """The text of a message that holds several results, without what stands between them."""
    return message.text.replace(_JOINT, "\n") if message.role in _RESULT_ROLES else message.text
