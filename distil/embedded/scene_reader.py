"""The rules for a question about a drawn shape: find it by colour and form, read what is written in it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from distil.embedded.eyes import VIEW_LONG_SIDE_PX, Look, TextLine
from distil.embedded.protocol import ChatRequest, Decision
from distil.embedded.shapes import PALETTE, SHAPE_NAMES, Box
from distil.embedded.sign_reader import (
    DISCLOSURE,
    GOOD_HEIGHT_PX,
    MIN_BOX_PX,
    MIN_TURN_DEGREES,
    MIN_ZOOM_GAIN,
    ROOM_SPREAD,
    SURE_READ_SCORE,
    Mood,
    box_around,
    gives_up,
    levelling_turn,
    turn_sentence,
    zoom_box,
    zoom_gain,
)

_QUESTION = re.compile(
    rf"What (number|word) is written in the ({'|'.join(PALETTE)}) ({'|'.join(SHAPE_NAMES)})\?", re.IGNORECASE
)
_FORMS = {"number": re.compile(r"\d{2,}"), "word": re.compile(r"[^\W\d_]{3,}")}
ROOM_AROUND_SHAPE = 0.08  # of its side
MIN_READ_SCORE = 0.5
NOTHING = "unreadable"
ZOOM_SENTENCES = (
    "The print is too small to read. I zoom in on it.",
    "I have to look closer at this shape.",
    f"In {VIEW_LONG_SIDE_PX} pixels I cannot read it; zooming in.",
)


@dataclass(frozen=True, slots=True)
class ShapeQuestion:
    """What is asked: the number or the word in a shape."""

    kind: str
    colour: str
    shape: str


def read_question(text: str) -> ShapeQuestion | None:
    """The question that a text asks, None where it asks another."""
    match = _QUESTION.search(text)
    return None if match is None else ShapeQuestion(*(part.lower() for part in match.groups()))


def decide_scene(look: Look, question: ShapeQuestion, request: ChatRequest, mood: Mood) -> Decision:
    """Choose the next step: answer when it is read, else look closer at the shape, else say what is known."""
    box = shape_box(look, question, is_first=request.calls_made == 0)
    lines = [line for line in look.lines if box is not None and is_within(line.box_px, box)]
    read, line = best_reading(lines, question)
    is_sure = line is not None and line.read_score >= SURE_READ_SCORE and line.height_px >= GOOD_HEIGHT_PX / 2
    if box is None or is_sure or gives_up(request, mood):
        return answer_scene(read, question, mood)
    return closer_look_at_shape(look, box, lines, request, mood) or answer_scene(read, question, mood)


def shape_box(look: Look, question: ShapeQuestion, *, is_first: bool) -> Box | None:
    """Where the shape is: of the first picture by its form, later the largest of its colour.

    In a picture that was cut to it or turned, its form tells nothing any more.
    """
    found = (box for name, box in look.shapes if not is_first or name == question.shape)
    return next(found, None)


def is_within(inner: Box, outer: Box) -> bool:
    """Say whether the middle of a box lies in another."""
    x, y = (inner[0] + inner[2]) / 2, (inner[1] + inner[3]) / 2
    return outer[0] <= x <= outer[2] and outer[1] <= y <= outer[3]


def best_reading(lines: list[TextLine], question: ShapeQuestion) -> tuple[str | None, TextLine | None]:
    """What is read that has the form of an answer, and the line that it stands in."""
    found = [
        (line.read_score, line, match[0])
        for line in lines
        if line.read_score >= MIN_READ_SCORE and (match := _FORMS[question.kind].search(line.text))
    ]
    if not found:
        return None, None
    _, line, text = max(found, key=lambda item: item[0])
    return text, line


def closer_look_at_shape(
    look: Look, box: Box, lines: list[TextLine], request: ChatRequest, mood: Mood
) -> Decision | None:
    """Choose the step that makes the print readable, or None if no step on offer would."""
    line = max(lines, key=lambda each: each.found_score, default=None)
    target = with_room(look, box, mood) if line is None else zoom_box(look, line, mood)
    if request.calls_made == 0:
        target = with_room(look, box, mood)  # the shape as a whole first: small print is hardly found
    is_large = line is not None and line.height_px >= GOOD_HEIGHT_PX
    if request.can_zoom and zoom_gain(look, target) >= MIN_ZOOM_GAIN and not is_large:
        return Decision(mood.word(ZOOM_SENTENCES), zoom_px=target)
    if request.can_turn and line is not None and abs(line.tilt_degrees) >= MIN_TURN_DEGREES:
        turn_degrees = levelling_turn(line, mood)
        return Decision(turn_sentence("print", line, mood), turn_degrees=turn_degrees)
    return None


def with_room(look: Look, box: Box, mood: Mood) -> Box:
    """A box around a shape with a little room, inside the picture."""
    room = 1 + 2 * ROOM_AROUND_SHAPE + abs(mood.spread(ROOM_SPREAD)) / 4
    half = max(box[2] - box[0], box[3] - box[1], MIN_BOX_PX) * room / 2
    return box_around(box, half, half, look)


def answer_scene(read: str | None, question: ShapeQuestion, mood: Mood) -> Decision:
    """Answer with what was read, or say that nothing was."""
    where = f"the {question.colour} {question.shape}"
    if read is None:
        return Decision(f"I could read no {question.kind} in {where}. {DISCLOSURE}", boxed=NOTHING)
    phrase = mood.word(
        (f"In {where} I read", f"The {question.kind} in {where} is", f"{where.capitalize()} says")
    )
    return Decision(f"{phrase} “{read}”. {DISCLOSURE}", boxed=read)
