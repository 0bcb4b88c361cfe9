"""A run's folder: trace files, run record, failed samples, timings, the journal of unfinished samples."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

from distil.errors import TraceError, UsageError
from distil.records import Failure, FailureKind, Json, OnChange, Rollout, SampleId
from distil.store.atomic import folder_errors, replace_file, sync_files, write_bytes, write_json
from distil.store.claim import RUN_RECORD, lock_folder, read_runs, remove_leftovers
from distil.store.journal import Journal, unfinished_samples
from distil.store.json_lines import LineFile, line_bytes, read_lines
from distil.store.spending import SpendingFile
from distil.store.trace_file import RunFacts, load_json, readable_bytes, trace_json, trace_name
from distil.store.trace_settings import TraceSettings, short_json

FAILED_SAMPLES = "failed_samples.jsonl"
TIMINGS = "timings.jsonl"
WITHOUT_TOOLS = "without_tools"  # a folder in the run's: its rows asked once more, without tools
_TRACE_FILES = "trace_*.json"
_TRACES_A_SYNC = 32  # one sync of the folder for all of them


def find_trace_files(folder: Path) -> list[Path]:
    """The trace files of a folder in the order of their samples; those with other names come last."""

    def place_of(path: Path) -> tuple[bool, SampleId | None, int, str]:
        sample_id = _sample_of(path)
        return sample_id is None, sample_id, len(path.name), path.name

    return sorted(folder.glob(_TRACE_FILES), key=place_of)


def _sample_of(path: Path) -> SampleId | None:
    """The sample that a trace's name is of."""
    return SampleId.from_file_part(path.stem.removeprefix("trace_"))


class Claim:
    """A folder that this process alone writes to, with what earlier runs left in it.

    Raises UsageError where it cannot be written or another run writes to it, or its record cannot be read.
    """

    def __init__(self, path: Path, number: int = 1, spending: SpendingFile | None = None) -> None:
        """`number` is from 2 for the folders beside it, `PATH-2`, `PATH-3` …

        `spending` is where what it takes is counted, where that is not in the folder itself.
        """
        self._first_path, self._number = path, number
        self.path = path = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(path)
            self.num_leftovers = remove_leftovers(path)
        except OSError as error:
            raise UsageError(f"--output_dir {path}: {error.strerror or error}") from None
        self.spending = spending or SpendingFile(path)
        self.earlier_runs = read_runs(path)

    @property
    def holds_samples(self) -> bool:
        """Whether there are traces, or turns that were paid for."""
        return any(self.path.glob(_TRACE_FILES)) or bool(unfinished_samples(self.path))

    def refuse_changes(
        self, settings: TraceSettings, fingerprint: str, ignored: Collection[str] = ()
    ) -> None:
        """Raise UsageError, with the difference, where what it holds was made with other settings."""
        if not self.holds_samples or not self.earlier_runs:
            return
        texts = _change_texts(self.earlier_runs[-1], settings, fingerprint, ignored)
        if texts:
            raise _other_settings(str(self.path), "; ".join(texts))

    def is_free_for(self, settings: TraceSettings, fingerprint: str, ignored: Collection[str] = ()) -> bool:
        """Whether it holds nothing that was made with other settings."""
        return not any(_change_texts(made, settings, fingerprint, ignored) for made in self._makers)

    def following(self) -> Claim:
        """The next of `PATH`, `PATH-2`, `PATH-3` …"""
        return Claim(self._first_path, self._number + 1)

    @cached_property
    def _makers(self) -> list[Mapping[str, Json]]:
        """A trace or run record for each way in which what it holds was made; an empty one if not known."""
        recorded = {record.get("settings_sha256"): record for record in self.earlier_runs}
        unfinished = unfinished_samples(self.path)
        makers: dict[Json, Mapping[str, Json]] = {
            sha256: recorded.get(sha256, {}) for sha256 in unfinished.values()
        }
        for path in find_trace_files(self.path):
            try:
                trace = load_json(path)
            except TraceError:
                if _sample_of(path) in unfinished:
                    continue  # torn when the machine went down: it is made again from those turns
                trace = {}
            makers[_mapping(trace.get("metadata")).get("settings_sha256")] = trace
        return list(makers.values())


def first_free(
    claim: Claim, settings: TraceSettings, fingerprint: str, ignored: Collection[str] = ()
) -> Claim:
    """`claim`, or the first folder after it that holds nothing made with other settings."""
    while not claim.is_free_for(settings, fingerprint, ignored):
        claim = claim.following()
    return claim


