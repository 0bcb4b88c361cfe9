"""What a student has to get of a trace, and what is wrong with what it gets.

Made from the trace, docs/trace-format.md and a replay alone: nothing here knows how an export is written.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from PIL import Image
from replayed import Replay, replay
from seen import PAD, look_of
from trace_rebuilder import opening_messages

from distil.pictures import box_to_pixels
from distil.records import Frame
from distil.replay.replay import Executors, Sources
from distil.store.trace_file import read_trace

PICTURE = f"<|vision_start|>{PAD}<|vision_end|>"
TURN_END = "<|im_end|>\n"
SPECIAL = re.compile(r"<(?=\||(?:image|video|audio)>)")
CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)
LOOK_TOLERANCE = (
    5.0  # mean difference of colours: resizing and JPEG make 2, another picture of ours 20 and more
)
Size = tuple[int, int]
Row = dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """An assistant's turn as it is rendered, and whether it may be trained."""

    text: str
    is_trained: bool


@dataclass(frozen=True)
class Expected:
    """A conversation as it has to be rendered, boxes in pixels; `before` is all text in front of each turn."""

    row_id: str
    before: tuple[str, ...]
    turns: tuple[Turn, ...]
    looks: tuple[Sequence[int], ...]
    sizes: tuple[Size, ...]
    works_on: tuple[int, ...]  # which picture, of each call
    boxes: tuple[Sequence[int] | None, ...]  # of each call, in pixels of that picture

    @property
    def text(self) -> str:
        """Up to the last turn that is trained."""
        last = max(at for at, turn in enumerate(self.turns) if turn.is_trained)
        return "".join(
            b + t.text for b, t in zip(self.before[: last + 1], self.turns[: last + 1], strict=True)
        )

    @property
    def cropped_sizes(self) -> list[Size]:
        """Of the picture that each call works on."""
        return [self.sizes[number] for number in self.works_on]

    @property
    def trained(self) -> list[str]:
        return [turn.text for turn in self.turns if turn.is_trained]


def expected_of(run: Path, thoughts: str = "think", errors: str = "mask") -> list[Expected]:
    """What the traces of a run have to become."""
    sources = Sources()
    with Executors() as executors:
        found = []
        for path in sorted(run.glob("trace_*.json")):
            trace = read_trace(path)
            replayed = replay(trace, sources.of(trace), executors.of(trace))
            found.append(_expected(f"{run.name}/{path.name}", replayed, thoughts, errors))
    return found


def _expected(row_id: str, replayed: Replay, thoughts: str, errors: str) -> Expected:
    pieces, turns = [_opening(replayed)], []
    photo = (replayed.sample.picture.picture.size, replayed.sent.size)
    assert photo[0] == photo[1], "boxes are compared for pictures that were sent as they are"
    pictures, works_on, boxes = [replayed.sent], [], []
    for turn in replayed.turns():
        failed = [call for call in turn.calls if not call.observation.success]
        if errors == "drop" and failed:
            assert len(failed) == len(turn.calls), "a turn that failed in part is no part of these runs"
            continue
        pieces[-1] += "<|im_start|>assistant\n"
        calls = [_call_text(call) for call in turn.calls]
        said = "\n".join(part for part in (_escaped(turn.reply.content.strip()), *calls) if part)
        thought = _escaped(turn.reply.reasoning or "")
        if thought and thoughts == "think":
            said = f"<think>\n{thought}\n</think>\n\n{said}"
        elif thought and thoughts == "keep":
            said = f"{thought}\n\n{said}"
        turns.append(Turn(f"{said}{TURN_END}", errors == "train" or not failed))
        for call in turn.calls:
            works_on.append(len(pictures) - 1)
            boxes.append(call.arguments.get("bbox_2d") if call.observation.success else None)
            if call.observation.sent is not None:
                pictures.append(call.observation.sent)
        pieces.append(_results_text(turn.calls))
    return Expected(
        row_id,
        tuple(pieces),
        tuple(turns),
        tuple(look_of(Image.open(io.BytesIO(sent.data))) for sent in pictures),
        tuple(sent.size for sent in pictures),
        tuple(works_on),
        tuple(boxes),
    )


