"""One trace of any program as its page shows it: every field looked at, none believed.

Nothing here raises for what a trace may hold: what is missing or of another form is said to be, or left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distil.errors import DistilError
from distil.messages.tags import split_thinking, text_outside
from distil.records import CropFrom, Frame, Json, Size, mapping_of
from distil.store.summary import call_name, call_succeeded, trace_answer, trace_calls, trace_truth
from distil.store.trace_file import raw_arguments
from distil.store.trace_settings import json_sha256, teacher_lines
from distil.tasks import task_of
from distil.tasks.base import Task
from distil.tools.base import Tool
from distil.tools.toolbox import find_tool
from distil.viewer.pictures import MAX_CALLS, call_arguments, kept_picture
from distil.viewer.run_facts import tool_names
from distil.viewer.visible import CutText, coloured, finite, json_text, plain, pointer_to, shown, visible

Fields = dict[str, Any]  # what a template is given

_LOGS = ("conversation_log", "conversation_history")
_CALLS = ("tool_calls_log", "tool_calls")
_TEXTS = ("assistant_response", "response", "content")
_FRAMES = {
    Frame.PIXEL: "pixels of the picture as sent",
    Frame.REL1000: "0–1000",
    Frame.REL1000_YX: "0–1000, y first",
    Frame.REL1: "0–1",
}
_MAX_TURNS = 1000  # of one page; what follows is in the raw JSON
_MAX_COLOURED = 300  # calls whose code is coloured, which takes a hundredth of a second each
_MAX_FIELD_CHARS = 400


def view_of(trace: Mapping[str, Json], timings: Mapping[str, Json]) -> Fields:
    """What the page of a trace shows; `timings` is its line of `timings.jsonl`, empty where there is none."""
    settings, metadata = mapping_of(trace.get("settings")), mapping_of(trace.get("metadata"))
    calls = _calls(trace)
    seconds = timings.get("turn_seconds")
    turns, num_left_out = _turns(trace, seconds if isinstance(seconds, list) else [], calls)
    task = _task(trace)
    return {
        "task": task.name if task else _line(settings.get("task"), "not known"),
        "task_is_known": task is not None,
        "teacher": [_line(line) for line in teacher_lines(settings)],
        "is_edited": _is_edited(trace),
        "format": _line(trace.get("format"), "another program's"),
        "prompts": _prompts(settings, metadata),
        "tools": _offered(settings),
        "turns": turns,
        "num_left_out": num_left_out,
        "stray_calls": _stray_calls(calls, turns),
        "num_calls_left_out": len(trace_calls(trace)) - len(calls),
        "photo": _photo(trace),
        "result": _result(trace, task),
        "tokens": _token_rows(turns, finite(timings.get("seconds"))),
        "facts": _facts(trace, settings, metadata),
        "row": [(_line(name), _short_value(value)) for name, value in _items(trace.get("sample_data"))],
        "settings": shown(json_text(settings), pointer_to("settings"), 20_000) if settings else None,
        "stop_reason": _line(metadata.get("stop_reason"), "not stated"),
        "recipe_restores": metadata.get("recipe_restores", True) is not False,
        "num_calls": len(trace_calls(trace)),
        "num_failed": sum(not call_succeeded(call) for call in trace_calls(trace)),
    }


def _is_edited(trace: Mapping[str, Json]) -> bool:
    """Whether a trace has a checksum that its content does not fit."""
    if "integrity_sha256" not in trace:
        return False
    unsigned = {name: value for name, value in trace.items() if name != "integrity_sha256"}
    try:
        return bool(trace["integrity_sha256"] != json_sha256(unsigned))
    except RecursionError:
        return True


def _task(trace: Mapping[str, Json]) -> Task | None:
    try:
        return task_of(trace)
    except DistilError:
        return None


# --- the conversation


def _prompts(settings: Mapping[str, Json], metadata: Mapping[str, Json]) -> list[Fields]:
    """The prompts of the run, and what the row put in place of each `{FIELD}`."""
    names = {"system_prompt": "System prompt", "user_prompt": "User prompt"}
    of_run = [(title, settings.get(name), ("settings", name)) for name, title in names.items()]
    of_row = [
        (_line(f"{{{name}}}"), text, ("metadata", "prompt_fields", name))
        for name, text in _items(metadata.get("prompt_fields"))
    ]
    found = [{"title": title, "text": _text(text, *path)} for title, text, path in of_run + of_row]
    return [prompt for prompt in found if prompt["text"] is not None]


def _text(value: Json, *path: str | int) -> CutText | None:
    """A text that stands at a place of the trace; None for what is no text."""
    return shown(value, pointer_to(*path)) if isinstance(value, str) else None


def _offered(settings: Mapping[str, Json]) -> Fields:
    schemas = settings.get("tool_schemas")
    text = json_text(schemas) if isinstance(schemas, list) and schemas else None
    return {
        "names": list(map(_line, tool_names(settings))),
        "schemas": text and shown(text, pointer_to("settings", "tool_schemas"), 20_000),
    }


def _turns(
    trace: Mapping[str, Json], seconds: Sequence[Json], calls: Sequence[Fields]
) -> tuple[list[Fields], int]:
    """The turns with the calls of each, and how many are left out of the page."""
    log, entries = _log(trace, _LOGS)
    made = []
    for position, entry in enumerate(entries[:_MAX_TURNS]):
        turn = mapping_of(entry)
        usage = mapping_of(turn.get("usage"))
        number = turn.get("turn") if isinstance(turn.get("turn"), int) else position + 1
        made.append(
            {
                "number": number,
                "role": _line(turn.get("role"), ""),
                **_reply(turn, log, position),
                "calls": [call for call in calls if call["turn"] == number],
                "not_run": _not_run(turn, log, position),
                "finish_reason": _line(turn.get("finish_reason"), ""),
                "model": _line(turn.get("model"), ""),
                "tokens_in": finite(usage.get("prompt_tokens")),
                "tokens_out": finite(usage.get("completion_tokens")),
                "seconds": finite(seconds[position]) if position < len(seconds) else None,
            }
        )
    return made, max(0, len(entries) - _MAX_TURNS)


def _log(trace: Mapping[str, Json], names: Sequence[str]) -> tuple[str, list[Json]]:
    """The list that stands under one of the names, and which."""
    name = next((name for name in names if isinstance(trace.get(name), list)), None)
    return (names[0], []) if name is None else (name, trace[name])


def _reply(turn: Mapping[str, Json], log: str, position: int) -> Fields:
    """A turn's words: what it said, thought, or refused, and all of it as it was written."""
    name, text = _text_of(turn)
    at = pointer_to(log, position, name)
    thinking, _ = split_thinking(text)
    said = text_outside(text, thinking=True, tool_calls=True).strip()
    thoughts = [
        {"where": "in the text", "text": shown(thinking, at)} if thinking else None,
        _thought(turn.get("reasoning"), turn.get("reasoning_field"), pointer_to(log, position, "reasoning")),
        *(
            _thought(value, place, pointer_to(log, position, "other_reasoning", place))
            for place, value in _items(turn.get("other_reasoning"))
        ),
    ]
    if turn.get("reasoning_field") == "content" and thinking:
        thoughts = thoughts[1:]  # it is the same, said twice
    return {
        "text": shown(said, at),
        "as_written": shown(text, at) if text.strip() != said else None,
        "thoughts": [thought for thought in thoughts if thought],
        "refusal": _text(turn.get("refusal"), log, position, "refusal"),
    }


