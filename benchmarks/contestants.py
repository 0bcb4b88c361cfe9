"""Programs that do what a distil run does, without its promises: what its speed is measured against.

    python benchmarks/contestants.py NAME --api_base URL --dataset_path DIR --num_samples N --max_workers K --output_dir DIR

All ask for the same calls, cut the same boxes, send the same pictures and write a trace a sample; how they
ask, and what they keep in memory, is what they differ in:

  raw                 sockets in threads, a persistent connection each: the floor
  openai_post         threads, an `openai` client each, which posts ready bytes: the baseline
  openai_post_hashed  the same with the SHA-256 of every picture's pixels and bytes, which a trace holds
  earlier             threads and `chat.completions.create()`; all rows decoded first, all traces written last
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import math
import re
import socket
import ssl
import threading
import urllib.parse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL
from PIL import Image

Json = Any
Ask = Callable[[list[bytes]], bytes]  # messages, ready to be sent, to a completion

MODEL = "scripted-qwen3-vl"
SYSTEM = (
    "You are a helpful assistant.\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
    '{"type": "function", "function": {"name": "image_zoom_in_tool", "description": "Zoom in on a region of the image: '
    'returns the region at full resolution.", "parameters": {"type": "object", "properties": {"bbox_2d": {"type": '
    '"array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4, "description": "The box to zoom in on, [x1, '
    'y1, x2, y2], each from 0 to 1000 relative to the width and height of the most recent image."}}, "required": '
    '["bbox_2d"]}}}\n</tools>\n\nFor each function call, return a json object with function name and arguments within '
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>"
)
QUESTION = (
    "Where was this photo taken? Look for clues: architecture, vegetation and terrain, text and language, road signs "
    "and markings, vehicles and the side they drive on, climate, cultural elements, landmarks. Use the tools to look "
    "closer. Give your final answer in decimal degrees as \\boxed{latitude, longitude}."
)
FIELDS: Json = {"model": MODEL, "max_tokens": 2048, "temperature": 0.7, "seed": 1}
FIELDS_TAIL = b"," + json.dumps(FIELDS).encode()[1:]
UNHASHED = "0" * 64
SUCCESS = "Success: Image zoomed in."


@dataclass(frozen=True)
class Work:
    """What is to be done."""

    api_base: str
    dataset_path: str
    num_samples: int
    max_workers: int
    output_dir: Path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=CONTESTANTS)
    parser.add_argument("--api_base", required=True)
    parser.add_argument("--dataset_path", required=True)
    parser.add_argument("--num_samples", type=int, required=True)
    parser.add_argument("--max_workers", type=int, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    options = vars(parser.parse_args())
    run = CONTESTANTS[options.pop("name")]
    work = Work(**options)
    work.output_dir.mkdir(parents=True, exist_ok=True)
    run(work)


# --- how they ask ---


def run_raw(work: Work) -> None:
    address = urllib.parse.urlsplit(work.api_base)
    place, path = (address.hostname, address.port), f"{address.path}/chat/completions"
    head = f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\nContent-Length: "

    def new_ask() -> Ask:
        sock = socket.create_connection(place)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = sock.makefile("rb")

        def ask(messages: list[bytes]) -> bytes:
            body = request_body(messages)
            sock.sendall(b"%s%d\r\n\r\n%s" % (head.encode(), len(body), body))
            num_bytes = 0
            while (line := reader.readline().strip()) != b"":
                if line.lower().startswith(b"content-length:"):
                    num_bytes = int(line.partition(b":")[2])
            return reader.read(num_bytes)

        return ask

    solve_all(work, new_ask, hashes=False)


def run_openai_post(work: Work, hashes: bool = False) -> None:
    import openai  # noqa: PLC0415

    tls = ssl.create_default_context()  # one for all: a client that makes its own takes 20 ms of CPU

    def new_ask() -> Ask:
        http_client = openai.DefaultHttpxClient(verify=tls)
        client = openai.OpenAI(
            base_url=work.api_base, api_key="EMPTY", max_retries=0, http_client=http_client
        )
        options: Any = {"headers": {"Content-Type": "application/json"}}

        def ask(messages: list[bytes]) -> bytes:
            body = request_body(messages)
            return client.post("/chat/completions", cast_to=bytes, content=body, options=options)

        return ask

    solve_all(work, new_ask, hashes)


def run_openai_post_hashed(work: Work) -> None:
    run_openai_post(work, hashes=True)


def request_body(messages: list[bytes]) -> bytes:
    return b'{"messages":[%s]%s' % (b",".join(messages), FIELDS_TAIL)


def solve_all(work: Work, new_ask: Callable[[], Ask], hashes: bool) -> None:
    """Each thread takes a row, asks, cuts and writes; a row is read when its turn comes."""
    import datasets  # noqa: PLC0415

    rows = datasets.load_from_disk(work.dataset_path).cast_column("image", datasets.Image(decode=False))
    own = threading.local()

    def solve(index: int) -> None:
        if not hasattr(own, "ask"):
            own.ask = new_ask()
        row = rows[index]
        data = row.pop("image")["bytes"]
        trace = solve_one(own.ask, Sample(index, row, data, hashes, work.dataset_path))
        write_trace(work.output_dir, trace)

    with ThreadPoolExecutor(work.max_workers) as pool:
        list(pool.map(solve, range(work.num_samples)))


# --- one sample ---


@dataclass(frozen=True)
class Sample:
    """A row, its picture's file, and whether the hashes of a trace are computed."""

    index: int
    row: Json
    data: bytes
    hashes: bool
    dataset_path: str


