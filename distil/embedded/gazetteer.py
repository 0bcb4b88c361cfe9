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
class PopulatedPlace:
    """One of GeoNames; `han_name` is the name on a local sign where signs are in Han characters."""

    name: str
    han_name: str
    country: str
    lat: float
    lon: float
    population: int


@dataclass(frozen=True, slots=True)
class PlaceMatch:
    """A place found in a line of text, and whether all of the line names it and with no letter changed."""

    place: PopulatedPlace
    written: str
    is_whole: bool
    is_exact: bool


@cache
def load_gazetteer() -> tuple[tuple[PopulatedPlace, ...], dict[str, int]]:
    """All places, largest first, and which of them a folded name stands for (about half a second, once)."""
    places: list[PopulatedPlace] = []
    by_name: dict[str, int] = {}
    by_alias: dict[str, int] = {}
    with gzip.open(TABLE_PATH, "rt", encoding="utf-8") as table:
        for index, line in enumerate(table):
            name, han_name, country, lat, lon, population, keys = line.rstrip("\n").split("\t")
            places.append(PopulatedPlace(name, han_name, country, float(lat), float(lon), int(population)))
            own_key, *alias_keys = keys.split("|")
            by_name.setdefault(own_key, index)
            for key in alias_keys:
                by_alias.setdefault(key, index)
    # A place's own name beats another place's nickname; among equals the larger place wins.
    return tuple(places), by_alias | by_name


def find_place(line: str) -> PlaceMatch | None:
    """Find the place that a line of text names: the whole line, then with one typo, then a part of it."""
    whole, *parts = [*candidate_names(line)] or [""]
    return find_exact(whole, is_whole=True) or find_with_typo(whole) or find_part(parts)


def find_exact(written: str, is_whole: bool) -> PlaceMatch | None:
    places, place_by_key = load_gazetteer()
    found = place_by_key.get(fold(written))
    return None if found is None else PlaceMatch(places[found], written, is_whole, is_exact=is_whole)


def find_part(parts: list[str]) -> PlaceMatch | None:
    # Nearly every syllable is a small town somewhere, so a part must be long enough to mean something.
    telling = (part for part in parts if len(part) >= MIN_LETTERS_FOR_PART or not fold(part).isascii())
    return next(filter(None, (find_exact(part, is_whole=False) for part in telling)), None)


def find_with_typo(written: str) -> PlaceMatch | None:
    places, place_by_key = load_gazetteer()
    key = fold(written)
    near = near_latin(key, place_by_key) if key.isascii() else near_han(key, place_by_key)
    return PlaceMatch(places[min(near)], written, is_whole=True, is_exact=False) if near else None


def near_latin(key: str, place_by_key: dict[str, int]) -> set[int]:
    if len(key) < MIN_LETTERS_FOR_TYPO:
        return set()
    return {place_by_key[near] for near in one_letter_away(key) if near in place_by_key}


def near_han(key: str, place_by_key: dict[str, int]) -> set[int]:
    if len(key) < MIN_HAN_FOR_TYPO:
        return set()
    near = {place_by_key[other] for other in place_by_key if is_one_character_off(key, other)}
    return near if len(near) == 1 else set()  # among many candidates a guess would be idle


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
