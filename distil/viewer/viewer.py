"""What every page needs to know: the folders, their index, and where the dataset is."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from starlette.requests import Request

from distil.index.index import TraceIndex
from distil.index.query import Query
from distil.tasks import TASKS
from distil.viewer.keeper import Keeper


@dataclass(frozen=True)
class Viewer:
    """The folders that are shown, in the order given, and the index over them."""

    folders: tuple[Path, ...]
    index: TraceIndex
    token: str | None = None
    dataset_override: str | None = None
    _cache: dict[str, tuple[int, Any]] = field(default_factory=dict, repr=False)
    _making: defaultdict[str, threading.Lock] = field(
        default_factory=lambda: defaultdict(threading.Lock), repr=False
    )

    @cached_property
    def names(self) -> Sequence[str]:
        """What the folders are called: by as much of their paths as tells them apart."""
        return short_names(self.folders)

    @cached_property
    def keeper(self) -> Keeper:
        """Who reads anew what has changed."""
        return Keeper(self.folders, self.index.update)

    @property
    def metric_columns(self) -> list[str]:
        """The columns of what the traces' tasks measure beside the score."""
        headings = {metric.heading for task in TASKS.values() for metric in task.metrics}
        metrics = (column for column in self.index.columns if column.source == "metric")
        return [column.name for column in metrics if column.heading in headings and column.name != "score"]

    @property
    def tasks(self) -> list[str]:
        """The tasks that the traces were made for."""
        tasks = self.index.rows(Query(order=()), ["task"])
        return sorted({task for (task,) in tasks if isinstance(task, str)})

    def cached(self, name: str, generation: int, make: Callable[[], Any]) -> Any:
        """What `make` gave for a generation of the index; of each name the last is kept."""
        with self._making[name]:
            kept = self._cache.get(name)
            if kept is None or kept[0] != generation:
                kept = self._cache[name] = (generation, make())
            return kept[1]


def viewer_of(request: Request) -> Viewer:
    """That of the app that answers a request."""
    return cast(Viewer, request.app.state.viewer)


def short_names(folders: Sequence[Path]) -> list[str]:
    """Each folder's last name, with those before it where others end alike."""
    paths = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, paths), default=1)):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]
