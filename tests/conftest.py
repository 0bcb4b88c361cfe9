"""Shared data: a small dataset of photos on disk, and runs of the doors as subprocesses."""

from __future__ import annotations

import gc
import io
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from browser import browser, chromium, serve, start_viewer  # noqa: F401 - fixtures for every test
from hypothesis import settings
from PIL import Image
from warm_door import start_door

pytest.register_assert_rewrite("conversations")
settings.register_profile("no_deadline", deadline=None)  # busy machines pause for longer than 200 ms
settings.load_profile("no_deadline")

PACKAGE = Path(__file__).parent.parent / "distil"
TRAINERS = Path(__file__).parent / "trainers"
PLACES = [
    (48.8566, 2.3522),
    (35.6762, 139.6503),
    (-33.8688, 151.2093),
    (40.7128, -74.006),
    (0.0, 0.0),
    (64.1, -21.9),
]


def photo_bytes(seed: int, size: tuple[int, int] = (640, 480)) -> bytes:
    """A JPEG with something to see everywhere."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def save_photos(folder: Path, pictures: list[bytes]) -> Path:
    """A save_to_disk dataset of picture files with coordinates and some more columns."""
    rows = {
        "image": [{"bytes": data, "path": None} for data in pictures],
        "lat": [PLACES[row % len(PLACES)][0] for row in range(len(pictures))],
        "lon": [PLACES[row % len(PLACES)][1] for row in range(len(pictures))],
        "city": [f"city {row}" for row in range(len(pictures))],
        "locatability_score": [((row * 7) % 10) / 10 for row in range(len(pictures))],
    }
    features = datasets.Features(
        image=datasets.Image(),
        lat=datasets.Value("float64"),
        lon=datasets.Value("float64"),
        city=datasets.Value("string"),
        locatability_score=datasets.Value("float64"),
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder))
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve photos on disk."""
    return save_photos(tmp_path_factory.mktemp("data") / "photos", [photo_bytes(seed) for seed in range(12)])


RunDoor = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def run_door() -> RunDoor:
    """Run a script of `distil/` from inside that folder, as the README does; `cold` in an interpreter of its own."""

    def run(
        script: str, *arguments: object, env: dict[str, str] | None = None, cold: bool = False
    ) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
        door = start_door(
            script, *arguments, cwd=PACKAGE, env=environment | {"COLUMNS": "150"} | (env or {}), cold=cold
        )
        try:
            stdout, stderr = door.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            door.kill()
            raise
        return subprocess.CompletedProcess(list(door.args), door.wait(), stdout, stderr)

    return run


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long, and with which chance, whole conversations are fuzzed."""
    parser.addoption("--fuzz_seconds", type=float, help="how long (default: the same cases in every run)")
    parser.addoption("--fuzz_case", metavar="SEED:NUMBER", help="one case alone, or with SEED: other cases")
    parser.addoption(
        "--trainers", action="store_true", help="also the tests in the trainers' own environments"
    )


@pytest.fixture(scope="module", autouse=True)
def without_plots(request: pytest.FixtureRequest) -> Iterator[None]:
    """Exports made in this process draw no plots, as where matplotlib is not installed: they take the longest.

    The tests of the data card have them, and so has every export by a door.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.path.name != "test_data_card.py":
            patch.setattr("distil.exports.export.can_plot", lambda: False)
        yield


LONGEST_FIRST = (  # else a worker is left with one of them when the others have no more files
    "test_readme.py",
    "test_view_pages.py",
    "test_embedded.py",
    "test_doors.py",
    "test_sandbox_corpus.py",
    "test_exports.py",
    "test_sandbox.py",
    "test_check.py",
    "test_view_axe.py",
    "test_soak.py",
    "test_journal.py",
    "test_fuzz_conversations.py",
    "test_vqa.py",
    "test_view_trace_browser.py",
    "test_target_accuracy.py",
    "test_gateways.py",
    "test_view_charts.py",
    "test_doctor.py",
    "test_rollouts.py",
    "test_view_second_reader.py",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the files that take longest first; all else stays as it is, less the trainers' unless asked for."""
    place = {name: position for position, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
    left_out = [item for item in items if item.path.parent == TRAINERS]
    if left_out and not config.getoption("--trainers"):
        items[:] = [item for item in items if item.path.parent != TRAINERS]
        config.hook.pytest_deselected(items=left_out)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say what was left out, and how it is run; processes that share the tests count nothing themselves."""
    files = [path for path in TRAINERS.glob("test_*.py") if _is_asked_for(config, path)]
    if files and not config.getoption("--trainers"):
        terminalreporter.write_line(
            f"left out: {len(files)} files of tests in the trainers' own environments (4 GB, made once): "
            "python -m pytest tests/trainers --trainers"
        )


def _is_asked_for(config: pytest.Config, path: Path) -> bool:
    asked = [Path(config.invocation_params.dir, name.partition("::")[0]) for name in config.args]
    return any(path.is_relative_to(root) for root in asked)


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what was imported, at each of its rounds."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what `datasets` builds out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        datasets.disable_progress_bars()
        yield
        datasets.enable_progress_bars()