class RunFolder:
    """Writes one run's files; safe to write from many threads.

    A trace is whole to readers as soon as it is written, and made durable with others; until then the journal
    keeps its turns, and a trace that a power cut tore is made again from them.
    """

    def __init__(self, claim: Claim, run: RunFacts, on_change: OnChange = OnChange.REFUSE) -> None:
        self.path, self.spending = claim.path, claim.spending
        self._claim, self._run, self._on_change = claim, run, on_change
        self._failures, self._num_bad_lines = read_failures(self.path / FAILED_SAMPLES)
        self._failure_lines = LineFile(self.path / FAILED_SAMPLES)
        self._timing_lines = LineFile(self.path / TIMINGS)
        self.journal = Journal(self.path, run.settings_sha256, self.spending.flush)
        unfinished = self.journal.unfinished()
        # Killed before their traces were durable, and perhaps in the kernel's hands alone until now.
        self._written = deque(each for each, made in unfinished.items() if self._is_made(each, made))
        self.sync_traces()

    def trace_path(self, sample_id: SampleId) -> Path:
        """Where the trace of a sample is."""
        return self.path / trace_name(sample_id)

    def failed(self) -> set[SampleId]:
        """The samples that an earlier run recorded as failed."""
        return set(self._failures)

    def finished(
        self, sample_ids: Iterable[SampleId], show: Callable[[Mapping[str, Json]], object] = lambda _: None
    ) -> set[SampleId]:
        """The samples that already have a trace which is to be kept; `show` gets those and other traces.

        A trace made with other settings is kept, made again, or refused by UsageError: mixing them
        unasked would spoil the data.
        """
        names = (path.stem.removeprefix("trace_") for path in self.path.glob(_TRACE_FILES))
        there = set(map(SampleId.from_file_part, names))  # one listing: a look for each sample takes seconds
        if not there:
            return set()
        kept = {each for each in sample_ids if each in there and self._is_kept(each, show)}
        for other in there.difference(sample_ids):
            if other is not None:
                with suppress(TraceError):
                    show(load_json(self.trace_path(other)))
        return kept

    def resume_notes(self, left: Iterable[SampleId]) -> list[str]:
        """What earlier runs left of the samples that are left to do, in lines for the user."""
        unfinished = self.journal.unfinished()
        there = [each for each in left if each in unfinished] if unfinished else []
        ours = [number for each in there if (number := self.journal.num_turns(each))]
        others = sum(map(self.journal.num_other_turns, there))
        repairs = {
            "torn or foreign lines of the journal": self.journal.num_bad_lines,
            "half-written files": self._claim.num_leftovers,
            f"unreadable lines of {FAILED_SAMPLES}": self._num_bad_lines,
        }
        notes = []
        if ours:
            notes.append(f"Samples that go on where they were: {len(ours)}; paid turns kept: {sum(ours)}.")
            notes += self._versions_notes()
        if others:
            notes.append(f"Paid turns that other settings made, not used: {others}.")
        repaired = [f"{what}: {number}" for what, number in repairs.items() if number]
        if repaired:
            notes.append(f"Repaired {'; '.join(repaired)}.")
        return notes

    def _versions_notes(self) -> list[str]:
        """A line where other versions, which may encode pictures otherwise, made the kept turns."""
        before = _mapping(self._claim.earlier_runs[-1].get("versions")) if self._claim.earlier_runs else {}
        now = self._run.versions
        if not before or all(before.get(name) == now[name] for name in ("distil", "pillow")):
            return []
        return [
            f"Turns made by distil {before.get('distil')} / Pillow {before.get('pillow')} are used only "
            "where the request's bytes are the same."
        ]

    def write_trace(self, rollout: Rollout) -> Mapping[str, Json]:
        """Write the trace of a finished rollout and return it; raises TraceError if it could not be read.

        Its turns are dropped from the journal once it is durable, with others.
        """
        path = self.trace_path(rollout.sample.id)
        trace = trace_json(rollout, self._run)
        replace_file(path, readable_bytes(path, trace))
        self._written.append(rollout.sample.id)
        if len(self._written) >= _TRACES_A_SYNC:
            self.sync_traces()
        return trace

    def sync_traces(self) -> None:
        """Make the traces durable that were written, and drop their turns: in this order."""
        written = []
        with suppress(IndexError):  # another thread syncs the others
            while True:
                written.append(self._written.popleft())
        if written:
            sync_files([self.trace_path(each) for each in written])
            self.journal.drop(written)

    def write_timing(self, sample_id: SampleId, seconds: float, turn_seconds: Sequence[float]) -> None:
        """Add a finished sample's wall-clock times, which have no place in its trace."""
        line = {**sample_id.as_json(), "seconds": seconds, "turn_seconds": list(turn_seconds)}
        self._timing_lines.append(line)

    def write_failure(self, failure: Failure) -> Failure:
        """Add a failed sample as soon as it fails; returns it with its runs and turns spent."""
        before = self._failures.get(failure.sample_id)
        failure = replace(
            failure,
            runs=1 if before is None else before.runs + 1,
            turns_spent=self.journal.num_turns(failure.sample_id),
        )
        self._failures[failure.sample_id] = failure
        self._failure_lines.append(_failure_json(failure))
        return failure

    def write_failures(self) -> None:
        """Write a line for each sample that failed, now or before, and has no trace."""
        path = self.path / FAILED_SAMPLES
        kept = [self._failures[each] for each in sorted(self._failures) if not self._is_made(each)]
        self._failure_lines.close()  # it is another file from here on
        if kept:
            write_bytes(path, b"".join(line_bytes(_failure_json(failure)) for failure in kept))
        else:
            with folder_errors(path):
                path.unlink(missing_ok=True)

    def write_run_record(self, record: Mapping[str, Json]) -> None:
        """Write this run's record beside those of earlier runs in the folder."""
        write_json(self.path / RUN_RECORD, {"runs": [*self._claim.earlier_runs, dict(record)]})

    def flush(self) -> None:
        """Write and sync what waits for more of its kind."""
        self.spending.flush()
        self.sync_traces()

    def close(self) -> None:
        """Close what is open and remove what a run without failures needs no more."""
        self.flush()
        for file in (self.spending, self._failure_lines, self._timing_lines):
            file.close()
        self.journal.close()

    def _is_made(self, sample_id: SampleId, *settings_sha256: str) -> bool:
        """Whether a sample has a whole trace that was made with this run's settings, or with these."""
        path = self.trace_path(sample_id)
        try:
            trace = load_json(path)
        except TraceError:
            return False
        made_with = _mapping(trace.get("metadata")).get("settings_sha256")
        return made_with in (self._run.settings_sha256, *settings_sha256) and _is_of(trace, sample_id)

    def _is_kept(self, sample_id: SampleId, show: Callable[[Mapping[str, Json]], object]) -> bool:
        path = self.trace_path(sample_id)
        try:
            trace = load_json(path)
        except TraceError as error:
            if self.journal.num_turns(sample_id):
                return False  # torn when the machine went down: it is made again from those turns
            raise UsageError(f"{error}; move it away, or choose another --output_dir") from None
        if not _is_of(trace, sample_id):
            raise UsageError(
                f"{path} holds the trace of row {_stated_id(trace, sample_id)}, not of row {sample_id}; "
                "move it away, or choose another --output_dir"
            )
        made_with = (trace.get("metadata") or {}).get("settings_sha256")
        if self._on_change is OnChange.KEEP or made_with == self._run.settings_sha256:
            show(trace)
            return True
        if self._on_change is OnChange.REDO:
            return False
        theirs = trace.get("settings")
        if not isinstance(theirs, dict):
            raise _other_settings(str(path), "by another program")
        texts = self._run.settings.changes_from(theirs)
        raise _other_settings(str(path), "; ".join(texts) or "another dataset")


