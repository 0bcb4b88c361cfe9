"""Rebuilds what a teacher was sent from a trace and its dataset row, by the rules of docs/trace-format.md.

Written from that page: it imports nothing of distil, so a rule that the page lacks would show here. Each
section has the title of the page's section that it follows.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import hashlib
import io
import itertools
import json
import math
import random
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

Json = Any
Size = tuple[int, int]
GreyRange = tuple[float, float]

TOOLS_BLOCK = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{schemas}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""
SIZE_SENTENCE = "The image is {width}×{height} pixels (width × height)."
MAX_ANSWER_KM = 20000.0


# --- Hashes


def json_sha256(value: Json) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def integrity_sha256(trace: Mapping[str, Json]) -> str:
    return json_sha256({name: value for name, value in trace.items() if name != "integrity_sha256"})


def settings_sha256(trace: Mapping[str, Json]) -> str:
    return json_sha256({"settings": trace["settings"], "fingerprint": trace["dataset"]["fingerprint"]})


def pixel_sha256(image: Image.Image) -> str:
    data = f"{image.mode} {image.width}x{image.height}\n".encode()
    if image.mode == "P":
        numbers = image.getpalette("RGB") or []
        data += b"[" + b", ".join(str(number).encode() for number in numbers) + b"]"
    return hashlib.sha256(data + image.tobytes()).hexdigest()


def picture_facts(image: Image.Image) -> Json:
    return {
        "width_px": image.width,
        "height_px": image.height,
        "mode": image.mode,
        "pixel_sha256": pixel_sha256(image),
    }


# --- Pictures as sent


@dataclass(frozen=True)
class Sent:
    """A picture file as the teacher got it."""

    media_type: str
    size: Size
    data: bytes = field(repr=False)
    grey_range: GreyRange | None = None

    def facts(self) -> Json:
        facts: dict[str, Json] = {
            "media_type": self.media_type,
            "width_px": self.size[0],
            "height_px": self.size[1],
            "num_bytes": len(self.data),
            "sha256": hashlib.sha256(self.data).hexdigest(),
        }
        return facts if self.grey_range is None else facts | {"grey_range": list(self.grey_range)}

    def url(self) -> str:
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode()}"


def read_row(trace: Mapping[str, Json]) -> tuple[bytes, Image.Image]:
    """The row's picture file and what `datasets` decodes from it."""
    table = datasets.load_from_disk(trace["dataset_path"])
    cell = table.cast_column("image", datasets.Image(decode=False))[trace["sample_index"]]["image"]
    data = Path(cell["path"]).read_bytes() if cell["bytes"] is None else cell["bytes"]
    return data, table[trace["sample_index"]]["image"]


def file_facts(data: bytes) -> Json:
    with Image.open(io.BytesIO(data)) as image:
        orientation = image.getexif().get(0x0112)
        return {
            "file_sha256": hashlib.sha256(data).hexdigest(),
            "file_format": image.format,
            "exif_orientation": orientation,
        }


def sent_photo(image: Image.Image, rule: Mapping[str, Json], file: bytes) -> Sent:
    """The file that is sent of a photo: its own, bare, where it can be, else a new JPEG."""
    if sent_size(image.size, rule) == image.size:
        bare_file = own_file(image, file)
        if bare_file is not None:
            return Sent(f"image/{file_facts(file)['file_format'].lower()}", image.size, bare_file)
    return sent_picture(image, rule, grey_range_of(image))


def sent_picture(image: Image.Image, rule: Mapping[str, Json], grey_range: GreyRange | None) -> Sent:
    """The new JPEG that is sent of a picture; `grey_range` is for deep grey alone."""
    size = sent_size(image.size, rule)
    shown_range = grey_range if is_deep_grey(image) else None
    flat = eight_bits(image, shown_range)
    if flat.size != size:
        flat = flat.resize(size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    flat.save(file, "JPEG", quality=90, comment=None)
    return Sent("image/jpeg", size, file.getvalue(), shown_range)


def own_file(image: Image.Image, file: bytes) -> bytes | None:
    """A photo's own file without its metadata, None where it is not to be sent."""
    with Image.open(io.BytesIO(file)) as opened:
        own_mode = opened.mode
    if own_mode != image.mode or own_mode not in ("RGB", "L"):
        return None
    facts = file_facts(file)
    if facts["exif_orientation"] not in (None, 1):
        return None
    return bare_file(facts["file_format"], file)


def bare_file(file_format: str, file: bytes) -> bytes | None:
    """The file without its metadata, None where it does not follow the page's rules."""
    cut = {"JPEG": bare_jpeg, "PNG": bare_png}.get(file_format)
    try:
        return cut(file) if cut else None
    except (NotBare, IndexError):
        return None


class NotBare(Exception):
    """A file that is not cut, because something in it is not as the rules have it."""


def need(condition: object) -> None:
    if not condition:
        raise NotBare


def bare_jpeg(file: bytes) -> bytes:
    need(file[:2] == b"\xff\xd8")
    kept, at = file[:2], 2
    while True:
        need(file[at] == 0xFF)
        while file[at] == 0xFF:
            at += 1
        marker = file[at]
        if marker == 0xD9:
            return kept + b"\xff\xd9"
        length = file[at + 1] * 256 + file[at + 2]
        stop = at + 1 + length
        need(length >= 2 and stop <= len(file))
        body = file[at + 3 : stop]
        at = stop
        if marker == 0xDA:
            while not (file[at] == 0xFF and file[at + 1] not in {0, 0xFF, *range(0xD0, 0xD8)}):
                at += 1
            scan = file[stop:at].rstrip(b"\xff")  # what is left of a run of FF is fill bytes
            kept += segment(marker, body) + scan
        elif (0xC0 <= marker <= 0xCF and marker != 0xC8) or marker in (0xDB, 0xDD):
            kept += segment(marker, body)
        elif marker == 0xE0 and body[:5] == b"JFIF\0" and len(body) >= 14:
            kept += segment(marker, body[:12] + b"\0\0")
        elif marker == 0xEE and body[:5] == b"Adobe" and len(body) >= 12:
            kept += segment(marker, body[:12])
        else:
            need(0xE0 <= marker <= 0xEF or marker == 0xFE)


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def bare_png(file: bytes) -> bytes:
    need(file[:8] == b"\x89PNG\r\n\x1a\n")
    kept, kinds, at = file[:8], [], 8
    while not kinds or kinds[-1] != b"IEND":
        need(at + 12 <= len(file))
        (length,) = struct.unpack(">I", file[at : at + 4])
        kind, stop = file[at + 4 : at + 8], at + 12 + length
        need(stop <= len(file))
        need(kind != b"IHDR" or (length == 13 and file[at + 17] in (0, 2)))
        need(kind != b"IEND" or length == 0)
        need(kind not in (b"acTL", b"fcTL", b"fdAT"))
        is_critical = 0x41 <= kind[0] <= 0x5A
        need(not is_critical or kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND"))
        kinds.append(kind)
        if is_critical and kind != b"PLTE":
            kept += file[at:stop]
        at = stop
    need(kinds[0] == b"IHDR" and kinds.count(b"IHDR") == 1)
    pieces = [kind for kind, _ in itertools.groupby(kinds)]
    need(pieces.count(b"IDAT") == 1)
    return kept


def eight_bits(image: Image.Image, grey_range: GreyRange | None) -> Image.Image:
    """The picture in mode RGB or L."""
    if image.mode in ("RGB", "L"):
        return image
    if grey_range is not None:
        return scaled_grey(image, grey_range)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def is_deep_grey(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def grey_range_of(image: Image.Image) -> GreyRange | None:
    """The range that deep grey has by itself; None for other pictures."""
    if not is_deep_grey(image):
        return None
    values = [value for value in np.asarray(image).astype(float).flat if math.isfinite(value)]
    low, high = min(values, default=0.0), max(values, default=0.0)
    for scale in [1.0] * (image.mode == "F") + [255.0, 65535.0]:
        if low >= 0 and high <= scale:
            return 0.0, scale
    return low, high


def scaled_grey(image: Image.Image, grey_range: GreyRange) -> Image.Image:
    low, high = grey_range
    values = np.asarray(image).astype(float)
    if low == high:
        return Image.new("L", image.size, 0)
    shown = (np.minimum(np.maximum(values, low), high) - low) * (255 / (high - low))
    shown[np.isnan(values)] = 0
    return Image.fromarray(np.rint(shown).astype(np.uint8))


def sent_size(size: Size, rule: Mapping[str, Json]) -> Size:
    width, height = size
    factor, area = rule["factor_px"], rule["max_area_px"]
    scale = 1.0
    if rule["max_side_px"] is not None and max(size) > rule["max_side_px"]:
        scale = rule["max_side_px"] / max(size)
    if min(size) * scale < rule["min_side_px"]:
        scale = rule["min_side_px"] / min(size)
    new = [max(factor, round(side * scale / factor) * factor) for side in size]
    if area is not None and new[0] * new[1] > area:
        shrink = math.sqrt(width * height / area)
        new = [max(factor, math.floor(side / shrink / factor) * factor) for side in size]
    elif new[0] * new[1] < rule["min_area_px"]:
        grow = math.sqrt(rule["min_area_px"] / (width * height))
        new = [math.ceil(side * grow / factor) * factor for side in size]
    return new[0], new[1]


# --- Boxes


def whole_pixels(
    box: Sequence[float], frame: str, sent: Size, size: Size
) -> tuple[tuple[int, int, int, int], bool]:
    """A teacher's four numbers in whole pixels of the picture they crop, and whether they were clamped."""
    y_first = frame == "rel1000_yx"
    x1, y1, x2, y2 = (box[1], box[0], box[3], box[2]) if y_first else box
    units = {"pixel": sent, "rel1": (1, 1)}.get(frame, (1000, 1000))
    left, right, clamped_x = axis_pixels(x1, x2, units[0], size[0])
    top, bottom, clamped_y = axis_pixels(y1, y2, units[1], size[1])
    return (left, top, right, bottom), clamped_x or clamped_y


def axis_pixels(low: float, high: float, units: int, side: int) -> tuple[int, int, bool]:
    low, high = (min(max(value, -units), 2 * units) * side / units for value in (low, high))
    start, stop = math.floor(low + 1e-6), math.ceil(high - 1e-6)
    if start < 0 or stop > side:
        return max(0, start), min(side, stop), True
    if stop == start:
        stop += 1
    return start, stop, False


def four_numbers(value: Json) -> list[float]:
    return [float(number) for number in (json.loads(value) if isinstance(value, str) else value)]


# --- Calls and results


@dataclass
class Scene:
    """The pictures that a call works on, and the sizes at which the teacher saw them."""

    original: Image.Image
    current: Image.Image
    original_sent: Size
    current_sent: Size
    grey_ranges: Mapping[str, GreyRange]
    corner: tuple[int, int] | None = (0, 0)


def raw_arguments(call: Mapping[str, Json]) -> Json:
    return call["raw_arguments"] if "raw_arguments" in call else {"code": call.get("code")}


def stored_arguments(call: Mapping[str, Json]) -> Json:
    return {"code": call["code"]} if "code" in call else call["tool_arguments"]


def resolve(call: Mapping[str, Json], scene: Scene, settings: Mapping[str, Json]) -> tuple[Json, bool]:
    """The stored arguments that follow from a successful call's raw ones, and `clamped`."""
    raw = raw_arguments(call)
    if call["tool_name"] == "image_rotate_tool":
        angle = float(raw["angle"])
        return {"angle": int(angle) if angle.is_integer() and abs(angle) < 1e15 else angle}, False
    if call["tool_name"] == "python_code_tool":
        return {"code": stored_code(raw["code"])}, False
    numbers, frame = four_numbers(raw["bbox_2d"]), settings["coordinates"]
    if settings["crop_from"] == "current":
        box, clamped = whole_pixels(numbers, frame, scene.current_sent, scene.current.size)
        return {"bbox_2d": list(box)}, clamped
    box, clamped = whole_pixels(numbers, frame, scene.original_sent, scene.original.size)
    if scene.corner is not None:
        x, y = scene.corner
        inner = [box[0] - x, box[1] - y, box[2] - x, box[3] - y]
        if min(inner) >= 0 and inner[2] <= scene.current.width and inner[3] <= scene.current.height:
            return {"bbox_2d": inner}, clamped
    return {"bbox_2d": list(box), "crop_from": "original"}, clamped


def apply(name: str, arguments: Mapping[str, Json], scene: Scene) -> tuple[Scene, str | None]:
    """The scene after a successful call, still seen as before, and what its code printed."""
    if name == "image_rotate_tool":
        return moved(scene, scene.current.rotate(arguments["angle"], expand=True), None), None
    if name == "python_code_tool":
        picture, stdout = run_code(arguments["code"], scene.current)
        return moved(scene, picture, None), stdout
    box = tuple(arguments["bbox_2d"])
    if arguments.get("crop_from") == "original":
        return moved(scene, scene.original.crop(box), (box[0], box[1])), None
    corner = scene.corner and (scene.corner[0] + box[0], scene.corner[1] + box[1])
    return moved(scene, scene.current.crop(box), corner), None


def moved(scene: Scene, picture: Image.Image, corner: tuple[int, int] | None) -> Scene:
    ranges = ranges_with(picture, scene.grey_ranges)
    return Scene(scene.original, picture, scene.original_sent, scene.current_sent, ranges, corner)


def ranges_with(picture: Image.Image, ranges: Mapping[str, GreyRange]) -> Mapping[str, GreyRange]:
    """The ranges by mode, the first picture of each mode having set its own."""
    grey_range = grey_range_of(picture)
    return ranges if grey_range is None else {picture.mode: grey_range, **ranges}


def stored_code(code: str) -> str:
    lines = code.strip().splitlines()
    if len(lines) >= 2 and lines[0].startswith("```") and lines[-1].strip() == "```":
        code = "\n".join(lines[1:-1]) + "\n"
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except (SyntaxError, ValueError):
        return code
    names = [node for node in nodes if isinstance(node, ast.Name)]
    used = {name.id for name in names if isinstance(name.ctx, ast.Load)}
    bound = {name.id for name in names if isinstance(name.ctx, ast.Store)}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    wanted = [("Image", "from PIL import Image"), ("np", "import numpy as np")]
    imports = "; ".join(line for name, line in wanted if name in used - bound)
    if not imports:
        return code
    joined = f"{imports}; {code.lstrip()}"
    try:
        ast.parse(joined)
    except SyntaxError:
        return f"{imports}\n{code}"
    return joined


def run_code(code: str, image: Image.Image) -> tuple[Image.Image, str]:
    """The recipe's exec, with chance seeded, and pictures passed in and out without their metadata."""
    seed = zlib.crc32(code.encode(), zlib.crc32(repr((image.mode, image.size)).encode()))
    random.seed(seed)
    np.random.seed(seed)
    scope: dict[str, Any] = {"image": bare(image), "result_image": None}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, scope)
    return bare(scope["result_image"]), printed.getvalue()


def bare(image: Image.Image) -> Image.Image:
    """The picture with mode, pixels, palette and transparency, and nothing else in its `info`."""
    kept = image.copy()
    kept.info = {name: value for name, value in image.info.items() if name == "transparency"}
    return kept


# --- Messages


def opening_messages(trace: Mapping[str, Json], photo: Sent) -> list[Json]:
    settings, fields = trace["settings"], trace["metadata"].get("prompt_fields", {})
    system, question = settings["system_prompt"], settings["user_prompt"]
    if fields:
        names = "|".join(re.escape("{" + name + "}") for name in fields)
        question = "".join(fields.get(part[1:-1], part) for part in re.split(f"({names})", question))
    if settings["tool_mode"] == "text" and settings["tool_schemas"]:
        schemas = [json.dumps(schema, ensure_ascii=False) for schema in settings["tool_schemas"]]
        system += "\n\n" + TOOLS_BLOCK.replace("{schemas}", "\n".join(schemas))
    if settings["states_size"]:
        width, height = photo.size
        question += "\n\n" + SIZE_SENTENCE.format(width=width, height=height)
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": [picture_part(photo), text_part(question)]},
    ]


def turn_messages(turn: Mapping[str, Json], calls: Sequence[tuple[Json, Sent | None]]) -> list[Json]:
    """A turn and the answers to its calls, each with the picture it made, as later requests carry them."""
    if turn["call_form"] != "native":
        parts = [part for call, sent in calls for part in tool_response(call, sent)]
        results = [{"role": "user", "content": parts}] if parts else []
        return [{"role": "assistant", "content": turn["assistant_response"]}, *results]
    ids = native_ids(turn["turn"], [call.get("call_id") for call, _ in calls])
    functions = [
        {"id": call_id, "type": "function", "function": native_function(call)}
        for call_id, (call, _) in zip(ids, calls, strict=True)
    ]
    said = {"role": "assistant", "content": turn["assistant_response"] or None, "tool_calls": functions}
    results = [
        {"role": "tool", "tool_call_id": call_id, "content": result_text(call)}
        for call_id, (call, _) in zip(ids, calls, strict=True)
    ]
    pictures = [picture_part(sent) for _, sent in calls if sent is not None]
    return [said, *results, *([{"role": "user", "content": pictures}] if pictures else [])]


def native_ids(turn: int, given: Sequence[str | None]) -> list[str]:
    if None in given or len(set(given)) < len(given):
        return [f"call_{turn}_{position}" for position in range(1, len(given) + 1)]
    return [str(call_id) for call_id in given]


def native_function(call: Mapping[str, Json]) -> Json:
    raw = raw_arguments(call)
    name = re.sub(r"[^A-Za-z0-9_-]", "_", call["tool_name"])[:64] or "unnamed"
    return {"name": name, "arguments": json.dumps(raw if isinstance(raw, dict) else {}, ensure_ascii=False)}


def tool_response(call: Mapping[str, Json], sent: Sent | None) -> list[Json]:
    text = result_text(call)
    if sent is None:
        return [text_part(f"<tool_response>\n{text}\n</tool_response>")]
    return [text_part("<tool_response>\n"), picture_part(sent), text_part(f"\n{text}\n</tool_response>")]


def result_text(call: Mapping[str, Json]) -> str:
    text: str = call["message"]
    return f"{text}\nOutput:\n{call['stdout'].rstrip()}" if call.get("stdout") else text


def text_part(text: str) -> Json:
    return {"type": "text", "text": text}


def picture_part(sent: Sent) -> Json:
    return {"type": "image_url", "image_url": {"url": sent.url()}}


def encoded(messages: Sequence[Json]) -> bytes:
    """The messages as they stand in a request's body."""
    return b"[" + b",".join(json.dumps(message).encode() for message in messages) + b"]"


# --- Requests


@dataclass(frozen=True)
class Request:
    """A request's body: its fields but `messages`, and the bytes of `messages`."""

    fields: Json
    messages: bytes = field(repr=False)


def request_fields(trace: Mapping[str, Json], turn: int) -> Json:
    settings = trace["settings"]
    token_field = settings.get("token_field", "max_tokens")
    fields = {"model": settings["model"], token_field: settings["max_tokens"]}
    if settings["temperature"] is not None:
        fields["temperature"] = settings["temperature"]
    if settings["sends_seed"]:
        fields["seed"] = turn_seed(settings["seed"], trace["sample_index"], turn)
    if settings["tool_mode"] == "native":
        fields["tools"] = settings["tool_schemas"]
    return fields


def turn_seed(run_seed: int, sample_index: int, turn: int) -> int:
    digest = hashlib.sha256(f"{run_seed}:{sample_index}:{turn}".encode()).digest()
    return int.from_bytes(digest[:4], "big") // 2


# --- Reward


def reward_score(answer: Json, truth: Json) -> Json:
    distance = MAX_ANSWER_KM if answer is None else distance_km(answer, truth)
    score = 0.0 if answer is None else math.exp(-distance / 1492.7)
    within = {
        f"acc@{radius}km": float(answer is not None and distance <= radius)
        for radius in (1, 25, 200, 750, 2500)
    }
    return {
        "score": score,
        "distance@km": distance,
        "geoguessr@point": 5000 * score,
        "parse_success": answer is not None,
        **within,
    }


def distance_km(answer: Json, truth: Json) -> float:
    lat_a, lat_b = math.radians(answer["lat"]), math.radians(truth["lat"])
    half_lat, half_lon = (lat_b - lat_a) / 2, math.radians(truth["lon"] - answer["lon"]) / 2
    chord = math.sin(half_lat) ** 2 + math.cos(lat_a) * math.cos(lat_b) * math.sin(half_lon) ** 2
    return 2 * 6371.0 * math.asin(math.sqrt(min(1.0, chord)))


# --- all of a trace


@dataclass(frozen=True)
class Rebuilt:
    """What follows from a trace's settings, turns and actions and its row."""

    image: Json  # as the trace's `image`
    requests: list[Request]
    calls: list[Json]  # of each call what the trace's entry says of what came of it


def rebuild(trace: Mapping[str, Json]) -> Rebuilt:
    """Rebuild every request of a trace and everything it stores of its pictures."""
    settings, rule = trace["settings"], trace["settings"]["view_rule"]
    file, picture = read_row(trace)
    photo = sent_photo(picture, rule, file)
    scene = Scene(picture, picture, photo.size, photo.size, ranges_with(picture, {}))
    messages = opening_messages(trace, photo)
    requests, outcomes = [], []
    for turn in trace["conversation_log"]:
        requests.append(Request(request_fields(trace, turn["turn"]), encoded(messages)))
        shown: list[tuple[Json, Sent | None]] = []
        for call in trace["tool_calls_log"]:
            if call["turn"] == turn["turn"]:
                scene, sent, outcome = run_call(call, scene, settings)
                shown.append((call, sent))
                outcomes.append(outcome)
        messages += turn_messages(turn, shown)
    if trace["metadata"]["stop_reason"] == "context_overflow":  # one more was sent, and refused
        requests.append(Request(request_fields(trace, len(trace["conversation_log"]) + 1), encoded(messages)))
    image = {**file_facts(file), **picture_facts(picture), "sent": photo.facts()}
    return Rebuilt(image, requests, outcomes)


def run_call(
    call: Mapping[str, Json], scene: Scene, settings: Mapping[str, Json]
) -> tuple[Scene, Sent | None, Json]:
    """The scene after a call, the picture it shows, and what the trace says of it; a failure changes nothing."""
    if not call["success"]:
        return scene, None, {}
    arguments, clamped = resolve(call, scene, settings)
    outcome: dict[str, Json] = {"arguments": arguments, "clamped": clamped}
    scene, stdout = apply(call["tool_name"], stored_arguments(call), scene)
    sent = sent_picture(scene.current, settings["view_rule"], scene.grey_ranges.get(scene.current.mode))
    scene.current_sent = sent.size
    outcome["result"] = {**picture_facts(scene.current), "sent": sent.facts()}
    if stdout is not None:
        outcome["stdout"] = stdout
    if settings["keep_pictures"]:
        outcome["picture"] = sent.url()
    return scene, sent, outcome
