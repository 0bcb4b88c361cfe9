"""The filters of an export: each leaves some of the traces that may be picked, in their order."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from distil.errors import TraceError
from distil.exports.near_duplicates import near_pairs, photo_hash
from distil.records import Json
from distil.replay.replay import Executors, Sources
from distil.store.summary import trace_calls, trace_turns, turn_text
from distil.store.trace_file import load_json
from distil.store.trace_settings import json_sha256


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
    is_wanted: bool  # by `--where`
    passes: bool  # by `--accept`
    value: Json  # of the column that is balanced
    place: tuple[Json, ...]  # of the columns that are split by


Filter = Callable[[Sequence[Candidate]], list[Candidate]]
# What some work finds in each trace; the text says what is read, for whoever is told what goes on.
Read = Callable[[Callable[[Path, Sources, Executors], Any], Sequence[Path], str], Iterator[Any]]


def those(is_meant: Callable[[Candidate], bool], candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that are meant."""
    return [each for each in candidates if is_meant(each)]


def with_answer(left_out: Counter[str], candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those with an answer; `left_out` gets the reasons of the others."""
    left_out.update(each.reason_out for each in candidates if each.reason_out is not None)
    return [each for each in candidates if each.reason_out is None]


def pass_rates(candidates: Sequence[Candidate]) -> dict[tuple[Json, ...], float]:
    """The share of each row's traces that pass."""
    num_traces = Counter(each.row for each in candidates)
    num_passed = Counter(each.row for each in candidates if each.passes)
    return {row: num_passed[row] / number for row, number in num_traces.items()}


def without_repeats(read: Read, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Of a row's traces that say and call the same only the first: what a teacher at temperature 0 makes."""
    num_traces = Counter(each.row for each in candidates)
    asked = [each for each in candidates if num_traces[each.row] > 1]
    digests = read(said_sha256, [each.path for each in asked], "conversations")
    seen: set[tuple[Json, ...]] = set()
    repeats: set[Path] = set()
    for each, digest in zip(asked, digests, strict=True):
        if digest is not None and (*each.row, digest) in seen:
            repeats.add(each.path)
        seen.add((*each.row, digest))
    return [each for each in candidates if each.path not in repeats]


def said_sha256(path: Path, _: Sources, __: Executors) -> str | None:
    """A hash of all that a trace's teacher said, thought and called; None where it cannot be read."""
    try:
        trace = load_json(path)
    except TraceError:
        return None
    said = [[turn_text(turn), turn.get("reasoning")] for turn in trace_turns(trace)]
    called = [
        [call.get(name) for name in ("turn", "tool_name", "tool_arguments", "code")]
        for call in trace_calls(trace)
    ]
    return json_sha256({"said": said, "called": called})


def without_near(max_bits: int, read: Read, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Without photos that are nearly the same as one that stays: the largest, of equal ones the first."""
    first = _first_of_photos(candidates)
    hashes = _photo_hashes(first, read)
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


def _photo_hashes(first: dict[str, Candidate], read: Read) -> dict[str, int]:
    """The perceptual hashes of the photos that can be read."""
    numbers = read(photo_hash, [each.path for each in first.values()], "photos")
    return {photo: number for photo, number in zip(first, numbers, strict=True) if number is not None}


def near_photos(candidates: Sequence[Candidate], max_bits: int, read: Read) -> list[tuple[str, str]]:
    """Pairs of photos by which all that are near belong together."""
    hashes = _photo_hashes(_first_of_photos(candidates), read)
    photo_of = {number: photo for photo, number in hashes.items()}
    same = [(photo, photo_of[number]) for photo, number in hashes.items()]
    return same + [(photo_of[one], photo_of[other]) for one, other in near_pairs(photo_of, max_bits)]


def best(number: int, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The best so many of each row; of equals those with the lower number of the rollout."""

    def place_of(each: Candidate) -> tuple[float, int, int]:
        return -(float("-inf") if each.score is None else each.score), each.rollout, each.position

    return _first_of_each(number, candidates, attrgetter("row"), place_of)


def first(number: int, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The first so many rollouts of each row."""
    return _first_of_each(number, candidates, attrgetter("row"), attrgetter("rollout", "position"))


def _first_of_each(
    number: int | None,
    candidates: Iterable[Candidate],
    group_of: Callable[[Candidate], Json],
    place_of: Callable[[Candidate], Any],
) -> list[Candidate]:
    """The first so many of each group by their places; None for as many as the smallest group has."""
    groups: dict[Json, list[Candidate]] = defaultdict(list)
    for each in candidates:
        groups[group_of(each)].append(each)
    most = number or min(map(len, groups.values()), default=0)
    kept = [each for group in groups.values() for each in sorted(group, key=place_of)[:most]]
    return sorted(kept, key=attrgetter("position"))


def balanced(most: int | None, seed: int, candidates: Sequence[Candidate]) -> list[Candidate]:
    """At most so many of each value, None for as many as the rarest has; drawn by the seed.

    Traces without a value are left out.
    """

    def drawn(each: Candidate) -> str:
        return hashlib.sha256(f"{seed} {each.photo} {each.path.name}".encode()).hexdigest()

    with_value = [each for each in candidates if each.value is not None]
    return _first_of_each(most, with_value, attrgetter("value"), drawn)
