"""Which traces are exported, in which order, and into which split; filters in a fixed order, each counted."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from distil.commands.flags import ExportFlags, SelectionFlags
from distil.errors import UsageError
from distil.exports.filters import (
    Candidate,
    Filter,
    Read,
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
from distil.index.columns import Column
from distil.index.index import TraceIndex
from distil.index.query import Query
from distil.records import Json, StopReason
from distil.replay.processes import each_trace
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
    """The picked traces in their order, each with the split of its row, and how they were chosen."""

    picks: Mapping[Path, str]
    folders: tuple[Path, ...]
    columns: tuple[Column, ...]  # of the index
    num_found: int  # files
    steps: tuple[Step, ...] = ()
    left_out: Counter[str] = field(default_factory=Counter)  # without an answer, by reason


def select_traces(
    asked: ExportFlags,
    tell_progress: Callable[[str, int, int], None] = lambda what, done, of: None,
    tell: Callable[[str], None] = lambda _: None,
) -> Selected:
    """Choose among the traces of folders and trace files.

    `tell_progress` gets what is read, how much of it is done, and of how much. What the index cannot read is
    picked too, whatever is asked for: it has to be refused in the open. Raises UsageError where there is no
    trace, none is left, or something that is asked for cannot be.
    """

    def read(work: Callable[..., Any], paths: Sequence[Path], what: str) -> Iterator[Any]:
        found = each_trace(work, paths, asked.max_workers, asked.dataset_path, tell)
        for done, each in enumerate(found, start=1):
            tell_progress(what, done, len(paths))
            yield each

    _check(asked.selection)
    files = _files_by_folder(asked.paths)
    positions = _positions(files)
    candidates, columns = _find(asked, list(files), positions, partial(tell_progress, "traces"))
    unread = set(positions) - {each.path for each in candidates}
    left, steps, left_out = candidates, list[Step](), Counter[str]()
    for name, keep in _filters(asked, candidates, read, left_out):
        before = len(left)
        left = keep(left)
        steps.append(Step(name, before, len(left)))
        if before and not left and not unread:
            raise UsageError(_nothing_left(len(positions), steps, left_out))
    validating = _validating(left, asked.selection, read)
    picked = sorted([*unread, *(each.path for each in left)], key=lambda path: positions[path])
    if asked.selection.shuffle:
        random.Random(asked.selection.seed).shuffle(picked)  # noqa: S311 - it is to be the same each time
    return Selected(
        picks={path: VALIDATION if path in validating else TRAIN for path in picked},
        folders=tuple(files),
        columns=tuple(columns),
        num_found=len(positions),
        steps=tuple(steps),
        left_out=left_out,
    )


def _check(asked: SelectionFlags) -> None:
    if asked.pass_rate is not None and asked.accept is None:
        raise UsageError('--pass_rate: say what passes, as --accept "score > 0.8"')
    if asked.accept is not None and asked.pass_rate is None:
        raise UsageError("--accept says what passes for --pass_rate; --where chooses traces")
    if asked.balance_max is not None and asked.balance is None:
        raise UsageError("--balance_max: say which column is balanced, as --balance country")
    if asked.only_kept and asked.ignore_marks:
        raise UsageError("--only_kept and --ignore_marks cannot both be")
    if asked.near_duplicates == "together" and asked.validation is None:
        raise UsageError("--near_duplicates together: there is nothing to split; give --validation")
    if asked.near_duplicates is not None:
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


def _positions(files: Mapping[Path, set[str] | None]) -> dict[Path, int]:
    """The trace files and where they stand among all; raises UsageError for a folder without one."""
    paths: list[Path] = []
    for folder, names in files.items():
        there = find_trace_files(folder) if folder.is_dir() else []
        others = [folder / name for name in sorted(names or ()) if folder / name not in set(there)]
        found = [path for path in there if names is None or path.name in names] + others
        if not found:
            raise UsageError(f"{folder} is no trace file and holds no trace_*.json")
        paths += found
    return {path: number for number, path in enumerate(paths)}


def _find(
    asked: ExportFlags,
    folders: Sequence[Path],
    positions: Mapping[Path, int],
    tell_progress: Callable[[int, int], None],
) -> tuple[list[Candidate], Collection[Column]]:
    """The traces that the index can read, and its columns."""
    uses_sql = asked.where is not None or asked.selection.accept is not None
    at_once = len(folders) if uses_sql else MAX_FOLDERS  # SQL is about all, or says that they are too many
    candidates: list[Candidate] = []
    columns: dict[str, Column] = {}
    for index, some in indexes(folders, at_once, tell_progress):
        with closing(index):
            candidates += _candidates(index, some, positions, asked)
            columns |= {column.name: column for column in index.columns}
    return candidates, columns.values()


def indexes(
    folders: Sequence[Path],
    at_once: int = MAX_FOLDERS,
    tell_progress: Callable[[int, int], None] = lambda done, of: None,
) -> Iterator[tuple[TraceIndex, Sequence[Path]]]:
    """The indexes of folders, of so many at once, to be closed."""
    for start in range(0, len(folders), at_once):
        some = folders[start : start + at_once]
        yield TraceIndex.open(some, tell_progress), some


def _candidates(
    index: TraceIndex, folders: Sequence[Path], positions: Mapping[Path, int], asked: ExportFlags
) -> Iterator[Candidate]:
    """The traces of some folders; raises UsageError for a column or SQL that cannot be."""
    wanted = _meeting(index, folders, asked.where)
    passed = _meeting(index, folders, asked.selection.accept)
    balance = [] if asked.selection.balance is None else [asked.selection.balance]
    names = ("run", *_COLUMNS, *balance, *_split_columns(asked.selection))
    for run, *values in index.rows(Query(), names):
        cells = dict(zip(_COLUMNS, values, strict=False))
        path = folders[int(run)] / str(cells["file"])
        if path not in positions:
            continue
        index_of_row = cells["sample_index"]
        dataset = cells["fingerprint"] or cells["dataset_path"] or str(path.parent)
        row = (cells["task"], dataset, path.name if index_of_row is None else index_of_row)
        yield Candidate(
            path=path,
            position=positions[path],
            row=row,
            rollout=int(cells["rollout"] or 0),
            photo=str(cells["image_sha256"] or row),
            num_pixels=int(cells["width_px"] or 0) * int(cells["height_px"] or 0),
            score=cells["score"],
            reason_out=reason_to_leave_out(cells["stop_reason"], cells["parse_success"]),
            mark=cells["mark"],
            is_wanted=path in wanted,
            passes=path in passed,
            value=values[len(_COLUMNS)] if balance else None,
            place=tuple(values[len(_COLUMNS) + len(balance) :]),
        )


def _meeting(index: TraceIndex, folders: Sequence[Path], condition: str | None) -> set[Path]:
    """The traces that meet a condition in SQL."""
    rows = index.rows(Query(where=condition), ("run", "file")) if condition is not None else ()
    return {folders[int(run)] / str(file) for run, file in rows}


def reason_to_leave_out(stop_reason: str | None, parse_success: bool | None) -> str | None:
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
    asked: ExportFlags, candidates: Sequence[Candidate], read: Read, left_out: Counter[str]
) -> Iterator[tuple[str, Filter]]:
    """The filters that are asked for, by what they are called, in their order."""
    flags = asked.selection
    if flags.only_kept:
        yield "--only_kept", partial(those, lambda each: each.mark == KEEP)
    elif not flags.ignore_marks:
        yield "not marked drop", partial(those, lambda each: each.mark != DROP)
    if not asked.all:
        yield "with an answer", partial(with_answer, left_out)
    if asked.where is not None:
        yield f"--where {asked.where}", partial(those, lambda each: each.is_wanted)
    if flags.pass_rate is not None:
        rates = pass_rates(candidates)
        low, high = map(float, flags.pass_rate.split(".."))
        name = f"--pass_rate {flags.pass_rate} --accept {flags.accept}"
        yield name, partial(those, lambda each: low <= rates[each.row] <= high)
    if flags.drop_repeats:
        yield "--drop_repeats", partial(without_repeats, read)
    if flags.near_duplicates == "drop":
        name = f"--near_duplicates drop --near_bits {flags.near_bits}"
        yield name, partial(without_near, flags.near_bits, read)
    if flags.best_of is not None:
        yield f"--best_of {flags.best_of}", partial(best, flags.best_of)
    if flags.max_per_sample is not None:
        yield f"--max_per_sample {flags.max_per_sample}", partial(first, flags.max_per_sample)
    if flags.balance is not None:
        most = "" if flags.balance_max is None else f" --balance_max {flags.balance_max}"
        yield f"--balance {flags.balance}{most}", partial(balanced, flags.balance_max, flags.seed)


def _nothing_left(num_found: int, steps: Sequence[Step], left_out: Counter[str]) -> str:
    told = [f"{step.name}: {step.after:,}" for step in steps]
    reasons = [f"{count:,} left out, {reason}" for reason, count in sorted(left_out.items())]
    return f"no trace is left to export of {num_found:,}: {'; '.join(told + reasons)}"


# --- train and validation: the same photo, and whatever belongs together, on one side ---


def _validating(candidates: Sequence[Candidate], asked: SelectionFlags, read: Read) -> Collection[Path]:
    """Those that validate; raises UsageError where that would be all or none."""
    if asked.validation is None or not candidates:
        return ()
    near: list[tuple[str, str]] = []
    if asked.near_duplicates == "together":
        near = near_photos(candidates, asked.near_bits, read)
    return {candidates[number].path for number in validation_members(candidates, near, asked)}


def _split_columns(asked: SelectionFlags) -> list[str]:
    """The columns of which a value is never on both sides."""
    return [name.strip() for name in (asked.split_by or "").split(",") if name.strip()]


def validation_members(
    members: Sequence[Candidate], near: Iterable[tuple[str, str]], asked: SelectionFlags
) -> set[int]:
    """The positions of those that validate: whole groups, as they are drawn, up to the share of all.

    `near` are pairs of photos that belong together. Groups are drawn by their photos' hashes, so that more
    traces of the same photos are split alike. Raises UsageError where all is one group.
    """
    assert asked.validation is not None
    cells = [_cell(member, asked.split_step) for member in members]
    names = [
        member.photo if cell is None else repr(cell) for member, cell in zip(members, cells, strict=True)
    ]
    groups = _groups(members, cells, near)
    if len(groups) < 2:
        raise UsageError("--validation: all traces belong together, so none can be kept for validation")

    def drawn(group: list[int]) -> str:
        name = min(names[number] for number in group)
        return hashlib.sha256(f"{asked.seed} {name}".encode()).hexdigest()

    room = max(1, round(asked.validation * len(members)))
    chosen: set[int] = set()
    for group in sorted(groups, key=drawn):
        if len(chosen) + len(group) <= room and len(chosen) + len(group) < len(members):
            chosen.update(group)
    smallest: list[int] = min(groups, key=lambda group: (len(group), drawn(group)))
    return chosen or set(smallest)


_Cell = tuple[Json, ...] | None


def _cell(member: Candidate, step: float | None) -> _Cell:
    """Where a trace belongs by its columns, numbers in steps; None where they say nothing."""
    if all(value is None for value in member.place):
        return None
    return tuple(_stepped(value, step) for value in member.place)


def _stepped(value: Json, step: float | None) -> Json:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return math.floor(value / step) if is_number and step is not None else value


def _groups(
    members: Sequence[Candidate], cells: Sequence[_Cell], near: Iterable[tuple[str, str]]
) -> list[list[int]]:
    """The positions of what belongs together, directly or by others."""
    following: dict[Hashable, Hashable] = {}

    def first_of(thing: Hashable) -> Hashable:
        while (other := following.get(thing, thing)) != thing:
            following[thing] = following.get(other, other)
            thing = other
        return thing

    def join(one: Hashable, other: Hashable) -> None:
        following[first_of(one)] = first_of(other)

    for number, (member, cell) in enumerate(zip(members, cells, strict=True)):
        join(number, ("photo", member.photo))
        if cell is not None:
            join(number, ("place", cell))
    for one, other in near:
        join(("photo", one), ("photo", other))
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for number in range(len(members)):
        groups[first_of(number)].append(number)
    return list(groups.values())
