"""Peak memory against rows, workers and the size of photos."""

from __future__ import annotations

from measure import BYTES_A_MB, Bench, Job, Row, say
from teacher_server import Capacity

TITLE = "Peak memory"
ROWS = (200, 2_000, 20_000)
WORKERS = (32, 128, 256)
CAMERA_WORKERS = (4, 16)
CAMERA_ROWS = 32


def measure(bench: Bench) -> list[Row]:
    camera = [] if bench.is_quick else _of_camera_photos(bench)
    return [*_by_rows(bench), *_by_workers(bench), *camera]


def _by_rows(bench: Bench) -> list[Row]:
    """All rows of a dataset, one turn each, so that twenty thousand end in minutes."""
    rows = []
    for num_rows in (100, 400) if bench.is_quick else ROWS:
        say(f"{num_rows} rows of 640×480, 32 workers, one turn")
        job = Job("web", num_rows, num_rows, 32, Capacity(0.02, num_turns=1))
        rows += bench.compare(bench.contestants("distil_fixed"), job, 1, part="rows", num_rows=num_rows)
    return rows


def _by_workers(bench: Bench) -> list[Row]:
    rows = []
    for workers in (64,) if bench.is_quick else WORKERS:
        say(f"1280×960, {workers} workers")
        job = Job("large", 512, 96 if bench.is_quick else 2 * workers, workers, Capacity(0.2))
        names = bench.contestants("openai_post", "distil_fixed")
        rows += bench.compare(names, job, 1, part="workers", num_rows=512)
    return rows


def _of_camera_photos(bench: Bench) -> list[Row]:
    rows = []
    folder = bench.dataset("camera", CAMERA_ROWS)
    file_mb = sum(path.stat().st_size for path in folder.glob("*.arrow")) / CAMERA_ROWS / BYTES_A_MB
    for workers in CAMERA_WORKERS:
        say(f"4000×3000, {workers} workers")
        job = Job("camera", CAMERA_ROWS, CAMERA_ROWS, workers, Capacity(0.2))
        names = bench.contestants("openai_post", "distil_fixed")
        facts = {"part": "camera", "num_rows": CAMERA_ROWS, "allowed_mb": workers * (2 * file_mb + 2)}
        rows += bench.compare(names, job, 1, **facts)
    return rows
