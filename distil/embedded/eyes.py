"""What the model can see: a fixed small view of one picture, and the level text in it.

Two limits are on purpose, and stated in the model's description. The view's long side is 512 px, as hosted
models shrink pictures too: at full resolution the OCR reads the smallest sign at once and zooming would be
theatre. And only text within a few degrees of level is read, so that turning a picture has an effect.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from distil.embedded.shapes import Box, Pixels, find_shapes

VIEW_LONG_SIDE_PX = 512
MAX_LEVEL_TILT_DEGREES = 10.0
MIN_READABLE_HEIGHT_PX = 6.0
DETECT_THRESHOLD, BOX_THRESHOLD = 0.25, 0.35  # low: a faint find costs a zoom, a missed sign costs the answer
MAX_TEXT_HEIGHT_PX = 130.0  # taller finds in the view are house fronts rather than writing
MAX_THREADS_PER_ENGINE = 4
ENLARGED_BLUR = 0.4  # of a picture pixel
MAX_REMEMBERED = 1024  # pictures; what was seen of one takes a few kB
READ_MARGIN = 0.08  # of the line height: the detector cuts close to the letters

Find = tuple[NDArray[np.float32], float]  # the four corners of a line, and a score


@dataclass(frozen=True, slots=True)
class TextLine:
    """One line of text in a picture; `text` is empty where it is tilted or too small to read.

    `box_px` is in pixels of the picture as sent, `height_px` in pixels of the view. `tilt_degrees` is how far
    the line is turned counter-clockwise, known only modulo 180.
    """

    box_px: Box
    tilt_degrees: float
    height_px: float
    found_score: float
    text: str
    read_score: float


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen in one picture; `scale` is view pixels per picture pixel.

    `shapes` are those of the colour that was asked for: names, and boxes in pixels of the picture as sent.
    """

    width_px: int
    height_px: int
    scale: float
    lines: tuple[TextLine, ...]
    shapes: tuple[tuple[str, Box], ...]