def _text_of(turn: Mapping[str, Json]) -> tuple[str, str]:
    """Where a turn's text stands, and it; of a list of parts the texts."""
    for name in _TEXTS:
        value = turn.get(name)
        if isinstance(value, str):
            return name, value
        if isinstance(value, list):
            texts = [mapping_of(part).get("text") for part in value]
            return name, "\n".join(text for text in texts if isinstance(text, str))
    return _TEXTS[0], ""


def _thought(text: Json, where: Json, pointer: str) -> Fields | None:
    if not isinstance(text, str) or not text.strip():
        return None
    return {"where": _line(where, ""), "text": shown(text, pointer)}


def _not_run(turn: Mapping[str, Json], log: str, position: int) -> list[Fields]:
    calls = turn.get("calls_not_run")
    return [
        {
            "name": _line(mapping_of(call).get("name"), "unnamed"),
            "arguments": shown(
                json_text(mapping_of(call).get("arguments")),
                pointer_to(log, position, "calls_not_run", number),
            ),
        }
        for number, call in enumerate(calls if isinstance(calls, list) else [])
    ]


# --- the calls


def _calls(trace: Mapping[str, Json]) -> list[Fields]:
    """Every call, with the numbers of the pictures before and after it."""
    log, _ = _log(trace, _CALLS)
    current = 0
    made = []
    entries = trace_calls(trace)[:MAX_CALLS]  # numbered as a replay numbers them
    sizes = [_size(trace.get("image")), *(_size(entry.get("result")) for entry in entries)]
    sent = [_sent_size(trace.get("image")), *(_sent_size(entry.get("result")) for entry in entries)]
    for number, entry in enumerate(entries, start=1):
        tool, arguments = find_tool(call_name(entry)), call_arguments(entry)
        before = 0 if tool is not None and tool.works_on_photo(arguments) else current
        made.append(
            {
                "number": number,
                "before": before,
                "before_size": sizes[before],
                "before_sent": sent[before],
                "after": number if call_succeeded(entry) else None,
                "after_size": sizes[number],
                "after_sent": sent[number],
                **_call(entry, tool, number, (log, number - 1)),
                **_drawn(trace, entry, tool, sizes[before], sent[before]),
            }
        )
        if call_succeeded(entry):
            current = number
    return made


