"""The data card of an export: how its rows were chosen, what is in them, whose they are, what made them."""

from __future__ import annotations

import json
import math
import platform
import re
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import datasets

from distil.exports.conversation import is_attribution
from distil.exports.form import ExportReport
from distil.exports.selection import Selected, indexes
from distil.index.columns import Column
from distil.index.query import Query
from distil.records import Json
from distil.store.trace_file import load_json, versions_now
from distil.store.trace_settings import json_sha256

CARD, CARD_FORMAT = "card.json", "distil-card/1"
ROW_TOKENS = "row_tokens"
_FIGURES = (
    "turns",
    "calls",
    "failed_calls",
    "clamped_boxes",
    "prompt_tokens",
    "completion_tokens",
    "reasoning_chars",
)
_KINDS = ("task", "model", "tools", "stop_reason", "finish_reason", "without_tools", "mark")
_MAX_VALUES = 250  # of a column that is listed; a column with more says nothing in a list
_MAX_NAMED = 1000  # licences and authors that are named
_SHOWN_VALUES = 15
_MAX_CELL_CHARS = 80
_MAX_SETTING_CHARS = 100
_NUM_BINS = 20
_MAX_FIGURE = 1e15  # what is beyond measures nothing, and cannot be drawn


@dataclass
class Contents:
    """What the exported traces say, column by column."""

    figures: dict[str, array[float]] = field(default_factory=dict)
    values: dict[str, Counter[Json]] = field(default_factory=dict)
    attribution: dict[str, Counter[Json]] = field(default_factory=dict)
    settings: dict[str, Path] = field(default_factory=dict)  # by hash: a trace that has them
    num_settings: Counter[str] = field(default_factory=Counter)
    fingerprints: Counter[str] = field(default_factory=Counter)


def read_contents(selected: Selected, exported: Iterable[Path]) -> Contents:
    """What the index says of the exported traces."""
    meant, contents = set(exported), Contents()
    figures = [column.name for column in selected.columns if _is_figure(column)]
    listed = [
        column
        for column in selected.columns
        if column.name in _KINDS or (column.source == "row" and not _is_figure(column))
    ]
    names = ["run", "file", "settings_sha256", "fingerprint", *figures, *(column.name for column in listed)]
    for index, folders in indexes(selected.folders):
        with closing(index):
            known = {column.name for column in index.columns}
            asked = [name for name in names if name in known]
            for row in index.rows(Query(), asked):
                cells = dict(zip(asked, row, strict=True))
                path = folders[int(cells["run"])] / str(cells["file"])
                if path in meant:
                    _add(contents, path, cells, figures, listed)
    return contents


def _is_figure(column: Column) -> bool:
    is_number_of_row = column.source == "row" and column.kind == "number"
    return column.source == "metric" or column.name in _FIGURES or is_number_of_row


def _add(
    contents: Contents,
    path: Path,
    cells: Mapping[str, Json],
    figures: Sequence[str],
    listed: Sequence[Column],
) -> None:
    for name in figures:
        value = cells.get(name)
        if value is not None and abs(value) < _MAX_FIGURE:
            contents.figures.setdefault(name, array("d")).append(value)
    for column in listed:
        value = cells.get(column.name)
        if column.source == "row" and is_attribution(column.heading):
            contents.attribution.setdefault(column.name, Counter())[value] += 1
            continue
        counts = contents.values.setdefault(column.name, Counter())
        if column.name == "tools":  # how many traces called each
            counts.update(value.split(",") if value else [None])
        elif len(counts) <= _MAX_VALUES:
            counts[value] += 1
    settings = str(cells["settings_sha256"])
    contents.num_settings[settings] += 1
    contents.settings.setdefault(settings, path)
    contents.fingerprints[str(cells["fingerprint"])] += 1


