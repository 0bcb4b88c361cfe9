"""A saved dataset is read without `datasets`, and every row of it is what `datasets` gives."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from builders import dataset_of, file_bytes, noise, row, saved, stored_picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distil.errors import SourceError
from distil.records import SampleId
from distil.source.library import open_dataset
from distil.source.order import first_rows
from distil.source.rows import Source, open_source, page_trimmer
from distil.source.saved import StoredRows, read_saved

PHOTO = file_bytes(noise(8, 8))
LIGHT = datasets.ClassLabel(names=["day", "night"])
INT = datasets.Value("int64")
TEXT = st.text(st.characters(codec="utf-8"), max_size=6)
PICTURES = st.sampled_from([None, stored_picture(PHOTO), {"bytes": PHOTO, "path": "a.jpg"}])
TIMES = st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1))


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def integers(bits: int, is_signed: bool) -> st.SearchStrategy[int]:
    low = -(2 ** (bits - 1)) if is_signed else 0
    return st.integers(low, low + 2**bits - 1)


# Every kind of feature that is read without `datasets`, with values of it; a null is added to each.
KINDS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    **{f"int{bits}": (datasets.Value(f"int{bits}"), integers(bits, True)) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": (datasets.Value(f"uint{bits}"), integers(bits, False)) for bits in (8, 16, 32, 64)},
    **{f"float{bits}": (datasets.Value(f"float{bits}"), st.floats(width=bits)) for bits in (32, 64)},
    "null": (datasets.Value("null"), st.none()),
    "bool": (datasets.Value("bool"), st.booleans()),
    **{name: (datasets.Value(name), TEXT) for name in ("string", "large_string", "string_view")},
    **{name: (datasets.Value(name), st.binary(max_size=6)) for name in ("binary", "large_binary")},
    "date32": (datasets.Value("date32"), st.dates(dt.date(1800, 1, 1))),
    "time64": (datasets.Value("time64[us]"), st.times()),
    "timestamp[s]": (datasets.Value("timestamp[s]"), TIMES.map(lambda time: time.replace(microsecond=0))),
    "timestamp[us]": (datasets.Value("timestamp[us]"), TIMES),
    "timestamp[ns]": (datasets.Value("timestamp[ns]"), TIMES),
    "timestamp with a zone": (
        datasets.Value("timestamp[us, tz=Europe/Berlin]"),
        TIMES.map(lambda time: time.replace(tzinfo=dt.UTC)),
    ),
    "duration": (
        datasets.Value("duration[us]"),
        st.timedeltas(dt.timedelta(days=-9999), dt.timedelta(days=9999)),
    ),
    "decimal": (
        datasets.Value("decimal128(8, 2)"),
        st.decimals(-99999, 99999, places=2).map(decimal.Decimal),
    ),
    "label": (LIGHT, st.sampled_from([0, 1, -1])),
    "picture": (datasets.Image(decode=False), PICTURES),
    "list": (datasets.List(INT), st.lists(st.one_of(st.none(), integers(64, True)), max_size=3)),
    "list of labels": (datasets.List(LIGHT), st.lists(st.sampled_from([0, 1]), max_size=3)),
    "list of two": (datasets.List(INT, length=2), st.lists(integers(64, True), min_size=2, max_size=2)),
    "large list": (datasets.LargeList(datasets.Value("string")), st.lists(TEXT, max_size=3)),
    "list of lists": (datasets.List(datasets.List(LIGHT)), st.lists(st.lists(st.just(1), max_size=2))),
    "list of pictures": (datasets.List(datasets.Image(decode=False)), st.lists(PICTURES, max_size=2)),
    "struct": (
        {"light": LIGHT, "lux": datasets.Value("float64")},
        st.fixed_dictionaries({"light": st.sampled_from([0, 1, None]), "lux": st.floats()}),
    ),
    "list of structs": (
        datasets.List({"feature": LIGHT, "b": datasets.Value("string")}),
        st.lists(st.fixed_dictionaries({"feature": st.just(1), "b": TEXT}), max_size=3),
    ),
}


def tables() -> st.SearchStrategy[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Features by column, and rows of them."""

    def rows_of(names: list[str]) -> st.SearchStrategy[Any]:
        cells = st.fixed_dictionaries({name: st.one_of(st.none(), KINDS[name][1]) for name in names})
        features = {name: KINDS[name][0] for name in names}
        return st.tuples(st.just(features), st.lists(cells, min_size=1, max_size=5))

    return st.lists(st.sampled_from(sorted(KINDS)), unique=True, min_size=1, max_size=6).flatmap(rows_of)


