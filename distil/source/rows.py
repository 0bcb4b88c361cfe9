"""A dataset on disk or on the hub → samples, one row at a time.

A row is decoded when its turn comes and nothing of it is kept: memory does not grow with the dataset.
The row number is the identity of a sample: an order or a selection is a list of row numbers.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from distil.errors import SampleError, error_text
from distil.pictures import DAMAGED, decode_stored
from distil.records import DatasetIdentity, Json, Sample, SampleId
from distil.source.cells import Cells, field_names
from distil.source.json_values import has_labels, to_json, with_label_names
from distil.source.order import first_rows
from distil.source.picture_paths import is_relative
from distil.source.saved import IMAGE_COLUMN, StoredRows, advise, read_saved

_ROWS_BETWEEN_TRIMS = 32
_LOOKED_INTO = 20  # pictures of a folder, for what their EXIF says
EXIF = "exif:"  # begins the name of a tag where a column may be named
_NEGATIVE, _POSITIVE = ("S", "W"), ("N", "E")


class Source:
    """The rows of one dataset; safe to load from many threads."""

    def __init__(self, rows: StoredRows, identity: DatasetIdentity) -> None:
        self.identity = identity
        is_usual = rows.image_column == IMAGE_COLUMN
        self._chosen = {} if is_usual else {IMAGE_COLUMN: rows.image_column}
        self._mode = rows.features[IMAGE_COLUMN].get("mode")
        self._rows = rows
        self._left_out = (IMAGE_COLUMN, *rows.left_out)
        self._labels = {name: feature for name, feature in rows.features.items() if has_labels(feature)}
        self._count_row = page_trimmer(rows.files, rows.trim)

    def __len__(self) -> int:
        return self.identity.num_rows

    @property
    def columns(self) -> list[str]:
        """The names of all columns, with `a.b` for the field b of the struct a.

        For a folder of pictures also `exif:NAME` for what the EXIF of one of the first says of its place.
        """
        names = [name for column in self._rows.features.items() for name in field_names(*column)]
        return [*names, *self._exif_names()] if self.identity.kind == "imagefolder" else names

    def _exif_names(self) -> list[str]:
        rows = (self._rows.row(index) for index in range(min(len(self), _LOOKED_INTO)))
        return list(dict.fromkeys(name for row in rows for name in _gps_names(row[IMAGE_COLUMN])))

    @property
    def image_column(self) -> str | None:
        """What the column of the picture is called, where that is not `image`."""
        return self._chosen.get(IMAGE_COLUMN)

    @property
    def chosen(self) -> Mapping[str, str]:
        """Which column is taken for what, where it is not the one of that name."""
        return dict(self._chosen)

    def choose(self, columns: Mapping[str, str]) -> None:
        """Take these columns, as `columns` names them, for what the task reads by their keys."""
        self._chosen |= columns

    def is_far(self, sample_id: SampleId) -> bool:
        """Whether the picture of a sample's row has to be fetched over a network."""
        value = self._row(sample_id.index)[IMAGE_COLUMN] if 0 <= sample_id.index < len(self) else None
        return value is not None and value.get("path") is not None and _is_far(value)

    def load(self, sample_id: SampleId, decoded: Image.Image | None = None) -> Sample:
        """Read and decode a sample's row; raises SampleError naming what is wrong with it.

        `decoded` is its picture where `datasets` itself has decoded it already.
        """
        return self.read(sample_id)(decoded)

    def read(self, sample_id: SampleId) -> Callable[[Image.Image | None], Sample]:
        """Read a sample's row and its picture file, from wherever it lies; what is returned decodes them.

        Both raise SampleError naming what is wrong with the row.
        """
        index = sample_id.index
        if not 0 <= index < len(self):
            raise SampleError(f"{self.identity.source} has {len(self)} rows and no row {index}")
        name = f"row {index} of {self.identity.source}"
        row = self._row(index)
        with _naming(name):
            file = _picture_bytes(row[IMAGE_COLUMN])
        others = {name: value for name, value in row.items() if name not in self._left_out}
        data = {name: self._value(name, value) for name, value in others.items()}
        is_kept = _is_far(row.pop(IMAGE_COLUMN))

        def read_again() -> bytes:
            with _naming(name):
                return _picture_bytes(self._row(index)[IMAGE_COLUMN])

        def decode(decoded: Image.Image | None) -> Sample:
            with _naming(name):
                picture = decode_stored(file, self._mode, decoded, None if is_kept else read_again)
                fields = self._chosen_fields(row, file)
            return Sample(sample_id, name, data, picture, fields)

        return decode

    def _chosen_fields(self, row: Mapping[str, Any], file: bytes) -> dict[str, Json]:
        columns = {field: column for field, column in self._chosen.items() if field != IMAGE_COLUMN}
        return {
            field: gps_degrees(file, column) if column.startswith(EXIF) else self._field(row, column)
            for field, column in columns.items()
        }

    def _field(self, row: Mapping[str, Any], column: str) -> Json:
        value = _field(row, column)
        return self._value(column, value) if column in self._labels else value

    def _row(self, index: int) -> dict[str, Any]:
        row = self._rows.row(index)
        self._count_row()
        return row

    def select(
        self, order: str, num_samples: int, seed: int, among: Sequence[int] | None = None
    ) -> Sequence[int]:
        """Row numbers in an order: `dataset`, `random`, `COLUMN` or `COLUMN:desc`; 0 samples is all.

        `among` are the only rows to choose from, in the dataset's order. A larger `num_samples` keeps the
        shorter selection as its beginning. Empty values come last.
        """
        num_rows = len(self if among is None else among)
        return first_rows(self._rows, order, min(num_samples, num_rows) or num_rows, seed, among)

    @property
    def cells(self) -> Cells:
        """Its columns to be read on their own, as texts and numbers."""
        return Cells(self._rows)

    def _value(self, column: str, value: Any) -> Json:
        labels = self._labels.get(column)
        return to_json(value if labels is None else with_label_names(value, labels))


