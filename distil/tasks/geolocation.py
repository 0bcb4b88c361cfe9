"""Where was this photo taken: the prompt, the answer parser and the reward."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

from distil.errors import SampleError, SourceError
from distil.messages.tags import text_outside
from distil.records import Json, Score
from distil.tasks.base import Metric, Rows, Task
from distil.tasks.boxed import answer_bodies, boxed_bodies

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
_GUESSED = {  # the last name of a column, letters alone; and where the picture's EXIF has it
    "lat": (LAT_COLUMNS, re.compile(r"(gps|geo)?(lat|latitude)(deg|degrees)?"), "exif:GPSLatitude"),
    "lon": (LON_COLUMNS, re.compile(r"(gps|geo)?(lo?ng?|longitude)(deg|degrees)?"), "exif:GPSLongitude"),
}


@dataclass(frozen=True, slots=True)
class Place:
    """A point on the globe in decimal degrees, latitude -90..90 and longitude -180..180."""

    lat: float
    lon: float


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
        chosen = {field: _column_of(field, columns, asked.get(field)) for field in self.fields}
        usual = {field: _usual(columns, _GUESSED[field][0]) for field in self.fields}
        return {field: column for field, column in chosen.items() if column != usual[field]}

    def truth(self, row: Mapping[str, Json]) -> Mapping[str, Json]:
        """Read the row's true place; raises SampleError naming the field that is missing or bad."""
        lat = _coordinate(row, LAT_COLUMNS, limit_degrees=90)
        return asdict(Place(lat, _coordinate(row, LON_COLUMNS, limit_degrees=180)))

    def parse_answer(self, response: str) -> Mapping[str, Json] | None:
        place = parse_answer(response)
        return None if place is None else asdict(place)

    def score(self, answer: Mapping[str, Json] | None, truth: Mapping[str, Json]) -> Score:
        return score(None if answer is None else Place(**answer), Place(**truth))

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
    text = text_outside(response, thinking=True, tool_calls=True)
    for bodies in (boxed_bodies(text), answer_bodies(text)):
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
    lat_a, lat_b = math.radians(a.lat), math.radians(b.lat)
    half_lat, half_lon = (lat_b - lat_a) / 2, math.radians(b.lon - a.lon) / 2
    chord = math.sin(half_lat) ** 2 + math.cos(lat_a) * math.cos(lat_b) * math.sin(half_lon) ** 2
    return 2 * EARTH_RADIUS_KM * math.asin(math.sqrt(min(1.0, chord)))


def _column_of(field: str, columns: Collection[str], asked: str | None) -> str:
    names, pattern, in_exif = _GUESSED[field]
    if asked is not None:
        if asked not in columns and asked != in_exif:
            raise SourceError(
                f"--{field}_column {asked!r}: there is no such column; the dataset's columns: "
                f"{', '.join(columns)}"
            )
        return asked
    usual = _usual(columns, names)
    if usual is not None:
        return usual
    fitting = [column for column in columns if pattern.fullmatch(_letters(column))]
    if len(fitting) > 1:
        raise SourceError(
            f"several columns may be {names[0]!r}: {', '.join(fitting)}; name one by --{field}_column"
        )
    if not fitting and in_exif not in columns:
        raise SourceError(
            f"the dataset has no column {' or '.join(map(repr, names))} (degrees), name it by "
            f"--{field}_column; its columns: {', '.join(columns)}"
        )
    return fitting[0] if fitting else in_exif


def _usual(columns: Collection[str], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _letters(column: str) -> str:
    return re.sub("[^a-z]", "", column.rpartition(".")[2].lower())


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
    return Place(lat, lon) if abs(lat) <= 90 and abs(lon) <= 180 else None


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
