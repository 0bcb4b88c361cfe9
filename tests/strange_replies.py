"""Replies such as no server should give and some do, and picture files of every kind, drawn from one chance."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from builders import file_bytes, jpeg_with_orientation, noise, png_header_only, smooth

from distil.errors import ContextOverflow, TeacherError

ZOOM, ROTATE, CODE = "image_zoom_in_tool", "image_rotate_tool", "python_code_tool"
NAN, INFINITY = float("nan"), float("inf")

# --- pictures


def palette_png(transparency: int | None = None) -> bytes:
    options = {} if transparency is None else {"transparency": transparency}
    return file_bytes(smooth(90, 70).quantize(16), "PNG", **options)


def animated(file_format: str) -> bytes:
    frames = [noise(60, 40, seed=seed) for seed in range(3)]
    return file_bytes(frames[0], file_format, save_all=True, append_images=frames[1:])


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


PICTURES: dict[str, bytes | None] = {
    "RGB JPEG": file_bytes(smooth(320, 240)),
    "large RGB JPEG": file_bytes(smooth(1500, 1100)),
    "progressive JPEG": file_bytes(smooth(200, 120), progressive=True),
    "grey JPEG": file_bytes(noise(120, 90, "L")),
    "CMYK JPEG": file_bytes(noise(64, 48, "CMYK")),
    **{f"JPEG turned {turn}": jpeg_with_orientation(smooth(160, 90), turn) for turn in range(1, 9)},
    "JPEG turned 99": jpeg_with_orientation(smooth(160, 90), 99),
    "RGB PNG": file_bytes(noise(100, 80), "PNG"),
    "L PNG": file_bytes(noise(100, 80, "L"), "PNG"),
    "LA PNG": file_bytes(noise(50, 40, "LA"), "PNG"),
    "RGBA PNG": file_bytes(noise(100, 80, "RGBA"), "PNG"),
    "1-bit PNG": file_bytes(noise(64, 64, "1"), "PNG"),
    "P PNG": palette_png(),
    "P PNG with a hole": palette_png(3),
    "I;16 PNG": file_bytes(noise(64, 48, "I;16"), "PNG"),
    "F TIFF": file_bytes(noise(64, 48, "F"), "TIFF"),
    "I TIFF": file_bytes(noise(64, 48, "L").convert("I"), "TIFF"),
    "LAB TIFF": file_bytes(noise(48, 32, "LAB"), "TIFF"),
    "CMYK TIFF": file_bytes(noise(48, 32, "CMYK"), "TIFF"),
    "BMP": file_bytes(noise(40, 30), "BMP"),
    "WebP": file_bytes(smooth(100, 80), "WEBP"),
    "animated GIF": animated("GIF"),
    "animated PNG": animated("PNG"),
    "animated WebP": animated("WEBP"),
    "one pixel": file_bytes(noise(1, 1), "PNG"),
    "tiny": file_bytes(noise(5, 3), "PNG"),
    "a thread": file_bytes(noise(1, 150), "PNG"),
    "a rope": file_bytes(noise(900, 4), "PNG"),
    "cut off": cut(file_bytes(noise(64, 48))),
    "empty": b"",
    "none": None,
    "a bomb": png_header_only(60_000, 60_000),
    "no picture": b"<html>404</html>",
}

# --- code

PROGRAMS = [
    "result_image = image",
    "result_image = image.rotate(45, expand=True).crop((1, 1, 30, 20))",
    "from PIL import ImageOps\nresult_image = ImageOps.grayscale(image)",
    "from PIL import ImageEnhance\nenhancer = ImageEnhance.Contrast(image)\nresult_image = enhancer.enhance(2.0)",
    "import numpy as np\narr = np.array(image)\nresult_image = Image.fromarray(arr)",
    "```python\nresult_image = Image.new('L', (40, 30), 7)\n```",
    "print('héllo', image.size, image.mode)\nresult_image = image.resize((33, 44))",
    "print('x' * 200_000)\nresult_image = image",
    "print('\\ud800 \\x00 \\x1b[31m')\nresult_image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)",
    *(
        f"result_image = image.convert('RGB').convert({mode!r})"
        for mode in ("P", "1", "L", "CMYK", "F", "I", "HSV")
    ),
    "result_image = image.convert('RGBA')",
    "result_image = image.convert('L').convert('I;16')",
    "result_image = image.convert('RGB').quantize(5)",
    "result_image = Image.new('RGB', (1, 1))",
    "result_image = Image.new('RGB', (0, 0))",
    "result_image = Image.new('RGB', (1, 70000))",
    "result_image = Image.new('RGB', (400, 2))",
    "result_image = None",
    "result_image = 5",
    "result_image = np.zeros((20, 30, 3), dtype=np.uint8)",
    "result_image = np.full((20, 30), np.nan)",
    "x = 1",
    "raise ValueError('\\ud800')",
    "raise SystemExit(3)",
    "1 / 0",
    "def broken(",
    "import os\nos.system('true')",
    "open('/etc/passwd').read()",
    "import random\nresult_image = image.rotate(random.random() * 90)",
    "print(np.random.rand())\nresult_image = image",
    "x = bytearray(10**11)",
    "image.info['x'] = object()\nresult_image = image",
    "class Odd:\n    def __repr__(self):\n        raise ValueError\nprint(Odd())",
    "result_image = image.crop((-50, -50, 90, 90))",
    "x = '\x00'\nresult_image = image",
    "result_image = image # \ud800",
    "",
    " ",
]

# --- replies


class Strange:
    """Draws replies; equal seeds draw equal ones."""

    def __init__(self, seed: str, boxes: str, has_code: bool) -> None:
        self.chance = random.Random(seed)
        self._boxes, self._has_code = boxes, has_code

    def any_of(self, *makers: Callable[[], Any]) -> Any:
        return self.chance.choice(makers)()

    def often(self, share: float) -> bool:
        return self.chance.random() < share

    def text(self) -> str:
        pieces = [
            "I look.", "Is it Paris?", "\\boxed{48.85, 2.35}", "\\boxed{４８．８５，２．３５}", "\\boxed{90\\%}",
            "\\boxed{latitude, longitude}", "\\boxed{40.7128}", "<think>", "</think>", "<thinking>", "<tool_call>",
            "</tool_call>", "<answer>1, 2</answer>", "<tool_response>", "<|im_start|>", "<image>", "\ud800", "\udc00",
            "\x00", "\x1b[31m", "[bold]", "é", "🗼", "\u2028", "\r\n", "\n", " ", "{", "}", "\\boxed{",
        ]  # fmt: skip
        return "".join(self.chance.choices(pieces, k=self.chance.randrange(9)))

    def number(self) -> Any:
        return self.chance.choice(
            [0, 1, -1, 90, 45.5, -30, 360, 1e-9, 1e308, -1e308, 10**25, 10**400, NAN, INFINITY, -INFINITY, True, None,
             "90", "९०", "x", "", [], {}, [90], 2**53 + 1, 0.1, -0.0]
        )  # fmt: skip

    def box(self) -> Any:
        far = {"rel1": 1.0, "pixel": 200.0}.get(self._boxes, 1000.0)
        if self.often(0.6):
            x, y = (
                sorted(self.chance.uniform(0, far) for _ in "ab"),
                sorted(self.chance.uniform(0, far) for _ in "ab"),
            )
            box = [x[0], y[0], x[1], y[1]]
            return [round(value) for value in box] if far > 1 and self.often(0.7) else box
        return self.any_of(
            lambda: [self.number() for _ in range(4)],
            lambda: [self.chance.uniform(-far, 2 * far) for _ in range(4)],
            lambda: [0, 0, far, far],
            lambda: [far, far, 0, 0],
            lambda: json.dumps([0, 0, far, far / 2]),
            lambda: [0, 0, far],
            lambda: "[" * 2000,
            lambda: {"x1": 0},
            self.number,
            lambda: [0, 0, far, far / 1000],
        )

    def arguments(self, name: str) -> Any:
        if self.often(0.12):
            return self.odd_value()
        if name == ROTATE:
            given: Any = {"angle": self.number() if self.often(0.5) else self.chance.uniform(-360, 720)}
        elif name == CODE:
            given = {"code": self.chance.choice(PROGRAMS) if self.often(0.9) else self.number()}
        else:
            given = {"bbox_2d": self.box()}
        if self.often(0.1):
            given |= {
                self.chance.choice(["label", "", "\ud800", "code", "crop_from", "bbox_2d"]): self.odd_value()
            }
        return given

    def odd_value(self) -> Any:
        return self.any_of(
            lambda: None,
            lambda: {},
            lambda: [],
            lambda: "",
            lambda: "{",
            lambda: "null",
            lambda: "NaN",
            lambda: '{"angle": NaN}',
            lambda: '{"angle": 1e999}',
            lambda: '{"angle": ' + "9" * 5000 + "}",
            lambda: '{"angle": 1, "angle": 2}',
            lambda: {"code": None},
            lambda: '{"code": null}',
            lambda: {"code": {"code": None}},
            lambda: json.dumps(json.dumps({"angle": 90})),
            lambda: nested(self.chance.choice([3, 63, 64, 65, 300])),
            lambda: {"a": nested(self.chance.choice([3, 62, 63, 64, 300]))},
            lambda: "[" * 100_000,
            lambda: {f"key {number}": number for number in range(2000)},
            lambda: {"text": "x" * 100_000},
            self.text,
            lambda: {self.text(): self.text()},
            self.number,
            lambda: [self.number(), {"x": self.number()}],
        )

    def name(self) -> str:
        usual = [ZOOM, ZOOM, ROTATE, ROTATE] + [CODE] * (3 * self._has_code)
        odd = [
            "",
            "no_such_tool",
            CODE,
            "functions." + ZOOM,
            "zoom\ud800",
            "x" * 300,
            "工具",
            " " + ROTATE,
            "a\nb",
        ]
        return self.chance.choice(usual if self.often(0.9) else odd)

    def native_call(self, position: int) -> Any:
        if self.often(0.04):
            return self.odd_value()
        name = self.name()
        arguments = self.arguments(name)
        if self.often(0.7) and not isinstance(arguments, str):
            arguments = json.dumps(arguments)
        call: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": arguments}}
        ids = [
            f"call-{position}",
            f"call-{position}",
            "same",
            "",
            None,
            7,
            "\ud800",
            "x" * 200,
            "é",
            "call_1_1",
        ]
        call["id"] = self.chance.choice(ids)
        if self.often(0.1):
            del call["id"]
        if self.often(0.03):
            call["function"] = self.odd_value()
        if self.often(0.03):
            call["function"] = {"name": self.odd_value(), "arguments": arguments}
        return call

    def text_call(self) -> str:
        name = self.name()
        given = {"name": name, self.chance.choice(["arguments", "parameters"]): self.arguments(name)}
        if self.often(0.1):
            given = {"name": name, "angle": 90, "code": "result_image = image", "bbox_2d": self.box()}
        body = json.dumps(given if self.often(0.95) else self.odd_value(), ensure_ascii=self.often(0.5))
        if self.often(0.05):
            body = body[: self.chance.randrange(len(body))]
        end = "</tool_call>" if self.often(0.9) else ""
        call = f"<tool_call>\n{body}\n{end}"
        return f"<think>{call}</think>" if self.often(0.1) else call

    def content(self, with_calls: bool) -> Any:
        parts = [self.text() for _ in range(self.chance.randrange(3))]
        if with_calls:
            parts += [
                self.text_call()
                for _ in range(self.chance.choice([1, 1, 1, 2, 3, 40 if self.often(0.02) else 1]))
            ]
            self.chance.shuffle(parts)
        text = "".join(parts)
        if self.often(0.85):
            return text
        return self.any_of(
            lambda: None,
            lambda: [{"type": "text", "text": text}],
            lambda: [
                {"type": "thinking", "thinking": self.text()},
                {"type": "text", "text": text},
                5,
                None,
                "x",
            ],
            lambda: [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}, 3]}, {"text": text}],
            lambda: [{"type": "text", "text": None}, {"type": "refusal", "refusal": "no"}],
            lambda: 5,
            lambda: {},
            lambda: True,
        )

    def usage(self) -> Any:
        if self.often(0.6):
            return {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050}
        count = self.number
        return self.any_of(
            lambda: None,
            lambda: {},
            lambda: [],
            lambda: "many",
            lambda: {"prompt_tokens": count(), "completion_tokens": count(), "total_tokens": count()},
            lambda: {"prompt_tokens": 10**400, "completion_tokens": 10**400},
            lambda: {
                "prompt_tokens": 9 * 10**4299,
                "completion_tokens": 9 * 10**4299,
            },  # two are too long for str()
            lambda: {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": count()},
            lambda: {
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": count()},
            },
            lambda: {"prompt_tokens": -5, "completion_tokens": 2.5, "completion_tokens_details": [1]},
            lambda: {"prompt_tokens": 5, "completion_tokens": 5, "x": nested(200)},
            lambda: {"prompt_tokens": 5, "completion_tokens": 5, "cost": self.odd_value()},
        )

    def message(self) -> dict[str, Any]:
        kind = self.chance.choice(["native", "native", "text", "text", "answer", "both"])
        message: dict[str, Any] = {"role": "assistant", "content": self.content(kind in ("text", "both"))}
        if kind == "answer" and self.often(0.5):
            message["content"] = "It is \\boxed{48.85, 2.35}"
        if kind in ("native", "both"):
            num_calls = self.chance.choice([1, 1, 1, 1, 2, 3, 40 if self.often(0.02) else 1])
            message["tool_calls"] = [self.native_call(position) for position in range(num_calls)]
            if self.often(0.15):
                message["tool_calls"] = [
                    call | {"id": "same"} for call in message["tool_calls"] if isinstance(call, dict)
                ]
        for field in ("reasoning", "reasoning_content", "thinking", "refusal", "reasoning_details"):
            if self.often(0.12):
                message[field] = self.text() if self.often(0.8) else self.odd_value()
        if self.often(0.02):
            message["tool_calls"] = self.odd_value()
        return message

    def completion(self) -> dict[str, Any]:
        reasons = [
            "stop",
            "stop",
            "tool_calls",
            "tool_calls",
            "tool_calls",
            "function_call",
            None,
            "eos",
            "",
            3,
            [],
        ]
        if self.often(0.12):
            reasons = ["length", "content_filter", "abort", "error"]
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": self.chance.choice(reasons),
            "message": self.message(),
        }
        completion: dict[str, Any] = {
            "id": "c",
            "object": "chat.completion",
            "model": "m",
            "choices": [choice],
        }
        if self.often(0.9):
            completion["usage"] = self.usage()
        if self.often(0.05):
            completion["choices"] += [{"index": 1, "message": self.message(), "finish_reason": "stop"}]
        if self.often(0.05):
            completion[self.chance.choice(["model", "id", "error", "choices", "usage"])] = self.odd_value()
        if self.often(0.02):
            choice[self.chance.choice(["message", "finish_reason"])] = self.odd_value()
        return completion

    def body(self) -> bytes | Exception:
        """What one request is answered with."""
        if self.often(0.02):
            return self.any_of(
                lambda: ContextOverflow("the prompt is too long", 400),
                lambda: TeacherError("HTTP 400: your input was flagged", 400),
                lambda: TeacherError("no reply"),
            )
        if self.often(0.01):
            return self.any_of(
                lambda: b"", lambda: b"null", lambda: b"[]", lambda: b"\xff{}", lambda: b"{}" * 9
            )
        ensure_ascii = self.often(0.7)
        text = json.dumps(self.completion(), ensure_ascii=ensure_ascii)
        if self.often(0.02):
            levels = self.chance.choice([400, 900, 990, 3000, 100_000])
            deep = self.chance.choice(
                ['"model": ', '"usage": ', '"content": ', '"arguments": ', '"reasoning": ']
            )
            text = text.replace(deep, deep + "[" * levels + "]" * levels + ', "x": ', 1)
        data = text.encode("utf-8", "surrogatepass")
        return data[: self.chance.randrange(len(data))] if self.often(0.01) else data

    def bodies(self) -> list[bytes | Exception]:
        """What the turns of one conversation are answered with; the last for all that follow."""
        return [self.body() for _ in range(self.chance.choice([1, 2, 3, 3, 4, 6]))]


def nested(levels: int) -> Any:
    value: Any = 90
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value
