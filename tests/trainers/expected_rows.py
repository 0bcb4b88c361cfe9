"""What a student has to get of a trace, and what is wrong with what it gets.

Made from the trace, docs/trace-format.md and a replay alone: nothing here knows how an export is written.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from seen import PAD, look_of
from trace_rebuilder import opening_messages

from distil.pictures import box_to_pixels
from distil.records import Frame
from distil.replay.replay import Executors, Replay, Sources, replay
from distil.store.trace_file import read_trace

PICTURE = f"<|vision_start|>{PAD}<|vision_end|>"
TURN_END = "<|im_end|>\n"
SPECIAL = re.compile(r"<(?=\||(?:image|video|audio)>)")
CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)
LOOK_TOLERANCE = 5.0  # mean difference of colours: resizing and JPEG make 2, another picture of ours 20 and more
SIDE_FACTOR_PX = 32
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
    cropped_sizes: tuple[Size, ...]  # of the picture that each call works on

    @property
    def text(self) -> str:
        """Up to the last turn that is trained."""
        last = max(at for at, turn in enumerate(self.turns) if turn.is_trained)
        return "".join(b + t.text for b, t in zip(self.before[: last + 1], self.turns[: last + 1], strict=True))

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
    trace, pieces, turns = replayed.trace, [_opening(replayed)], []
    photo = (replayed.sample.picture.picture.size, replayed.sent.size)
    assert photo[0] == photo[1], "boxes are compared for pictures that were sent as they are"
    pictures, cropped, current = [replayed.sent], [], photo[0]
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
            cropped.append(current)
            if call.observation.sent is not None:
                pictures.append(call.observation.sent)
                current = call.observation.sent.size
        pieces.append(_results_text(turn.calls))
    return Expected(
        row_id,
        tuple(pieces),
        tuple(turns),
        tuple(look_of(Image.open(io.BytesIO(sent.data))) for sent in pictures),
        tuple(sent.size for sent in pictures),
        tuple(cropped),
    )


def _opening(replayed: Replay) -> str:
    """System and question, with the tools described as text."""
    settings = {**replayed.trace.json["settings"], "tool_mode": "text", "states_size": False}
    system, user = opening_messages(settings, _NoPicture())
    (question,) = [part["text"] for part in user["content"] if part["type"] == "text"]
    return f"<|im_start|>system\n{system['content']}{TURN_END}<|im_start|>user\n{PICTURE}{question}{TURN_END}"


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


def problems(rows: Sequence[Row], expected: Sequence[Expected], by_turn: bool = False) -> list[str]:
    """What a student gets otherwise than it has to; `by_turn`: a trace's row may be split, a row for each turn."""
    found: list[str] = []
    by_id = {wanted.row_id: [row for row in rows if row["id"] == wanted.row_id] for wanted in expected}
    if sum(map(len, by_id.values())) != len(rows):
        found.append(f"rows of no trace: {sorted({row['id'] for row in rows} - set(by_id))}")
    for wanted in expected:
        its = by_id[wanted.row_id]
        trained = [span for row in its for span in row["trained"]]
        found += _of_rows(its, wanted, by_turn)
        if [in_pixels(span, ()) for span in trained] != [in_pixels(span, ()) for span in wanted.trained]:
            found.append(f"{wanted.row_id}: trained is {trained}, to be trained is {wanted.trained}")
    return found


def _of_rows(rows: Sequence[Row], wanted: Expected, by_turn: bool) -> list[str]:
    if len(rows) != 1 and not by_turn:
        return [f"{wanted.row_id}: {len(rows)} rows"]
    found = []
    for row in rows:
        text = in_pixels(row["text"], wanted.cropped_sizes)
        if not (wanted.text.startswith(text) if by_turn else wanted.text == text):
            found.append(f"{wanted.row_id}: {_difference(text, wanted.text)}")
        if by_turn and not (row["trained"] and row["text"].endswith(row["trained"][-1])):
            found.append(f"{wanted.row_id}: a row does not end with what is trained")
        found += [f"{wanted.row_id}: {problem}" for problem in _of_pictures(row, wanted)]
    return found


def _difference(text: str, wanted: str) -> str:
    at = len(os.path.commonprefix([text, wanted]))
    return f"after {wanted[max(0, at - 60) : at]!r} stands {text[at : at + 80]!r} and not {wanted[at : at + 80]!r}"


def _of_pictures(row: Row, wanted: Expected) -> list[str]:
    found, pictures = [], row["pictures"]
    num_pads = [picture["width_px"] * picture["height_px"] // SIDE_FACTOR_PX**2 for picture in pictures]
    if row["num_pads"] != num_pads:
        found.append(f"{row['num_pads']} places for pictures of {num_pads} tokens")
    if row["text"].count(PAD) != len(pictures):
        found.append(f"{len(pictures)} pictures for {row['text'].count(PAD)} places")
    for number, picture in enumerate(pictures):
        if number >= len(wanted.looks) or distance(picture["look"], wanted.looks[number]) > LOOK_TOLERANCE:
            found.append(f"picture {number} is another one")
        elif not same_shape((picture["width_px"], picture["height_px"]), wanted.sizes[number]):
            found.append(f"picture {number} has another size: {picture['width_px']}×{picture['height_px']}")
    return found


def distance(look: Sequence[int], other: Sequence[int]) -> float:
    """How far two looks are from each other, in steps of 255 a colour."""
    return sum(abs(a - b) for a, b in zip(look, other, strict=True)) / len(look)


def same_shape(seen: Size, size: Size) -> bool:
    """Whether a picture is shown at its size, but for rounding; a small one may be enlarged."""
    scale = (seen[0] * seen[1] / (size[0] * size[1])) ** 0.5
    whole = [abs(side * scale - shown) <= SIDE_FACTOR_PX for side, shown in zip(size, seen, strict=True)]
    is_small = size[0] * size[1] < 65536
    return all(whole) and (scale > 0.9 and (is_small or scale < 1.1))


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
