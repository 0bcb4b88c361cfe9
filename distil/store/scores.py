"""`scores.jsonl`: what rewards of the user's own gave traces afterwards, a line a sample and reward.

Derived from the traces, which it leaves as they are: who removes it loses nothing that `distil score` would
not write again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from distil.records import Json, SampleId
from distil.rewards import Reward, Scored
from distil.store.atomic import write_bytes
from distil.store.json_lines import line_bytes, read_lines
from distil.store.trace_file import solution_text

SCORES = "scores.jsonl"


def score_trace(trace: Mapping[str, Json], reward: Reward) -> Scored:
    """What a reward gives a trace of our own format; raises KeyError or TypeError where it is none."""
    return reward.of(trace, solution_text(trace))


def score_line(trace: Mapping[str, Json], reward: Reward, scored: Scored) -> dict[str, Json]:
    """Its line: the sample, by what it was scored, the trace as it was then, and what came of it."""
    line: dict[str, Json] = {
        **SampleId.from_json(trace).as_json(),
        "reward": reward.name,
        "reward_sha256": reward.sha256,
        "integrity_sha256": trace["integrity_sha256"],
        "score": scored.score,
        "details": dict(scored.details),
    }
    return line if scored.error is None else line | {"error": scored.error}


def write_scores(folder: Path, lines: Iterable[Mapping[str, Json]]) -> None:
    """Put lines in the place of those of the same reward and samples; those of others stay.

    The file is whole at every instant; raises FolderError.
    """
    kept = dict(_keyed(read_scores(folder)))
    kept |= dict(_keyed(lines))
    order = sorted(kept, key=lambda key: (key[1], key[0]))
    write_bytes(folder / SCORES, b"".join(line_bytes(kept[key]) for key in order))


def read_scores(folder: Path) -> Iterator[dict[str, Json]]:
    """The lines of a folder that can be read."""
    for line, _ in read_lines(folder / SCORES):
        if line is not None:
            yield line


def _keyed(lines: Iterable[Mapping[str, Json]]) -> Iterator[tuple[tuple[str, SampleId], Mapping[str, Json]]]:
    for line in lines:
        with suppress(KeyError, TypeError):
            yield (str(line["reward"]), SampleId.from_json(line)), line
