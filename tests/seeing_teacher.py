"""Scripts for `ScriptedTeacher` that look at the picture they are sent: for tests of `distil doctor`."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from scripted_teacher import completion, texts

from distil.pictures import Frame
from distil.teacher.sign import draw_sign

ZOOM = "image_zoom_in_tool"
WORDS = ("OSLO", "LIMA", "· · ·")
USAGE = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}


@dataclass(frozen=True)
class Seeing:
    """A teacher with eyes, and its server's character."""

    frame: Frame = Frame.REL1000
    native: bool = True  # False: `tools` is refused, as vLLM does without a parser
    calls_as_text: bool = False  # SGLang without a parser
    makes_calls: bool = True
    num_parallel: int = 2
    takes_pictures: bool = True
    takes_result_pictures: bool = True  # in native form
    max_pictures: int = 9  # older vLLM: 1
    is_blind: bool = False
    max_area_px: int | None = None  # the server shrinks larger pictures; boxes are in what is left
    reasoning_field: str | None = None
    usage: Any = field(default_factory=lambda: USAGE)
    refused_fields: tuple[str, ...] = ()
    keeps_limit: bool = True

    def __call__(self, request: dict[str, Any]) -> Any:
        refused = next((name for name in self.refused_fields if name in request), None)
        if refused is not None:
            return 400, error(f"Unsupported parameter: '{refused}' is not supported with this model.")
        if "tools" in request and not self.native:
            return 400, error('"auto" tool choice requires --enable-auto-tool-choice')
        roles = [message["role"] for message in request["messages"]]
        if pictures(request) and not self.takes_pictures:
            return 400, error("this is not a multimodal model")
        if len(pictures(request)) > self.max_pictures:
            return 400, error("At most 1 image(s) may be provided in one prompt.")
        if "tool" in roles and not self.takes_result_pictures:
            return 500, error("the template takes no picture here")
        return self._reply(request)

    def _reply(self, request: dict[str, Any]) -> Any:
        limit = request.get("max_tokens", request.get("max_completion_tokens"))
        finish_reason = "length" if limit < 100 and self.keeps_limit else "stop"
        return completion(self._message(request), finish_reason, self.usage)

    def _message(self, request: dict[str, Any]) -> dict[str, Any]:
        extra = {self.reasoning_field: "I look."} if self.reasoning_field else {}
        last = texts(request["messages"][1])
        if "red rectangle" in last:
            box = self._box(pictures(request)[-1])
            if "Call the tool" in last and self.makes_calls:
                return self._calls(request, [{"bbox_2d": box}]) | extra
            return {"content": f"It is at {box}."} | extra
        if "two times" in last:
            return self._calls(request, [{"bbox_2d": [0, 0, 1, 1]}] * self.num_parallel) | extra
        if pictures(request):
            return {"content": "nothing" if self.is_blind else read_word(pictures(request)[-1])} | extra
        return {"content": "ready"} | extra

    def _calls(self, request: dict[str, Any], arguments: list[dict[str, Any]]) -> dict[str, Any]:
        if "tools" not in request or self.calls_as_text:
            written = [json.dumps({"name": ZOOM, "arguments": each}) for each in arguments]
            return {"content": "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in written)}
        entries = [
            {"id": f"c{at}", "type": "function", "function": {"name": ZOOM, "arguments": json.dumps(each)}}
            for at, each in enumerate(arguments)
        ]
        return {"content": None, "tool_calls": entries}

    def _box(self, image: Image.Image) -> list[float]:
        if self.is_blind:
            return [100, 100, 400, 400]
        x1, y1, x2, y2 = red_box(image)
        width, height = image.size
        if self.frame is Frame.PIXEL:
            scale = min(1.0, ((self.max_area_px or 1e12) / (width * height)) ** 0.5)
            return [round(scale * value) for value in (x1, y1, x2, y2)]
        shares = [x1 / width, y1 / height, x2 / width, y2 / height]
        if self.frame is Frame.REL1:
            return [round(share, 3) for share in shares]
        x1, y1, x2, y2 = (round(1000 * share) for share in shares)
        return [y1, x1, y2, x2] if self.frame is Frame.REL1000_YX else [x1, y1, x2, y2]


def error(message: str) -> dict[str, Any]:
    return {"error": {"message": message}}


def pictures(request: dict[str, Any]) -> list[Image.Image]:
    """The pictures of a request, decoded."""
    contents = [message.get("content") for message in request["messages"]]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]


def red_box(image: Image.Image) -> tuple[int, int, int, int]:
    """The box around what is red."""
    pixels = np.asarray(image.convert("RGB")).astype(int)
    rows, columns = np.nonzero((pixels[..., 0] > 150) & (pixels[..., 1] < 90))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def read_word(image: Image.Image) -> str:
    """The word on a sign: the one whose drawing is most like it."""
    seen = np.asarray(image.convert("L").resize((160, 120))).astype(int)

    def difference(word: str) -> float:
        drawn = np.asarray(draw_sign(word).convert("L").resize((160, 120))).astype(int)
        return float(np.abs(seen - drawn).mean())

    return min(WORDS, key=difference)
