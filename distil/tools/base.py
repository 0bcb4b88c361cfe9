"""What a tool is: a schema and a pure function from a picture and arguments to a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol

from PIL import Image

from distil.errors import ToolError
from distil.lazy_picture import PIXEL_WORK, LazyPicture
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
    """The pictures that a call can work on: made when they are asked for, and dropped when the scene rests.

    `corner` is where the current picture's top left pixel lies in the original, None once a call has
    done more than crop. `grey_ranges` says by mode how deep grey is shown: the first picture of a mode,
    mostly the photo, sets it for all that follow, so that a crop is as bright as it was in the whole.
    """

    photo: LazyPicture = field(repr=False)
    picture: LazyPicture = field(repr=False)
    corner: tuple[int, int] | None = (0, 0)
    grey_ranges: Mapping[str, GreyRange] = field(default_factory=dict)

    @classmethod
    def start(cls, photo: LazyPicture | Image.Image) -> Scene:
        """The scene before the first call."""
        photo = LazyPicture.of(photo) if isinstance(photo, Image.Image) else photo
        return cls(photo, photo, grey_ranges=_with_range_of(photo.image(), {}))

    @property
    def original(self) -> Image.Image:
        """The photo."""
        return self.photo.image()

    @property
    def current(self) -> Image.Image:
        """The picture that the last call made, at first the photo."""
        return self.picture.image()

    @property
    def grey_range(self) -> GreyRange | None:
        """How the current picture is shown; None where it is no deep grey."""
        return self.grey_ranges.get(self.picture.mode)

    def cropped(self, box: Box) -> Scene:
        """The scene after cropping the current picture."""
        corner = self.corner and (self.corner[0] + box[0], self.corner[1] + box[1])
        return replace(self, picture=self.picture.changed(lambda image: image.crop(box)), corner=corner)

    def recropped(self, box: Box) -> Scene:
        """The scene after cropping the original picture."""
        crop = self.photo.changed(lambda image: image.crop(box))
        return replace(self, picture=crop, corner=(box[0], box[1]))

    def changed(self, action: Callable[[Image.Image], Image.Image]) -> Scene:
        """The scene after a call that makes the same picture of the current one whenever it is made."""
        return self._with(self.picture.changed(action))

    def replaced(self, image: Image.Image) -> Scene:
        """The scene after a call that made a picture in any other way: it is kept as it is."""
        return self._with(LazyPicture.made_once(image))

    def rest(self, keeps_original: bool = False) -> None:
        """Let go of what the next call does not need, or can have made again, until somebody asks for it.

        `keeps_original`: the next call probably works on the original.
        """
        if keeps_original:
            self.photo.rest()
        elif self.picture is not self.photo:
            self.photo.give_up()
        self.picture.rest()
        self.let_go()

    def let_go(self) -> None:
        """Let go of all that can be made again and is not kept already."""
        self.picture.let_go()
        self.photo.let_go()

    def _with(self, picture: LazyPicture) -> Scene:
        ranges = _with_range_of(picture.image(), self.grey_ranges)
        return replace(self, picture=picture, corner=None, grey_ranges=ranges)


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

    @property
    def work(self) -> AbstractContextManager[object]:
        """What is held while a call is applied: it bounds how many pictures are in the making at once."""
        return PIXEL_WORK

    def schema(self, boxes: BoxFrame) -> Mapping[str, Json]:
        """The function schema as the OpenAI API takes it, saying which frame boxes are in."""
        ...

    def resolve(self, raw: Mapping[str, Json], seen: SeenSizes, boxes: BoxFrame) -> Resolved:
        """Turn the teacher's arguments into stored ones."""
        ...

    def apply(self, arguments: Mapping[str, Json], scene: Scene) -> Applied:
        """Apply stored arguments: sampling and replay both call this."""
        ...

    def restate(self, arguments: Mapping[str, Json], seen: SeenSizes, boxes: BoxFrame) -> Mapping[str, Json]:
        """Stored arguments as a teacher that sees these sizes would write them: the inverse of `resolve`.

        Raises ToolError where they cannot be said.
        """
        return arguments

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
