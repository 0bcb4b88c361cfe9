"""A long run against a server that breaks one request in ten: nothing lost, nothing paid twice, nothing hung."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import fault_server as faults
from conftest import RunDoor, photo_bytes, save_photos
from fault_server import Exchange, Fault, FaultServer, Status
from scripted_teacher import calls, completion, is_probe, naming_the_word, num_turns

NUM_SAMPLES, NUM_WORKERS, FAULT_SHARE = 2000, 64, 0.1
REQUEST_TIMEOUT_SECONDS = 8

# What the run must count each as: money may be lost only where a request got through and no status came back.
RETRIED: tuple[Fault, ...] = (
    faults.reset,
    faults.hang_up,
    faults.truncated,
    faults.reset_in_body,
    faults.garbage,
    faults.half_json,
    faults.not_utf8,
    faults.no_http,
    faults.empty_choices,
    faults.bad_gzip,
    faults.stall,
    faults.trickle_body,
    faults.trickle_head,
    Status(408),
    Status(504),
)
REFUSED: tuple[Fault, ...] = (
    *(Status(status) for status in (409, 500, 502, 503)),
    Status(429, "retry-after-ms: 300\r\n"),
    Status(429, "retry-after: 1\r\n"),
    Status(429, "x-ratelimit-reset-requests: 500ms\r\nx-ratelimit-remaining-requests: 0\r\n"),
)
# These end their sample: they would come to the same again.
FINAL = {
    "lost": (faults.endless(200, by_chunks=True),),
    "refused": (Status(400), Status(422), Status(403, error={"message": "your input was flagged"})),
}
OVERFLOW = Status(400, error={"message": "too long", "code": "context_length_exceeded"})


class Chance:
    """Breaks a share of the requests, and keeps count of what was done to which."""

    def __init__(self, fault_share: float) -> None:
        self.counts: Counter[str] = Counter()
        self.answered: Counter[tuple[int, int]] = Counter()  # by seed and turn: which turn of which sample
        self._random = random.Random(1)
        self._fault_share = fault_share
        self._lock = threading.Lock()

    def choose(self, body: bytes) -> Fault:
        if body.startswith(b"GET"):
            return _models
        request = json.loads(body)
        if is_probe(request):
            return lambda exchange: exchange.reply(
                200, json.dumps(naming_the_word(_answer(request))).encode()
            )
        kind, fault = self._draw()
        self.counts[kind] += 1
        if kind == "answered":
            self.answered[request["seed"], num_turns(request)] += 1
            return lambda exchange: exchange.reply(200, json.dumps(_answer(request)).encode())
        return fault

    def _draw(self) -> tuple[str, Fault]:
        if self._random.random() >= self._fault_share:
            return "answered", _models
        chance = self._random.random()
        if chance < 0.01:
            return "final, lost", FINAL["lost"][0]
        if chance < 0.03:
            return "final, refused", self._random.choice(FINAL["refused"])
        if chance < 0.04:
            return "overflow", OVERFLOW
        if chance < 0.6:
            return "retried", self._random.choice(RETRIED)
        return "refused", self._random.choice(REFUSED)


def _models(exchange: Exchange) -> None:
    exchange.reply(200, b'{"data": [{"id": "faulty-qwen3-vl"}]}')


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    turn = num_turns(request)
    if turn == 2:
        return completion({"content": "\\boxed{1, 2}"})
    arguments = ({"bbox_2d": [100, 100, 900, 900]}, {"angle": 90})[turn]
    return calls((("image_zoom_in_tool", "image_rotate_tool")[turn], arguments))


def test_a_long_run_against_a_faulty_server(run_door: RunDoor, tmp_path: Path) -> None:
    small = [photo_bytes(seed, (128, 96)) for seed in range(20)]
    photos = save_photos(tmp_path / "photos", [small[row % 20] for row in range(NUM_SAMPLES)])
    out, chance = tmp_path / "out", Chance(FAULT_SHARE)
    with FaultServer(choose=chance.choose) as server:
        result = run_door(
            "demo_concurrent.py", "--dataset_path", photos, "--output_dir", out, "--num_samples", 0,
            "--api_base", server.api_base, "--max_workers", NUM_WORKERS, "--tool_mode", "native",
            "--request_timeout_seconds", REQUEST_TIMEOUT_SECONDS,
        )  # fmt: skip
    assert "Traceback" not in result.stderr
    failed = {
        line["sample_index"]: line
        for line in map(json.loads, (out / "failed_samples.jsonl").read_text().splitlines())
    }
    solved = {int(path.stem.removeprefix("trace_")) for path in out.glob("trace_*.json")}
    assert result.returncode == 1
    assert solved | set(failed) == set(range(NUM_SAMPLES)) and not solved & set(failed)
    counts = chance.counts
    assert counts["retried"] > 100 and counts["refused"] > 100
    assert sum(counts.values()) - counts["answered"] > 0.08 * sum(counts.values())

    # Every turn is answered once, and counted as paid once.
    assert max(chance.answered.values()) == 1
    (record,) = json.loads((out / "run_record.json").read_text())["runs"]
    spent = record["spent"]
    assert spent["answered"]["requests"] == 1 + counts["answered"], "with the probe"
    assert spent["answered"]["tokens"]["prompt"] == 100 * (1 + counts["answered"])
    assert spent["retried"]["requests"] == counts["retried"] + counts["final, lost"]
    assert spent["refused"] == counts["refused"] + counts["final, refused"] + counts["overflow"]
    stored = sum(len(json.loads(path.read_text())["conversation_log"]) for path in out.glob("trace_*.json"))
    assert stored + sum(line["turns_spent"] for line in failed.values()) == counts["answered"]
    finals = counts["final, lost"] + counts["final, refused"]
    assert finals <= len(failed) <= finals + counts["overflow"], "an overflow before the first turn fails too"
