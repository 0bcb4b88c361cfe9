"""`--where_row`: rows by a condition over the dataset's columns, whatever form it has, no picture decoded."""

from __future__ import annotations

import datetime as dt
import json
import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from builders import row, saved
from conftest import PLACES, photo_bytes
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scripted_teacher import ScriptedTeacher, is_probe, says

from distil.cli import main
from distil.errors import UsageError
from distil.records import SampleId
from distil.run.conditions import rows_that_meet
from distil.source.cells import Cells
from distil.source.rows import Source, open_source
from distil.source.saved import StoredRows

FEATURES = {
    "country": datasets.Value("string"),
    "place": {"alt": datasets.Value("int32"), "name": datasets.Value("string")},
    "year": datasets.Value("int64"),
    "quality": datasets.Value("float32"),
    "price": datasets.Value("decimal128(8, 2)"),
    "kind": datasets.ClassLabel(names=["city", "village"]),
    "is_day": datasets.Value("bool"),
    "taken_at": datasets.Value("timestamp[s]"),
    "tags": datasets.Sequence(datasets.Value("string")),
    "big": datasets.Value("uint64"),
    "odd name": datasets.Value("int8"),
    "mask": datasets.Value("binary"),
}
COUNTRIES = ("Japan", "France", None, "中国")


def made(index: int) -> dict[str, Any]:
    place = {"alt": 100 * index, "name": f"p{index}"} if index % 4 else None
    return row(
        country=COUNTRIES[index % 4],
        place=place,
        year=2000 + index,
        quality=float("nan") if index == 5 else index / 2,
        price=Decimal(index) + Decimal("0.25"),
        kind=index % 2,
        is_day=index < 6,
        taken_at=dt.datetime(2015, 1 + index, 1),
        tags=["a", f"t{index}"],
        big=index,
        mask=b"\0\1",
        **{"odd name": index},
    )


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [made(index) for index in range(12)]


@pytest.fixture(scope="module")
def folder(rows: Sequence[Mapping[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("rows") / "saved", rows, FEATURES)


@pytest.fixture(scope="module")
def source(folder: Path) -> Source:
    return open_source(str(folder))


CONDITIONS: tuple[tuple[str, list[int]], ...] = (
    ("country = 'Japan'", [0, 4, 8]),
    ("country is null", [2, 6, 10]),
    ("country != 'Japan'", [1, 3, 5, 7, 9, 11]),
    ("not (country = 'Japan')", [1, 3, 5, 7, 9, 11]),
    ("country is not 'Japan'", [1, 2, 3, 5, 6, 7, 9, 10, 11]),
    ("country in ('Japan', '中国') and year < 2005", [0, 3, 4]),
    ('"place.alt" >= 900', [9, 10, 11]),
    ("\"place.name\" = 'p2'", [2]),
    ('"place.alt" is null', [0, 4, 8]),
    ("json_extract(place, '$.alt') = 300", [3]),
    ("year = '2003'", [3]),
    ("year between 2002 and 2004", [2, 3, 4]),
    ("quality is null", [5]),
    ("quality / 2 = 0.75", [3]),
    ("price > 9", [9, 10, 11]),
    ("kind = 'village' and year > 2008", [9, 11]),
    ("is_day and year > 2003", [4, 5]),
    ("is_day = 0", [6, 7, 8, 9, 10, 11]),
    ("taken_at >= '2015-11-01' and strftime('%m', taken_at) != '12'", [10]),
    ("tags like '%t11%'", [11]),
    ("big > '9' and big < 11", [10]),
    ('"odd name" % 5 = 1', [1, 6, 11]),
    ("\"Odd Name\" = 3 and COUNTRY like '%国'", [3]),
    ("lat = 48.5 and year = 2001", [1]),
)


@pytest.mark.parametrize(("condition", "expected"), CONDITIONS, ids=str)
def test_the_rows_that_meet_a_condition_are_found(
    condition: str, expected: list[int], source: Source
) -> None:
    assert list(rows_that_meet(condition, source.cells)) == expected


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("contry = 'Japan'", "there is no column 'contry'; did you mean country?"),
        ("place.alt > 3", "place.alt"),
        ("image is not null", "the column 'image' holds pictures or other bytes, which are not read"),
        ("length(mask) > 1", "the column 'mask' holds pictures"),
        ("year >", "syntax error"),
        ("year > 2000; drop table dataset", "one expression, without ;"),
        ("year > 2000 -- so", "comments cannot be used here"),
        ("year > (select avg(year) from dataset)", "one row at a time"),
        ("exists (select 1)", "one row at a time"),
        ("year in dataset", "year"),
        ("max(year) = year", "misuse of aggregate"),
        ("rowid = 3", "there is no column 'rowid'"),
        ("_row = 3", "there is no column '_row'"),
        ("randomblob(9) > 1", "the function randomblob cannot be used here"),
        ("load_extension('x')", "cannot be used here"),
        ("year = 1", "none of the 12 rows meets it"),
        ("json_extract(country, '$.a') = 1", "malformed JSON"),
        ("", "syntax error"),
        ('country = "Japan"', "text is written in single quotes"),
    ],
)
def test_what_is_no_condition_over_the_columns_is_told(condition: str, words: str, source: Source) -> None:
    with pytest.raises(UsageError) as told:
        rows_that_meet(condition, source.cells)
    assert words in str(told.value) and str(told.value).startswith(f"--where_row {condition!r}: ")
    assert "\n" not in str(told.value).removeprefix(f"--where_row {condition!r}")