def _is_of(trace: Mapping[str, Json], sample_id: SampleId) -> bool:
    """Whether a trace is of this sample, as far as it says: a copy under another's name is not."""
    return _stated_id(trace, sample_id) == sample_id


def _stated_id(trace: Mapping[str, Json], otherwise: SampleId) -> SampleId:
    return SampleId(trace.get("sample_index", otherwise.index), trace.get("rollout", 0))


def _failure_json(failure: Failure) -> dict[str, Json]:
    fields = asdict(failure)
    del fields["sample_id"]
    return failure.sample_id.as_json() | fields


def _stored_failure(line: Mapping[str, Json] | None) -> Failure | None:
    """A failure read back, None where a line holds none."""
    try:
        value = dict(line or {})
        sample_id = SampleId.from_json(value)
        others = {name: value[name] for name in value if name not in sample_id.as_json()}
        failure = Failure(sample_id, **others)
        failure = replace(failure, kind=FailureKind(failure.kind))
    except (KeyError, TypeError, ValueError):
        return None
    return failure if type(failure.runs) is int and isinstance(failure.message, str) else None


def read_failures(path: Path) -> tuple[dict[SampleId, Failure], int]:
    """The failures by sample, the last of each, and how many lines cannot be read.

    A line that a crash cut off is no loss: its sample has no trace and is simply tried again.
    """
    read = [_stored_failure(line) for line, _ in read_lines(path)]
    failures = {failure.sample_id: failure for failure in read if failure is not None}
    return failures, sum(failure is None for failure in read)


def _change_texts(
    made: Mapping[str, Json], settings: TraceSettings, fingerprint: str, ignored: Collection[str]
) -> list[str]:
    """What differs from the settings and dataset of a trace or run record, for a message."""
    texts = settings.changes_from(_mapping(made.get("settings")), ignored)
    theirs = _mapping(made.get("dataset")).get("fingerprint")
    if theirs != fingerprint:
        texts.append(f"dataset: fingerprint {short_json(theirs)} then, {short_json(fingerprint)} now")
    return texts


def _mapping(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, dict) else {}


def _other_settings(what: str, difference: str) -> UsageError:
    return UsageError(
        f"{what} was made with other settings ({difference}); "
        "choose another --output_dir, or say --on_change new, keep or redo"
    )
