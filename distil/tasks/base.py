"""What a task is: a prompt, a reader of rows and of answers, a reward, and how its figures are shown."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from distil.errors import SourceError
from distil.records import Json, Score

# The usual names of a field's column, what the last name of another may be, letters alone, and what is said
# to be missing where there is none.
ColumnNames = tuple[Sequence[str], re.Pattern[str], str]
Rows = Mapping[str, str]  # what a table says, by the name of the row


@dataclass(frozen=True)
class Metric:
    """A figure beside the reward that a task gives each answer: where traces keep it, how it is shown."""

    name: str  # its key in `reward_score`
    heading: str  # of its column in the list of traces
    cell: str  # how a value is written there, as `str.format` takes it
    label: str  # of its row where one trace is shown
    text: str  # how a value is written there
    over_many: Callable[[Sequence[float], int], Rows]  # the values of all answers, and the number of traces
    worst: float  # what an answer counts as that does not state it
    metadata_name: str | None = None  # its key in `metadata`, where it is to stand there too


class Task(Protocol):
    """What a run and its readers need to know of a task; every method is a pure function.

    A task is a subclass in a file of its own and a line in `TASKS`, or in a file of the user's; what is said
    here of most tasks, it says only where it differs. Truth and answer are JSON objects of the task's own
    making: only the task looks into them.
    """

    @property
    def name(self) -> str: ...

    @property
    def system_prompt(self) -> str:
        return "You are a helpful assistant."

    @property
    def user_prompt(self) -> str:
        """What is asked of every row; each `{FIELD}` of `prompt_fields` is a row's own text."""
        ...

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The figures beside the reward that are shown of it."""
        return ()

    @property
    def map_axes(self) -> tuple[str, str] | None:
        """The fields of truth and answer that are degrees north and east on a world map, if there are any."""
        return None

    @property
    def drawn_data(self) -> str | None:
        """The kind of drawn data that the embedded teacher reads for it, taken where no dataset is named."""
        return None

    @property
    def fields(self) -> tuple[str, ...]:
        """What it reads of a row that another column may be named for, by a flag `--FIELD_column`."""
        return ()

    @property
    def passed(self) -> str | None:
        """The key in `reward_score` that is 1 where an answer counts as right, None where nothing says it."""
        return None

    @property
    def difficulty(self) -> str | None:
        """The usual column that says how easy or hard a row is, a number."""
        return None

    @property
    def needed_in_prompt(self) -> tuple[str, ...]:
        """Those of `prompt_fields` without which a prompt, the user's own too, asks nothing."""
        return ()

    def prompt_fields(self, row: Mapping[str, Json]) -> Mapping[str, str]:
        """The texts of a row that stand in the prompt in place of `{FIELD}`; raises SampleError."""
        return {}

    def choose_columns(self, columns: Collection[str], asked: Mapping[str, str]) -> Mapping[str, str]:
        """The columns to take for its fields, but for those that have a name that `truth` reads.

        `asked` are those that the user named. Raises SourceError where these columns cannot hold a truth.
        """
        return {}

    def truth(self, row: Mapping[str, Json]) -> Mapping[str, Json]:
        """The row's truth; raises SampleError naming the field that is missing or bad."""
        ...

    def parse_answer(self, response: str) -> Mapping[str, Json] | None:
        """What a reply answers, None where it has no answer that can be read."""
        ...

    def score(self, answer: Mapping[str, Json] | None, truth: Mapping[str, Json]) -> Score:
        """The reward of an answer, or of none."""
        ...

    def text(self, value: Mapping[str, Json]) -> str:
        """A truth or an answer for a person to read, whatever a trace holds in its place."""
        return json.dumps(value, ensure_ascii=False)

    def reward_text(self, value: float) -> str:
        """One trace's reward for a person to read."""
        return f"{value:.4f}"


def choose_columns(
    guessed: Mapping[str, ColumnNames],
    columns: Collection[str],
    asked: Mapping[str, str],
    otherwise: Mapping[str, str] | None = None,
) -> Mapping[str, str]:
    """The columns of these fields: that which was asked for, one of a usual name, or the only one that fits.

    One of a usual name is left out where that is the one that `truth` reads without being told. `otherwise`
    are columns for fields that no other fits; they may be asked for where `columns` has none of them. Raises
    SourceError where there is none, or several are meant.
    """
    chosen: dict[str, str] = {}
    for field, (names, pattern, missing) in guessed.items():
        usual = next((name for name in names if name in columns), None)
        column = asked[field] if field in asked else usual or _only_fitting(field, columns, pattern)
        other = None if otherwise is None else otherwise[field]
        column = other if column is None else column
        if column is None or (column not in columns and asked.get(field) != other):
            raise SourceError(_no_column_text(field, asked.get(field), missing, columns))
        if column != usual:
            chosen[field] = column
    return chosen


def _only_fitting(field: str, columns: Collection[str], pattern: re.Pattern[str]) -> str | None:
    letters = {column: re.sub("[^a-z]", "", column.rpartition(".")[2].lower()) for column in columns}
    fitting = [column for column in columns if pattern.fullmatch(letters[column])]
    if len(fitting) > 1:
        raise SourceError(
            f"several columns may be {field!r}: {', '.join(fitting)}; name one by --{field}_column"
        )
    return fitting[0] if fitting else None


def _no_column_text(field: str, asked: str | None, missing: str, columns: Collection[str]) -> str:
    there = ", ".join(columns)
    if asked is not None:
        return f"--{field}_column {asked!r}: there is no such column; the dataset's columns: {there}"
    return f"the dataset has no column {missing}, name it by --{field}_column; its columns: {there}"
