"""The rules: from what is seen in the newest picture to the next step. Templated sentences, no learning."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence

from distil.embedded.eyes import VIEW_LONG_SIDE_PX, Look, TextLine
from distil.embedded.gazetteer import STOP_WORDS, PlaceMatch, find_place, fold
from distil.embedded.protocol import ChatRequest, Decision
from distil.embedded.shapes import Box

MAX_CALLS = 6
# A line this high in the view is as readable as it gets; a lower one is worth a zoom if it can grow enough.
GOOD_HEIGHT_PX = 34.0
# A tilted line is turned a little sooner: its angle shows early, and turning shrinks what was enlarged.
TURN_HEIGHT_PX = 28.0
# A zoom stops at this height: larger letters between the black corners of a turned picture are not found.
CLOSE_UP_HEIGHT_PX = 60.0
MIN_ZOOM_GAIN = 1.35
MIN_GAIN_BEFORE_TURN = 1.5  # turning a whole scene shrinks the writing in it: zoom first
MIN_TURN_DEGREES = 4.0  # a smaller tilt does not hurt the reading
MIN_BOX_PX = 32
MAX_SCALE_TO_LOOK_AROUND = 0.7  # above it a zoom would show hardly more than the view does
# Of a line this low in the view only a fragment may have been found: leave room, in line heights.
SMALL_HEIGHT_PX = 24.0
ROOM_FOR_FRAGMENT, ROOM_FOR_LINE = 4.5, 1.5
SURE_READ_SCORE = 0.9
WEAK_READ_SCORE = 0.6
FLIP_DEGREES = 180
# How far temperature 1 sways the choices: enough for samples to differ, not to spoil most of them.
GIVE_UP_SHARE, TARGET_SPREAD, ANGLE_SPREAD_DEGREES, ROOM_SPREAD = 0.02, 0.06, 1.5, 0.2
PRIOR_GUESS = "20.0, 0.0"
NOTHING_READ = "I could read no place name in this picture, so this is only a fixed guess."
DISCLOSURE = "(distil-sign-reader: OCR and rules, for trying the pipeline.)"
ZOOM_SENTENCES = (
    "There is writing {where}, too small to read. I zoom in on it.",
    "I see what looks like a sign {where}; let me look closer.",
    "The text {where} may name the place. Zooming in.",
)
TURN_SENTENCES = (
    "The {writing} is turned by about {tilt} degrees. I turn the picture to level it.",
    "The text runs at {tilt} degrees; levelling it should make it readable.",
)
FLIP_SENTENCES = (
    "The writing is level but I cannot make sense of it; it may be upside down. I turn it around.",
    "This text could be upside down, so I turn the picture by 180 degrees.",
)


class Mood:
    """The seeded wavering that a temperature above 0 brings; at 0 every method returns the plain choice."""

    def __init__(self, request: ChatRequest, choice: int) -> None:
        self._temperature = min(max(request.temperature, 0.0), 2.0)
        # Not of the body, which the call form changes.
        picture = hashlib.sha256(request.picture or b"").hexdigest()
        key = f"{picture}/{request.calls_made}/{request.seed}/{request.temperature}/{choice}"
        self._random = random.Random(hashlib.sha256(key.encode()).digest())  # noqa: S311  variety, not secrecy

    def spread(self, width: float) -> float:
        """Return a normal deviation of the given width."""
        return self._random.gauss(0.0, width * self._temperature) if self._temperature else 0.0

    def happens(self, share: float) -> bool:
        """Say whether something with the given chance (at temperature 1) happens."""
        return bool(self._temperature) and self._random.random() < share * self._temperature

    def word(self, choices: Sequence[str]) -> str:
        """Pick a phrase."""
        return self._random.choice(choices) if self._temperature else choices[0]


def decide(look: Look, request: ChatRequest, mood: Mood) -> Decision:
    """Choose the next step: answer when sure, else look closer at the writing, else say what is known."""
    match, is_sure = best_match(look)
    if is_sure or gives_up(request, mood):
        return answer(match, mood)
    line = worth_a_look(look, mood)
    step = look_around(look, request, mood) if line is None else closer_look(look, line, request, mood)
    if match is not None and match.is_whole and step is not None and step.turn_degrees == FLIP_DEGREES:
        return answer(match, mood)  # what makes some sense is not upside down
    return step or answer(match, mood)


def gives_up(request: ChatRequest, mood: Mood) -> bool:
    """Whether to call no more: after many calls, after one that failed, or out of a mood."""
    return request.calls_made >= MAX_CALLS or request.last_call_failed or mood.happens(GIVE_UP_SHARE)


def best_match(look: Look) -> tuple[PlaceMatch | None, bool]:
    """Return the best supported place in view and whether it is sure."""
    found: list[tuple[bool, float, PlaceMatch]] = []
    for line in look.lines:
        match = find_place(line.text) if line.read_score >= WEAK_READ_SCORE else None
        if match is not None:
            found.append((match.is_exact and line.read_score >= SURE_READ_SCORE, line.read_score, match))
    if not found:
        return None, False
    is_sure, _, match = max(found, key=lambda item: item[:2])
    return match, is_sure


def worth_a_look(look: Look, mood: Mood) -> TextLine | None:
    """Return the unread line that most looks like writing, or None if all that can be read has been."""
    unread = [line for line in look.lines if not is_settled(line)]
    return max(unread, key=lambda line: line.found_score + mood.spread(TARGET_SPREAD), default=None)


def is_settled(line: TextLine) -> bool:
    """Say whether a line was read for sure and names no place, like HOTEL or "12 km"."""
    if fold(line.text) in STOP_WORDS or any(letter.isdigit() for letter in line.text):
        return line.read_score >= WEAK_READ_SCORE
    return line.read_score >= SURE_READ_SCORE and find_place(line.text) is None and len(line.text) > 1


def closer_look(look: Look, line: TextLine, request: ChatRequest, mood: Mood) -> Decision | None:
    """Choose the step that makes a line readable, or None if no step on offer would."""
    box = zoom_box(look, line, mood)
    gain = zoom_gain(look, box)
    is_tilted = abs(line.tilt_degrees) >= MIN_TURN_DEGREES
    enough_px = TURN_HEIGHT_PX if is_tilted and request.can_turn else GOOD_HEIGHT_PX
    is_small = line.height_px < enough_px and gain >= MIN_ZOOM_GAIN
    if request.can_zoom and (is_small or (is_tilted and gain >= MIN_GAIN_BEFORE_TURN)):
        sentence = mood.word(ZOOM_SENTENCES).format(where=position_words(look, line))
        return Decision(sentence, zoom_px=box)
    if request.can_turn and is_tilted:
        sentence = turn_sentence("writing", line, mood)
        return Decision(sentence, turn_degrees=levelling_turn(line, mood))
    if request.can_turn and not request.has_flipped:
        return Decision(mood.word(FLIP_SENTENCES), turn_degrees=FLIP_DEGREES)
    return None


def zoom_gain(look: Look, box: Box) -> float:
    """How many times larger what is in a box will be seen after a zoom."""
    left, top, right, bottom = box
    return max(look.width_px, look.height_px) / max(right - left, bottom - top)


def turn_sentence(writing: str, line: TextLine, mood: Mood) -> str:
    """Say that the writing is tilted."""
    return mood.word(TURN_SENTENCES).format(writing=writing, tilt=round(line.tilt_degrees))


def levelling_turn(line: TextLine, mood: Mood) -> int:
    """The turn in degrees after which a line is about level."""
    return round(mood.spread(ANGLE_SPREAD_DEGREES) - line.tilt_degrees)


def look_around(look: Look, request: ChatRequest, mood: Mood) -> Decision | None:
    """Zoom into the middle of a large picture in which nothing is left to read, once."""
    if not request.can_zoom or request.calls_made or look.scale > MAX_SCALE_TO_LOOK_AROUND:
        return None
    shift = min(max(mood.spread(TARGET_SPREAD), -1 / 6), 1 / 6)
    left, right = round(look.width_px * (1 / 6 + shift)), round(look.width_px * (5 / 6 + shift))
    box = left, look.height_px // 6, right, look.height_px * 5 // 6
    return Decision("I see no place name yet. I look closer at the middle of the picture.", zoom_px=box)


def zoom_box(look: Look, line: TextLine, mood: Mood) -> Box:
    """Return a box around a line with room on all sides, inside the picture."""
    left, top, right, bottom = whole_name_box(look, line)
    height_px = line.height_px / look.scale
    room = math.exp(mood.spread(ROOM_SPREAD))
    along_px = height_px * room * (ROOM_FOR_FRAGMENT if line.height_px < SMALL_HEIGHT_PX else ROOM_FOR_LINE)
    slope = math.radians(line.tilt_degrees)
    margin_x = along_px * abs(math.cos(slope)) + height_px * room * abs(math.sin(slope))
    margin_y = along_px * abs(math.sin(slope)) + height_px * room * abs(math.cos(slope))
    half_width, half_height = (right - left) / 2 + margin_x, (bottom - top) / 2 + margin_y
    smallest = height_px * VIEW_LONG_SIDE_PX / CLOSE_UP_HEIGHT_PX / 2
    grow = max(1.0, smallest / max(half_width, half_height))
    return box_around((left, top, right, bottom), half_width * grow, half_height * grow, look)


def box_around(box: Box, half_width: float, half_height: float, look: Look) -> Box:
    """Return a box of another size about the same middle, inside the picture."""
    left, right = side_within((box[0] + box[2]) / 2, half_width, look.width_px)
    top, bottom = side_within((box[1] + box[3]) / 2, half_height, look.height_px)
    return left, top, right, bottom


def side_within(middle_px: float, half_px: float, limit_px: int) -> tuple[int, int]:
    """Return one side of a box as whole pixels inside the picture, not shorter than a tool may demand."""
    low, high = max(0, math.floor(middle_px - half_px)), min(limit_px, math.ceil(middle_px + half_px))
    low = max(0, min(low, limit_px - MIN_BOX_PX))
    return low, min(limit_px, max(high, low + MIN_BOX_PX))


def whole_name_box(look: Look, line: TextLine) -> Box:
    """Return the box around a line and the words next to it: small names are often found word by word."""
    reach_px = 1.2 * line.height_px / look.scale
    boxes = [other.box_px for other in look.lines if is_near(line, other, reach_px)]
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def is_near(line: TextLine, other: TextLine, reach_px: float) -> bool:
    """Say whether another line is of about the same size and less than `reach_px` away."""
    (left, top, right, bottom), (left2, top2, right2, bottom2) = line.box_px, other.box_px
    is_alike = 0.5 < other.height_px / line.height_px < 2.0
    gap_px = max(left2 - right, left - right2, top2 - bottom, top - bottom2)
    return is_alike and gap_px < reach_px


def answer(match: PlaceMatch | None, mood: Mood) -> Decision:
    """Answer with the place that was read, or say that none was and give a fixed guess."""
    if match is None:
        return Decision(f"{NOTHING_READ} {DISCLOSURE}", boxed=PRIOR_GUESS)
    place = match.place
    phrase = mood.word(("The sign reads", "The writing says", "I can read"))
    link = ", the name of" if match.is_exact else ", which is closest to the name of"
    sentence = f"{phrase} “{match.written}”{link} {place.name} in {place.country}. {DISCLOSURE}"
    return Decision(sentence, boxed=f"{place.lat}, {place.lon}")


def position_words(look: Look, line: TextLine) -> str:
    """Describe where in the picture a line is."""
    left, top, right, bottom = line.box_px
    column = min(2, int(1.5 * (left + right) / look.width_px))
    row = min(2, int(1.5 * (top + bottom) / look.height_px))
    across = ("at the left", "in the middle", "at the right")[column]
    return f"{across}, {('near the top', 'half way up', 'near the bottom')[row]}"
