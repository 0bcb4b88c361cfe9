"""Runs side by side on the same rows of a dataset: where one does better than another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from distil.index.index import TraceIndex
from distil.index.query import Query
from distil.records import Json, SampleId
from distil.viewer.pages import render
from distil.viewer.viewer import Viewer, part_of, trace_link, viewer_of

PAGE_ROWS = 100
SORTS = {
    "spread": "difference",
    "sample": "sample",
    "gain": "gain of the last run",
    "loss": "loss of the last run",
}
_NAMES = ("run", "file", "sample_index", "rollout", "fingerprint", "image_sha256", "score", "parse_success")
_ALIKE = 1e-9  # scores that differ by less are the same


@dataclass(frozen=True, slots=True)
class Pair:
    """A row that several runs have solved: each run's trace and its score, None for a run that has none."""

    sample: SampleId
    files: tuple[str | None, ...]
    scores: tuple[float | None, ...]

    @property
    def is_whole(self) -> bool:
        """Whether every run has a score of it."""
        return None not in self.scores

    @property
    def spread(self) -> float:
        """From the worst score to the best."""
        known = [score for score in self.scores if score is not None]
        return max(known) - min(known) if len(known) > 1 else 0.0

    def gain(self, run: int = -1) -> float | None:
        """What a run's score, the last one's, is above the first's."""
        first, other = self.scores[0], self.scores[run]
        return None if first is None or other is None else other - first


def compare_page(request: Request) -> Response:
    """The rows that runs share, with each one's score and answer."""
    viewer = viewer_of(request)
    generation = viewer.keeper.now().generation
    paired: list[Pair] = viewer.cached(
        "pairs", generation, lambda: pair_up(viewer.index, len(viewer.folders))
    )
    sort = request.query_params.get("sort", "spread")
    sort = sort if sort in SORTS else "spread"
    takes_all = request.query_params.get("rows") == "all"
    shown = _sorted([pair for pair in paired if takes_all or pair.is_whole], sort)
    text = request.query_params.get("page", "1")
    last = max(1, -(-len(shown) // PAGE_ROWS))
    number = min(last, max(1, int(text))) if text.isascii() and text.isdigit() and len(text) < 8 else 1
    return render(
        request,
        "compare.html",
        rows=[_row_json(viewer, pair) for pair in shown[(number - 1) * PAGE_ROWS : number * PAGE_ROWS]],
        against=[_against_json(viewer.names[run], run, paired) for run in range(1, len(viewer.folders))],
        num_rows=len(shown),
        num_all=len(paired),
        number=number,
        last=last,
        sort=sort,
        sorts=SORTS,
        takes_all=takes_all,
        link=lambda **changes: _link(
            {"sort": sort, "rows": "all" if takes_all else "", "page": ""} | changes
        ),
    )


def pair_up(index: TraceIndex, num_runs: int) -> list[Pair]:
    """The rows of all runs with their traces: by row number where the dataset is the same, else by photo."""
    found = list(index.rows(Query(order=()), _NAMES))
    datasets = [{row[4] for row in found if row[0] == run} for run in range(num_runs)]
    shares_dataset = (
        all(len(each) == 1 and each == datasets[0] for each in datasets if each) and None not in datasets[0]
    )
    rows: dict[tuple[Json, ...], dict[int, tuple[str, float | None]]] = {}
    samples: dict[tuple[Json, ...], SampleId] = {}
    for run, file, sample_index, rollout, _, image, score, _ in found:
        by_row = shares_dataset or image is None
        key = (sample_index, rollout) if by_row else (image, rollout)
        samples.setdefault(key, SampleId(sample_index or 0, rollout or 0))
        rows.setdefault(key, {})[run] = (file, score)
    none = (None, None)
    solved = {key: [row.get(run, none) for run in range(num_runs)] for key, row in rows.items()}
    return [Pair(samples[key], *zip(*row, strict=True)) for key, row in solved.items()]


def _sorted(paired: Sequence[Pair], sort: str) -> list[Pair]:
    if sort == "sample":
        return sorted(paired, key=lambda pair: pair.sample)
    if sort == "spread":
        return sorted(paired, key=lambda pair: (-pair.spread, pair.sample))
    sign = -1 if sort == "gain" else 1
    return sorted(paired, key=lambda pair: (pair.gain() is None, sign * (pair.gain() or 0.0), pair.sample))


def _against_json(name: str, run: int, paired: Sequence[Pair]) -> Mapping[str, Json]:
    """How a run does against the first one, on the rows that both have."""
    gains = [gain for pair in paired if (gain := pair.gain(run)) is not None]
    better, worse = sum(gain > _ALIKE for gain in gains), sum(gain < -_ALIKE for gain in gains)
    return {
        "name": name,
        "num_both": len(gains),
        "better": better,
        "equal": len(gains) - better - worse,
        "worse": worse,
        "mean_gain": sum(gains) / len(gains) if gains else None,
    }


def _row_json(viewer: Viewer, pair: Pair) -> Mapping[str, Json]:
    cells = [
        None if file is None else _cell_json(viewer, run, file, score)
        for run, (file, score) in enumerate(zip(pair.files, pair.scores, strict=True))
    ]
    there = [cell for cell in cells if cell is not None]
    beside = urlencode({"beside": f"{there[1]['run']}/{there[1]['part']}"}) if len(there) > 1 else ""
    return {
        "sample": str(pair.sample),
        "cells": cells,
        "truth": there[0]["truth"],
        "gain": pair.gain() if len(cells) == 2 else None,
        "spread": pair.spread,
        "link": there[0]["link"] + (f"?{beside}" if beside else ""),
        "picture": f"/picture/{there[0]['run']}/{quote(there[0]['part'], safe='')}/0?view=thumb",
    }


def _cell_json(viewer: Viewer, run: int, file: str, score: float | None) -> dict[str, Json]:
    row = viewer.index.find((run, file)) or {}
    return {
        "run": run,
        "part": part_of(file),
        "link": trace_link(run, file),
        "score": score,
        "answer": row.get("answer") if row.get("parse_success") else None,
        "truth": row.get("truth"),
        "calls": row.get("calls"),
        "turns": row.get("turns"),
        "mark": row.get("mark"),
    }


def _link(params: Mapping[str, str]) -> str:
    return "/compare?" + urlencode({name: value for name, value in params.items() if value})


COMPARE_ROUTES = (Route("/compare", compare_page),)
