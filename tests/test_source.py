"""Real datasets on disk become samples, lazily, each with its true row number."""

from __future__ import annotations

import csv
import datetime as dt
import decimal
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import (
    dataset_of,
    file_bytes,
    jpeg_with_orientation,
    noise,
    row,
    same_pixels,
    saved,
    smooth,
    stored_picture,
)
from conftest import photo_bytes
from hypothesis import given
from hypothesis import strategies as st

from distil.errors import DistilError, SampleError, SourceError
from distil.pictures import Frame, ResizeRule, picture_facts
from distil.records import Json, Prompt, Reply, Sample, SampleId
from distil.rollout import RolloutSettings, run_rollout
from distil.source.json_values import to_json
from distil.source.rows import Source, open_source
from distil.tasks.geolocation import GEOLOCATION
from distil.tools.base import BoxFrame
from distil.tools.toolbox import Toolbox

PHOTOS = [file_bytes(noise(32, 24, seed=seed)) for seed in range(4)]
PLACES = [(48.5, 2.25), (-33.5, 151.25), (0.0, 0.0), (90.0, -180.0)]
ROWS = [row(PHOTOS[n], lat=PLACES[n][0], lon=PLACES[n][1], city=f"city {n}") for n in range(4)]
CITY = {"city": datasets.Value("string")}


pytestmark = pytest.mark.usefixtures("own_cache")


def load(source: Source, index: int) -> Sample:
    return source.load(SampleId(index))


def truth(sample: Sample) -> Mapping[str, Json]:
    return GEOLOCATION.truth(sample.data)


def assert_the_four_rows(source: Source) -> None:
    assert len(source) == source.identity.num_rows == 4
    for index in range(4):
        sample = load(source, index)
        assert sample.id.index == index
        assert sample.picture.data == PHOTOS[index]
        assert tuple(truth(sample).values()) == PLACES[index]
        assert sample.data["city"] == f"city {index}"
        assert "image" not in sample.data


def write_pictures(folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(PHOTOS):
        (folder / f"photo_{number}.jpg").write_bytes(data)
    return [f"photo_{number}.jpg" for number in range(len(PHOTOS))]


def metadata_rows(names: list[str]) -> list[dict[str, Any]]:
    return [
        {"file_name": name, "lat": lat, "lon": lon, "city": f"city {n}"}
        for n, (name, (lat, lon)) in enumerate(zip(names, PLACES, strict=True))
    ]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")


# --- where a dataset may lie


def test_a_saved_folder_is_opened(tmp_path: Path) -> None:
    source = open_source(str(saved(tmp_path / "photos", ROWS, CITY)))
    assert_the_four_rows(source)
    assert source.identity.kind == "saved"
    assert set(source.columns) == {"image", "lat", "lon", "city"}


def test_a_saved_folder_is_opened_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "photos", ROWS, CITY)
    monkeypatch.chdir(tmp_path)
    source = open_source("photos")
    assert_the_four_rows(source)
    assert Path(source.identity.path).is_absolute()


def test_a_folder_with_a_colon_in_its_name_is_opened(tmp_path: Path) -> None:
    assert_the_four_rows(open_source(str(saved(tmp_path / "photos:v2", ROWS, CITY))))


def test_the_restore_recipe_loads_the_same_picture(tmp_path: Path) -> None:
    source = open_source(str(saved(tmp_path / "photos", ROWS, CITY)))
    table = datasets.load_from_disk(source.identity.path)
    for index in range(4):
        assert same_pixels(load(source, index).picture.image, table[index]["image"])


def save_dict(folder: Path) -> Path:
    splits = {"train": dataset_of(ROWS[:1], CITY), "test": dataset_of(ROWS, CITY)}
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return folder


def test_a_split_of_a_saved_dict_is_chosen_by_its_name(tmp_path: Path) -> None:
    source = open_source(f"{save_dict(tmp_path / 'photos')}:test")
    assert_the_four_rows(source)
    assert source.identity.split == "test"


def test_the_path_of_a_split_is_one_that_the_restore_recipe_can_open(tmp_path: Path) -> None:
    source = open_source(f"{save_dict(tmp_path / 'photos')}:test")
    picture = datasets.load_from_disk(source.identity.path)[3]["image"]
    assert same_pixels(picture, load(source, 3).picture.image)


