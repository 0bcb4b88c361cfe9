"""Where a dataset may lie, and what is said of a place where none can be opened; nothing is sent unasked."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pytest
from builders import dataset_of, file_bytes, noise, row, saved

import distil.source.reopenable
from distil.cli import main
from distil.errors import SourceError
from distil.source.rows import open_source

PHOTO = file_bytes(noise(40, 32))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep what `datasets` builds out of the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every address that is looked up or connected to from now on; none is reached."""
    asked: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> Any:
        asked.append(arguments)
        raise OSError("no network here")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return asked


def refusal(path: object) -> str:
    """The one line that is said of a dataset that cannot be opened."""
    with pytest.raises(SourceError) as caught:
        open_source(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_parquet(path: Path, *cities: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [row(PHOTO, city=city) for city in cities]
    dataset_of(rows, {"city": datasets.Value("string")}).to_parquet(str(path))


# --- the hub is asked only by name


@pytest.mark.parametrize(
    "name", ["photos", "data/photos", "photos:train", "someone/photos:train", "not a name!"]
)
def test_a_relative_path_that_is_not_there_is_looked_up_nowhere(
    name: str, addresses: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = name.partition(":")[0]
    assert refusal(name) == (
        f"there is no folder or file {path!r}; for a dataset of the Hugging Face hub say hf://{path}"
    )
    assert addresses == []


@pytest.mark.parametrize("path", ["./photos", "/no/such/photos", "a/b/photos", "../photos"])
def test_what_can_only_be_a_path_is_not_said_to_be_one_of_the_hub(path: str, tmp_path: Path) -> None:
    assert refusal(path) == f"there is no folder or file {path!r}"


def test_a_dataset_of_the_hub_is_asked_for_aloud(
    addresses: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the hub's client tries again
    said: list[str] = []
    with pytest.raises(SourceError, match="the hub has no dataset 'someone/photos', or cannot be reached"):
        open_source("hf://someone/photos:train", said.append)
    assert said == ["Asking the Hugging Face hub for the dataset someone/photos"]
    assert addresses


@pytest.mark.parametrize("name", ["hf://", "hf://a b", "hf://a/b/c/d", "hf://../x"])
def test_what_can_be_no_name_of_the_hub_is_one_line(name: str, addresses: list[Any]) -> None:
    assert refusal(name) == (f"{name!r} is no name of a dataset of the hub: say hf://NAME or hf://OWNER/NAME")
    assert addresses == []


def test_what_lies_on_the_disk_is_opened_without_a_network(tmp_path: Path, addresses: list[Any]) -> None:
    write_parquet(tmp_path / "ds" / "data" / "train-00000-of-00001.parquet", "a")
    (tmp_path / "ds" / "README.md").write_text("---\nlicense: mit\n---\n# Photos\n")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").write_bytes(PHOTO)
    for path in ("ds", "ds/data/*.parquet", "ds/data/train-00000-of-00001.parquet", "pictures"):
        assert len(open_source(str(tmp_path / path))) == 1
    assert addresses == []


# --- folders and globs


def test_the_rows_of_many_files_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, city in (("b", "2"), ("a", "1"), ("c", "3")):
        write_parquet(tmp_path / "ds" / f"{name}.parquet", city)
    for path in (tmp_path / "ds", tmp_path / "ds" / "*.parquet", tmp_path / "ds" / "[a-c].parquet"):
        source = open_source(str(path))
        assert [source._row(index)["city"] for index in range(3)] == ["1", "2", "3"]


def test_a_glob_finds_files_in_folders_below(tmp_path: Path) -> None:
    for name in ("x/a", "y/z/b"):
        write_parquet(tmp_path / f"{name}.parquet", name)
    assert len(open_source(str(tmp_path / "**" / "*.parquet"))) == 2


def test_a_glob_of_several_kinds_of_files_or_of_none_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", "a")
    (tmp_path / "a.csv").write_text("image,lat,lon\na.jpg,1,2\n")
    assert "several of one kind" in refusal(tmp_path / "*")
    assert "there is no folder or file" in refusal(tmp_path / "*.jsonl")


def test_braces_name_files_and_none_of_them_may_be_missing(tmp_path: Path) -> None:
    for number in (8, 9, 10, 11):
        write_parquet(tmp_path / f"s-{number:03d}.parquet", str(number))
    source = open_source(str(tmp_path / "s-{009..011}.parquet"))
    assert [source._row(index)["city"] for index in range(3)] == ["9", "10", "11"]
    assert len(open_source(str(tmp_path / "s-{008,01*}.parquet"))) == 3
    missing = refusal(tmp_path / "s-{008..012}.parquet")
    assert "there is no file" in missing and "s-012.parquet" in missing
    assert "names more than 100,000 files" in refusal(tmp_path / "s-{0..999999999}.parquet")


def test_the_splits_of_a_folder_of_files_are_named(tmp_path: Path) -> None:
    for split, cities in (("train", "ab"), ("test", "c")):
        write_parquet(tmp_path / "ds" / f"{split}.parquet", *cities)
    assert "has the splits train, test: choose one as" in refusal(tmp_path / "ds")
    assert len(open_source(f"{tmp_path / 'ds'}:test")) == 1


def test_a_table_beside_pictures_without_metadata_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(PHOTO)
    (tmp_path / "places.csv").write_text("image,lat,lon\na.jpg,1,2\n")
    said: list[str] = []
    open_source(str(tmp_path), said.append)
    assert said == [
        f"{tmp_path} holds a table too, which is not read: for its rows say --dataset_path {tmp_path}/places.csv"
    ]


# --- what may not be read or written


@contextmanager
def nobody() -> Iterator[None]:
    """As a user who may do nothing; who is no administrator is one already."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("name", ["ds", "ds:train", "ds/*.parquet", "a.parquet", "nothing"])
def test_a_dataset_in_a_folder_that_may_not_be_entered_is_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    flags = ["run", "--api_base", "http://127.0.0.1:9/v1", "--dataset_path"]
    assert main([*flags, str(tmp_path / "nothing")]) == 2  # what is imported later, nobody may read
    capsys.readouterr()
    locked = tmp_path / "locked"
    saved(locked / "ds", [row(PHOTO)])
    write_parquet(locked / "a.parquet", "a")
    locked.chmod(0)
    try:
        with nobody():
            status = main([*flags, f"{locked}/{name}"])
    finally:
        locked.chmod(0o700)
    assert status == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "Permission denied" in line
    assert str(locked) in line


@pytest.mark.parametrize("form", ["saved", "parquet", "folder", "pictures", "hub"])
def test_a_cache_that_cannot_be_written_is_named_and_not_the_dataset(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, addresses: list[Any]
) -> None:
    write_parquet(tmp_path / "parquet" / "a.parquet", "a")
    saved(
        tmp_path / "saved", [{"photo": "/a.jpg", "lat": 1.0, "lon": 2.0}], {"photo": datasets.Value("string")}
    )
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").write_bytes(PHOTO)
    (tmp_path / "a file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "a file" / "cache")
    paths = {"folder": f"{tmp_path}/parquet", "parquet": f"{tmp_path}/parquet/a.parquet", "hub": "hf://a/b"}
    assert refusal(paths.get(form, f"{tmp_path}/{form}")) == (
        f"the cache of datasets, {tmp_path}/a file/cache, cannot be written (Not a directory): "
        "name a folder that can be by $HF_DATASETS_CACHE"
    )


def test_a_saved_dataset_that_needs_no_view_needs_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "a file" / "cache")
    assert len(open_source(str(saved(tmp_path / "ds", [row(PHOTO)])))) == 1


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_a_cache_that_takes_no_more_is_named(form: str, tmp_path: Path) -> None:
    rows = [row(os.urandom(100_000), city=str(number)) for number in range(3)]
    made = dataset_of(rows, {"city": datasets.Value("string")}).rename_column("image", "photo")
    made.save_to_disk(str(tmp_path / "saved"))
    made.to_parquet(str(tmp_path / "parquet"))
    (tmp_path / "parquet").rename(tmp_path / "a.parquet")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))  # as a disk that is full, to whoever writes
    try:
        said = refusal(tmp_path / ("saved" if form == "saved" else "a.parquet"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert said.startswith(f"the cache of datasets, {datasets.config.HF_DATASETS_CACHE}, cannot be written (")


def test_a_large_copy_is_told_of_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distil.source.reopenable, "_TOLD_BYTES", 0)
    dataset_of([row(PHOTO)]).rename_column("image", "photo").save_to_disk(str(tmp_path / "ds"))
    said: list[str] = []
    for _ in range(2):
        open_source(str(tmp_path / "ds"), said.append)
    (line,) = said
    assert line.startswith("Copying 1 rows, 0.0 GiB, as the restore recipe needs them, once: ")
    said.clear()
    open_source(str(saved(tmp_path / "plain", [row(PHOTO)])), said.append)
    assert said == []
