"""The datasets that are measured on: photo-like JPEGs of realistic file size, drawn once from a seed.

    python benchmarks/photos.py KIND NUM_ROWS FOLDER

A process of its own draws them: who measures stays small. A photo has the spectrum of one (as much contrast
at every scale), a sky, edges and a sensor's grain; 40 of them are repeated.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

NUM_DISTINCT = 40


@dataclass(frozen=True)
class Kind:
    """The sizes that take turns, and the JPEG quality that gives files as large as a camera's or a web site's."""

    sizes: tuple[tuple[int, int], ...]
    quality: int = 90
    grain: float = 3.0  # of 255
    num_distinct: int = NUM_DISTINCT


KINDS = {
    "mixed": Kind(((640, 480), (1280, 960))),
    "web": Kind(((640, 480),)),
    "large": Kind(((1280, 960),)),
    "camera": Kind(((4000, 3000),), quality=90, grain=5.0, num_distinct=8),
    "thumbs": Kind(((64, 48),), quality=70),
    "rows": Kind(((640, 480),), num_distinct=1),  # the photo first; all other rows hold one tiny picture
}


def dataset(cache_dir: Path, kind: str, num_rows: int) -> Path:
    """The folder of a dataset, drawn if it is not there."""
    folder = cache_dir / f"{kind}_{num_rows}"
    if not folder.exists():
        print(f"drawing {folder}", file=sys.stderr, flush=True)
        partial = folder.with_suffix(".partial")
        subprocess.run([sys.executable, __file__, kind, str(num_rows), str(partial)], check=True)
        partial.rename(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("num_rows", type=int)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    save(options.kind, options.num_rows, options.folder)


def save(name: str, num_rows: int, folder: Path) -> None:
    import datasets  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415
    import pyarrow as pa  # noqa: PLC0415

    kind = KINDS[name]
    photos = [
        _jpeg(seed, kind.sizes[seed % len(kind.sizes)], kind)
        for seed in range(min(num_rows, kind.num_distinct))
    ]
    if name == "rows":
        photos += [_jpeg(1, (16, 16), kind)] * (num_rows - 1)
    generator = np.random.default_rng(0)
    features = datasets.Features(
        image=datasets.Image(),
        lat=datasets.Value("float64"),
        lon=datasets.Value("float64"),
        country=datasets.Value("string"),
        locatability_score=datasets.Value("float64"),
    )
    rows_a_batch = 2000
    tables = []
    for start in range(0, num_rows, rows_a_batch):
        rows = range(start, min(num_rows, start + rows_a_batch))
        data = pa.array([photos[row % len(photos)] for row in rows], pa.binary())
        paths = pa.nulls(len(rows), pa.string())
        columns = {
            "image": pa.StructArray.from_arrays([data, paths], ["bytes", "path"]),
            "lat": pa.array(generator.uniform(-60, 70, len(rows))),
            "lon": pa.array(generator.uniform(-180, 180, len(rows))),
            "country": pa.array(["Switzerland"] * len(rows)),
            "locatability_score": pa.array(generator.uniform(0, 1, len(rows))),
        }
        tables.append(pa.table(columns, schema=features.arrow_schema))
    datasets.disable_progress_bars()
    table = datasets.table.InMemoryTable(pa.concat_tables(tables))
    datasets.Dataset(table, info=datasets.DatasetInfo(features=features)).save_to_disk(str(folder))


def _jpeg(seed: int, size: tuple[int, int], kind: Kind) -> bytes:
    import numpy as np  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415

    width, height = size
    generator = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3))
    cells = 3
    while cells < width:  # octaves: half the size, half the contrast
        small = generator.uniform(-1, 1, (max(2, cells * height // width), cells, 3))
        grey = small.mean(axis=2, keepdims=True)
        layer = np.uint8(np.clip(128 + 100 * (0.25 * small + 0.75 * grey), 0, 255))
        grown = Image.fromarray(layer).resize(size, Image.Resampling.BICUBIC)
        pixels += (np.asarray(grown, dtype=np.float64) - 128) * (3 / cells) ** 0.75
        cells *= 2
    horizon = int(height * generator.uniform(0.3, 0.6))
    pixels[:horizon] *= 0.25  # a sky is smooth
    pixels += np.linspace(190, 90, height)[:, None, None] * np.array([0.9, 1.0, 1.1])
    for _ in range(12):  # edges: what stands in the street
        left, top = int(generator.integers(0, width)), int(generator.integers(horizon // 2, height))
        right, bottom = left + int(generator.integers(2, max(3, width // 6))), top + height // 4
        pixels[top:bottom, left:right] += generator.uniform(-60, 60, 3)
    pixels += generator.normal(0, kind.grain, pixels.shape[:2])[:, :, None]
    buffer = io.BytesIO()
    Image.fromarray(np.uint8(np.clip(pixels, 0, 255))).save(buffer, "JPEG", quality=kind.quality)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
