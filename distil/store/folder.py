"""A run's folder: trace files, run record, failed samples, timings, the journal of unfinished samples."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from distil.errors import TraceError, UsageError
from distil.records import Failure, FailureKind, Json, OnChange, Rollout, SampleId
from distil.store.atomic import folder_errors, replace_file, sync_files, write_bytes, write_json
from distil.store.claim import RUN_RECORD, Claim, is_made, made_with, other_settings, stated_id
from distil.store.journal import Journal
from distil.store.json_lines import LineFile, line_bytes, read_lines
from distil.store.summary import mapping_of
from distil.store.trace_file import (
    TRACE_FILES,
    RunFacts,
    load_json,
    readable_bytes,
    sample_of_name,
    trace_json,
    trace_name,
)
from distil.store.trace_settings import short_json

FAILED_SAMPLES = "failed_samples.jsonl"
TIMINGS = "timings.jsonl"
WITHOUT_TOOLS = "without_tools"  # a folder in the run's: its rows asked once more, without tools
DRAWS = "draws.jsonl"
_TRACES_A_SYNC = 32  # one sync of the folder for all of them
README = "README.txt"
_README_TEXT = """\
This folder was written by distil. Its files:

trace_*.json          a solved sample each: the teacher's turns, its tool calls, the answer and the reward.
                      A number is a row of the dataset, _r1 and so on are further rollouts of it.
                      `distil view .` shows them.
run_record.json       each run into this folder: options, settings, versions, counts, spending, warnings.
failed_samples.jsonl  a line for each sample that failed, and why; gone where none did.
spending.jsonl        two lines for each request: that it was sent, and what it came to.
draws.jsonl           the rows that --target_acc has drawn, in their order: needed to go on.
timings.jsonl         the seconds that each sample took.
marks.jsonl           what a person decided about samples: keep, drop, notes; no run changes it.
scores.jsonl          what `distil score` found, a line for each trace and reward; it can be written again.
index.sqlite          made of the files above, to find traces fast: may be removed at any time.
journal/              replies that were paid for, of samples without a trace; gone where there is none.
without_tools/        the rows asked without tools too, for comparison: such a folder as this one.
.lock                 held by the run that writes here; `distil clean .` removes it and other leftovers.

Keep trace_*.json for training. To go on or to retry failed samples, keep all and run the same command.
"""


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
        self._written = deque(each for each, made in unfinished.items() if self._has_trace(each, made))
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
        names = (path.name for path in self.path.glob(TRACE_FILES))
        there = set(map(sample_of_name, names))  # one listing: a look for each sample takes seconds
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
        before = mapping_of(self._claim.earlier_runs[-1].get("versions")) if self._claim.earlier_runs else {}
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
        kept = [self._failures[each] for each in sorted(self._failures) if not self._has_trace(each)]
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

    def _has_trace(self, sample_id: SampleId, *settings_sha256: str) -> bool:
        """Whether a sample has a whole trace that was made with this run's settings, or with these."""
        return is_made(self.trace_path(sample_id), sample_id, self._run.settings_sha256, *settings_sha256)

    def _is_kept(self, sample_id: SampleId, show: Callable[[Mapping[str, Json]], object]) -> bool:
        path = self.trace_path(sample_id)
        try:
            trace = load_json(path)
        except TraceError as error:
            if self.journal.num_turns(sample_id):
                return False  # torn when the machine went down: it is made again from those turns
            raise UsageError(f"{error}; move it away, or choose another --output_dir") from None
        if stated_id(trace, sample_id) != sample_id:
            raise UsageError(
                f"{path} holds the trace of row {stated_id(trace, sample_id)}, not of row {sample_id}; "
                "move it away, or choose another --output_dir"
            )
        if self._on_change is OnChange.KEEP or made_with(trace) == self._run.settings_sha256:
            show(trace)
            return True
        if self._on_change is OnChange.REDO:
            return False
        theirs = trace.get("settings")
        if not isinstance(theirs, dict):
            raise other_settings(str(path), "by another program")
        texts = self._run.settings.changes_from(theirs)
        raise other_settings(str(path), "; ".join(texts) or "another dataset")


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


class DrawsFile:
    """The rows that a run has drawn, in their order, so that it is decided once.

    The first line of the file says what they are drawn from.
    """

    def __init__(self, folder: Path, drawn_from: Mapping[str, Json]) -> None:
        """Read those that there are; raises UsageError where they are drawn from something else."""
        self._path = folder / DRAWS
        lines = [line for line, _ in read_lines(self._path) if line is not None]
        stated = next(
            (line["drawn_from"] for line in lines if isinstance(line.get("drawn_from"), dict)), None
        )
        if stated is not None and stated != drawn_from:
            texts = [
                f"{name}: {short_json(stated.get(name))} then, {short_json(value)} now"
                for name, value in drawn_from.items()
                if stated.get(name) != value
            ]
            raise UsageError(
                f"{self._path} was drawn from other rows ({'; '.join(texts) or 'by another version'}); "
                "choose another --output_dir"
            )
        found = [line["sample_index"] for line in lines if type(line.get("sample_index")) is int]
        self.rows: list[int] = list(dict.fromkeys(found))
        self._file = LineFile(self._path)
        self._first = [] if stated is not None else [{"drawn_from": dict(drawn_from)}]

    def add(self, row: int) -> None:
        """Add a row that is drawn, before it is asked; raises FolderError."""
        self._file.append(*self._first, {"sample_index": row})
        self._first = []

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def write_readme(folder: Path) -> None:
    """Say what each file is for who finds the folder later; a person's own stays. Raises FolderError."""
    path = folder / README
    if not path.exists():
        write_bytes(path, _README_TEXT.encode())
