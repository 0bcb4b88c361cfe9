"""What every page needs to know: the folders, their index, and where the dataset is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from starlette.requests import Request

if TYPE_CHECKING:
    from distil.viewer.stand_in import TraceIndex


@dataclass(frozen=True)
class Viewer:
    """The folders that are shown, in the order given, and the index over them."""

    folders: tuple[Path, ...]
    index: TraceIndex
    token: str | None = None
    dataset_override: str | None = None

    @property
    def names(self) -> Sequence[str]:
        """What the folders are called: by as much of their paths as tells them apart."""
        return short_names(self.folders)


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
