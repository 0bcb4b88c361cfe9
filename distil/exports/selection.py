"""Which traces are exported, in which order, and into which split; filters in a fixed order, each counted."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from distil.errors import UsageError
from distil.exports.filters import (
    Candidate,
    Filter,
    Reader,
    balanced,
    best,
    first,
    near_photos,
    pass_rates,
    those,
    with_answer,
    without_near,
    without_repeats,
)
from distil.exports.near_duplicates import check_imagehash
from distil.exports.splits import Grouped, Splitting, validation_members
from distil.index.columns import Column
from distil.index.index import TraceIndex
from distil.index.query import Query
from distil.records import Band, Json, NearDuplicates, StopReason
from distil.store.marks import DROP, KEEP
from distil.store.trace_file import find_trace_files

TRAIN, VALIDATION = "train", "validation"
MAX_FOLDERS = 10  # of one index
_COLUMNS = (
    "file",
    "task",
    "fingerprint",
    "dataset_path",
    "sample_index",
    "rollout",
    "image_sha256",
    "width_px",
    "height_px",
    "score",
    "stop_reason",
    "parse_success",
    "mark",
)


@dataclass(frozen=True, slots=True)
class Pick:
    """A trace that is to be exported, and the split that its row goes into."""

    path: Path
    split: str = TRAIN


@dataclass(frozen=True)
class Selection:
    """Which traces are wanted; the filters work in the order in which they stand here."""

    only_kept: bool = False
    ignores_marks: bool = False
    takes_all: bool = False  # also traces without an answer
    where: str | None = None
    pass_rate: Band | None = None  # of all traces of a row
    accept: str | None = None  # SQL: which of them pass
    drops_repeats: bool = False
    near_duplicates: NearDuplicates | None = None
    near_bits: int = 4  # bits of a perceptual hash of 64
    best_of: int | None = None
    max_per_sample: int | None = None
    balance: str | None = None  # a column
    balance_max: int | None = None
    splitting: Splitting | None = None
    shuffles: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """A filter and how many traces there were before and after it."""

    name: str
    before: int
    after: int

    def as_json(self) -> dict[str, Json]:
        """As the data card has it."""
        return {"filter": self.name, "before": self.before, "after": self.after}


@dataclass(frozen=True)
class Selected:
    """The picked traces in their order, and how they were chosen."""

    picks: tuple[Pick, ...]
    folders: tuple[Path, ...]
    columns: tuple[Column, ...]  # of the index
    num_found: int  # files
    steps: tuple[Step, ...] = ()
    left_out: Counter[str] = field(default_factory=Counter)  # without an answer, by reason


@dataclass
class _Found:
    """What there is to choose from."""

    candidates: list[Candidate] = field(default_factory=list)
    wanted: set[Path] = field(default_factory=set)  # by `where`
    passed: set[Path] = field(default_factory=set)  # by `accept`
    unread: list[tuple[int, Path]] = field(default_factory=list)  # not in the index, and where they stand
    columns: dict[str, Column] = field(default_factory=dict)
    num_found: int = 0


def select_traces(paths: Sequence[Path], selection: Selection, reader: Reader | None = None) -> Selected:
    """Choose among the traces of folders and trace files.

    What the index cannot read is picked too, whatever is asked for: it has to be refused in the open. Raises
    UsageError where there is no trace, none is left, or something that is asked for cannot be.
    """
    reader = reader or Reader()
    _check(selection)
    found = _find(paths, selection, reader)
    left, steps = list(found.candidates), []
    left_out: Counter[str] = Counter()
    for name, keep in _filters(selection, found, reader, left_out):
        before = len(left)
        left = keep(left)
        steps.append(Step(name, before, len(left)))
        if before and not left and not found.unread:
            raise UsageError(_nothing_left(found.num_found, steps, left_out))
    validation = _validation(left, selection, reader)
    picks = [
        (each.position, Pick(each.path, VALIDATION if each.position in validation else TRAIN))
        for each in left
    ]
    picks += [(position, Pick(path)) for position, path in found.unread]
    picks.sort(key=lambda pick: pick[0])
    if selection.shuffles:
        random.Random(selection.seed).shuffle(picks)  # noqa: S311 - it is to be the same each time
    return Selected(
        picks=tuple(pick for _, pick in picks),
        folders=tuple(_files_by_folder(paths)),
        columns=tuple(found.columns.values()),
        num_found=found.num_found,
        steps=tuple(steps),
        left_out=left_out,
    )


def _check(selection: Selection) -> None:
    if selection.pass_rate is not None and selection.accept is None:
        raise UsageError('--pass_rate: say what passes, as --accept "score > 0.8"')
    if selection.accept is not None and selection.pass_rate is None:
        raise UsageError("--accept says what passes for --pass_rate; --where chooses traces")
    if selection.balance_max is not None and selection.balance is None:
        raise UsageError("--balance_max: say which column is balanced, as --balance country")
    if selection.only_kept and selection.ignores_marks:
        raise UsageError("--only_kept and --ignore_marks cannot both be")
    if selection.near_duplicates is NearDuplicates.TOGETHER and selection.splitting is None:
        raise UsageError("--near_duplicates together: there is nothing to split; give --validation")
    if selection.near_duplicates is not None:
        check_imagehash()


# --- what there is ---


def _files_by_folder(paths: Iterable[Path]) -> dict[Path, set[str] | None]:
    """The folders in their order, each once, with the names of the files that are meant, None for all."""
    places: dict[Path, Path] = {}
    files: dict[Path, set[str] | None] = {}
    for path in paths:
        folder = path.parent if path.is_file() else path
        folder = places.setdefault(folder.resolve(), folder)
        names = files.setdefault(folder, set())
        if not path.is_file():
            files[folder] = None
        elif names is not None:
            names.add(path.name)
    return files


def _find(paths: Sequence[Path], selection: Selection, reader: Reader) -> _Found:
    found = _Found()
    meant = _files_by_folder(paths)
    files: dict[Path, list[Path]] = {}
    for folder, names in meant.items():
        there = find_trace_files(folder) if folder.is_dir() else []
        others = [folder / name for name in sorted(names or ()) if folder / name not in set(there)]
        files[folder] = [path for path in there if names is None or path.name in names] + others
        if not files[folder]:
            raise UsageError(f"{folder} is no trace file and holds no trace_*.json")
    positions = {path: number for number, path in enumerate(path for each in files.values() for path in each)}
    found.num_found = len(positions)
    uses_sql = selection.where is not None or selection.accept is not None
    at_once = (
        len(files) if uses_sql else MAX_FOLDERS
    )  # SQL is about all traces, or says that they are too many
    for index, folders in indexes(list(files), at_once, partial(reader.tell_progress, "traces")):
        with closing(index):
            _take(found, index, folders, positions, selection)
    read = {each.path for each in found.candidates}
    found.unread = [(position, path) for path, position in positions.items() if path not in read]
    return found


def indexes(
    folders: Sequence[Path],
    at_once: int = MAX_FOLDERS,
    tell_progress: Callable[[int, int], None] = lambda done, of: None,
) -> Iterator[tuple[TraceIndex, Sequence[Path]]]:
    """The indexes of folders, of so many at once, to be closed."""
    for start in range(0, len(folders), at_once):
        some = folders[start : start + at_once]
        yield TraceIndex.open(some, tell_progress), some


def _take(
    found: _Found,
    index: TraceIndex,
    folders: Sequence[Path],
    positions: dict[Path, int],
    selection: Selection,
) -> None:
    """The traces of some folders; raises UsageError for a column or SQL that cannot be."""
    found.columns |= {column.name: column for column in index.columns}
    splitting = selection.splitting
    by = [] if splitting is None else list(splitting.columns)
    balanced = [] if selection.balance is None else [selection.balance]
    for run, *values in index.rows(Query(), ("run", *_COLUMNS, *balanced, *by)):
        cells = dict(zip(_COLUMNS, values, strict=False))
        path = folders[int(run)] / str(cells["file"])
        if path in positions:
            value = values[len(_COLUMNS)] if balanced else None
            place = tuple(values[len(_COLUMNS) + len(balanced) :])
            found.candidates.append(_candidate(path, positions[path], cells, value, place))
    for where, chosen in ((selection.where, found.wanted), (selection.accept, found.passed)):
        if where is not None:
            rows = index.rows(Query(where=where), ("run", "file"))
            chosen |= {folders[int(run)] / str(file) for run, file in rows}


def _candidate(
    path: Path, position: int, cells: dict[str, Json], value: Json, place: tuple[Json, ...]
) -> Candidate:
    dataset = cells["fingerprint"] or cells["dataset_path"] or str(path.parent)
    index = cells["sample_index"]
    row = (cells["task"], dataset, path.name if index is None else index)
    return Candidate(
        path=path,
        position=position,
        row=row,
        rollout=int(cells["rollout"] or 0),
        photo=str(cells["image_sha256"] or row),
        num_pixels=int(cells["width_px"] or 0) * int(cells["height_px"] or 0),
        score=cells["score"],
        reason_out=_reason_out(cells["stop_reason"], cells["parse_success"]),
        mark=cells["mark"],
        value=value,
        place=place,
    )


def _reason_out(stop_reason: str | None, parse_success: bool | None) -> str | None:
    """Why a trace is no example to learn from unless it is asked for; None for one that is.

    A trace that does not say how it ended is of another program, and refused as it is read.
    """
    if stop_reason is None:
        return None
    if stop_reason != StopReason.ANSWERED:
        return f"it ended without an answer ({stop_reason})"
    return None if parse_success else "its answer cannot be read"


# --- the filters ---


def _filters(
    selection: Selection, found: _Found, reader: Reader, left_out: Counter[str]
) -> Iterator[tuple[str, Filter]]:
    """The filters that are asked for, by what they are called, in their order."""
    if selection.only_kept:
        yield "--only_kept", partial(those, lambda each: each.mark == KEEP)
    elif not selection.ignores_marks:
        yield "not marked drop", partial(those, lambda each: each.mark != DROP)
    if not selection.takes_all:
        yield "with an answer", partial(with_answer, left_out)
    if selection.where is not None:
        yield f"--where {selection.where}", partial(those, lambda each: each.path in found.wanted)
    if selection.pass_rate is not None:
        rates = pass_rates(found.candidates, found.passed)
        band = selection.pass_rate
        name = f"--pass_rate {band} --accept {selection.accept}"
        yield name, partial(those, lambda each: band.low <= rates[each.row] <= band.high)
    if selection.drops_repeats:
        yield "--drop_repeats", partial(without_repeats, reader)
    if selection.near_duplicates is NearDuplicates.DROP:
        name = f"--near_duplicates drop --near_bits {selection.near_bits}"
        yield name, partial(without_near, selection.near_bits, reader)
    if selection.best_of is not None:
        yield f"--best_of {selection.best_of}", partial(best, selection.best_of)
    if selection.max_per_sample is not None:
        yield f"--max_per_sample {selection.max_per_sample}", partial(first, selection.max_per_sample)
    if selection.balance is not None:
        most = "" if selection.balance_max is None else f" --balance_max {selection.balance_max}"
        yield f"--balance {selection.balance}{most}", partial(balanced, selection.balance_max, selection.seed)


def _validation(candidates: Sequence[Candidate], selection: Selection, reader: Reader) -> Collection[int]:
    """Those that validate; raises UsageError where that would be all or none."""
    splitting = selection.splitting
    if splitting is None or not candidates:
        return ()
    pairs: list[tuple[str, str]] = []
    if selection.near_duplicates is NearDuplicates.TOGETHER:
        pairs = near_photos(candidates, selection.near_bits, reader)
    grouped = [Grouped(each.photo, each.place) for each in candidates]
    numbers = validation_members(grouped, pairs, splitting, selection.seed)
    return {candidates[number].position for number in numbers}


def _nothing_left(num_found: int, steps: Sequence[Step], left_out: Counter[str]) -> str:
    told = [f"{step.name}: {step.after:,}" for step in steps]
    reasons = [f"{count:,} left out, {reason}" for reason, count in sorted(left_out.items())]
    return f"no trace is left to export of {num_found:,}: {'; '.join(told + reasons)}"
