"""Pictures: file bytes ↔ PIL ↔ data URL, their hashes, their sizes, and the frames boxes come in.

Three pictures must not be mixed up. The *stored* picture is the file in the dataset row. The *picture*
is what `datasets` decodes from it (EXIF orientation applied, mode kept): tools work on it at full
resolution, so the restore recipe of the README gives the same pixels. The *sent* picture is what the
teacher sees: RGB or 8-bit grey, without metadata, resized by its `ResizeRule`. A teacher's box refers to the
sent picture.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from distil.bare_file import without_metadata
from distil.errors import SampleError, ToolError, error_text
from distil.lazy_picture import LazyPicture
from distil.records import Box, Frame, GreyRange, Json, PictureFacts, SentPicture, Size, StoredPicture

JPEG_QUALITY = 90
_JPEG_MAX_SIDE_PX = 65_500  # libjpeg
MAX_ASPECT_RATIO = 100  # vision servers refuse or squeeze thinner pictures (their limits: 100 to 200)
# What Pillow can raise for a damaged file.
DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, SyntaxError, EOFError, struct.error)
_ORIENTATION_TAG = 0x0112  # EXIF 2.3, "Orientation"
_SENT_AS_STORED = {"JPEG": "image/jpeg", "PNG": "image/png"}
_FULL_SCALES = (1.0, 255.0, 65535.0)  # what white is in float, 8-bit and 16-bit pictures
_PIECE_PIXELS = 2**17  # small enough to be in the cache still when it is hashed
_ROUNDING_SLACK_PX = 1e-6  # 0.7 * 10 is 7.000000000000001: no reason to crop an eighth pixel


@dataclass(frozen=True, slots=True)
class ResizeRule:
    """How a picture is resized before it is sent, so that the server has nothing left to resize.

    Limits are in pixels, None for no limit; `factor_px` makes both sides multiples of it.
    """

    max_area_px: int | None = None
    min_area_px: int = 0
    max_side_px: int | None = None
    min_side_px: int = 32
    factor_px: int = 1


def decode_stored(
    data: bytes,
    mode: str | None = None,
    decoded: Image.Image | None = None,
    read: Callable[[], bytes] | None = None,
) -> StoredPicture:
    """Decode a picture file as `datasets.Image(mode=mode)` does: first frame, EXIF orientation applied.

    `decoded` is its picture where `datasets` itself has decoded it already. `read` reads the file again, so
    that neither it nor its picture has to be kept. Raises SampleError where the file is empty, broken,
    truncated, or too large to be decoded safely.
    """
    image, upright, orientation = _decode(data, mode, decoded)
    file_sha256 = hashlib.sha256(data).hexdigest()
    read_again = _unchanged(read, file_sha256) if read is not None else lambda: data
    picture = LazyPicture.of(upright)
    if decoded is None:
        picture = LazyPicture(lambda: _decode(read_again(), mode)[1], upright)
    return StoredPicture(
        file_sha256=file_sha256,
        file_format=image.format or "unknown",
        file_mode=image.mode,
        exif_orientation=orientation if isinstance(orientation, int) else None,
        facts=picture_facts(upright),
        read=read_again,
        picture=picture,
    )


def _decode(
    data: bytes, mode: str | None, decoded: Image.Image | None = None
) -> tuple[Image.Image, Image.Image, Json]:
    """The picture as Pillow opens it, as `datasets` gives it, and its EXIF orientation."""
    try:
        image = Image.open(io.BytesIO(data))
        if decoded is None:
            image.load()  # all of it: a broken photo must be found before anything is paid for
        orientation = image.getexif().get(_ORIENTATION_TAG)
        upright = decoded or (image if orientation is None else ImageOps.exif_transpose(image))
        if mode is not None and upright.mode != mode:
            upright = upright.convert(mode)
    except Image.DecompressionBombError as error:
        raise SampleError(f"the picture is too large to decode safely: {error}") from None
    except DAMAGED as error:
        kind = type(error).__name__
        raise SampleError(f"the picture cannot be decoded: {kind}: {error_text(error)}") from None
    if 0 in upright.size:
        raise SampleError(f"the picture is empty: {upright.width}×{upright.height} pixels")
    return image, upright, orientation


def _unchanged(read: Callable[[], bytes], file_sha256: str) -> Callable[[], bytes]:
    """`read`, and SampleError where it reads another file than at first."""

    def read_again() -> bytes:
        data = read()
        if hashlib.sha256(data).hexdigest() != file_sha256:
            raise SampleError("the picture file was changed while its sample was solved")
        return data

    return read_again


def picture_facts(image: Image.Image) -> PictureFacts:
    """Size, mode and SHA-256 over mode, size, palette and raw pixels of a picture."""
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height}\n".encode())
    if image.mode == "P":
        digest.update(repr(image.getpalette("RGB")).encode())
    for piece in _pieces(image):  # the bytes of all at once would be the picture once more
        digest.update(piece.tobytes())
    return PictureFacts(image.width, image.height, image.mode, digest.hexdigest())


def _pieces(image: Image.Image) -> Iterator[Image.Image]:
    """The picture in stripes of bounded size, from top to bottom."""
    num_rows = max(1, _PIECE_PIXELS // max(1, image.width))
    if num_rows >= image.height:
        yield image
        return
    for top in range(0, image.height, num_rows):
        yield image.crop((0, top, image.width, min(top + num_rows, image.height)))


def sent_size(size: Size, rule: ResizeRule) -> Size:
    """The size a picture of `size` is sent at: `smart_resize` of the Qwen2-VL processor, plus side limits.

    Both sides are rounded to multiples of the factor; width and height scale apart, so boxes must be
    mapped per axis.
    """
    scale = _side_scale(size, rule)
    width, height = (max(rule.factor_px, _to_multiple(side * scale, rule.factor_px)) for side in size)
    if rule.max_area_px is not None and width * height > rule.max_area_px:
        shrink = math.sqrt(size[0] * size[1] / rule.max_area_px)
        width, height = (_floor_multiple(side / shrink, rule.factor_px) for side in size)
    elif width * height < rule.min_area_px:
        grow = math.sqrt(rule.min_area_px / (size[0] * size[1]))
        width, height = (_ceil_multiple(side * grow, rule.factor_px) for side in size)
    if max(width, height) > _JPEG_MAX_SIDE_PX:
        raise SampleError(f"the picture of {size[0]}×{size[1]} pixels is too thin or too long to be sent")
    return width, height


def _side_scale(size: Size, rule: ResizeRule) -> float:
    scale = 1.0
    if rule.max_side_px is not None and max(size) > rule.max_side_px:
        scale = rule.max_side_px / max(size)
    if min(size) * scale < rule.min_side_px:
        scale = rule.min_side_px / min(size)
    return scale


def _to_multiple(side: float, factor: int) -> int:
    return round(side / factor) * factor


def _floor_multiple(side: float, factor: int) -> int:
    return max(factor, math.floor(side / factor) * factor)


def _ceil_multiple(side: float, factor: int) -> int:
    return math.ceil(side / factor) * factor


def encode_sent(
    image: Image.Image,
    rule: ResizeRule,
    stored: StoredPicture | None = None,
    grey_range: GreyRange | None = None,
) -> SentPicture:
    """Encode a picture as the teacher gets it, without metadata: the stored file's own compressed pixels
    where nothing has to change.

    Deep grey is scaled by `grey_range`, that of its scene; None for the picture's own.
    """
    size = sent_size(image.size, rule)
    if stored is not None and size == image.size and can_send_as_stored(stored):
        bare = without_metadata(stored.file_format, stored.data)
        if bare is not None:
            return _sent(_SENT_AS_STORED[stored.file_format], size, bare)
    return encode_at(image, size, grey_range)


def encode_at(image: Image.Image, size: Size, grey_range: GreyRange | None = None) -> SentPicture:
    """Encode a picture anew at this size; deep grey is scaled as in `encode_sent`."""
    shown_range = (grey_range or find_grey_range(image)) if is_deep_grey(image) else None
    flat = to_rgb_or_grey(image, shown_range)
    if size != flat.size:
        flat = flat.resize(size, Image.Resampling.BICUBIC)
    return _sent("image/jpeg", size, _jpeg_bytes(flat), shown_range)


def can_send_as_stored(stored: StoredPicture) -> bool:
    """Whether a picture is what its file holds, in a form that every teacher and every browser reads."""
    turned = stored.exif_orientation not in (None, 1)
    same_mode = stored.file_mode == stored.facts.mode in ("RGB", "L")
    return stored.file_format in _SENT_AS_STORED and same_mode and not turned


def _sent(media_type: str, size: Size, data: bytes, grey_range: GreyRange | None = None) -> SentPicture:
    return SentPicture(media_type, size, data, len(data), hashlib.sha256(data).hexdigest(), grey_range)


def is_deep_grey(image: Image.Image) -> bool:
    """Whether a picture is grey of more than 8 bits, which has to be scaled before it is sent."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def find_grey_range(image: Image.Image) -> GreyRange | None:
    """The values to show black and white: 0 and the scale that the picture fits in, else its least and
    greatest; None for pictures that are not deep grey.

    Found once for a photo and kept for all that is made of it, so that a crop is as bright as it was.
    """
    if not is_deep_grey(image):
        return None
    values = np.asarray(image)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    scales = _FULL_SCALES if image.mode == "F" else _FULL_SCALES[1:]
    return next(((0.0, scale) for scale in scales if low >= 0 and high <= scale), (low, high))


