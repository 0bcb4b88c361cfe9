"""What is done with every reply and every trace must take few steps: they are counted."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from scripted_teacher import text_call

from distil.messages.read import parse_reply
from distil.store.atomic import indented


def steps_of(work: Callable[[], object]) -> int:
    """How many functions are called, those in C too."""
    num_steps = 0

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal num_steps
        num_steps += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return num_steps


def test_a_reply_without_anything_odd_is_not_looked_through_64_levels_deep_nor_parsed_again() -> None:
    message = {"role": "assistant", "content": text_call("image_zoom_in_tool", {"bbox_2d": [1, 2, 3, 4]})}
    usage = {"prompt_tokens": 3000, "completion_tokens": 120, "total_tokens": 3120}
    body = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}).encode()
    parse_reply(body)
    assert steps_of(lambda: parse_reply(body)) < 260


def test_a_text_or_a_number_of_a_trace_is_written_in_few_steps() -> None:
    many = {"texts": ["a"] * 1000, "numbers": dict.fromkeys(map(str, range(1000)), 7)}
    assert steps_of(lambda: indented(many)) < 10_000
