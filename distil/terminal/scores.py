"""`distil score`: traces scored by a function of the user's own."""

from __future__ import annotations

import statistics
from pathlib import Path

from tqdm import tqdm

from distil.errors import TraceError, UsageError
from distil.records import Json
from distil.store.scores import SCORES, add_scores, score_line, score_trace
from distil.store.trace_file import find_trace_files, read_trace
from distil.tasks.rewards import REWARDS, Scored
from distil.terminal.terminal import Terminal

_SHOWN = 5


def score(path: Path, terminal: Terminal) -> int:
    """Score a trace file or a folder of them by the reward at hand; 0 where all have a score, else 1.

    Raises UsageError where there is nothing to score, FolderError where the scores cannot be written.
    """
    (reward,) = REWARDS.values()
    files = [path] if path.is_file() else find_trace_files(path)
    if not files:
        raise UsageError(f"{path} is no trace file and holds no trace_*.json")
    lines: list[dict[str, Json]] = []
    problems: list[str] = []
    for file in tqdm(files, unit="trace", leave=False, disable=None):
        try:
            trace = read_trace(file)
        except TraceError as error:
            problems.append(str(error))
            continue
        scored: Scored = score_trace(trace.json, reward)
        if scored.error is not None:
            problems.append(f"{file.name}: {scored.error}")
        lines.append(score_line(trace.json, reward, scored))
    folder = path.parent if path.is_file() else path
    add_scores(folder, lines)
    scores = [line["score"] for line in lines if line["score"] is not None]
    if terminal.gives_json:
        terminal.give(
            {
                "folder": str(folder),
                "reward": reward.name,
                "num_scored": len(scores),
                "mean_score": statistics.fmean(scores) if scores else None,
                "problems": problems,
            }
        )
        return 1 if problems else 0
    for problem in problems[:_SHOWN]:
        terminal.say(problem, "red")
    if len(problems) > _SHOWN:
        terminal.say(f"… and {len(problems) - _SHOWN} more")
    mean = f", mean {statistics.fmean(scores):.4f}" if scores else ""
    terminal.say(f"{reward.name}: {len(scores)} of {len(files)} traces scored{mean}: {folder / SCORES}")
    return 1 if problems else 0