def to_rgb_or_grey(image: Image.Image, grey_range: GreyRange | None) -> Image.Image:
    """A picture that JPEG can hold: transparency on white, deep grey scaled to 8 bits by its range."""
    if image.mode in ("RGB", "L"):
        return image
    if grey_range is not None:
        return _scaled_to_8_bits(image, grey_range)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        clear = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, clear).convert("RGB")
    return image.convert("RGB")


def _scaled_to_8_bits(image: Image.Image, grey_range: GreyRange) -> Image.Image:
    low, high = grey_range
    values = np.clip(np.asarray(image, dtype=np.float64), low, high)
    scaled = (values - low) * (255.0 / ((high - low) or 1.0))
    return Image.fromarray(np.round(np.nan_to_num(scaled)).astype(np.uint8))


def _jpeg_bytes(image: Image.Image) -> bytes:
    """JPEG-encode; to a real file descriptor where there is one: Pillow then lets go of the GIL.

    Pillow would write the comment that the stored file came with, if it were not told to write none.
    """
    if not hasattr(os, "memfd_create"):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, comment=None)
        return buffer.getvalue()
    with os.fdopen(os.memfd_create("distil-jpeg"), "w+b") as file:
        image.save(file, "JPEG", quality=JPEG_QUALITY, comment=None)
        file.seek(0)
        return file.read()


