"""Picture files without their metadata: what a decoder needs to draw the pixels stays, all else is cut.

EXIF (with GPS and thumbnail), XMP, IPTC, comments, text, colour profiles and whatever stands behind the
picture's end are left out; compressed pixels are copied as they are. What stays is listed, not what goes, so
that a block nobody thought of is cut too. docs/trace-format.md states the same rules for other programs.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

_SOI, _EOI, _SOS, _APP0, _APP14 = 0xD8, 0xD9, 0xDA, 0xE0, 0xEE  # ITU-T T.81, table B.1
_FRAMES_AND_TABLES = {*range(0xC0, 0xD0), 0xDB, 0xDD} - {0xC8}  # SOF, DHT, DAC; DQT, DRI
_CUT_MARKERS = {*range(0xE0, 0xF0), 0xFE}  # APP0 to APP15, COM
# In scan data 0xFF is followed by a stuffed 0 or is a restart marker; anything else ends it.
_SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_JFIF_BYTES, _ADOBE_BYTES = 14, 12  # what decoders read of the two segments that say what colours are meant

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_COLOUR_TYPES = (0, 2)  # grey and RGB: all others need more chunks than these, or have transparency
_ANIMATION_CHUNKS = (b"acTL", b"fcTL", b"fdAT")


def without_metadata(file_format: str, data: bytes) -> bytes | None:
    """A picture file with nothing but its picture, the pixels not re-encoded; linear in its length.

    None where this cannot be done safely: another format than JPEG and PNG, a PNG that is neither grey nor
    RGB or is animated, a broken or an unusual structure.
    """
    cut = {"JPEG": _bare_jpeg, "PNG": _bare_png}.get(file_format)
    if cut is None:
        return None
    try:
        return cut(data)
    except (ValueError, struct.error):  # struct.error: the file ends within a length
        return None


def _bare_jpeg(data: bytes) -> bytes:
    parts = [bytes((0xFF, _SOI))]
    for marker, payload, scan in _jpeg_segments(data):
        kept = _kept_payload(marker, payload)
        if kept is not None:
            parts += [struct.pack(">BBH", 0xFF, marker, len(kept) + 2), kept, scan]
    return b"".join([*parts, bytes((0xFF, _EOI))])


def _kept_payload(marker: int, payload: bytes) -> bytes | None:
    if marker not in _CUT_MARKERS:
        return payload
    if marker == _APP0 and payload.startswith(b"JFIF\0") and len(payload) >= _JFIF_BYTES:
        return payload[: _JFIF_BYTES - 2] + b"\0\0"  # a thumbnail of 0×0 pixels
    if marker == _APP14 and payload.startswith(b"Adobe") and len(payload) >= _ADOBE_BYTES:
        return payload[:_ADOBE_BYTES]
    return None


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Marker, payload and, of a scan, the compressed data of every segment up to the end of the picture."""
    if data[:2] != bytes((0xFF, _SOI)):
        raise ValueError("no JPEG")
    position = 2
    while True:
        marker, position = _next_marker(data, position)
        if marker == _EOI:
            return
        if marker != _SOS and marker not in _FRAMES_AND_TABLES | _CUT_MARKERS:
            raise ValueError("an unknown segment")
        (length,) = struct.unpack_from(">H", data, position)
        start, end = position + 2, position + length
        if length < 2 or end > len(data):
            raise ValueError("a segment that the file does not hold")
        position = _scan_end(data, end) if marker == _SOS else end
        yield marker, data[start:end], data[end:position]


def _next_marker(data: bytes, position: int) -> tuple[int, int]:
    """The marker at a position, any number of fill bytes before it, and the position behind it."""
    start = position
    while data[position : position + 1] == b"\xff":
        position += 1
    if position == start or position == len(data):
        raise ValueError("no marker where one must be")
    return data[position], position + 1


def _scan_end(data: bytes, position: int) -> int:
    end = _SCAN_END.search(data, position)
    if end is None:
        raise ValueError("a scan without an end")
    stop = end.start()
    while stop > position and data[stop - 1] == 0xFF:  # fill bytes
        stop -= 1
    return stop


def _bare_png(data: bytes) -> bytes:
    if data[:8] != _PNG_START:
        raise ValueError("no PNG")
    parts, kinds = [_PNG_START], list[bytes]()
    for kind, chunk in _png_chunks(data):
        is_needed = kind in (b"IHDR", b"IDAT", b"IEND")
        if kind in _ANIMATION_CHUNKS or (not is_needed and kind != b"PLTE" and kind[:1].isupper()):
            raise ValueError("a chunk that says what the pixels mean")
        kinds.append(kind)
        if is_needed:
            parts.append(chunk)
    _check_order(kinds)
    if parts[1][17] not in _PNG_COLOUR_TYPES:
        raise ValueError("colours that need other chunks")
    return b"".join(parts)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and all bytes of every chunk up to the end of the picture."""
    position, kind = 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + length + 12  # with the length itself, the type and the checksum
        if end > len(data) or length != {b"IHDR": 13, b"IEND": 0}.get(kind, length):
            raise ValueError("a chunk that the file does not hold")
        yield kind, data[position:end]
        position = end


def _check_order(kinds: list[bytes]) -> None:
    """IHDR first and once, and the pixels in one piece: else decoders differ in what they take for them."""
    first = kinds.index(b"IDAT") if b"IDAT" in kinds else 0
    pixels = kinds[first : first + kinds.count(b"IDAT")]
    if kinds[0] != b"IHDR" or kinds.count(b"IHDR") != 1 or first == 0 or set(pixels) != {b"IDAT"}:
        raise ValueError("chunks in another order")
