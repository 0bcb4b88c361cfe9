"""`README.txt` of a run's folder: what each file is, for who finds it later."""

from __future__ import annotations

from pathlib import Path

from distil.store.atomic import write_bytes

README = "README.txt"
_TEXT = """\
This folder was written by distil. Its files:

trace_*.json          a solved sample each: the teacher's turns, its tool calls, the answer and the reward.
                      A number is a row of the dataset, _r1 and so on are further rollouts of it.
                      `distil view .` shows them.
run_record.json       each run into this folder: options, settings, versions, counts, spending, warnings.
failed_samples.jsonl  a line for each sample that failed, and why; gone where none did.
spending.jsonl        two lines for each request: that it was sent, and what it came to.
draws.jsonl           the rows that --target_acc has drawn, in their order: needed to go on.
timings.jsonl         the seconds that each sample took.
marks.jsonl           what a person decided about samples: keep, drop, notes; no run changes it.
scores.jsonl          what `distil score` found, a line for each trace and reward; it can be written again.
index.sqlite          made of the files above, to find traces fast: may be removed at any time.
journal/              replies that were paid for, of samples without a trace; gone where there is none.
without_tools/        the rows asked without tools too, for comparison: such a folder as this one.
.lock                 held by the run that writes here; `distil clean .` removes it and other leftovers.

Keep trace_*.json for training. To go on or to retry failed samples, keep all and run the same command.
"""


def write_readme(folder: Path) -> None:
    """Write it where there is none, so that a person's own stays; raises FolderError."""
    path = folder / README
    if not path.exists():
        write_bytes(path, _TEXT.encode())