def _call(call: Mapping[str, Json], tool: Tool | None, number: int, place: tuple[str, int]) -> Fields:
    arguments = call_arguments(call)
    code = _text(arguments.get("code"), *place, "code")
    colour = coloured if number <= _MAX_COLOURED else visible
    return {
        "turn": call.get("turn"),
        "name": _line(call_name(call)),
        "is_known": tool is not None,
        "succeeded": call_succeeded(call),
        "message": _text(call.get("message"), *place, "message") or shown(""),
        "stdout": _text(call.get("stdout"), *place, "stdout"),
        "clamped": call.get("clamped") is True,
        "code": None if code is None else colour(code.text),
        "code_text": code,
        **_arguments(_raw(call), arguments, pointer_to(*place), code is not None),
    }


def _raw(call: Mapping[str, Json]) -> Json:
    """A call's arguments as the teacher wrote them, None where the trace keeps only what was run."""
    return raw_arguments(call) if "raw_arguments" in call or "code" in call else None


def _arguments(raw: Json, resolved: Mapping[str, Json], at: str, is_code: bool) -> Fields:
    """What the teacher wrote and what was run, where that is not the same."""
    is_same = raw is None or raw == resolved
    shows_resolved = not is_code and (resolved or is_same)
    return {
        "raw": None if is_same else shown(json_text(raw), f"{at}/raw_arguments"),
        "resolved": shown(json_text(dict(resolved)), at) if shows_resolved else None,
        "is_same": is_same,
    }


def _frame_text(trace: Mapping[str, Json]) -> str:
    frame = mapping_of(trace.get("settings")).get("coordinates")
    return _FRAMES.get(Frame(frame), "") if frame in list(Frame) else ""


def _drawn(
    trace: Mapping[str, Json],
    call: Mapping[str, Json],
    tool: Tool | None,
    size: Size | None,
    sent: Size | None,
) -> Fields:
    """What is drawn on the picture before a call, in its own pixels; and the frame boxes were stated in."""
    raw, arguments = _raw(call), call_arguments(call)
    frame = _frame_text(trace) if tool is not None and tool.box_of(raw) is not None else ""
    if tool is None or size is None:
        return {"frame": frame, "drawing": None}
    angle = tool.angle_of(arguments)
    box = _rectangle(tool.box_of(dict(arguments)))
    written = _rectangle(_raw_box(trace, tool.box_of(raw), size, sent))
    if box is not None and written is not None and _is_near(box, written):
        written = None
    turn = None if angle is None else _turn_drawing(angle, size)
    drawing = {"size": size, "box": box, "written": written, "angle": turn}
    return {"frame": frame, "drawing": drawing if box or written or turn else None}


def _raw_box(
    trace: Mapping[str, Json], box: Sequence[float] | None, size: Size, sent: Size | None
) -> Sequence[float] | None:
    """A teacher's own box in pixels of the picture, not cut to it; None where its frame is not known."""
    settings = mapping_of(trace.get("settings"))
    frame = settings.get("coordinates")
    if box is None or frame not in list(Frame) or settings.get("crop_from") != CropFrom.CURRENT:
        return None
    x1, y1, x2, y2 = (box[place] for place in ((1, 0, 3, 2) if frame == Frame.REL1000_YX else (0, 1, 2, 3)))
    units = {Frame.PIXEL: sent or size, Frame.REL1: (1, 1)}.get(Frame(frame), (1000, 1000))
    if finite(sum(map(float, box))) is None:
        return None
    x, y = size[0] / max(1, units[0]), size[1] / max(1, units[1])
    return x1 * x, y1 * y, x2 * x, y2 * y