class Eyes:
    """A few OCR engines, each with a thread of its own, that all requests share.

    The threads are fixed because memory follows them: the allocator keeps about 80 MB for every thread that
    ever ran an engine, so running it in each client's thread took 2.8 GB at 32 clients.
    """

    def __init__(self, engines: int) -> None:
        threads = max(1, min(MAX_THREADS_PER_ENGINE, (os.cpu_count() or 1) // engines))
        self._engines: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(engines):
            self._engines.put(load_engine(threads))
        self._pool = ThreadPoolExecutor(engines, thread_name_prefix="eyes")
        self._seen: dict[tuple[bytes, str | None], Look] = {}
        self._lock = threading.Lock()

    def look(self, encoded: bytes, colour: str | None) -> Look:
        """Read one encoded picture through the fixed view, and find the shapes of a colour in it.

        The last pictures are remembered by their hashes: rollouts of a row begin with the same one. Raises
        what Pillow raises if the picture is damaged.
        """
        key = hashlib.sha256(encoded).digest(), colour
        with self._lock:
            seen = self._seen.get(key)
        if seen is not None:
            return seen
        look = self._pool.submit(self._look, encoded, colour).result()
        with self._lock:
            self._seen[key] = look
            if len(self._seen) > MAX_REMEMBERED:
                del self._seen[next(iter(self._seen))]
        return look

    def _look(self, encoded: bytes, colour: str | None) -> Look:
        engine = self._engines.get()
        try:
            return look_at(engine, encoded, colour)
        finally:
            self._engines.put(engine)


def look_at(engine: Any, encoded: bytes, colour: str | None) -> Look:
    """Read one encoded picture with an engine, and find the shapes of a colour in it."""
    (width, height), view = open_view(encoded)
    scale = max(view.size) / max(width, height)
    pixels = np.asarray(view)
    found = find_shapes(pixels, colour) if colour is not None else []
    shapes = tuple((name, in_picture(box, scale)) for name, box in found)
    return Look(width, height, scale, tuple(read_lines(engine, pixels, scale)), shapes)


def in_picture(box: Box, scale: float) -> Box:
    """Return a box of the view in pixels of the picture as sent."""
    left, top, right, bottom = (round(end / scale) for end in box)
    return left, top, right, bottom


def load_engine(threads: int) -> Any:
    """Load one OCR engine and run it once, so that the first request does not pay for it.

    Raises ImportError where the extra `local` is not installed.
    """
    import onnxruntime  # noqa: F401, PLC0415  rapidocr itself only notices when it loads a model
    from rapidocr import RapidOCR  # noqa: PLC0415  an optional extra: drawing works without it

    engine = RapidOCR(
        params={
            "Global.log_level": "error",
            "Global.text_score": 0.0,  # weak readings are wanted: they say where to look closer
            "Det.limit_type": "max",
            "Det.limit_side_len": 736,
            "Det.thresh": DETECT_THRESHOLD,
            "Det.box_thresh": BOX_THRESHOLD,
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
        }
    )
    blank = np.full((384, VIEW_LONG_SIDE_PX, 3), 255, np.uint8)
    find_quads(engine, blank)
    read_text(engine, blank[:48, :160])
    return engine


def open_view(encoded: bytes) -> tuple[tuple[int, int], Image.Image]:
    """Decode a picture straight to the fixed view; return the picture's own size with it."""
    with Image.open(io.BytesIO(encoded)) as picture:
        size = picture.size
        factor = VIEW_LONG_SIDE_PX / max(size)
        target = (max(1, round(size[0] * factor)), max(1, round(size[1] * factor)))
        picture.draft("RGB", target)  # a JPEG decoder can skip the pixels that the view drops
        view = picture.convert("RGB").resize(target, Image.Resampling.BICUBIC, reducing_gap=3.0)
    # A turned close-up has ragged letters, which the detector does not take for writing.
    return size, view.filter(ImageFilter.GaussianBlur(ENLARGED_BLUR * factor)) if factor > 1 else view


def read_lines(engine: Any, view: Pixels, scale: float) -> list[TextLine]:
    """Find every line of text in a view and read those that are level and large enough.

    Small light letters on a dark sign are found far better in the negative, larger ones in the picture itself
    (whose black corners after a turn would be white sheets in the negative): so both are searched.
    """
    quads = find_quads(engine, view)
    known = [corners for corners, _ in quads]
    more = find_quads(engine, 255 - view)
    quads += [found for found in more if not any(is_inside(found[0], corners) for corners in known)]
    return [read_line(engine, view, scale, found) for found in quads]


def read_line(engine: Any, view: Pixels, scale: float, found: Find) -> TextLine:
    """Measure one found line and read it if it is level and large enough."""
    quad, found_score = found
    tilt_degrees, height_px = line_geometry(quad)
    text, read_score = "", 0.0
    if abs(tilt_degrees) <= MAX_LEVEL_TILT_DEGREES and height_px >= MIN_READABLE_HEIGHT_PX:
        text, read_score = read_text(engine, level_cut(view, quad))
    return TextLine(picture_box(quad, scale), tilt_degrees, height_px, found_score, text, read_score)


def is_inside(quad: NDArray[np.float32], known: NDArray[np.float32]) -> bool:
    """Say whether the middle of a find lies in the box around a known one."""
    middle = quad.mean(axis=0)
    return bool(np.all(middle >= known.min(axis=0)) and np.all(middle <= known.max(axis=0)))


def find_quads(engine: Any, view: Pixels) -> list[Find]:
    """Run the text detector, without the finds that are too tall to be writing."""
    found = engine(view[:, :, ::-1].copy(), use_det=True, use_cls=False, use_rec=False)
    if found.boxes is None:  # an empty result has None fields
        return []
    pairs = zip(found.boxes, map(float, found.scores), strict=True)
    return [(quad, score) for quad, score in pairs if line_geometry(quad)[1] <= MAX_TEXT_HEIGHT_PX]


def read_text(engine: Any, cut: Pixels) -> tuple[str, float]:
    """Run the text recogniser on one line."""
    read = engine(cut[:, :, ::-1].copy(), use_det=False, use_cls=False, use_rec=True)
    return (str(read.txts[0]).strip(), float(read.scores[0])) if read.txts else ("", 0.0)


def line_geometry(quad: NDArray[np.float32]) -> tuple[float, float]:
    """Return how far a line is turned counter-clockwise, in (-90, 90], and its height."""
    across, down = quad[1] - quad[0], quad[2] - quad[1]
    length, height = float(np.hypot(*across)), float(np.hypot(*down))
    along = across if length >= height else down
    tilt_degrees = math.degrees(math.atan2(-float(along[1]), float(along[0])))  # picture y points down
    return (tilt_degrees + 89.999) % 180 - 89.999, min(length, height)


def level_cut(view: Pixels, quad: NDArray[np.float32]) -> Pixels:
    """Cut a line out of the view as it lies, without straightening it."""
    margin = READ_MARGIN * float(np.ptp(quad[:, 1]))
    left, top = np.maximum(np.floor(quad.min(axis=0) - margin), 0).astype(int)
    right, bottom = np.ceil(quad.max(axis=0) + margin).astype(int) + 1
    return view[top:bottom, left:right]


def picture_box(quad: NDArray[np.float32], scale: float) -> Box:
    """Return the box around a line in pixels of the picture as sent."""
    left, top = np.floor(quad.min(axis=0) / scale).astype(int).tolist()
    right, bottom = np.ceil(quad.max(axis=0) / scale).astype(int).tolist()
    return left, top, right, bottom
