"""Pictures are decoded as `datasets` does, sent as teachers need them, and boxes land where they point."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import datasets
import numpy as np
import pytest
from builders import file_bytes, jpeg_with_orientation, noise, png_header_only, same_pixels, smooth
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from distil.errors import SampleError, ToolError
from distil.pictures import (
    Frame,
    ResizeRule,
    box_to_pixels,
    data_url,
    decode_stored,
    encode_sent,
    find_grey_range,
    picture_facts,
    sent_size,
    to_rgb_or_grey,
)
from distil.records import SentPicture
from distil.tools.base import BoxFrame, Scene
from distil.tools.toolbox import Toolbox, load_tools

HF_DEFAULT = ResizeRule(max_area_px=1280 * 28 * 28, min_area_px=56 * 56, min_side_px=28, factor_px=28)
QWEN25 = ResizeRule(max_area_px=12_845_056, min_area_px=3136, min_side_px=28, factor_px=28)
QWEN3 = ResizeRule(max_area_px=16_777_216, min_area_px=65_536, min_side_px=32, factor_px=32)
SIDES = st.integers(1, 5000)
SLACK_PX = 1e-5
LIBJPEG_MAX_SIDE = 65_500


def decoded(sent: SentPicture) -> Image.Image:
    return Image.open(io.BytesIO(sent.data))


# --- the size a picture is sent at


@pytest.mark.parametrize(
    ("rule", "expected"),
    [(HF_DEFAULT, (1316, 728)), (QWEN25, (1932, 1092)), (QWEN3, (1920, 1088))],
)
def test_a_full_hd_picture_is_resized_as_the_server_would(
    rule: ResizeRule, expected: tuple[int, int]
) -> None:
    assert sent_size((1920, 1080), rule) == expected


def smart_resize(width: int, height: int, rule: ResizeRule) -> tuple[int, int]:
    """The rule as the Qwen2-VL image processor of transformers states it."""
    factor = rule.factor_px
    wide, high = round(width / factor) * factor, round(height / factor) * factor
    assert rule.max_area_px is not None
    if wide * high > rule.max_area_px:
        beta = math.sqrt((height * width) / rule.max_area_px)
        high = max(factor, math.floor(height / beta / factor) * factor)
        wide = max(factor, math.floor(width / beta / factor) * factor)
    elif wide * high < rule.min_area_px:
        beta = math.sqrt(rule.min_area_px / (height * width))
        high, wide = (math.ceil(side * beta / factor) * factor for side in (height, width))
    return wide, high


@pytest.mark.parametrize("rule", [HF_DEFAULT, QWEN25, QWEN3])
@given(width=st.integers(32, 8000), height=st.integers(32, 8000))
def test_any_size_is_resized_as_the_server_would(rule: ResizeRule, width: int, height: int) -> None:
    assume(max(width, height) <= 100 * min(width, height))
    assert sent_size((width, height), rule) == smart_resize(width, height, rule)


@given(SIDES.filter(lambda side: side >= 32), SIDES.filter(lambda side: side >= 32))
def test_without_limits_the_size_stays(width: int, height: int) -> None:
    assert sent_size((width, height), ResizeRule()) == (width, height)


@pytest.mark.parametrize("size", [(10, 10), (31, 200), (1, 60), (5, 3)])
def test_a_small_side_is_raised_to_the_least_that_servers_take(size: tuple[int, int]) -> None:
    sent = encode_sent(noise(*size), ResizeRule())
    assert min(sent.size) == 32
    assert decoded(sent).size == sent.size


def test_a_side_limit_keeps_the_shape() -> None:
    assert sent_size((4000, 2000), ResizeRule(max_side_px=1568)) == (1568, 784)


@pytest.mark.parametrize(
    ("size", "sent"), [((10_000, 50), (6400, 32)), ((50, 10_000), (32, 6400)), ((10_000, 205), (1568, 32))]
)
def test_a_picture_both_too_long_and_too_narrow_is_as_wide_as_servers_take(
    size: tuple[int, int], sent: tuple[int, int]
) -> None:
    assert sent_size(size, ResizeRule(max_side_px=1568)) == sent


# --- boxes

FRAMES = st.sampled_from(list(Frame))


def units_of(frame: Frame, sent: tuple[int, int]) -> tuple[float, float]:
    if frame is Frame.PIXEL:
        return sent
    return (1, 1) if frame is Frame.REL1 else (1000, 1000)


def written(frame: Frame, box: tuple[float, float, float, float]) -> tuple[float, ...]:
    """A box x1 y1 x2 y2 in the order of the frame."""
    return tuple(box[i] for i in (1, 0, 3, 2)) if frame is Frame.REL1000_YX else box


@given(FRAMES, SIDES, SIDES, SIDES, SIDES)
def test_the_full_frame_is_the_full_picture(frame: Frame, w: int, h: int, sent_w: int, sent_h: int) -> None:
    units = units_of(frame, (sent_w, sent_h))
    box = written(frame, (0, 0, *units))
    assert box_to_pixels(box, frame, (sent_w, sent_h), (w, h)) == ((0, 0, w, h), False)


UNIT = st.floats(-0.5, 1.5)


@given(
    FRAMES,
    SIDES,
    SIDES,
    SIDES,
    SIDES,
    st.tuples(UNIT, UNIT),
    st.tuples(st.floats(1e-6, 2), st.floats(1e-6, 2)),
)
def test_a_box_is_rounded_outward_and_clamped(
    frame: Frame,
    w: int,
    h: int,
    sent_w: int,
    sent_h: int,
    corner: tuple[float, float],
    extent: tuple[float, float],
) -> None:
    units = units_of(frame, (sent_w, sent_h))
    low = [corner[axis] * units[axis] for axis in (0, 1)]
    high = [(corner[axis] + extent[axis]) * units[axis] for axis in (0, 1)]
    exact = [
        side * size / unit for side, size, unit in zip([*low, *high], (w, h) * 2, units * 2, strict=True)
    ]
    assume(low[0] < high[0] and low[1] < high[1])
    assume(exact[0] < w - SLACK_PX and exact[1] < h - SLACK_PX and min(exact[2:]) > SLACK_PX)
    (x1, y1, x2, y2), clamped = box_to_pixels(written(frame, (*low, *high)), frame, (sent_w, sent_h), (w, h))
    assert 0 <= x1 < x2 <= w
    assert 0 <= y1 < y2 <= h
    for got, wanted, length in ((x1, exact[0], w), (y1, exact[1], h)):
        assert max(0, wanted) - 1 - SLACK_PX <= got <= min(length - 1, max(0, wanted) + SLACK_PX)
    for got, wanted, length in ((x2, exact[2], w), (y2, exact[3], h)):
        assert min(length, wanted) - SLACK_PX <= got <= min(length, wanted) + 1 + SLACK_PX
    beyond = max(-exact[0], -exact[1], exact[2] - w, exact[3] - h)
    if abs(beyond) > SLACK_PX:
        assert clamped == (beyond > 0)


@pytest.mark.parametrize(
    ("frame", "box", "expected"),
    [
        (Frame.PIXEL, (10, 20, 30, 40), (40, 40, 120, 80)),  # sent at 1000×1500: 4 and 2 per axis
        (Frame.REL1000, (500, 500, 1000, 1000), (2000, 1500, 4000, 3000)),
        (Frame.REL1000_YX, (500, 0, 1000, 250), (0, 1500, 1000, 3000)),
        (Frame.REL1, (0.5, 0.25, 1, 0.5), (2000, 750, 4000, 1500)),
        (Frame.REL1000, (0.1, 0.1, 0.3, 0.3), (0, 0, 2, 1)),
    ],
)
def test_each_axis_of_a_box_is_mapped_by_its_own_scale(
    frame: Frame, box: tuple[float, ...], expected: tuple[int, ...]
) -> None:
    assert box_to_pixels(box, frame, (1000, 1500), (4000, 3000)) == (expected, False)


@pytest.mark.parametrize("box", [(0, 0, 0.7, 0.7), (0.1, 0.1, 0.7, 0.3), (0.2, 0.6, 0.3, 0.9)])
def test_binary_fractions_crop_no_extra_pixel(box: tuple[float, ...]) -> None:
    expected = tuple(round(side * 10) for side in box)
    assert box_to_pixels(box, Frame.REL1, (10, 10), (10, 10)) == (expected, False)


@pytest.mark.parametrize(
    "box", [(-1e308, -1e308, 1e308, 1e308), (-1, -1, 10**30, 10**30), (0, 0, 1001, 1000), (-1, 0, 1000, 1000)]
)
@pytest.mark.parametrize("frame", list(Frame))
def test_a_box_beyond_the_picture_is_clamped_to_it(frame: Frame, box: tuple[float, ...]) -> None:
    resolved, clamped = box_to_pixels(box, frame, (640, 480), (640, 480))
    assert clamped
    assert resolved == (0, 0, 640, 480)


@pytest.mark.parametrize("frame", list(Frame))
@pytest.mark.parametrize("box", [(5, 5, 5, 9), (5, 5, 9, 5), (9, 5, 5, 9), (5, 9, 9, 5), (0, 0, 0, 0)])
def test_an_empty_or_inverted_box_is_refused_with_the_order_it_needs(
    frame: Frame, box: tuple[float, ...]
) -> None:
    order = r"\[y1, x1, y2, x2\]" if frame is Frame.REL1000_YX else r"\[x1, y1, x2, y2\]"
    with pytest.raises(ToolError, match=order):
        box_to_pixels(box, frame, (640, 480), (640, 480))


@pytest.mark.parametrize(
    "box",
    [
        (2000, 0, 3000, 400),
        (0, 2000, 400, 3000),
        (-500, 0, -100, 400),
        (-500, -500, 0, 0),
        (1e300, 0, 1e308, 1),
        (-1e308, 0, -1e300, 1),
    ],
)
@pytest.mark.parametrize("frame", list(Frame))
def test_a_box_outside_the_picture_is_refused_with_the_range_it_needs(
    frame: Frame, box: tuple[float, ...]
) -> None:
    with pytest.raises(ToolError, match="run"):
        box_to_pixels(box, frame, (640, 480), (640, 480))


# --- decoding


def picture_files() -> dict[str, bytes]:
    """A file of every kind that `datasets` users have."""
    photo = smooth(40, 30)
    palette = photo.convert("P", palette=Image.Palette.ADAPTIVE)
    frames = [noise(20, 10, seed=seed) for seed in range(3)]
    files = {
        "RGB jpeg": file_bytes(photo, "JPEG"),
        "progressive jpeg": file_bytes(photo, "JPEG", progressive=True),
        "L jpeg": file_bytes(photo.convert("L"), "JPEG"),
        "CMYK jpeg": file_bytes(photo.convert("CMYK"), "JPEG"),
        "1 png": file_bytes(photo.convert("1"), "PNG"),
        "L png": file_bytes(photo.convert("L"), "PNG"),
        "LA png": file_bytes(noise(40, 30, "LA"), "PNG"),
        "P png": file_bytes(palette, "PNG"),
        "P png with a transparent colour": file_bytes(palette, "PNG", transparency=0),
        "RGB png": file_bytes(photo, "PNG"),
        "RGBA png": file_bytes(noise(40, 30, "RGBA"), "PNG"),
        "I;16 png": file_bytes(noise(40, 30, "I;16"), "PNG"),
        "I;16 tiff": file_bytes(noise(40, 30, "I;16"), "TIFF"),
        "F tiff": file_bytes(noise(40, 30, "F"), "TIFF"),
        "CMYK tiff": file_bytes(photo.convert("CMYK"), "TIFF"),
        "RGB webp": file_bytes(photo, "WEBP"),
        "RGBA webp": file_bytes(noise(40, 30, "RGBA"), "WEBP"),
        "animated gif": file_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "bmp": file_bytes(photo, "BMP"),
    }
    for orientation in range(0, 10):
        files[f"orientation {orientation}"] = jpeg_with_orientation(noise(40, 30), orientation)
    return files


FILES = picture_files()


@pytest.mark.parametrize("mode", [None, "RGB", "L", "RGBA"])
@pytest.mark.parametrize("name", FILES)
def test_a_picture_is_decoded_exactly_as_datasets_decodes_it(name: str, mode: str | None) -> None:
    theirs = datasets.Image(mode=mode).decode_example({"bytes": FILES[name], "path": None})
    ours = decode_stored(FILES[name], mode)
    assert same_pixels(ours.image, theirs)
    assert ours.facts == picture_facts(theirs)
    assert ours.file_sha256 == hashlib.sha256(FILES[name]).hexdigest()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_is_upright(orientation: int) -> None:
    data = jpeg_with_orientation(smooth(40, 30), orientation)
    stored = decode_stored(data)
    assert stored.exif_orientation == orientation
    assert stored.image.size == ((30, 40) if orientation >= 5 else (40, 30))
    assert same_pixels(stored.image, ImageOps.exif_transpose(Image.open(io.BytesIO(data))))


def test_the_first_frame_of_an_animation_is_the_picture() -> None:
    first = Image.open(io.BytesIO(FILES["animated gif"])).convert("RGB")
    assert same_pixels(decode_stored(FILES["animated gif"], "RGB").image, first)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a picture",
        b"<html>404</html>",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"RIFF\x00\x00\x00\x00WEBPVP8 ",
        FILES["RGB png"][:60],
        png_header_only(50_000, 50_000),
        png_header_only(2**31 - 1, 2**31 - 1),
        png_header_only(0, 0),
        png_header_only(100, 100),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_a_file_that_is_no_whole_picture_is_a_sample_error(data: bytes) -> None:
    with pytest.raises(SampleError, match="picture"):
        decode_stored(data)


def test_the_same_broken_file_has_the_same_error_in_every_run() -> None:
    messages = []
    for _ in range(2):
        with pytest.raises(SampleError, match="cannot identify image file") as caught:
            decode_stored(b"not a picture")
        messages.append(str(caught.value))
    assert "0x" not in messages[0]
    assert messages[0] == messages[1]


@pytest.mark.parametrize("name", [name for name in FILES if "orientation" not in name])
def test_a_truncated_file_is_a_sample_error_or_what_datasets_makes_of_it(name: str) -> None:
    half = FILES[name][: len(FILES[name]) // 2]
    try:
        theirs = datasets.Image().decode_example({"bytes": half, "path": None})
    except Exception:
        with pytest.raises(SampleError):
            decode_stored(half)
    else:
        assert same_pixels(decode_stored(half).image, theirs)


def test_a_truncated_jpeg_is_a_sample_error() -> None:
    with pytest.raises(SampleError, match=r"(?i)truncated"):
        decode_stored(FILES["RGB jpeg"][:-200])


@given(st.sampled_from(sorted(FILES)), st.data())
def test_a_damaged_file_is_decoded_or_a_sample_error(name: str, data: st.DataObject) -> None:
    damaged = bytearray(FILES[name])
    for _ in range(3):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(SampleError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on damaged TIFF tags
        decode_stored(bytes(damaged))


# --- hashes


def test_facts_tell_apart_mode_size_palette_and_pixels() -> None:
    grey = noise(8, 6, "L")
    palette = grey.copy()
    palette.putpalette([value for level in range(256) for value in (level, 0, 0)])
    other_palette = grey.copy()
    other_palette.putpalette([value for level in range(256) for value in (0, level, 0)])
    reshaped = Image.frombytes("L", (6, 8), grey.tobytes())
    pictures = [grey, noise(8, 6, "L", seed=1), palette, other_palette, reshaped, grey.convert("RGB")]
    assert len({picture_facts(picture).pixel_sha256 for picture in pictures}) == len(pictures)


def test_facts_do_not_depend_on_the_file() -> None:
    photo = noise(20, 10)
    png, bmp = (decode_stored(file_bytes(photo, file_format)) for file_format in ("PNG", "BMP"))
    assert png.facts == bmp.facts
    assert png.file_sha256 != bmp.file_sha256


# --- sending


@pytest.mark.parametrize("name", ["RGB jpeg", "progressive jpeg", "L jpeg", "RGB png"])
def test_a_plain_picture_is_sent_as_stored(name: str) -> None:
    stored = decode_stored(FILES[name])
    sent = encode_sent(stored.image, ResizeRule(min_side_px=1), stored)
    assert sent.data == FILES[name]
    assert sent.media_type == ("image/png" if "png" in name else "image/jpeg")
    assert sent.size == stored.image.size


@pytest.mark.parametrize("name", sorted(set(FILES) - {"RGB jpeg", "progressive jpeg", "L jpeg", "RGB png"}))
def test_any_other_picture_is_sent_as_a_grey_or_rgb_file_of_the_picture_s_size(name: str) -> None:
    stored = decode_stored(FILES[name])
    sent = encode_sent(stored.image, ResizeRule(min_side_px=1), stored)
    shown = decoded(sent)
    assert shown.format in ("JPEG", "PNG")
    assert shown.mode in ("RGB", "L")
    assert shown.size == sent.size == stored.image.size
    assert shown.getexif().get(0x0112) in (None, 1)
    assert sent.sha256 == hashlib.sha256(sent.data).hexdigest()


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_resized_picture_is_sent_at_exactly_its_sent_size(name: str) -> None:
    stored = decode_stored(FILES[name])
    sent = encode_sent(stored.image, ResizeRule(factor_px=28), stored)
    assert decoded(sent).size == sent.size == sent_size(stored.image.size, ResizeRule(factor_px=28))
    assert all(side % 28 == 0 for side in sent.size)


def test_a_turned_photo_is_sent_upright() -> None:
    stored = decode_stored(jpeg_with_orientation(smooth(64, 48), 6))
    sent = encode_sent(stored.image, ResizeRule(), stored)
    assert sent.size == (48, 64)
    difference = np.asarray(decoded(sent), dtype=int) - np.asarray(stored.image, dtype=int)
    assert np.abs(difference).mean() < 4


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA"])
def test_what_is_transparent_is_sent_white(mode: str) -> None:
    picture = Image.new("RGBA", (40, 40), (200, 0, 0, 0)).convert(mode if mode != "PA" else "P")
    if mode == "PA":
        picture = picture.convert("PA")
        picture.putalpha(Image.new("L", (40, 40), 0))
    shown = np.asarray(decoded(encode_sent(picture, ResizeRule())).convert("RGB"))
    assert shown.min() >= 250


def test_a_transparent_palette_colour_is_sent_white() -> None:
    picture = Image.new("P", (40, 40), 0)
    picture.putpalette([200, 0, 0] + [0, 0, 0] * 255)
    stored = decode_stored(file_bytes(picture, "PNG", transparency=0))
    shown = np.asarray(decoded(encode_sent(stored.image, ResizeRule(), stored)).convert("RGB"))
    assert shown.min() >= 250


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_a_16_bit_gradient_is_sent_as_a_gradient(file_format: str) -> None:
    ramp = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (64, 1))
    stored = decode_stored(file_bytes(Image.fromarray(ramp), file_format))
    shown = np.asarray(decoded(encode_sent(stored.image, ResizeRule(), stored)).convert("L"), dtype=int)
    assert np.abs(shown.mean(axis=0) - np.arange(256)).max() < 8


@pytest.mark.parametrize("top", [1.0, 255.0, 1e6])
def test_a_float_gradient_is_sent_as_a_gradient(top: float) -> None:
    ramp = np.tile(np.linspace(0, top, 256).astype(np.float32), (64, 1))
    shown = np.asarray(decoded(encode_sent(Image.fromarray(ramp), ResizeRule())).convert("L"), dtype=int)
    assert np.abs(shown.mean(axis=0) - np.arange(256)).max() < 8


@pytest.mark.parametrize("fill", [float("nan"), float("inf"), 0.0, -5.0])
def test_a_flat_or_broken_float_picture_can_be_sent(fill: float) -> None:
    picture = Image.fromarray(np.full((40, 40), fill, dtype=np.float32))
    assert decoded(encode_sent(picture, ResizeRule())).size == (40, 40)


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (66_000, 700)])
def test_a_picture_thinner_or_longer_than_jpeg_can_hold_is_squeezed_or_refused(size: tuple[int, int]) -> None:
    picture = Image.new("L", size, 128)
    try:
        sent = encode_sent(picture, ResizeRule())
    except SampleError:
        return
    assert max(sent.size) <= LIBJPEG_MAX_SIDE


def test_the_same_picture_is_sent_as_the_same_bytes_from_every_thread() -> None:
    picture = noise(300, 200)
    rule = ResizeRule(factor_px=28)
    with ThreadPoolExecutor(8) as pool:
        sent = list(pool.map(lambda _: encode_sent(picture, rule).data, range(16)))
    assert len(set(sent)) == 1


def test_a_data_url_holds_the_sent_file() -> None:
    sent = encode_sent(noise(40, 30), ResizeRule())
    head, _, body = data_url(sent).partition(",")
    assert head == "data:image/jpeg;base64"
    assert base64.b64decode(body) == sent.data


# --- deep grey: one scale for the photo and all that is made of it


def deep(values: np.ndarray, mode: str) -> Image.Image:
    """A picture of these values; big-endian ones are read from a TIFF, as datasets hold them."""
    if mode == "I;16B":
        return Image.frombytes(mode, values.shape[::-1], values.astype(">u2").tobytes())
    kinds = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
    return Image.fromarray(values.astype(kinds[mode]))


def shown(sent: SentPicture) -> np.ndarray:
    return np.asarray(decoded(sent).convert("L"), dtype=int)


def through(picture: Image.Image, *steps: tuple[str, dict[str, Any]]) -> list[SentPicture]:
    """The photo as sent, and the picture of each call, run as a rollout runs them."""
    toolbox = Toolbox(load_tools("zoom,rotate"), BoxFrame(Frame.PIXEL), ResizeRule())
    scene, sent = Scene.start(picture), [encode_sent(picture, ResizeRule())]
    for name, arguments in steps:
        observation, scene = toolbox.observe(name, arguments, scene)
        assert observation.sent is not None
        sent.append(observation.sent)
    return sent


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_a_crop_is_as_bright_as_it_was_in_the_whole(mode: str) -> None:
    values = np.full((96, 96), 200)
    values[:, 48:] = 60_000
    crop, turn = ("image_zoom_in_tool", {"bbox_2d": [0, 0, 40, 40]}), ("image_rotate_tool", {"angle": 90})
    whole, *made = through(deep(values, mode), crop, turn)
    assert shown(whole)[48, 8] == 1
    assert [int(shown(sent).max()) for sent in made] == [1, 1]
    assert {sent.grey_range for sent in (whole, *made)} == {(0.0, 65535.0)}


def test_a_crop_of_a_stretched_picture_keeps_the_photo_s_stretch() -> None:
    values = np.linspace(-1000, 99_000, 96 * 96).reshape(96, 96)
    whole, crop = through(deep(values, "F"), ("image_zoom_in_tool", {"bbox_2d": [0, 40, 96, 80]}))
    assert whole.grey_range == crop.grey_range == (-1000.0, 99_000.0)
    assert np.abs(shown(whole)[40:80] - shown(crop)).max() <= 2


@pytest.mark.parametrize(
    ("mode", "least", "greatest", "expected"),
    [
        ("I;16", 0, 1, (0, 255)),
        ("I;16", 5, 255, (0, 255)),
        ("I;16", 0, 256, (0, 65535)),
        ("I", 0, 65535, (0, 65535)),
        ("I", 0, 65536, (0, 65536)),
        ("I", -1, 10, (-1, 10)),
        ("I", 70_000, 80_000, (70_000, 80_000)),
        ("F", 0, 1, (0, 1)),
        ("F", 0, 1.5, (0, 255)),
        ("F", 0, 1000, (0, 65535)),
        ("F", -0.5, 0.5, (-0.5, 0.5)),
        ("F", 0, float("inf"), (0, 1)),
        ("F", float("nan"), float("nan"), (0, 1)),
        ("F", float("-inf"), 300, (0, 65535)),
        ("F", -3, -3, (-3, -3)),
    ],
)
def test_the_grey_range_is_the_least_full_scale_that_holds_all_values_or_their_own(
    mode: str, least: float, greatest: float, expected: tuple[float, float]
) -> None:
    picture = deep(np.array([[least, greatest]] * 2), mode)
    assert find_grey_range(picture) == expected


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK"])
def test_only_deep_grey_has_a_range(mode: str) -> None:
    picture = Image.new(mode, (40, 40))
    assert find_grey_range(picture) is None
    assert encode_sent(picture, ResizeRule(), grey_range=(0.0, 65535.0)).grey_range is None


@given(
    st.sampled_from(["I;16", "I", "F"]),
    st.lists(st.integers(-70_000, 70_000), min_size=4, max_size=4),
    st.integers(0, 3),
)
def test_a_value_is_shown_by_the_page_s_formula(mode: str, values: list[int], exponent: int) -> None:
    scaled = np.array(values).reshape(2, 2) / (1 if mode != "F" else 10**exponent)
    picture = deep(np.abs(scaled) % 65536 if mode == "I;16" else scaled, mode)
    whole = find_grey_range(picture)
    assert whole is not None
    low, high = whole
    for x, y in ((0, 0), (1, 0), (0, 1), (1, 1)):
        value = float(picture.getpixel((x, y)))  # type: ignore[arg-type]
        expected = 0 if high == low else round((min(max(value, low), high) - low) * (255 / (high - low)))
        assert to_rgb_or_grey(picture.crop((x, y, x + 1, y + 1)), whole).getpixel((0, 0)) == expected


def test_values_that_are_no_numbers_are_black_and_infinite_ones_black_or_white() -> None:
    values = np.array([[np.nan, np.inf], [-np.inf, 0.5]])
    grey = to_rgb_or_grey(deep(values, "F"), (0.0, 1.0))
    assert np.asarray(grey).tolist() == [[0, 255], [0, 128]]


def test_deep_grey_that_a_call_makes_is_shown_by_the_first_picture_of_its_mode() -> None:
    dark, bright = (deep(np.full((40, 40), value), "I;16") for value in (200, 60_000))
    assert Scene.start(bright).replaced(dark).grey_range == (0.0, 65535.0)
    scene = Scene.start(noise(40, 40))
    assert scene.grey_range is None
    scene = scene.replaced(bright)
    assert scene.replaced(noise(40, 40)).replaced(dark).cropped((0, 0, 9, 9)).grey_range == (0.0, 65535.0)
    assert scene.recropped((0, 0, 9, 9)).current.mode == "RGB"

    # --- the hash of a picture, as docs/trace-format.md says it
    fractions = deep(np.full((40, 40), 0.5), "F")  # code that divides by the full scale
    assert Scene.start(bright).replaced(fractions).grey_range == (0.0, 1.0)
    assert Scene.start(bright).replaced(fractions).recropped((0, 0, 9, 9)).grey_range == (0.0, 65535.0)


def hash_by_the_page(image: Image.Image) -> str:
    text = f"{image.mode} {image.width}x{image.height}\n"
    if image.mode == "P":
        colours = image.getpalette("RGB")
        text += "[" + ", ".join(f"{value:d}" for value in colours or []) + "]"
    return hashlib.sha256(text.encode("ascii") + image.tobytes()).hexdigest()


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_hash_is_the_one_of_the_page(name: str) -> None:
    stored = decode_stored(FILES[name])
    turned = stored.image.rotate(90, expand=True)
    for picture in (stored.image, stored.image.crop((1, 2, 9, 7)), turned):
        assert picture_facts(picture).pixel_sha256 == hash_by_the_page(picture)


def test_the_palette_of_a_png_is_hashed_as_its_file_has_it() -> None:
    """Without Pillow: the numbers of the PLTE chunk, and an index a byte."""
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4) % 5
    picture = Image.fromarray(indices)
    picture.putpalette([7, 8, 9, 10, 20, 30, 0, 0, 0, 255, 255, 255, 1, 2, 3])
    data = file_bytes(picture, "PNG", bits=8, transparency=1)
    start = data.index(b"PLTE")
    length = int.from_bytes(data[start - 4 : start], "big")
    palette = str(list(data[start + 4 : start + 4 + length]))
    stored = decode_stored(data)
    assert stored.image.mode == "P"
    expected = hashlib.sha256(f"P 4x3\n{palette}".encode() + indices.tobytes()).hexdigest()
    assert stored.facts.pixel_sha256 == expected


@pytest.mark.parametrize(
    ("mode", "value", "shown"),
    [
        ("RGB", (200, 30, 90), (200, 30, 90)),
        ("RGBA", (200, 30, 90, 255), (200, 30, 90)),
        ("RGBA", (200, 30, 90, 128), (227, 142, 172)),  # half of it on white
        ("RGBa", (100, 15, 45, 128), (227, 142, 172)),  # the same, multiplied already
        ("LA", (100, 255), (100, 100, 100)),
        ("LA", (100, 128), (177, 177, 177)),
        ("La", (50, 128), (177, 177, 177)),
        ("CMYK", (0, 255, 0, 0), (255, 0, 255)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_colours_are_sent_as_they_are_on_white(mode: str, value: Any, shown: tuple[int, int, int]) -> None:
    picture = Image.new(mode, (40, 40), value)
    sent = np.asarray(decoded(encode_sent(picture, ResizeRule())).convert("RGB"), dtype=int)
    assert np.abs(sent - np.array(shown)).max() <= 4, (sent[20, 20], shown)
