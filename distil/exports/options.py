"""What an export is to be like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distil.pictures import ResizeRule
from distil.records import ExportFormat, FailedCalls, Frame, Json, Student, Thoughts, ToolMode

# How the students' own processors size pictures (`preprocessor_config.json` of the checkpoints): what has
# such a size already stays as it is.
_STUDENT_RULES: Mapping[Student, ResizeRule] = {
    Student.QWEN3_VL: ResizeRule(max_area_px=16_777_216, min_area_px=65_536, min_side_px=0, factor_px=32),
    Student.QWEN25_VL: ResizeRule(max_area_px=12_845_056, min_area_px=3_136, min_side_px=0, factor_px=28),
}


_STUDENT_MODELS: Mapping[Student, str] = {
    Student.QWEN3_VL: "Qwen/Qwen3-VL-8B-Instruct",
    Student.QWEN25_VL: "Qwen/Qwen2.5-VL-7B-Instruct",
}


@dataclass(frozen=True)
class ExportOptions:
    """How conversations are written; the same options and traces give the same bytes."""

    format: ExportFormat
    coordinates: Frame = Frame.REL1000  # or PIXEL: of each picture as it is exported
    image_max_pixels: int | None = None
    thoughts: Thoughts = Thoughts.THINK
    failed_calls: FailedCalls = FailedCalls.MASK
    call_form: ToolMode = ToolMode.TEXT
    student: Student = Student.QWEN3_VL
    takes_all: bool = False  # also traces without an answer
    has_attribution: bool = False  # rows say whose they are

    @property
    def student_rule(self) -> ResizeRule:
        """How the student's processor sizes a picture."""
        return _STUDENT_RULES[self.student]

    @property
    def student_model(self) -> str:
        """A model of the student's family, for commands to start with."""
        return _STUDENT_MODELS[self.student]

    @property
    def max_student_pixels(self) -> int:
        """What a picture may have for the student at most: more than that a trainer must not shrink."""
        limit = self.student_rule.max_area_px
        assert limit is not None
        return min(limit, self.image_max_pixels or limit)

    def as_json(self) -> dict[str, Json]:
        """As the manifest of an export has them."""
        return {
            "format": self.format.value,
            "coordinates": self.coordinates.value,
            "image_max_pixels": self.image_max_pixels,
            "reasoning": self.thoughts.value,
            "errors": self.failed_calls.value,
            "call_form": self.call_form.value,
            "student": self.student.value,
            "all": self.takes_all,
            "attribution": self.has_attribution,
        }
