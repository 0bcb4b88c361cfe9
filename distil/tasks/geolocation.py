"""Where was this photo taken: the prompt, the answer parser and the reward."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from distil.errors import SampleError
from distil.records import Json, Score
from distil.tasks.base import ColumnNames, Metric, Rows, Task, choose_columns
from distil.tasks.boxed import stated_answers

SYSTEM_PROMPT = "You are a helpful assistant."
USER_PROMPT = """\
Where was this photo taken? Analyze the image and predict the location.

Consider clues like:
- Architecture and building styles
- Vegetation and terrain
- Text and language on signs
- Road signs and road markings
- Vehicles and the side of the road they drive on
- Climate and weather
- Cultural elements
- Landmarks

Give your final answer as coordinates in decimal degrees, in this form:
\\boxed{latitude, longitude}"""

EARTH_RADIUS_KM = 6371.0
DECAY_KM = 1492.7
NO_ANSWER_KM = 20000.0
MAX_POINTS = 5000.0
ACCURACY_RADII_KM = (1, 25, 200, 750, 2500)
PASS_RADIUS_KM = 25  # one of these: a photo is placed right
LAT_COLUMNS = ("lat", "latitude")
LON_COLUMNS = ("lon", "longitude", "lng")
_GUESSED: Mapping[str, ColumnNames] = {
    "lat": (
        LAT_COLUMNS,
        re.compile(r"(gps|geo)?(lat|latitude)(deg|degrees)?"),
        "'lat' or 'latitude' (degrees)",
    ),
    "lon": (
        LON_COLUMNS,
        re.compile(r"(gps|geo)?(lo?ng?|longitude)(deg|degrees)?"),
        "'lon' or 'longitude' or 'lng' (degrees)",
    ),
}
_IN_EXIF = {"lat": "exif:GPSLatitude", "lon": "exif:GPSLongitude"}

# A point on the globe: `lat` -90..90 and `lon` -180..180 decimal degrees.
Place = Mapping[str, float]


def _distance_rows(distances_km: Sequence[float], num_traces: int) -> Rows:
    """Of the answers alone how far they are; of all traces how many are within a radius."""
    answers = "no answer"
    if distances_km:
        median, mean = statistics.median(distances_km), statistics.fmean(distances_km)
        answers = f"median {median:,.1f} km, mean {mean:,.1f} km"
    within = {radius: sum(distance <= radius for distance in distances_km) for radius in ACCURACY_RADII_KM}
    shares = {f"within {radius} km": f"{number / num_traces:.0%}" for radius, number in within.items()}
    return {"distance of answers": answers, **shares}


DISTANCE = Metric(
    name="distance@km",
    heading="distance km",
    cell="{:,.1f}",
    label="distance",
    text="{:,.2f} km",
    over_many=_distance_rows,
    worst=NO_ANSWER_KM,
    metadata_name="distance_km",
)


@dataclass(frozen=True)
class Geolocation(Task):
    """The geolocation task of the mission."""

    name: str = "geolocation"
    system_prompt: str = SYSTEM_PROMPT
    user_prompt: str = USER_PROMPT
    metrics: tuple[Metric, ...] = (DISTANCE,)
    fields: tuple[str, ...] = tuple(_GUESSED)
    map_axes: tuple[str, str] | None = ("lat", "lon")
    drawn_data: str | None = "signs"
    passed: str | None = f"acc@{PASS_RADIUS_KM}km"
    difficulty: str | None = "locatability_score"

    def choose_columns(self, columns: Collection[str], asked: Mapping[str, str]) -> Mapping[str, str]:
        """The columns of latitude and longitude, but for those that `truth` reads without being told.

        Raises SourceError where there are none, or several that may be meant.
        """
        return choose_columns(_GUESSED, columns, asked, _IN_EXIF)

    def truth(self, row: Mapping[str, Json]) -> Mapping[str, Json]:
        """Read the row's true place; raises SampleError naming the field that is missing or bad."""
        lat = _coordinate(row, LAT_COLUMNS, limit_degrees=90)
        return {"lat": lat, "lon": _coordinate(row, LON_COLUMNS, limit_degrees=180)}

    def parse_answer(self, response: str) -> Place | None:
        return parse_answer(response)

    def score(self, answer: Place | None, truth: Place) -> Score:
        return score(answer, truth)

    def text(self, value: Mapping[str, Json]) -> str:
        lat, lon = value.get("lat"), value.get("lon")
        if not isinstance(lat, int | float) or not isinstance(lon, int | float):
            return "not stated"
        return f"{lat:.5f}, {lon:.5f}"

    def reward_text(self, value: float) -> str:
        return f"{value:.4f} ({MAX_POINTS * value:,.0f} points)"


