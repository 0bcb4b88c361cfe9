"""What was found out about a teacher, and what follows from it for the main job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from distil.doctor.marks import MARKS, FoundFrame
from distil.records import Frame, ToolMode
from distil.teacher.profile import Profile


class Ability(StrEnum):
    """Whether a teacher can do what a probe asks for."""

    YES = "yes"
    PARTLY = "partly"
    NO = "no"
    NOT_ASKED = "not asked"


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe with what came of it."""

    probe: str
    result: Ability
    detail: str


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A flag for the main job and why; `is_needed` where the main job would go wrong without it."""

    flag: str
    why: str
    is_needed: bool


@dataclass(frozen=True, slots=True)
class Examination:
    """All that was found out about a teacher."""

    model: str
    profile: Profile  # the one that the model's name gets
    findings: tuple[Probe, ...]
    found_frame: FoundFrame
    tool_mode: ToolMode  # the form that calls work in, NONE where neither does
    suggestions: tuple[Suggestion, ...]
    warnings: tuple[str, ...]
    problems: tuple[str, ...]  # why the main job cannot run
    num_requests: int


def working_mode(results: Mapping[ToolMode, Probe]) -> ToolMode:
    """The first form of calls whose results take pictures, NONE where there is none."""
    working = [mode for mode, finding in results.items() if finding.result in (Ability.YES, Ability.PARTLY)]
    return working[0] if working else ToolMode.NONE


def suggestions_of(
    named: Profile, found: FoundFrame, tool_mode: ToolMode, native: Probe
) -> tuple[Suggestion, ...]:
    """The flags for the main job, needed ones and those that `auto` would choose too."""
    suggestions = []
    if tool_mode is not ToolMode.NONE:
        is_needed = tool_mode is ToolMode.TEXT and native.result is Ability.YES
        why = "a call and its picture came through"
        if is_needed:
            why = "native calls work, but a picture in their result does not; a run would choose native"
        suggestions.append(Suggestion(f"--tool_mode {tool_mode.value}", why, is_needed))
    if found.frame is not None:
        is_needed = found.frame is not named.frame
        why = f"{found.num_hits} of {len(MARKS)} boxes hit the mark in this frame"
        why += f"; by its name it would be {named.frame.value}" if is_needed else ", as its name says"
        suggestions.append(Suggestion(f"--coordinates {found.frame.value}", why, is_needed))
    if found.max_area_px is not None:
        why = "the server shrinks larger pictures, and boxes are in pixels of what it shrank them to"
        suggestions.append(Suggestion(f"--image_max_pixels {found.max_area_px}", why, True))
    return tuple(suggestions)


def warnings_of(named: Profile, found: FoundFrame, told: Frame | None, picture: Probe) -> tuple[str, ...]:
    """What to look at before many samples are paid for; `told` is the frame of `--coordinates`."""
    warnings = []
    if picture.result is Ability.PARTLY:
        warnings.append("The word in a picture was not read: does this teacher see pictures well enough?")
    if found.frame is None:
        stated = (told or named.frame).value
        warnings.append(
            f"The frame of the boxes could not be found: they do not follow the mark. {stated} is assumed."
        )
    elif found.frame is not named.frame:
        warnings.append(
            f"The profile {named.name} takes boxes as {named.frame.value}, but they came as "
            f"{found.frame.value}: without --coordinates {found.frame.value} crops are at the wrong place."
        )
    if found.frame is not None and told not in (None, found.frame, named.frame):
        warnings.append(f"The teacher was told {told} and answers in {found.frame.value} all the same.")
    if found.frame is not None and not found.is_sure:
        warnings.append(f"Only {found.num_hits} of {len(MARKS)} marks were hit: look at the first traces.")
    return tuple(warnings)


def problems_of(
    picture: Probe, calls: Sequence[Probe], results: Mapping[ToolMode, Probe], found: FoundFrame
) -> tuple[str, ...]:
    """Why the main job cannot run, nothing where it can."""
    problems = []
    if picture.result is Ability.NO:
        problems.append(f"no picture could be sent: {picture.detail}")
    elif picture.result is Ability.PARTLY and found.frame is None:
        problems.append("the teacher does not see: it read no word and its boxes do not follow the mark")
    if not any(finding.result is Ability.YES for finding in calls):
        problems.append("the teacher makes no tool calls in either form (distil one-turn needs none)")
    elif working_mode(results) is ToolMode.NONE:
        details = "; ".join(finding.detail for finding in results.values())
        problems.append(f"no picture could be sent in the result of a tool call: {details}")
    return tuple(problems)
