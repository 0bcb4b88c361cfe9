"""The benchmarks' parts do what they are measured for: the teacher's script, and the same work. Nothing is timed."""

from __future__ import annotations

import http.client
import io
import json
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import PACKAGE, RunDoor
from PIL import Image

BENCHMARKS = PACKAGE.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))  # last: a module of the suite comes first

from contestants import CONTESTANTS, Work  # noqa: E402
from photos import save  # noqa: E402
from teacher_server import Capacity, Teacher, serving  # noqa: E402


@pytest.fixture
def teacher() -> Iterator[Teacher]:
    with serving(Capacity()) as teacher:
        yield teacher


def ask(teacher: Teacher, bodies: list[bytes]) -> list[str]:
    """The replies' texts to bodies that are sent over one connection."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(teacher.api_base).netloc, timeout=10)
    texts = []
    for body in bodies:
        connection.request("POST", "/v1/chat/completions", body)
        texts.append(json.load(connection.getresponse())["choices"][0]["message"]["content"])
    connection.close()
    return texts


def conversation(num_turns: int, num_bytes: int = 400_000) -> bytes:
    picture = {"role": "user", "content": "A1b2" * (num_bytes // 4)}
    messages = [picture, *[{"role": "assistant", "content": "x"}, picture] * num_turns]
    return json.dumps({"messages": messages, "model": "m"}).encode()


def test_the_teacher_zooms_twice_and_answers_whatever_the_size_of_a_body(teacher: Teacher) -> None:
    sizes = (8, 40_000, 400_000, 3_000_000)
    texts = ask(teacher, [conversation(turns, size) for size in sizes for turns in range(3)])
    assert ["[100, 100, 700, 700]" in text for text in texts] == [True, False, False] * len(sizes)
    assert ["[200, 200, 800, 800]" in text for text in texts] == [False, True, False] * len(sizes)
    assert [r"\boxed{47.3769, 8.5417}" in text for text in texts] == [False, False, True] * len(sizes)


def test_the_turns_of_a_body_are_counted_wherever_it_is_cut(teacher: Teacher) -> None:
    body = conversation(1, 8)
    address = urllib.parse.urlsplit(teacher.api_base)
    mark = body.index(b'"assistant"')
    for cut in range(mark, mark + len(b'"assistant"') + 1):
        connection = http.client.HTTPConnection(address.netloc, timeout=10)
        connection.putrequest("POST", "/v1/chat/completions")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body[:cut])
        time.sleep(0.02)  # for the server to read what is there
        connection.send(body[cut:])
        text = json.load(connection.getresponse())["choices"][0]["message"]["content"]
        connection.close()
        assert "[200, 200, 800, 800]" in text


def test_the_teacher_refuses_what_is_above_its_limit_and_queues_the_rest() -> None:
    with serving(Capacity(0.2, num_slots=1, refuses_above=2, num_turns=1)) as teacher:
        body = conversation(0, 8)
        clients = [
            http.client.HTTPConnection(urllib.parse.urlsplit(teacher.api_base).netloc) for _ in range(3)
        ]
        for client in clients:
            client.request("POST", "/v1/chat/completions", body)
        statuses = []
        for client in clients:
            response = client.getresponse()
            response.read()
            statuses.append(response.status)
            client.close()
        seen = teacher.seen()
    assert sorted(statuses) == [200, 200, 429]
    assert (len(seen.replied_at), seen.num_refused, seen.max_in_flight) == (2, 1, 2)


def traces_of(name: str, teacher: Teacher, photos: Path, folder: Path) -> list[dict[str, Any]]:
    folder.mkdir()
    CONTESTANTS[name](Work(teacher.api_base, str(photos), num_samples=3, max_workers=2, output_dir=folder))
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("trace_*.json"))]


@pytest.mark.parametrize("name", ["raw", "openai_post_hashed", "earlier"])
def test_a_contestants_traces_pass_the_recipe(
    name: str, teacher: Teacher, photos: Path, tmp_path: Path
) -> None:
    traces = traces_of(name, teacher, photos, tmp_path / "traces")
    assert [trace["sample_index"] for trace in traces] == [0, 1, 2]
    assert len(teacher.seen().replied_at) == 9
    for trace in traces:
        image = datasets.load_from_disk(trace["dataset_path"])[trace["sample_index"]]["image"]
        for call in trace["tool_calls_log"]:
            image = image.crop(call["tool_arguments"]["bbox_2d"])
            assert image.size == (call["result"]["width_px"], call["result"]["height_px"])
        assert image.size == (232, 174)
        assert trace["final_response"].endswith(r"\boxed{47.3769, 8.5417}")


def test_the_baselines_traces_have_the_fields_and_the_size_of_distils(
    teacher: Teacher, photos: Path, tmp_path: Path, run_door: RunDoor
) -> None:
    theirs = traces_of("openai_post_hashed", teacher, photos, tmp_path / "theirs")[0]
    flags = [
        "--api_base",
        teacher.api_base,
        "--dataset_path",
        photos,
        "--tool_mode",
        "text",
        "--num_samples",
        1,
    ]
    result = run_door("demo_concurrent.py", *flags, "--output_dir", tmp_path / "ours")
    assert result.returncode == 0, result.stderr
    ours = json.loads((tmp_path / "ours" / "trace_00000.json").read_text(encoding="utf-8"))
    assert theirs.keys() == ours.keys()
    assert theirs["tool_calls_log"][0].keys() == ours["tool_calls_log"][0].keys()
    assert (
        theirs["tool_calls_log"][0]["result"]["pixel_sha256"]
        == ours["tool_calls_log"][0]["result"]["pixel_sha256"]
    )
    assert len(json.dumps(theirs)) == pytest.approx(len(json.dumps(ours)), rel=0.25)


def test_photos_are_as_large_as_photos_are(tmp_path: Path) -> None:
    save("mixed", 2, tmp_path / "mixed")
    rows = datasets.load_from_disk(str(tmp_path / "mixed")).cast_column("image", datasets.Image(decode=False))
    files = [row["image"]["bytes"] for row in rows]
    assert [Image.open(io.BytesIO(file)).size for file in files] == [(640, 480), (1280, 960)]
    assert 40_000 < len(files[0]) < 100_000 < len(files[1]) < 300_000


def test_the_harness_says_what_it_can_measure() -> None:
    command = [sys.executable, BENCHMARKS / "run.py", "--help"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for section in ("workers", "slow_teacher", "memory", "journal", "level", "sandbox", "replay", "start"):
        assert section in text
