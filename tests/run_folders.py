"""Folders of traces for tests of what shows many of them: written as a run writes them, without asking a teacher."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from conftest import RunDoor
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says

from distil.tasks.geolocation import Place, score


def place_at(lat: float, lon: float) -> Place:
    return {"lat": lat, "lon": lon}


STOP_REASONS = ("answered",) * 8 + ("max_turns", "truncated")


def write_run(folder: Path, num_traces: int, seed: int = 0, **changes: Any) -> Path:
    """A folder of traces of geolocation, most of them near, some far, some without an answer."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    for index in range(num_traces):
        text = json.dumps(a_trace(index, rng) | changes, ensure_ascii=False)
        (folder / f"trace_{index:05d}.json").write_text(text + "\n", encoding="utf-8")
    return folder


def a_trace(index: int, rng: random.Random) -> dict[str, Any]:
    """A trace in the form of a run's, with what a list and charts show of one."""
    truth = place_at(math.degrees(math.asin(rng.uniform(-0.8, 0.95))), rng.uniform(-180, 180))
    answer = _answer(truth, rng) if rng.random() < 0.9 else None
    reward = score(answer, truth)
    num_turns = rng.randint(1, 5)
    zooms = [
        {"turn": turn, "tool_name": "image_zoom_in_tool", "tool_arguments": {"bbox_2d": [0, 0, 64, 64]},
         "success": rng.random() < 0.9, "message": "", "stdout": None, "clamped": False}
        for turn in range(1, num_turns)
    ]  # fmt: skip
    places = {
        "answer": None if answer is None else {"lat": answer["lat"], "lon": answer["lon"]},
        "truth": {"lat": truth["lat"], "lon": truth["lon"]},
    }
    return {
        "sample_index": index,
        "sample_data": {"lat": truth['lat'], "lon": truth['lon'], "city": f"city {index}"},
        "conversation_log": [
            {"turn": turn, "assistant_response": f"I look, the {turn}. time.", "finish_reason": "stop",
             "usage": {"prompt_tokens": 400 * turn, "completion_tokens": rng.randint(20, 300)}}
            for turn in range(1, num_turns + 1)
        ],
        "tool_calls_log": zooms,
        "final_response": "It is here." if answer is None else f"\\boxed{{{answer['lat']:.4f}, {answer['lon']:.4f}}}",
        "reward_score": {"score": reward.value, **reward.details},
        "metadata": {"total_turns": num_turns, "stop_reason": rng.choice(STOP_REASONS), **places},
        "settings": {"task": "geolocation", "model": "a-model"},
    }  # fmt: skip


def _answer(truth: Place, rng: random.Random) -> Place:
    away = rng.expovariate(1 / 2) if rng.random() < 0.7 else rng.uniform(5, 80)
    angle = rng.uniform(0, 2 * math.pi)
    lat = max(-89.0, min(89.0, truth["lat"] + away * math.sin(angle)))
    lon = truth["lon"] + away * math.cos(angle) / max(0.2, math.cos(math.radians(truth["lat"])))
    return place_at(lat, (lon + 180) % 360 - 180)


def looks_and_answers(request: dict[str, Any]) -> Any:
    """What a scripted teacher says: a zoom, a turn, a call that fails, and then an answer."""
    match 0 if is_probe(request) else num_turns(request):
        case 0:
            return calls(("image_zoom_in_tool", {"bbox_2d": [100, 100, 800, 700]}), content="I zoom in.")
        case 1:
            return calls(
                ("image_rotate_tool", {"angle": 30}), ("image_rotate_tool", {"angle": "x"}),
                content="It is tilted.", reasoning="The harbour lies to the left.",
            )  # fmt: skip
        case _:
            return says("Paris: \\boxed{48.8566, 2.3522}")


def distil_photos(run_door: RunDoor, photos: Path, folder: Path, num_samples: int) -> Path:
    """A run of real traces over photos, whose pictures can be replayed."""
    with ScriptedTeacher(looks_and_answers) as server:
        result = run_door(
            "demo_concurrent.py", "--api_base", server.api_base, "--dataset_path", photos,
            "--num_samples", num_samples, "--output_dir", folder,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder
