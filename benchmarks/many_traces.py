"""Folders of many traces, as a geolocation run with tools leaves them, without asking anyone.

    python benchmarks/many_traces.py DIR [--traces 100000] [--dataset_path PATH]

Every trace is another: places of many countries, guesses near and far, reasoning of a few hundred words, calls that
worked and that did not. The same number and seed give the same files. Their pictures are nowhere: a viewer shows all
but them, and `distil verify` says that the dataset is gone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

Json = dict[str, Any]
COUNTRIES = (  # name, a city, its place, and how many of 1000 photos are of there
    ("United States", "Denver", 39.74, -104.99, 190),
    ("France", "Lyon", 45.76, 4.84, 90),
    ("Brazil", "Belo Horizonte", -19.92, -43.94, 85),
    ("Japan", "Nagoya", 35.18, 136.91, 80),
    ("Germany", "Leipzig", 51.34, 12.37, 70),
    ("Russia", "Samara", 53.2, 50.14, 65),
    ("South Africa", "Bloemfontein", -29.12, 26.21, 60),
    ("Indonesia", "Semarang", -6.97, 110.42, 60),
    ("Türkiye", "Konya", 37.87, 32.49, 55),
    ("中国", "成都", 30.57, 104.07, 50),
    ("Australia", "Ballarat", -37.56, 143.85, 50),
    ("Kenya", "Nakuru", -0.28, 36.07, 45),
    ("Mexico", "Puebla", 19.04, -98.2, 45),
    ("Norway", "Lillehammer", 61.12, 10.47, 30),
    ("Botswana", "Maun", -19.98, 23.42, 15),
    ("Bhutan", "Thimphu", 27.47, 89.64, 10),
)
_CLUES = (
    "architecture vegetation terrain road sign marking vehicle climate bollard pole licence plate asphalt soil "
    "roof facade palm spruce eucalyptus savanna coast mountain river bridge church mosque temple market script "
    "cyrillic latin kanji arabic thai left right driving side shadow sun north south hemisphere antenna wire "
    "fence gate kerb"
)
_COMMON = (
    "the of and a to in is it that this on with as for are at by from be not or an which suggests looks like "
    "there could would image photo shows see visible seems likely also both more than very"
)
_SETTINGS: Json = {
    "task": "geolocation",
    "model": "Qwen/Qwen3-VL-235B-A22B-Instruct",
    "profile": "qwen3-vl",
    "tool_mode": "native",
    "coordinates": "rel1000",
    "crop_from": "current",
    "temperature": 0.7,
    "max_tokens": 4096,
    "max_turns": 6,
    "seed": 0,
    "sends_seed": True,
    "view_rule": {
        "max_area_px": 12845056,
        "min_area_px": 3136,
        "max_side_px": None,
        "min_side_px": None,
        "factor_px": 32,
    },
    "states_size": False,
    "system_prompt": "You are a helpful assistant.",
    "user_prompt": "Where was this photo taken? Analyze the image and predict the location.\n\nConsider clues like:\n"
    "- Architecture and building styles\n- Vegetation and terrain\n- Text and language on signs\n- Landmarks\n\nGive "
    "your final answer as coordinates in decimal degrees, in this form:\n\\boxed{latitude, longitude}",
    "tool_schemas": [
        {
            "type": "function",
            "function": {
                "name": name,
                "description": f"{name}: " + "returns the picture that came of it, at full resolution. " * 3,
                "parameters": {"type": "object", "properties": {argument: {"type": kind}}},
            },
        }
        for name, argument, kind in (
            ("image_zoom_in_tool", "bbox_2d", "array"),
            ("image_rotate_tool", "angle", "number"),
        )
    ],
    "keep_pictures": False,
    "code": None,
}


def make_traces(folder: Path, number: int, seed: int = 0, dataset_path: str = "/data/photos") -> None:
    """Write so many traces and their seconds into a folder, which may hold some already: only new ones are written."""
    folder.mkdir(parents=True, exist_ok=True)
    words = _Words(seed)
    with (folder / "timings.jsonl").open("a", encoding="utf-8") as timings:
        for index in range(number):
            path = folder / f"trace_{index:05d}.json"
            if not path.exists():
                path.write_bytes(trace_bytes(index, words, seed, dataset_path))
                seconds = round(8 + index % 37 / 3, 3)
                timings.write(json.dumps({"sample_index": index, "seconds": seconds}) + "\n")


def change_traces(folder: Path, number: int, seed: int = 1) -> None:
    """Write other traces of the same samples over the first so many."""
    for name, data in changed_traces(number, seed):
        (folder / name).write_bytes(data)


def changed_traces(number: int, seed: int = 1) -> Iterator[tuple[str, bytes]]:
    """Other traces of the first so many samples: their files' names, and what is in them."""
    words = _Words(seed)
    for index in range(number):
        yield f"trace_{index:05d}.json", trace_bytes(index, words, seed, "/data/photos")


class _Words:
    """Prose without sense, of words as frequent as in prose: few make up most of it."""

    def __init__(self, seed: int) -> None:
        drawn = random.Random(seed)
        syllables = [a + b for a in "bdfgklmnprstv" for b in ("a", "e", "i", "o", "u", "an", "er", "os")]
        rare = ["".join(drawn.choices(syllables, k=drawn.randint(2, 4))) for _ in range(20_000)]
        self._words = [*_COMMON.split(), *_CLUES.split(), *rare]
        self._weights = list(accumulate(1 / (rank + 10) for rank in range(len(self._words))))

    def some(self, drawn: random.Random, number: int) -> str:
        words = drawn.choices(self._words, cum_weights=self._weights, k=number)
        return " ".join(words).capitalize() + "."


def trace_bytes(index: int, words: _Words, seed: int, dataset_path: str) -> bytes:
    """The file of one sample's trace."""
    drawn = random.Random(seed * 1_000_003 + index)
    trace = _trace(index, words, drawn, dataset_path)
    trace["integrity_sha256"] = _sha256(trace)
    return json.dumps(trace, ensure_ascii=False, indent=2).encode() + b"\n"


def _trace(index: int, words: _Words, drawn: random.Random, dataset_path: str) -> Json:
    country, city, lat, lon, _ = drawn.choices(COUNTRIES, [each[-1] for each in COUNTRIES])[0]
    truth = {"lat": round(lat + drawn.gauss(0, 2), 5), "lon": round(lon + drawn.gauss(0, 2), 5)}
    turns, calls = _conversation(words, drawn, country)
    is_answered = drawn.random() < 0.97
    error = drawn.choice((0.05, 0.3, 2.0, 8.0, 30.0))
    answer = None
    if is_answered:
        guess = (truth["lat"] + drawn.gauss(0, error), truth["lon"] + drawn.gauss(0, error))
        answer = {
            "lat": round(max(-90.0, min(90.0, guess[0])), 4),
            "lon": round((guess[1] + 180) % 360 - 180, 4),
        }
        turns[-1]["assistant_response"] += f"\n\n\\boxed{{{answer['lat']}, {answer['lon']}}}"
    distance_km = 20000.0 if answer is None else _distance_km(answer, truth)
    score = 0.0 if answer is None else math.exp(-distance_km / 1492.7)
    width, height = drawn.choice(((1600, 1200), (1024, 768), (768, 1024), (2048, 1365)))
    tokens = [sum(turn["usage"][name] for turn in turns) for name in ("prompt_tokens", "completion_tokens")]
    return {
        "format": "distil-trace/1",
        "dataset_path": dataset_path,
        "sample_index": index,
        "sample_data": {
            **truth,
            "country": country,
            "city": city,
            "author": words.some(drawn, 1),
            "license": drawn.choice(("CC BY 4.0", "CC BY-SA 4.0", "CC0")),
            "captured_at": f"20{drawn.randint(10, 24)}-{drawn.randint(1, 12):02d}-{drawn.randint(1, 28):02d}",
            "locatability_score": round(drawn.random(), 4),
        },
        "conversation_log": turns,
        "tool_calls_log": calls,
        "final_response": turns[-1]["assistant_response"],
        "reward_score": {
            "score": score,
            "distance@km": distance_km,
            "geoguessr@point": 5000 * score,
            "parse_success": is_answered,
            **{f"acc@{radius}km": float(distance_km <= radius) for radius in (1, 25, 200, 750, 2500)},
        },
        "metadata": {
            "total_turns": len(turns),
            "num_tool_calls": len(calls),
            "parse_success": is_answered,
            "distance_km": distance_km,
            "score": score,
            "stop_reason": "answered" if is_answered else "max_turns",
            "answer": answer,
            "truth": truth,
            "num_failed_tool_calls": sum(not call["success"] for call in calls),
            "num_clamped_boxes": sum(call["clamped"] for call in calls),
            "recipe_restores": True,
            "tokens": dict(zip(("prompt_tokens", "completion_tokens"), tokens, strict=True)),
            "settings_sha256": _SETTINGS_SHA256,
            "versions": {"distil": "1.0.0", "pillow": "12.0.0", "numpy": "2.3.4"},
        },
        "dataset": {
            "source": dataset_path,
            "kind": "saved",
            "split": None,
            "fingerprint": "0123456789abcdef",
            "num_rows": 1_000_000,
        },
        "image": {"file_sha256": _hash(drawn), "file_format": "JPEG", "exif_orientation": None}
        | _picture(drawn, width, height),
        "settings": _SETTINGS,
    }


