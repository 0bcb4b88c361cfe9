"""Place names to places: the shipped GeoNames table, and how a line read on a sign is looked up in it."""

from __future__ import annotations

import gzip
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

DATA_FOLDER = Path(__file__).parent / "data"
TABLE_PATH = DATA_FOLDER / "gazetteer.tsv.gz"
MAX_WORDS_IN_NAME = 5
MIN_LETTERS_FOR_TYPO = 6
MIN_LETTERS_FOR_PART = 5
MIN_HAN_FOR_TYPO = 3
LATIN_LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Letters that Unicode does not decompose into a plain letter and an accent.
PLAIN_LETTERS = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "æ": "ae", "œ": "oe", "þ": "th", "ð": "d", "ı": "i", "ħ": "h", "ŋ": "n"}
)
# Words found on shop fronts and signs that are also the names of towns somewhere.
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        open bar hotel cafe caffe taxi bank museum exit market parking park station centre center centro
        zentrum stop shop bus pub pizza police school hospital street road avenue north south east west city
        town km 出口 酒店 中心 市場 市场 中央 商店 停車場 停车场
        """,
    )
)


@dataclass(frozen=True, slots=True)
class Place:
    """One populated place; `han_name` is the name on a local sign where signs are in Han characters."""

    name: str
    han_name: str
    country: str
    lat: float
    lon: float
    population: int


@dataclass(frozen=True, slots=True)
class Match:
    """A place found in a line of text, and whether all of the line names it and with no letter changed."""

    place: Place
    written: str
    is_whole: bool
    is_exact: bool


@dataclass(frozen=True, slots=True)
class Gazetteer:
    """All places, largest first, and the place each folded name stands for."""

    places: tuple[Place, ...]
    place_by_key: dict[str, int]

    def find(self, line: str) -> Match | None:
        """Find the place that a line of text names: the whole line, then with one typo, then a part of it."""
        whole, *parts = [*candidate_names(line)] or [""]
        return self._find_exact(whole, is_whole=True) or self._find_with_typo(whole) or self._find_part(parts)

    def _find_exact(self, written: str, is_whole: bool) -> Match | None:
        found = self.place_by_key.get(fold(written))
        return None if found is None else Match(self.places[found], written, is_whole, is_exact=is_whole)

    def _find_part(self, parts: list[str]) -> Match | None:
        # Nearly every syllable is a small town somewhere, so a part must be long enough to mean something.
        telling = (part for part in parts if len(part) >= MIN_LETTERS_FOR_PART or not fold(part).isascii())
        return next(filter(None, (self._find_exact(part, is_whole=False) for part in telling)), None)

    def _find_with_typo(self, written: str) -> Match | None:
        key = fold(written)
        near = self._near_latin(key) if key.isascii() else self._near_han(key)
        return Match(self.places[min(near)], written, is_whole=True, is_exact=False) if near else None

    def _near_latin(self, key: str) -> list[int]:
        if len(key) < MIN_LETTERS_FOR_TYPO:
            return []
        return [self.place_by_key[near] for near in one_letter_away(key) if near in self.place_by_key]

    def _near_han(self, key: str) -> list[int]:
        if len(key) < MIN_HAN_FOR_TYPO:
            return []
        near = {self.place_by_key[other] for other in self.place_by_key if is_one_character_off(key, other)}
        return list(near) if len(near) == 1 else []  # among many candidates a guess would be idle


@cache
def load_gazetteer() -> Gazetteer:
    """Load the shipped table (about half a second, once)."""
    places: list[Place] = []
    by_name: dict[str, int] = {}
    by_alias: dict[str, int] = {}
    with gzip.open(TABLE_PATH, "rt", encoding="utf-8") as table:
        for index, line in enumerate(table):
            name, han_name, country, lat, lon, population, keys = line.rstrip("\n").split("\t")
            places.append(Place(name, han_name, country, float(lat), float(lon), int(population)))
            own_key, *alias_keys = keys.split("|")
            by_name.setdefault(own_key, index)
            for key in alias_keys:
                by_alias.setdefault(key, index)
    # A place's own name beats another place's nickname; among equals the larger place wins.
    return Gazetteer(tuple(places), by_alias | by_name)


def fold(text: str) -> str:
    """Fold a name to its lookup key: no case, accents, spaces or punctuation."""
    plain = unicodedata.normalize("NFKD", text.casefold().translate(PLAIN_LETTERS))
    return unicodedata.normalize("NFC", "".join(letter for letter in plain if letter.isalnum()))


def candidate_names(line: str) -> Iterator[str]:
    """Yield the runs of words in a line that could be a name, longest first, stop words left out."""
    words = [word for word in re.split(r"[\s,;:/|()\[\]→←↑↓·]+", line) if not is_distance(word)]
    for length in range(min(len(words), MAX_WORDS_IN_NAME), 0, -1):
        for start in range(len(words) - length + 1):
            written = " ".join(words[start : start + length])
            if fold(written) not in STOP_WORDS and len(fold(written)) > 1:
                yield written


def is_distance(word: str) -> bool:
    """Say whether a word holds no name: "12", "km", "12km", or no letters at all."""
    return re.fullmatch(r"[\W\d_]*(km)?[\W_]*", word.casefold()) is not None


def one_letter_away(key: str) -> Iterator[str]:
    """Yield every key that differs by one letter left out, put in or changed."""
    for at in range(len(key) + 1):
        head, tail = key[:at], key[at:]
        yield head + tail[1:]
        for letter in LATIN_LETTERS:
            yield head + letter + tail
            yield head + letter + tail[1:]


def is_one_character_off(key: str, other: str) -> bool:
    """Say whether two names of the same length differ in one character."""
    return len(key) == len(other) and sum(a != b for a, b in zip(key, other, strict=True)) == 1