def as_datasets_stores(path: str) -> list[dict[str, Any]]:
    table = datasets.load_from_disk(path).with_format("arrow")
    return [table[index].to_pylist()[0] for index in range(len(table))]


def assert_read_alike(path: str) -> Source:
    """The folder is read without `datasets`, and as by it; returns what was opened."""
    read = read_saved(path)
    assert read is not None
    rows, identity = read
    theirs, their_identity = open_dataset(path)
    assert identity == their_identity
    assert rows.features == theirs.features
    stored = as_datasets_stores(identity.path)
    assert repr([rows.row(index) for index in range(len(rows))]) == repr(stored)
    assert repr([theirs.row(index) for index in range(len(theirs))]) == repr(stored)
    return Source(rows, identity)


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(tables(), st.integers(1, 3), st.booleans())
def test_every_row_is_what_datasets_gives(
    table: tuple[dict[str, Any], list[dict[str, Any]]], num_shards: int, in_split: bool
) -> None:
    features, cells = table
    rows = [row(PHOTO, **one) for one in cells]
    with tempfile.TemporaryDirectory() as folder:
        made = dataset_of(rows, features)
        num_shards = min(num_shards, len(rows))
        if in_split:
            datasets.DatasetDict(all=made).save_to_disk(folder, num_shards={"all": num_shards})
        else:
            made.save_to_disk(folder, num_shards=num_shards)
        source = assert_read_alike(f"{folder}:all" if in_split else folder)
        by_datasets = Source(*open_dataset(f"{folder}:all" if in_split else folder))
        for index in range(len(rows)):
            ours, theirs = (each.load(SampleId(index)) for each in (source, by_datasets))
            assert json.dumps(ours.data) == json.dumps(theirs.data)
            assert ours.picture.data == PHOTO
        for column in features:
            for direction in ("", ":desc"):
                assert ordered(source, column + direction) == ordered(by_datasets, column + direction)


def ordered(source: Source, order: str) -> object:
    try:
        return list(source.select(order, 0, 0))
    except SourceError as error:
        return str(error)


def test_every_kind_of_feature_is_read_without_datasets(tmp_path: Path) -> None:
    for number, (name, (feature, _)) in enumerate(KINDS.items()):
        path = saved(tmp_path / str(number), [row(PHOTO, column=None)], {"column": feature})
        assert read_saved(str(path)) is not None, name


def test_a_picture_in_another_mode_and_rows_in_many_batches_are_read_alike(tmp_path: Path) -> None:
    rows = [row(file_bytes(noise(8, 8, seed=n), "PNG"), lat=n, city=f"c{n}") for n in range(7)]
    features = {"image": datasets.Image(mode="L"), "city": datasets.Value("string")}
    table = dataset_of(rows, features)
    table.save_to_disk(str(tmp_path / "ds"))
    with pa.OSFile(str(tmp_path / "ds" / "data-00000-of-00001.arrow"), "wb") as file:
        with pa.ipc.new_stream(file, table.data.schema) as writer:
            for size in (1, 0, 4, 2):
                start = {1: 0, 0: 1, 4: 1, 2: 5}[size]
                for batch in table.data.table.slice(start, size).to_batches() or [
                    pa.RecordBatch.from_pylist([], schema=table.data.schema)
                ]:
                    writer.write_batch(batch)
    source = assert_read_alike(str(tmp_path / "ds"))
    assert [source.load(SampleId(n)).data["city"] for n in range(7)] == [f"c{n}" for n in range(7)]
    assert source.load(SampleId(3)).picture.image.mode == "L"


@settings(max_examples=15)
@given(st.lists(TEXT.filter(bool), unique=True, max_size=3), st.sampled_from([1, 3]))
def test_the_fingerprint_is_that_of_datasets_whatever_columns_its_format_states(
    names: list[str], times: int
) -> None:
    names = [name for name in names if name not in ("image", "lat", "lon") and "\0" not in name]
    rows = [row(PHOTO, **dict.fromkeys(names, n)) for n in range(2)]
    table = dataset_of(rows, dict.fromkeys(names, INT))
    with tempfile.TemporaryDirectory() as folder:
        datasets.concatenate_datasets([table] * times).shuffle(seed=1).save_to_disk(folder)
        assert times == 1 or json.loads(Path(folder, "state.json").read_text())["_format_columns"] is not None
        assert_read_alike(folder)


def test_the_fingerprint_of_a_picture_alone_is_that_of_datasets(tmp_path: Path) -> None:
    features = datasets.Features(image=datasets.Image())
    table = datasets.Dataset.from_dict({"image": [stored_picture(PHOTO)] * 2}, features=features)
    table.shuffle(seed=1).with_format(columns=["image"]).save_to_disk(str(tmp_path / "ds"))
    assert json.loads((tmp_path / "ds" / "state.json").read_text())["_format_columns"] == ["image"]
    assert_read_alike(str(tmp_path / "ds"))


