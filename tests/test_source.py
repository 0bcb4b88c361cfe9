"""Real datasets on disk become samples, lazily, each with its true row number."""

from __future__ import annotations

import csv
import datetime as dt
import decimal
import json
import os
import subprocess
import sys
from collections.abc import Iterator
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
from distil.jsonable import to_json
from distil.pictures import picture_facts
from distil.records import Place, Sample
from distil.source import Source, open_source
from distil.tasks.geolocation import GEOLOCATION

PHOTOS = [file_bytes(noise(32, 24, seed=seed)) for seed in range(4)]
PLACES = [(48.5, 2.25), (-33.5, 151.25), (0.0, 0.0), (90.0, -180.0)]
ROWS = [row(PHOTOS[n], lat=PLACES[n][0], lon=PLACES[n][1], city=f"city {n}") for n in range(4)]
CITY = {"city": datasets.Value("string")}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what `datasets` builds out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        datasets.disable_progress_bars()
        yield
        datasets.enable_progress_bars()


def load(source: Source, index: int) -> Sample:
    return source.load(index, GEOLOCATION)


def assert_the_four_rows(source: Source) -> None:
    assert len(source) == source.identity.num_rows == 4
    for index in range(4):
        sample = load(source, index)
        assert sample.index == index
        assert sample.picture.data == PHOTOS[index]
        assert sample.truth == Place(*PLACES[index])
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
from distil.source import open_source
for name in sys.argv[1:]:
    try:
        open_source(name)
    except SourceError as error:
        assert "\\n" not in str(error), error
        print("SourceError", error)
"""


def test_a_hub_name_that_cannot_be_reached_is_one_line_and_quick(tmp_path: Path) -> None:
    names = ["someone/no-such-photos", "no-such-photos", "someone/no-such-photos:train", "not a name!"]
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
    rows = [{"photo": "a.jpg", "lat": 1.0, "lon": 2.0}]
    path = saved(tmp_path / "photos", rows, {"photo": datasets.Value("string")})
    with pytest.raises(SourceError, match=r"'image'.*photo"):
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


def error_of(tmp_path: Path, bad: dict[str, Any], features: dict[str, Any] | None = None) -> str:
    """The error of row 1 of 3; its neighbours must still load."""
    good = row(lat=1.0, lon=2.0)
    source = open_source(str(saved(tmp_path / "photos", [good, {**good, **bad}, good], features)))
    with pytest.raises(SampleError) as caught:
        load(source, 1)
    assert load(source, 0).index == 0
    assert load(source, 2).index == 2
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
    GEOLOCATION.check_columns(source.columns)
    assert load(source, 0).truth == Place(1.5, -2.5)


def test_coordinates_may_be_whole_numbers_or_text(tmp_path: Path) -> None:
    rows = [{"image": stored_picture(PHOTOS[0]), "lat": 1, "lon": "-2.5"}]
    types = {"lat": datasets.Value("int32"), "lon": datasets.Value("string")}
    assert load(open_source(str(saved(tmp_path / "photos", rows, types))), 0).truth == Place(1, -2.5)


def test_only_the_row_that_is_loaded_is_decoded(tmp_path: Path) -> None:
    rows = [row(PHOTOS[0]), *[row(b"broken", lat=n, lon=n) for n in range(1, 20)]]
    source = open_source(str(saved(tmp_path / "photos", rows)))
    assert source.select("lat", 3, 0) == [1, 2, 3]
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
    assert scored.select("dataset", 0, 0) == list(range(10))
    assert scored.select("dataset", 3, 7) == [0, 1, 2]
    assert scored.select("dataset", 99, 0) == list(range(10))


def test_a_text_column_sorts_both_ways_with_empty_values_last(scored: Source) -> None:
    assert scored.select("name", 0, 0) == [9, 8, 7, 6, 5, 3, 2, 1, 0, 4]
    assert scored.select("name:asc", 0, 0) == scored.select("name", 0, 0)
    assert scored.select("name:desc", 0, 0) == [0, 1, 2, 3, 5, 6, 7, 8, 9, 4]


def test_a_number_column_sorts_with_infinity_as_a_number_and_nan_last(scored: Source) -> None:
    assert scored.select("score", 0, 0) == [6, 2, 9, 8, 0, 5, 4, 7, 1, 3]
    assert scored.select("score:desc", 0, 0) == [7, 4, 0, 5, 8, 9, 2, 6, 1, 3]


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
        assert (sample.index, sample.data["city"]) == (index, f"city {index}")
    assert source.select("city:desc", 2, 0) == [3, 2]


# --- many rows


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [row(file_bytes(noise(40, 30, seed=seed)), lat=seed / 2, lon=-seed) for seed in range(150)]
    return saved(tmp_path_factory.mktemp("many") / "with space", rows)


def everything(source: Source, index: int) -> tuple[str, str, float]:
    sample = load(source, index)
    return sample.picture.file_sha256, sample.picture.facts.pixel_sha256, sample.truth.lon


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
    assert [source.load(row, GEOLOCATION).data["kind"] for row in (0, 1)] == ["field", None]


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
        assert same_pixels(recipe[index]["image"], source.load(index, GEOLOCATION).picture.image)
        assert recipe[index]["city"] == f"city {index}"
    assert open_source(source.identity.source).identity == source.identity


def test_a_view_of_stored_pictures_copies_none(photos: Path, tmp_path: Path) -> None:
    view = Path(open_source(parquet_of_pictures(tmp_path, photos)).identity.path)
    assert sorted(path.name for path in view.iterdir()) == ["dataset_info.json", "state.json"]
