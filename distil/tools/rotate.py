"""image_rotate_tool: turn the picture counter-clockwise, the canvas grown to hold all of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from distil.errors import ToolError
from distil.records import Json
from distil.tools.base import (
    MAX_RESULT_PIXELS,
    Applied,
    BoxFrame,
    Resolved,
    Scene,
    SeenSizes,
    Tool,
    finite_number,
    function_schema,
    required_argument,
)


@dataclass(frozen=True)
class RotateTool(Tool):
    """Rotate the current picture by `angle` counter-clockwise degrees, `expand=True`."""

    name: str = "image_rotate_tool"

    def schema(self, boxes: BoxFrame) -> Mapping[str, Json]:
        angle = {"type": "number", "description": "Degrees to rotate by; positive is counter-clockwise."}
        description = "Rotate the most recent image: returns the whole rotated image."
        return function_schema(self.name, description, {"angle": angle}, ["angle"])

    def resolve(self, raw: Mapping[str, Json], seen: SeenSizes, boxes: BoxFrame) -> Resolved:
        """Stored `angle` is the teacher's number, in degrees."""
        angle = _angle_degrees(required_argument(raw, "angle", '{"angle": 90}'))
        width, height = seen.scene.picture.size
        turn = math.radians(angle % 360)
        cos, sin = abs(math.cos(turn)), abs(math.sin(turn))
        grown = (width * cos + height * sin) * (width * sin + height * cos)
        if grown > max(MAX_RESULT_PIXELS, width * height + 1):
            raise ToolError(
                "the rotated image would be too large: zoom in first, or rotate by 90, 180 or 270"
            )
        return Resolved({"angle": angle})

    def apply(self, arguments: Mapping[str, Json], scene: Scene) -> Applied:
        angle = arguments["angle"]
        return Applied(scene.changed(lambda image: image.rotate(angle, expand=True)))

    def angle_of(self, arguments: Json) -> float | None:
        return finite_number(arguments.get("angle")) if isinstance(arguments, dict) else None

    def restores(self, arguments: Mapping[str, Json]) -> bool:
        return True

    def recipe(self, arguments: Mapping[str, Json], image: Image.Image) -> Image.Image:
        return image.rotate(arguments["angle"], expand=True)


def _angle_degrees(value: Json) -> int | float:
    angle = finite_number(value)
    if angle is None:
        raise ToolError('angle must be a number of degrees; example: {"angle": 90}')
    return int(angle) if angle.is_integer() and abs(angle) < 1e15 else angle
