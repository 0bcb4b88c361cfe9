"""The geolocation task: its prompts, its answer parser and its reward."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from distil.errors import SampleError, SourceError
from distil.tasks import TASKS
from distil.tasks.geolocation import (
    ACCURACY_RADII_KM,
    GEOLOCATION,
    SYSTEM_PROMPT,
    USER_PROMPT,
    Place,
    haversine_km,
    parse_answer,
    score,
)


def place_at(lat: float, lon: float) -> Place:
    return {"lat": lat, "lon": lon}


NEW_YORK = place_at(40.7128, -74.006)
HALF_ROUND_KM = math.pi * 6371
LATITUDES, LONGITUDES = st.floats(-90, 90), st.floats(-180, 180)
PLACES = st.builds(place_at, LATITUDES, LONGITUDES)


def boxed(body: str) -> str:
    return f"I think so. \\boxed{{{body}}}"


def km_east_of_null_island(distance_km: float) -> Place:
    return place_at(0.0, math.degrees(distance_km / 6371))


# --- prompts


def test_the_system_prompt_is_the_mission_s() -> None:
    assert SYSTEM_PROMPT == GEOLOCATION.system_prompt == "You are a helpful assistant."


@pytest.mark.parametrize(
    "clue",
    [
        "architecture",
        "vegetation",
        "terrain",
        "text",
        "language",
        "road signs",
        "road markings",
        "vehicles",
        "side of the road|traffic direction",
        "climate",
        "cultural elements",
        "landmarks",
        "decimal degrees",
    ],
)
def test_the_user_prompt_names_every_clue(clue: str) -> None:
    assert re.search(clue, USER_PROMPT.lower())


def test_the_user_prompt_asks_where_and_shows_the_answer_form_without_doubled_braces() -> None:
    assert USER_PROMPT.startswith("Where was this photo taken?")
    assert "\\boxed{latitude, longitude}" in USER_PROMPT
    assert "{{" not in USER_PROMPT
    assert "}}" not in USER_PROMPT


def test_an_echo_of_the_prompt_is_no_answer() -> None:
    assert parse_answer(USER_PROMPT) is None


def test_the_task_is_found_by_its_name() -> None:
    assert TASKS[GEOLOCATION.name] is GEOLOCATION


# --- answers that are read

NEW_YORK_FORMS = [
    "40.7128, -74.0060",
    "40.7128,-74.0060",
    " 40.7128 , -74.0060 ",
    "+40.7128, -74.0060",
    "40.7128, - 74.0060",
    "40.7128,\n-74.0060",
    "040.7128, -074.0060",
    "(40.7128, -74.0060)",
    "[40.7128, -74.0060]",
    "$40.7128, -74.0060$",
    "40.7128; -74.0060",
    "40.7128，-74.0060",
    "40.7128、-74.0060",
    "40.7128, −74.0060",
    "40.7128, –74.0060",
    "40.7128，－74.0060",
    "40.7128, -74.0060.",
    "{40.7128, -74.0060}",
    "{40.7128}, {-74.0060}",
    "40.7128°, -74.0060°",
    "40.7128º, -74.0060º",
    "40.7128^\\circ, -74.0060^\\circ",
    "40.7128^{\\circ}, -74.0060^{\\circ}",
    "40.7128^{\\circ} N, 74.0060^{\\circ} W",
    "40.7128^{\\circ}\\text{N}, 74.0060^{\\circ}\\text{W}",
    "40.7128\\degree, -74.0060\\degree",
    "40.7128\\textdegree{} N, 74.0060\\textdegree{} W",
    "40.7128°N, 74.0060°W",
    "40.7128° N, 74.0060° W",
    "40.7128\u00a0N, 74.0060\u202fW",
    "40.7128 n, 74.0060 w",
    "40.7128N,74.0060W",
    "N40.7128, W74.0060",
    "N 40.7128°, W 74.0060°",
    "W 74.0060, N 40.7128",
    "74.0060°W, 40.7128°N",
    "40.7128° N, -74.0060° W",
    "40.7128 degrees North, 74.0060 degrees West",
    "40.7128 deg N, 74.0060 deg W",
    "40.7128^\\circ N, 74.0060^\\circ W",
    "40.7128^\\circ\\text{N}, 74.0060^\\circ\\text{W}",
    "40.7128^\\circ \\text{ N}, 74.0060^\\circ \\text{ W}",
    "40.7128^\\circ\\,\\mathrm{N},\\ 74.0060^\\circ\\,\\mathrm{W}",
    "40.7128\\text{° N}, 74.0060\\text{° W}",
    "40.7128 \\mathrm{~N}, 74.0060 \\mathrm{~W}",
    "40.7128,\\; -74.0060",
    "40.7128,\\quad -74.0060",
    "40.7128,~-74.0060",
    "\\text{40.7128, -74.0060}",
    "\\mathbf{40.7128, -74.0060}",
    "\\textbf{40.7128, -74.0060}",
    "\\left(40.7128, -74.0060\\right)",
    "\\{40.7128, -74.0060\\}",
    "Latitude: 40.7128, Longitude: -74.0060",
    "latitude = 40.7128, longitude = -74.0060",
    "lat: 40.7128, lon: -74.0060",
    "lat=40.7128, lng=-74.0060",
    "Lat 40.7128, Long -74.0060",
    "\\text{Latitude: } 40.7128, \\text{Longitude: } -74.0060",
    "40°42'46.08\"N, 74°0'21.6\"W",
    "40° 42' 46.08\" N, 74° 0' 21.6\" W",
    "40°42′46.08″N, 74°0′21.6″W",
    "40°42’46.08”N, 74°0’21.6”W",
    "40^\\circ 42' 46.08'' N, 74^\\circ 0' 21.6'' W",
    "40^\\circ 42^\\prime 46.08^{\\prime\\prime} N, 74^\\circ 0^\\prime 21.6^{\\prime\\prime} W",
    "40°42.768'N, 74°0.36'W",
]


def assert_new_york(answer: Place | None) -> None:
    assert answer is not None
    assert (answer["lat"], answer["lon"]) == pytest.approx((NEW_YORK["lat"], NEW_YORK["lon"]), abs=1e-9)


@pytest.mark.parametrize("body", NEW_YORK_FORMS)
def test_a_form_that_models_write_is_read(body: str) -> None:
    assert_new_york(parse_answer(boxed(body)))


@pytest.mark.parametrize(
    "response",
    [
        "\\boxed{{40.7128, -74.0060}}",
        "$\\boxed{40.7128, -74.0060}$",
        "\\[\\boxed{40.7128, -74.0060}\\]",
        "**\\boxed{40.7128, -74.0060}**",
        "\\boxed {40.7128, -74.0060}",
        "\\boxed{\\boxed{40.7128, -74.0060}}",
        "<answer>40.7128, -74.0060</answer>",
        "<answer>\n40.7128, -74.0060\n</answer>",
        "<answer>\\boxed{40.7128, -74.0060}</answer>",
        "<answer>latitude, longitude</answer><answer>40.7128, -74.0060</answer>",
        "<answer>1, 2</answer> \\boxed{40.7128, -74.0060} <answer>3, 4</answer>",
        "\\boxed{1, 2} no: \\boxed{40.7128, -74.0060}",
        "\\boxed{40.7128, -74.0060} in the form \\boxed{latitude, longitude}",
        "\\boxed{40.7128, -74.0060} as \\boxed{}",
        "\\boxed{40.7128, -74.0060}, confidence \\boxed{90\\%}",
        "\\boxed{40.7128, -74.0060} \\boxed{0.9} \\boxed{1, 2, 3} \\boxed{91, 0}",
        "\\boxed{1, 2} or \\boxed{40.7128, -74.0060}, \\boxed{40.7128}",
        "<answer>40.7128, -74.0060</answer>, confidence \\boxed{90\\%}",
        "<answer>40.7128, -74.0060</answer>, confidence <answer>90</answer>",
        "<think>\\boxed{1, 2}</think>\\boxed{40.7128, -74.0060}",
        "\\boxed{1, 2}</think>\\boxed{40.7128, -74.0060}",
        "\\boxed{40.7128, -74.0060}<think>or \\boxed{1, 2}",
        "\\boxed{40.7128, -74.0060}<tool_call>\\boxed{1, 2}</tool_call>",
        '<tool_call>{"bbox_2d": [1, 2, 3, 4]}</tool_call>\\boxed{40.7128, -74.0060}',
    ],
)
def test_the_last_answer_outside_thinking_and_tool_calls_counts(response: str) -> None:
    assert_new_york(parse_answer(response))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("0, 0", place_at(0, 0)),
        ("90, 180", place_at(90, 180)),
        ("-90, -180", place_at(-90, -180)),
        ("33.5 S, 70.5 W", place_at(-33.5, -70.5)),
        ("-33.5 S, 151.25 E", place_at(-33.5, 151.25)),
        ("E 151.25, S 33.5", place_at(-33.5, 151.25)),
        (".5, -.5", place_at(0.5, -0.5)),
        ("12., 5.", place_at(12, 5)),
        ("0°30'S, 0°15'W", place_at(-0.5, -0.25)),
        ("-0°30', -10°15'", place_at(-0.5, -10.25)),
    ],
)
def test_signs_edges_and_minutes_are_read(body: str, expected: Place) -> None:
    assert parse_answer(boxed(body)) == expected


# --- what is no answer


@pytest.mark.parametrize(
    "body",
    [
        "",
        "latitude, longitude",
        "40.7128",
        "-74.0060",
        "40.7128,",
        ", -74.0060",
        "1, 2, 3",
        "100, 200, 300, 400",
        "[100, 200, 300, 400]",
        "40,7128, -74,0060",
        "90.001, 0",
        "-91, 0",
        "0, 180.001",
        "0, -181",
        "151.2, -33.9",
        "-40 N, 74 W",
        "40 N, -74 E",
        "N 40 S, W 74",
        "40 E, 74 E",
        "40 N, 74 N",
        "40 W, 74",
        "40, 74 S",
        "40°60'N, 74°W",
        "40°10'60\"N, 74°W",
        "New York, 40.7",
        "40.7.1, 2",
        "--40, 74",
        "1e1, 2",
        "40 42 46",
        "40 42 46 74",
        "40° 42",
        "40°42' 46",
        "40 N 74",
        "40 74 W",
        "40 - 74",
        "40 7128",
        "90 %",
        "40 E 74 N W",
        "91 0",
        "0 181",
        "nan, inf",
        "1234, 5",
        "٤٠, ٧٤",
        "40.7128 or 41, -74",
    ],
)
def test_a_box_that_holds_no_place_is_no_answer(body: str) -> None:
    assert parse_answer(boxed(body)) is None


@pytest.mark.parametrize(
    "response",
    [
        "",
        "40.7128, -74.0060",
        "It is at (40.7128, -74.0060).",
        "\\boxed{40.7128, -74.0060",
        "\\fbox{40.7128, -74.0060}",
        "<answer>40.7128</answer>",
        "<answer></answer>",
        "<think>\\boxed{40.7128, -74.0060}</think>",
        "\\boxed{40.7128, -74.0060}</think>",
        "<think>\\boxed{40.7128, -74.0060}",
        "<think><answer>40.7, -74</answer></think>",
        "<tool_call>\\boxed{40.7128, -74.0060}</tool_call>",
        "<tool_call>\\boxed{40.7128, -74.0060}",
        '<tool_call>{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [10, 20, 30, 40]}}</tool_call>',
        '{"bbox_2d": [10, 20, 30, 40]}',
        "\\boxed{40.7128} \\boxed{90\\%}",
        "\\boxed{40.7128} \\boxed{latitude, longitude}",
    ],
)
def test_a_reply_without_a_box_that_holds_a_place_has_no_answer(response: str) -> None:
    assert parse_answer(response) is None


@pytest.mark.parametrize(
    "body",
    ["longitude: 10, latitude: 40", "lon=10, lat=40", "Lng 10°, Lat 40°"],
)
def test_a_labelled_answer_is_never_read_the_wrong_way_round(body: str) -> None:
    assert parse_answer(boxed(body)) in (None, place_at(40, 10))


@pytest.mark.parametrize("body", ["latitude: 40 E, longitude: 10", "lat: 40, lat: 10"])
def test_labels_that_contradict_are_no_answer(body: str) -> None:
    assert parse_answer(boxed(body)) is None


# --- properties


def signed(place: Place) -> str:
    return f"{place['lat']:.6f}, {place['lon']:.6f}"


def degrees_signs(place: Place) -> str:
    return f"{place['lat']:.6f}°, {place['lon']:.6f}°"


def latex_degrees(place: Place) -> str:
    return f"{place['lat']:.6f}^\\circ, {place['lon']:.6f}^\\circ"


def labelled(place: Place) -> str:
    return f"Latitude: {place['lat']:.6f}, Longitude: {place['lon']:.6f}"


def unicode_minus(place: Place) -> str:
    return signed(place).replace("-", "−")


def letters(place: Place) -> tuple[str, str]:
    return ("S" if place["lat"] < 0 else "N"), ("W" if place["lon"] < 0 else "E")


def suffixed(place: Place) -> str:
    north, east = letters(place)
    return f"{abs(place['lat']):.6f}° {north}, {abs(place['lon']):.6f}° {east}"


def prefixed(place: Place) -> str:
    north, east = letters(place)
    return f"{north}{abs(place['lat']):.6f}, {east}{abs(place['lon']):.6f}"


def east_first(place: Place) -> str:
    north, east = letters(place)
    return f"{abs(place['lon']):.6f}{east}, {abs(place['lat']):.6f}{north}"


def in_text(place: Place) -> str:
    north, east = letters(place)
    return f"{abs(place['lat']):.6f}^\\circ\\text{{{north}}}, {abs(place['lon']):.6f}^\\circ\\text{{{east}}}"


FORMS = [
    signed,
    degrees_signs,
    latex_degrees,
    labelled,
    unicode_minus,
    suffixed,
    prefixed,
    east_first,
    in_text,
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@given(place=PLACES, before=st.text("abc .,", max_size=20), after=st.text("abc .,", max_size=20))
def test_any_place_written_in_any_form_is_read_back(
    form: Callable[[Place], str], place: Place, before: str, after: str
) -> None:
    answer = parse_answer(f"{before}{boxed(form(place))}{after}")
    assert answer is not None
    assert (answer["lat"], answer["lon"]) == pytest.approx((place["lat"], place["lon"]), abs=1e-6)


def dms(value: float, positive: str, negative: str) -> str:
    total = round(abs(value) * 3600)
    degrees, minutes, seconds = total // 3600, total // 60 % 60, total % 60
    return f"{degrees}°{minutes}'{seconds}\"{negative if value < 0 else positive}"


@given(PLACES)
def test_any_place_in_degrees_minutes_and_seconds_is_read_back(place: Place) -> None:
    answer = parse_answer(boxed(f"{dms(place['lat'], 'N', 'S')}, {dms(place['lon'], 'E', 'W')}"))
    assert answer is not None
    assert (answer["lat"], answer["lon"]) == pytest.approx((place["lat"], place["lon"]), abs=0.51 / 3600)


@given(st.floats(-1000, 1000), st.floats(-1000, 1000))
def test_an_answer_out_of_range_is_refused_and_one_in_range_is_read(lat: float, lon: float) -> None:
    lat, lon = round(lat, 4), round(lon, 4)
    expected = place_at(lat, lon) if abs(lat) <= 90 and abs(lon) <= 180 else None
    assert parse_answer(boxed(f"{lat:.4f}, {lon:.4f}")) == expected


PIECES = st.sampled_from(
    [
        "\\boxed{",
        "}",
        "{",
        "<answer>",
        "</answer>",
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "12.5",
        "-7",
        ", ",
        ",",
        "°",
        "^\\circ",
        "\\text{",
        "N",
        "W",
        "'",
        '"',
        " ",
        ".",
        "lat",
        "，",
        "−",
        "９",
        "\n",
        "²",
    ]
)


def assert_a_place_or_none(answer: Place | None) -> None:
    assert answer is None or (abs(answer["lat"]) <= 90 and abs(answer["lon"]) <= 180)


@given(st.text())
@example("\\boxed{²,³}1")
def test_any_text_parses_without_an_error(text: str) -> None:
    assert_a_place_or_none(parse_answer(text))
    assert_a_place_or_none(parse_answer(boxed(text)))
    assert_a_place_or_none(parse_answer(boxed(f"1{text}, 2")))


@given(st.lists(PIECES, max_size=25).map("".join))
def test_any_soup_of_answer_pieces_parses_without_an_error(text: str) -> None:
    assert_a_place_or_none(parse_answer(text))
    assert_a_place_or_none(parse_answer(boxed(text)))


MEASURE = """
import time
from distil.tasks.geolocation import parse_answer
text = {text}
start = time.process_time()
parse_answer(text)
print(time.process_time() - start)
"""


@pytest.mark.parametrize(
    "text",
    [
        "'<think>' * 150_000",
        "'</think>' * 130_000",
        "'<tool_call>' * 95_000",
        "'<answer>' * 130_000",
        "'<answer>1' * 120_000 + '</answer>'",
        "'\\\\boxed{' * 150_000",
        "'\\\\boxed{1' * 130_000 + '}' * 130_000",
        "'\\\\boxed ' * 150_000",
        "'{' * 1_000_000",
        "'\\\\boxed{' + ' ' * 1_000_000 + '1, 2}'",
        "('\\\\boxed{' + ' ' * 290 + '1}') * 3_400",
        "('\\\\boxed{1' + ' ' * 280 + ', 2}') * 3_400",
        "'\\\\boxed{' + '1' * 1_000_000 + '}'",
        "'\\\\boxed{' + '1' * 290 + ', 2}'",
        "'\\\\boxed{' + '\\\\text' * 45 + '1, 2}'",
        "'\\\\boxed{' + '^' * 290 + '1}'",
        "('\\\\boxed{' + '1 ' * 20 + '1}') * 20_000",
        "('\\\\boxed{' + '1 ' * 140 + '1}') * 3_400",
        "('\\\\boxed{' + '\\\\boxed{1 1' * 20 + '}' * 21) * 4_000",
    ],
)
def test_a_megabyte_of_adversarial_reply_is_parsed_in_seconds(text: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", MEASURE.format(text=text)],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert float(run.stdout) < 5


# --- reward


@pytest.mark.parametrize(
    ("distance_km", "expected"),
    [(0, 1.0), (1, 0.99933), (25, 0.98339), (200, 0.87460), (750, 0.60505), (2500, 0.18734)],
)
def test_the_reward_has_its_reference_values(distance_km: float, expected: float) -> None:
    result = score(km_east_of_null_island(distance_km), place_at(0, 0))
    assert round(result.value, 5) == expected
    assert result.details["distance@km"] == pytest.approx(distance_km, abs=1e-6)
    assert result.details["geoguessr@point"] == pytest.approx(5000 * result.value)
    assert result.parse_success


def test_no_answer_scores_nothing_at_20000_km() -> None:
    result = score(None, NEW_YORK)
    assert (result.value, result.parse_success) == (0, False)
    assert result.details == {
        "distance@km": 20000,
        "geoguessr@point": 0,
        "parse_success": False,
        **{f"acc@{radius}km": 0.0 for radius in (1, 25, 200, 750, 2500)},
    }


@pytest.mark.parametrize("radius_km", ACCURACY_RADII_KM)
def test_accuracy_counts_within_its_radius(radius_km: int) -> None:
    inside = score(km_east_of_null_island(radius_km * 0.999), place_at(0, 0))
    outside = score(km_east_of_null_island(radius_km * 1.001), place_at(0, 0))
    key = f"acc@{radius_km}km"
    assert (inside.details[key], outside.details[key]) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("a", "b", "distance_km"),
    [
        (place_at(0, 0), place_at(0, 180), HALF_ROUND_KM),
        (place_at(90, 0), place_at(-90, 0), HALF_ROUND_KM),
        (place_at(45, 30), place_at(-45, -150), HALF_ROUND_KM),
        (place_at(90, 0), place_at(90, 137), 0),
        (place_at(-90, -10), place_at(-90, 170), 0),
        (place_at(10, 180), place_at(10, -180), 0),
        (place_at(0, 179.5), place_at(0, -179.5), HALF_ROUND_KM / 180),
        (place_at(90, 0), place_at(0, 77), HALF_ROUND_KM / 2),
    ],
)
def test_distances_at_the_poles_antipodes_and_date_line(a: Place, b: Place, distance_km: float) -> None:
    assert haversine_km(a, b) == pytest.approx(distance_km, abs=1e-3)


@given(PLACES, PLACES)
def test_the_distance_is_symmetric_and_at_most_half_round_the_globe(a: Place, b: Place) -> None:
    assert haversine_km(a, b) == pytest.approx(haversine_km(b, a), abs=1e-6)
    assert 0 <= haversine_km(a, b) <= HALF_ROUND_KM + 1e-6
    assert haversine_km(a, a) == 0


@given(PLACES, PLACES)
def test_the_reward_falls_with_the_distance_and_stays_within_0_and_1(a: Place, b: Place) -> None:
    result = score(a, b)
    assert 0 < result.value <= 1
    assert result.value == pytest.approx(math.exp(-result.details["distance@km"] / 1492.7))
    assert result.parse_success


# --- the true place of a row


@pytest.mark.parametrize("columns", [("lat", "lon"), ("latitude", "longitude"), ("lat", "lng")])
def test_the_true_place_is_read_from_either_column_name(columns: tuple[str, str]) -> None:
    assert GEOLOCATION.choose_columns([*columns, "image"], {}) == {}
    assert GEOLOCATION.truth({columns[0]: 48.5, columns[1]: 2}) == {"lat": 48.5, "lon": 2}


@pytest.mark.parametrize("columns", [["lat"], ["longitude"], ["image", "city"], []])
def test_a_dataset_without_coordinates_is_refused_by_its_columns(columns: list[str]) -> None:
    with pytest.raises(SourceError, match=r"lat|lon"):
        GEOLOCATION.choose_columns(columns, {})


@pytest.mark.parametrize("value", [None, "north", True, [1.0], 90.5, -91, "Infinity", float("nan")])
def test_a_bad_coordinate_is_named(value: object) -> None:
    with pytest.raises(SampleError, match="'lat'"):
        GEOLOCATION.truth({"lat": value, "lon": 0.0})


def test_a_bad_longitude_is_named() -> None:
    with pytest.raises(SampleError, match="'lon'"):
        GEOLOCATION.truth({"lat": 0.0, "lon": 180.5})


# --- full-width writing, a plain space

FULL_WIDTH = str.maketrans({chr(code): chr(code + 0xFEE0) for code in range(0x21, 0x7F)} | {" ": "\u3000"})


@pytest.mark.parametrize(
    "body",
    [
        "40.7128 -74.0060",
        "40.7128  -74.0060",
        "+40.7128 -74.0060",
        "40.7128\n-74.0060",
        "40.7128\\quad -74.0060",
        "40.7128° -74.0060°",
        "40.7128°N 74.0060°W",
        "40.7128 N 74.0060 W",
        "N 40.7128 W 74.0060",
        "lat 40.7128 lon -74.0060",
        "latitude: 40.7128 longitude: -74.0060",
        "lon: -74.0060 lat: 40.7128",
        "74.0060 W 40.7128 N",
        "40.7128 deg -74.0060 deg",
        "(40.7128) (-74.0060)",
        "４０．７１２８，－７４．００６０",
        "４０.７１２８, -７４.００６０",
        "４０．７１２８　−７４．００６０",
        "４０．７１２８°Ｎ，７４．００６０°Ｗ",
        "（４０．７１２８；－７４．００６０）",
        "40.7128；-74.0060",
        "ｌａｔ：４０．７１２８　ｌｏｎ：－７４．００６０",
    ],
)
def test_full_width_writing_and_a_plain_space_are_read(body: str) -> None:
    assert_new_york(parse_answer(boxed(body)))


@pytest.mark.parametrize(
    "body", ["40°42'46\"N 74°0'22\"W", "40° 42' 46\" N 74° 0' 22\" W", "N 40°42.767' W 74°0.36'"]
)
def test_minutes_on_both_sides_of_a_space_are_read(body: str) -> None:
    answer = parse_answer(boxed(body))
    assert answer is not None
    assert (answer["lat"], answer["lon"]) == pytest.approx((40.7128, -74.006), abs=1e-3)


@given(
    st.floats(-90, 90),
    st.floats(-180, 180),
    st.sampled_from([" ", ", ", ",", "  "]),
    st.booleans(),
    st.sampled_from(["", "°"]),
)
def test_any_place_in_any_of_these_forms_is_read(
    lat: float, lon: float, separator: str, is_full_width: bool, degree: str
) -> None:
    body = f"{lat:.5f}{degree}{separator}{lon:.5f}{degree}"
    answer = parse_answer(boxed(body.translate(FULL_WIDTH) if is_full_width else body))
    assert answer == place_at(float(f"{lat:.5f}"), float(f"{lon:.5f}"))


@given(st.floats(-90, 90), st.floats(-180, 180), st.lists(st.text(max_size=20), max_size=4))
def test_boxes_without_a_place_take_nothing_away(lat: float, lon: float, others: list[str]) -> None:
    place = place_at(float(f"{lat:.5f}"), float(f"{lon:.5f}"))
    after = [boxed(other.translate({ord(brace): None for brace in "{}<>\\"})) for other in others]
    if any(parse_answer(box) is not None for box in after):
        return
    assert parse_answer(" ".join([boxed(f"{place['lat']:.5f}, {place['lon']:.5f}"), *after])) == place


@given(st.lists(st.from_regex(r"[+-]?\d{1,3}(\.\d{1,5})?", fullmatch=True), min_size=1, max_size=5))
def test_only_two_numbers_are_a_place(numbers: list[str]) -> None:
    assert (parse_answer(boxed(" ".join(numbers))) is None) or len(numbers) == 2


@pytest.mark.parametrize(("num_spaces", "is_read"), [(200, True), (300, False), (3000, False)])
@pytest.mark.parametrize("before", ["", "It is far away. " * 100])
def test_a_box_of_more_than_300_characters_is_prose(before: str, num_spaces: int, is_read: bool) -> None:
    for form in ("\\boxed{{48.8,{}2.3}}", "<answer>48.8,{}2.3</answer>"):
        place = parse_answer(before + form.format(" " * num_spaces))
        assert place == (place_at(48.8, 2.3) if is_read else None)