def card_json(selected: Selected, contents: Contents, report: ExportReport, command: str) -> dict[str, Json]:
    """The card; nothing in it depends on the clock, the number of workers or where the traces lie."""
    figures = {ROW_TOKENS: array("d", report.row_tokens), **contents.figures}
    counts = report.as_json()
    return {
        "format": CARD_FORMAT,
        "command": command,
        "versions": {
            **versions_now(),
            "python": platform.python_version(),
            "datasets": datasets.__version__,
        },
        "traces_found": selected.num_found,
        "filters": [step.as_json() for step in selected.steps],
        **{name: counts[name] for name in ("left_out", "refused_by_reason", "rows")},
        "figures": {name: figure_json(values) for name, values in figures.items() if len(values)},
        "values": {
            name: _counts(found, _MAX_VALUES) for name, found in contents.values.items() if _is_telling(found)
        },
        "attribution": {
            name: _counts(found, _MAX_NAMED)
            for name, found in contents.attribution.items()
            if set(found) != {None}
        },
        "datasets": dict(sorted(contents.fingerprints.items())),
        "settings": _settings_json(contents),
    }


def figure_json(values: Sequence[float]) -> dict[str, Json]:
    """How numbers are spread: whole numbers of few kinds one by one, others in bins of the same width."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    if low == high:
        edges = [low, low]
    elif all(value.is_integer() for value in ordered) and high - low < _NUM_BINS:
        edges = [low - 0.5 + number for number in range(int(high - low) + 2)]
    else:
        edges = [low + (high - low) * number / _NUM_BINS for number in range(_NUM_BINS)] + [high]
    bins = [0] * (len(edges) - 1)
    for value in ordered:
        bins[min(len(bins), bisect_right(edges, value)) - 1] += 1
    return {
        "traces": len(ordered),
        "lowest": low,
        "median": ordered[len(ordered) // 2],
        "mean": math.fsum(ordered) / len(ordered),
        "highest": high,
        "edges": edges,
        "bins": bins,
    }


def _is_telling(counts: Counter[Json]) -> bool:
    """Whether a list of a column's values says more than the rows themselves."""
    return set(counts) != {None} and len(counts) <= _MAX_VALUES and max(counts.values()) > 1


