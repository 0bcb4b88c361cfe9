"""Train and validation: the same photo, and whatever belongs together, on one side."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from distil.errors import UsageError
from distil.records import Json


@dataclass(frozen=True)
class Splitting:
    """How much is for validation, and which columns' values stay whole.

    Numbers are told apart by steps of so much where `step` is given: two columns of coordinates make cells.
    """

    share: float
    columns: tuple[str, ...] = ()
    step: float | None = None


@dataclass(frozen=True, slots=True)
class Grouped:
    """What of a trace says with which others it goes."""

    photo: str
    place: tuple[Json, ...] = ()


def validation_members(
    members: Sequence[Grouped], near: Iterable[tuple[str, str]], splitting: Splitting, seed: int
) -> set[int]:
    """The positions of those that validate: whole groups, as they are drawn, up to the share of all.

    `near` are pairs of photos that belong together. Groups are drawn by their photos' hashes, so that more
    traces of the same photos are split alike. Raises UsageError where all is one group.
    """
    groups = _groups(members, near, splitting)
    if len(groups) < 2:
        raise UsageError("--validation: all traces belong together, so none can be kept for validation")

    def drawn(group: list[int]) -> str:
        name = min(_name(members[number], splitting) for number in group)
        return hashlib.sha256(f"{seed} {name}".encode()).hexdigest()

    room = max(1, round(splitting.share * len(members)))
    chosen: set[int] = set()
    for group in sorted(groups, key=drawn):
        if len(chosen) + len(group) <= room and len(chosen) + len(group) < len(members):
            chosen.update(group)
    smallest: list[int] = min(groups, key=lambda group: (len(group), drawn(group)))
    return chosen or set(smallest)


def _name(member: Grouped, splitting: Splitting) -> str:
    cell = _cell(member, splitting)
    return member.photo if cell is None else repr(cell)


def _cell(member: Grouped, splitting: Splitting) -> tuple[Json, ...] | None:
    """Where a trace belongs by its columns; None where they say nothing."""
    if all(value is None for value in member.place):
        return None
    return tuple(_stepped(value, splitting.step) for value in member.place)


def _stepped(value: Json, step: float | None) -> Json:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return math.floor(value / step) if is_number and step is not None else value


def _groups(
    members: Sequence[Grouped], near: Iterable[tuple[str, str]], splitting: Splitting
) -> list[list[int]]:
    """The positions of what belongs together, directly or by others."""
    joined = _Joined()
    for number, member in enumerate(members):
        joined.join(number, ("photo", member.photo))
        if (cell := _cell(member, splitting)) is not None:
            joined.join(number, ("place", cell))
    for one, other in near:
        joined.join(("photo", one), ("photo", other))
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for number in range(len(members)):
        groups[joined.first(number)].append(number)
    return list(groups.values())


class _Joined:
    """Things that belong together, each group known by one of them."""

    def __init__(self) -> None:
        self._next: dict[Hashable, Hashable] = {}

    def first(self, thing: Hashable) -> Hashable:
        while (following := self._next.get(thing, thing)) != thing:
            self._next[thing] = self._next.get(following, following)
            thing = following
        return thing

    def join(self, one: Hashable, other: Hashable) -> None:
        first = self.first(one)
        self._next[first] = self.first(other)
