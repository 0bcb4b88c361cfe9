"""What replaying traces takes: the datasets that they came from, and sandboxes for their code."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from distil.errors import SourceError
from distil.records import DatasetIdentity, Json, SentPicture, ToolCall, Turn
from distil.replay.recipe import Saved, first_picture, open_saved
from distil.sandbox.sandbox import Sandbox
from distil.source.rows import Source, open_source
from distil.source.saved import HUB, IMAGE_COLUMN
from distil.store.trace_file import StoredTrace
from distil.tasks import task_of

_MOVED = "; if it has moved, say where it is now: --dataset_path PATH"
_WITH_SPLITS = ("imagefolder", "folder", "hub")  # kinds whose `source` does not name the split


def _is_there(trace: StoredTrace) -> bool:
    """Whether there is something where a trace's dataset was, as far as can be told without a network."""
    return trace.dataset.kind == "hub" or os.path.exists(trace.dataset.source)  # noqa: PTH110 - Path's may raise


def turns_of(trace: StoredTrace, pictures: Sequence[SentPicture | None]) -> tuple[Turn, ...]:
    """The turns of a trace as its rollout had them, given what was sent of each call's picture."""
    sent = {id(call): picture for call, picture in zip(trace.calls, pictures, strict=True)}

    def had(call: ToolCall) -> ToolCall:
        return replace(call, observation=replace(call.observation, sent=sent[id(call)]))

    return tuple(replace(turn, calls=tuple(map(had, turn.calls))) for turn in trace.turns)


class Executors:
    """Sandboxes by their limits, each started when the first code has to run again; a context manager.

    One call at a time in each: who verifies with several processes has as many of these.
    """

    def __init__(self) -> None:
        self._started: dict[tuple[float, int], Sandbox] = {}

    def __enter__(self) -> Executors:
        return self

    def __exit__(self, *_: object) -> None:
        for sandbox in self._started.values():
            sandbox.close()

    def of(self, trace: StoredTrace) -> Sandbox | None:
        """The sandbox for a trace's code, or None where it offered no code tool."""
        code = trace.settings.code
        if code is None:
            return None
        bounds = (code.timeout_seconds, code.memory_bytes)
        if bounds not in self._started:
            self._started[bounds] = Sandbox(*bounds, workers=1)
        return self._started[bounds]


class Sources:
    """Datasets by path, each opened once; `override` stands in for every path (a dataset that moved)."""

    def __init__(self, override: str | None = None) -> None:
        self._saved: dict[str, Saved | str] = {}
        self._override = override
        self._opened: dict[tuple[str, Json], Source] = {}
        self._lock = threading.Lock()

    def of(self, trace: StoredTrace) -> Source:
        """The dataset that a trace came from; raises SourceError."""
        stored = trace.dataset
        path = self._override or stored.source
        if not self._override:
            path = f"{HUB}{path}" if stored.kind == "hub" else path
            path = f"{path}:{stored.split}" if stored.kind in _WITH_SPLITS and stored.split else path
        columns = trace.settings.columns or {}
        key = (path, tuple(sorted(columns.items())))
        with self._lock:
            if key not in self._opened:
                self._opened[key] = self._open(path, trace)
            return self._opened[key]

    def _open(self, path: str, trace: StoredTrace) -> Source:
        columns = trace.settings.columns or {}
        try:
            source = open_source(path, columns=columns)
            fields = {name: column for name, column in columns.items() if name != IMAGE_COLUMN}
            if columns and not (
                fields == task_of(trace.json).choose_columns(source.columns, fields)
                and columns.get(IMAGE_COLUMN) == source.image_column
            ):
                raise SourceError(f"{trace.path}: no run chooses columns as settings.columns says")
            return source
        except SourceError as error:
            moved = "" if self._override or _is_there(trace) else _MOVED
            raise SourceError(f"{error}{moved}") from None

    def identity(self, trace: StoredTrace, source: Source) -> DatasetIdentity:
        """What a trace of today would say of its dataset.

        Where rows were added to the dataset since, or it has moved, the row can be the same: then what is
        stored is taken as it is. The path of a view lies in a cache that another machine has elsewhere.
        """
        now, stored = source.identity, trace.dataset
        num_rows = now.num_rows if now.fingerprint == stored.fingerprint else stored.num_rows
        if self._override:
            return replace(stored, num_rows=num_rows)
        path = now.path if now.kind == "saved" else stored.path
        split = now.split
        if now.kind == "saved" and stored.split == Path(now.source).name:  # a DatasetDict's, opened as itself
            split = stored.split
        return replace(stored, path=path, source=now.source, kind=now.kind, split=split, num_rows=num_rows)

    def recipe_start(self, trace: StoredTrace, source: Source) -> Image.Image | str | None:
        """The first picture of the restore recipe, or why there is none.

        None where the dataset has moved and is no saved folder, as the recipe needs one.
        """
        if self._override and source.identity.kind != "saved":
            return None
        path = source.identity.path if self._override else str(trace.dataset.path)
        with self._lock:
            if path not in self._saved:
                self._saved[path] = open_saved(path)
            saved = self._saved[path]
        return saved if isinstance(saved, str) else first_picture(saved, path, trace.sample_id.index)
