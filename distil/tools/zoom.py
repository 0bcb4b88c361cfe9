"""image_zoom_in_tool: crop a box out of the picture, at full resolution."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from distil.errors import ToolError
from distil.pictures import MAX_ASPECT_RATIO, box_to_pixels, pixels_to_box
from distil.records import Box, CropFrom, Frame, Json
from distil.tools.base import (
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

BOX_ARGUMENT = "bbox_2d"
_EXAMPLES = {Frame.PIXEL: "[120, 80, 520, 400]", Frame.REL1: "[0.12, 0.08, 0.52, 0.4]"}
_FRAME_TEXTS = {
    Frame.PIXEL: "[x1, y1, x2, y2] in pixels of {picture} as you see it",
    Frame.REL1000: "[x1, y1, x2, y2], each from 0 to 1000 relative to the width and height of {picture}",
    Frame.REL1000_YX: "[y1, x1, y2, x2], y first, each from 0 to 1000 relative to the size of {picture}",
    Frame.REL1: "[x1, y1, x2, y2], each from 0 to 1 relative to the width and height of {picture}",
}
_PICTURE_TEXTS = {CropFrom.CURRENT: "the most recent image", CropFrom.ORIGINAL: "the original image"}


@dataclass(frozen=True)
class ZoomTool(Tool):
    """Crop `bbox_2d` out of the current picture (or of the original, where the run says so)."""

    name: str = "image_zoom_in_tool"

    def schema(self, boxes: BoxFrame) -> Mapping[str, Json]:
        box_text = _FRAME_TEXTS[boxes.frame].format(picture=_PICTURE_TEXTS[boxes.crop_from])
        box_schema = {
            "type": "array",
            "items": {"type": "number"},
            "minItems": 4,
            "maxItems": 4,
            "description": f"The box to zoom in on, {box_text}.",
        }
        description = "Zoom in on a region of the image: returns the region at full resolution."
        return function_schema(self.name, description, {BOX_ARGUMENT: box_schema}, [BOX_ARGUMENT])

    def resolve(self, raw: Mapping[str, Json], seen: SeenSizes, boxes: BoxFrame) -> Resolved:
        """Stored `bbox_2d` is in whole pixels of the picture it crops.

        With `crop_from` original, a box inside the current crop is stored relative to that crop, so that
        re-applying the calls one after another still gives the same picture; any other box is stored with
        `"crop_from": "original"`.
        """
        example = json.dumps({BOX_ARGUMENT: json.loads(_EXAMPLES.get(boxes.frame, "[120, 80, 520, 400]"))})
        numbers = _four_numbers(required_argument(raw, BOX_ARGUMENT, example), example)
        scene = seen.scene
        if boxes.crop_from is CropFrom.CURRENT:
            box, clamped = box_to_pixels(numbers, boxes.frame, seen.current_sent, scene.picture.size)
            _check_shape(box)
            return Resolved({BOX_ARGUMENT: list(box)}, clamped)
        box, clamped = box_to_pixels(numbers, boxes.frame, seen.original_sent, scene.photo.size)
        _check_shape(box)
        inner = _inside_current(box, scene)
        if inner is not None:
            return Resolved({BOX_ARGUMENT: list(inner)}, clamped)
        return Resolved({BOX_ARGUMENT: list(box), "crop_from": CropFrom.ORIGINAL.value}, clamped)

    def apply(self, arguments: Mapping[str, Json], scene: Scene) -> Applied:
        x1, y1, x2, y2 = arguments[BOX_ARGUMENT]
        from_original = arguments.get("crop_from") == CropFrom.ORIGINAL.value
        box = (x1, y1, x2, y2)
        return Applied(scene.recropped(box) if from_original else scene.cropped(box))

    def restate(self, arguments: Mapping[str, Json], seen: SeenSizes, boxes: BoxFrame) -> Mapping[str, Json]:
        """`bbox_2d` in the frame's own numbers, of the picture that `boxes` says they refer to."""
        x1, y1, x2, y2 = arguments[BOX_ARGUMENT]
        box, scene = (x1, y1, x2, y2), seen.scene
        is_of_photo = arguments.get("crop_from") == CropFrom.ORIGINAL.value
        if boxes.crop_from is CropFrom.ORIGINAL:
            if not is_of_photo:
                if scene.corner is None:
                    raise ToolError("its box is of a picture whose place in the original is not known")
                x, y = scene.corner
                box = (x1 + x, y1 + y, x2 + x, y2 + y)
            stated = pixels_to_box(box, boxes.frame, seen.original_sent, scene.photo.size)
        elif is_of_photo:
            raise ToolError("its box is of the original, not of the current picture")
        else:
            stated = pixels_to_box(box, boxes.frame, seen.current_sent, scene.picture.size)
        return {BOX_ARGUMENT: list(stated)}

    def box_of(self, raw: Json) -> tuple[float, ...] | None:
        box = raw.get(BOX_ARGUMENT) if isinstance(raw, dict) else None
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(end, int | float) for end in box):
            return None
        return tuple(box)

    def restores(self, arguments: Mapping[str, Json]) -> bool:
        return "crop_from" not in arguments

    def recipe(self, arguments: Mapping[str, Json], image: Image.Image) -> Image.Image:
        return image.crop(arguments[BOX_ARGUMENT])


def _four_numbers(value: Json, example: str) -> list[float]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    numbers = [finite_number(number) for number in value] if isinstance(value, list) else []
    if len(numbers) != 4 or None in numbers:
        raise ToolError(f"bbox_2d must be a list of four numbers; example: {example}")
    return [number for number in numbers if number is not None]


def _check_shape(box: Box) -> None:
    width, height = box[2] - box[0], box[3] - box[1]
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ToolError(f"the box is too thin ({width}×{height} pixels): make it wider or higher")


def _inside_current(box: Box, scene: Scene) -> Box | None:
    if scene.corner is None:
        return None
    x, y = scene.corner
    inner = (box[0] - x, box[1] - y, box[2] - x, box[3] - y)
    fits = min(inner) >= 0 and inner[2] <= scene.picture.size[0] and inner[3] <= scene.picture.size[1]
    return inner if fits else None