# --- what is left to `datasets`


def changed_json(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(value | changes))

    return change


def changed_feature(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        info = json.loads((folder / "dataset_info.json").read_text())
        info["features"]["city"] |= changes
        (folder / "dataset_info.json").write_text(json.dumps(info))

    return change


def other_types(**columns: pa.DataType) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "data-00000-of-00001.arrow"
        table = pa.ipc.open_stream(file.read_bytes()).read_all()
        for name, kind in columns.items():
            index = table.schema.get_field_index(name)
            table = table.set_column(index, name, table.column(name).cast(kind))
        with pa.OSFile(str(file), "wb") as opened, pa.ipc.new_stream(opened, table.schema) as writer:
            writer.write_table(table)

    return change


def cut_short(folder: Path) -> None:
    file = folder / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[:-2000])


LEFT: dict[str, Callable[[Path], None]] = {
    "a format": changed_json("state.json", _format_type="numpy"),
    "a format of columns": changed_json("state.json", _format_columns=["image", "lat"]),
    "no fingerprint": changed_json("state.json", _fingerprint=None),
    "a split's name that is none": changed_json("state.json", _split="a b"),
    "a damaged version": changed_json("dataset_info.json", version=5),
    "no features": changed_json("dataset_info.json", features=None),
    "a file that is not there": changed_json("state.json", _data_files=[{"filename": "other.arrow"}]),
    "no files": changed_json("state.json", _data_files=[]),
    "a feature of another type": changed_feature(dtype="int64"),
    "a feature of no type": changed_feature(dtype="texts"),
    "a feature of an unknown kind": changed_feature(_type="Smell"),
    "a feature with more in it": changed_feature(more="x"),
    "a column that is cast": other_types(city=pa.large_string()),
    "a dictionary": other_types(city=pa.dictionary(pa.int32(), pa.string())),
    "a file cut short": cut_short,
    "no state": lambda folder: (folder / "state.json").unlink(),
    "no info": lambda folder: (folder / "dataset_info.json").unlink(),
    "state that is no JSON": lambda folder: folder.joinpath("state.json").write_text("{") and None,
    "a file of nothing": lambda folder: (
        folder.joinpath("data-00000-of-00001.arrow").write_bytes(b"") and None
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_unusual_is_left_to_datasets(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = saved(
        tmp_path / "ds", [row(PHOTO, city=f"city {n}") for n in range(3)], {"city": datasets.Value("string")}
    )
    assert read_saved(str(path)) is not None
    LEFT[name](path)
    assert read_saved(str(path)) is None
    assert outcome(lambda: open_source(str(path))) == outcome(lambda: Source(*open_dataset(str(path))))


def outcome(open_it: Callable[[], Source]) -> object:
    try:
        source = open_it()
        return source.identity, [source.load(SampleId(index)).data for index in range(len(source))]
    except SourceError as error:
        return str(error)


@pytest.mark.parametrize(
    "feature",
    [
        datasets.Image(),
        datasets.Array2D((1, 1), "int32"),
        datasets.List(datasets.Image()),
        {"a": datasets.Image()},
    ],
)
def test_a_column_that_is_decoded_or_of_arrays_is_left_to_datasets(feature: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / "ds", [row(PHOTO, column=None)], {"column": feature})
    assert read_saved(str(path)) is None


@pytest.mark.parametrize("ending", [":train", ":no", ""])
def test_a_split_is_chosen_or_told_about_as_by_datasets(ending: str, tmp_path: Path) -> None:
    table = dataset_of([row(PHOTO)])
    datasets.DatasetDict(train=table, test=table).save_to_disk(str(tmp_path / "ds"))
    path = str(tmp_path / "ds") + ending
    assert outcome(lambda: open_source(path)) == outcome(lambda: Source(*open_dataset(path)))
    assert (read_saved(path) is not None) == (ending == ":train")


def test_relative_paths_alone_are_refused_in_the_same_words(tmp_path: Path) -> None:
    path = saved(tmp_path / "ds", [row(PHOTO), row(PHOTO)])
    table = pa.table(
        {"image": pa.array([{"bytes": None, "path": "a.jpg"}] * 2), "lat": [1.0] * 2, "lon": [1.0] * 2}
    )
    schema = pa.ipc.open_stream((path / "data-00000-of-00001.arrow").read_bytes()).schema
    with pa.OSFile(str(path / "data-00000-of-00001.arrow"), "wb") as file:
        with pa.ipc.new_stream(file, schema) as writer:
            writer.write_table(table.cast(schema))
    with pytest.raises(SourceError, match=r"holds relative paths such as .a\.jpg.") as ours:
        read_saved(str(path))
    with pytest.raises(SourceError) as theirs:
        open_dataset(str(path))
    assert str(ours.value) == str(theirs.value)


# --- orders


def in_order(values: list[Any], is_descending: bool) -> list[int]:
    """The rule: empty values last, equal ones in the order of their rows."""
    empty = [n for n, value in enumerate(values) if value is None or value != value]  # noqa: PLR0124
    filled = [n for n in range(len(values)) if n not in empty]
    return sorted(filled, key=lambda n: values[n], reverse=is_descending) + empty


@given(st.data())
def test_an_order_is_that_of_its_values_however_many_are_asked_for(data: st.DataObject) -> None:
    names = [
        "int8",
        "int64",
        "uint64",
        "float32",
        "float64",
        "string",
        "large_string",
        "bool",
        "date32",
        "label",
    ]
    feature, strategy = KINDS[data.draw(st.sampled_from(names))]
    few = data.draw(st.lists(strategy, min_size=1, max_size=5))
    values = data.draw(st.lists(st.sampled_from([None, *few]), min_size=1, max_size=60))
    kind = datasets.Features(column=feature).arrow_schema.field("column").type
    cuts = data.draw(st.lists(st.integers(0, len(values)), max_size=3).map(sorted))
    whole = pa.RecordBatch.from_arrays([pa.array(values, kind)], ["column"])
    edges = [0, *cuts, len(values)]
    batches = [whole.slice(start, stop - start) for start, stop in zip(edges, edges[1:], strict=False)]
    rows = StoredRows(batches, {"column": {}})
    stored = whole.column(0).to_pylist()
    for direction in ("", ":desc"):
        wanted = in_order(stored, direction == ":desc")
        for number in (1, 2, len(values) // 3 or 1, len(values)):
            picked = list(first_rows(rows, f"column{direction}", number, 0))
            assert picked == wanted[:number]
            assert all(type(each) is int for each in picked)


def test_few_of_many_rows_at_random_are_the_first_of_all_of_them() -> None:
    rows = StoredRows([pa.RecordBatch.from_pydict({"column": list(range(500))})], {"column": {}})
    everything = list(first_rows(rows, "random", 500, 7))
    assert sorted(everything) == list(range(500))
    assert list(first_rows(rows, "random", 5, 7)) == everything[:5]


# --- memory

PEAK_OF_OPENING = """
import re, sys
from pathlib import Path
from distil.source.rows import open_source
def peak_kib():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
open_source(sys.argv[1]).select("lat:desc", 0, 0)
before = peak_kib()
source = open_source(sys.argv[2])
assert list(source.select("lat:desc", 2, 0)) == [len(source) - 1, len(source) - 2]
print(peak_kib() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux")
def test_opening_and_ordering_a_dataset_keeps_no_pages_of_its_file(tmp_path: Path) -> None:
    picture = stored_picture(bytes(100_000))
    small = saved(tmp_path / "small", [row(PHOTO)])
    large = saved(tmp_path / "large", [{"image": picture, "lat": 0.0, "lon": 0.0}])
    schema = pa.ipc.open_stream((large / "data-00000-of-00001.arrow").read_bytes()).schema
    with pa.OSFile(str(large / "data-00000-of-00001.arrow"), "wb") as file:
        with pa.ipc.new_stream(file, schema) as writer:
            for number in range(400):  # 40 MB, a batch a row
                cells = {"image": picture, "lat": float(number), "lon": 0.0}
                writer.write_batch(pa.RecordBatch.from_pylist([cells], schema=schema))
    run = subprocess.run(
        [sys.executable, "-c", PEAK_OF_OPENING, small, large], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 10_000


def resident_kib(file: Path) -> int:
    """What of a mapped file counts as this process's own."""
    maps = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").split("VmFlags")
    return sum(int(re.findall(r"Rss: +(\d+) kB", each)[0]) for each in maps if str(file) in each)


@pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux")
def test_pages_of_files_that_others_mapped_are_given_back_every_so_many_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.arrow"
    file.write_bytes(bytes(2**24))
    count_row = page_trimmer([str(file)])
    with pa.memory_map(str(file)) as mapping:
        data = mapping.read_buffer()
    for _ in range(31):
        sum(memoryview(data)[::4096])
        count_row()
    assert resident_kib(file) > 16_000
    count_row()
    assert resident_kib(file) == 0
    assert sum(memoryview(data)[::4096]) == 0  # and are read again
