"""`scores.jsonl`: what rewards of the user's own gave traces afterwards, a line a sample and reward.

Lines are only ever added, and of two about the same sample and reward the later one counts. All in it is
derived from the traces, which stay as they are: who removes it loses nothing that `distil score` would not
write again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from distil.records import Json, SampleId
from distil.store.json_lines import LineFile, read_lines
from distil.store.trace_file import solution_text
from distil.tasks.rewards import Reward, Scored

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


def add_scores(folder: Path, lines: Iterable[Mapping[str, Json]]) -> None:
    """Add the lines that say something new; raises FolderError."""
    known = _latest(folder)
    new = [line for line in lines if known.get((SampleId.from_json(line), line["reward"])) != line]
    if new:
        file = LineFile(folder / SCORES)
        file.append(*new)
        file.close()


def read_scores(folder: Path) -> list[dict[str, Json]]:
    """What counts of a folder's scores, in the order of samples and rewards."""
    return [line for _, line in sorted(_latest(folder).items(), key=lambda item: item[0])]


def _latest(folder: Path) -> dict[tuple[SampleId, str], dict[str, Json]]:
    found: dict[tuple[SampleId, str], dict[str, Json]] = {}
    for line, _ in read_lines(folder / SCORES):
        if line is not None:
            with suppress(KeyError, TypeError):
                found[SampleId.from_json(line), str(line["reward"])] = line
    return found
