"""Picture files of every format with something written into every block that is not the picture."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

from builders import ORIENTATION_TAG, file_bytes, noise, smooth
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

Mark = Callable[[str], str]  # the name of a block to the text that is written into it

GPS_SECONDS = 2_916_373  # of 100,000; it is nowhere else, so that its bytes can be looked for
_TEXT_TAGS = (
    "ImageDescription",
    "Make",
    "Model",
    "Software",
    "Artist",
    "Copyright",
    "HostComputer",
    "DateTime",
)
_EXIF_TEXT_TAGS = ("CameraOwnerName", "BodySerialNumber", "LensModel", "ImageUniqueID", "DateTimeOriginal")


def exif_of(mark: Mark, orientation: int | None = None) -> bytes:
    """An EXIF block with marks in its text tags, the user's comment, GPS and a thumbnail."""
    exif = Image.Exif()
    for name in _TEXT_TAGS:
        exif[ExifTags.Base[name]] = mark(f"exif-{name}")
    exif[0x9C9B] = mark("exif-XPTitle").encode("utf-16le")
    if orientation is not None:
        exif[ORIENTATION_TAG] = orientation
    inner = exif.get_ifd(ExifTags.IFD.Exif)
    for name in _EXIF_TEXT_TAGS:
        inner[ExifTags.Base[name]] = mark(f"exif-{name}")
    inner[ExifTags.Base.UserComment] = b"UNICODE\0" + mark("exif-UserComment").encode("utf-16be")
    inner[ExifTags.Base.MakerNote] = mark("exif-MakerNote").encode()
    gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
    gps[ExifTags.GPS.GPSLatitudeRef], gps[ExifTags.GPS.GPSLongitudeRef] = "N", "E"
    gps[ExifTags.GPS.GPSLatitude] = gps[ExifTags.GPS.GPSLongitude] = (48.0, 51.0, GPS_SECONDS / 100_000)
    gps[ExifTags.GPS.GPSAreaInformation] = mark("exif-GPSAreaInformation").encode()
    gps[ExifTags.GPS.GPSMapDatum] = mark("exif-GPSMapDatum")
    return with_thumbnail(exif.tobytes(), file_bytes(noise(16, 12), "JPEG", comment=mark("exif-thumbnail")))


def with_thumbnail(exif: bytes, thumbnail: bytes) -> bytes:
    """The EXIF block with a second directory that holds a thumbnail, as cameras write it."""
    head, tiff = (exif[:6], bytearray(exif[6:])) if exif.startswith(b"Exif\0\0") else (b"", bytearray(exif))
    order = "<" if tiff[:2] == b"II" else ">"
    (first,) = struct.unpack_from(order + "I", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, first)
    directory = len(tiff) + len(tiff) % 2
    struct.pack_into(order + "I", tiff, first + 2 + 12 * count, directory)
    tiff.extend(bytes(directory - len(tiff)))
    data = directory + 2 + 3 * 12 + 4
    entries = ((0x0103, 4, 6), (0x0201, 4, data), (0x0202, 4, len(thumbnail)))
    tiff += struct.pack(order + "H", len(entries))
    for tag, kind, value in entries:
        tiff += struct.pack(order + "HHII", tag, kind, 1, value)
    return bytes(head + tiff + bytes(4) + thumbnail)


def segment(marker: int, payload: bytes) -> bytes:
    """A JPEG segment."""
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def xmp_of(mark: Mark) -> bytes:
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><dc:creator>{mark("xmp")}</dc:creator></x:xmpmeta>'.encode()


