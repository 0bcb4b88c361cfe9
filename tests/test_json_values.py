"""Every dataset value becomes JSON in its stated form."""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import hashlib
import json
import uuid
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distil.source.json_values import to_json

UTC = dt.UTC


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (7, 7),
        (2**70, 2**70),
        (1.5, 1.5),
        ("Zürich 東京", "Zürich 東京"),
        (dt.datetime(2020, 1, 2, 3, 4, 5, 6), "2020-01-02T03:04:05.000006"),
        (dt.datetime(2020, 1, 2, tzinfo=UTC), "2020-01-02T00:00:00+00:00"),
        (dt.date(2020, 1, 2), "2020-01-02"),
        (dt.time(3, 4, 5), "03:04:05"),
        (dt.timedelta(minutes=1, milliseconds=500), 60.5),
        (pd.Timestamp("2020-01-01 00:00:00.123456789"), "2020-01-01T00:00:00.123456789"),
        (decimal.Decimal("1.50"), "1.50"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (PurePosixPath("a/b"), "a/b"),
        (b"\x00\xff", {"base64": "AP8="}),
        (bytearray(b"ab"), {"base64": "YWI="}),
        (memoryview(b"ab"), {"base64": "YWI="}),
        (np.int8(-3), -3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.float16(1.5), 1.5),
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.bytes_(b"a"), {"base64": "YQ=="}),
        (np.datetime64("2020-01-02T03:04:05"), "2020-01-02T03:04:05"),
        (np.timedelta64(1500, "ms"), 1.5),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array([1.0, float("nan")]), [1.0, None]),
        (np.array([], dtype=float), []),
        (np.array([b"a", None], dtype=object), [{"base64": "YQ=="}, None]),
        (float("nan"), None),
        (np.float32("nan"), None),
        (np.datetime64("NaT"), None),
        (np.timedelta64("NaT"), None),
        (pd.NaT, None),
        (float("inf"), "Infinity"),
        (-float("inf"), "-Infinity"),
        (np.float32("inf"), "Infinity"),
        ((1, (2,)), [1, [2]]),
        ({2, 1}, [1, 2]),
        (frozenset({"a"}), ["a"]),
        ({"a": {"b": [dt.date(2020, 1, 2)]}}, {"a": {"b": ["2020-01-02"]}}),
        ({1: 2}, {"1": 2}),
    ],
    ids=lambda value: repr(value).split(" at 0x")[0],  # every process must collect the same names
)
def test_a_value_has_its_stated_form(value: Any, expected: Any) -> None:
    result = to_json(value)
    assert result == expected
    assert type(result) is type(expected)
    json.dumps(result, allow_nan=False)


def test_an_array_without_dimensions_is_its_number() -> None:
    assert to_json(np.array(5)) == 5


def test_a_long_double_is_a_number() -> None:
    assert to_json(np.longdouble(1.5)) == 1.5


@pytest.mark.parametrize("path", ["a.jpg", None])
def test_a_picture_in_another_column_is_named_by_its_hash(path: str | None) -> None:
    data = b"picture file"
    digest = hashlib.sha256(data).hexdigest()
    expected = {"picture_sha256": digest, "num_bytes": len(data), "path": path}
    assert to_json({"bytes": data, "path": path}) == expected
    assert to_json([{"path": path, "bytes": data}]) == [expected]


def test_a_lone_surrogate_does_not_break_the_write() -> None:
    json.dumps(to_json({"a\ud800": "b\udfff"}), ensure_ascii=False).encode("utf-8")


def test_an_unknown_value_is_its_text() -> None:
    assert to_json(1j) == "1j"


@given(st.binary())
def test_bytes_come_back(data: bytes) -> None:
    assert base64.b64decode(to_json(data)["base64"]) == data


@given(st.datetimes(timezones=st.none() | st.just(UTC)))
def test_a_datetime_comes_back(value: dt.datetime) -> None:
    assert dt.datetime.fromisoformat(to_json(value)) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_finite_number_comes_back_exactly(value: float) -> None:
    assert json.loads(json.dumps(to_json(value))) == value


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters()),
    st.binary(max_size=20),
    st.datetimes(),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.decimals(),
    st.uuids(),
    st.floats(width=32).map(np.float32),
    st.integers(-(2**63), 2**63 - 1).map(np.int64),
    st.integers(-(2**63), 2**63 - 1).map(lambda value: np.datetime64(value, "ns")),
    st.integers(-(2**63), 2**63 - 1).map(lambda value: np.timedelta64(value, "ns")),
    st.lists(st.floats(), max_size=4).map(np.array),
    st.frozensets(st.integers() | st.text(max_size=3), max_size=4),
)
KEYS = st.one_of(st.text(st.characters(), max_size=5), st.integers(), st.none(), st.booleans())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
        st.fixed_dictionaries({"bytes": inner, "path": inner}),
    ),
    max_leaves=15,
)


@given(VALUES)
def test_any_nested_value_is_strict_json_in_utf_8(value: Any) -> None:
    json.dumps(to_json(value), allow_nan=False, ensure_ascii=False, sort_keys=True).encode("utf-8")
