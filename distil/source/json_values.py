"""Dataset values → JSON values, each form stated, nothing lost that JSON can say.

| value                      | JSON                                                         |
|----------------------------|--------------------------------------------------------------|
| datetime, date, time       | ISO 8601 text                                                |
| timedelta                  | seconds, a number                                            |
| Decimal, UUID, path        | text                                                         |
| bytes                      | `{"base64": "…"}`                                            |
| a picture in another column| `{"picture_sha256": "…", "num_bytes": n, "path": … or null}` |
| numpy scalar, array        | the number; nested lists                                     |
| NaN, NaT                   | null                                                         |
| infinity                   | the text `Infinity` or `-Infinity`                           |
| set, tuple                 | list                                                         |
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from distil.records import Json


def to_json(value: Any) -> Json:  # noqa: PLR0911, PLR0912 - one line of the table each
    """The JSON form of a dataset value, as the module's table states it; anything else as its text."""
    match value:
        case None | bool() | int() if not isinstance(value, np.generic):
            return value
        case float():
            return _number(float(value))
        case str():
            return str(value).encode("utf-8", "replace").decode("utf-8")
        case bytes() | bytearray() | memoryview():
            return {"base64": base64.b64encode(bytes(value)).decode("ascii")}
        case dt.datetime():
            return None if value != value else value.isoformat()  # noqa: PLR0124 - NaT is not itself
        case dt.date() | dt.time():
            return value.isoformat()
        case dt.timedelta():
            return _number(value.total_seconds())
        case np.datetime64():
            return None if np.isnat(value) else str(value)
        case np.timedelta64():
            return None if np.isnat(value) else float(value / np.timedelta64(1, "s"))
        case np.floating():  # np.longdouble.item() is a np.longdouble again
            return _number(float(value))
        case np.generic():
            return to_json(value.item())
        case np.ndarray():
            return [to_json(item) for item in value] if value.ndim else to_json(value[()])
        case Mapping():
            return _mapping(value)
        case list() | tuple():
            return [to_json(item) for item in value]
        case set() | frozenset():
            return sorted((to_json(item) for item in value), key=repr)
        case _:
            return str(value)


def _number(value: float) -> Json:
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else ("Infinity" if value > 0 else "-Infinity")


def _mapping(value: Mapping[Any, Any]) -> Json:
    if set(value) == {"bytes", "path"} and isinstance(value["bytes"], bytes):
        data = value["bytes"]
        digest = hashlib.sha256(data).hexdigest()
        return {"picture_sha256": digest, "num_bytes": len(data), "path": to_json(value["path"])}
    return {str(to_json(key)): to_json(item) for key, item in value.items()}


def has_labels(feature: Json) -> bool:
    """Whether a feature, as `Features.to_dict` writes it, has class labels in it, however deep."""
    if isinstance(feature, list):
        return any(map(has_labels, feature))
    if not isinstance(feature, dict):
        return False
    kind = _kind(feature)
    if kind is None:
        return any(map(has_labels, feature.values()))
    return kind == "ClassLabel" or has_labels(feature.get("feature"))


def with_label_names(value: Any, feature: Json) -> Any:
    """The value with the names of its class labels; a number that has no name (-1, say) stays a number."""
    if isinstance(feature, dict) and _kind(feature) == "ClassLabel":
        names = feature["names"]
        return names[value] if isinstance(value, int) and 0 <= value < len(names) else value
    if isinstance(value, Mapping):
        return {name: with_label_names(item, _of_field(feature, name)) for name, item in value.items()}
    if isinstance(value, list):
        return [with_label_names(item, _of_item(feature)) for item in value]
    return value


def _kind(feature: Mapping[str, Json]) -> str | None:
    """The class of a feature, None for a struct; a field of one may have any name."""
    kind = feature.get("_type")
    return kind if isinstance(kind, str) else None


def _of_field(feature: Json, name: str) -> Json:
    if not isinstance(feature, dict):
        return None
    if _kind(feature) is None:
        return feature.get(name)
    inner = feature.get("feature")  # datasets 3: a list of structs is kept as a struct of lists
    return [inner.get(name)] if isinstance(inner, dict) and _kind(inner) is None else None


def _of_item(feature: Json) -> Json:
    if isinstance(feature, list):
        return feature[0] if feature else None
    return feature.get("feature") if isinstance(feature, dict) and _kind(feature) is not None else None
