"""Paid turns, on disk before their sample's next request leaves, so that no crash makes anyone pay twice.

One journal for all samples, `journal/00001.jsonl` and so on: a line a turn, written and synced in groups (see
`distil.store.groups`). Only replies are stored: tools are pure functions, so a resumed sample runs them again
and comes to the same conversation. A sample's turns count until its trace is on disk; a failed sample keeps
them, and trying it again goes on where it failed.

A file takes a few megabytes of turns, then the next one is begun; it is removed once no unfinished sample has
turns in it. A few that hold an old file back are written anew into the next one. So neither the journal nor
what is remembered of it grows with the number of finished samples.

A line says all that it takes to use it: its sample, which turn, and what that was made with. Of two lines of
one turn the later one counts, and it ends what was said after it; unless it answers the same request, as one
that was written anew does. What a crash tore, or what is no turn, is passed over; a turn whose turns before
are not there is not used.

Earlier versions had a file a sample, `journal/sample_00000.jsonl`: a header, then its turns. They are read.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from distil.records import Json, RawCall, Reply, SampleId, ToolMode
from distil.store.atomic import folder_errors, sync_folder, write_all
from distil.store.groups import Groups
from distil.store.json_lines import line_bytes, parse_line, read_lines

FOLDER = "journal"
_SEGMENT_BYTES = 8 * 2**20
_LOOK_SECONDS = 0.5  # between looks whether somebody has removed the file that is written
_MIN_LIVE_SHARE = 0.25  # of a file's bytes; a file with less is written anew
_SYNCED = getattr(os, "O_DSYNC", 0)  # a write that returns when it is on disk: one call, where there is it

Ask = Callable[[Sequence[bytes], int], Reply]  # encoded messages and a seed to a reply


_MadeWith = tuple[str, str]  # the hashes of settings and picture file, which must be the same to use a turn


class _Turn(NamedTuple):
    """A turn of a sample, its line and where that stands; turns count from 1."""

    sample_id: SampleId
    settings_sha256: str
    file_sha256: str
    number: int
    request_sha256: str
    line: bytes = b""  # where it has to be written
    path: Path = Path()
    start: int = 0
    num_bytes: int = 0

    @property
    def made_with(self) -> _MadeWith:
        return self.settings_sha256, self.file_sha256


@dataclass(slots=True)
class _Index:
    """Where the turns of unfinished samples are, and how many bytes of each file they take."""

    samples: dict[SampleId, list[_Turn]] = field(default_factory=dict)  # none is empty
    live_bytes: Counter[Path] = field(default_factory=Counter)
    num_bad_lines: int = 0

    @classmethod
    def read(cls, folder: Path) -> _Index:
        """What a journal's files hold, in the order in which they were written."""
        index = cls()
        for path in sorted(folder.glob("sample_*.jsonl")):
            index.live_bytes[path] = 0
            index._take_all(_turns_of_one(path))
        for path in _segments(folder):
            index.live_bytes[path] = 0
            index._take_all(_turns_of_many(path))
        return index

    def _take_all(self, turns: Iterable[_Turn | None]) -> None:
        for turn in turns:
            self.num_bad_lines += turn is None or not self.take(turn)

    def take(self, turn: _Turn) -> bool:
        """Take in a turn that follows those that are there or takes a place among them; False for others."""
        turns = self.samples.get(turn.sample_id, [])
        is_other = bool(turns) and turns[0].made_with != turn.made_with
        place = turn.number - 1
        if not 0 <= place <= (0 if is_other else len(turns)):
            return False
        if not is_other and turns[place:] and turns[place].request_sha256 == turn.request_sha256:
            self._forget(turns[place : place + 1])
            turns[place] = turn
        else:
            self._forget(turns[place:])
            self.samples[turn.sample_id] = [*turns[:place], turn]
        self.live_bytes[turn.path] += turn.num_bytes
        return True

    def move(self, turn: _Turn) -> None:
        """Take in where a turn was written anew, if it still counts."""
        now = self.samples.get(turn.sample_id, [])[turn.number - 1 : turn.number]
        if [(each.made_with, each.request_sha256) for each in now] == [(turn.made_with, turn.request_sha256)]:
            self.take(turn)

    def drop(self, sample_id: SampleId) -> None:
        """Forget a sample."""
        self._forget(self.samples.pop(sample_id, []))

    def pop_dead(self, but: Path | None = None) -> list[Path]:
        """The files that hold nothing any more, no longer listed."""
        dead = [path for path, num_bytes in self.live_bytes.items() if not num_bytes and path != but]
        for path in dead:
            del self.live_bytes[path]
        return dead

    def _forget(self, turns: Iterable[_Turn]) -> None:
        for turn in turns:
            self.live_bytes[turn.path] -= turn.num_bytes


