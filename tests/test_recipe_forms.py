"""Every form that a dataset may be given in: its traces pass the restore recipe as the README has it.

All forms are distilled once by the real door; one other process, in other folders, runs the recipe over all
the traces, and its pictures are compared with ones cut from the original files without our code.
"""

from __future__ import annotations

import base64
import csv
import fnmatch
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import file_bytes, jpeg_with_orientation, noise, smooth
from PIL import ExifTags, Image, ImageOps
from scripted_teacher import ScriptedTeacher, calls, num_turns, says

from distil.cli import main
from distil.replay.replay import Sources
from distil.replay.verify import Verdict, verify_trace
from distil.source.saved import read_saved

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BOX, ANGLE = [8, 6, 60, 40], 30
PHOTOS = [
    jpeg_with_orientation(smooth(96, 72), 6),
    file_bytes(noise(80, 64, "RGBA"), "PNG"),
    file_bytes(noise(96, 72, seed=3)),
]
NAMES = ["turned.jpg", "see through é.png", "sub/plain.jpg"]
ROWS = [{"lat": 10.0 + n, "lon": 20.0, "city": str(n)} for n in range(len(PHOTOS))]
PICTURE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
BROKEN = {"bytes": b"no picture", "path": None}


def expected_picture(city: str) -> str:
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(PHOTOS[int(city)])))
    return digest(picture.crop(BOX).rotate(ANGLE, expand=True))


def digest(picture: Image.Image) -> str:
    return hashlib.sha256(f"{picture.mode} {picture.size} ".encode() + picture.tobytes()).hexdigest()


# --- the forms: each writes a dataset into a folder and returns what --dataset_path gets

Form = Callable[[Path], str | list[str]]  # or with the flags that say how it is to be read
FORMS: dict[str, Form] = {}


def form(name: str) -> Callable[[Form], Form]:
    def keep(make: Form) -> Form:
        assert name not in FORMS
        FORMS[name] = make
        return make

    return keep


def write_pictures(folder: Path) -> None:
    for name, data in zip(NAMES, PHOTOS, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def with_column(name: str, values: list[Any]) -> list[dict[str, Any]]:
    return [{name: value, **row} for value, row in zip(values, ROWS, strict=True)]


def pictures() -> list[dict[str, Any]]:
    return [{"bytes": data, "path": None} for data in PHOTOS]


def paths(folder: Path) -> list[str]:
    write_pictures(folder)
    return [str(folder / name) for name in NAMES]


def table_of(image: Any = None, **columns: tuple[list[Any], Any]) -> datasets.Dataset:
    """The rows with their pictures inside, and more columns, each as values and feature."""
    cells: dict[str, list[Any]] = {"image": pictures()}
    cells |= {name: [row[name] for row in ROWS] for name in ROWS[0]}
    cells |= {name: values for name, (values, _) in columns.items()}
    features = datasets.Features(
        image=image or datasets.Image(),
        lat=datasets.Value("float64"),
        lon=datasets.Value("float64"),
        city=datasets.Value("string"),
        **{name: feature for name, (_, feature) in columns.items()},
    )
    return datasets.Dataset.from_dict(cells, features=features)


def save(table: datasets.Dataset, folder: Path, **options: Any) -> str:
    table.save_to_disk(str(folder), **options)
    return str(folder)


def saved_arrow(folder: Path, image: pa.Array, feature: Any) -> str:
    """A saved dataset whose image column is just this array, which save_to_disk would have changed."""
    table = pa.table({"image": image, **pa.Table.from_pylist(ROWS).to_pydict()})
    save(table_of(), folder)
    with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file:
        with pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    info = json.loads((folder / "dataset_info.json").read_text())
    info["features"] |= datasets.Features(image=feature).to_dict()
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return str(folder)


@form("saved: pictures inside")
def _(folder: Path) -> str:
    return save(table_of(), folder / "ds")


@form("saved: in an odd folder")
def _(folder: Path) -> str:
    return save(table_of(), folder / "with space [1] é#%20:v2")


@form("saved: by a relative path")
def _(folder: Path) -> str:
    save(table_of(), folder / "ds")
    return "ds"


@form("saved: embedded from files")
def _(folder: Path) -> str:
    rows = with_column("image", paths(folder))
    return save(datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()), folder / "ds")


@form("saved: Image with paths alone")
def _(folder: Path) -> str:
    cells = [{"bytes": None, "path": path} for path in paths(folder)]
    return saved_arrow(folder / "ds", pa.array(cells, type=PICTURE), datasets.Image())


@form("saved: Image(decode=False)")
def _(folder: Path) -> str:
    return save(table_of(datasets.Image(decode=False)), folder / "ds")


