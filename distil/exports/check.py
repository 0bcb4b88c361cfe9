"""What a trainer's loader would find wrong with an export, found before: row by row, in flat memory."""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import get_args

from PIL import Image

from distil.commands.flags import CheckFlags
from distil.errors import UsageError, error_text
from distil.exports.export import FORMAT, MANIFEST
from distil.exports.files import PICTURES, file_sha256
from distil.exports.pictures import MAX_STUDENT_RATIO
from distil.exports.row_checks import ROW_CHECKS, Problem, Subject, leaks_of, truths_of
from distil.exports.tokens import TOKENS_A_MESSAGE, picture_tokens, text_tokens
from distil.exports.written import WrittenPicture, WrittenRow, find_row_files, read_rows
from distil.records import ExportFormat, FailedCalls, Frame, Json, Size, Student

KEPT_FINDINGS = 1000  # of a kind; more are only counted
_STATED: Mapping[str, tuple[str, ...]] = {  # by an export of itself, with what each may be
    "format": tuple(ExportFormat),
    "coordinates": (Frame.REL1000, Frame.PIXEL),
    "errors": get_args(FailedCalls),
    "student": get_args(Student),
}
_KEPT_SIZES = 4096  # of pictures: split rows have the same ones


@dataclass(frozen=True, slots=True)
class ExportFinding:
    """One thing that is wrong: where, what, and of which kind (a key of `REMEDIES`)."""

    kind: str
    file: str
    row: int | None  # from 1; None for a whole file
    field: str
    message: str

    def as_json(self) -> dict[str, Json]:
        """As the document has it."""
        return {**asdict(self), "remedy": REMEDIES[self.kind]}


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


@dataclass
class Findings:
    """What was found so far."""

    counts: Counter[str] = field(default_factory=Counter)
    kept: list[ExportFinding] = field(default_factory=list)
    num_rows: Counter[str] = field(default_factory=Counter)  # by split
    num_pictures: int = 0
    longest: int = 0  # tokens
    num_truths: int = 0  # rows whose truth was looked for

    def add(self, finding: ExportFinding) -> None:
        """Count a finding, and keep it unless there are many of its kind."""
        self.counts[finding.kind] += 1
        if self.counts[finding.kind] <= KEPT_FINDINGS:
            self.kept.append(finding)


def check_export(
    asked: CheckFlags,
    count_tokens: Callable[[str], int] = text_tokens,
    look: Callable[[WrittenRow], None] = lambda _: None,
) -> tuple[Subject, Findings]:
    """Check an export, or a file of rows; `look` gets each row as it is read.

    Raises UsageError where there is nothing to check, or where it does not say what it is.
    """
    folder, files = find_row_files(asked.path)
    manifest = _manifest(asked.path)
    stated = manifest.get("options", {}).get("format")
    if asked.format is None and stated is None:
        raise UsageError(f"{asked.path} has no {MANIFEST} that says who reads it: name the --format")
    subject = Subject(asked, folder, files, asked.format or ExportFormat(stated), manifest)
    findings = Findings()
    for finding in _changed_files(subject):
        findings.add(finding)
    decoded: _Decoded = {}
    with closing(_table_of_rows()) as table:
        for written in read_rows(folder, files, subject.format):
            look(written)
            findings.num_rows[written.split] += 1
            pictures = [_looked_at(picture, subject, decoded) for picture in written.pictures]
            row = replace(written, pictures=tuple(pictures))
            for kind, problem in _row_problems(row, subject, findings, count_tokens, table):
                findings.add(ExportFinding(kind, row.file, row.number, *problem))
    return subject, findings


def _manifest(path: Path) -> Mapping[str, Json]:
    folder = path if path.is_dir() else path.parent
    try:
        found = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        return {}
    options, listed = found.get("options"), found.get("files")
    if not isinstance(options, dict) or not isinstance(listed, dict):
        raise UsageError(f"{folder / MANIFEST} lacks the options or the files of an export")
    if path.is_file() and path.name not in listed:
        return {}
    for name, values in _STATED.items():
        if name in options and options[name] not in values:
            raise UsageError(
                f"{folder / MANIFEST}: options.{name} is {options[name]!r}, none of {', '.join(values)}"
            )
    return found


def _changed_files(subject: Subject) -> Iterator[ExportFinding]:
    stated: Mapping[str, str] = subject.manifest.get("files", {})
    for name, sha256 in stated.items():
        path = subject.folder / name
        if not path.is_file():
            yield ExportFinding("changed_file", name, None, "", "it is in the export's list and not there")
        elif file_sha256(path) != sha256:
            yield ExportFinding("changed_file", name, None, "", "its content is not what was exported")
    for path in subject.files if stated else ():
        name = str(path.relative_to(subject.folder))
        if name not in stated:
            yield ExportFinding("changed_file", name, None, "", "it is not in the export's list")


