"""The loop: a real dataset row, a real server, every protocol case."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from builders import teacher_settings
from PIL import Image
from scripted_teacher import (
    ScriptedTeacher,
    calls,
    completion,
    num_pictures,
    says,
    text_call,
    texts,
)

from distil.errors import ContextOverflow
from distil.pictures import Frame, ResizeRule
from distil.records import Prompt, Rollout, SampleId, StopReason, ToolMode
from distil.rollout import RolloutSettings, run_rollout, turn_seed
from distil.source.rows import open_source
from distil.tasks import TASKS
from distil.teacher.client import Teacher
from distil.tools.base import BoxFrame, CropFrom
from distil.tools.toolbox import Toolbox, load_tools

ANSWER = "So it is \\boxed{48.8566, 2.3522}"
TASK = TASKS["geolocation"]


def solve(
    photos: Path,
    *replies: Any,
    mode: ToolMode = ToolMode.NATIVE,
    frame: Frame = Frame.PIXEL,
    rule: ResizeRule | None = None,
    max_turns: int = 10,
    crop_from: CropFrom = CropFrom.CURRENT,
) -> tuple[Rollout, list[dict[str, Any]]]:
    """Run row 0 against a server that gives the replies in order; also the requests it saw."""
    toolbox = Toolbox(load_tools("zoom,rotate"), BoxFrame(frame, crop_from), rule or ResizeRule())
    prompt = Prompt(TASK.system_prompt, TASK.user_prompt, toolbox.schemas(), mode)
    rest = list(replies)
    with ScriptedTeacher(lambda _: rest.pop(0) if len(rest) > 1 else rest[0]) as server:
        settings = teacher_settings(server.api_base, "EMPTY", model="m", max_retries=0)
        with Teacher(settings, prompt.tools if mode is ToolMode.NATIVE else ()) as teacher:
            sample = open_source(str(photos)).load(SampleId(0))
            rollout = run_rollout(sample, teacher.ask, RolloutSettings(TASK, prompt, toolbox, max_turns, 0))
    return rollout, server.requests


def zoom(*box: float) -> tuple[str, Any]:
    return "image_zoom_in_tool", {"bbox_2d": list(box)}


def picture_of(part: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition("base64,")[2])))


def test_the_opening_is_the_missions(photos: Path) -> None:
    rollout, (request,) = solve(photos, says(ANSWER))
    system, user = request["messages"]
    assert system == {"role": "system", "content": "You are a helpful assistant."}
    assert [part["type"] for part in user["content"]] == ["image_url", "text"]
    assert user["content"][1]["text"] == TASK.user_prompt
    assert rollout.stop_reason is StopReason.ANSWERED
    assert rollout.score.details["distance@km"] == pytest.approx(0)


def test_the_stored_jpeg_is_sent_as_it_is(photos: Path) -> None:
    rollout, (request,) = solve(photos, says(ANSWER))
    sent = base64.b64decode(request["messages"][1]["content"][0]["image_url"]["url"].partition("base64,")[2])
    assert sent == rollout.sample.picture.data


def test_native_calls_are_answered_by_id_then_one_user_message_with_the_pictures(photos: Path) -> None:
    rollout, requests = solve(
        photos, calls(zoom(0, 0, 320, 240), ("image_rotate_tool", {"angle": 90}), content=None), says(ANSWER)
    )
    assistant, first, second, user = requests[1]["messages"][2:]
    assert assistant["content"] is None
    assert [call["id"] for call in assistant["tool_calls"]] == ["call-0", "call-1"]
    assert [(first["role"], first["tool_call_id"]), (second["role"], second["tool_call_id"])] == [
        ("tool", "call-0"),
        ("tool", "call-1"),
    ]
    assert user["role"] == "user"
    assert [picture_of(part).size for part in user["content"]] == [(320, 240), (240, 320)]
    assert [call.observation.success for call in rollout.turns[0].calls] == [True, True]


def test_a_call_works_on_the_picture_the_one_before_made(photos: Path) -> None:
    rollout, _ = solve(photos, calls(zoom(100, 100, 300, 200)), calls(zoom(0, 0, 50, 50)), says(ANSWER))
    facts = [turn.calls[0].observation.facts for turn in rollout.turns[:2]]
    assert [(item.width_px, item.height_px) for item in facts if item] == [(200, 100), (50, 50)]


def test_text_calls_are_answered_by_tool_responses_with_the_picture_in_place(photos: Path) -> None:
    content = f"Look.\n{text_call(*zoom(0, 0, 64, 64))}\n{text_call('image_rotate_tool', {'angle': 45})}"
    rollout, requests = solve(photos, says(content), says(ANSWER), mode=ToolMode.TEXT)
    assert "tools" not in requests[0]
    system = requests[0]["messages"][0]["content"]
    assert system.startswith("You are a helpful assistant.\n\n# Tools\n")
    assistant, user = requests[1]["messages"][2:]
    assert assistant == {"role": "assistant", "content": content}
    assert [part["type"] for part in user["content"]] == ["text", "image_url", "text"] * 2
    assert texts(user).count("<tool_response>") == texts(user).count("</tool_response>") == 2
    assert len(rollout.turns[0].calls) == 2


def test_earlier_messages_are_sent_again_to_the_byte(photos: Path) -> None:
    _, requests = solve(photos, calls(zoom(0, 0, 64, 64)), calls(zoom(0, 0, 32, 32)), says(ANSWER))
    for earlier, later in zip(requests, requests[1:], strict=False):
        assert json.dumps(later["messages"]).startswith(json.dumps(earlier["messages"])[:-1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("image_zoom_in_tool", "{broken"), "not valid JSON"),
        (("image_zoom_in_tool", {}), "bbox_2d"),
        (("image_zoom_in_tool", {"bbox_2d": [1, 2, 3]}), "four numbers"),
        (("image_zoom_in_tool", {"bbox_2d": [50, 50, 50, 90]}), "empty"),
        (("image_zoom_in_tool", {"bbox_2d": [900, 900, 1000, 1000]}), "outside"),
        (("image_rotate_tool", {"angle": "sideways"}), "number of degrees"),
        (("no_such_tool", {}), "no_such_tool"),
    ],
)
@pytest.mark.parametrize("mode", [ToolMode.NATIVE, ToolMode.TEXT])
def test_a_call_that_fails_goes_back_as_a_message_and_the_rollout_goes_on(
    photos: Path, call: tuple[str, Any], message: str, mode: ToolMode
) -> None:
    if mode is ToolMode.TEXT:
        bad = f"<tool_call>{call[1]}</tool_call>" if isinstance(call[1], str) else text_call(*call)
        first = says(bad)
    else:
        first = calls(call)
    rollout, requests = solve(photos, first, says(ANSWER), mode=mode)
    (logged,) = rollout.turns[0].calls
    assert not logged.observation.success
    assert message in logged.observation.message
    assert message in texts(requests[1]["messages"][3])
    assert num_pictures(requests[1]) == 1
    assert rollout.stop_reason is StopReason.ANSWERED


def test_broken_native_arguments_are_sent_back_as_an_object(photos: Path) -> None:
    _, requests = solve(photos, calls(("image_zoom_in_tool", "{broken")), says(ANSWER))
    (call,) = requests[1]["messages"][2]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {}


def test_a_failed_call_leaves_the_picture_for_the_next_one(photos: Path) -> None:
    rollout, _ = solve(
        photos,
        calls(zoom(0, 0, 200, 100), zoom(5, 5, 5, 5), ("image_rotate_tool", {"angle": 90})),
        says(ANSWER),
    )
    facts = [call.observation.facts for call in rollout.turns[0].calls]
    assert facts[1] is None
    assert facts[2] is not None and (facts[2].width_px, facts[2].height_px) == (100, 200)


def test_missing_or_double_call_ids_are_replaced(photos: Path) -> None:
    entry = {"type": "function", "function": {"name": "image_rotate_tool", "arguments": '{"angle": 90}'}}
    reply = completion({"content": "", "tool_calls": [entry | {"id": "x"}, entry | {"id": "x"}]})
    _, requests = solve(photos, reply, says(ANSWER))
    assistant, first, second = requests[1]["messages"][2:5]
    ids = [call["id"] for call in assistant["tool_calls"]]
    assert len(set(ids)) == 2
    assert [first["tool_call_id"], second["tool_call_id"]] == ids


def test_text_calls_from_a_native_run_are_run_all_the_same(photos: Path) -> None:
    rollout, requests = solve(
        photos, says(text_call(*zoom(0, 0, 64, 64))), says(ANSWER), mode=ToolMode.NATIVE
    )
    assert rollout.turns[0].calls[0].observation.success
    assert "<tool_response>" in texts(requests[1]["messages"][3])


def test_a_cut_off_turn_is_no_answer_and_its_calls_are_not_run(photos: Path) -> None:
    rollout, requests = solve(
        photos, says(f"{ANSWER} and {text_call(*zoom(0, 0, 9, 9))}", finish_reason="length")
    )
    assert rollout.stop_reason is StopReason.TRUNCATED
    assert not rollout.score.parse_success
    assert rollout.turns[0].calls == ()
    assert len(requests) == 1


@pytest.mark.parametrize(
    "reply", [completion({"content": None, "refusal": "I cannot"}), says("", finish_reason="content_filter")]
)
def test_a_refusal_ends_the_rollout(photos: Path, reply: Any) -> None:
    assert solve(photos, reply)[0].stop_reason is StopReason.REFUSED


OVERFLOW = 400, {"error": {"message": "too long", "code": "context_length_exceeded"}}


def test_a_context_overflow_keeps_what_was_reached(photos: Path) -> None:
    rollout, requests = solve(photos, calls(zoom(0, 0, 64, 64), content=ANSWER), OVERFLOW)
    assert rollout.stop_reason is StopReason.CONTEXT_OVERFLOW
    assert (len(rollout.turns), len(requests)) == (1, 2)
    assert rollout.turns[0].calls[0].observation.success
    assert rollout.answer is not None, "the last turn may hold one, as with max_turns"


def test_a_context_overflow_at_the_start_is_a_failure(photos: Path) -> None:
    with pytest.raises(ContextOverflow):
        solve(photos, OVERFLOW)


def test_calls_beside_an_answer_are_run_first(photos: Path) -> None:
    rollout, _ = solve(photos, calls(zoom(0, 0, 64, 64), content=ANSWER), says("\\boxed{1, 2}"))
    assert len(rollout.turns) == 2
    assert rollout.answer == {"lat": 1, "lon": 2}


def test_the_last_allowed_turn_ends_the_rollout(photos: Path) -> None:
    rollout, requests = solve(photos, calls(zoom(0, 0, 64, 64)), max_turns=3)
    assert rollout.stop_reason is StopReason.MAX_TURNS
    assert len(rollout.turns) == len(requests) == 3
    assert not rollout.score.parse_success


def test_thinking_holds_neither_call_nor_answer(photos: Path) -> None:
    rollout, _ = solve(
        photos, says(f"<think>{text_call(*zoom(0, 0, 9, 9))} \\boxed{{1, 1}}</think>I do not know")
    )
    assert rollout.stop_reason is StopReason.ANSWERED
    assert rollout.answer is None
    assert rollout.turns[0].calls == ()


def test_null_content_without_calls_is_an_empty_answer(photos: Path) -> None:
    rollout, _ = solve(photos, says(None))
    assert (rollout.stop_reason, rollout.answer) == (StopReason.ANSWERED, None)


@pytest.mark.parametrize(
    ("frame", "box", "pixels"),
    [
        (Frame.PIXEL, (100, 50, 300, 250), [100, 50, 300, 250]),
        (Frame.REL1000, (500, 500, 1000, 1000), [320, 240, 640, 480]),
        (Frame.REL1000_YX, (0, 500, 500, 1000), [320, 0, 640, 240]),
        (Frame.REL1, (0.5, 0.0, 1.0, 0.5), [320, 0, 640, 240]),
    ],
)
def test_boxes_are_stored_in_pixels_of_the_picture_they_crop(
    photos: Path, frame: Frame, box: tuple[float, ...], pixels: list[int]
) -> None:
    rollout, requests = solve(photos, calls(zoom(*box)), says(ANSWER), frame=frame)
    (call,) = rollout.turns[0].calls
    assert call.arguments == {"bbox_2d": pixels}
    assert call.raw.arguments == {"bbox_2d": list(box)}
    assert picture_of(requests[1]["messages"][4]["content"][0]).size == (
        pixels[2] - pixels[0],
        pixels[3] - pixels[1],
    )


def test_pixel_boxes_refer_to_the_picture_as_sent(photos: Path) -> None:
    rollout, requests = solve(
        photos, calls(zoom(0, 0, 160, 120)), says(ANSWER), rule=ResizeRule(max_area_px=320 * 240)
    )
    assert picture_of(requests[0]["messages"][1]["content"][0]).size == (320, 240)
    assert rollout.turns[0].calls[0].arguments == {"bbox_2d": [0, 0, 320, 240]}


def test_sizes_are_stated_where_the_profile_says_so(photos: Path) -> None:
    toolbox = Toolbox(load_tools("zoom"), BoxFrame(Frame.PIXEL), ResizeRule(), states_size=True)
    prompt = Prompt("s", "u", toolbox.schemas(), ToolMode.NATIVE, states_size=True)
    replies = [calls(zoom(0, 0, 64, 48)), says(ANSWER)]
    with ScriptedTeacher(lambda _: replies.pop(0)) as server:
        with Teacher(teacher_settings(server.api_base, "EMPTY", model="m"), prompt.tools) as teacher:
            sample = open_source(str(photos)).load(SampleId(0))
            run_rollout(sample, teacher.ask, RolloutSettings(TASK, prompt, toolbox, 10, 0))
    assert "640×480 pixels" in texts(server.requests[0]["messages"][1])
    assert "64×48 pixels" in texts(server.requests[1]["messages"][3])


def test_each_request_has_a_seed_of_its_own(photos: Path) -> None:
    _, requests = solve(photos, calls(zoom(0, 0, 64, 64)), says(ANSWER))
    assert [request["seed"] for request in requests] == [
        turn_seed(0, SampleId(0), 1),
        turn_seed(0, SampleId(0), 2),
    ]
    seeds = {
        turn_seed(seed, SampleId(row), turn) for seed in range(5) for row in range(50) for turn in range(1, 5)
    }
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_crops_of_the_original_are_cut_from_it(photos: Path) -> None:
    rollout, _ = solve(
        photos,
        calls(zoom(0, 0, 100, 100)),
        calls(zoom(400, 300, 640, 480)),
        says(ANSWER),
        crop_from=CropFrom.ORIGINAL,
    )
    second = rollout.turns[1].calls[0]
    assert second.arguments == {"bbox_2d": [400, 300, 640, 480], "crop_from": "original"}
    assert second.observation.facts is not None and second.observation.facts.width_px == 240
