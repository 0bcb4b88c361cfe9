"""What a trace is asked for by: the columns of the one table `traces`."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

Kind = Literal["number", "text", "flag"]
Source = Literal["trace", "metric", "row", "mark"]

_MAX_NAME_CHARS = 100


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its name in SQL, what its values are, how a person reads it, and where it comes from.

    A number is an int or a float, a flag true or false (1 or 0 in SQL), and each may be null.
    """

    name: str
    kind: Kind
    heading: str
    source: Source = "trace"


FIXED = (
    Column("run", "number", "run"),
    Column("folder", "text", "folder"),
    Column("file", "text", "file"),
    Column("sample_index", "number", "sample"),
    Column("rollout", "number", "rollout"),
    Column("task", "text", "task"),
    Column("dataset_path", "text", "dataset"),
    Column("fingerprint", "text", "fingerprint"),
    Column("model", "text", "model"),
    Column("settings_sha256", "text", "settings"),
    Column("image_sha256", "text", "picture file"),
    Column("width_px", "number", "width px"),
    Column("height_px", "number", "height px"),
    Column("score", "number", "score", "metric"),
    Column("score_without_tools", "number", "score without tools", "metric"),
    Column("tool_gain", "number", "gain of tools", "metric"),
    Column("parse_success", "flag", "has an answer"),
    Column("answer", "text", "answer"),
    Column("truth", "text", "truth"),
    Column("turns", "number", "turns"),
    Column("calls", "number", "calls"),
    Column("failed_calls", "number", "failed calls"),
    Column("clamped_boxes", "number", "clamped boxes"),
    Column("tools", "text", "tools"),
    Column("stop_reason", "text", "ended by"),
    Column("finish_reason", "text", "last finish reason"),
    Column("recipe_restores", "flag", "recipe restores"),
    Column("prompt_tokens", "number", "tokens in"),
    Column("completion_tokens", "number", "tokens out"),
    Column("seconds", "number", "seconds"),
    Column("reasoning_chars", "number", "reasoning characters"),
    Column("without_tools", "flag", "without tools"),
    Column("mark", "text", "mark", "mark"),
    Column("note", "text", "note", "mark"),
)
ROW_ID = "_id"  # a trace's number, which changes with its file; not shown
_OF_FOLDER = ("run", "folder")  # which folder it is, not what it holds
STORED = tuple(column for column in FIXED if column.name not in _OF_FOLDER)
_RESERVED = frozenset({column.name for column in FIXED} | {ROW_ID, "id", "rowid", "oid", "_rowid_", ""})
_OF_TASKS = ("answer_", "truth_")


def quoted(name: str) -> str:
    """A name as SQL writes it whatever it holds."""
    return '"' + name.replace('"', '""') + '"'


def dynamic_name(source: Source, key: str, taken: Collection[str]) -> str:
    """The column's name for a key of `reward_score`, of truth or answer, or of a row; not a `taken` one.

    A figure's is its key with `_` for what SQL would have to quote. A row's column keeps its name where it
    is free, else it has `row_` before it. Those taken are in lower case, as SQL does not tell the cases.
    """
    if source == "row":
        name = re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", "_", key)[:_MAX_NAME_CHARS]
        is_ours = name.lower().startswith(_OF_TASKS)
        names = [name] * (not is_ours) + [f"row_{name}"]
    else:
        name = re.sub(r"\W+", "_", key, flags=re.ASCII).strip("_")[:_MAX_NAME_CHARS]
        names = ([f"_{name}"] if name[:1].isdigit() else [name]) + [f"reward_{name}"]
    names += [f"{names[-1]}_{number}" for number in range(2, 1000)]
    return next(name for name in names if name.lower() not in _RESERVED and name.lower() not in taken)
