"""Traces are written by a formatter of our own: the very bytes of the standard library's."""

from __future__ import annotations

import enum
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distil.store.atomic import indented, json_bytes


class Colour(enum.StrEnum):
    RED = 'r"ed'


class Level(enum.IntEnum):
    LOW = 1


class Metres(float):
    def __repr__(self) -> str:
        return "metres"


def standard(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False)


finite = st.floats(allow_nan=False, allow_infinity=False)
keys = st.text(max_size=5) | st.integers() | st.booleans() | st.none() | finite
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**40), 10**40)
    | finite
    | st.text()
    | st.sampled_from(
        [1e16, 1e-07, -0.0, 5e-324, 1.7976931348623157e308, Colour.RED, Level.LOW, Metres(1.5)]
    ),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=20,
)


@given(values)
def test_every_value_has_the_bytes_of_the_standard_library(value: Any) -> None:
    assert indented(value) == standard(value)


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        (),
        [[], {}, [[]], {"a": {}}],
        {"a": [], "b": ()},
        "",
        '\u2028\u0000\x1f\x7f"\\/é😀',
        {"é\n": "\ud800"},
        [Colour.RED, {Colour.RED: Level.LOW}],
        {2: 1, True: 2, None: 3, 1.5: 4, Colour.RED: 5},
        pytest.param(10**4200, id="long"),
        [1e16, 1e-07, 1e22, 123456789012345680.0, -0.0],
    ],
)
def test_odd_values_have_them_too(value: Any) -> None:
    assert indented(value) == standard(value)


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), [-float("inf")], {"a": float("nan")}, {float("nan"): 1}, {1, 2}, b"x", {b"x": 1}, {(1,): 1}, pytest.param(10**4300, id="too long"), 1j],
)  # fmt: skip
def test_what_json_lacks_is_refused_as_there(value: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as theirs:
        standard(value)
    with pytest.raises(theirs.type):
        indented(value)


def test_half_a_character_is_no_utf8() -> None:
    with pytest.raises(ValueError):
        json_bytes({"a": "\ud800"})


def test_what_is_nested_too_deep_is_refused() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(RecursionError):
        indented(value)