def open_source(
    dataset_path: str,
    tell: Callable[[str], None] | None = None,
    columns: Mapping[str, str] | None = None,
) -> Source:
    """Open any form of dataset that docs/datasets.md has; raises SourceError.

    `tell` gets a line on what is left out of it. `columns` are taken as `Source.choose` takes them, that of
    the picture as `image`; without one it is guessed.
    """
    columns = dict(columns or {})
    image_column = columns.pop(IMAGE_COLUMN, None)
    opened = read_saved(dataset_path) if image_column in (None, IMAGE_COLUMN) else None
    if opened is None:
        from distil.source.library import open_dataset  # noqa: PLC0415 - a second of imports

        opened = open_dataset(dataset_path, tell, image_column)
    source = Source(*opened)
    source.choose(columns)
    return source


def _field(row: Mapping[str, Any], column: str) -> Json:
    """The value of a column or of a field within one; raises SampleError where there is none."""
    value = row[column] if column in row else _inner_field(row, column)
    if value is None:
        raise SampleError(f"column {column!r} is empty")
    return to_json(value)


def _inner_field(row: Mapping[str, Any], column: str) -> Any:
    value: Any = row
    while isinstance(value, Mapping):
        # A name may have points itself: the longest one that fits is meant.
        names = [name for name in value if column == name or column.startswith(f"{name}.")]
        if not names:
            return None
        name = max(names, key=len)
        value, column = value[name], column[len(name) + 1 :]
    return None if column else value