class Journal:
    """The journal of a run's folder, safe from many threads; raises FolderError where there can be none.

    `tell` gets a line when paid turns are not used for the first time, since their request is another now.
    """

    def __init__(
        self,
        run_folder: Path,
        settings_sha256: str,
        before_group: Callable[[], None] = lambda: None,
        segment_bytes: int = _SEGMENT_BYTES,
    ) -> None:
        """`before_group` is called before some turns are written, to write what belongs to them."""
        self.tell: Callable[[str], None] = lambda _: None
        self._before_group = before_group
        self._num_forgotten = 0
        self._folder = run_folder / FOLDER
        self._settings_sha256 = settings_sha256
        self._segment_bytes = segment_bytes
        with folder_errors(self._folder):
            self._folder.mkdir(exist_ok=True)
        self._index = _Index.read(self._folder)
        self._lock = threading.Lock()  # of index and count; never held while a turn is written
        self._groups: Groups[_Turn] = Groups(self._write_group)
        # Those of the file that is being written, used by the thread that writes.
        self._descriptor: int | None = None
        self._path: Path | None = None
        self._end = 0
        self._looked = 0.0

    @property
    def num_bad_lines(self) -> int:
        """The lines that a crash tore, or that are no turn, or none that follows one."""
        return self._index.num_bad_lines

    def unfinished(self) -> dict[SampleId, str]:
        """The samples that have turns, with the hash of the settings that made them."""
        with self._lock:
            return {each: turns[0].settings_sha256 for each, turns in self._index.samples.items()}

    def num_turns(self, sample_id: SampleId) -> int:
        """How many turns this run's settings made of a sample."""
        return sum(each.settings_sha256 == self._settings_sha256 for each in self._turns(sample_id))

    def num_other_turns(self, sample_id: SampleId) -> int:
        """How many turns other settings made of it."""
        return len(self._turns(sample_id)) - self.num_turns(sample_id)

    def of(self, sample_id: SampleId, file_sha256: str) -> SampleJournal:
        """A sample's turns; those that were made with other settings or another picture are not used."""
        return SampleJournal(self, sample_id, (self._settings_sha256, file_sha256))

    def drop(self, sample_ids: Collection[SampleId]) -> None:
        """Forget the turns of samples whose traces are on disk for good."""
        with self._lock:
            for sample_id in sample_ids:
                self._index.drop(sample_id)
            dead = self._index.pop_dead(but=self._path)
        _remove(dead)

    def warning(self) -> str | None:
        """The warning to end a run with, None where every paid turn was used."""
        with self._lock:
            number = self._num_forgotten
        if not number:
            return None
        turns = "paid turn" if number == 1 else "paid turns"
        return (
            f"{number} {turns} fitted the request no more (another version of distil or Pillow) "
            "and had to be asked again"
        )

    def close(self) -> None:
        """Keep the turns of unfinished samples and nothing else: no file where there are none.

        No other thread may use it any more.
        """
        self._close_file()
        with folder_errors(self._folder):
            waste = sum(path.stat().st_size for path in self._index.live_bytes if path.exists())
            waste -= self._index.live_bytes.total()
            if waste and self._index.samples:
                self._start_file()
                self._carry([turn for turns in self._index.samples.values() for turn in turns])
                self._close_file()
        _remove(self._index.pop_dead())
        with contextlib.suppress(OSError):  # not empty: failed samples keep theirs
            self._folder.rmdir()

    def note_forgotten(self, num_turns: int) -> None:
        """Count turns that are not used since their request is another now."""
        with self._lock:
            is_first = self._num_forgotten == 0
            self._num_forgotten += num_turns
        if is_first:
            self.tell(
                "Warning: paid turns fit the request no more (another version of distil or Pillow): "
                "they are asked again"
            )

    def add(self, turn: _Turn) -> None:
        """Return when the turn is on disk; raises FolderError."""
        self._groups.add(turn)

    def replies(self, sample_id: SampleId, made_with: _MadeWith) -> list[tuple[str, Reply]]:
        """What was stored of a sample: hashes of requests, and replies."""
        if sample_id not in self._index.samples:
            return []
        with self._lock, folder_errors(self._folder):  # a file may be removed when its turns are elsewhere
            turns = [turn for turn in self._turns(sample_id) if turn.made_with == made_with]
            replies = [_reply(_stored_line(turn)) for turn in turns]
        return [(turn.request_sha256, reply) for turn, reply in zip(turns, replies, strict=True) if reply]

    def _turns(self, sample_id: SampleId) -> Sequence[_Turn]:
        return self._index.samples.get(sample_id, ())

    # --- what follows is done by one thread at a time: the one that writes the group

    def _write_group(self, turns: Sequence[_Turn]) -> None:
        """Write turns, sync them, and remember where they are."""
        self._before_group()
        with folder_errors(self._path or self._folder):
            if self._descriptor is None or self._end >= self._segment_bytes:
                self._close_file()
                self._start_file()
                self._carry(self._turns_of_worn_files())
            written = self._write(turns)
        with self._lock:
            for turn in written:
                self._index.take(turn)

    def _start_file(self) -> None:
        numbers = [int(path.stem) for path in _segments(self._folder)]
        path = self._folder / f"{max(numbers, default=0) + 1:05d}.jsonl"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | _SYNCED | getattr(os, "O_BINARY", 0)
        self._descriptor = os.open(path, flags, 0o666)
        self._path, self._end = path, 0
        with self._lock:
            self._index.live_bytes[path] = 0
        sync_folder(self._folder)
        sync_folder(self._folder.parent)

    def _close_file(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = self._path = None

    def _turns_of_worn_files(self) -> list[_Turn]:
        """All turns of the samples that hold back files in which little else is still of use."""
        with self._lock:
            worn = {
                path
                for path, num_bytes in self._index.live_bytes.items()
                if path != self._path and num_bytes < _MIN_LIVE_SHARE * path.stat().st_size
            }
            samples = self._index.samples.values() if worn else ()
            return [turn for turns in samples if any(each.path in worn for each in turns) for turn in turns]

    def _carry(self, turns: Sequence[_Turn]) -> None:
        """Write turns anew, and remove the files that hold nothing any more."""
        for piece in _pieces(turns):
            replies = map(self._reply_of, piece)
            anew = [_with_line(turn, reply) for turn, reply in zip(piece, replies, strict=True) if reply]
            moved = self._write(anew) if anew else []
            with self._lock:
                for turn in moved:
                    self._index.move(turn)
        with self._lock:
            dead = self._index.pop_dead(but=self._path)
            _remove(dead)  # while nobody reads what he has just looked up

    def _reply_of(self, turn: _Turn) -> Json:
        """The reply of a turn as it is stored; None where it is not needed any more."""
        with self._lock:  # its sample may end at any time, and the file go with the last of them
            return _stored_line(turn).get("reply") if turn in self._turns(turn.sample_id) else None

    def _write(self, turns: Sequence[_Turn]) -> list[_Turn]:
        """Add lines to the file in one write that is on disk at the end; returns where they are."""
        descriptor, path = self._descriptor, self._path
        assert descriptor is not None and path is not None
        data = b"".join([turn.line for turn in turns])
        try:
            write_all(descriptor, data)
            if not _SYNCED:
                os.fsync(descriptor)
            if time.monotonic() - self._looked > _LOOK_SECONDS:
                self._looked = time.monotonic()
                if not os.fstat(descriptor).st_nlink:
                    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        except OSError:
            self._close_file()  # what follows goes into another: here it may stand behind half a line
            raise
        lengths = [len(turn.line) for turn in turns]
        *starts, self._end = accumulate(lengths, initial=self._end)
        return [
            turn._replace(line=b"", path=path, start=start, num_bytes=length)
            for turn, start, length in zip(turns, starts, lengths, strict=True)
        ]


class SampleJournal:
    """One sample's turns; used by one thread at a time."""

    def __init__(self, journal: Journal, sample_id: SampleId, made_with: _MadeWith) -> None:
        self._journal, self._sample_id, self._made_with = journal, sample_id, made_with
        self._stored = journal.replies(sample_id, made_with)[::-1]
        self._num_turns = 0  # given or stored
        self._hash = hashlib.sha256()
        self._hashed: list[bytes] = []

    @property
    def is_resumed(self) -> bool:
        """Whether there are turns of an earlier run that have not been given yet."""
        return bool(self._stored)

    def journaled(self, ask: Ask) -> Ask:
        """`ask` with the stored replies given first, and every further one stored before it is returned.

        Raises FolderError where a reply cannot be stored.
        """

        def ask_or_recall(messages: Sequence[bytes], seed: int) -> Reply:
            request_sha256 = self._sha256(messages)
            self._num_turns += 1
            if self._stored and self._stored[-1][0] == request_sha256:
                return self._stored.pop()[1]
            if self._stored:  # another Pillow encodes pictures otherwise: those replies fit no more
                self._journal.note_forgotten(len(self._stored))
                self._stored = []
            reply = ask(messages, seed)
            turn = _Turn(self._sample_id, *self._made_with, self._num_turns, request_sha256)
            self._journal.add(_with_line(turn, _reply_json(reply)))
            return reply

        return ask_or_recall

    def _sha256(self, messages: Sequence[bytes]) -> str:
        """The hash of a request's messages; of a conversation that has grown only what was added is read."""
        num_known = len(self._hashed)
        if any(known is not now for known, now in zip(self._hashed, messages, strict=False)) or (
            num_known > len(messages)
        ):
            self._hash, num_known = hashlib.sha256(), 0
        for message in messages[num_known:]:
            self._hash.update(message)
            self._hash.update(b"\n")
        self._hashed = list(messages)
        return self._hash.hexdigest()


def unfinished_samples(run_folder: Path) -> dict[SampleId, str]:
    """The samples of a run's folder that have turns in its journal, with the hash of their settings."""
    turns = _Index.read(run_folder / FOLDER).samples
    return {sample_id: turns[sample_id][0].settings_sha256 for sample_id in sorted(turns)}


def _segments(folder: Path) -> list[Path]:
    """A journal's files in the order in which they were written."""
    paths = [path for path in folder.glob("*.jsonl") if re.fullmatch("[0-9]+", path.stem)]
    return sorted(paths, key=lambda path: int(path.stem))


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with folder_errors(path):
            path.unlink(missing_ok=True)


def _pieces(turns: Iterable[_Turn]) -> Iterator[list[_Turn]]:
    """The turns by a few megabytes: all of many failed samples may be more than memory or a write takes."""
    piece: list[_Turn] = []
    num_bytes = 0
    for turn in turns:
        piece.append(turn)
        num_bytes += turn.num_bytes
        if num_bytes >= _SEGMENT_BYTES:
            yield piece
            piece, num_bytes = [], 0
    if piece:
        yield piece


def _stored_line(turn: _Turn) -> Mapping[str, Json]:
    """The line of a turn as it stands in its file; raises OSError."""
    with turn.path.open("rb") as file:
        file.seek(turn.start)
        return parse_line(file.read(turn.num_bytes)) or {}


def _with_line(turn: _Turn, reply: Json) -> _Turn:
    """The turn with the line that it is to be written as."""
    line = {
        **turn.sample_id.as_json(),
        "settings_sha256": turn.settings_sha256,
        "file_sha256": turn.file_sha256,
        "turn": turn.number,
        "request_sha256": turn.request_sha256,
        "reply": reply,
    }
    return turn._replace(line=line_bytes(line))


def _turns_of_many(path: Path) -> Iterator[_Turn | None]:
    """The turns of a file, None for a line that is none."""
    start = 0
    for line, end in read_lines(path):
        yield _turn_of(line, path, start, end)
        start = end


def _turns_of_one(path: Path) -> Iterator[_Turn | None]:
    """The turns of an earlier version's file of one sample, None for the first bad line, which ends them."""
    header: Mapping[str, Json] = {}
    start = 0
    for number, (line, end) in enumerate(read_lines(path)):
        if line is None:
            yield None
            return
        if number == 0:
            header = line
        else:
            yield _turn_of({**header, **line, "turn": number}, path, start, end)
        start = end


def _turn_of(line: Mapping[str, Json] | None, path: Path, start: int, end: int) -> _Turn | None:
    """The turn of a line, None where it is none."""
    try:
        if line is None or _reply(line) is None:
            return None
        sample_id = SampleId.from_json(line)
        made_with = str(line["settings_sha256"]), str(line["file_sha256"])
        number, sha256 = int(line["turn"]), str(line["request_sha256"])
    except (KeyError, TypeError, ValueError):
        return None
    return _Turn(sample_id, *made_with, number, sha256, path=path, start=start, num_bytes=end - start)


_REPLY_FIELDS = tuple(item.name for item in fields(Reply))
_CALL_FIELDS = tuple(item.name for item in fields(RawCall))


def _reply_json(reply: Reply) -> dict[str, Json]:
    """A reply as JSON, without the deep copies of `asdict`."""
    value = {name: getattr(reply, name) for name in _REPLY_FIELDS}
    value["calls"] = [{name: getattr(call, name) for name in _CALL_FIELDS} for call in reply.calls]
    return value


def _reply(line: Mapping[str, Json] | None) -> Reply | None:
    """The reply of a line, None where it has none."""
    try:
        value = dict((line or {})["reply"])
        calls = tuple(RawCall(**call) for call in value["calls"])
        return replace(Reply(**value), calls=calls, call_form=ToolMode(value["call_form"]))
    except (KeyError, TypeError, ValueError):
        return None
