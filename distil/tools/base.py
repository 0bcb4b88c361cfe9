"""What a tool is: a schema and a pure function from a picture and arguments to a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from PIL import Image

from distil.errors import ToolError
from distil.pictures import find_grey_range
from distil.records import Box, CropFrom, Frame, GreyRange, Json, Size

MAX_RESULT_PIXELS = 64_000_000  # a chain of slanted rotations doubles the area each time


@dataclass(frozen=True, slots=True)
class BoxFrame:
    """How a run's teacher states boxes."""

    frame: Frame
    crop_from: CropFrom = CropFrom.CURRENT


@dataclass(frozen=True, slots=True)
class Scene:
    """The pictures that a call can work on.

    `corner` is where the current picture's top left pixel lies in the original, None once a call has
    done more than crop. `grey_ranges` says by mode how deep grey is shown: the first picture of a mode,
    mostly the photo, sets it for all that follow, so that a crop is as bright as it was in the whole.
    """

    original: Image.Image = field(repr=False)
    current: Image.Image = field(repr=False)
    corner: tuple[int, int] | None = (0, 0)
    grey_ranges: Mapping[str, GreyRange] = field(default_factory=dict)

    @classmethod
    def start(cls, image: Image.Image) -> Scene:
        """The scene before the first call."""
        return cls(image, image, grey_ranges=_with_range_of(image, {}))

    @property
    def grey_range(self) -> GreyRange | None:
        """How the current picture is shown; None where it is no deep grey."""
        return self.grey_ranges.get(self.current.mode)

    def cropped(self, box: Box) -> Scene:
        """The scene after cropping the current picture."""
        corner = self.corner and (self.corner[0] + box[0], self.corner[1] + box[1])
        return replace(self, current=self.current.crop(box), corner=corner)

    def recropped(self, box: Box) -> Scene:
        """The scene after cropping the original picture."""
        return replace(self, current=self.original.crop(box), corner=(box[0], box[1]))

    def replaced(self, image: Image.Image) -> Scene:
        """The scene after a call that made a picture in any other way."""
        return replace(self, current=image, corner=None, grey_ranges=_with_range_of(image, self.grey_ranges))


def _with_range_of(image: Image.Image, ranges: Mapping[str, GreyRange]) -> Mapping[str, GreyRange]:
    """The ranges with one for the picture's mode too, where that is deep grey."""
    if image.mode in ranges or (found := find_grey_range(image)) is None:
        return ranges
    return {**ranges, image.mode: found}


@dataclass(frozen=True, slots=True)
class SeenSizes:
    """What the teacher saw of a scene: the sizes its boxes refer to."""

    scene: Scene
    original_sent: Size
    current_sent: Size


@dataclass(frozen=True, slots=True)
class Resolved:
    """Arguments in whole pixels and degrees, fit to be stored and applied again."""

    arguments: Mapping[str, Json]
    clamped: bool = False


@dataclass(frozen=True, slots=True)
class Applied:
    """What applying a call gave: the next scene and, where the tool ran code, what that printed."""

    scene: Scene
    stdout: str | None = None


class Tool(Protocol):
    """One image tool. `resolve` and `apply` raise ToolError with a message for the teacher.

    A tool is a subclass in a file of its own and a line in `TOOLS`; what is said here of most tools, it says
    only where it differs. Nobody else knows it by name.
    """

    @property
    def name(self) -> str: ...

    @property
    def runs_code(self) -> bool:
        """Whether `code` is among its arguments: Python for an executor, which a trace keeps as code."""
        return False

    def schema(self, boxes: BoxFrame) -> Mapping[str, Json]:
        """The function schema as the OpenAI API takes it, saying which frame boxes are in."""
        ...

    def resolve(self, raw: Mapping[str, Json], seen: SeenSizes, boxes: BoxFrame) -> Resolved:
        """Turn the teacher's arguments into stored ones."""
        ...

    def apply(self, arguments: Mapping[str, Json], scene: Scene) -> Applied:
        """Apply stored arguments: sampling and replay both call this."""
        ...

    def box_of(self, raw: Json) -> tuple[float, ...] | None:
        """The box as the teacher wrote it, None where there is none."""
        return None

    def restores(self, arguments: Mapping[str, Json]) -> bool:
        """Whether the README's restore recipe, which knows only the tools that it names, applies the call."""
        return False

    def recipe(self, arguments: Mapping[str, Json], image: Image.Image) -> Image.Image:
        """What that recipe makes of a picture, written as it is there."""
        return image


def function_schema(name: str, description: str, properties: Json, required: list[str]) -> Mapping[str, Json]:
    """A function schema in the OpenAI form."""
    parameters = {"type": "object", "properties": properties, "required": required}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


def required_argument(raw: Mapping[str, Json], name: str, example: str) -> Json:
    """The argument called `name`; raises ToolError that shows an example."""
    if name not in raw:
        given = ", ".join(sorted(map(str, raw))[:8]) or "none"
        raise ToolError(f"the argument {name!r} is missing (given: {given}); example: {example}")
    return raw[name]


def finite_number(value: Json) -> float | None:
    """The number that a JSON value states, also as text; None for anything else, NaN and infinity."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
