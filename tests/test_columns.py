"""Which columns are taken for the picture and the place: guessed, asked for, recorded, refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from builders import file_bytes, noise, stored_picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image
from scripted_teacher import ScriptedTeacher, calls, num_turns, says

from distil.cli import main
from distil.errors import SampleError, SourceError
from distil.records import SampleId
from distil.replay.replay import Sources
from distil.replay.verify import Verdict, verify_trace
from distil.source.picture_paths import picture_in
from distil.source.rows import gps_degrees, gps_names, open_source
from distil.store.claim import read_runs
from distil.store.trace_settings import json_sha256, settings_sha256
from distil.tasks.geolocation import GEOLOCATION

PHOTO = file_bytes(noise(40, 32))


pytestmark = pytest.mark.usefixtures("own_cache")


def save(folder: Path, **columns: Any) -> str:
    """Two rows with these values in each; `None` in place of a value takes the picture."""
    cells = {name: [stored_picture(PHOTO) if value is None else value] * 2 for name, value in columns.items()}
    table = datasets.Dataset.from_dict(cells)
    for name, value in columns.items():
        table = table.cast_column(name, datasets.Image()) if value is None else table
    table.save_to_disk(str(folder))
    return str(folder)


def policy(request: dict[str, Any]) -> Any:
    if num_turns(request) == 0:
        return calls(("image_zoom_in_tool", {"bbox_2d": [2, 3, 20, 30]}))
    return says("\\boxed{10, 20}")


class Door:
    """`distil run` and `distil verify` with one folder for traces, in this process."""

    def __init__(self, api_base: str, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._api_base, self.output, self._capsys = api_base, output, capsys

    def run(self, path: str, *flags: str) -> tuple[int, str]:
        asked = ["--api_base", self._api_base, "--model", "m", "--tool_mode", "native", *flags]
        status = main(["run", "--dataset_path", path, "--output_dir", str(self.output), *asked])
        return status, "".join(self._capsys.readouterr())

    def verify(self, *flags: str) -> tuple[int, str]:
        return main(["verify", str(self.output), *flags]), "".join(self._capsys.readouterr())

    def traces(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(self.output.glob("trace_*.json"))]


@pytest.fixture
def door(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Door]:
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    with ScriptedTeacher(policy) as teacher:
        yield Door(teacher.api_base, tmp_path / "out", capsys)


# --- what a run records


def test_a_run_goes_on_with_the_same_guess_and_another_choice_is_another_setting(
    door: Door, tmp_path: Path
) -> None:
    path = save(tmp_path / "ds", photo=None, sketch=None, Lat=10.0, lon=20.0, y=-5.0)
    assert door.run(path, "--num_samples", "1")[0] == 0
    (first,) = door.traces()
    status, said = door.run(path)
    assert (status, len(door.traces())) == (0, 2), said
    assert door.traces()[0] == first
    assert door.run(path, "--image_column", "photo", "--lat_column", "Lat")[0] == 0
    for flags in (["--lat_column", "y"], ["--image_column", "sketch"]):
        status, said = door.run(path, *flags)
        assert status == 2
        assert 'columns: {"image": "photo", "lat": "Lat"} then' in said
        assert "--on_change new, keep or redo" in said
    assert door.verify()[0] == 0


def test_the_run_record_says_what_was_asked_and_what_was_chosen(door: Door, tmp_path: Path) -> None:
    path = save(tmp_path / "ds", photo=None, lat=10.0, lon=20.0, y=-5.0)
    assert door.run(path, "--lat_column", "y")[0] == 0
    (record,) = read_runs(door.output)
    assert record["settings"]["columns"] == {"image": "photo", "lat": "y"}
    assert record["options"]["lat_column"] == "y"
    assert record["options"]["image_column"] is None
    assert door.traces()[0]["metadata"]["truth"] == {"lat": -5.0, "lon": 20.0}


def test_flags_that_name_the_usual_columns_change_no_byte(door: Door, tmp_path: Path) -> None:
    path = save(tmp_path / "ds", image=None, lat=10.0, lon=20.0)
    assert door.run(path)[0] == 0
    before = {file.name: file.read_bytes() for file in door.output.glob("trace_*.json")}
    flags = ["--image_column", "image", "--lat_column", "lat", "--lon_column", "lon", "--on_change", "redo"]
    assert door.run(path, *flags)[0] == 0
    assert {file.name: file.read_bytes() for file in door.output.glob("trace_*.json")} == before


def test_a_dataset_that_has_moved_is_verified_where_it_is_said_to_be(door: Door, tmp_path: Path) -> None:
    path = save(tmp_path / "ds", photo=None, Lat=10.0, lon=20.0)
    assert door.run(path)[0] == 0
    Path(path).rename(tmp_path / "moved")
    status, said = door.verify()
    assert status == 1
    assert "; if it has moved, say where it is now: --dataset_path PATH\n" in said
    status, said = door.verify("--dataset_path", str(tmp_path / "moved"))
    assert (status, "2 matched" in said) == (0, True), said


# --- what is guessed, and what is not


def opened(path: str, **asked: str) -> dict[str, str]:
    source = open_source(path, columns=asked)
    return {**source.chosen, **GEOLOCATION.choose_columns(source.columns, asked)}


@pytest.mark.parametrize("name", ["IMG", "Photo", "picture", "image_bytes", "anything"])
def test_the_only_picture_of_a_row_is_found_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "ds", **{name: None}, title="a.jpg", lat=1.0, lon=2.0)
    assert opened(path) == {"image": name}


def test_of_several_pictures_that_may_be_meant_none_is_taken(tmp_path: Path) -> None:
    path = save(tmp_path / "ds", photo=None, picture=None, lat=1.0, lon=2.0)
    with pytest.raises(
        SourceError, match="several that may be meant: photo, picture; name one by --image_column"
    ):
        open_source(path)
    assert opened(path, image="picture") == {"image": "picture"}


def test_an_image_that_may_be_the_mask_of_another_file_is_not_taken(tmp_path: Path) -> None:
    path = save(tmp_path / "ds", mask=None, file_name="/a.jpg", lat=1.0, lon=2.0)
    with pytest.raises(SourceError, match="several that may be meant: mask, file_name"):
        open_source(path)
    path = save(tmp_path / "other", mask=None, photo="/a.jpg", lat=1.0, lon=2.0)
    assert opened(path) == {"image": "photo"}


def test_addresses_are_fetched_only_from_a_column_that_was_named(tmp_path: Path) -> None:
    path = save(tmp_path / "ds", url="http://127.0.0.1:9/a.jpg", lat=1.0, lon=2.0)
    with pytest.raises(SourceError, match="no column 'image', name it by --image_column"):
        open_source(path)


def test_of_several_places_that_may_be_meant_none_is_taken(tmp_path: Path) -> None:
    path = save(tmp_path / "ds", image=None, Lat=1.0, gps={"latitude": 2.0}, lon=2.0)
    with pytest.raises(SourceError, match=r"may be 'lat': Lat, gps\.latitude; name one by --lat_column"):
        opened(path)
    assert opened(path, lat="gps.latitude") == {"lat": "gps.latitude"}


@pytest.mark.parametrize("name", ["pred_lat", "flat", "latency", "lat_error", "long_name", "xlat"])
def test_a_name_that_only_holds_the_letters_is_no_place(name: str) -> None:
    with pytest.raises(SourceError, match="--lat_column"):
        GEOLOCATION.choose_columns(["image", name, "lon"], {})


def test_a_tag_of_exif_may_be_asked_for_where_the_dataset_does_not_tell_of_it() -> None:
    tags = {"lat": "exif:GPSLatitude", "lon": "exif:GPSLongitude"}
    assert GEOLOCATION.choose_columns(["image"], tags) == tags
    with pytest.raises(SourceError, match="there is no such column"):
        GEOLOCATION.choose_columns(["image"], tags | {"lat": "exif:GPSAltitude"})


def test_a_column_that_is_not_there_is_named_with_its_flag(tmp_path: Path) -> None:
    path = save(tmp_path / "ds", image=None, lat=1.0, lon=2.0)
    with pytest.raises(SourceError, match=r"--image_column 'foto': .* columns image, lat, lon"):
        open_source(path, columns={"image": "foto"})
    with pytest.raises(SourceError, match=r"--lon_column 'x': there is no such column.*image, lat, lon"):
        opened(path, lon="x")


def test_a_list_of_pictures_is_named_as_what_it_is(tmp_path: Path) -> None:
    row = {"images": [stored_picture(PHOTO)] * 2, "lat": 1.0, "lon": 2.0}
    kind = datasets.Features(
        images=datasets.List(datasets.Image()), lat=datasets.Value("float64"), lon=datasets.Value("float64")
    )
    datasets.Dataset.from_list([row], features=kind).save_to_disk(str(tmp_path / "ds"))
    with pytest.raises(
        SourceError, match="'images' holds a list of pictures, and one picture a row is needed"
    ):
        open_source(str(tmp_path / "ds"))
    with pytest.raises(SourceError, match="column 'images' holds a list of pictures: one picture a row"):
        open_source(str(tmp_path / "ds"), columns={"image": "images"})


def test_an_empty_field_of_a_struct_is_a_failed_sample(tmp_path: Path) -> None:
    rows = [{"lat": 1.0, "lng": None}, None, {"lat": 1.0, "lng": 2.0}]
    cells = {"image": [stored_picture(PHOTO)] * 3, "gps": rows}
    datasets.Dataset.from_dict(cells).save_to_disk(str(tmp_path / "ds"))
    source = open_source(str(tmp_path / "ds"), columns={"lat": "gps.lat", "lon": "gps.lng"})
    for row, name in ((0, "gps.lng"), (1, "gps.lat")):
        with pytest.raises(SampleError, match=f"row {row} of .*: column '{name}' is empty"):
            source.load(SampleId(row))
    assert source.load(SampleId(2)).fields == {"lat": 1.0, "lon": 2.0}


# --- the place in a picture's EXIF


def with_gps(block: dict[int, Any], file_format: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[ExifTags.IFD.GPSInfo] = block
    return file_bytes(noise(8, 8), file_format, exif=exif)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_the_south_and_the_west_are_negative(file_format: str) -> None:
    file = with_gps({1: "S", 2: (33, 52, 7.68), 3: "W", 4: (70, 30, 0)}, file_format)
    assert gps_names(file) == ["exif:GPSLatitude", "exif:GPSLongitude"]
    assert gps_degrees(file, "exif:GPSLatitude") == pytest.approx(-33.8688)
    assert gps_degrees(file, "exif:GPSLongitude") == -70.5


@pytest.mark.parametrize(
    "block",
    [{}, {2: (33, 52, 7)}, {1: "N", 2: 33.0}, {1: "N"}, {1: "", 2: (1, 2, 3)}, {1: "N", 2: (1, 2)}],
    ids=str,
)
def test_a_place_that_is_not_whole_is_none(block: dict[int, Any]) -> None:
    file = with_gps(block)
    assert gps_names(file) == []
    with pytest.raises(SampleError, match="EXIF has no GPSLatitude"):
        gps_degrees(file, "exif:GPSLatitude")


@given(st.binary(max_size=80), st.integers(0, 400))
def test_no_damage_of_a_file_ends_more_than_its_sample(junk: bytes, place: int) -> None:
    whole = with_gps({1: "S", 2: (33, 52, 7.68), 3: "W", 4: (70, 30, 0)})
    for file in (junk, whole[:place], whole[:place] + junk + whole[place + len(junk) :]):
        names = gps_names(file)
        assert set(names) <= {"exif:GPSLatitude", "exif:GPSLongitude", "exif:GPSDestLatitude"}


def test_a_picture_without_a_place_among_others_is_a_failed_sample_and_a_folder_without_any_is_refused(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.jpg").write_bytes(PHOTO)
    with pytest.raises(SourceError, match=r"no column 'lat' or 'latitude' .*--lat_column.*: image$"):
        opened(str(tmp_path))
    (tmp_path / "b.jpg").write_bytes(with_gps({1: "N", 2: (1, 0, 0), 3: "E", 4: (2, 0, 0)}))
    chosen = opened(str(tmp_path))
    source = open_source(str(tmp_path), columns=chosen)
    assert source.load(SampleId(1)).fields == {"lat": 1.0, "lon": 2.0}
    with pytest.raises(SampleError, match=r"row 0 of .*: the picture's EXIF has no GPSLatitude"):
        source.load(SampleId(0))


# --- pictures as text


@given(st.binary(min_size=100, max_size=400))
def test_a_text_is_the_picture_that_was_written_however_it_is_wrapped(body: bytes) -> None:
    file = PHOTO[:12] + body
    texts = [base64.b64encode(file), base64.urlsafe_b64encode(file), base64.encodebytes(file)]
    for text in (one.decode() for one in texts):
        assert picture_in(text) == picture_in(text.rstrip("=\n")) == file
        assert picture_in("data:image/jpeg;base64," + text) == file
        assert picture_in(" DATA:;base64," + text.replace("+", "%2B")) == file


@pytest.mark.parametrize(
    "path",
    [
        "a.jpg",
        "/9j/photos/" + "a" * 80 + ".jpg",
        "/data/" + "x" * 300,
        "Qk" + "a" * 40,
        "http://a/b,c",
        "data/a,b.jpg",
    ],
)
def test_a_path_is_no_picture(path: str) -> None:
    assert picture_in(path) is None


def test_a_text_that_is_a_damaged_picture_is_a_failed_sample(tmp_path: Path) -> None:
    rows = ["data:image/jpeg;base64,!!!", "data:image/jpeg;base64,/9j/4AAQ", "data:,text"]
    lines = [json.dumps({"image": text, "lat": 1, "lon": 2}) for text in rows]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = open_source(str(tmp_path / "a.jsonl"))
    for row in range(3):
        with pytest.raises(SampleError, match=f"row {row} of ") as caught:
            source.load(SampleId(row))
        assert "base64" not in str(caught.value)


# --- a trace that says it was made from other columns


def test_columns_that_no_run_chooses_or_that_hold_other_values_are_never_called_right(
    door: Door, tmp_path: Path
) -> None:
    path = save(tmp_path / "ds", photo=None, sketch="/a.jpg", Lat=10.0, lon=20.0, y=-5.0, same=10.0)
    assert door.run(path, "--num_samples", "1")[0] == 0
    trace, chosen = door.traces()[0], {"image": "photo", "lat": "Lat"}
    assert trace["settings"]["columns"] == chosen
    assert verdict(trace, tmp_path, chosen) is Verdict.MATCHED
    others: list[Any] = [
        None,
        {},
        [],
        "photo",
        {"image": "photo"},
        {"lat": "Lat"},
        {"image": "sketch", "lat": "Lat"},
    ]
    others += [{**chosen, "lat": "y"}, {**chosen, "lon": "lon"}, {**chosen, "lon": "y"}, {**chosen, "lat": 1}]
    others += [{**chosen, "city": "y"}, {**chosen, "lat": "exif:GPSLatitude"}, {**chosen, "lat": "none"}]
    for columns in others:
        assert verdict(trace, tmp_path, columns) is not Verdict.MATCHED, columns


def verdict(trace: dict[str, Any], folder: Path, columns: Any) -> Verdict:
    """The verdict on the trace with other columns, all hashes made to fit."""
    value = json.loads(json.dumps(trace))
    value["settings"]["columns"] = columns
    value["metadata"]["settings_sha256"] = settings_sha256(value["settings"], value["dataset"]["fingerprint"])
    del value["integrity_sha256"]
    value["integrity_sha256"] = json_sha256(value)
    path = folder / "trace_00000.json"
    path.write_text(json.dumps(value))
    return verify_trace(path, Sources()).verdict
