"""Whose a row is: the columns of its dataset that name a licence, an author or a source."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from distil.records import Json

ATTRIBUTION = "attribution"  # the column of an export's rows
_NAMES = re.compile(
    r"(?<![a-z])(licen[cs]es?|attributions?|authors?|sources?|credits?|copyrights?|photographers?|owners?)(?![a-z])"
)


def is_attribution(name: str) -> bool:
    """Whether a column's name, or one of the words in it, says that it is of licence or origin."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    return _NAMES.search(words) is not None


def attribution_of(row: Mapping[str, Json]) -> str:
    """What a row of a dataset says of licence and origin, as JSON text, for Arrow has no other free form."""
    return json.dumps(dict(_stated(row)), ensure_ascii=False, sort_keys=True)


def _stated(row: Mapping[str, Json], before: str = "") -> Iterator[tuple[str, Json]]:
    for key, value in row.items():
        name = before + key
        if isinstance(value, dict):
            yield from _stated(value, f"{name}.")
        elif is_attribution(name) and value is not None:
            yield name, value