def _rectangle(box: Sequence[float] | None) -> tuple[float, float, float, float] | None:
    """x, y, width and height of a box that can be drawn."""
    ends = [finite(end) for end in box] if box is not None else []
    if len(ends) != 4 or any(end is None or abs(end) > 1e7 for end in ends):
        return None
    x1, y1, x2, y2 = (float(end) for end in ends if end is not None)
    return (
        None if x2 <= x1 or y2 <= y1 else (round(x1, 2), round(y1, 2), round(x2 - x1, 2), round(y2 - y1, 2))
    )


def _is_near(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(abs(a - b) <= 2 for a, b in zip(one, other, strict=True))


def _turn_drawing(angle: float, size: Size) -> Fields:
    """The line that a rotation makes level, and the arc that it goes through, counter-clockwise."""
    turned = math.fmod(angle, 360)
    x, y, reach = size[0] / 2, size[1] / 2, 0.42 * min(size)
    cos, sin = math.cos(math.radians(turned)), math.sin(math.radians(turned))
    arc = 0.6 * reach
    large, sweep = int(abs(turned) > 180), int(turned < 0)
    return {
        "text": f"{angle:g}° counter-clockwise" if angle >= 0 else f"{-angle:g}° clockwise",
        "level": (round(x - reach, 1), round(y, 1), round(x + reach, 1), round(y, 1)),
        "line": tuple(
            round(end, 1) for end in (x - reach * cos, y - reach * sin, x + reach * cos, y + reach * sin)
        ),
        "arc": f"M {x + arc * cos:.1f} {y + arc * sin:.1f} A {arc:.1f} {arc:.1f} 0 {large} {sweep} "
        f"{x + arc:.1f} {y:.1f}",
        "head": _arrow_head(x + arc, y, reach / 14, -1 if turned >= 0 else 1),
    }


def _arrow_head(x: float, y: float, length: float, way: int) -> str:
    ends = ((x, y), (x - length, y - way * 1.6 * length), (x + length, y - way * 1.6 * length))
    return " ".join(f"{end[0]:.1f},{end[1]:.1f}" for end in ends)


def _stray_calls(calls: Sequence[Fields], turns: Iterable[Fields]) -> list[Fields]:
    """Calls that name no turn of the trace."""
    placed = {call["number"] for turn in turns for call in turn["calls"]}
    return [call for call in calls if call["number"] not in placed]


# --- pictures


def _photo(trace: Mapping[str, Json]) -> Fields:
    image = mapping_of(trace.get("image"))
    return {
        "size": _size(image),
        "sent": _sent_size(image),
        "form": " ".join(
            _line(image[name]) for name in ("mode", "file_format") if isinstance(image.get(name), str)
        ),
        "is_kept": kept_picture(trace, 0) is not None,
    }


def _sent_size(block: Json) -> Size | None:
    return _size(mapping_of(block).get("sent"))


def _size(block: Json) -> Size | None:
    width, height = (mapping_of(block).get(name) for name in ("width_px", "height_px"))
    if type(width) is not int or type(height) is not int:
        return None
    return (width, height) if 0 < width < 10**6 and 0 < height < 10**6 else None


# --- what it came to


def _result(trace: Mapping[str, Json], task: Task | None) -> Fields:
    reward, metadata = mapping_of(trace.get("reward_score")), mapping_of(trace.get("metadata"))
    score = finite(reward.get("score", metadata.get("score")))
    answer, truth = _answers(trace, task)
    named = {metric.name for metric in task.metrics} if task else set()
    others = [
        (name, value) for name, value in reward.items() if name not in {"score", "parse_success", *named}
    ]
    return {
        "answer": _task_text(task, answer) if answer else "no answer",
        "truth": _task_text(task, truth) if truth else "not stated",
        "has_answer": bool(answer),
        "score": score,
        "score_text": task.reward_text(score) if task and score is not None else _plain_figure(score),
        "metrics": _metric_rows(trace, task),
        "others": [(_line(name), _short_value(value)) for name, value in others],
        "map": _map_pair(task, answer, truth),
    }


def _answers(trace: Mapping[str, Json], task: Task | None) -> tuple[Mapping[str, Json], Mapping[str, Json]]:
    metadata = mapping_of(trace.get("metadata"))
    if task is None:
        return mapping_of(metadata.get("answer")), mapping_of(metadata.get("truth"))
    return trace_answer(trace), trace_truth(trace)


def _task_text(task: Task | None, value: Mapping[str, Json]) -> str:
    if task is None or any(finite(item) is None for item in value.values() if isinstance(item, int | float)):
        return plain(json_text(dict(value), _MAX_FIELD_CHARS))
    return plain(task.text(value)[:_MAX_FIELD_CHARS])


def _metric_rows(trace: Mapping[str, Json], task: Task | None) -> list[tuple[str, str]]:
    reward, metadata = mapping_of(trace.get("reward_score")), mapping_of(trace.get("metadata"))
    rows = []
    for metric in task.metrics if task else ():
        value = finite(reward.get(metric.name, metadata.get(metric.metadata_name or "")))
        rows.append((metric.label, "not stated" if value is None else metric.text.format(value)))
    return rows


def _map_pair(task: Task | None, answer: Mapping[str, Json], truth: Mapping[str, Json]) -> Fields | None:
    """Truth and answer in degrees north and east, where the task has places on a map."""
    if task is None or task.map_axes is None:
        return None
    north, east = task.map_axes
    ends = {
        name: (finite(place.get(north)), finite(place.get(east)))
        for name, place in (("truth", truth), ("answer", answer))
    }
    found = {name: list(end) for name, end in ends.items() if None not in end}
    return found if "truth" in found else None


# --- figures beside it


def _token_rows(turns: Sequence[Fields], seconds: float | None) -> Fields:
    """Tokens and seconds turn by turn, with what share of the most each is."""
    known = {"in": "tokens_in", "out": "tokens_out", "seconds": "seconds"}
    columns = {name: [turn[place] for turn in turns] for name, place in known.items()}
    most = {name: max((value or 0 for value in values), default=0) for name, values in columns.items()}
    rows = [
        {
            "turn": turn["number"],
            **{name: turn[place] for name, place in known.items()},
            "shares": {name: _percent(turn[place], most[name]) for name, place in known.items()},
        }
        for turn in turns
    ]
    totals = {
        name: None if set(values) <= {None} else sum(value or 0 for value in values)
        for name, values in columns.items()
    }
    return {"rows": rows, "totals": totals, "seconds": seconds}


def _percent(value: float | None, most: float) -> float:
    return round(100 * (value or 0) / most, 1) if most else 0


def _facts(
    trace: Mapping[str, Json], settings: Mapping[str, Json], metadata: Mapping[str, Json]
) -> list[tuple[str, str]]:
    dataset, image = mapping_of(trace.get("dataset")), mapping_of(trace.get("image"))
    source = dataset.get("source") or trace.get("dataset_path")
    rows = [
        ("dataset", _line(source, "not stated")),
        ("kind, split", " · ".join(_line(dataset[name]) for name in ("kind", "split") if dataset.get(name))),
        ("fingerprint", _line(dataset.get("fingerprint"), "")),
        (
            "opened by the recipe",
            _line(trace.get("dataset_path"), "") if trace.get("dataset_path") != source else "",
        ),
        ("photo file", _line(image.get("file_sha256"), "")[:16]),
        ("EXIF orientation", _line(image.get("exif_orientation"), "")),
        ("tool calls are", _line(settings.get("tool_mode"), "")),
        ("boxes are", _frame_text(trace) or _line(settings.get("coordinates"), "")),
        (
            "crops are from",
            _line(settings.get("crop_from"), "") if settings.get("crop_from") != CropFrom.CURRENT else "",
        ),
        ("temperature", _line(settings.get("temperature"), "")),
        ("seed", _line(settings.get("seed"), "")),
        ("settings", _line(metadata.get("settings_sha256"), "")[:16]),
        (
            "versions",
            ", ".join(f"{_line(name)} {_line(value)}" for name, value in _items(metadata.get("versions"))),
        ),
    ]
    return [(name, text) for name, text in rows if text]


def _items(value: Json) -> list[tuple[str, Json]]:
    return list(mapping_of(value).items())


def _line(value: Json, otherwise: str = "not stated") -> str:
    """A value on one line, cut."""
    if value is None or value == "":
        return otherwise
    text = value if isinstance(value, str) else json_text(value, _MAX_FIELD_CHARS)
    text = plain(" ".join(text[: 2 * _MAX_FIELD_CHARS].split()))
    return text if len(text) <= _MAX_FIELD_CHARS else text[:_MAX_FIELD_CHARS] + "…"


def _short_value(value: Json) -> str:
    number = finite(value)
    if number is not None:
        return f"{value:,}" if isinstance(value, int) else f"{number:,.6g}"
    return _line(value, "–")


def _plain_figure(value: float | None) -> str:
    return "not stated" if value is None else f"{value:.4g}"