def _row_problems(
    row: WrittenRow,
    subject: Subject,
    findings: Findings,
    count_tokens: Callable[[str], int],
    table: sqlite3.Connection,
) -> Iterator[tuple[str, Problem]]:
    """What is wrong with a row, each with its kind; what is counted goes into the findings."""
    if row.problem is not None:
        yield "unreadable_row", row.problem
        return
    findings.num_pictures += len(row.pictures)
    for picture in row.pictures:
        if picture.problem is not None:
            yield "picture_file", (picture.at, picture.problem)
    for kind, check in ROW_CHECKS:
        for problem in check(row, subject):
            yield kind, problem
    length = _length(row, subject, count_tokens)
    findings.longest = max(findings.longest, length)
    if subject.max_length is not None and length > subject.max_length:
        yield "length", ("messages", f"about {length:,} tokens, and {subject.max_length:,} are set")
    truths = truths_of(row, subject)
    findings.num_truths += bool(truths)
    for problem in leaks_of(row, truths):
        yield "leak", problem
    yield from _repeats(row, table)


def _length(row: WrittenRow, subject: Subject, count_tokens: Callable[[str], int]) -> int:
    """The tokens of a row."""
    texts = [part for message in row.messages for part in message.parts if part is not None]
    texts += [
        f"{call.name}{json.dumps(call.arguments, ensure_ascii=False)}"
        for message in row.messages
        for call in message.calls
        if "tool_calls" in call.at
    ]
    if row.stored.get("tools"):
        texts.append(json.dumps(row.stored["tools"], ensure_ascii=False, default=str))
    pictures = sum(picture_tokens(each.size, subject.form) for each in row.pictures if each.size is not None)
    return sum(map(count_tokens, texts)) + pictures + TOKENS_A_MESSAGE * len(row.messages)


# --- pictures

_Decoded = dict[
    str, tuple[Size | None, str | None]
]  # by the hash of a file its size, and what is wrong with it


def _looked_at(picture: WrittenPicture, subject: Subject, decoded: _Decoded) -> WrittenPicture:
    """A picture with its size, its hash, and what is wrong with it."""
    picture = replace(picture, sha256=picture.name)  # of what cannot be read
    if picture.problem is not None:
        return picture
    if subject.format is ExportFormat.MS_SWIFT and picture.data is None and not picture.name.startswith("/"):
        reason = f"{picture.name!r} is looked for in the folder that the trainer runs in"
        return replace(picture, problem=reason)
    try:
        data = picture.read(subject.folder)
    except OSError as error:
        return replace(picture, problem=f"{picture.name!r} cannot be read: {error.strerror}")
    digest = hashlib.sha256(data).hexdigest()
    if digest not in decoded:
        if len(decoded) == _KEPT_SIZES:
            del decoded[next(iter(decoded))]
        decoded[digest] = _decoded(data)
    size, problem = decoded[digest]
    is_named_by_content = bool(subject.manifest) and Path(picture.name).parent.name == PICTURES
    if problem is None and is_named_by_content and Path(picture.name).stem != digest:
        problem = f"{picture.name!r} has another content than its name says"
    if problem is None and size is not None and max(size) >= MAX_STUDENT_RATIO * min(size):
        problem = f"{size[0]}×{size[1]} pixels: processors refuse sides of {MAX_STUDENT_RATIO}:1 and more"
    return replace(picture, size=size, sha256=digest, problem=problem)


def _decoded(data: bytes) -> tuple[Size | None, str | None]:
    try:
        with Image.open(io.BytesIO(data)) as image:
            size = image.size
            image.draft("RGB", (1, 1))  # a JPEG is read whole, but not made in full size
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return None, f"it is no picture that can be read: {error_text(error).partition(' <_io')[0]}"
    return size, None


# --- the same again


def _table_of_rows() -> sqlite3.Connection:
    """The hashes of all rows so far, on disk."""
    table = sqlite3.connect("", isolation_level=None)  # a file that nobody else sees, removed
    table.execute("PRAGMA journal_mode = OFF")
    table.execute("CREATE TABLE conversations (digest BLOB PRIMARY KEY, place TEXT) WITHOUT ROWID")
    table.execute(
        "CREATE TABLE photos (digest BLOB, split TEXT, place TEXT, PRIMARY KEY (digest, split)) WITHOUT ROWID"
    )
    table.execute("BEGIN")
    return table


def _repeats(row: WrittenRow, table: sqlite3.Connection) -> Iterator[tuple[str, Problem]]:
    """What of a row was there before."""
    place = f"{row.file}, row {row.number}"
    pictures = [picture.sha256 for picture in row.pictures]
    said = json.dumps([row.stored.get("messages"), pictures], sort_keys=True, default=str)
    digest = hashlib.sha256(said.encode("utf-8", "surrogatepass")).digest()
    before = table.execute("SELECT place FROM conversations WHERE digest = ?", (digest,)).fetchone()
    if before is None:
        table.execute("INSERT INTO conversations VALUES (?, ?)", (digest, place))
    else:
        yield "duplicate", ("messages", f"the same conversation as {before[0]}")
    if not pictures:
        return
    photo = (pictures[0].encode(), row.split)
    other = table.execute(
        "SELECT place FROM photos WHERE digest = ? AND split != ? LIMIT 1", photo
    ).fetchone()
    table.execute("INSERT OR IGNORE INTO photos VALUES (?, ?, ?)", (*photo, place))
    if other is not None:
        yield "shared_photo", (row.pictures[0].at, f"the same photo as {other[0]}")
