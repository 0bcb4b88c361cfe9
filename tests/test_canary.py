"""Nothing of the truth reaches a prompt: canaries in all that a row has beside its pixels, and none comes out."""

from __future__ import annotations

import base64
import binascii
import csv
import functools
import io
import json
import re
import struct
import urllib.parse
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import pytest
from builders import file_bytes, noise, smooth
from marked_pictures import GPS_SECONDS, marked_files
from PIL import Image
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_pictures, num_turns, says, text_call

from distil.cli import main

STEM = "Zq7Canary"
LAT, LON = 12.3432101, -98.7652101
NUMBER = 90210.734213
# What code that a teacher writes could find out and print.
NOSY_CODE = """
import os, sys
print(image.info, getattr(image, 'filename', ''), getattr(image, 'text', ''), vars(image), dict(image.getexif()))
print(sorted(globals()), sys.argv, sys.path, dict(os.environ), sys.modules.keys())
for look in (os.getcwd, os.listdir, lambda: open('/proc/self/cmdline').read(), lambda: open('/proc/self/environ').read()):
    try:
        print(look())
    except BaseException as error:
        print(type(error).__name__)
result_image = image
"""


def mark(name: str) -> str:
    return f"{STEM}_{name}_é"


class Ear(io.RawIOBase):
    """A socket's file that keeps every byte that is read from it."""

    def __init__(self, file: BinaryIO, heard: bytearray) -> None:
        self._file, self._heard = file, heard

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._keep(self._file.readline(-1 if size is None else size))

    def read(self, size: int | None = -1, /) -> bytes:
        return self._keep(self._file.read(-1 if size is None else size))

    def _keep(self, data: bytes) -> bytes:
        self._heard.extend(data)
        return data


class OverheardTeacher(ScriptedTeacher):
    """A scripted teacher of which every byte that it was sent is kept: request lines, headers and bodies."""

    def __init__(self, script: Callable[[dict[str, Any]], Any]) -> None:
        self.heard: list[bytearray] = []
        super().__init__(script)

    def _handler_class(self) -> type[Any]:
        base, heard = super()._handler_class(), self.heard

        class Handler(base):  # type: ignore[misc, valid-type]
            def setup(self) -> None:
                super().setup()
                heard.append(bytearray())
                self.rfile = Ear(self.rfile, heard[-1])

        return Handler


# --- looking for a canary, however it is written down

_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{16,}={0,2}")
_MARK = re.compile(STEM.encode() + rb"_?[\w-]*", re.IGNORECASE)
_ESCAPE = re.compile(rb"\\u([0-9a-fA-F]{4})|\\([/\"\\nrtbf])")


@functools.lru_cache(maxsize=2000)  # every turn carries the pictures of those before
def canaries_in(data: bytes, depth: int = 0) -> frozenset[str]:
    """The marks, numbers and places in some bytes: plain, escaped, in UTF-16, base64, hex or compressed."""
    found = {name for name, forms in _NUMBERS.items() if any(form in data for form in forms)}
    for text in (data, data[::2], data[1::2]):  # the second and third: UTF-16
        found |= {match.decode() for match in _MARK.findall(text)}
    if depth <= 3:
        found = found.union(*(canaries_in(layer, depth + 1) for layer in layers(data, depth)))
    return frozenset(found)


def layers(data: bytes, depth: int) -> Iterator[bytes]:
    """What some bytes stand for, if they are an escaped text or hold base64 or zlib streams."""
    if depth == 0:
        yield urllib.parse.unquote_to_bytes(data)
        yield unescaped(data)
    for run in _BASE64.findall(data):
        yield from unpacked(run)
    yield from inflated(data)


def unescaped(data: bytes) -> bytes:
    return _ESCAPE.sub(
        lambda match: chr(int(match[1], 16)).encode("utf-8", "replace") if match[1] else match[2], data
    )


def unpacked(run: bytes) -> Iterator[bytes]:
    """A run of letters as base64, from each of its first four letters, and as hex."""
    plain = run.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
    for start in range(4 if len(plain) < 2000 else 1):
        usable = plain[start:][: (len(plain) - start) // 4 * 4]
        yield base64.b64decode(
            usable + plain[start + len(usable) :].ljust(4, b"A")[: 4 if len(plain) > 8 else 0]
        )
    if re.fullmatch(rb"(?:[0-9a-fA-F]{2})+", plain):
        yield binascii.unhexlify(plain)


def inflated(data: bytes) -> Iterator[bytes]:
    """The zlib streams of PNG chunks; also of those whose chunk is not compressed at its start."""
    for kind in (b"zTXt", b"iTXt", b"iCCP"):
        for match in re.finditer(kind, data):
            (length,) = struct.unpack(">I", data[match.start() - 4 : match.start()].rjust(4, b"\0"))
            body = data[match.end() : match.end() + min(length, 100_000)]
            for start in [place.start() for place in re.finditer(rb"\x78[\x01\x5e\x9c\xda]", body)]:
                try:
                    yield zlib.decompressobj().decompress(body[start:], 1_000_000)
                except zlib.error:
                    continue


def forms_of(value: float) -> tuple[bytes, ...]:
    whole = re.sub(r"\D", "", repr(value))[
        :9
    ].encode()  # fewer digits come by chance, in addresses and hashes
    digits = (repr(value).encode(), whole, repr(round(abs(value), 4)).encode())
    return (*digits, struct.pack("<d", value), struct.pack(">d", value))


_NUMBERS = {
    "lat": forms_of(LAT),
    "lon": forms_of(LON),
    "number": forms_of(NUMBER),
    "gps": (struct.pack("<I", GPS_SECONDS), struct.pack(">I", GPS_SECONDS), str(GPS_SECONDS).encode()),
}


# --- the dataset and the conversations


def rows(files: dict[str, bytes]) -> dict[str, list[Any]]:
    """A column of every kind, every value a canary."""
    count = len(files)
    names = [name.replace(" ", "-") for name in files]
    second = file_bytes(smooth(9, 9), "JPEG", comment=mark("second-picture"))
    return {
        "image": [
            {"bytes": data, "path": f"/{mark('folder')}/{mark('file')}-{name}.bin"}
            for name, data in zip(names, files.values(), strict=True)
        ],
        "lat": [LAT] * count,
        "lon": [LON] * count,
        mark("text-column"): [mark("text-value")] * count,
        "country": [mark("country")] * count,
        "number": [NUMBER] * count,
        "nested": [{mark("nested-key"): [{"deep": mark("nested-value")}], "number": NUMBER}] * count,
        "list": [[mark("list-value")] * 2] * count,
        "data": [mark("bytes-value").encode()] * count,
        "label": [0] * count,
        "other_picture": [{"bytes": second, "path": mark("second-file") + ".jpg"}] * count,
    }


def saved_rows(folder: Path, files: dict[str, bytes]) -> Path:
    columns = rows(files)
    features = {
        "image": datasets.Image(),
        "lat": datasets.Value("float64"),
        "lon": datasets.Value("float64"),
        mark("text-column"): datasets.Value("string"),
        "country": datasets.Value("string"),
        "number": datasets.Value("float64"),
        "nested": {
            mark("nested-key"): [{"deep": datasets.Value("string")}],
            "number": datasets.Value("float64"),
        },
        "list": [datasets.Value("string")],
        "data": datasets.Value("binary"),
        "label": datasets.ClassLabel(names=[mark("label-name")]),
        "other_picture": datasets.Image(),
    }
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).save_to_disk(str(folder))
    return folder


CALLS: list[list[tuple[str, Any]]] = [
    [("image_zoom_in_tool", {"bbox_2d": [0, 0, 900, 900]}), ("image_rotate_tool", {"angle": 90})],
    [("python_code_tool", {"code": NOSY_CODE}), ("python_code_tool", {"code": "open('secret')"})],
    [("image_zoom_in_tool", {"bbox_2d": [5, 5, 5, 5]}), ("no_such_tool", {}), ("image_rotate_tool", {})],
    [("image_rotate_tool", {"angle": 12.5}), ("image_zoom_in_tool", {"bbox_2d": [10, 10, 800, 800]})],
]


def nosy(request: dict[str, Any]) -> Any:
    """Calls every tool, also wrongly, and answers after all of it."""
    if is_probe(request):
        return calls(("image_zoom_in_tool", {"bbox_2d": [0, 0, 9, 9]})) if "tools" in request else says("ok")
    turn = num_turns(request)
    if turn >= len(CALLS):
        return says("\\boxed{1.0, 2.0}")
    if "tools" in request:
        return calls(*CALLS[turn])
    return says("\n".join(text_call(*call) for call in CALLS[turn]))


def check(teacher: OverheardTeacher, num_requests: int) -> None:
    assert len(teacher.requests) >= num_requests
    heard = [bytes(connection) for connection in teacher.heard]
    assert sum(map(len, heard)) > sum(len(json.dumps(request)) for request in teacher.requests) * 0.9
    assert not frozenset().union(*map(canaries_in, heard))


@pytest.fixture(scope="module")
def secret_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(mark("dataset-parent")) / mark("dataset-folder")
    return saved_rows(folder, marked_files(mark))


@pytest.mark.parametrize("tool_mode", ["auto", "text"])
def test_no_canary_is_in_any_request_of_a_run_with_all_tools(
    secret_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool_mode: str
) -> None:
    monkeypatch.setenv("ZQ_SECRET", mark("environment"))
    output = tmp_path / mark("output")
    flags = ["--dataset_path", secret_dataset, "--output_dir", output, "--num_samples", 0, "--max_workers", 2]
    with OverheardTeacher(nosy) as teacher:
        flags += [
            "--api_base",
            teacher.api_base,
            "--tools",
            "zoom,rotate,python_code",
            "--tool_mode",
            tool_mode,
        ]
        assert main(["run", *map(str, flags)]) == 0
        check(teacher, num_requests=len(marked_files(mark)) * (len(CALLS) + 1))
        assert max(map(num_pictures, teacher.requests)) >= 6
    traces = [json.loads(path.read_text("utf-8")) for path in output.glob("trace_*.json")]
    assert len(traces) == len(marked_files(mark))
    assert STEM in json.dumps(traces[0]["sample_data"])
    assert [call["success"] for call in traces[0]["tool_calls_log"]].count(True) == 5


def test_no_canary_is_in_any_request_of_the_baselines(secret_dataset: Path, tmp_path: Path) -> None:
    """Pictures kept in the trace, size stated in words, pictures sent smaller; and one turn without tools."""
    common = ["--dataset_path", secret_dataset, "--num_samples", 0]
    for command, more in (
        ("with-tools", ["--coordinates", "pixel", "--image_max_pixels", 2000]),
        ("one-turn", []),
    ):
        with OverheardTeacher(nosy) as teacher:
            flags = [*common, *more, "--api_base", teacher.api_base, "--output_dir", tmp_path / command]
            assert main([command, *map(str, flags)]) == 0
            check(teacher, num_requests=len(marked_files(mark)))


def test_no_canary_is_in_any_request_for_a_folder_of_pictures(tmp_path: Path) -> None:
    """File names and folder names are what such a dataset has beside its metadata.csv."""
    folder = tmp_path / mark("imagefolder")
    (folder / mark("place")).mkdir(parents=True)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "lat", "lon", mark("column")])
        for name in ("jpeg", "png", "gif"):
            file_name = f"{mark('place')}/{mark(name)}.{name}"
            (folder / file_name).write_bytes(marked_files(mark)[name])
            table.writerow([file_name, LAT, LON, mark("value")])
    with OverheardTeacher(nosy) as teacher:
        flags = ["--dataset_path", folder, "--output_dir", tmp_path / "out", "--api_base", teacher.api_base]
        assert main(["run", *map(str, flags)]) == 0
        check(teacher, num_requests=9)


def test_no_canary_is_in_a_request_of_doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZQ_SECRET", mark("environment"))
    with OverheardTeacher(lambda _: says("no")) as teacher:
        main(["doctor", "--api_base", teacher.api_base])
        check(teacher, num_requests=3)


# --- the finder finds


@pytest.mark.parametrize("name", sorted(marked_files(mark)))
def test_a_canary_is_found_in_every_file_however_a_request_carries_it(name: str) -> None:
    data = marked_files(mark)[name]
    url = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    request = json.dumps({"messages": [{"content": [{"image_url": {"url": url}}]}]}).encode()
    for carried in (data, request, request.replace(b"/", b"\\/")):
        found = canaries_in(carried)
        assert len(found) >= 3 or "tiff" in name or name == "gif"
        assert found
    if "jpeg" in name or name == "webp":
        assert {"gps", f"{STEM}_exif-UserComment_"} <= {item.rstrip("é") for item in canaries_in(request)}


@pytest.mark.parametrize(
    "form",
    [
        lambda text: text.encode(),
        lambda text: text.encode("utf-16le"),
        lambda text: text.encode("utf-16be"),
        lambda text: json.dumps(text).encode(),
        lambda text: urllib.parse.quote(text).encode(),
        lambda text: "".join(f"%{byte:02X}" for byte in text.encode()).encode(),
        lambda text: "".join(f"\\u{ord(letter):04x}" for letter in text).encode(),
        lambda text: base64.b64encode(text.encode()),
        lambda text: base64.b64encode(b"x" + text.encode()),
        lambda text: base64.urlsafe_b64encode(b"xy" + text.encode() + b"\xff\xfe"),
        lambda text: text.encode().hex().encode(),
        lambda text: text.upper().encode(),
    ],
    ids=range(12),
)
def test_a_canary_is_found_in_every_form(form: Callable[[str], bytes]) -> None:
    assert canaries_in(b"before: " + form(mark("hidden")) + b" behind")


@pytest.mark.parametrize("value", [LAT, LON, NUMBER])
def test_a_number_is_found_in_every_form(value: float) -> None:
    for form in (repr(value), f"{value:.4f}", repr(int(value * 1e7)), json.dumps({"x": [value]})):
        assert canaries_in(form.encode())
    assert canaries_in(base64.b64encode(struct.pack("<d", value) * 3))


def test_nothing_is_found_where_there_is_nothing() -> None:
    picture = base64.b64encode(file_bytes(noise(200, 200), "JPEG"))
    assert not canaries_in(b'{"url": "data:image/jpeg;base64,' + picture + b'"}')
    assert not canaries_in(file_bytes(Image.new("RGB", (50, 50)), "PNG"))