def icc_of(mark: Mark) -> bytes:
    """A profile that decoders take, with a mark behind it."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + mark("icc").encode()


def marked_jpeg(picture: Image.Image, mark: Mark, orientation: int | None = None, **options: Any) -> bytes:
    """A JPEG with every kind of segment that holds no picture, in front, between the tables and behind."""
    data = file_bytes(picture, "JPEG", quality=90, icc_profile=icc_of(mark), **options)
    iptc = b"\x1c\x02\x74" + struct.pack(">H", len(mark("iptc"))) + mark("iptc").encode()
    resource = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(iptc)) + iptc + bytes(len(iptc) % 2)
    thumbnail = file_bytes(noise(8, 8), "JPEG", comment=mark("jfxx"))
    rgb = (mark("jfif-thumbnail").encode() * 3)[:48]
    exif = exif_of(mark, orientation)
    jfif = segment(0xE0, b"JFIF\0\x01\x02\x01\0\x48\0\x48" + bytes((4, 4)) + rgb)
    blocks = jfif
    blocks += segment(0xE0, b"JFXX\0\x10" + thumbnail)
    blocks += segment(0xE1, exif if exif.startswith(b"Exif") else b"Exif\0\0" + exif)
    blocks += segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp_of(mark))
    blocks += segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + mark("xmp-extension").encode())
    blocks += segment(0xED, b"Photoshop 3.0\0" + resource)
    blocks += b"".join(segment(0xE0 + number, mark(f"app{number}").encode()) for number in range(2, 16))
    if picture.mode == "RGB":  # of CMYK there is one already
        blocks += segment(0xEE, b"Adobe\0\x64\0\0\0\0\x01" + mark("adobe-tail").encode())
    blocks += segment(0xFE, mark("comment").encode()) + b"\xff\xff\xff"
    rest = data[20:-2] if data[3] == 0xE0 else data[2:-2]  # without the JFIF segment
    scan = rest.rindex(b"\xff\xda")
    late = segment(0xFE, mark("late-comment").encode()) + segment(0xE1, mark("late-app1").encode())
    body = rest[:scan] + late + rest[scan:]
    return b"\xff\xd8" + blocks + body + late + b"\xff\xff\xd9" + mark("after-the-end").encode() + thumbnail


def marked_png(picture: Image.Image, mark: Mark, **options: Any) -> bytes:
    """A PNG with every kind of chunk that holds no picture, before the pixels and behind them."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", mark("png-text"))
    info.add_text("comment", mark("png-comment"))
    info.add_text("Raw", mark("png-ztxt"), zip=True)
    info.add_itxt("XML:com.adobe.xmp", xmp_of(mark).decode())
    info.add_itxt("Title", mark("png-itxt"), zip=True)
    exif = exif_of(mark)
    data = file_bytes(picture, "PNG", pnginfo=info, exif=exif, icc_profile=icc_of(mark), **options)
    start = data.index(b"IDAT") - 4
    early = chunk(b"tIME", struct.pack(">HBBBBB", 2024, 5, 6, 7, 8, 9)) + chunk(
        b"gAMA", bytes((0, 0, 177, 143))
    )
    early += chunk(b"prVt", mark("png-private").encode()) + chunk(
        b"sPLT", mark("png-splt").encode() + b"\0\x08"
    )
    late = chunk(b"tEXt", b"Late\0" + mark("png-late").encode()) + chunk(
        b"zzZz", mark("png-late-private").encode()
    )
    end = data.rindex(b"IEND") - 4
    return data[:start] + early + data[start:end] + late + data[end:] + mark("after-the-end").encode()


def marked_gif(picture: Image.Image, mark: Mark) -> bytes:
    """A GIF with a comment and an application extension."""
    data = file_bytes(picture, "GIF", comment=mark("gif-comment").encode())
    text = mark("gif-application").encode()
    return data[:-1] + b"\x21\xff\x0bXMP DataXMP" + bytes((len(text),)) + text + b"\0;"


def marked_tiff(picture: Image.Image, mark: Mark) -> bytes:
    """A TIFF with text tags."""
    tags = {0x010E: mark("tiff-description"), 0x013B: mark("tiff-artist"), 0x8298: mark("tiff-copyright")}
    return file_bytes(picture, "TIFF", tiffinfo=tags)


def marked_files(mark: Mark) -> dict[str, bytes]:
    """A file of every format and of every way it goes to the teacher."""
    photo, exif = smooth(64, 48), exif_of(mark)
    webp = {"exif": exif, "xmp": xmp_of(mark), "icc_profile": icc_of(mark)}
    secondary = file_bytes(noise(32, 24), "JPEG", comment=mark("mpo-second"))
    return {
        "jpeg": marked_jpeg(photo, mark),
        "progressive jpeg": marked_jpeg(photo, mark, progressive=True),
        "jpeg with restarts": marked_jpeg(photo, mark, restart_marker_blocks=2),
        "grey jpeg": marked_jpeg(photo.convert("L"), mark),
        "cmyk jpeg": marked_jpeg(photo.convert("CMYK"), mark),
        "turned jpeg": marked_jpeg(photo, mark, orientation=6),
        "large jpeg": marked_jpeg(smooth(900, 700), mark),
        "mpo": file_bytes(
            photo, "MPO", save_all=True, append_images=[Image.open(io.BytesIO(secondary))], exif=exif
        ),
        "png": marked_png(photo, mark),
        "grey png": marked_png(photo.convert("L"), mark),
        "palette png": marked_png(photo.convert("P", palette=Image.Palette.ADAPTIVE), mark),
        "clear png": marked_png(noise(64, 48, "RGBA"), mark),
        "16-bit png": marked_png(noise(64, 48, "I;16"), mark),
        "webp": file_bytes(photo, "WEBP", **webp),
        "gif": marked_gif(photo.quantize(32), mark),
        "tiff": marked_tiff(photo, mark),
        "float tiff": marked_tiff(noise(64, 48, "F"), mark),
    }