def _conversation(words: _Words, drawn: random.Random, country: str) -> tuple[list[Json], list[Json]]:
    num_turns = drawn.choice((1, 2, 3, 3, 4, 5))
    turns, calls = [], []
    for turn in range(1, num_turns + 1):
        is_last = turn == num_turns
        completion = drawn.randint(150, 500)
        turns.append(
            {
                "turn": turn,
                "assistant_response": words.some(drawn, 100 if is_last else 40)
                + (f" This is {country}." if is_last else ""),
                "reasoning": words.some(drawn, 150),
                "reasoning_field": "reasoning_content",
                "finish_reason": "stop" if is_last else "tool_calls",
                "call_form": None if is_last else "native",
                "usage": {
                    "prompt_tokens": 1500 + 1300 * turn,
                    "completion_tokens": completion,
                    "total_tokens": 1500 + 1300 * turn + completion,
                },
            }
        )
        if not is_last:
            calls.append(_call(words, drawn, turn))
    return turns, calls


def _call(words: _Words, drawn: random.Random, turn: int) -> Json:
    is_zoom, has_failed = drawn.random() < 0.85, drawn.random() < 0.06
    left, top = drawn.randint(0, 500), drawn.randint(0, 500)
    box = [left, top, left + drawn.randint(80, 400), top + drawn.randint(80, 400)]
    arguments: Json = {"bbox_2d": box} if is_zoom else {"angle": drawn.choice((90, -90, 180, 5))}
    call: Json = {
        "turn": turn,
        "tool_name": "image_zoom_in_tool" if is_zoom else "image_rotate_tool",
        "tool_arguments": {} if has_failed else arguments,
        "raw_arguments": arguments,
        "success": not has_failed,
        "message": f"Error: {words.some(drawn, 8)}"
        if has_failed
        else "Success: Image processed successfully",
        "clamped": drawn.random() < 0.05,
        "call_id": f"call_{drawn.getrandbits(64):016x}",
    }
    return call if has_failed else call | {"result": _picture(drawn, box[2] - left, box[3] - top)}


def _picture(drawn: random.Random, width: int, height: int) -> Json:
    return {
        "width_px": width,
        "height_px": height,
        "mode": "RGB",
        "pixel_sha256": _hash(drawn),
        "sent": {
            "media_type": "image/jpeg",
            "width_px": width // 32 * 32,
            "height_px": height // 32 * 32,
            "num_bytes": width * height // 6,
            "sha256": _hash(drawn),
        },
    }


def _hash(drawn: random.Random) -> str:
    return f"{drawn.getrandbits(256):064x}"


def _distance_km(a: Json, b: Json) -> float:
    lat_a, lat_b = math.radians(a["lat"]), math.radians(b["lat"])
    half_lon = math.radians(b["lon"] - a["lon"]) / 2
    chord = math.sin((lat_b - lat_a) / 2) ** 2 + math.cos(lat_a) * math.cos(lat_b) * math.sin(half_lon) ** 2
    return 2 * 6371.0 * math.asin(math.sqrt(min(1.0, chord)))


def _sha256(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


_SETTINGS_SHA256 = _sha256({"fingerprint": "0123456789abcdef", "settings": _SETTINGS})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--traces", type=int, default=100_000, metavar="N")
    parser.add_argument("--dataset_path", default="/data/photos", metavar="PATH")
    options = parser.parse_args()
    make_traces(options.folder, options.traces, dataset_path=options.dataset_path)


if __name__ == "__main__":
    main()
