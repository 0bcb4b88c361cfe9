"""Metadata is cut out of a picture file, and the picture stays what it was."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import pytest
from builders import file_bytes, jpeg_with_orientation, noise, same_pixels, smooth
from conftest import save_photos
from hypothesis import given
from hypothesis import strategies as st
from marked_pictures import chunk, marked_files, marked_jpeg, marked_png, segment
from PIL import Image
from scripted_teacher import ScriptedTeacher, calls, says, turns

from distil.bare_file import without_metadata
from distil.cli import main
from distil.errors import SampleError
from distil.pictures import ResizeRule, decode_stored, encode_sent
from distil.replay.replay import Sources
from distil.replay.verify import Verdict, verify_trace
from distil.store.trace_file import json_sha256

MARK = b"ZQMARK"
KEPT_CHUNKS = {b"IHDR", b"IDAT", b"IEND"}
KEPT_MARKERS = {*range(0xC0, 0xD0), 0xDA, 0xDB, 0xDD, 0xE0, 0xEE} - {0xC8}
UNLIMITED = ResizeRule(min_side_px=1)


def mark(name: str) -> str:
    return f"{MARK.decode()}-{name}"


MARKED = marked_files(mark)
JPEGS = [name for name in MARKED if "jpeg" in name]
CUT_JPEGS = ["jpeg", "progressive jpeg", "jpeg with restarts", "grey jpeg", "cmyk jpeg", "large jpeg"]


def walked(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def markers_of(data: bytes) -> list[int]:
    """The markers of a JPEG, found by jumping from length to length; scan data is skipped."""
    assert data.startswith(b"\xff\xd8")
    found, position = [], 2
    while True:
        assert data[position] == 0xFF
        marker = data[position + 1]
        if marker == 0xD9:
            assert position + 2 == len(data)
            return found
        found.append(marker)
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        while marker == 0xDA and (data[position] != 0xFF or data[position + 1] in {0, *range(0xD0, 0xD8)}):
            position += 1


def chunks_of(data: bytes) -> list[bytes]:
    """The chunk types of a PNG."""
    found, position = [], 8
    while position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        found.append(data[position + 4 : position + 8])
        position += length + 12
    return found


@pytest.mark.parametrize("name", CUT_JPEGS)
def test_a_jpeg_keeps_its_pixels_and_nothing_else(name: str) -> None:
    bare = without_metadata("JPEG", MARKED[name])
    assert bare is not None
    assert set(markers_of(bare)) <= KEPT_MARKERS
    assert MARK not in bare
    assert same_pixels(walked(bare), walked(MARKED[name]))


@pytest.mark.parametrize("name", ["png", "grey png"])
def test_a_png_keeps_its_pixels_and_nothing_else(name: str) -> None:
    bare = without_metadata("PNG", MARKED[name])
    assert bare is not None
    assert set(chunks_of(bare)) == KEPT_CHUNKS
    assert MARK not in bare
    assert same_pixels(walked(bare), walked(MARKED[name]))


@pytest.mark.parametrize("name", MARKED)
@pytest.mark.parametrize("rule", [UNLIMITED, ResizeRule(factor_px=28)], ids=["as it is", "resized"])
def test_what_is_sent_holds_no_metadata_whatever_the_format(name: str, rule: ResizeRule) -> None:
    stored = decode_stored(MARKED[name])
    for sent in (
        encode_sent(stored.image, rule, stored),
        encode_sent(stored.image.crop((0, 0, 40, 40)), rule),
    ):
        assert MARK not in sent.data
        found = set(markers_of(sent.data)) if sent.media_type == "image/jpeg" else set(chunks_of(sent.data))
        assert found <= KEPT_MARKERS | KEPT_CHUNKS
        shown = walked(sent.data)
        assert not shown.getexif()
        assert not {"comment", "exif", "xmp", "photoshop", "icc_profile"} & set(shown.info)


def test_a_plain_file_stays_the_same_bytes() -> None:
    for plain in (smooth(40, 30), smooth(40, 30).convert("L")):
        for file_format in ("JPEG", "PNG"):
            data = file_bytes(plain, file_format)
            assert without_metadata(file_format, data) == data


@pytest.mark.parametrize("name", ["jpeg", "progressive jpeg", "jpeg with restarts", "png"])
def test_cutting_twice_is_cutting_once(name: str) -> None:
    file_format = "PNG" if "png" in name else "JPEG"
    bare = without_metadata(file_format, MARKED[name])
    assert bare is not None
    assert without_metadata(file_format, bare) == bare


def with_component_ids(data: bytes, ids: bytes) -> bytes:
    """A baseline JPEG whose three colour components are called so."""
    renamed = bytearray(data)
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    for position, name in enumerate(ids):
        renamed[frame + 10 + 3 * position] = renamed[scan + 5 + 2 * position] = name
    return bytes(renamed)


def test_an_adobe_segment_says_that_numbered_components_are_rgb_and_stays() -> None:
    """Decoders take components called 1, 2 and 3 for YCbCr unless an Adobe segment says otherwise."""
    data = with_component_ids(file_bytes(smooth(40, 30), "JPEG", keep_rgb=True, quality=95), b"\1\2\3")
    marked = data[:2] + segment(0xE1, b"Exif\0\0" + MARK) + data[2:]
    bare = without_metadata("JPEG", marked)
    assert bare == data
    assert same_pixels(walked(bare), walked(marked))
    adobe = data.index(b"\xff\xee")
    assert not same_pixels(walked(data[:adobe] + data[adobe + 16 :]), walked(data))


def test_a_jfif_segment_says_that_components_named_rgb_are_ycbcr_and_stays() -> None:
    """Decoders take components called R, G and B for RGB unless a JFIF segment says otherwise."""
    data = with_component_ids(file_bytes(smooth(40, 30), "JPEG"), b"RGB")
    bare = without_metadata("JPEG", data)
    assert bare is not None
    assert same_pixels(walked(bare), walked(data))
    assert not same_pixels(walked(data[:2] + data[20:]), walked(data))


def test_fill_bytes_and_stuffed_zeros_are_no_end_of_a_scan() -> None:
    data = file_bytes(noise(200, 100), "JPEG", quality=100)
    assert data.count(b"\xff\x00") > 10
    filled = data[:-2] + b"\xff\xff\xff\xff\xd9"
    assert without_metadata("JPEG", filled) == data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8",
        MARKED["jpeg"][:40],
        file_bytes(smooth(40, 30), "JPEG")[:-2],
        file_bytes(smooth(40, 30), "JPEG")[:300],
        b"\xff\xd8junk" + file_bytes(smooth(40, 30), "JPEG")[2:],
        b"\xff\xd8\xff\xdc\x00\x04\x00\x1e" + file_bytes(smooth(40, 30), "JPEG")[2:],
        b"\xff\xd8" + file_bytes(smooth(40, 30), "JPEG"),
        b"\xff\xd8\xff\xe1\x00\x01" + file_bytes(smooth(40, 30), "JPEG")[2:],
        b"\xff\xd8" + b"\xff" * 100_000,
        b"\xff\xd8\xff\xda\x00\x02" + b"\xff" * 2_000_000 + b"\x00",
    ],
    ids=range(11),
)
def test_a_jpeg_that_cannot_be_walked_is_not_cut(data: bytes) -> None:
    assert without_metadata("JPEG", data) is None


PNG = file_bytes(smooth(40, 30), "PNG")
END = PNG.rindex(b"IEND") - 4
FIRST_IDAT = PNG.index(b"IDAT") - 4


@pytest.mark.parametrize(
    "data",
    [
        b"",
        PNG[:8],
        PNG[:END],
        PNG[: END + 8],
        PNG[:40],
        PNG[:FIRST_IDAT] + chunk(b"CgBI", b"") + PNG[FIRST_IDAT:],
        PNG[:FIRST_IDAT] + PNG[END:],
        PNG[:8] + chunk(b"tEXt", b"a\0b") + PNG[8:],
        PNG[:END] + chunk(b"tEXt", b"a\0b") + chunk(b"IDAT", b"") + PNG[END:],
        PNG[:FIRST_IDAT] + PNG[8:],
        PNG[:END] + chunk(b"IEND", b"hidden"),
        file_bytes(smooth(40, 30), "PNG", save_all=True, append_images=[noise(40, 30)]),
        file_bytes(smooth(40, 30).quantize(16), "PNG"),
    ],
    ids=range(13),
)
def test_a_png_that_cannot_be_walked_or_needs_more_than_its_pixels_is_not_cut(data: bytes) -> None:
    assert without_metadata("PNG", data) is None


@pytest.mark.parametrize("file_format", ["GIF", "TIFF", "WEBP", "MPO", "unknown"])
def test_other_formats_are_not_cut(file_format: str) -> None:
    assert without_metadata(file_format, MARKED["jpeg"]) is None


def test_what_cannot_be_walked_is_sent_from_its_pixels() -> None:
    plain = file_bytes(smooth(40, 30), "JPEG")
    junk = plain[:20] + b"junk" + segment(0xE1, b"Exif\0\0" + MARK) + plain[20:]
    stored = decode_stored(junk)
    sent = encode_sent(stored.image, UNLIMITED, stored)
    assert MARK not in sent.data
    assert sent.data == encode_sent(stored.image, UNLIMITED).data


def test_a_picture_that_the_dataset_decodes_to_another_mode_is_sent_as_the_tools_see_it() -> None:
    """A column `Image(mode="L")` makes a colour photo grey: the teacher sees what its crops will look like."""
    for data in (file_bytes(smooth(40, 30), "JPEG"), file_bytes(smooth(40, 30), "PNG")):
        stored = decode_stored(data, "L")
        assert walked(encode_sent(stored.image, UNLIMITED, stored).data).mode == "L"
    clear = decode_stored(file_bytes(noise(40, 30, "RGBA"), "PNG"), "RGB")
    assert walked(encode_sent(clear.image, UNLIMITED, clear).data).mode == "RGB"


def test_the_same_file_is_cut_to_the_same_bytes() -> None:
    stored = [decode_stored(MARKED["jpeg"]) for _ in range(2)]
    assert len({encode_sent(one.image, UNLIMITED, one).sha256 for one in stored}) == 1
    assert stored[0].data == MARKED["jpeg"]


def test_an_arithmetic_coded_jpeg_is_cut_like_any_other() -> None:
    """Pillow writes none: the segments alone, with fill bytes and a restart marker in the scan."""
    tables = (
        segment(0xDB, bytes(65))
        + segment(0xC9, bytes((8, 0, 8, 0, 8, 1, 1, 0x11, 0)))
        + segment(0xCC, b"\0\1")
    )
    scan = segment(0xDA, bytes((1, 1, 0, 0, 63, 0))) + b"\1\2\xff\0\3\xff\xd0\4\xff\xff\0\5"
    comment = segment(0xFE, MARK)
    data = b"\xff\xd8" + comment + tables + comment + scan + b"\xff\xff" + comment + scan + b"\xff\xd9" + MARK
    assert without_metadata("JPEG", data) == b"\xff\xd8" + tables + scan + scan + b"\xff\xd9"


# --- in traces


def traces_of(pictures: list[bytes], folder: Path) -> list[dict[str, Any]]:
    """A run over these photos: a zoom, a turn, an answer."""
    script = turns(
        calls(("image_zoom_in_tool", {"bbox_2d": [0, 0, 500, 500]}), ("image_rotate_tool", {"angle": 90})),
        says("\\boxed{1.0, 2.0}"),
    )
    save_photos(folder / "photos", pictures)
    with ScriptedTeacher(script) as teacher:
        flags = ["--dataset_path", folder / "photos", "--output_dir", folder, "--api_base", teacher.api_base]
        assert main(["run", *map(str, flags)]) == 0
    return [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("trace_*.json"))]


def test_a_trace_says_what_was_stored_and_what_was_sent_and_an_old_one_says_why_it_differs(
    tmp_path: Path,
) -> None:
    (trace,) = traces_of([MARKED["jpeg"]], tmp_path)
    bare = without_metadata("JPEG", MARKED["jpeg"])
    assert bare is not None
    assert trace["image"]["file_sha256"] == hashlib.sha256(MARKED["jpeg"]).hexdigest()
    assert trace["image"]["sent"]["sha256"] == hashlib.sha256(bare).hexdigest()
    assert trace["image"]["sent"]["num_bytes"] == len(bare)
    assert "grey_range" not in trace["image"]["sent"]
    path = tmp_path / "trace_00000.json"
    assert verify_trace(path, Sources()).verdict is Verdict.MATCHED
    del trace["integrity_sha256"]
    trace["image"]["sent"]["sha256"] = trace["image"]["file_sha256"]  # as it was before metadata was cut
    path.write_text(json.dumps({**trace, "integrity_sha256": json_sha256(trace)}), encoding="utf-8")
    verification = verify_trace(path, Sources())
    assert verification.verdict is Verdict.CHANGED_RESULT
    assert "metadata is cut out now" in verification.detail


def test_a_trace_of_deep_grey_keeps_the_range_and_its_pictures_their_depth(tmp_path: Path) -> None:
    (trace,) = traces_of([file_bytes(noise(96, 96, "I;16"), "PNG")], tmp_path)
    results = [call["result"] for call in trace["tool_calls_log"]]
    assert [result["mode"] for result in results] == ["I;16", "I;16"]
    ranges = [entry["sent"]["grey_range"] for entry in (trace["image"], *results)]
    assert ranges == [[0.0, 65535.0]] * 3
    assert verify_trace(tmp_path / "trace_00000.json", Sources()).verdict is Verdict.MATCHED


def test_an_old_trace_of_deep_grey_says_why_it_differs_and_is_not_called_inconsistent(tmp_path: Path) -> None:
    """Where its pictures are the same bytes all the same, the range alone is missing."""
    (trace,) = traces_of([file_bytes(noise(96, 96, "I;16"), "PNG")], tmp_path)
    for entry in (trace["image"], *(call["result"] for call in trace["tool_calls_log"])):
        del entry["sent"]["grey_range"]
    del trace["integrity_sha256"]
    path = tmp_path / "trace_00000.json"
    path.write_text(json.dumps({**trace, "integrity_sha256": json_sha256(trace)}), encoding="utf-8")
    verification = verify_trace(path, Sources())
    assert verification.verdict is Verdict.CHANGED_RESULT
    assert "each picture was scaled by itself" in verification.detail


# --- fuzz: whatever the file, what is cut draws the same picture


def drawn(data: bytes) -> Image.Image | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return decode_stored(data).image
        except SampleError:
            return None


def check_same_picture(file_format: str, data: bytes) -> None:
    bare = without_metadata(file_format, data)
    before = drawn(data)
    if bare is None or before is None or before.mode not in ("RGB", "L"):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        turned = Image.open(io.BytesIO(data)).getexif().get(0x0112) not in (None, 1)
    if not turned:
        after = drawn(bare)
        assert after is not None
        assert same_pixels(before, after)
    assert without_metadata(file_format, bare) == bare


SMALL_JPEGS = {
    "plain": file_bytes(noise(24, 17), "JPEG"),
    "progressive": file_bytes(noise(24, 17), "JPEG", progressive=True),
    "restarts": file_bytes(noise(24, 17), "JPEG", restart_marker_blocks=1),
    "grey": file_bytes(noise(24, 17, "L"), "JPEG"),
    "rgb": file_bytes(noise(24, 17), "JPEG", keep_rgb=True),
    "turned": jpeg_with_orientation(noise(24, 17), 3),
    "marked": marked_jpeg(smooth(24, 17), mark),
}
SMALL_PNGS = {
    "plain": file_bytes(noise(24, 17), "PNG"),
    "grey": file_bytes(noise(24, 17, "L"), "PNG"),
    "marked": marked_png(smooth(24, 17), mark),
}


@given(st.sampled_from(sorted(SMALL_JPEGS)), st.data())
def test_a_damaged_jpeg_is_cut_to_the_same_picture_or_not_at_all(name: str, draw: st.DataObject) -> None:
    damaged = bytearray(SMALL_JPEGS[name])
    for _ in range(draw.draw(st.integers(0, 4))):
        place = draw.draw(st.integers(0, len(damaged) - 1))
        damaged[place] = draw.draw(
            st.sampled_from([0xFF, 0xD9, 0xDA, 0xD0, 0xE1, 0xFE, 0, 1]) | st.integers(0, 255)
        )
    if draw.draw(st.booleans()):
        del damaged[draw.draw(st.integers(0, len(damaged))) :]
    with contextlib.suppress(SampleError):
        check_same_picture("JPEG", bytes(damaged))


SEGMENTS = st.tuples(
    st.sampled_from([*range(0xE0, 0xF0), 0xFE]),
    st.binary(max_size=40)
    | st.sampled_from([b"JFIF\0" + bytes(9), b"Adobe" + bytes(7), b"Exif\0\0", b"Adobe"]),
    st.integers(0, 3),
)


@given(
    st.sampled_from(sorted(SMALL_JPEGS)), st.lists(SEGMENTS, max_size=5), st.binary(max_size=30), st.data()
)
def test_segments_in_any_order_and_place_are_cut(
    name: str, segments: list[tuple[int, bytes, int]], tail: bytes, draw: st.DataObject
) -> None:
    parts = split_jpeg(SMALL_JPEGS[name])
    for marker, payload, num_fill in segments:
        place = draw.draw(st.integers(0, len(parts)))
        parts.insert(place, b"\xff" * num_fill + segment(marker, payload))
    data = b"\xff\xd8" + b"".join(parts) + b"\xff\xd9" + tail
    bare = without_metadata("JPEG", data)
    assert bare is not None
    assert set(markers_of(bare)) <= KEPT_MARKERS
    check_same_picture("JPEG", data)


def split_jpeg(data: bytes) -> list[bytes]:
    """The segments of a JPEG that Pillow wrote, each scan with its data, without SOI and EOI."""
    bare = without_metadata("JPEG", data)
    assert bare is not None
    parts, position = [], 2
    for marker in markers_of(bare):
        end = position + 2 + int.from_bytes(bare[position + 2 : position + 4], "big")
        while marker == 0xDA and (bare[end] != 0xFF or bare[end + 1] in {0, *range(0xD0, 0xD8)}):
            end += 1
        parts.append(bare[position:end])
        position = end
    return parts


@given(st.sampled_from(sorted(SMALL_PNGS)), st.data())
def test_a_damaged_png_is_cut_to_the_same_picture_or_not_at_all(name: str, draw: st.DataObject) -> None:
    damaged = bytearray(SMALL_PNGS[name])
    for _ in range(draw.draw(st.integers(0, 3))):
        damaged[draw.draw(st.integers(0, len(damaged) - 1))] = draw.draw(st.integers(0, 255))
    if draw.draw(st.booleans()):
        del damaged[draw.draw(st.integers(0, len(damaged))) :]
    check_same_picture("PNG", bytes(damaged))


CHUNKS = st.tuples(
    st.sampled_from(
        [b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME", b"tRNS", b"PLTE", b"gAMA", b"sBIT", b"IDAT"]
    ),
    st.binary(max_size=24) | st.just(zlib.compress(b"text")),
)


@given(st.sampled_from(sorted(SMALL_PNGS)), st.lists(CHUNKS, max_size=4), st.data())
def test_chunks_in_any_order_and_place_are_cut_or_the_file_is_left_alone(
    name: str, chunks: list[tuple[bytes, bytes]], draw: st.DataObject
) -> None:
    data = SMALL_PNGS[name]
    for kind, payload in chunks:
        places = [8]
        while places[-1] < len(data):
            places.append(places[-1] + 12 + int.from_bytes(data[places[-1] : places[-1] + 4], "big"))
            if data[places[-2] + 4 : places[-2] + 8] == b"IEND":
                break
        place = draw.draw(st.sampled_from(places))
        data = data[:place] + chunk(kind, payload) + data[place:]
    check_same_picture("PNG", data)


@given(st.sampled_from(["JPEG", "PNG"]), st.binary(max_size=200))
def test_any_bytes_can_be_given(file_format: str, data: bytes) -> None:
    start = b"\xff\xd8" if file_format == "JPEG" else b"\x89PNG\r\n\x1a\n"
    assert without_metadata(file_format, data) is None or data.startswith(start)
    without_metadata(file_format, start + data)