@pytest.mark.parametrize("suffix", ["", ":validation", ":"])
def test_a_dict_without_a_valid_split_says_which_exist(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(SourceError, match=r"train, test|test, train"):
        open_source(f"{save_dict(tmp_path / 'photos')}{suffix}")


def test_the_only_split_of_a_dict_needs_no_name(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": dataset_of(ROWS, CITY)}).save_to_disk(str(tmp_path / "photos"))
    assert_the_four_rows(open_source(str(tmp_path / "photos")))


def test_a_parquet_file_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "photos.parquet"
    dataset_of(ROWS, CITY).to_parquet(str(path))
    source = open_source(str(path))
    assert_the_four_rows(source)
    assert source.identity.kind == "file"


def test_a_parquet_file_of_another_writer_is_opened(tmp_path: Path) -> None:
    """Without the schema metadata of `datasets`, the pictures are plain structs of bytes."""
    path = tmp_path / "photos.parquet"
    table = dataset_of(ROWS, CITY).data.table.replace_schema_metadata(None)
    pq.write_table(table, path)
    assert_the_four_rows(open_source(str(path)))


@pytest.mark.parametrize("prefix", ["", "pictures/"])
def test_a_jsonl_file_names_pictures_relative_to_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    names = write_pictures(tmp_path / "data" / prefix)
    rows = [{**one, "image": prefix + one.pop("file_name")} for one in metadata_rows(names)]
    write_jsonl(tmp_path / "data" / "photos.jsonl", rows)
    assert_the_four_rows(open_source(str(tmp_path / "data" / "photos.jsonl")))
    monkeypatch.chdir(tmp_path)
    assert_the_four_rows(open_source("data/photos.jsonl"))


def test_a_jsonl_file_may_name_pictures_by_absolute_path(tmp_path: Path) -> None:
    names = write_pictures(tmp_path / "elsewhere")
    rows = [
        {**one, "image": str(tmp_path / "elsewhere" / one.pop("file_name"))} for one in metadata_rows(names)
    ]
    write_jsonl(tmp_path / "photos.jsonl", rows)
    assert_the_four_rows(open_source(str(tmp_path / "photos.jsonl")))


def test_an_imagefolder_with_metadata_csv_is_opened(tmp_path: Path) -> None:
    write_csv(tmp_path / "metadata.csv", metadata_rows(write_pictures(tmp_path)))
    source = open_source(str(tmp_path))
    assert_the_four_rows(source)
    assert source.identity.kind == "imagefolder"


def test_an_imagefolder_with_metadata_jsonl_is_opened(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "metadata.jsonl", metadata_rows(write_pictures(tmp_path)))
    assert_the_four_rows(open_source(str(tmp_path)))


def test_a_split_of_an_imagefolder_is_chosen_by_its_name(tmp_path: Path) -> None:
    for split in ("train", "test"):
        names = write_pictures(tmp_path / split)
        write_jsonl(tmp_path / split / "metadata.jsonl", metadata_rows(names))
    source = open_source(f"{tmp_path}:test")
    assert_the_four_rows(source)
    assert source.identity.split == "test"
    with pytest.raises(SourceError, match=r"train.*test|test.*train"):
        open_source(str(tmp_path))


def test_the_fingerprint_is_the_same_each_time_and_another_for_other_rows(tmp_path: Path) -> None:
    path = saved(tmp_path / "photos", ROWS, CITY)
    other = saved(tmp_path / "other", ROWS[:2], CITY)
    assert open_source(str(path)).identity == open_source(str(path)).identity
    assert open_source(str(path)).identity.fingerprint != open_source(str(other)).identity.fingerprint


# --- what is no dataset

OPEN_OFFLINE = """
import sys
from distil.errors import SourceError
from distil.source.rows import open_source
for name in sys.argv[1:]:
    try:
        open_source(name)
    except SourceError as error:
        assert "\\n" not in str(error), error
        print("SourceError", error)
"""


def test_a_hub_name_that_cannot_be_reached_is_one_line_and_quick(tmp_path: Path) -> None:
    names = [
        "hf://someone/no-such-photos",
        "hf://no-such-photos",
        "hf://someone/no-such-photos:train",
        "hf://a name",
    ]
    run = subprocess.run(
        [sys.executable, "-c", OPEN_OFFLINE, *names],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = run.stdout.splitlines()
    assert len(lines) == len(names)
    assert all("no-such-photos" in line for line in lines[:3])


@pytest.mark.parametrize("name", ["./nothing", "/no/such/folder", "~/no such folder", "a/b/c"])
def test_a_path_that_is_not_there_is_a_source_error_naming_it(name: str) -> None:
    with pytest.raises(SourceError, match=name.replace(".", r"\.")):
        open_source(name)


def test_a_folder_without_a_dataset_says_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here", encoding="utf-8")
    with pytest.raises(SourceError, match="save_to_disk"):
        open_source(str(tmp_path))


def test_an_empty_folder_is_a_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        open_source(str(tmp_path))


def test_a_folder_of_folders_without_pictures_is_a_source_error(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "notes.txt").write_text("nothing here", encoding="utf-8")
    with pytest.raises(SourceError):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", b"not parquet"),
        ("a.parquet", b""),
        ("a.jsonl", b"{broken"),
        ("a.jsonl", b""),
        ("a.txt", b"text"),
        ("a.jpg", PHOTOS[0]),
    ],
)
def test_a_file_that_holds_no_dataset_is_a_source_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=name):
        open_source(str(tmp_path / name))


def test_a_damaged_saved_folder_is_a_source_error(tmp_path: Path) -> None:
    path = saved(tmp_path / "photos", ROWS, CITY)
    (path / "data-00000-of-00001.arrow").write_bytes(b"broken")
    with pytest.raises(SourceError, match="photos"):
        open_source(str(path))


