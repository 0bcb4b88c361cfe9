"""`--accept`: which traces are accepted, by a condition on the columns that the index has of a trace."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import islice

from distil.commands.flags import RunFlags
from distil.errors import Caught, SampleError, TraceError, UsageError
from distil.index.columns import FIXED, Source, dynamic_name, quoted
from distil.index.guard import TABLE, check_where, limit_values
from distil.index.trace_row import Cell, TraceRow, trace_row
from distil.records import Json, Reply, Rollout, Sample, SampleId, SentPicture, StopReason, ToolMode, Turn
from distil.run.plan import teacher_settings
from distil.run.settle import Asked, chosen_profile, unasked_settings
from distil.source.rows import Source as Dataset
from distil.store.trace_file import RunFacts, trace_json, trace_name, versions_now
from distil.tasks.base import Task

# What the index knows besides the trace: of the folder, of the row's other traces, or added later.
_NOT_OF_TRACE = frozenset({"run", "folder", "seconds", "score_without_tools", "tool_gain", "mark", "note"})
_LOOKED_INTO = 20  # rows, for one that can be used
_BAD_FORM = (
    TypeError,
    ValueError,
    ArithmeticError,
    AttributeError,
    LookupError,
)  # of another program's trace

_Key = tuple[Source, str]  # where a value comes from, and its name there


class Acceptance:
    """Whether a trace meets a condition; safe from many threads.

    One that cannot be computed for a trace, or comes to NULL, is not met.
    """

    def __init__(self, condition: str, like: TraceRow) -> None:
        """The columns are those of `like`; raises UsageError where the condition is none over these."""
        self._fixed = [column.name for column in FIXED if column.name not in _NOT_OF_TRACE]
        self._dynamic = _dynamic_names(like)
        names = [*self._fixed, *self._dynamic.values()]
        try:
            check_where(condition, names)
        except UsageError as error:
            raise UsageError(f"--accept {condition!r}: {str(error).removeprefix('where: ')}") from None
        listed, places = ", ".join(map(quoted, names)), ", ".join("?" * len(names))
        self._query = (  # checked above: it reads the one table and nothing else
            f"WITH {TABLE} ({listed}) AS (SELECT {places}) "  # noqa: S608
            f"SELECT 1 FROM {TABLE} WHERE (\n{condition}\n)"
        )

    def __call__(self, trace: Mapping[str, Json]) -> bool:
        """Whether a finished trace is accepted."""
        try:
            row = trace_row(trace_name(SampleId.from_json(trace)), trace)
        except (TraceError, *_BAD_FORM):
            return False
        with closing(sqlite3.connect(":memory:")) as connection:
            limit_values(connection)
            try:
                return connection.execute(self._query, self._cells(row)).fetchone() is not None
            except sqlite3.Error:
                return False

    def _cells(self, row: TraceRow) -> list[Cell]:
        values = {(column.source, column.name): value for column, value in row.dynamic}
        return [*(row.fixed.get(name) for name in self._fixed), *(values.get(key) for key in self._dynamic)]


def _dynamic_names(row: TraceRow) -> dict[_Key, str]:
    """The names of the columns that only some traces have, as the index gives them."""
    names: dict[_Key, str] = {}
    taken: set[str] = set()
    for column, _ in row.dynamic:
        name = dynamic_name(column.source, column.name, taken)
        names[column.source, column.name] = name
        taken.add(name.lower())
    return names


def acceptance(
    condition: str, flags: RunFlags, asked: Asked, dataset: Dataset, rows: Sequence[int]
) -> Acceptance:
    """What `--accept` says; raises UsageError.

    The columns are those of a trace that answers the truth of one of the first rows.
    """
    settings = unasked_settings(
        flags, asked, chosen_profile("", flags.tools), teacher_settings(flags.teacher, "", "")
    )
    facts = RunFacts(dataset.identity, settings, versions_now())
    for row in islice(rows, _LOOKED_INTO):
        try:
            rollout = _right_answer(dataset.load(SampleId(row)), asked.task)
        except SampleError:
            continue
        return Acceptance(condition, trace_row("", trace_json(rollout, facts)))
    raise UsageError("--accept: the columns are not known, as none of the first rows can be used")


def _right_answer(sample: Sample, task: Task) -> Rollout:
    """A rollout that answers a row's truth at once; raises SampleError where there is none."""
    with Caught() as caught:
        truth = task.truth({**sample.data, **sample.fields})
        score = task.score(truth, truth)
    if caught.error is not None:
        raise SampleError(caught.text())
    sent = SentPicture("", (1, 1), b"", 0, "")
    reply = Reply("", None, None, "stop", (), ToolMode.NONE, None)
    turns = (Turn(1, reply, ()),)
    return Rollout(sample, truth, sent, turns, StopReason.ANSWERED, truth, score)