def data_url(sent: SentPicture) -> str:
    """The sent picture as a `data:` URL (RFC 2397)."""
    return f"data:{sent.media_type};base64,{base64.b64encode(sent.data).decode('ascii')}"


def box_to_pixels(box: Sequence[float], frame: Frame, sent: Size, size: Size) -> tuple[Box, bool]:
    """Map a teacher's box to whole pixels of the picture it crops; also whether it had to be clamped.

    `sent` and `size` are the sizes (width, height) of the picture as sent and in full resolution. Each
    axis is mapped by itself, rounded outward and clamped to the picture. Raises ToolError, for the
    teacher to read, where the box is empty.
    """
    x1, y1, x2, y2 = (box[i] for i in ((1, 0, 3, 2) if frame is Frame.REL1000_YX else (0, 1, 2, 3)))
    if x2 <= x1 or y2 <= y1:
        raise ToolError(f"the box is empty: it needs {_axes(frame)}, got {list(box)}")
    units_x, units_y = {Frame.PIXEL: sent, Frame.REL1: (1, 1)}.get(frame, (1000, 1000))
    left, right, clamped_x = _axis_to_pixels(x1, x2, units_x, size[0])
    top, bottom, clamped_y = _axis_to_pixels(y1, y2, units_y, size[1])
    if left >= right or top >= bottom:
        raise ToolError(f"the box lies outside the image: {describe_range(frame, sent)}, got {list(box)}")
    return (left, top, right, bottom), clamped_x or clamped_y


def pixels_to_box(box: Box, frame: Frame, sent: Size, size: Size) -> tuple[int, int, int, int]:
    """The whole numbers that say a box of pixels in a frame: the inverse of `box_to_pixels`.

    They map back to the same pixels where whole numbers of the frame can say them, else to the nearest.
    Raises ValueError for a frame of fractions.
    """
    if frame is Frame.REL1:
        raise ValueError("whole numbers cannot say a box in fractions")
    units = sent if frame is Frame.PIXEL else (1000, 1000)
    x1, x2 = _pixels_to_axis(box[0], box[2], units[0], size[0])
    y1, y2 = _pixels_to_axis(box[1], box[3], units[1], size[1])
    return (y1, x1, y2, x2) if frame is Frame.REL1000_YX else (x1, y1, x2, y2)


def _pixels_to_axis(start: int, stop: int, units: int, length_px: int) -> tuple[int, int]:
    # Rounded inward: mapping rounds outward.
    low, high = -(-start * units // length_px), stop * units // length_px
    low = low if low * length_px // units == start else _nearest(start * units, length_px)
    high = high if -(-high * length_px // units) == stop else _nearest(stop * units, length_px)
    if low < high:
        return low, high
    return (low, low + 1) if low < units else (units - 1, units)


def _nearest(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)


def _axes(frame: Frame) -> str:
    if frame is Frame.REL1000_YX:
        return "[y1, x1, y2, x2] with y1 < y2 and x1 < x2"
    return "[x1, y1, x2, y2] with x1 < x2 and y1 < y2"


def describe_range(frame: Frame, sent: Size) -> str:
    """What values a box may take in a frame, for a message to the teacher."""
    if frame is Frame.PIXEL:
        return f"x runs from 0 to {sent[0]} and y from 0 to {sent[1]} (pixels)"
    return f"x and y run from 0 to {1 if frame is Frame.REL1 else 1000}"


def _axis_to_pixels(low: float, high: float, units: float, length_px: int) -> tuple[int, int, bool]:
    # Far-away values are cut first: 1e308 * length would be infinite.
    near, far = (min(max(value, -units), 2 * units) * length_px / units for value in (low, high))
    start, stop = math.floor(near + _ROUNDING_SLACK_PX), math.ceil(far - _ROUNDING_SLACK_PX)
    clamped = start < 0 or stop > length_px
    start, stop = max(0, start), min(length_px, stop)
    if stop == start and 0 <= start < length_px and not clamped:
        stop = start + 1  # a box thinner than the slack still has a pixel
    return start, stop, clamped
