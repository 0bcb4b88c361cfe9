"""What a format is: it writes rows into a folder, and says how a trainer is started on them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import datasets

from distil.exports.attribution import ATTRIBUTION
from distil.exports.conversation import Conversation
from distil.exports.options import ExportOptions
from distil.records import ToolMode

_ORIGIN_FEATURES: Mapping[str, Any] = {
    "id": datasets.Value("string"),
    "sample_index": datasets.Value("int64"),
    "rollout": datasets.Value("int64"),
    "trace_sha256": datasets.Value("string"),
}


def origin_features(options: ExportOptions) -> dict[str, Any]:
    """The columns that tell a row's trace, and whose it is where that is known."""
    of_owner = {ATTRIBUTION: datasets.Value("string")} if options.has_attribution else {}
    return {**_ORIGIN_FEATURES, **of_owner}


@dataclass(frozen=True)
class Target:
    """Where an export is written, and where it will lie when it is whole."""

    folder: Path
    out: Path  # absolute

    @property
    def quoted(self) -> str:
        """The path for a command line."""
        return shlex.quote(str(self.out))


@dataclass(frozen=True)
class Facts:
    """What is known of an export when all its rows are written."""

    num_rows: Mapping[str, int]  # by split
    max_length: int  # tokens, to set in a trainer
    has_masked: bool  # whether a turn is not to be trained


class Form(Protocol):
    """One format; made for one export, in its folder."""

    call_forms: frozenset[ToolMode]

    def __init__(self, target: Target, options: ExportOptions) -> None: ...

    def add(self, conversation: Conversation, split: str) -> None:
        """Write a row."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...

    def guide(self, facts: Facts) -> str:
        """How a trainer is started on it, in Markdown; other files that it needs are written."""
        ...


def ship(name: str, folder: Path) -> None:
    """Copy a file that comes with distil into an export."""
    data = (files("distil.exports") / "shipped" / f"{name}.txt").read_bytes()
    (folder / name).write_bytes(data)