def test_a_saved_folder_without_its_data_file_is_a_source_error(tmp_path: Path) -> None:
    path = saved(tmp_path / "photos", ROWS, CITY)
    (path / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(SourceError, match="photos"):
        open_source(str(path))


def test_a_dataset_without_an_image_column_says_which_columns_it_has(tmp_path: Path) -> None:
    rows = [{"subject": "a.jpg", "lat": 1.0, "lon": 2.0}]
    path = saved(tmp_path / "photos", rows, {"subject": datasets.Value("string")})
    with pytest.raises(SourceError, match=r"'image'.*--image_column.*subject"):
        open_source(str(path))


def test_an_image_column_that_holds_no_pictures_is_a_source_error(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "photos", [{"image": 7, "lat": 1.0, "lon": 2.0}], {"image": datasets.Value("int64")}
    )
    with pytest.raises(SourceError):
        open_source(str(path))


def test_an_empty_dataset_is_a_source_error(tmp_path: Path) -> None:
    path = saved(tmp_path / "photos", [])
    with pytest.raises(SourceError, match="no rows"):
        open_source(str(path))


# --- rows that cannot be used


SETTINGS = RolloutSettings(
    GEOLOCATION, Prompt("", ""), Toolbox((), BoxFrame(Frame.PIXEL), ResizeRule()), 10, 0
)


def asked_in_vain(*_: object) -> Reply:
    raise AssertionError("asked for a row that cannot be used")


def error_of(tmp_path: Path, bad: dict[str, Any], features: dict[str, Any] | None = None) -> str:
    """The error of row 1 of 3; its neighbours must still load."""
    good = row(lat=1.0, lon=2.0)
    source = open_source(str(saved(tmp_path / "photos", [good, {**good, **bad}, good], features)))
    with pytest.raises(SampleError) as caught:
        run_rollout(load(source, 1), asked_in_vain, SETTINGS)
    assert load(source, 0).id.index == 0
    assert load(source, 2).id.index == 2
    message = str(caught.value)
    assert "row 1 " in message
    assert "photos" in message
    return message


@pytest.mark.parametrize(
    "data",
    [b"", b"not a picture", PHOTOS[0][: len(PHOTOS[0]) // 2], b"<html>404</html>"],
    ids=["empty", "text", "truncated", "html"],
)
def test_a_broken_picture_is_a_failed_sample(tmp_path: Path, data: bytes) -> None:
    assert "picture" in error_of(tmp_path, {"image": stored_picture(data)})


def test_a_missing_picture_is_a_failed_sample(tmp_path: Path) -> None:
    assert "'image'" in error_of(tmp_path, {"image": None})


@pytest.mark.parametrize("path", ["/no/such/file.jpg", "", "gone.jpg", "/", "https:", "a\x00b"], ids=repr)
def test_a_picture_file_that_cannot_be_read_is_a_failed_sample(tmp_path: Path, path: str) -> None:
    struct = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    message = error_of(tmp_path, {"image": stored_picture(None, path)}, {"image": struct})
    assert "picture" in message or "'image'" in message


def test_a_picture_file_that_a_jsonl_names_in_vain_is_a_failed_sample(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "photos.jsonl", [{"image": "gone.jpg", "lat": 1.0, "lon": 2.0}])
    source = open_source(str(tmp_path / "photos.jsonl"))
    with pytest.raises(SampleError, match=r"row 0 .*gone\.jpg"):
        load(source, 0)


@pytest.mark.parametrize("value", [float("nan"), None, 90.5, -1000.0, float("inf")])
@pytest.mark.parametrize("column", ["lat", "lon"])
def test_a_bad_coordinate_is_a_failed_sample(tmp_path: Path, column: str, value: float | None) -> None:
    bad = value * 2 if value == 90.5 and column == "lon" else value
    assert f"'{column}'" in error_of(tmp_path, {column: bad})


def test_coordinates_may_be_called_latitude_and_longitude(tmp_path: Path) -> None:
    rows = [{"image": stored_picture(PHOTOS[0]), "latitude": 1.5, "longitude": -2.5}]
    types = {name: datasets.Value("float32") for name in ("latitude", "longitude")}
    source = open_source(str(saved(tmp_path / "photos", rows, types)))
    assert GEOLOCATION.choose_columns(source.columns, {}) == {}
    assert truth(load(source, 0)) == {"lat": 1.5, "lon": -2.5}


def test_coordinates_may_be_whole_numbers_or_text(tmp_path: Path) -> None:
    rows = [{"image": stored_picture(PHOTOS[0]), "lat": 1, "lon": "-2.5"}]
    types = {"lat": datasets.Value("int32"), "lon": datasets.Value("string")}
    sample = load(open_source(str(saved(tmp_path / "photos", rows, types))), 0)
    assert truth(sample) == {"lat": 1, "lon": -2.5}


def test_only_the_row_that_is_loaded_is_decoded(tmp_path: Path) -> None:
    rows = [row(PHOTOS[0]), *[row(b"broken", lat=n, lon=n) for n in range(1, 20)]]
    source = open_source(str(saved(tmp_path / "photos", rows)))
    assert list(source.select("lat", 3, 0)) == [1, 2, 3]
    assert load(source, 0).picture.data == PHOTOS[0]


# --- what is kept of a row


def data_of(tmp_path: Path, feature: Any, value: Any) -> Any:
    rows = [row(extra=value)]
    sample = load(open_source(str(saved(tmp_path / "photos", rows, {"extra": feature}))), 0)
    json.dumps(sample.data, allow_nan=False)
    return sample.data["extra"]


@pytest.mark.parametrize(
    ("feature", "value", "expected"),
    [
        (datasets.Value("string"), "Zürich 東京", "Zürich 東京"),
        (datasets.Value("string"), None, None),
        (datasets.Value("bool"), True, True),
        (datasets.Value("int64"), -(2**63), -(2**63)),
        (datasets.Value("uint64"), 2**63 - 1, 2**63 - 1),
        (datasets.Value("float32"), 0.5, 0.5),
        (datasets.Value("float64"), float("nan"), None),
        (datasets.Value("float64"), float("-inf"), "-Infinity"),
        (datasets.Value("binary"), b"\x00\xff", {"base64": "AP8="}),
        (datasets.Value("date32"), dt.date(2020, 1, 2), "2020-01-02"),
        (datasets.Value("time64[us]"), dt.time(1, 2, 3, 4), "01:02:03.000004"),
        (datasets.Value("timestamp[us]"), dt.datetime(2020, 1, 2, 3), "2020-01-02T03:00:00"),
        (
            datasets.Value("timestamp[us, tz=UTC]"),
            dt.datetime(2020, 1, 2, 3, tzinfo=dt.UTC),
            "2020-01-02T03:00:00+00:00",
        ),
        (datasets.Value("duration[ms]"), dt.timedelta(seconds=1.5), 1.5),
        (datasets.Value("decimal128(10, 2)"), decimal.Decimal("1.50"), "1.50"),
        (datasets.ClassLabel(names=["day", "night"]), 1, "night"),
        (datasets.List(datasets.Value("float64")), [1.0, float("nan"), None], [1.0, None, None]),
        (datasets.Array2D((2, 2), "int32"), [[1, 2], [3, 4]], [[1, 2], [3, 4]]),
        (
            {"a": datasets.Value("int8"), "b": datasets.Value("string")},
            {"a": 1, "b": None},
            {"a": 1, "b": None},
        ),
        ([{"a": datasets.Value("date32")}], [{"a": dt.date(2020, 1, 2)}], [{"a": "2020-01-02"}]),
    ],
    ids=repr,
)
def test_every_column_type_is_written_in_its_stated_form(
    tmp_path: Path, feature: Any, value: Any, expected: Any
) -> None:
    assert data_of(tmp_path, feature, value) == expected


def test_another_picture_column_is_named_by_its_hash_and_not_decoded(tmp_path: Path) -> None:
    cell = stored_picture(b"not even a picture", "map.png")
    assert data_of(tmp_path, datasets.Image(), cell) == to_json(cell)


def test_a_list_of_pictures_is_named_by_their_hashes(tmp_path: Path) -> None:
    cells = [stored_picture(PHOTOS[0]), stored_picture(PHOTOS[1])]
    assert data_of(tmp_path, datasets.List(datasets.Image()), cells) == to_json(cells)


def test_a_picture_inside_a_struct_is_named_by_its_hash(tmp_path: Path) -> None:
    cell = stored_picture(PHOTOS[0])
    assert data_of(tmp_path, {"map": datasets.Image()}, {"map": cell}) == to_json({"map": cell})


def test_a_sound_column_is_kept_without_a_sound_library(tmp_path: Path) -> None:
    rows = [row(sound=stored_picture(b"RIFF", None))]
    plain = {"sound": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
    table = dataset_of(rows, plain).cast_column("sound", datasets.Audio())
    table.save_to_disk(str(tmp_path / "photos"))
    sample = load(open_source(str(tmp_path / "photos")), 0)
    json.dumps(sample.data, allow_nan=False)
    assert sample.data["sound"]


@pytest.mark.parametrize("mode", [None, "RGB", "L"])
@pytest.mark.parametrize(
    "data",
    [
        jpeg_with_orientation(smooth(40, 30), 6),
        file_bytes(noise(20, 10, "RGBA"), "PNG"),
        file_bytes(noise(20, 10, "P"), "PNG"),
    ],
    ids=["turned", "RGBA", "P"],
)
def test_pictures_are_what_datasets_itself_decodes(tmp_path: Path, data: bytes, mode: str | None) -> None:
    path = saved(tmp_path / "photos", [row(data)], {"image": datasets.Image(mode=mode)})
    theirs = datasets.load_from_disk(str(path))[0]["image"]
    ours = load(open_source(str(path)), 0).picture
    assert same_pixels(ours.image, theirs)
    assert ours.facts == picture_facts(theirs)


# --- orders


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Ten rows with columns to sort by; the pictures are broken, so sorting must not decode them."""
    scores = [0.5, None, 0.1, float("nan"), 0.9, 0.5, -1.0, float("inf"), 0.3, 0.2]
    rows = [
        row(
            b"broken",
            score=score,
            name=None if number == 4 else f"name {9 - number}",
            price=decimal.Decimal(number * 3 % 10) * decimal.Decimal("4.5"),
            taken=dt.datetime(2020, 1, 1 + number * 7 % 10, microsecond=number * 7 % 3),
            tags=["a"],
        )
        for number, score in enumerate(scores)
    ]
    types = {
        "score": datasets.Value("float64"),
        "name": datasets.Value("string"),
        "price": datasets.Value("decimal128(10, 2)"),
        "taken": datasets.Value("timestamp[us]"),
        "tags": datasets.List(datasets.Value("string")),
    }
    return open_source(str(saved(tmp_path_factory.mktemp("scored") / "photos", rows, types)))


def test_the_order_of_the_dataset_is_its_rows(scored: Source) -> None:
    assert list(scored.select("dataset", 0, 0)) == list(range(10))
    assert list(scored.select("dataset", 3, 7)) == [0, 1, 2]
    assert list(scored.select("dataset", 99, 0)) == list(range(10))


def test_a_text_column_sorts_both_ways_with_empty_values_last(scored: Source) -> None:
    assert list(scored.select("name", 0, 0)) == [9, 8, 7, 6, 5, 3, 2, 1, 0, 4]
    assert scored.select("name:asc", 0, 0) == scored.select("name", 0, 0)
    assert list(scored.select("name:desc", 0, 0)) == [0, 1, 2, 3, 5, 6, 7, 8, 9, 4]


def test_a_number_column_sorts_with_infinity_as_a_number_and_nan_last(scored: Source) -> None:
    assert list(scored.select("score", 0, 0)) == [6, 2, 9, 8, 0, 5, 4, 7, 1, 3]
    assert list(scored.select("score:desc", 0, 0)) == [7, 4, 0, 5, 8, 9, 2, 6, 1, 3]


def test_a_decimal_column_sorts_by_number(scored: Source) -> None:
    assert scored.select("price", 0, 0) == sorted(range(10), key=lambda number: number * 3 % 10)


def test_a_datetime_column_sorts_by_time(scored: Source) -> None:
    assert scored.select("taken", 0, 0) == sorted(range(10), key=lambda number: number * 7 % 10)


@pytest.mark.parametrize("order", ["nothing", "image", "score:up", "tags:desc:asc", "Random", "", ":desc"])
def test_an_unknown_order_says_what_there_is(scored: Source, order: str) -> None:
    with pytest.raises(SourceError, match=r"random.*score"):
        scored.select(order, 0, 0)


def test_an_order_by_a_column_of_structs_is_a_source_error(tmp_path: Path) -> None:
    rows = [row(box={"a": n}) for n in range(2)]
    source = open_source(str(saved(tmp_path / "photos", rows, {"box": {"a": datasets.Value("int64")}})))
    with pytest.raises(SourceError, match="compared"):
        source.select("box", 0, 0)


@given(
    st.integers(), st.integers(0, 12), st.integers(0, 12), st.sampled_from(["random", "name", "name:desc"])
)
def test_a_larger_selection_begins_with_the_smaller(
    scored: Source, seed: int, smaller: int, larger: int, order: str
) -> None:
    smaller, larger = sorted((smaller or 1, larger or 1))
    picked = scored.select(order, larger, seed)
    assert len(picked) == len(set(picked)) == min(larger, 10)
    assert picked[: min(smaller, 10)] == scored.select(order, smaller, seed)


def test_a_random_order_depends_on_its_seed_alone(scored: Source) -> None:
    orders = {tuple(scored.select("random", 0, seed)) for seed in range(20)}
    assert len(orders) > 15
    assert scored.select("random", 0, 3) == scored.select("random", 0, 3)
    assert all(sorted(order) == list(range(10)) for order in orders)


def test_a_selection_keeps_the_true_row_number(tmp_path: Path) -> None:
    source = open_source(str(saved(tmp_path / "photos", ROWS, CITY)))
    for index in source.select("city:desc", 2, 0):
        sample = load(source, index)
        assert (sample.id.index, sample.data["city"]) == (index, f"city {index}")
    assert list(source.select("city:desc", 2, 0)) == [3, 2]


# --- many rows


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [row(file_bytes(noise(40, 30, seed=seed)), lat=seed / 2, lon=-seed) for seed in range(150)]
    return saved(tmp_path_factory.mktemp("many") / "with space", rows)


def everything(source: Source, index: int) -> tuple[str, str, float]:
    sample = load(source, index)
    return sample.picture.file_sha256, sample.picture.facts.pixel_sha256, float(truth(sample)["lon"])


def test_letting_go_of_read_pages_does_not_change_what_is_read(many: Path) -> None:
    source = open_source(str(many))
    first = [everything(source, index) for index in range(150)]
    assert [everything(source, index) for index in range(150)] == first
    assert [lon for _, _, lon in first] == [-index for index in range(150)]
    assert len({digest for digest, _, _ in first}) == 150


def test_many_threads_read_what_one_reads(many: Path) -> None:
    source = open_source(str(many))
    one_by_one = [everything(source, index) for index in range(150)]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda index: everything(source, index), range(150))) == one_by_one


def test_a_row_that_is_not_there_is_an_error(many: Path) -> None:
    source = open_source(str(many))
    with pytest.raises((DistilError, IndexError)):
        load(source, 150)


def test_a_split_of_a_dataset_without_splits_is_refused(photos: Path) -> None:
    with pytest.raises(SourceError, match="has no splits"):
        open_source(f"{photos}:train")


def test_a_class_label_is_written_by_its_name(tmp_path: Path) -> None:
    features = datasets.Features(
        image=datasets.Image(),
        lat=datasets.Value("float64"),
        lon=datasets.Value("float64"),
        kind=datasets.ClassLabel(names=["town", "field"]),
    )
    rows = {
        "image": [{"bytes": photo_bytes(0), "path": None}] * 2,
        "lat": [1.0] * 2,
        "lon": [1.0] * 2,
        "kind": [1, None],
    }
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "data"))
    source = open_source(str(tmp_path / "data"))
    assert [source.load(SampleId(row)).data["kind"] for row in (0, 1)] == ["field", None]


def parquet_of_pictures(folder: Path, photos: Path) -> str:
    datasets.load_from_disk(str(photos)).to_parquet(str(folder / "pictures.parquet"))
    return str(folder / "pictures.parquet")


def parquet_of_bare_structs(folder: Path, photos: Path) -> str:
    table = datasets.load_from_disk(str(photos)).cast_column("image", datasets.Image(decode=False))
    pq.write_table(table.data.table.replace_schema_metadata(None), folder / "structs.parquet")
    return str(folder / "structs.parquet")


def parquet_of_bare_bytes(folder: Path, photos: Path) -> str:
    table = datasets.load_from_disk(str(photos)).cast_column("image", datasets.Image(decode=False))
    rows = [{**item, "image": item["image"]["bytes"]} for item in table]
    pq.write_table(pa.Table.from_pylist(rows), folder / "bytes.parquet")
    return str(folder / "bytes.parquet")


def jsonl_of_paths(folder: Path, photos: Path) -> str:
    table = datasets.load_from_disk(str(photos)).cast_column("image", datasets.Image(decode=False))
    lines = []
    for number, item in enumerate(table):
        (folder / f"{number}.jpg").write_bytes(item["image"]["bytes"])
        lines.append(json.dumps({**item, "image": f"{number}.jpg"}))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return str(folder / "rows.jsonl")


def imagefolder(folder: Path, photos: Path) -> str:
    pictures = folder / "pictures"
    pictures.mkdir()
    path = Path(jsonl_of_paths(pictures, photos))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [json.dumps({"file_name": item.pop("image"), **item}) for item in rows]
    (pictures / "metadata.jsonl").write_text("\n".join(lines))
    path.unlink()
    return str(pictures)


@pytest.mark.parametrize(
    "make", [parquet_of_pictures, parquet_of_bare_structs, parquet_of_bare_bytes, jsonl_of_paths, imagefolder]
)
def test_load_from_disk_opens_the_path_that_traces_record(make: Any, photos: Path, tmp_path: Path) -> None:
    """The restore recipe starts from it, whatever the dataset was given as."""
    source = open_source(make(tmp_path, photos))
    assert source.identity.source.startswith(str(tmp_path))
    recipe = datasets.load_from_disk(source.identity.path)
    for index in (0, 7, 11):
        assert same_pixels(recipe[index]["image"], source.load(SampleId(index)).picture.image)
        assert recipe[index]["city"] == f"city {index}"
    assert open_source(source.identity.source).identity == source.identity


def test_a_view_of_stored_pictures_copies_none(photos: Path, tmp_path: Path) -> None:
    view = Path(open_source(parquet_of_pictures(tmp_path, photos)).identity.path)
    assert sorted(path.name for path in view.iterdir()) == ["dataset_info.json", "state.json"]


# --- what is refused before anything is paid for


@pytest.mark.parametrize(
    ("feature", "value", "what"),
    [
        (datasets.List(datasets.Image()), [stored_picture(PHOTOS[0])], "list"),
        (datasets.Array3D((2, 2, 3), "uint8"), [[[1, 2, 3]] * 2] * 2, "array3d"),
        (datasets.List(datasets.Value("uint8")), [1, 2], "list"),
        (datasets.Value("int64"), 7, "int64"),
        (datasets.Value("null"), None, "null"),
        ({"url": datasets.Value("string")}, {"url": "a"}, "url"),
        ({"path": datasets.Value("int64")}, {"path": 7}, "int64"),
        ({"bytes": datasets.List(datasets.Value("uint8"))}, {"bytes": [1]}, "list"),
    ],
    ids=repr,
)
def test_an_image_column_without_one_picture_a_row_is_refused(
    tmp_path: Path, feature: Any, value: Any, what: str
) -> None:
    path = saved(tmp_path / "photos", [row() | {"image": value}], {"image": feature})
    with pytest.raises(SourceError, match=rf"(?is)'image' holds .*{what}.*one picture a row is needed"):
        open_source(str(path))


@pytest.mark.parametrize(
    ("feature", "value"),
    [(datasets.Value("string"), "a.jpg"), ({"path": datasets.Value("string")}, {"path": "a.jpg"})],
    ids=["text", "struct"],
)
def test_relative_paths_in_a_saved_dataset_are_refused_wherever_it_is_opened(
    tmp_path: Path, feature: Any, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jpg").write_bytes(PHOTOS[0])
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "photos", [row() | {"image": value}] * 2, {"image": feature})
    with pytest.raises(SourceError, match=r"relative paths such as 'a\.jpg'.*absolute"):
        open_source(str(path))


def test_a_relative_path_among_others_is_a_failed_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jpg").write_bytes(PHOTOS[0])
    monkeypatch.chdir(tmp_path)
    rows = [row() | {"image": name} for name in (str(tmp_path / "a.jpg"), "a.jpg")]
    source = open_source(str(saved(tmp_path / "photos", rows, {"image": datasets.Value("string")})))
    assert load(source, 0).picture.data == PHOTOS[0]
    with pytest.raises(SampleError, match=r"row 1 .*'a\.jpg' is relative"):
        load(source, 1)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.csv", b"", "No columns"),
        ("a.csv", b"image,lat,lon\n", "no rows"),
        ("a.json", b"", "no rows"),
        ("a.json", b"[]", "no rows"),
        ("a.jsonl", b"\r\n\r\n", "no rows"),
        ("a.csv", b"image;lat;lon\r\na.jpg;1;2\r\n", "columns: image;lat;lon"),
        ("a.csv", "image,lat,lon\nä.jpg,1,2\n".encode("latin-1"), "utf-8"),
        ("a.csv", "image,lat,lon\na.jpg,1,2\n".encode("utf-16"), "utf-8"),
        ("a.csv", b"image,lat,lon\na.jpg,1,2,\nb.jpg,1,2,\n", "'image' holds int64"),
        ("a.jsonl", b'{"image": "a.jpg", "lat": 1, "lat": 2}\n', "lat. was specified twice"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line_that_says_why(
    tmp_path: Path, name: str, content: bytes, what: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=what) as caught:
        open_source(str(tmp_path / name))
    assert "\n" not in str(caught.value)


# --- pictures that metadata does not name, and names without a picture


def told(path: str) -> list[str]:
    lines: list[str] = []
    open_source(path, lines.append)
    return lines


def test_pictures_that_the_metadata_does_not_name_are_counted_aloud(tmp_path: Path) -> None:
    write_csv(tmp_path / "metadata.csv", metadata_rows(write_pictures(tmp_path)))
    assert told(str(tmp_path)) == []
    (tmp_path / "more [b]").mkdir()
    for name in ("z.jpg", "more [b]/a.PNG", ".hidden.jpg", "notes.txt"):
        (tmp_path / name).write_bytes(PHOTOS[0])
    left_out = "not named in metadata.csv and left out"
    two = f"2 pictures in {tmp_path} are {left_out}: more [b]/a.PNG, z.jpg"
    assert told(str(tmp_path)) == [two]
    for name in ("0.jpg", "1.jpg"):
        (tmp_path / name).write_bytes(PHOTOS[0])
    (four,) = told(str(tmp_path))
    assert four == f"4 pictures in {tmp_path} are {left_out}: 0.jpg, 1.jpg, more [b]/a.PNG, …"


def test_pictures_of_other_splits_and_columns_are_not_left_out(tmp_path: Path) -> None:
    for split in ("train", "test"):
        rows = metadata_rows(write_pictures(tmp_path / split))
        write_csv(tmp_path / split / "metadata.csv", [{**one, "map_file_name": "map.png"} for one in rows])
        (tmp_path / split / "map.png").write_bytes(file_bytes(noise(8, 8), "PNG"))
    assert told(f"{tmp_path}:test") == []
    (tmp_path / "train" / "forgotten.jpg").write_bytes(PHOTOS[0])
    (line,) = told(f"{tmp_path}:test")
    assert line.startswith("1 picture in ")
    assert line.endswith("is not named in metadata.csv and left out: train/forgotten.jpg")


def test_a_name_in_metadata_without_a_picture_is_a_failed_sample(tmp_path: Path) -> None:
    rows = metadata_rows(write_pictures(tmp_path))
    (tmp_path / rows[1]["file_name"]).unlink()
    write_csv(tmp_path / "metadata.csv", rows)
    source = open_source(str(tmp_path))
    assert load(source, 0).picture.data == PHOTOS[0]
    with pytest.raises(SampleError, match=r"row 1 .*photo_1\.jpg"):
        load(source, 1)


# --- class labels


def test_class_labels_are_their_names_however_deep(tmp_path: Path) -> None:
    light = datasets.ClassLabel(names=["day", "night"])
    features = {
        "plain": light,
        "list": datasets.List(light),
        "fixed": datasets.List(light, length=2),
        "large": datasets.LargeList(light),
        "nested": datasets.List(datasets.List(light)),
        "struct": {"light": light, "lux": datasets.Value("int64")},
        "structs": datasets.List({"light": light, "lux": datasets.Value("int64")}),
        "lists": datasets.Sequence({"light": light, "lux": datasets.Value("int64")}),
        "numbers": datasets.List(datasets.Value("int64")),
    }
    cells = {
        "plain": 1,
        "list": [0, None, 1],
        "fixed": [1, 0],
        "large": [1],
        "nested": [[1], [], None],
        "struct": {"light": 1, "lux": 1},
        "structs": [{"light": 0, "lux": 0}, None, {"light": None, "lux": 1}],
        "lists": {"light": [0, 1], "lux": [0, 1]},
        "numbers": [0, 1],
    }
    source = open_source(str(saved(tmp_path / "photos", [row(**cells)], features)))
    data = load(source, 0).data
    assert {name: data[name] for name in cells} == {
        "plain": "night",
        "list": ["day", None, "night"],
        "fixed": ["night", "day"],
        "large": ["night"],
        "nested": [["night"], [], None],
        "struct": {"light": "night", "lux": 1},
        "structs": [{"light": "day", "lux": 0}, None, {"light": None, "lux": 1}],
        "lists": {"light": ["day", "night"], "lux": [0, 1]},
        "numbers": [0, 1],
    }


def test_a_label_without_a_name_is_its_number(tmp_path: Path) -> None:
    rows = [row(kind=value, kinds=[value]) for value in (-1, None, 0, 7)]
    plain = {"kind": datasets.Value("int64"), "kinds": datasets.List(datasets.Value("int64"))}
    label = datasets.ClassLabel(names=["town"])
    table = dataset_of(rows, plain)
    features = datasets.Features({**table.features, "kind": label, "kinds": datasets.List(label)})
    unchecked = datasets.Dataset(table.data, info=datasets.DatasetInfo(features=features))
    unchecked.save_to_disk(str(tmp_path / "photos"))
    source = open_source(str(tmp_path / "photos"))
    assert [load(source, index).data["kind"] for index in range(4)] == [-1, None, "town", 7]
    assert [load(source, index).data["kinds"] for index in range(4)] == [[-1], [None], ["town"], [7]]


# --- views


def test_a_view_of_undecoded_pictures_copies_none(tmp_path: Path) -> None:
    path = saved(tmp_path / "photos", ROWS, {"image": datasets.Image(decode=False), **CITY})
    source = open_source(str(path))
    assert_the_four_rows(source)
    view = Path(source.identity.path)
    assert view != path
    assert sorted(file.name for file in view.iterdir()) == ["dataset_info.json", "state.json"]


def paths_saved(folder: Path, names: list[str]) -> Path:
    rows = [{**one, "image": name} for one, name in zip(ROWS, names, strict=True)]
    return saved(folder, rows, {"image": datasets.Value("string"), **CITY})


def test_two_copies_of_a_dataset_have_views_of_their_own(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    names = [str(tmp_path / f"photo_{n}.jpg") for n in range(4)]
    first = paths_saved(tmp_path / "first", names)
    shutil.copytree(first, tmp_path / "second")
    one, two = open_source(str(first)).identity, open_source(str(tmp_path / "second")).identity
    assert one.fingerprint == two.fingerprint
    assert one.path != two.path


def test_a_view_is_made_anew_when_the_dataset_is_changed_under_its_fingerprint(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    names = [str(tmp_path / f"photo_{n}.jpg") for n in range(4)]
    path = paths_saved(tmp_path / "photos", names)
    before = open_source(str(path))
    fingerprint = json.loads((path / "state.json").read_text())["_fingerprint"]
    shutil.rmtree(path)
    paths_saved(path, names[::-1])
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | {"_fingerprint": fingerprint}))
    after = open_source(str(path))
    assert after.identity == before.identity
    assert load(after, 0).picture.data == PHOTOS[3]
    assert load(before, 0).picture.data == PHOTOS[0]  # what a run has open stays as it was


@pytest.mark.parametrize("damage", ["rows.arrow", "dataset_info.json", "state.json", "everything"])
def test_a_damaged_view_is_made_anew_where_it_was(tmp_path: Path, damage: str) -> None:
    write_pictures(tmp_path)
    path = paths_saved(tmp_path / "photos", [str(tmp_path / f"photo_{n}.jpg") for n in range(4)])
    view = Path(open_source(str(path)).identity.path)
    if damage == "everything":
        shutil.rmtree(view)
    else:
        (view / damage).unlink()
    source = open_source(str(path))
    assert_the_four_rows(source)
    assert source.identity.path == str(view)
    assert sorted(file.name for file in view.iterdir()) == ["dataset_info.json", "rows.arrow", "state.json"]


def test_many_openings_at_once_make_one_whole_view(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    path = paths_saved(tmp_path / "photos", [str(tmp_path / f"photo_{n}.jpg") for n in range(4)])
    for _ in range(2):
        with ThreadPoolExecutor(6) as pool:
            sources = list(pool.map(lambda _: open_source(str(path)), range(6)))
        for source in sources:
            assert_the_four_rows(source)
        (view,) = {Path(source.identity.path) for source in sources}
        assert not list(view.parent.glob(".view-*"))
        (view / "rows.arrow").unlink()  # the next round finds one that does not fit


def test_a_table_that_changes_under_its_name_has_another_fingerprint_and_view(tmp_path: Path) -> None:
    names = write_pictures(tmp_path)
    path = tmp_path / "photos.csv"
    for order in (names, names[::-1]):
        rows = metadata_rows(names)
        write_csv(path, [{"image": name, **one} for name, one in zip(order, rows, strict=True)])
        os.utime(path, (1_000_000_000, 1_000_000_000 if order is names else 1_000_000_001))
        source = open_source(str(path))
        assert load(source, 0).picture.data == PHOTOS[names.index(order[0])]
        if order is names:
            before = source.identity
    assert source.identity.fingerprint != before.fingerprint
    assert source.identity.path != before.path


def test_a_cache_that_is_a_relative_path_gives_an_absolute_dataset_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path("cache"))
    names = write_pictures(tmp_path)
    write_csv(
        tmp_path / "photos.csv",
        [{"image": name, **one} for name, one in zip(names, metadata_rows(names), strict=True)],
    )
    source = open_source("photos.csv")
    assert Path(source.identity.path).is_absolute()
    monkeypatch.chdir("/")
    assert same_pixels(
        datasets.load_from_disk(source.identity.path)[3]["image"], load(source, 3).picture.image
    )