def _gps_names(value: Mapping[str, Json] | None) -> Sequence[str]:
    try:
        return gps_names(_picture_bytes(value))
    except SampleError:
        return ()


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Say of which row a SampleError is."""
    try:
        yield
    except SampleError as error:
        raise SampleError(f"{name}: {error}") from None


def _is_far(value: Mapping[str, Json]) -> bool:
    """Whether a picture has to be fetched over a network, which nobody wants to do for it twice."""
    return value.get("bytes") is None and not Path(str(value["path"])).is_absolute()


def _picture_bytes(value: Mapping[str, Json] | None) -> bytes:
    if not value or (value.get("bytes") is None and not value.get("path")):
        raise SampleError(f"column {IMAGE_COLUMN!r} is empty")
    data = value.get("bytes")
    if data is not None:
        return bytes(data)
    path = str(value["path"])
    if is_relative(path):
        raise SampleError(
            f"the picture's path {path!r} is relative, and this kind of dataset has no folder that it could "
            "be relative to: use absolute paths, or store the pictures in the dataset"
        )
    try:
        if Path(path).is_absolute():
            return Path(path).read_bytes()
        from datasets.utils.file_utils import xopen  # noqa: PLC0415 - a second of imports

        with xopen(path, "rb") as file:  # a URL
            return bytes(file.read())
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        raise SampleError(f"the picture file cannot be read: {error_text(error)}") from None


def page_trimmer(files: Sequence[str], trim: Callable[[], object] = lambda: None) -> Callable[[], None]:
    """What is called for each row that is read: every few rows pages of mapped files go back to the kernel.

    Arrow files are mapped into memory, and every page that was ever read counts as the process's own
    until it is let go: 2,000 photos would look like, and be limited as, half a gigabyte. Letting go of a
    read-only file mapping loses nothing: the page is read again when needed. Linux only; elsewhere no-op.
    `files` are mapped by others; `trim` gives back the pages of those that are not.
    """
    names = {str(Path(file).resolve()) for file in files}
    numbers = itertools.count(1)

    def count_row() -> None:
        if next(numbers) % _ROWS_BETWEEN_TRIMS == 0:
            trim()
            if names:
                _trim_files(names)

    return count_row


def _trim_files(names: Collection[str]) -> None:
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)  # address range, permissions, offset, device, inode, path
        if len(fields) == 6 and fields[1].startswith("r--") and fields[5] in names:
            start, stop = (int(address, 16) for address in fields[0].split("-"))
            advise(start, stop - start, "MADV_DONTNEED")


# --- what the EXIF of a picture file says of its place


def gps_names(file: bytes) -> Sequence[str]:
    """The tags of the GPS block that are angles, as `exif:NAME`; none where the file cannot be read."""
    tags = _gps_tags(file)
    return [f"{EXIF}{name}" for name in tags if _signed_degrees(tags, name) is not None]


def gps_degrees(file: bytes, column: str) -> float:
    """An angle of the GPS block in decimal degrees, negative in the south and west; raises SampleError."""
    name = column.removeprefix(EXIF)
    degrees = _signed_degrees(_gps_tags(file), name)
    if degrees is None:
        raise SampleError(f"the picture's EXIF has no {name}")
    return degrees


def _signed_degrees(tags: Mapping[str, Any], name: str) -> float | None:
    degrees, hemisphere = _degrees(tags.get(name)), str(tags.get(f"{name}Ref", "")).strip("\0 ").upper()
    if degrees is None or hemisphere not in (*_NEGATIVE, *_POSITIVE):
        return None
    return -degrees if hemisphere in _NEGATIVE else degrees


def _gps_tags(file: bytes) -> Mapping[str, Any]:
    try:
        with Image.open(io.BytesIO(file)) as picture:
            block = picture.getexif().get_ifd(ExifTags.IFD.GPSInfo)
    except (*DAMAGED, Image.DecompressionBombError):
        return {}
    return {ExifTags.GPSTAGS[tag]: value for tag, value in block.items() if tag in ExifTags.GPSTAGS}


def _degrees(value: Any) -> float | None:
    """Degrees, minutes and seconds as one number; None for what is none."""
    try:
        degrees, minutes, seconds = map(float, value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    total = degrees + minutes / 60 + seconds / 3600
    return total if math.isfinite(total) else None
