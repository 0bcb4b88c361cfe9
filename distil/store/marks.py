"""`marks.jsonl` of a run's folder: what a person decided about its samples, kept or dropped, and notes.

A line holds what was changed at one time, and of two lines about one field the later one counts. Lines are
only ever added, each by one write: several processes that mark at once lose nothing.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType

from distil.errors import UsageError
from distil.records import Json, SampleId
from distil.store.atomic import folder_errors, write_all
from distil.store.json_lines import line_bytes, read_lines

MARKS = "marks.jsonl"
KEEP, DROP = "keep", "drop"
MAX_NOTE_CHARS = 10_000
# No link is followed: a folder that somebody else made could have any file of this user's written to.
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
UNCHANGED = ...  # of a field that a line says nothing about


@dataclass(frozen=True, slots=True)
class Mark:
    """What was decided about a sample: `mark` is "keep", "drop" or None, `note` a text or None."""

    mark: str | None = None
    note: str | None = None

    def changed_by(self, line: Mapping[str, Json]) -> Mark:
        """This after a line of the file; what the line does not say, or says in another form, stays."""
        mark, note = line.get("mark", self.mark), line.get("note", self.note)
        return Mark(
            mark if mark in (KEEP, DROP, None) else self.mark,
            note if isinstance(note, str | None) else self.note,
        )


def read_marks(folder: Path) -> dict[SampleId, Mark]:
    """The samples of a run's folder that have a mark or a note; lines that cannot be read are passed over."""
    marks: dict[SampleId, Mark] = {}
    for line, _ in read_lines(folder / MARKS):
        sample_id = marked_sample(line)
        if line is not None and sample_id is not None:
            marks[sample_id] = marks.get(sample_id, Mark()).changed_by(line)
    return {sample_id: mark for sample_id, mark in marks.items() if mark != Mark()}


def marked_sample(line: Mapping[str, Json] | None) -> SampleId | None:
    """The sample that a line is about, None where it does not say."""
    try:
        return None if line is None else SampleId.from_json(line)
    except (KeyError, TypeError):
        return None


def append_mark(
    folder: Path,
    sample_id: SampleId,
    mark: str | EllipsisType | None = UNCHANGED,
    note: str | EllipsisType | None = UNCHANGED,
) -> None:
    """Change a sample's mark, its note or both; None takes one away.

    Raises UsageError for a mark that there is not and for a note that is too long, FolderError where the file
    cannot be written.
    """
    if mark not in (KEEP, DROP, None, UNCHANGED):
        raise UsageError(f"a mark is {KEEP!r}, {DROP!r} or null, not {mark!r}")
    if isinstance(note, str) and len(note) > MAX_NOTE_CHARS:
        raise UsageError(f"a note has at most {MAX_NOTE_CHARS:,} characters, this one {len(note):,}")
    changed = {name: value for name, value in (("mark", mark), ("note", note)) if value is not UNCHANGED}
    if changed:
        at = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        _append(folder / MARKS, line_bytes({**sample_id.as_json(), **changed, "at": at}))


def _append(path: Path, line: bytes) -> None:
    """Add a line by one write; after half a line that a crash left, on a line of its own."""
    with folder_errors(path):
        descriptor = os.open(path, _FLAGS, 0o666)
        try:
            size = os.lseek(descriptor, 0, os.SEEK_END)
            if size:
                os.lseek(descriptor, size - 1, os.SEEK_SET)
                # Half a line of another process that writes just now is whole before ours comes: then ours
                # follows an empty line, which does not count.
                line = line if os.read(descriptor, 1) == b"\n" else b"\n" + line
            write_all(descriptor, line)
        finally:
            os.close(descriptor)
