"""A sample's paid turns, on disk before its next request leaves, so that no crash makes anyone pay twice.

One small file a sample in flight, `journal/sample_00000.jsonl`: a header line, then a line a turn. Only
replies are stored: tools are pure functions, so a resumed sample runs them again and comes to the same
conversation. When the sample's trace is written its journal is removed; a failed sample keeps its journal,
and trying it again goes on where it failed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from distil.records import Json, RawCall, Reply, SampleId, ToolMode
from distil.store.atomic import folder_errors, sync_folder
from distil.store.json_lines import add_lines, open_to_add, read_lines

FOLDER = "journal"

Ask = Callable[[Sequence[bytes], int], Reply]  # encoded messages and a seed to a reply


@dataclass(frozen=True, slots=True)
class StoredTurn:
    """A reply that was paid for, and the hash of the messages it answered."""

    request_sha256: str
    reply: Reply


class SampleJournal:
    """One sample's journal; used by one thread at a time."""

    def __init__(
        self, path: Path, header: Mapping[str, Json], note_forgotten: Callable[[int], None] = lambda _: None
    ) -> None:
        """`header` is what the stored turns must have been made with to be used again.

        `note_forgotten` gets the number of turns that are dropped since their request is another now.
        """
        self._path = path
        self._note_forgotten = note_forgotten
        self._header = dict(header)
        stored, self._ends = _read(path, self._header)
        self._stored = list(reversed(stored))

    @property
    def num_turns(self) -> int:
        """The turns that are stored."""
        return max(0, len(self._ends) - 1)

    def journaled(self, ask: Ask) -> Ask:
        """`ask` with the stored replies given first, and every further one stored before it is returned.

        Raises FolderError where a reply cannot be stored.
        """

        def ask_or_recall(messages: Sequence[bytes], seed: int) -> Reply:
            request_sha256 = _sha256(messages)
            if self._stored and self._stored[-1].request_sha256 == request_sha256:
                return self._stored.pop().reply
            if self._stored:  # another Pillow encodes pictures otherwise: those replies fit no more
                self._forget_rest()
            reply = ask(messages, seed)
            self._append(StoredTurn(request_sha256, reply))
            return reply

        return ask_or_recall

    def remove(self) -> None:
        """Remove the journal: the sample's trace is on disk."""
        with folder_errors(self._path):
            self._path.unlink(missing_ok=True)

    def _forget_rest(self) -> None:
        del self._ends[-len(self._stored) :]
        self._note_forgotten(len(self._stored))
        self._stored = []

    def _append(self, turn: StoredTurn) -> None:
        line = {"request_sha256": turn.request_sha256, "reply": asdict(turn.reply)}
        is_new = not self._ends
        with folder_errors(self._path):
            good_bytes = 0 if is_new else self._ends[-1]
            with open_to_add(self._path, good_bytes) as file:
                ends = add_lines(file, *([self._header] if is_new else []), line)
                os.fsync(file.fileno())
            if is_new:
                sync_folder(self._path.parent)
        self._ends += ends


@dataclass(frozen=True, slots=True)
class JournalState:
    """A journal's whole turns, whether this run's settings made them, and whether it has a bad end."""

    num_turns: int
    is_ours: bool
    is_torn: bool


class Journals:
    """The journals of a run's folder, safe from many threads; raises FolderError where there can be none.

    `tell` gets a line when paid turns are not used for the first time, since their request is another now.
    """

    def __init__(self, run_folder: Path, settings_sha256: str) -> None:
        self.tell: Callable[[str], None] = lambda _: None
        self._num_forgotten = 0
        self._lock = threading.Lock()
        self._folder = run_folder / FOLDER
        self._settings_sha256 = settings_sha256
        with folder_errors(self._folder):
            self._folder.mkdir(exist_ok=True)

    def of(self, sample_id: SampleId, file_sha256: str) -> SampleJournal:
        """A sample's journal; turns that were made with other settings or another picture are not used."""
        header = {
            **sample_id.as_json(),
            "settings_sha256": self._settings_sha256,
            "file_sha256": file_sha256,
        }
        return SampleJournal(self._path(sample_id), header, self._note_forgotten)

    def state(self, sample_id: SampleId) -> JournalState | None:
        """What a sample's journal holds, None where there is none; what follows a bad line is not counted."""
        path = self._path(sample_id)
        if not path.exists():
            return None
        header = _header(path)
        turns, ends = _read(path, header)
        is_ours = header.get("settings_sha256") == self._settings_sha256
        return JournalState(len(turns), is_ours, (ends[-1] if ends else 0) < path.stat().st_size)

    def remove(self, sample_id: SampleId) -> None:
        """Remove the journal of a sample that has its trace."""
        self._path(sample_id).unlink(missing_ok=True)

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

    def _note_forgotten(self, num_turns: int) -> None:
        with self._lock:
            is_first = self._num_forgotten == 0
            self._num_forgotten += num_turns
        if is_first:
            self.tell(
                "Warning: paid turns fit the request no more (another version of distil or Pillow): "
                "they are asked again"
            )

    def close(self) -> None:
        """Remove the folder if every sample is finished."""
        with contextlib.suppress(OSError):  # not empty: failed samples keep theirs
            self._folder.rmdir()

    def _path(self, sample_id: SampleId) -> Path:
        return self._folder / f"sample_{sample_id.file_part}.jsonl"


def unfinished_samples(run_folder: Path) -> list[SampleId]:
    """The samples of a run's folder that have a journal."""
    names = (path.stem.removeprefix("sample_") for path in (run_folder / FOLDER).glob("sample_*.jsonl"))
    return sorted(sample_id for name in names if (sample_id := SampleId.from_file_part(name)) is not None)


def settings_of_unfinished(run_folder: Path) -> set[Json]:
    """The hashes of the settings that a run folder's journals were made with."""
    paths = (run_folder / FOLDER).glob("sample_*.jsonl")
    headers = [_header(path) for path in paths]
    return {str(header.get("settings_sha256")) for header in headers if header}


def _header(path: Path) -> Mapping[str, Json]:
    """A journal's first line, empty where it has none."""
    first, _ = next(read_lines(path), (None, 0))
    return first or {}


def _read(path: Path, header: Mapping[str, Json]) -> tuple[list[StoredTurn], list[int]]:
    """The turns of a journal up to the first bad line, and where its header and each of them end."""
    turns: list[StoredTurn] = []
    ends: list[int] = []
    for line, end in read_lines(path):
        if ends:
            turn = _stored_turn(line)
            if turn is None:
                break
            turns.append(turn)
        elif not line or line != header:
            break
        ends.append(end)
    return turns, ends


def _stored_turn(value: Json) -> StoredTurn | None:
    try:
        fields = dict(value["reply"])
        fields["calls"] = tuple(RawCall(**call) for call in fields["calls"])
        fields["call_form"] = ToolMode(fields["call_form"])
        return StoredTurn(value["request_sha256"], Reply(**fields))
    except (KeyError, TypeError, ValueError):
        return None


def _sha256(messages: Sequence[bytes]) -> str:
    digest = hashlib.sha256()
    for message in messages:
        digest.update(message)
        digest.update(b"\n")
    return digest.hexdigest()
