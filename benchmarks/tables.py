"""The figures of a run as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from measure import Row

Column = tuple[str, str, str]  # field, heading, format

_RUN: tuple[Column, ...] = (
    ("contestant", "", ""),
    ("calls_a_second", "calls/s", ".1f"),
    ("calls_a_second_with_start", "with the start", ".1f"),
    ("cpu_ms_per_call", "CPU ms/call", ".2f"),
    ("cpu_ms_per_call_without_start", "without the start", ".2f"),
    ("switches_per_call", "context switches/call", ".1f"),
    ("peak_mb", "peak MB", ".0f"),
)
_SAID: dict[str, tuple[Column, ...]] = {  # section → columns, the headings of rows first
    "workers": (("workers", "workers", ".0f"), *_RUN, ("speed_up", "× one worker", ".2f")),
    "slow_teacher": (
        ("seconds_per_call", "s a call", "g"),
        ("workers", "workers", ".0f"),
        ("contestant", "", ""),
        ("share_of_ideal", "share of ideal", ".1%"),
        ("calls_a_second", "calls/s", ".1f"),
        ("max_in_flight", "most in flight", ".0f"),
        ("cpu_ms_per_call", "CPU ms/call", ".2f"),
        ("peak_mb", "peak MB", ".0f"),
    ),
    "memory": (
        ("part", "against", ""),
        ("num_rows", "rows", ",.0f"),
        ("workers", "workers", ".0f"),
        ("contestant", "", ""),
        ("peak_mb", "peak MB", ".0f"),
        ("allowed_mb", "workers × (2 files + 2 MB)", ".0f"),
    ),
    "journal": (("workers", "workers", ".0f"), *_RUN),
    "level": (
        ("server", "server", ""),
        ("contestant", "", ""),
        ("workers", "level or ceiling", ".0f"),
        ("calls_a_second_late", "calls/s", ".1f"),
        ("calls_a_second", "over all of it", ".1f"),
        ("max_in_flight", "most in flight", ".0f"),
        ("num_refused", "429", ".0f"),
        ("best_fixed", "best fixed level", ".0f"),
        ("share_of_best", "of its rate", ".0%"),
        ("share_of_best_whole", "over all of it", ".0%"),
    ),
    "adaptive": (
        ("world", "rows", ""),
        ("num_draws", "drawn", ",.0f"),
        ("targets", "targets", ""),
        ("lowest", "hardest rows", ".2f"),
        ("highest", "easiest rows", ".2f"),
        ("contestant", "", ""),
        ("mean_miss", "missed by: mean", ".3f"),
        ("p95_miss", "p95", ".3f"),
        ("worst_miss", "worst", ".3f"),
        ("share_within", "within 0.02", ".0%"),
        ("num_runs", "runs", ".0f"),
    ),
    "sandbox": (
        ("contestant", "", ""),
        ("p50_ms", "one thread: p50 ms", ".1f"),
        ("p95_ms", "p95 ms", ".1f"),
        ("loaded_calls_a_second", "8 threads: calls/s", ".0f"),
        ("loaded_p50_ms", "p50 ms", ".1f"),
        ("loaded_p95_ms", "p95 ms", ".1f"),
        ("loaded_p95_ms_in_slot", "p95 ms from its slot on", ".1f"),
        ("start_ms", "start ms", ".0f"),
        ("idle_mb", "idle MB", ".0f"),
    ),
    "replay": (
        ("contestant", "", ""),
        ("workers", "workers", ""),
        ("num_traces", "traces", ".0f"),
        ("traces_a_second", "traces/s", ".1f"),
        ("cpu_ms_per_trace", "CPU ms/trace", ".1f"),
        ("start_seconds", "start s", ".2f"),
    ),
    "index": (
        ("traces", "traces", ",.0f"),
        ("contestant", "", ""),
        ("make_seconds", "s to make it", ".1f"),
        ("make_cpu_seconds", "CPU s", ".1f"),
        ("unchanged_seconds", "s where nothing changed", ".2f"),
        ("changed_seconds", "where 100 did", ".2f"),
        ("first_page_ms", "first page ms", ".0f"),
        ("score_range_ms", "by score ms", ".0f"),
        ("country_ms", "by country ms", ".0f"),
        ("search_ms", "words ms", ".0f"),
        ("where_ms", "`where`, sorted ms", ".0f"),
        ("where_cpu_ms", "CPU ms", ".0f"),
        ("peak_mb", "peak MB", ".0f"),
        ("mb", "MB on disk", ".0f"),
    ),
    "viewer": (
        ("traces", "traces", ",.0f"),
        ("contestant", "", ""),
        ("open_seconds", "s to open the index", ".2f"),
        ("first_seconds", "s to the first page", ".2f"),
        ("again_ms", "again ms", ".0f"),
        ("list_ms", "list ms", ".0f"),
        ("filter_ms", "filtered, sorted ms", ".0f"),
        ("search_ms", "words ms", ".0f"),
        ("map_ms", "map ms", ".0f"),
        ("mb", "MB", ".0f"),
        ("mb_after", "MB after 200 requests", ".0f"),
    ),
    "start": (
        ("contestant", "", ""),
        ("what", "until", ""),
        ("seconds", "s", ".2f"),
        ("cpu_seconds", "CPU s until then", ".2f"),
    ),
    "signs": (
        ("contestant", "", ""),
        ("workers", "workers", ".0f"),
        ("seconds", "s", ".1f"),
        ("speed_up", "× one worker", ".2f"),
        ("trace_kb", "kB a trace", ".1f"),
        ("saved", "saved", ".0%"),
    ),
}
_HOURS = {1: 27.0, 4: 7.0, 8: 3.5}  # asked for, by workers
_HOURS_TITLE = "Speed-up: 1,000 samples that take one worker 27 hours"
_HOURS_COLUMNS: tuple[Column, ...] = (
    ("contestant", "", ""),
    ("workers", "workers", ".0f"),
    ("speed_up", "× one worker", ".2f"),
    ("hours", "hours", ".2g"),
    ("asked", "hours asked for", "g"),
)
_TARGETS: tuple[Column, ...] = (
    ("tree", "tree", ""),
    ("target", "target", ""),
    ("measured", "measured", ".3g"),
    ("is_met", "", "met"),
)


def markdown(results: dict[str, Any], titles: dict[str, str]) -> str:
    """All tables, the targets first."""
    parts = [_machine_text(results), "## Targets\n\n" + _table(results["targets"], _TARGETS)]
    if results["failures"]:
        parts.append("## Failed\n\n" + "".join(f"- {failure}\n" for failure in results["failures"]))
    if any("speed_up" in row for row in results["sections"].get("workers", [])):
        parts.append(f"## {_HOURS_TITLE}\n\n{_hours_table(results['sections']['workers'])}")
    for name, title in titles.items():
        text = _table(results["sections"][name], _SAID[name])
        parts.append(
            f"## {title}\n\n{text}\n{results['seconds'][name]:.0f} s; {_server_text(results['sections'][name])}"
        )
    return "\n".join(parts)


def _hours_table(rows: Sequence[Row]) -> str:
    """The table that distil was asked to reach, carried on: what its 27 hours would be at the speed-ups here."""
    ours = [row for row in rows if row["contestant"].startswith("distil") and "speed_up" in row]
    said = [
        {
            "contestant": row["contestant"],
            "workers": row["workers"],
            "speed_up": row["speed_up"],
            "hours": _HOURS[1] / row["speed_up"],
            "asked": _HOURS.get(int(row["workers"])),
        }
        for row in ours
    ]
    return _table(sorted(said, key=lambda row: row["contestant"]), _HOURS_COLUMNS)


def machine_line(results: dict[str, Any]) -> str:
    """What it was measured on."""
    machine = results["machine"]
    named = {f"distil {name}": version for name, version in results["trees"].items()} | machine["versions"]
    versions = ", ".join(f"{name} {version}" for name, version in named.items())
    return f"{machine['num_cores']} × {machine['processor']}, {machine['system']}; Python {machine['python']}, {versions}"


def _machine_text(results: dict[str, Any]) -> str:
    machine = results["machine"]
    loads = f"load {machine['load_before']:.1f} before and {machine['load_after']:.1f} after"
    return f"Measured {results['started_at']} on {machine_line(results)}; {loads}.\n"


def _server_text(rows: Sequence[Row]) -> str:
    costs = [row["server_cpu_ms_per_call"] for row in rows if "server_cpu_ms_per_call" in row]
    if not costs:
        return "no scripted teacher in what is timed.\n"
    sizes = [row["body_kb"] for row in rows if "body_kb" in row]
    return (
        f"the scripted teacher cost {min(costs):.2f} to {max(costs):.2f} ms of CPU a call, "
        f"of {min(sizes):.0f} to {max(sizes):.0f} kB on average.\n"
    )


def _table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    used = [column for column in columns if any(column[0] in row for row in rows)]
    lines = [[heading for _, heading, _ in used], ["---"] * len(used)]
    lines += [[_cell(row.get(name), form) for name, _, form in used] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: Any, form: str) -> str:
    if value is None:
        return ""
    if form == "met":
        return "met" if value else "**not met**"
    return format(value, form) if form else str(value)