def _opening(replayed: Replay) -> str:
    """System and question, with the tools described as text."""
    trace = replayed.trace.json
    settings = {**trace["settings"], "tool_mode": "text", "states_size": False}
    system, user = opening_messages({**trace, "settings": settings}, _NoPicture())
    (question,) = [part["text"] for part in user["content"] if part["type"] == "text"]
    return f"<|im_start|>system\n{system['content']}{TURN_END}<|im_start|>user\n{PICTURE}{_escaped(question)}{TURN_END}"


class _NoPicture:
    """Stands where opening messages want the photo."""

    size = (0, 0)

    def url(self) -> str:
        return ""


def _call_text(call: Any) -> str:
    arguments: Mapping[str, Any] = call.raw.arguments
    if call.observation.success and "bbox_2d" in call.arguments:
        arguments = {**call.raw.arguments, "bbox_2d": list(call.arguments["bbox_2d"])}
    body = json.dumps({"name": call.raw.name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{_escaped(body)}\n</tool_call>"


def _results_text(calls: Sequence[Any]) -> str:
    blocks = []
    for call in calls:
        observation = call.observation
        text = observation.message
        if observation.stdout:
            text += f"\nOutput:\n{observation.stdout.rstrip()}"
        picture = f"{PICTURE}\n" if observation.sent is not None else ""
        blocks.append(f"<tool_response>\n{picture}{_escaped(text)}\n</tool_response>")
    return f"<|im_start|>user\n{chr(10).join(blocks)}{TURN_END}" if blocks else ""


def _escaped(text: str) -> str:
    return SPECIAL.sub("<\N{ZERO WIDTH SPACE}", text)


# --- what is wrong


@dataclass(frozen=True)
class Manner:
    """How an export is to be read."""

    by_turn: bool = False  # a trace's row may be split, a row for each turn that is trained
    factor_px: int = 32  # a token of a picture is so many pixels wide and high
    is_native: bool = False  # between thoughts and a call stands a newline less
    is_resized: bool = False  # pictures may have other sizes than the teacher's


def problems(rows: Sequence[Row], expected: Sequence[Expected], manner: Manner = Manner()) -> list[str]:
    """What a student gets otherwise than it has to."""
    found: list[str] = []
    by_id = {wanted.row_id: [row for row in rows if row["id"] == wanted.row_id] for wanted in expected}
    if sum(map(len, by_id.values())) != len(rows):
        found.append(f"rows of no trace: {sorted({row['id'] for row in rows} - set(by_id))}")
    for wanted in expected:
        its = by_id[wanted.row_id]
        trained = [span for row in its for span in row["trained"]]
        found += _of_rows(its, wanted, manner)
        spans, wanted_spans = (
            [in_pixels(_written(span, manner), ()) for span in each] for each in (trained, wanted.trained)
        )
        if spans != wanted_spans:
            found.append(f"{wanted.row_id}: trained is {trained}, to be trained is {wanted.trained}")
    return found


def _written(text: str, manner: Manner) -> str:
    return text.replace("</think>\n\n<tool_call>", "</think>\n<tool_call>") if manner.is_native else text


def _of_rows(rows: Sequence[Row], wanted: Expected, manner: Manner) -> list[str]:
    by_turn = manner.by_turn
    if len(rows) != 1 and not by_turn:
        return [f"{wanted.row_id}: {len(rows)} rows"]
    found = []
    for row in rows:
        text = in_pixels(_written(row["text"], manner), wanted.cropped_sizes)
        whole = _written(wanted.text, manner)
        if not (whole.startswith(text) if by_turn else whole == text):
            found.append(f"{wanted.row_id}: {_difference(text, whole)}")
        if by_turn and not (row["trained"] and row["text"].endswith(row["trained"][-1])):
            found.append(f"{wanted.row_id}: a row does not end with what is trained")
        found += [f"{wanted.row_id}: {problem}" for problem in _of_pictures(row, wanted, manner)]
    return found


def _difference(text: str, wanted: str) -> str:
    same = (a == b for a, b in zip(text, wanted, strict=False))
    at = sum(takewhile(bool, same))
    return f"after {wanted[max(0, at - 60) : at]!r} stands {text[at : at + 80]!r} and not {wanted[at : at + 80]!r}"


def _of_pictures(row: Row, wanted: Expected, manner: Manner) -> list[str]:
    found, pictures = [], row["pictures"]
    num_pads = [picture["width_px"] * picture["height_px"] // manner.factor_px**2 for picture in pictures]
    if row["num_pads"] != num_pads:
        found.append(f"{row['num_pads']} places for pictures of {num_pads} tokens")
    if row["text"].count(PAD) != len(pictures):
        found.append(f"{len(pictures)} pictures for {row['text'].count(PAD)} places")
    for number, picture in enumerate(pictures):
        if number >= len(wanted.looks) or distance(picture["look"], wanted.looks[number]) > LOOK_TOLERANCE:
            found.append(f"picture {number} is another one")
        elif not same_shape((picture["width_px"], picture["height_px"]), wanted.sizes[number], manner):
            found.append(f"picture {number} has another size: {picture['width_px']}×{picture['height_px']}")
    return found


def distance(look: Sequence[int], other: Sequence[int]) -> float:
    """How far two looks are from each other, in steps of 255 a colour."""
    return sum(abs(a - b) for a, b in zip(look, other, strict=True)) / len(look)


def same_shape(seen: Size, size: Size, manner: Manner) -> bool:
    """Whether a picture is shown at its size, but for rounding; a small one may be enlarged."""
    scale = (seen[0] * seen[1] / (size[0] * size[1])) ** 0.5
    is_whole = all(
        abs(side * scale - shown) <= manner.factor_px for side, shown in zip(size, seen, strict=True)
    )
    is_small = size[0] * size[1] < 80000  # verl enlarges what rounding makes smaller than 65536
    return is_whole and (manner.is_resized or (scale > 0.9 and (is_small or scale < 1.1)))


def boxes_beside_the_picture(row: Row, wanted: Expected) -> list[str]:
    """The boxes of a row, in pixels of the pictures as the student gets them, that are not those of the trace."""
    found = []
    calls = [json.loads(body) for body in CALL.findall(row["text"]) if "<function-name>" not in body]
    for number, call in enumerate(calls):
        stored, cropped = wanted.boxes[number], wanted.works_on[number]
        if stored is None:
            continue
        seen, size = row["pictures"][cropped], wanted.sizes[cropped]
        scales = [seen["width_px"] / size[0], seen["height_px"] / size[1]] * 2
        box = call["arguments"]["bbox_2d"]
        if any(abs(end - scale * pixel) > 1 for end, scale, pixel in zip(box, scales, stored, strict=True)):
            found.append(f"{wanted.row_id}: call {number} has {box} for {stored} of {size}, seen as {seen}")
    return found


def in_pixels(text: str, cropped_sizes: Sequence[Size]) -> str:
    """A rendered text with boxes of 0 to 1000 as the pixels that they name; without sizes, as `BOX`."""
    numbers = iter(range(text.count("<tool_call>")))

    def replaced(found: re.Match[str]) -> str:
        try:
            call = json.loads(found[1])
        except ValueError:  # the example in the system text, which is no call
            return found[0]
        number, box = next(numbers), call["arguments"].get("bbox_2d")
        if not isinstance(box, list):
            return found[0]
        if not cropped_sizes:
            call["arguments"]["bbox_2d"] = "BOX"
        elif number < len(cropped_sizes):
            size = cropped_sizes[number]
            call["arguments"]["bbox_2d"] = list(box_to_pixels(box, Frame.REL1000, size, size)[0])
        return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"

    return CALL.sub(replaced, text)
