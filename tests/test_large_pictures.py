"""What a server refuses for its size it refuses of every sample; and how large pictures are sent at all."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from builders import file_bytes, noise, row, saved, smooth
from conftest import RunDoor
from scripted_teacher import ScriptedTeacher, is_probe, picture_areas, says, turns

from distil.teacher.refusals import is_too_large

ANSWERS = turns(says("\\boxed{1, 2}"))
BOUND_PX = 2048 * 2048


def run(run_door: RunDoor, server: ScriptedTeacher, photos: Path, folder: Path, *flags: object) -> Any:
    return run_door(
        "demo_concurrent.py", "--api_base", server.api_base, "--dataset_path", photos, "--output_dir", folder,
        "--num_samples", 12, "--max_workers", 2, *flags,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (
            413,
            b"<html><center><h1>413 Request Entity Too Large</h1></center><hr><center>nginx</center></html>",
        ),
        (400, {"error": {"message": "Image size (108000000 pixels) exceeds limit of 89478485 pixels"}}),
    ],
)
def test_a_size_that_is_refused_of_every_sample_stops_the_run_with_the_flag(
    status: int, body: Any, run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    with ScriptedTeacher(lambda request: ANSWERS(request) if is_probe(request) else (status, body)) as server:
        result = run(run_door, server, photos, tmp_path)
    assert result.returncode == 2
    told = re.search(r"(\d) samples in a row", result.stderr)
    assert told is not None and told[1] in "345", "what is in flight is refused too"
    assert "--image_max_pixels" in result.stderr
    assert len(server.requests) <= 1 + 2 + 2 * 2
    failures = [json.loads(line) for line in (tmp_path / "failed_samples.jsonl").read_text().splitlines()]
    # The second may not have come to be written when the third ends the run: then it is asked again.
    assert len(failures) in (1, 2)
    assert all("--image_max_pixels" in failure["message"] for failure in failures)


def test_a_few_that_are_too_large_are_failed_samples(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    numbers = itertools.count()

    def refuses_two_of_three(request: dict[str, Any]) -> Any:
        if is_probe(request) or next(numbers) % 3 == 2:
            return ANSWERS(request)
        return 413, {"error": {"message": "too large"}}

    with ScriptedTeacher(refuses_two_of_three) as server:
        result = run(run_door, server, photos, tmp_path, "--max_workers", 1)
    assert result.returncode == 1, result.stderr
    assert len(list(tmp_path.glob("trace_*.json"))) == 4


@pytest.mark.parametrize(
    "text",
    [
        "Too many pixels",
        "Image size (108000000 pixels) exceeds limit of 89478485 pixels, could be decompression bomb DOS attack.",
        "messages.0.content.1.image.source.base64: image exceeds 5 MB maximum: 7340032 bytes > 5242880 bytes",
        "messages.1.content.0.image: image dimensions exceed max allowed size: 8000 pixels",
        "The image is too large",
        "Invalid image: image_too_large",
    ],
)
def test_refusals_of_a_pictures_size_are_known(text: str) -> None:
    assert is_too_large(400, text) and is_too_large(422, text)
    assert not is_too_large(500, text) and not is_too_large(404, text)


@pytest.mark.parametrize(
    "text", ["Invalid image", "temperature exceeds 2", "max_tokens is too large", "image url must be https"]
)
def test_other_refusals_are_not_of_a_pictures_size(text: str) -> None:
    assert not is_too_large(400, text)


@pytest.fixture(scope="module")
def large_and_small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo above the bound and one below it."""
    rows = [row(file_bytes(smooth(4000, 3000))), row(file_bytes(noise(640, 480)))]
    return saved(tmp_path_factory.mktemp("large") / "photos", rows)


@pytest.mark.parametrize(
    ("model", "flags", "areas", "told"),
    [
        ("who-knows", (), [BOUND_PX, 640 * 480], "4,194,304 pixels: --image_max_pixels"),
        ("who-knows", ("--image_max_pixels", 10**8), [12_000_000, 640 * 480], "100,000,000 pixels"),
        ("qwen3-vl", (), [12_000_000, 640 * 480], "profile qwen-vl)"),
    ],
)
def test_an_unknown_family_is_sent_no_more_than_the_bound_and_the_line_says_so(
    model: str, flags: tuple[object, ...], areas: list[int], told: str, run_door: RunDoor,
    large_and_small: Path, tmp_path: Path,
) -> None:  # fmt: skip
    with ScriptedTeacher(ANSWERS, models=(model,)) as server:
        result = run(run_door, server, large_and_small, tmp_path, *flags, "--max_workers", 1)
    assert result.returncode == 0, result.stderr
    line = next(line for line in result.stdout.splitlines() if "(profile " in line)
    assert told in line
    sent = [area for request in server.requests if not is_probe(request) for area in picture_areas(request)]
    assert 0.99 * areas[0] < sent[0] <= areas[0] and sent[1] == areas[1]
    rules = {
        json.loads(path.read_text())["settings"]["view_rule"]["max_area_px"]
        for path in tmp_path.glob("t*.json")
    }
    assert rules == {None if "qwen" in model else flags[1] if flags else BOUND_PX}


def test_a_picture_below_the_bound_is_sent_as_its_file(
    run_door: RunDoor, large_and_small: Path, tmp_path: Path
) -> None:
    sent = []
    for name, flags in (("bound", ()), ("no bound", ("--image_max_pixels", 10**9))):
        with ScriptedTeacher(ANSWERS, models=("who-knows",)) as server:
            run(run_door, server, large_and_small, tmp_path / name, *flags, "--max_workers", 1)
        sent.append(server.requests[-1]["messages"][1])
    assert sent[0] == sent[1]