def solve_one(ask: Ask, sample: Sample) -> Json:
    """A conversation to its end, and its trace."""
    picture: Image.Image = Image.open(io.BytesIO(sample.data))
    photo = facts(picture, sample.data, sample.hashes)
    messages = [message_bytes("system", SYSTEM), picture_message(sample.data, after=QUESTION)]
    turns: list[Json] = []
    calls: list[Json] = []
    while True:
        completion = json.loads(ask(messages))
        text = completion["choices"][0]["message"]["content"]
        turns.append(turn_log(len(turns) + 1, text, completion))
        call = read_call(text)
        if call is None:
            return trace_of(sample, photo, turns, calls)
        box = box_px(call["arguments"]["bbox_2d"], picture.size)
        picture = picture.crop(box)
        sent = jpeg_bytes(picture)
        calls.append(call_log(len(turns), call, box, facts(picture, sent, sample.hashes)))
        messages.append(message_bytes("assistant", text))
        messages.append(picture_message(sent, "<tool_response>\n", f"\n{SUCCESS}\n</tool_response>"))


def read_call(text: str) -> Json:
    found = re.search(r"<tool_call>\s*(.*?)\s*</tool_call>", text, re.DOTALL)
    return None if found is None else json.loads(found[1])


def box_px(box: list[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    width, height = size
    left, top, right, bottom = (
        part * side / 1000 for part, side in zip(box, (width, height, width, height), strict=True)
    )
    return math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)


def jpeg_bytes(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def message_bytes(role: str, content: Json) -> bytes:
    return json.dumps({"role": role, "content": content}).encode()


def picture_message(data: bytes, before: str = "", after: str = "") -> bytes:
    """A user's message with a picture between two texts; the picture is not passed through json.dumps."""
    parts = [b'{"type":"image_url","image_url":{"url":"data:image/jpeg;base64,%s"}}' % base64.b64encode(data)]
    if before:
        parts.insert(0, json.dumps({"type": "text", "text": before}).encode())
    parts.append(json.dumps({"type": "text", "text": after}).encode())
    return b'{"role":"user","content":[%s]}' % b",".join(parts)


# --- the trace ---


def facts(picture: Image.Image, sent: bytes, hashes: bool) -> Json:
    """What a trace says of a picture and of its file as it was sent."""
    size = {"width_px": picture.width, "height_px": picture.height}
    pixel_sha256 = sent_sha256 = UNHASHED
    if hashes:
        pixels = hashlib.sha256(f"{picture.mode} {picture.width}x{picture.height}\n".encode())
        pixels.update(picture.tobytes())
        pixel_sha256, sent_sha256 = pixels.hexdigest(), hashlib.sha256(sent).hexdigest()
    file = {"media_type": "image/jpeg", **size, "num_bytes": len(sent), "sha256": sent_sha256}
    return {**size, "mode": picture.mode, "pixel_sha256": pixel_sha256, "sent": file}


def turn_log(number: int, text: str, completion: Json) -> Json:
    return {
        "turn": number,
        "assistant_response": text,
        "reasoning": None,
        "reasoning_field": None,
        "finish_reason": completion["choices"][0]["finish_reason"],
        "call_form": "text",
        "usage": completion["usage"],
        "model": completion["model"],
    }


def call_log(turn: int, call: Json, box: tuple[int, ...], result: Json) -> Json:
    return {
        "turn": turn,
        "tool_name": call["name"],
        "tool_arguments": {"bbox_2d": list(box)},
        "raw_arguments": call["arguments"],
        "success": True,
        "message": SUCCESS,
        "clamped": False,
        "result": result,
    }


def trace_of(sample: Sample, photo: Json, turns: list[Json], calls: list[Json]) -> Json:
    """A trace with the fields and the size of distil's."""
    row, path = sample.row, sample.dataset_path
    answer = [
        float(part) for part in re.findall(r"-?[\d.]+", turns[-1]["assistant_response"].split("\\boxed")[-1])
    ]
    distance_km = haversine_km(answer[0], answer[1], row["lat"], row["lon"])
    score = math.exp(-distance_km / 1492.7)
    within = {f"acc@{radius}km": float(distance_km <= radius) for radius in (1, 25, 200, 750, 2500)}
    return {
        "format": "benchmark",
        "dataset_path": path,
        "sample_index": sample.index,
        "sample_data": row,
        "conversation_log": turns,
        "tool_calls_log": calls,
        "final_response": turns[-1]["assistant_response"],
        "reward_score": {
            "score": score,
            "distance@km": distance_km,
            "geoguessr@point": 5000 * score,
            **within,
            "parse_success": True,
        },
        "metadata": {
            "total_turns": len(turns),
            "num_tool_calls": len(calls),
            "parse_success": True,
            "distance_km": distance_km,
            "score": score,
            "stop_reason": "answered",
            "answer": {"lat": answer[0], "lon": answer[1]},
            "truth": {"lat": row["lat"], "lon": row["lon"]},
            "tokens": {"prompt_tokens": 9000, "completion_tokens": 360},
            "settings_sha256": UNHASHED,
            "versions": {"pillow": PIL.__version__},
        },
        "dataset": {"source": path, "kind": "disk", "split": None, "fingerprint": "0" * 16, "num_rows": 0},
        "image": {"file_sha256": photo["sent"]["sha256"], "file_format": "JPEG", **photo},
        "settings": {
            "system_prompt": SYSTEM,
            "user_prompt": QUESTION,
            **FIELDS,
            "tool_schemas": SYSTEM[200:900],
        },
        "integrity_sha256": UNHASHED,
    }


def haversine_km(lat_a: float, lon_a: float, lat_b: float, lon_b: float) -> float:
    low, high = math.radians(lat_a), math.radians(lat_b)
    half_lat, half_lon = (high - low) / 2, math.radians(lon_b - lon_a) / 2
    chord = math.sin(half_lat) ** 2 + math.cos(low) * math.cos(high) * math.sin(half_lon) ** 2
    return 2 * 6371.0 * math.asin(math.sqrt(min(1.0, chord)))


def write_trace(folder: Path, trace: Json, indent: int | None = None) -> None:
    """A file that is whole or not there; not synced."""
    path = folder / f"trace_{trace['sample_index']:05d}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(trace, ensure_ascii=False, indent=indent), encoding="utf-8")
    temporary.replace(path)


# --- the earlier approach ---


def run_earlier(work: Work) -> None:
    """As the system before did it: everything in memory, every request made anew from Python objects."""
    import datasets  # noqa: PLC0415
    import openai  # noqa: PLC0415

    rows = datasets.load_from_disk(work.dataset_path)
    samples = [rows[index] for index in range(work.num_samples)]
    client = openai.OpenAI(base_url=work.api_base, api_key="EMPTY", max_retries=0)
    traces: dict[int, Json] = {}

    def solve(index: int) -> None:
        row = dict(samples[index])
        picture = row.pop("image")
        data = jpeg_bytes(picture)
        messages: list[Json] = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": [url_part(data), {"type": "text", "text": QUESTION}]},
        ]
        photo = facts(picture, data, hashes=False)
        turns: list[Json] = []
        calls: list[Json] = []
        while True:
            completion = client.chat.completions.create(messages=messages, **FIELDS)
            text = completion.choices[0].message.content
            turns.append(turn_log(len(turns) + 1, text, completion.model_dump()))
            call = read_call(text)
            if call is None:
                break
            box = box_px(call["arguments"]["bbox_2d"], picture.size)
            picture = picture.crop(box)
            sent = jpeg_bytes(picture)
            calls.append(call_log(len(turns), call, box, facts(picture, sent, hashes=False)))
            messages.append({"role": "assistant", "content": text})
            messages.append({"role": "user", "content": [url_part(sent), {"type": "text", "text": SUCCESS}]})
        sample = Sample(index, row, data, False, work.dataset_path)
        traces[index] = trace_of(sample, photo, turns, calls)

    with ThreadPoolExecutor(work.max_workers) as pool:
        list(pool.map(solve, range(work.num_samples)))
    for index in sorted(traces):
        write_trace(work.output_dir, traces[index], indent=2)


def url_part(data: bytes) -> Json:
    url = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


CONTESTANTS = {
    "raw": run_raw,
    "openai_post": run_openai_post,
    "openai_post_hashed": run_openai_post_hashed,
    "earlier": run_earlier,
}

if __name__ == "__main__":
    main()