GEOLOCATION = Geolocation()


def parse_answer(response: str) -> Place | None:
    """Read the place that a reply answers with, in decimal degrees, or None.

    The last `\\boxed{…}` that holds a place is the answer, else the last `<answer>…</answer>` that does:
    a confidence in a box of its own takes nothing away. Thinking and tool calls are not looked at. One
    number, four numbers or a value out of range is no place. Linear in the length of the reply.
    """
    for bodies in stated_answers(response):
        places = (_place(plain) for body in reversed(bodies) if _has_digit(plain := body.translate(_NARROW)))
        answer = next((place for place in places if place is not None), None)
        if answer is not None:
            return answer
    return None


def score(answer: Place | None, truth: Place) -> Score:
    """Reward an answer: `exp(-d / 1492.7)` with d the great-circle distance in km (mission.md)."""
    distance_km = NO_ANSWER_KM if answer is None else haversine_km(answer, truth)
    value = 0.0 if answer is None else math.exp(-distance_km / DECAY_KM)
    details = {
        DISTANCE.name: distance_km,
        "geoguessr@point": MAX_POINTS * value,
        "parse_success": answer is not None,
        **{f"acc@{radius}km": float(distance_km <= radius) for radius in ACCURACY_RADII_KM},
    }
    return Score(value, answer is not None, details)


def haversine_km(a: Place, b: Place) -> float:
    """Great-circle distance in km on a sphere of R = 6371 km, by the haversine formula."""
    lat_a, lat_b = math.radians(a["lat"]), math.radians(b["lat"])
    half_lat, half_lon = (lat_b - lat_a) / 2, math.radians(b["lon"] - a["lon"]) / 2
    chord = math.sin(half_lat) ** 2 + math.cos(lat_a) * math.cos(lat_b) * math.sin(half_lon) ** 2
    return 2 * EARTH_RADIUS_KM * math.asin(math.sqrt(min(1.0, chord)))


def _coordinate(row: Mapping[str, Json], columns: tuple[str, ...], limit_degrees: int) -> float:
    column = next((name for name in columns if name in row), None)
    if column is None:
        raise SampleError(f"the row has no column {' or '.join(map(repr, columns))}")
    value = row[column]
    try:
        if isinstance(value, bool):
            raise TypeError
        degrees = float(value)
    except (TypeError, ValueError):
        raise SampleError(f"column {column!r} is not a number: {value!r}") from None
    if not abs(degrees) <= limit_degrees:  # NaN fails this too
        raise SampleError(f"column {column!r} is not within ±{limit_degrees} degrees: {value!r}")
    return degrees


def _has_digit(text: str) -> bool:
    return any("0" <= letter <= "9" for letter in text)


# Full-width ASCII and the ideographic space, as Chinese and Japanese input methods write numbers.
_NARROW = {letter: letter - 0xFEE0 for letter in range(0xFF01, 0xFF5F)} | {0x3000: " "}
# TeX and typography that says nothing about the numbers, in the order it is replaced.
_PLAIN = (
    (re.compile(r"\\?[{}]"), " "),
    (re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|rm|bf|left|right)\b"), ""),
    (re.compile(r"\^? ?\\prime ?\\prime\b"), '"'),
    (re.compile(r"\^? ?\\prime\b"), "'"),
    (re.compile(r"\^? ?\\circ\b|\\degree\b|\\textdegree\b|\^o(?![a-z])|º|˚"), "°"),
    (re.compile(r"\\[,;:! ]|\\quad\b|[()\[\]$~]"), " "),
    (re.compile(r"[−–‒]"), "-"),
    (re.compile(r"[、;]"), ","),
    (re.compile(r"[’′]"), "'"),
    (re.compile(r"[”″]|''"), '"'),
)
# Matched against text whose runs of white space are single spaces: adjacent ` ?` cannot backtrack far.
_ANGLE = re.compile(
    r" ?(?P<label>lat(?:itude)?|lon(?:g|gitude)?|lng)? ?[:=]? ?"
    r"(?P<before>[NSEW])? ?"
    r"(?P<sign>[+-])? ?(?P<degrees>\d{1,3}(?:\.\d{0,20})?|\.\d{1,20}) ?(?:°|deg(?:rees)?)? ?"
    r"(?:(?P<minutes>\d{1,2}(?:\.\d{0,20})?) ?' ?(?:(?P<seconds>\d{1,2}(?:\.\d{0,20})?) ?\" ?)?)?"
    r"(?P<after>[NSEW]|north|south|east|west)? ?\.? ?",
    re.IGNORECASE | re.ASCII,
)
_MAX_SPACES = 24  # of two numbers with a space between them


_AXES = {"la": "lat", "lo": "lon", "ln": "lon", "N": "lat", "S": "lat", "E": "lon", "W": "lon"}


def _place(body: str) -> Place | None:
    for pattern, plain in _PLAIN:
        body = pattern.sub(plain, body)
    halves = _halves(" ".join(body.split()))
    if len(halves) != 2:
        return None
    first, second = (_angle(half) for half in halves)
    if first is None or second is None:
        return None
    if first[1] == "lon" and second[1] == "lat":
        first, second = second, first
    if first[1] == "lon" or second[1] == "lat":
        return None
    lat, lon = first[0], second[0]
    return {"lat": lat, "lon": lon} if abs(lat) <= 90 and abs(lon) <= 180 else None


def _halves(text: str) -> list[str]:
    """What stands on both sides of the comma, or of the one space that has a number of the same form there.

    "40 42 46", "40° 42" and "40 - 74" may all be one number or a range: they are not taken apart.
    """
    if "," in text or text.count(" ") > _MAX_SPACES or "- " in text or "+ " in text:
        return text.split(",")
    spaces = [match.start() for match in re.finditer(" ", text)]
    pairs = [[text[:space], text[space + 1 :]] for space in spaces]
    fitting = [pair for pair in pairs if (form := _form(pair[0])) is not None and form == _form(pair[1])]
    return fitting[0] if len(fitting) == 1 else []


def _form(text: str) -> tuple[bool, ...] | None:
    """Which parts an angle is written with, None for what is no angle."""
    match = _ANGLE.fullmatch(text)
    if match is None:
        return None
    parts = (match["label"], match["before"] or match["after"], match["minutes"], match["seconds"])
    return (*map(bool, parts), "°" in text or "deg" in text.lower())


def _angle(text: str) -> tuple[float, str] | None:
    """Signed decimal degrees and the axis that its label or hemisphere names: "lat", "lon" or ""."""
    match = _ANGLE.fullmatch(text)
    if match is None or (match["before"] and match["after"]):
        return None
    minutes, seconds = float(match["minutes"] or 0), float(match["seconds"] or 0)
    if minutes >= 60 or seconds >= 60:
        return None
    degrees = float(match["degrees"]) + minutes / 60 + seconds / 3600
    hemisphere = (match["before"] or match["after"] or "")[:1].upper()
    if match["sign"] == "-" and hemisphere in ("N", "E"):
        return None  # "-40 N" contradicts itself
    negative = match["sign"] == "-" or hemisphere in ("S", "W")
    axes = {_AXES[text[:2]] for text in ((match["label"] or "").lower(), hemisphere) if text}
    if len(axes) > 1:
        return None  # "latitude: 40 E" contradicts itself
    return (-degrees if negative else degrees), "".join(axes)
