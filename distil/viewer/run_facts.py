"""What a run's record and its failures say, as rows for a page."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distil.errors import DistilError
from distil.records import Failure, Json, SampleId
from distil.store.claim import read_runs
from distil.store.folder import FAILED_SAMPLES, read_failures
from distil.store.summary import mapping_of
from distil.store.trace_settings import teacher_lines
from distil.viewer.visible import finite

_MAX_MESSAGES = 12  # of a kind of failure
_MAX_SAMPLES = 8  # named for a message
_LONG_CHARS = 90
_OPTIONS = ("dataset_path", "order", "seed", "num_samples", "max_workers", "output_dir")


@dataclass(frozen=True)
class Setting:
    """A setting by its name, with its value in each folder as text; None where a folder does not say."""

    name: str
    values: tuple[str | None, ...]

    @property
    def differs(self) -> bool:
        return len(set(self.values)) > 1

    @property
    def is_long(self) -> bool:
        return any(value is not None and (len(value) > _LONG_CHARS or "\n" in value) for value in self.values)


@dataclass(frozen=True)
class FailureKindRows:
    """Failures of one kind: how many, and for each message how many and of which samples."""

    kind: str
    count: int
    messages: Sequence[tuple[str, int, str]]
    num_more: int


@dataclass(frozen=True)
class RunFacts:
    """What the record of a folder says."""

    name: str
    folder: str
    runs: Sequence[Mapping[str, Json]]  # as they are recorded, the last one last
    warnings: Sequence[str]
    problem: str | None = None
    teacher: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    history: Sequence[Mapping[str, Json]] = field(default_factory=list)

    @property
    def last(self) -> Mapping[str, Json]:
        return self.runs[-1] if self.runs else {}

    @property
    def settings(self) -> Mapping[str, Json]:
        return mapping_of(self.last.get("settings"))


def read_facts(folder: Path, name: str) -> RunFacts:
    """The facts of a folder; a record that cannot be read is one of them."""
    try:
        runs, problem = [run for run in read_runs(folder) if isinstance(run, dict)], None
    except DistilError as error:
        runs, problem = [], str(error)
    last: Mapping[str, Json] = runs[-1] if runs else {}
    settings = mapping_of(last.get("settings"))
    warnings = list(dict.fromkeys(str(text) for run in runs for text in _list(run.get("warnings"))))
    return RunFacts(
        name,
        str(folder),
        runs,
        warnings,
        problem,
        teacher=list(teacher_lines(settings)) if settings else [],
        facts=list(_facts(last)),
        history=[_history_row(number, run) for number, run in enumerate(runs, start=1)],
    )


def _facts(run: Mapping[str, Json]) -> Iterable[tuple[str, str]]:
    settings, dataset = mapping_of(run.get("settings")), mapping_of(run.get("dataset"))
    probe, options = mapping_of(run.get("probe")), mapping_of(run.get("options"))
    if "model" in settings:
        yield "teacher", _text(settings["model"])
    if probe.get("api_base"):
        yield "at", _text(probe["api_base"])
    if settings:
        yield "tools", ", ".join(_tool_names(settings)) or "none"
        yield "task", _text(settings.get("task"))
    if dataset:
        split = f", split {dataset['split']}" if dataset.get("split") else ""
        yield "dataset", f"{dataset.get('source') or dataset.get('path')}{split}"
        if isinstance(dataset.get("num_rows"), int):
            yield "rows", f"{dataset['num_rows']:,}"
    for name in ("temperature", "max_turns", "max_tokens", "tool_mode", "coordinates", "crop_from", "seed"):
        if settings.get(name) is not None:
            yield name.replace("_", " "), _text(settings[name])
    if options.get("order") not in (None, "dataset"):
        yield "order", _text(options["order"])


def _tool_names(settings: Mapping[str, Json]) -> list[str]:
    schemas = settings.get("tool_schemas")
    names = [mapping_of(mapping_of(schema).get("function")).get("name") for schema in _list(schemas)]
    return [name for name in names if isinstance(name, str)]


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []


def _history_row(number: int, run: Mapping[str, Json]) -> Mapping[str, Json]:
    spent = mapping_of(run.get("spent"))
    costs = [mapping_of(spent.get(state)).get("cost_usd") for state in ("answered", "retried")]
    known = [cost for cost in map(finite, costs) if cost is not None]
    versions = mapping_of(run.get("versions"))
    return {
        "number": number,
        "started": _time_text(run.get("started_at")),
        "seconds": finite(run.get("seconds")),
        "num_finished": run.get("num_finished"),
        "num_failed": run.get("num_failed"),
        "stopped_by": run.get("stopped_by"),
        "cost_usd": sum(known) if known else None,
        "version": versions.get("distil"),
    }


def _time_text(text: Json) -> str:
    """A stated time in the zone of this machine, to the minute."""
    try:
        return dt.datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M")
    except (TypeError, ValueError):
        return "–" if text is None else str(text)


def settings_rows(all_facts: Sequence[RunFacts]) -> list[Setting]:
    """Every setting of the last runs, and the options that say which samples, in their order."""
    flat = [_flat(facts) for facts in all_facts]
    names = dict.fromkeys(name for values in flat for name in values)
    return [Setting(name, tuple(values.get(name) for values in flat)) for name in names]


def _flat(facts: RunFacts) -> dict[str, str]:
    last = facts.last
    values: dict[str, str] = {}
    for name, value in facts.settings.items():
        if name == "tool_schemas":
            values["tools"] = ", ".join(_tool_names(facts.settings)) or "none"
            values["tool schemas"] = json.dumps(value, ensure_ascii=False, indent=1)
        elif isinstance(value, dict):
            values |= {f"{name}.{key}": _text(inner) for key, inner in value.items()}
        else:
            values[name] = _text(value)
    dataset = mapping_of(last.get("dataset"))
    values |= {
        f"dataset.{name}": _text(dataset[name])
        for name in ("source", "split", "fingerprint")
        if name in dataset
    }
    options = mapping_of(last.get("options"))
    values |= {f"--{name}": _text(options[name]) for name in _OPTIONS if name in options}
    versions = mapping_of(last.get("versions"))
    return values | {f"version of {name}": _text(value) for name, value in versions.items()}


def _text(value: Json) -> str:
    if isinstance(value, str):
        return value
    return "–" if value is None else json.dumps(value, ensure_ascii=False)


def failure_rows(
    folder: Path, is_made: Mapping[SampleId, bool] | frozenset[SampleId]
) -> list[FailureKindRows]:
    """The failures of samples that have no trace, by kind and message, the most frequent first."""
    failures = [
        each for each in read_failures(folder / FAILED_SAMPLES)[0].values() if each.sample_id not in is_made
    ]
    kinds = Counter(failure.kind.value for failure in failures)
    return [
        _kind_rows(kind, [each for each in failures if each.kind.value == kind])
        for kind, _ in kinds.most_common()
    ]


def _kind_rows(kind: str, failures: Sequence[Failure]) -> FailureKindRows:
    messages = Counter(failure.message for failure in failures)
    rows = []
    for message, count in messages.most_common(_MAX_MESSAGES):
        ids = sorted(failure.sample_id for failure in failures if failure.message == message)
        named = ", ".join(map(str, ids[:_MAX_SAMPLES])) + (" …" if len(ids) > _MAX_SAMPLES else "")
        rows.append((message, count, named))
    return FailureKindRows(kind, len(failures), rows, max(0, len(messages) - _MAX_MESSAGES))
