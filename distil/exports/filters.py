"""The filters of an export: each leaves some of the traces that may be picked, in their order."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from distil.exports.near_duplicates import near_pairs, photo_hash
from distil.exports.repeats import said_sha256
from distil.records import Json
from distil.replay.processes import each_trace


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trace that may be picked; its `row` is the same for all rollouts, whatever folder they lie in."""

    path: Path
    position: int  # in the order of all traces found
    row: tuple[Json, ...]
    rollout: int
    photo: str
    num_pixels: int
    score: float | None
    reason_out: str | None  # why it is no example to learn from
    mark: str | None
    value: Json  # of the column that is balanced
    place: tuple[Json, ...]  # of the columns that are split by


Filter = Callable[[Sequence[Candidate]], list[Candidate]]


@dataclass(frozen=True)
class Reader:
    """How traces and photos are read where a filter has to, and who is told what goes on.

    `tell_progress` gets what is read, how much of it is done, and of how much.
    """

    dataset_path: str | None = None
    max_workers: int = 1
    tell_progress: Callable[[str, int, int], None] = lambda what, done, of: None
    tell: Callable[[str], None] = lambda _: None


def those(is_meant: Callable[[Candidate], bool], candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that are meant."""
    return [each for each in candidates if is_meant(each)]


def with_answer(left_out: Counter[str], candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those with an answer; `left_out` gets the reasons of the others."""
    left_out.update(each.reason_out for each in candidates if each.reason_out is not None)
    return [each for each in candidates if each.reason_out is None]


def pass_rates(candidates: Iterable[Candidate], passed: Collection[Path]) -> dict[tuple[Json, ...], float]:
    """The share of each row's traces that pass."""
    candidates = list(candidates)
    num_traces = Counter(each.row for each in candidates)
    num_passed = Counter(each.row for each in candidates if each.path in passed)
    return {row: num_passed[row] / number for row, number in num_traces.items()}


def without_repeats(reader: Reader, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Of a row's traces that say and call the same only the first."""
    several = {row for row, number in Counter(each.row for each in candidates).items() if number > 1}
    asked = [each for each in candidates if each.row in several]
    found = each_trace(
        said_sha256, [each.path for each in asked], reader.max_workers, reader.dataset_path, reader.tell
    )
    seen: set[tuple[Json, ...]] = set()
    repeats: set[Path] = set()
    for done, (each, digest) in enumerate(zip(asked, found, strict=True), start=1):
        reader.tell_progress("conversations", done, len(asked))
        if digest is not None and (key := (*each.row, digest)) in seen:
            repeats.add(each.path)
        elif digest is not None:
            seen.add(key)
    return [each for each in candidates if each.path not in repeats]


def without_near(max_bits: int, reader: Reader, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Without photos that are nearly the same as one that stays: the largest, of equal ones the first."""
    first = _first_of_photos(candidates)
    hashes = _photo_hashes(first, reader)
    near: dict[int, set[int]] = defaultdict(set)
    for one, other in near_pairs(hashes.values(), max_bits):
        near[one].add(other)
        near[other].add(one)
    kept, kept_hashes = set(first) - set(hashes), set[int]()
    for photo in sorted(hashes, key=lambda photo: -first[photo].num_pixels):  # of equals the first found
        if hashes[photo] not in kept_hashes and not near[hashes[photo]] & kept_hashes:
            kept.add(photo)
            kept_hashes.add(hashes[photo])
    return [each for each in candidates if each.photo in kept]


def _first_of_photos(candidates: Iterable[Candidate]) -> dict[str, Candidate]:
    first: dict[str, Candidate] = {}
    for each in candidates:
        first.setdefault(each.photo, each)
    return first


def _photo_hashes(first: dict[str, Candidate], reader: Reader) -> dict[str, int]:
    """The perceptual hashes of the photos that can be read."""
    paths = [each.path for each in first.values()]
    found = each_trace(photo_hash, paths, reader.max_workers, reader.dataset_path, reader.tell)
    hashes = {}
    for done, (photo, number) in enumerate(zip(first, found, strict=True), start=1):
        reader.tell_progress("photos", done, len(paths))
        if number is not None:
            hashes[photo] = number
    return hashes


def near_photos(candidates: Sequence[Candidate], max_bits: int, reader: Reader) -> list[tuple[str, str]]:
    """Pairs of photos by which all that are near belong together."""
    hashes = _photo_hashes(_first_of_photos(candidates), reader)
    photo_of = {number: photo for photo, number in hashes.items()}
    same = [(photo, photo_of[number]) for photo, number in hashes.items()]
    return same + [(photo_of[one], photo_of[other]) for one, other in near_pairs(photo_of, max_bits)]


def _by_row(candidates: Iterable[Candidate]) -> dict[tuple[Json, ...], list[Candidate]]:
    rows: dict[tuple[Json, ...], list[Candidate]] = defaultdict(list)
    for each in candidates:
        rows[each.row].append(each)
    return rows


def _in_order(candidates: Iterable[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=attrgetter("position"))


def best(number: int, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The best so many of each row; of equals those with the lower number of the rollout."""

    def place_of(each: Candidate) -> tuple[float, int, int]:
        return -(float("-inf") if each.score is None else each.score), each.rollout, each.position

    rows = _by_row(candidates).values()
    return _in_order(each for row in rows for each in sorted(row, key=place_of)[:number])


def first(number: int, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The first so many rollouts of each row."""
    rows = _by_row(candidates).values()
    by_rollout = attrgetter("rollout", "position")
    return _in_order(each for row in rows for each in sorted(row, key=by_rollout)[:number])


def balanced(most: int | None, seed: int, candidates: Sequence[Candidate]) -> list[Candidate]:
    """At most so many of each value, None for as many as the rarest has; drawn by the seed.

    Traces without a value are left out.
    """
    values: dict[Json, list[Candidate]] = defaultdict(list)
    for each in candidates:
        if each.value is not None:
            values[each.value].append(each)
    room = most or min(map(len, values.values()), default=0)

    def drawn(each: Candidate) -> str:
        return hashlib.sha256(f"{seed} {each.photo} {each.path.name}".encode()).hexdigest()

    return _in_order(each for found in values.values() for each in sorted(found, key=drawn)[:room])