def test_an_endless_condition_is_ended(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distil.run.conditions._MAX_SECONDS", 0.0)
    monkeypatch.setattr("distil.run.conditions._STEPS_BETWEEN_LOOKS", 1)
    with pytest.raises(UsageError, match="takes more than 0 s for 12 rows"):
        rows_that_meet("year > 2000", source.cells)


def test_numbers_that_sqlite_has_not_are_near_ones() -> None:
    batch = pa.RecordBatch.from_arrays([pa.array([1, 2**64 - 1, None], pa.uint64())], names=["big"])
    cells = Cells(StoredRows([batch], {"big": {"_type": "Value", "dtype": "uint64"}}))
    assert list(rows_that_meet("big > 1e18", cells)) == [1]


def test_columns_that_differ_by_case_alone_are_not_mistaken(tmp_path: Path) -> None:
    features = {"Year": datasets.Value("int64"), "year": datasets.Value("int64")}
    given = [row(Year=1, year=2), row(Year=2, year=1)]
    cells = open_source(str(saved(tmp_path / "two", given, features))).cells
    with pytest.raises(UsageError, match="there is no column"):
        rows_that_meet("year = 1", cells)
    assert list(rows_that_meet("lat = 48.5", cells)) == [0, 1]


def test_a_column_may_have_the_name_that_the_row_number_has(tmp_path: Path) -> None:
    features = {"_row": datasets.Value("int64"), "rowid": datasets.Value("int64")}
    given = [row(_row=5, rowid=7), row(_row=6, rowid=8)]
    cells = open_source(str(saved(tmp_path / "named", given, features))).cells
    assert list(rows_that_meet("_row = 6 and rowid = 8", cells)) == [1]


# --- every form of dataset, the same rows


def in_form(form: str, folder: Path) -> Path:
    """Photos with a country and a year in some form; of 8 rows, 2, 3 and 6 are what is asked for."""
    folder.mkdir()
    table = [
        {"lat": PLACES[each % 6][0], "lon": PLACES[each % 6][1], "country": "JF"[each % 2], "year": each}
        for each in range(8)
    ]
    if form in ("imagefolder", "jsonl", "csv"):
        for each, values in enumerate(table):
            (folder / f"{each}.jpg").write_bytes(photo_bytes(each, (64, 48)))
            values["file_name" if form == "imagefolder" else "image"] = f"{each}.jpg"
    if form in ("imagefolder", "jsonl"):
        name = "metadata.jsonl" if form == "imagefolder" else "rows.jsonl"
        (folder / name).write_text("".join(json.dumps(values) + "\n" for values in table))
        return folder if form == "imagefolder" else folder / name
    if form == "csv":
        lines = [",".join(table[0]), *(",".join(map(str, values.values())) for values in table)]
        (folder / "rows.csv").write_text("\n".join(lines) + "\n")
        return folder / "rows.csv"
    photos = [{"bytes": photo_bytes(each, (64, 48)), "path": None} for each in range(8)]
    cells = {name: [values[name] for values in table] for name in table[0]}
    features = datasets.Features(
        photo=datasets.Image(),
        lat=datasets.Value("float64"),
        lon=datasets.Value("float64"),
        country=datasets.Value("string"),
        year=datasets.Value("int64"),
    )
    dataset = datasets.Dataset.from_dict({"photo": photos, **cells}, features=features)
    if form == "parquet":
        dataset.to_parquet(str(folder / "rows.parquet"))
        return folder / "rows.parquet"
    dataset = dataset if form == "saved, another name" else dataset.rename_column("photo", "image")
    if form == "saved, shuffled back":
        backwards = dataset.select(range(7, -1, -1))
        dataset = backwards.select(range(7, -1, -1))
    dataset.save_to_disk(str(folder / "saved"))
    return folder / "saved"


FORMS = (
    "saved",
    "saved, another name",
    "saved, shuffled back",
    "parquet",
    "jsonl",
    "csv",
    "imagefolder",
)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_dataset_gives_the_same_rows(form: str, tmp_path: Path) -> None:
    opened = open_source(str(in_form(form, tmp_path / "data")))
    assert list(rows_that_meet("(country = 'F' and year = 3) or year % 4 = 2", opened.cells)) == [2, 3, 6]
    assert [opened.load(SampleId(each)).data["year"] for each in (2, 3, 6)] == [2, 3, 6]
    name = "photo" if form == "saved, another name" else "image"
    with pytest.raises(UsageError, match="holds pictures or other bytes"):
        rows_that_meet(f"{name} is not null", opened.cells)


# --- against SQLite itself, and the order


VALUES = st.lists(
    st.tuples(st.none() | st.integers(-3, 3), st.none() | st.sampled_from(["a", "b", "é", ""])), min_size=1
)


@given(VALUES, st.sampled_from(["n > 0", "n is null or t = 'a'", "not (n < 1)", "t >= 'b' and n != 2"]))
def test_what_is_found_is_what_sqlite_finds_in_the_whole_table(
    values: list[tuple[int | None, str | None]], condition: str
) -> None:
    features = {"n": {"_type": "Value", "dtype": "int64"}, "t": {"_type": "Value", "dtype": "string"}}
    columns = [pa.array([n for n, _ in values], pa.int64()), pa.array([t for _, t in values], pa.string())]
    half = len(values) // 2
    batch = pa.RecordBatch.from_arrays(columns, names=["n", "t"])
    batches = [batch.slice(0, half), batch.slice(half)]
    cells = Cells(StoredRows(batches, features))
    with sqlite3.connect(":memory:") as connection:
        connection.execute("create table dataset (n integer, t text)")
        connection.executemany("insert into dataset values (?, ?)", values)
        query = f"select rowid - 1 from dataset where {condition} order by rowid"
        expected = [number for (number,) in connection.execute(query)]
    try:
        found = list(rows_that_meet(condition, cells))
    except UsageError as error:
        assert "meets it" in str(error)
        found = []
    assert found == expected


@pytest.mark.parametrize("order", ["dataset", "random", "quality", "quality:desc", "country", "price:desc"])
def test_the_rows_are_filtered_then_ordered_then_counted(order: str, source: Source) -> None:
    among = rows_that_meet("year % 3 != 0", source.cells)
    whole = [each for each in source.select(order, 0, 5) if each in set(among)]
    assert list(source.select(order, 0, 5, among)) == whole
    assert list(source.select(order, 4, 5, among)) == whole[:4]
    assert list(source.select(order, 99, 5, among)) == whole


# --- runs


def answer(request: Mapping[str, Any]) -> Any:
    return says("\\boxed{48.5, 2.25}")


def run(server: ScriptedTeacher, data: Path, out: Path, *flags: object) -> int:
    given = ("--api_base", server.api_base, "--dataset_path", data, "--output_dir", out, "--tools", "none")
    return main(["run", *map(str, (*given, *flags))])


def test_a_run_asks_the_rows_that_meet_it_by_their_true_numbers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--where_row", "country = 'Japan' or year > 2009", "--order", "quality:desc", "--num_samples", 3)
    with ScriptedTeacher(answer) as server:
        assert run(server, folder, tmp_path / "out", *flags) == 0
        assert sum(not is_probe(request) for request in server.requests) == 3
    assert "--where_row: 5 of the dataset's 12 rows" in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "out").glob("trace_*.json"))
    assert names == ["trace_00008.json", "trace_00010.json", "trace_00011.json"]
    trace = json.loads((tmp_path / "out" / names[0]).read_text())
    assert trace["sample_index"] == 8 and trace["sample_data"]["year"] == 2008
    assert main(["verify", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("dry", [(), ("--dry_run",)], ids=["run", "dry_run"])
def test_a_condition_that_none_meets_ends_the_run_before_anything_is_asked(
    dry: Sequence[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedTeacher(answer) as server:
        assert run(server, folder, tmp_path / "out", "--where_row", "year < 0", "--model", "m", *dry) == 2
        assert server.requests == []
    assert "--where_row 'year < 0': none of the 12 rows meets it" in capsys.readouterr().err


def test_no_picture_is_read_for_a_condition(tmp_path: Path) -> None:
    """The pictures are 60 MB in one batch each; what is read of the file is not a tenth of that."""
    given = [row(data=photo_bytes(0) + bytes(2_000_000), year=each) for each in range(30)]
    folder = saved(tmp_path / "large", given, {"year": datasets.Value("int64")})
    code = (
        "import resource, sys\n"
        "from distil.run.conditions import rows_that_meet\n"
        "from distil.source.rows import open_source\n"
        "cells = open_source(sys.argv[1]).cells\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert list(rows_that_meet('year >= 28', cells)) == [28, 29]\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    assert int(found.stdout) < 6_000, "kB"


def test_a_picture_column_of_another_name_is_a_column_but_none_of_numbers(tmp_path: Path) -> None:
    features = datasets.Features({"photo": datasets.Image(), "year": datasets.Value("int64")})
    table = datasets.Dataset.from_dict({"photo": [Image.new("RGB", (8, 8))], "year": [1]}, features=features)
    table.save_to_disk(str(tmp_path / "photos"))
    cells = open_source(str(tmp_path / "photos")).cells
    assert "photo" in cells.names
    assert [name for name in cells.names if cells.is_number(name)] == ["year"]


def test_columns_that_a_loader_made_of_the_place_are_not_read() -> None:
    columns = [pa.array([1]), pa.array(["/data/shard-0.tar"])]
    text, number = ({"_type": "Value", "dtype": kind} for kind in ("string", "int64"))
    batch = pa.RecordBatch.from_arrays(columns, names=["year", "__url__"])
    rows = StoredRows([batch], {"year": number, "__url__": text})
    rows.left_out = ("__url__",)
    assert Cells(rows).names == ["year", "image"]
