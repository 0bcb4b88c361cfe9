"""Whether a run's zoom boxes fit their pictures: many that do not mean a wrong setting."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from distil.records import CropFrom, Frame
from distil.store.summary import ZoomBox

_MAX_BAD_SHARE = 0.2  # of a run's boxes; a teacher in the right frame overshoots now and then
_MIN_BOXES = 5


@dataclass
class BoxTally:
    """A run's boxes, counted as its samples end."""

    frame: Frame
    crop_from: CropFrom = CropFrom.CURRENT
    num_boxes: int = 0
    num_bad: int = 0
    num_tiny: int = 0  # of the bad ones, as all that follow
    num_backward: int = 0
    num_of_photos: int = 0
    largest: float = 0.0

    def add(self, boxes: Iterable[ZoomBox]) -> None:
        """Count a finished sample's boxes."""
        for box in boxes:
            self.num_boxes += 1
            if not box.fitted or self._is_tiny(box):
                self._add_bad(box)

    def _add_bad(self, box: ZoomBox) -> None:
        self.largest = max(*box.numbers, self.largest)
        self.num_bad += 1
        self.num_tiny += self._is_tiny(box)
        self.num_backward += _is_backward(box)
        self.num_of_photos += box.is_first_view

    def _is_tiny(self, box: ZoomBox) -> bool:
        return self.frame is not Frame.REL1 and all(0 <= value <= 1 for value in box.numbers)

    def warning(self) -> str | None:
        """The warning to end the run with, or None."""
        if self.num_boxes < _MIN_BOXES or self.num_bad < _MAX_BAD_SHARE * self.num_boxes:
            return None
        return (
            f"{self.num_bad} of {self.num_boxes} zoom boxes did not fit the picture as "
            f"{self.frame.value!r}: {self._advice()}"
        )

    def _advice(self) -> str:
        """The likely setting by what most bad boxes have in common."""
        most = self.num_bad / 2
        if self.num_tiny > most:
            return "the teacher seems to state fractions. Look at some traces, then try --coordinates rel1"
        if self.num_backward > most:
            return "their ends lie before their starts, perhaps [x, y, width, height], which no setting takes"
        if self.crop_from is CropFrom.CURRENT and not self.num_of_photos:
            return "only boxes after a first call. Look at some traces, then try --crop_from original"
        if self.largest <= 1000 and self.frame in (Frame.PIXEL, Frame.REL1):
            return (
                "the teacher seems to state thousandths. Look at some traces, then try --coordinates rel1000"
            )
        if self.largest > 1000 and self.frame is not Frame.PIXEL:
            return "the teacher seems to state pixels. Look at some traces, then try --coordinates pixel"
        return "look at some traces; --coordinates and --crop_from say what boxes refer to"


def _is_backward(box: ZoomBox) -> bool:
    return box.numbers[2] <= box.numbers[0] or box.numbers[3] <= box.numbers[1]