@form("saved: Image(mode='RGBA')")
def _(folder: Path) -> str:
    return save(table_of(datasets.Image(mode="RGBA")), folder / "ds")


@form("saved: struct of bytes and path")
def _(folder: Path) -> str:
    plain = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    return save(table_of(plain), folder / "ds")


@form("saved: struct of path and large bytes")
def _(folder: Path) -> str:
    kind = pa.struct({"path": pa.large_string(), "bytes": pa.large_binary()})
    plain = {"path": datasets.Value("large_string"), "bytes": datasets.Value("large_binary")}
    return saved_arrow(folder / "ds", pa.array(pictures(), type=kind), plain)


@form("saved: struct of a path")
def _(folder: Path) -> str:
    cells = [{"path": path} for path in paths(folder)]
    return save(
        datasets.Dataset.from_list(with_column("image", cells)),
        folder / "ds",
    )


for text in ("string", "large_string", "string_view"):

    @form(f"saved: paths as {text}")
    def _(folder: Path, text: str = text) -> str:
        kind = getattr(pa, text)()
        return saved_arrow(folder / "ds", pa.array(paths(folder), type=kind), datasets.Value(text))


@form("saved: paths as a dictionary")
def _(folder: Path) -> str:
    image = pa.array(paths(folder)).dictionary_encode()
    return saved_arrow(folder / "ds", image, datasets.Value("string"))


for binary in ("binary", "large_binary", "binary_view"):

    @form(f"saved: file bytes as {binary}")
    def _(folder: Path, binary: str = binary) -> str:
        kind = getattr(pa, binary)()
        return saved_arrow(folder / "ds", pa.array(PHOTOS, type=kind), datasets.Value(binary))


@form("saved: with the numpy format")
def _(folder: Path) -> str:
    return save(table_of().with_format("numpy"), folder / "ds")


@form("saved: with a format of other columns")
def _(folder: Path) -> str:
    return save(table_of().with_format("numpy", columns=["lat"]), folder / "ds")


@form("saved: beside a picture column that is broken")
def _(folder: Path) -> str:
    return save(table_of(mask=([BROKEN] * 3, datasets.Image())), folder / "ds")


@form("saved: beside lists and structs of broken pictures")
def _(folder: Path) -> str:
    more = {"list": ([[BROKEN]] * 3, datasets.List(datasets.Image()))}
    more |= {"struct": ([{"a": BROKEN}] * 3, {"a": datasets.Image()})}
    return save(table_of(**more), folder / "ds")


@form("saved: beside a sound")
def _(folder: Path) -> str:
    sounds = [{"bytes": b"RIFF", "path": None}] * 3
    plain = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    table = table_of(sound=(sounds, plain)).cast_column("sound", datasets.Audio())
    return save(table, folder / "ds")


@form("saved: beside arrays and labels")
def _(folder: Path) -> str:
    more = {"grid": ([[[1, 2], [3, 4]]] * 3, datasets.Array2D((2, 2), "int32"))}
    more |= {"labels": ([[0, 1]] * 3, datasets.List(datasets.ClassLabel(names=["day", "night"])))}
    table = table_of({"bytes": datasets.Value("binary"), "path": datasets.Value("large_string")}, **more)
    return save(table, folder / "ds")


@form("saved: selected, shuffled, sorted")
def _(folder: Path) -> str:
    table = datasets.concatenate_datasets([table_of(), table_of()]).shuffle(seed=1).sort("city")
    return save(table.select([5, 2, 1, 0]), folder / "ds")


@form("saved: concatenated, in shards")
def _(folder: Path) -> str:
    table = datasets.concatenate_datasets([table_of(), table_of().select([2, 0])])
    return save(table, folder / "ds", num_shards=4)


@form("saved: file bytes in shards")
def _(folder: Path) -> str:
    rows = with_column("image", PHOTOS)
    return save(datasets.Dataset.from_list(rows), folder / "ds", num_shards=3)


@form("DatasetDict: a split")
def _(folder: Path) -> str:
    splits = {"train": table_of().select([2]), "test": table_of()}
    datasets.DatasetDict(splits).save_to_disk(str(folder / "ds"))
    return f"{folder / 'ds'}:test"


@form("DatasetDict: a split of paths")
def _(folder: Path) -> str:
    table = datasets.Dataset.from_list(with_column("image", paths(folder)))
    datasets.DatasetDict({"train": table, "test": table.select([2])}).save_to_disk(str(folder / "ds"))
    return f"{folder / 'ds'}:train"


@form("parquet: Image")
def _(folder: Path) -> str:
    table_of().to_parquet(str(folder / "a.parquet"))
    return str(folder / "a.parquet")


@form("parquet: Image beside a broken one")
def _(folder: Path) -> str:
    table_of(mask=([BROKEN] * 3, datasets.Image())).to_parquet(str(folder / "a.parquet"))
    return str(folder / "a.parquet")


def parquet(folder: Path, image: pa.Array) -> str:
    table = pa.table({"image": image, **pa.Table.from_pylist(ROWS).to_pydict()})
    pq.write_table(table, folder / "a.parquet", row_group_size=2)
    return str(folder / "a.parquet")


@form("parquet: struct of another writer")
def _(folder: Path) -> str:
    return parquet(folder, pa.array(pictures(), type=PICTURE))


@form("parquet: struct with relative paths")
def _(folder: Path) -> str:
    write_pictures(folder)
    cells = [{"bytes": None, "path": NAMES[0]}, pictures()[1], {"bytes": None, "path": NAMES[2]}]
    return parquet(folder, pa.array(cells, type=PICTURE))


for binary in ("binary", "large_binary", "binary_view"):

    @form(f"parquet: file bytes as {binary}")
    def _(folder: Path, binary: str = binary) -> str:
        return parquet(folder, pa.array(PHOTOS, type=getattr(pa, binary)()))


for text in ("string", "large_string", "string_view"):

    @form(f"parquet: relative paths as {text}")
    def _(folder: Path, text: str = text) -> str:
        write_pictures(folder)
        return parquet(folder, pa.array(NAMES, type=getattr(pa, text)()))


@form("parquet: relative paths as a pandas category")
def _(folder: Path) -> str:
    write_pictures(folder)
    frame = pd.DataFrame(with_column("image", NAMES))
    frame["image"] = frame["image"].astype("category")
    frame.to_parquet(folder / "a.parquet")
    return str(folder / "a.parquet")


def write_csv(path: Path, rows: list[dict[str, Any]], start: str = "", line_end: str = "\n") -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(start)
        writer = csv.DictWriter(file, list(rows[0]), lineterminator=line_end)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def write_jsonl(path: Path, rows: list[dict[str, Any]], start: str = "", line_end: str = "\n") -> str:
    text = start + "".join(json.dumps(row) + line_end for row in rows)
    path.write_bytes(text.encode())
    return str(path)


@form("CSV: relative paths")
def _(folder: Path) -> str:
    write_pictures(folder)
    return write_csv(folder / "a.csv", with_column("image", NAMES))


@form("CSV: absolute paths")
def _(folder: Path) -> str:
    return write_csv(folder / "a.csv", with_column("image", paths(folder)))


@form("CSV: absolute and relative paths")
def _(folder: Path) -> str:
    return write_csv(folder / "a.csv", with_column("image", [*paths(folder)[:2], NAMES[2]]))


@form("CSV: paths that go up")
def _(folder: Path) -> str:
    write_pictures(folder / "pictures")
    (folder / "table").mkdir()
    up = [f"../pictures/{name}" for name in NAMES]
    return write_csv(folder / "table" / "a.csv", with_column("image", up))


@form("CSV: names with a colon")
def _(folder: Path) -> str:
    names = [f"photo:{n}.jpg" for n in range(3)]
    for name, data in zip(names, PHOTOS, strict=True):
        (folder / name).write_bytes(data)
    return write_csv(folder / "a.csv", with_column("image", names))


@form("CSV: of Windows, with a byte order mark")
def _(folder: Path) -> str:
    write_pictures(folder)
    return write_csv(folder / "a.csv", with_column("image", NAMES), "\ufeff", "\r\n")


@form("CSV: by a relative path")
def _(folder: Path) -> str:
    write_pictures(folder)
    write_csv(folder / "a.csv", with_column("image", NAMES))
    return "a.csv"


@form("CSV: in an odd folder")
def _(folder: Path) -> str:
    odd = folder / "with space [1] é#%20"
    write_pictures(odd)
    return write_csv(odd / "a [1]*.csv", with_column("image", NAMES))


@form("JSONL: relative paths")
def _(folder: Path) -> str:
    write_pictures(folder)
    return write_jsonl(folder / "a.jsonl", with_column("image", NAMES))


@form("JSONL: absolute paths")
def _(folder: Path) -> str:
    return write_jsonl(folder / "a.jsonl", with_column("image", paths(folder)))


@form("JSONL: structs with a path")
def _(folder: Path) -> str:
    write_pictures(folder)
    return write_jsonl(folder / "a.jsonl", with_column("image", [{"path": name} for name in NAMES]))


@form("JSONL: of Windows, with a byte order mark")
def _(folder: Path) -> str:
    write_pictures(folder)
    return write_jsonl(folder / "a.jsonl", with_column("image", NAMES), "\ufeff", "\r\n")


@form("JSONL: by a relative path")
def _(folder: Path) -> str:
    write_pictures(folder)
    write_jsonl(folder / "a.jsonl", with_column("image", NAMES))
    return "a.jsonl"


@form("JSON: a list of rows")
def _(folder: Path) -> str:
    write_pictures(folder)
    (folder / "a.json").write_text(json.dumps(with_column("image", NAMES), indent=1))
    return str(folder / "a.json")


@form("pictures with metadata.csv")
def _(folder: Path) -> str:
    write_pictures(folder)
    (folder / "[bold] not named.jpg").write_bytes(PHOTOS[0])
    write_csv(folder / "metadata.csv", with_column("file_name", NAMES))
    return str(folder)


@form("pictures with metadata.jsonl")
def _(folder: Path) -> str:
    write_pictures(folder)
    write_jsonl(folder / "metadata.jsonl", with_column("file_name", NAMES))
    return str(folder)


@form("pictures with metadata, by a relative path")
def _(folder: Path) -> str:
    write_pictures(folder)
    write_csv(folder / "metadata.csv", with_column("file_name", NAMES))
    return "."


@form("pictures with metadata, in an odd folder")
def _(folder: Path) -> str:
    odd = folder / "with space [1] é#%20"
    write_pictures(odd)
    write_csv(odd / "metadata.csv", with_column("file_name", NAMES))
    return str(odd)


@form("pictures with metadata: a split")
def _(folder: Path) -> str:
    for split in ("train", "test"):
        write_pictures(folder / split)
        write_csv(folder / split / "metadata.csv", with_column("file_name", NAMES))
    return f"{folder}:test"


@form("pictures with metadata and broken masks")
def _(folder: Path) -> str:
    write_pictures(folder)
    (folder / "mask.png").write_bytes(b"no picture")
    rows = [{**row, "mask_file_name": "mask.png"} for row in with_column("file_name", NAMES)]
    write_csv(folder / "metadata.csv", rows)
    return str(folder)


@form("folder of pictures with GPS in their EXIF")
def _(folder: Path) -> str:
    for number, name in enumerate(("b.png", "a.png", "sub/c.png")):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(with_gps(number))
    return str(folder)


@form("CSV: columns of EXIF, by flags")
def _(folder: Path) -> list[str]:
    names = [f"{number}.png" for number in range(len(PHOTOS))]
    for number, name in enumerate(names):
        (folder / name).write_bytes(with_gps(number))
    path = write_csv(folder / "a.csv", [{"image": name} for name in names])
    return [path, "--lat_column", "exif:GPSLatitude", "--lon_column", "exif:GPSLongitude"]


def with_gps(number: int) -> bytes:
    """The photo as a PNG whose EXIF says where it was taken."""
    exif = Image.Exif()
    exif[ExifTags.IFD.GPSInfo] = {1: "N", 2: (10 + number, 0, 0), 3: "E", 4: (19, 59, 60)}
    return file_bytes(ImageOps.exif_transpose(Image.open(io.BytesIO(PHOTOS[number]))), "PNG", exif=exif)


# --- columns of other names


def renamed(**names: str) -> datasets.Dataset:
    return table_of().rename_columns(names)


for image, lat, lon in (
    ("img", "Latitude", "LONGITUDE"),
    ("photo", "Lat", "Lng"),
    ("picture", "gps_lat", "gps_lon"),
    ("Image", "GPSLatitude", "GPSLongitude"),
    ("view", "latitude", "longitude"),
    ("jpg", "lat", "long"),
):

    @form(f"columns: {image}, {lat}, {lon}")
    def _(folder: Path, image: str = image, lat: str = lat, lon: str = lon) -> str:
        return save(renamed(image=image, lat=lat, lon=lon), folder / "ds")


@form("columns: photo beside a broken mask")
def _(folder: Path) -> str:
    table = table_of(mask=([BROKEN] * 3, datasets.Image())).rename_column("image", "photo")
    return save(table, folder / "ds", num_shards=2)


@form("columns: fields of a struct")
def _(folder: Path) -> str:
    places = [{"gps": {"lat": row["lat"], "lng": row["lon"]}} for row in ROWS]
    kind = {"gps": {"lat": datasets.Value("float32"), "lng": datasets.Value("float32")}}
    return save(table_of(meta=(places, kind)).remove_columns(["lat", "lon"]), folder / "ds")


@form("columns: names with points")
def _(folder: Path) -> str:
    write_pictures(folder)
    rows = [{"gps.lat": row["lat"], "gps.lng": row["lon"], "city": row["city"]} for row in ROWS]
    named = [{"image": name, **row} for name, row in zip(NAMES, rows, strict=True)]
    return write_csv(folder / "a.csv", named)


for name in ("image_path", "file_name", "filepath"):

    @form(f"columns: paths in {name}")
    def _(folder: Path, name: str = name) -> str:
        write_pictures(folder)
        return write_csv(folder / "a.csv", with_column(name, NAMES))


@form("columns: all by flags")
def _(folder: Path) -> list[str]:
    table = renamed(image="scene", lat="y", lon="x").add_column("lat", [0.0] * 3).add_column("lon", [0.0] * 3)
    flags = ["--image_column", "scene", "--lat_column", "y", "--lon_column", "x"]
    return [save(table, folder / "ds"), *flags]


@form("columns: a place by flags")
def _(folder: Path) -> list[str]:
    table = renamed(lat="y", lon="x").add_column("lat", [0.0] * 3)
    return [save(table, folder / "ds"), "--lat_column", "y", "--lon_column", "x"]


@form("columns: another than the image, by a flag")
def _(folder: Path) -> list[str]:
    rows = with_column("photo", PHOTOS)
    table = datasets.Dataset.from_list(rows).add_column("image", ["no picture"] * 3)
    return [save(table, folder / "ds"), "--image_column", "photo"]


@form("columns: metadata.csv itself")
def _(folder: Path) -> str:
    write_pictures(folder)
    return write_csv(folder / "metadata.csv", with_column("file_name", NAMES))


# --- pictures as text


def data_urls() -> list[str]:
    return [f"data:image/jpeg;base64,{base64.b64encode(data).decode()}" for data in PHOTOS]


def base64_texts() -> list[str]:
    plain, url_safe, wrapped = base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes
    texts = (write(data).decode() for write, data in zip((plain, url_safe, wrapped), PHOTOS, strict=True))
    return [text.rstrip("=") for text in texts]


for texts in (data_urls, base64_texts):

    @form(f"saved: {texts.__name__}")
    def _(folder: Path, texts: Callable[[], list[str]] = texts) -> str:
        return save(datasets.Dataset.from_list(with_column("image", texts())), folder / "ds")

    @form(f"parquet: {texts.__name__}")
    def _(folder: Path, texts: Callable[[], list[str]] = texts) -> str:
        return parquet(folder, pa.array(texts(), type=pa.large_string()))

    @form(f"JSONL: {texts.__name__}")
    def _(folder: Path, texts: Callable[[], list[str]] = texts) -> str:
        return write_jsonl(folder / "a.jsonl", with_column("image_base64", texts()))

    @form(f"CSV: {texts.__name__}")
    def _(folder: Path, texts: Callable[[], list[str]] = texts) -> str:
        return write_csv(folder / "a.csv", with_column("image", texts()))


@form("CSV: data URL, base64 and a path")
def _(folder: Path) -> str:
    write_pictures(folder)
    return write_csv(folder / "a.csv", with_column("image", [data_urls()[0], base64_texts()[1], NAMES[2]]))


# --- many files


@form("TSV: relative paths")
def _(folder: Path) -> str:
    write_pictures(folder)
    rows = with_column("image", NAMES)
    lines = ["\t".join(map(str, values)) for values in (list(rows[0]), *(row.values() for row in rows))]
    (folder / "a.tsv").write_text("\n".join(lines), encoding="utf-8")
    return str(folder / "a.tsv")


def write_shards(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        table_of().select([number]).to_parquet(str(folder / name))


SHARDS = [f"train-0000{number}-of-00003.parquet" for number in range(3)]


@form("folder of parquet files")
def _(folder: Path) -> str:
    write_shards(folder / "ds", ["a.parquet", "b.parquet", "c.parquet"])
    return str(folder / "ds")


@form("folder of parquet files, in an odd folder")
def _(folder: Path) -> str:
    odd = folder / "with space [1] é#%20"
    write_shards(odd, SHARDS)
    return str(odd)


@form("folder of parquet files with splits")
def _(folder: Path) -> str:
    write_shards(folder / "ds" / "data", SHARDS)
    table_of().select([0]).to_parquet(str(folder / "ds" / "data" / "test-00000-of-00001.parquet"))
    return f"{folder / 'ds'}:train"


def write_hub_cache(folder: Path) -> Path:
    """What the hub's client leaves in its cache: links to files named by their hashes, and a README."""
    made = folder / "datasets--someone--photos"
    snapshot = made / "snapshots" / ("0" * 40)
    write_shards(made / "blobs", ["b0", "b1", "b2"])
    readme = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: first\n    path: data/*\n---\n# Photos\n"
    (made / "blobs" / "b3").write_text(readme)
    for number, name in enumerate([*(f"data/{shard}" for shard in SHARDS), "README.md"]):
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(made / "blobs" / f"b{number}", (snapshot / name).parent))
    (snapshot / "dataset_infos.json").write_text("{}")
    (made / "refs").mkdir()
    (made / "refs" / "main").write_text("0" * 40)
    return made


@form("snapshot of the hub")
def _(folder: Path) -> str:
    return str(write_hub_cache(folder) / "snapshots" / ("0" * 40))


@form("snapshot of the hub, by its folder in the cache")
def _(folder: Path) -> str:
    return f"{write_hub_cache(folder)}:first"


@form("glob of parquet files")
def _(folder: Path) -> str:
    write_shards(folder / "ds", SHARDS)
    (folder / "ds" / "notes.txt").write_text("other")
    return str(folder / "ds" / "*.parquet")


@form("glob of CSV files, by a relative path")
def _(folder: Path) -> str:
    write_pictures(folder)
    for number, one in enumerate(with_column("image", NAMES)):
        write_csv(folder / f"{number}.csv", [one])
    return "[0-9].csv"


@form("folder of CSV files with relative paths")
def _(folder: Path) -> str:
    write_pictures(folder / "photos")
    (folder / "tables").mkdir()
    for number, one in enumerate(with_column("photo", [f"../photos/{name}" for name in NAMES])):
        write_csv(folder / "tables" / f"{number}.csv", [one])
    return str(folder / "tables")


@form("folder of JSONL files with relative paths")
def _(folder: Path) -> str:
    write_pictures(folder / "photos")
    (folder / "tables").mkdir()
    for number, one in enumerate(with_column("photo", [f"../photos/{name}" for name in NAMES])):
        write_jsonl(folder / "tables" / f"{number}.jsonl", [one])
    return str(folder / "tables")


def write_tar(path: Path, numbers: list[int]) -> None:
    """A shard as webdataset has it: files of one sample have one name."""
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            for suffix, data in (("png", PHOTOS[number]), ("json", json.dumps(ROWS[number]).encode())):
                info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@form("webdataset: a shard")
def _(folder: Path) -> str:
    write_tar(folder / "a.tar", [0, 1, 2])
    return str(folder / "a.tar")


@form("webdataset: a glob of shards")
def _(folder: Path) -> str:
    write_tar(folder / "shard-000.tar", [2])
    write_tar(folder / "shard-001.tar", [0, 1])
    return str(folder / "shard-*.tar")


@form("webdataset: shards numbered in braces")
def _(folder: Path) -> str:
    write_tar(folder / "shard-009.tar", [2])
    write_tar(folder / "shard-010.tar", [0, 1])
    return str(folder / "shard-{009..010}.tar")


@form("webdataset: a folder of shards")
def _(folder: Path) -> str:
    write_tar(folder / "shard-000.tar", [2])
    write_tar(folder / "shard-001.tar", [0, 1])
    return str(folder)


# --- all of them once


@dataclass(frozen=True)
class Distilled:
    """What became of a form: the door's exit code and last words, and its trace files."""

    status: int
    said: str
    traces: tuple[Path, ...]


def policy(request: dict[str, Any]) -> Any:
    if num_turns(request) == 0:
        call = ("image_zoom_in_tool", {"bbox_2d": BOX})
        return calls(call, ("image_rotate_tool", {"angle": ANGLE}))
    return says("\\boxed{10, 20}")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a cache of `datasets` of its own."""
    folder = tmp_path_factory.mktemp("forms")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        datasets.disable_progress_bars()
        yield folder
        datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def distilled(workplace: Path) -> dict[str, Distilled]:
    with ScriptedTeacher(policy) as teacher, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "EMPTY")
        return {name: distil(workplace, name, make, teacher.api_base) for name, make in FORMS.items()}


def distil(workplace: Path, name: str, make: Form, api_base: str) -> Distilled:
    folder = workplace / re.sub(r"\W+", "_", name)
    (folder / "data").mkdir(parents=True)
    output = folder / "traces"
    flags = ["--api_base", api_base, "--model", "m", "--tool_mode", "native", "--coordinates", "pixel"]
    made = make(folder / "data")
    path, *more = [made] if isinstance(made, str) else made
    said = io.StringIO()
    with chdir(folder / "data"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", said)
        status = main(["run", "--dataset_path", path, "--output_dir", str(output), *more, *flags])
    return Distilled(status, said.getvalue(), tuple(sorted(output.glob("trace_*.json"))))


RUN_RECIPE = """
import datasets, hashlib, json, os, sys
recipe, results = sys.argv[1], {}
for path in sys.stdin.read().splitlines():
    os.chdir(os.path.dirname(path))
    scope = {"datasets": datasets, "json": json}
    try:
        exec(recipe.replace("trace_00000.json", os.path.basename(path)), scope)
        picture = scope["image"]
        text = f"{picture.mode} {picture.size} ".encode() + picture.tobytes()
        results[path] = hashlib.sha256(text).hexdigest()
    except Exception as error:
        results[path] = repr(error)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def restored(distilled: dict[str, Distilled]) -> dict[str, str]:
    """The hash of the picture that the recipe restores for each trace, or its error."""
    (recipe,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    traces = [str(path) for result in distilled.values() for path in result.traces]
    run = subprocess.run(
        [sys.executable, "-c", RUN_RECIPE, recipe],
        input="\n".join(traces),
        env={**os.environ, "HF_DATASETS_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    results: dict[str, str] = json.loads(run.stdout)
    return results


@pytest.mark.parametrize("name", FORMS)
def test_the_recipe_as_written_restores_every_trace_of_a_form(
    name: str, distilled: dict[str, Distilled], restored: dict[str, str]
) -> None:
    result = distilled[name]
    assert result.status == 0, result.said
    assert len(result.traces) >= len(PHOTOS)
    sources = Sources()
    for path in result.traces:
        trace = json.loads(path.read_text())
        truth = trace["metadata"]["truth"]
        assert truth["lon"] == pytest.approx(20)
        number = str(round(truth["lat"] - 10))
        assert str(trace["sample_data"].get("city", number)) == number
        expected = expected_picture(number)
        if name != "saved: Image(mode='RGBA')":
            assert restored[str(path)] == expected
        else:
            assert len(restored[str(path)]) == len(expected), restored[str(path)]
        assert Path(trace["dataset_path"]).is_absolute()
        assert verify_trace(path, sources).verdict is Verdict.MATCHED


def test_the_door_says_which_pictures_are_left_out(distilled: dict[str, Distilled]) -> None:
    said = distilled["pictures with metadata.csv"].said
    assert "is not named in metadata.csv and left out: [bold] not named.jpg\n" in said
    assert "left out" not in distilled["pictures with metadata.jsonl"].said


def test_the_door_says_in_one_line_which_columns_it_guessed(distilled: dict[str, Distilled]) -> None:
    start = "Columns, guessed by name and type: "
    guesses = {
        "columns: photo, Lat, Lng": "image is 'photo', lat is 'Lat', lon is 'Lng' "
        "(others: --image_column, --lat_column, --lon_column)",
        "columns: fields of a struct": "lat is 'meta.gps.lat', lon is 'meta.gps.lng' "
        "(others: --lat_column, --lon_column)",
        "columns: paths in file_name": "image is 'file_name' (others: --image_column)",
        "folder of pictures with GPS in their EXIF": "lat is 'exif:GPSLatitude', lon is 'exif:GPSLongitude' "
        "(others: --lat_column, --lon_column)",
        "webdataset: a shard": "image is 'png', lat is 'json.lat', lon is 'json.lon' "
        "(others: --image_column, --lat_column, --lon_column)",
    }
    for name, guess in guesses.items():
        assert [line for line in distilled[name].said.splitlines() if "guessed" in line] == [start + guess]
    for name in ("saved: pictures inside", "columns: all by flags", "CSV: columns of EXIF, by flags"):
        assert "guessed" not in distilled[name].said


def test_a_trace_says_which_columns_were_chosen_where_it_is_not_by_their_usual_names(
    distilled: dict[str, Distilled],
) -> None:
    def columns(name: str) -> Any:
        return json.loads(distilled[name].traces[0].read_text())["settings"].get("columns")

    assert columns("columns: view, latitude, longitude") == {"image": "view"}
    assert columns("columns: all by flags") == {"image": "scene", "lat": "y", "lon": "x"}
    assert columns("columns: fields of a struct") == {"lat": "meta.gps.lat", "lon": "meta.gps.lng"}
    for name in ("saved: pictures inside", "CSV: relative paths", "pictures with metadata.csv"):
        assert "columns" not in json.loads(distilled[name].traces[0].read_text())["settings"]


MOVED = (
    "CSV: relative paths",
    "folder of parquet files",
    "glob of parquet files",
    "webdataset: *",
    "columns: photo, *",
)


@pytest.mark.parametrize("name", [name for one in MOVED for name in fnmatch.filter(FORMS, one)])
def test_a_dataset_that_has_moved_is_verified_where_it_is_now(
    name: str, distilled: dict[str, Distilled], tmp_path: Path
) -> None:
    made = FORMS[name](tmp_path)
    assert isinstance(made, str)
    sources = Sources(made)
    for path in distilled[name].traces:
        found = verify_trace(path, sources)
        assert found.verdict is Verdict.MATCHED, found.detail


# The forms of each row of the table in docs/datasets.md, as patterns of their names.
FOLDER_ITSELF = "the folder itself"
ROWS_OF_THE_TABLE = {
    "`save_to_disk` folder, or a split of a DatasetDict (`PATH:split`)": [
        "saved: pictures inside",
        "saved: in an odd folder",
        "saved: by a relative path",
        "saved: embedded from files",
        "saved: Image with paths alone",
        "saved: Image(mode='RGBA')",
        "saved: selected, shuffled, sorted",
        "saved: concatenated, in shards",
        "DatasetDict: a split",
    ],
    "the same, with a place of other names": ["columns: fields of a struct", "columns: a place by flags"],
    "the same, with other pictures": [
        "saved: Image(decode=False)",
        "saved: struct of *",
        "saved: paths as *",
        "saved: file bytes *",
        "DatasetDict: a split of paths",
    ],
    "the same, with pictures as text": ["saved: data_urls", "saved: base64_texts"],
    "the same, beside other decoded columns, or with a format": ["saved: beside *", "saved: with *"],
    "the same, with a picture column of another name": [
        *(f"columns: {name}, *" for name in ("img", "photo", "picture", "Image", "view", "jpg")),
        "columns: photo beside a broken mask",
        "columns: all by flags",
        "columns: another than the image, by a flag",
    ],
    "parquet file": ["parquet: *"],
    "CSV file, TSV file": [
        "CSV: *",
        "TSV: *",
        "columns: paths in *",
        "columns: names with points",
        "columns: metadata.csv itself",
    ],
    "JSONL file, JSON file (a list of rows)": ["JSONL: *", "JSON: *"],
    "folder of pictures with `metadata.csv` or `metadata.jsonl`": ["pictures with metadata*"],
    "folder of pictures alone": ["folder of pictures with GPS in their EXIF"],
    "folder of parquet, JSONL, CSV, TSV or tar files": ["folder of * files*"],
    "snapshot of the hub, or its `datasets--OWNER--NAME` folder in the cache": ["snapshot of the hub*"],
    "glob of files of one kind, such as `'/data/*.parquet'`": ["glob of *"],
    "webdataset shard (`.tar`), or a glob, folder or `{000..010}` of them": ["webdataset: *"],
}


def test_every_row_of_the_table_of_forms_is_made_and_every_form_has_its_row() -> None:
    page = (Path(__file__).parent.parent / "docs" / "datasets.md").read_text(encoding="utf-8")
    table = page.partition("| given as |")[2].partition("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]
    assert [row[0] for row in rows] == list(ROWS_OF_THE_TABLE)
    forms = [fnmatch.filter(FORMS, _literal(one)) for row in ROWS_OF_THE_TABLE.values() for one in row]
    assert all(forms), "a pattern that no form has"
    assert sorted(name for names in forms for name in names) == sorted(FORMS), "each form once"
    itself = [name for row in rows if row[2] == FOLDER_ITSELF for name in ROWS_OF_THE_TABLE[row[0]]]
    assert set(itself) == NAMED_THEMSELVES


def _literal(pattern: str) -> str:
    return pattern.replace("[", "[[]")


NAMED_THEMSELVES = {  # a trace of any other form names a view
    *ROWS_OF_THE_TABLE["`save_to_disk` folder, or a split of a DatasetDict (`PATH:split`)"],
    *ROWS_OF_THE_TABLE["the same, with a place of other names"],
}


def test_plain_saved_datasets_are_named_themselves_and_all_others_by_a_view(
    workplace: Path, distilled: dict[str, Distilled]
) -> None:
    views = workplace / "cache" / "distil"
    named = {
        name: json.loads(result.traces[0].read_text())["dataset_path"] for name, result in distilled.items()
    }
    assert {name for name, path in named.items() if not Path(path).is_relative_to(views)} == NAMED_THEMSELVES


def test_saved_datasets_that_are_named_themselves_are_read_without_datasets(
    distilled: dict[str, Distilled],
) -> None:
    paths = {
        name: json.loads(distilled[name].traces[0].read_text())["dataset_path"] for name in NAMED_THEMSELVES
    }
    assert {name for name, path in paths.items() if read_saved(path) is None} == set()
