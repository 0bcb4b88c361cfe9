"""Plots of a run's figures, PNG and SVG, each with the machine and the versions below it.

python benchmarks/plots.py results.json DIR
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from measure import Row
from tables import machine_line

_STYLES = {  # by a contestant's name without its tree
    "raw": ("#999999", "sockets in threads, no client, no promises"),
    "openai_post": ("#1f77b4", "threads + openai post of ready bytes"),
    "openai_post_hashed": ("#17becf", "the same, with a trace's hashes"),
    "earlier": ("#8c564b", "threads + create(), all decoded first"),
    "distil_fixed": ("#d62728", "distil --fixed_workers"),
    "distil": ("#ff7f0e", "distil"),
}
_LINES = ("-", "--", ":", "-.")  # by tree
_PLACES = ("workers", "slow_teacher", "memory", "journal", "level", "sandbox", "replay", "start")


def draw(results: dict[str, Any], output_dir: Path) -> None:
    """All plots that the figures give."""
    plt.rcParams.update(
        {"svg.hashsalt": "distil", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    )
    for name in _PLACES:
        rows = results["sections"].get(name)
        if rows:
            _DRAWN[name](results, rows, output_dir)


def _workers(results: dict[str, Any], rows: list[Row], output_dir: Path) -> None:
    rows = [row for row in rows if not row["contestant"].startswith("openai_post_hashed")]
    figure, axes = plt.subplots(1, 1, figsize=(6.4, 4))
    _lines(axes, rows, results, "workers", "calls_a_second")
    _ideal(axes, rows)
    axes.set(xlabel="workers", ylabel="calls a second", title="Calls a second, a teacher of 0.2 s a call")
    _save(figure, results, output_dir / "throughput")
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4))
    for axis, name, label in zip(
        axes,
        ("cpu_ms_per_call", "switches_per_call"),
        ("CPU ms a call, start included", "context switches a call"),
        strict=True,
    ):
        _lines(axis, rows, results, "workers", name)
        axis.set(xlabel="workers", ylabel=label, ylim=(0, None))
    _save(figure, results, output_dir / "cpu")


def _ideal(axes: Any, rows: list[Row]) -> None:
    workers = sorted({row["workers"] for row in rows})
    best = max(row["calls_a_second"] for row in rows)
    shown = [count for count in workers if count / rows[0]["seconds_per_call"] <= 1.3 * best]
    axes.plot(
        shown, [count / rows[0]["seconds_per_call"] for count in shown], ":", color="#bbbbbb", label="ideal"
    )
    axes.legend(frameon=False, fontsize=7)


def _slow(results: dict[str, Any], rows: list[Row], output_dir: Path) -> None:
    times = sorted({row["seconds_per_call"] for row in rows})
    figure, axes = plt.subplots(
        1, len(times), figsize=(2.6 * len(times) + 1, 3.4), sharey=True, squeeze=False
    )
    for axis, seconds in zip(axes[0], times, strict=True):
        _lines(
            axis,
            [row for row in rows if row["seconds_per_call"] == seconds],
            results,
            "workers",
            "share_of_ideal",
        )
        axis.set(xlabel="workers", title=f"{seconds:g} s a call", ylim=(0, 1.05))
    axes[0][0].set_ylabel("share of the ideal rate")
    _save(figure, results, output_dir / "slow_teacher")


def _memory(results: dict[str, Any], rows: list[Row], output_dir: Path) -> None:
    titles = {"rows": "32 workers, 640×480", "workers": "1280×960", "camera": "4000×3000"}
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4))
    for axis, (part, title) in zip(axes, titles.items(), strict=True):
        x = "num_rows" if part == "rows" else "workers"
        _lines(axis, [row for row in rows if row["part"] == part], results, x, "peak_mb")
        axis.set(xlabel=x.removeprefix("num_"), title=title, ylim=(0, None))
    axes[0].set_ylabel("peak MB")
    _save(figure, results, output_dir / "memory")


def _level(results: dict[str, Any], rows: list[Row], output_dir: Path) -> None:
    servers = list(dict.fromkeys(row["server"] for row in rows))
    figure, axes = plt.subplots(1, len(servers), figsize=(2.6 * len(servers) + 1, 3.4), squeeze=False)
    for axis, server in zip(axes[0], servers, strict=True):
        own = [row for row in rows if row["server"] == server]
        _lines(
            axis,
            [row for row in own if "share_of_best" not in row],
            results,
            "workers",
            "calls_a_second_late",
        )
        for row in own:
            if "share_of_best" in row:
                axis.axhline(
                    row["calls_a_second_late"], color=_STYLES["distil"][0], label="distil, ceiling 64"
                )
        axis.set_title(textwrap.fill(server, 22), fontsize=8)
        axis.set(xlabel="level", ylim=(0, None))
    axes[0][0].set_ylabel("calls a second, late")
    axes[0][0].legend(frameon=False, fontsize=7)
    _save(figure, results, output_dir / "level")


def _bars(name: str, label_of: Callable[[Row], str], value: str, xlabel: str) -> Callable[..., None]:
    def drawn(results: dict[str, Any], rows: list[Row], output_dir: Path) -> None:
        figure, axes = plt.subplots(1, 1, figsize=(6.4, 0.35 * len(rows) + 1.4))
        bars = axes.barh(
            [label_of(row) for row in rows][::-1], [row[value] for row in rows][::-1], color="#1f77b4"
        )
        axes.bar_label(bars, fmt="%.3g", fontsize=7, padding=2)
        axes.set_xlabel(xlabel)
        _save(figure, results, output_dir / name)

    return drawn


def _lines(axis: Any, rows: Iterable[Row], results: dict[str, Any], x: str, y: str) -> None:
    """A line for each contestant; workers and rows grow by factors, so their axis is logarithmic."""
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(row["contestant"], []).append(row)
    ticks: set[float] = set()
    for contestant, own in lines.items():
        name, _, tree = contestant.partition("@")
        color, label = _STYLES[name]
        style = _LINES[list(results["trees"]).index(tree) % len(_LINES)] if tree else "-"
        points = sorted((row[x], row[y]) for row in own)
        ticks |= {point[0] for point in points}
        axis.plot(
            *zip(*points, strict=True),
            style,
            marker="o",
            markersize=3,
            color=color,
            label=f"{label} {tree}".strip(),
        )
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted(ticks), [f"{tick:g}" for tick in sorted(ticks)], fontsize=7)
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=7)


def _save(figure: Any, results: dict[str, Any], path: Path) -> None:
    text = textwrap.fill(
        f"{results['started_at'][:10]}; {machine_line(results)}", int(figure.get_figwidth() * 20)
    )
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.text(0.01, 0.01, text, fontsize=5, color="#777777")
    figure.savefig(path.with_suffix(".png"), dpi=160)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)


_DRAWN: dict[str, Callable[..., None]] = {
    "workers": _workers,
    "slow_teacher": _slow,
    "memory": _memory,
    "journal": _bars(
        "journal",
        lambda row: f"{row['contestant']}, {row['workers']:g} workers",
        "calls_a_second",
        "calls a second",
    ),
    "level": _level,
    "sandbox": _bars(
        "sandbox", lambda row: row["contestant"], "loaded_p95_ms", "p95 ms of a call, 8 threads"
    ),
    "replay": _bars(
        "replay", lambda row: f"{row['contestant']}, {row['workers']}", "traces_a_second", "traces a second"
    ),
    "start": _bars("start", lambda row: f"{row['contestant']}: {row['what']}", "seconds", "seconds"),
}

if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
