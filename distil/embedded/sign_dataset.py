"""Write drawn signs or scenes as a dataset folder that `datasets.load_from_disk` opens."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features, Image, Value, disable_progress_bars

from distil.embedded import drawn_scenes, drawn_signs

ROWS_PER_BATCH = 32
FEATURES = Features(
    {
        "image": Image(),
        "lat": Value("float64"),
        "lon": Value("float64"),
        "country": Value("string"),
        "city": Value("string"),
        "locatability_score": Value("float64"),
        "image_source": Value("string"),
    }
)
SCENE_FEATURES = Features(
    {
        "image": Image(),
        "question": Value("string"),
        "answer": Value("string"),
        "text_px": Value("int64"),
        "image_source": Value("string"),
    }
)


# What each kind is called, what draws a row of a seed, and what a row has.
KINDS: dict[str, tuple[str, Callable[[int, int], dict[str, Any]], Features]] = {
    "signs": ("street signs", drawn_signs.draw_row, FEATURES),
    "scenes": ("scenes of coloured shapes", drawn_scenes.draw_row, SCENE_FEATURES),
}


def write_dataset(output_dir: Path, num_rows: int, seed: int, workers: int, kind: str = "signs") -> None:
    """Draw the rows and write them as one dataset folder, whole or not at all; raises FileExistsError."""
    if output_dir.exists():
        raise FileExistsError(f"{output_dir} already exists: name another --output_dir, or remove it first")
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}-", dir=output_dir.parent))
    try:
        write_rows(scratch, num_rows, seed, workers, kind)
        (scratch / "dataset").replace(output_dir)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(json.dumps({"event": "drawn", "output_dir": str(output_dir), "num_rows": num_rows}), flush=True)


def write_rows(scratch: Path, num_rows: int, seed: int, workers: int, kind: str) -> None:
    """Draw into a scratch folder on the same disk, whose `dataset` is then to be moved into place."""
    name, draw_row, features = KINDS[kind]
    print(f"drawing {num_rows} {name} with {workers} workers", file=sys.stderr, flush=True)
    stream = scratch / "rows.arrow"
    write_stream(stream, draw_rows(partial(draw_row, seed), num_rows, workers), features)
    # A fixed fingerprint: the default one is made of time stamps and would differ on every run.
    rows = Dataset.from_file(str(stream), info=DatasetInfo(features=features))
    disable_progress_bars()
    fingerprint = f"drawn{kind}{seed:x}n{num_rows:x}"
    Dataset(rows.data, info=rows.info, fingerprint=fingerprint).save_to_disk(scratch / "dataset")


def draw_rows(draw: Callable[[int], dict[str, Any]], num_rows: int, workers: int) -> Iterator[dict[str, Any]]:
    """Yield the rows in order; a row is the same whichever process draws it."""
    if workers == 1 or num_rows == 1:
        yield from map(draw, range(num_rows))
        return
    # Fresh processes: forking would copy the threads that the imported libraries have started.
    with _signal_waits():
        made = multiprocessing.get_context("spawn").Pool(min(workers, num_rows))
    with made as pool:
        yield from pool.imap(draw, range(num_rows), chunksize=4)


@contextmanager
def _signal_waits() -> Iterator[None]:
    """Have a signal to end wait: a process whose start is broken off would print a traceback."""
    came: list[int] = []
    earlier = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)
    if came:
        signal.raise_signal(signal.SIGTERM)


def write_stream(path: Path, rows: Iterator[dict[str, Any]], features: Features) -> None:
    """Write rows to an Arrow file a batch at a time, so that memory does not grow with their number."""
    schema = features.arrow_schema
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        while batch := list(islice(rows, ROWS_PER_BATCH)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
