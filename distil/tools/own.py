"""A tool of the user's own file, of which nothing that it raises can end a sample."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from PIL import Image

from distil.errors import Caught, ToolError
from distil.records import Json
from distil.tools.base import Applied, BoxFrame, Resolved, Scene, SeenSizes, Tool


@dataclass(frozen=True)
class OwnTool(Tool):
    """That tool, with all it raises made a failed call: the teacher is told, and the sample goes on."""

    tool: Tool
    file: str

    @property
    def name(self) -> str:
        return self.tool.name

    @property
    def runs_code(self) -> bool:
        return self.tool.runs_code

    @property
    def work(self) -> AbstractContextManager[object]:
        return self.tool.work

    def schema(self, boxes: BoxFrame) -> Mapping[str, Json]:
        return self.tool.schema(boxes)

    def resolve(self, raw: Mapping[str, Json], seen: SeenSizes, boxes: BoxFrame) -> Resolved:
        with Caught() as caught:
            return self.tool.resolve(raw, seen, boxes)
        raise self._failure(caught)

    def apply(self, arguments: Mapping[str, Json], scene: Scene) -> Applied:
        with Caught() as caught:
            return self.tool.apply(arguments, scene)
        raise self._failure(caught)

    def restate(self, arguments: Mapping[str, Json], seen: SeenSizes, boxes: BoxFrame) -> Mapping[str, Json]:
        with Caught() as caught:
            return self.tool.restate(arguments, seen, boxes)
        raise self._failure(caught)

    def box_of(self, raw: Json) -> tuple[float, ...] | None:
        with Caught():
            return self.tool.box_of(raw)
        return None

    def angle_of(self, arguments: Json) -> float | None:
        with Caught():
            return self.tool.angle_of(arguments)
        return None

    def works_on_photo(self, arguments: Mapping[str, Json]) -> bool:
        return self.tool.works_on_photo(arguments)

    def restores(self, arguments: Mapping[str, Json]) -> bool:
        return self.tool.restores(arguments)

    def recipe(self, arguments: Mapping[str, Json], image: Image.Image) -> Image.Image:
        return self.tool.recipe(arguments, image)

    def _failure(self, caught: Caught) -> ToolError:
        error = caught.error
        return (
            error
            if isinstance(error, ToolError)
            else ToolError(f"{self.name} failed: {caught.text(self.file)}")
        )