def _counts(counts: Counter[Json], most: int) -> list[dict[str, Json]]:
    """Values with how many traces have them, most first; those that are not named are counted together."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], _json_text(item[0])))
    named: list[dict[str, Json]] = [{"value": value, "traces": number} for value, number in ordered[:most]]
    rest = ordered[most:]
    if rest:
        named.append({"other_values": len(rest), "traces": sum(number for _, number in rest)})
    return named


def _settings_json(contents: Contents) -> dict[str, Json]:
    """What shaped the traces: settings that all share, and those in which they differ with their values."""
    found: list[tuple[Mapping[str, Json], int]] = []
    for digest, path in sorted(contents.settings.items()):
        settings = load_json(path).get("settings")
        found.append((settings if isinstance(settings, dict) else {}, contents.num_settings[digest]))
    names = sorted({name for settings, _ in found for name in settings})
    same: dict[str, Json] = {}
    differing: dict[str, Json] = {}
    for name in names:
        values: Counter[str] = Counter()
        for settings, number in found:
            values[json.dumps(_short(settings.get(name)), ensure_ascii=False, sort_keys=True)] += number
        listed = [{"value": json.loads(text), "traces": number} for text, number in sorted(values.items())]
        if len(listed) == 1:
            same[name] = listed[0]["value"]
        else:
            differing[name] = listed
    return {"same": same, "differing": differing}


def _short(value: Json) -> Json:
    """A setting as it is, or by its hash where it is a long text or a list of schemas."""
    text = _json_text(value)
    return value if len(text) <= _MAX_SETTING_CHARS else f"sha256 {json_sha256(value)}"


# --- in words ---


def card_text(card: Mapping[str, Json], pictures: Mapping[str, str], why_no_pictures: str = "") -> str:
    """The card in Markdown; `pictures` are the plots, by what they show."""
    parts = [
        "## How the rows were chosen",
        _filters_text(card),
        "## What is in them",
        *(f"![{title}]({name})" for title, name in pictures.items()),
        why_no_pictures,
        _figures_text(card["figures"]),
        *_all_values_text(card["values"]),
        *_attribution_text(card["attribution"]),
        "## What made them",
        _settings_text(card),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _filters_text(card: Mapping[str, Json]) -> str:
    rows = [(_code(step["filter"]), f"{step['before']:,}", f"{step['after']:,}") for step in card["filters"]]
    text = f"{card['traces_found']:,} trace files were there.\n\n"
    text += _table(("filter", "traces before", "after"), rows) if rows else "No filter was asked for."
    told = [f"{count:,} were left out: {reason}." for reason, count in card["left_out"].items()]
    told += [f"{count:,} were refused: {reason}." for reason, count in card["refused_by_reason"].items()]
    splits = ", ".join(f"{count:,} {split}" for split, count in card["rows"].items())
    return "\n".join([text, "", *(f"- {line}" for line in told), f"- Rows: {splits}."])


def _figures_text(figures: Mapping[str, Json]) -> str:
    heads = ("lowest", "median", "mean", "highest")
    rows = [
        (_code(name), f"{each['traces']:,}", *(_number_text(each[head]) for head in heads))
        for name, each in figures.items()
    ]
    return _table(("figure", "traces", *heads), rows)


def _number_text(value: float) -> str:
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _all_values_text(values: Mapping[str, Json]) -> Iterator[str]:
    same = {name: found[0] for name, found in values.items() if len(found) == 1}
    if same:
        yield "In all rows the same:"
        yield _table(("column", "value"), [(_code(name), _value_text(each)) for name, each in same.items()])
    yield from (_values_text(name, found) for name, found in values.items() if name not in same)


def _values_text(name: str, found: Sequence[Mapping[str, Json]]) -> str:
    rows = [(_value_text(each), f"{each['traces']:,}") for each in found[:_SHOWN_VALUES]]
    rest = len(found) - _SHOWN_VALUES
    more = f"\n\n{rest:,} more values are in `{CARD}`." if rest > 0 else ""
    return _table((_code(name), "traces"), rows) + more


def _attribution_text(found: Mapping[str, Json]) -> Iterator[str]:
    yield "## Licences and attribution"
    if not found:
        yield (
            "The dataset has no column that names a licence, an author or a source: who passes these rows on "
            "has to know."
        )
        return
    yield "Each row has these in its column `attribution`."
    yield from (_values_text(name, each) for name, each in found.items())


def _settings_text(card: Mapping[str, Json]) -> str:
    settings = card["settings"]
    differing = [
        (_code(name), _code(_json_text(each["value"])), f"{each['traces']:,}")
        for name, values in settings["differing"].items()
        for each in values
    ]
    same = [(_code(name), _code(_json_text(value))) for name, value in settings["same"].items()]
    parts = []
    if differing:
        parts += ["The traces differ in:", _table(("setting", "value", "traces"), differing)]
    if same:
        parts += ["All traces have:", _table(("setting", "value"), same)]
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    parts.append(f"Exported by {versions}. SHA-256 of the list of rows: `{card['selection_sha256']}`.")
    return "\n\n".join(parts)


def _value_text(each: Mapping[str, Json]) -> str:
    if "value" not in each:
        return f"{each['other_values']:,} others"
    value = each["value"]
    return "nothing" if value is None else _code(value if isinstance(value, str) else json.dumps(value))


def _json_text(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False)


def _code(value: str) -> str:
    """A value of the data in a cell of a table, whatever it holds."""
    text = re.sub(r"\s+", " ", value.replace("`", "'"))
    text = text if len(text) <= _MAX_CELL_CHARS else text[: _MAX_CELL_CHARS - 1] + "…"
    return "`" + text.replace("|", "\\|") + "`" if text.strip() else "an empty text"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
