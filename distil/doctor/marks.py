"""Drawn pictures with a known content, and which frame a teacher's boxes of a known mark are in.

The pictures are not square, of different shapes, and the marks lie off the diagonals and far from the
corner: a box that is right in one frame misses the mark in the three others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from distil.errors import ToolError
from distil.pictures import box_to_pixels
from distil.records import Box, Frame, Size

_HIT = 0.5  # the overlap from which a box counts as the mark's: the usual threshold of detection
_MIN_HITS = 2  # one box can lie right by chance
_SAME_SCALE = 0.08  # how far the two axes of a shrunk picture may differ: servers round sides to 32 pixels
_CLEARLY_SMALLER, _CLEARLY_BETTER = 0.97, 0.1
_AREA_STEP_PX = 1000
_BACKGROUND, _INK = (190, 190, 190), (200, 20, 20)


@dataclass(frozen=True, slots=True)
class DrawnMark:
    """A red rectangle at a known place of a grey picture; `box` in pixels of the picture as drawn."""

    size: Size
    box: Box

    def draw(self) -> Image.Image:
        """The picture with the mark."""
        image = Image.new("RGB", self.size, _BACKGROUND)
        left, top, right, bottom = self.box
        ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), fill=_INK)
        return image


MARKS = (
    DrawnMark((1536, 864), (1050, 120, 1370, 330)),
    DrawnMark((832, 1280), (100, 800, 330, 1100)),
    DrawnMark((1408, 1088), (500, 700, 800, 960)),
)
FourNumbers = tuple[float, float, float, float]
BoxAnswers = Mapping[DrawnMark, tuple[Size, FourNumbers]]  # the picture's size as sent, and what was given


@dataclass(frozen=True, slots=True)
class FoundFrame:
    """The frame that the answers are in, None where none fits, with the overlaps that speak for it.

    `max_area_px` is set where the boxes are in pixels of a picture that the server has shrunk to it.
    """

    frame: Frame | None
    overlap: float  # mean intersection over union with the marks, 0 to 1
    num_hits: int
    num_answers: int
    max_area_px: int | None = None

    @property
    def is_sure(self) -> bool:
        """Whether every mark was asked for and hit in this frame."""
        return self.frame is not None and self.num_hits == len(MARKS)


def find_frame(answers: BoxAnswers) -> FoundFrame:
    """The frame in which most answers hit their marks, or the pixels of a smaller picture."""
    scores = [
        _summed(frame, [_overlap_in(frame, mark, *answer) for mark, answer in answers.items()])
        for frame in Frame
    ]
    found = max(scores, key=lambda score: (score.num_hits, score.overlap))
    if found.num_hits < _MIN_HITS:
        found = FoundFrame(None, found.overlap, found.num_hits, len(answers))
    if found.frame in (None, Frame.PIXEL):
        return _find_shrunk(answers, found) or found
    return found


def _summed(frame: Frame, overlaps: Sequence[float], max_area_px: int | None = None) -> FoundFrame:
    mean = sum(overlaps) / len(overlaps) if overlaps else 0.0
    return FoundFrame(frame, mean, sum(each >= _HIT for each in overlaps), len(overlaps), max_area_px)


def _overlap_in(frame: Frame, mark: DrawnMark, sent: Size, numbers: FourNumbers) -> float:
    try:
        box, _ = box_to_pixels(numbers, frame, sent, mark.size)
    except ToolError:
        return 0.0
    return _overlap(box, mark.box)


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def _find_shrunk(answers: BoxAnswers, unshrunk: FoundFrame) -> FoundFrame | None:
    """Pixels of a picture that the server made smaller, where that explains the answers clearly better."""
    shrunk = (_fit_shrunk(mark, *answer) for mark, answer in answers.items())
    fits = [fit for fit in shrunk if fit is not None]
    if len(fits) < max(_MIN_HITS, len(answers) - 1):
        return None
    area_px = min(area for area, _ in fits) // _AREA_STEP_PX * _AREA_STEP_PX
    found = _summed(Frame.PIXEL, [overlap for _, overlap in fits], area_px)
    is_better = found.num_hits >= _MIN_HITS and found.overlap > unshrunk.overlap + _CLEARLY_BETTER
    return found if is_better and area_px > 0 else None


def _fit_shrunk(mark: DrawnMark, sent: Size, numbers: FourNumbers) -> tuple[int, float] | None:
    """The area of the smaller picture that the box would be in and its overlap there, None for none."""
    scaled = [value * sent[axis % 2] / mark.size[axis % 2] for axis, value in enumerate(mark.box)]
    x1, y1, x2, y2 = numbers
    scale_x, scale_y = (x1 + x2) / (scaled[0] + scaled[2]), (y1 + y2) / (scaled[1] + scaled[3])
    if not 0 < max(scale_x, scale_y) < _CLEARLY_SMALLER or min(scale_x, scale_y) <= 0:
        return None
    if abs(scale_x - scale_y) > _SAME_SCALE * max(scale_x, scale_y):
        return None
    overlap = _overlap((x1 / scale_x, y1 / scale_y, x2 / scale_x, y2 / scale_y), scaled)
    return int(sent[0] * sent[1] * scale_x * scale_y), overlap
