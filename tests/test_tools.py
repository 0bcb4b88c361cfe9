"""Zoom and rotate: arguments are resolved once, stored, and applied again to the same pixels."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from builders import noise, same_pixels
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from distil.errors import ToolError, UsageError
from distil.pictures import Frame, ResizeRule, encode_sent, picture_facts
from distil.records import RawCall, ToolCall
from distil.tools.base import BoxFrame, CropFrom, Scene
from distil.tools.toolbox import TOOLS, Toolbox, all_tools, load_tools

ZOOM, ROTATE = "image_zoom_in_tool", "image_rotate_tool"
BOTH = load_tools("zoom,rotate")
PIXELS = BoxFrame(Frame.PIXEL)
FROM_ORIGINAL = BoxFrame(Frame.PIXEL, CropFrom.ORIGINAL)
AS_IS = ResizeRule(min_side_px=1)


def toolbox(boxes: BoxFrame = PIXELS, rule: ResizeRule = AS_IS, states_size: bool = False) -> Toolbox:
    return Toolbox(BOTH, boxes, rule, states_size)


def run_calls(
    box: Toolbox, picture: Image.Image, calls: Sequence[RawCall]
) -> tuple[list[ToolCall], list[Scene]]:
    """Run calls one after another, as a rollout does; the scene after each."""
    scene, original = Scene.start(picture), encode_sent(picture, box.rule)
    current, done, scenes = original, [], []
    for raw in calls:
        call, scene = box.run(raw, scene, original, current)
        current = call.observation.sent or current
        done.append(call)
        scenes.append(scene)
    return done, scenes


def zoom(*box: Any) -> RawCall:
    return RawCall(ZOOM, {"bbox_2d": list(box)})


def rotate(angle: Any) -> RawCall:
    return RawCall(ROTATE, {"angle": angle})


def run_one(call: RawCall, picture: Image.Image | None = None, box: Toolbox | None = None) -> ToolCall:
    (done,), _ = run_calls(box or toolbox(), picture or noise(64, 48), [call])
    return done


def refusal_of(call: RawCall, picture: Image.Image | None = None, box: Toolbox | None = None) -> str:
    """The message of a call that must fail and leave the scene alone."""
    picture = picture or noise(64, 48)
    (done,), (scene,) = run_calls(box or toolbox(), picture, [call])
    assert not done.observation.success
    assert (done.observation.facts, done.observation.sent) == (None, None)
    assert done.arguments == {}
    assert not done.clamped
    assert scene.original is scene.current is picture
    assert scene.corner == (0, 0)
    assert done.observation.message.startswith("Error: ")
    return done.observation.message


def restored(picture: Image.Image, calls: Sequence[ToolCall]) -> Image.Image:
    """The mission's restore recipe, as written."""
    image = picture
    for call in json.loads(
        json.dumps([{"tool_name": c.raw.name, "tool_arguments": c.arguments} for c in calls])
    ):
        if call["tool_name"] == "image_zoom_in_tool":
            image = image.crop(call["tool_arguments"]["bbox_2d"])
        elif call["tool_name"] == "image_rotate_tool":
            image = image.rotate(call["tool_arguments"]["angle"], expand=True)
    return image


# --- the registry


def test_every_tool_has_its_own_name_and_flag() -> None:
    flags, names = list(TOOLS), [tool.name for tool in all_tools()]
    assert len(set(flags)) == len(flags)
    assert len(set(names)) == len(names)


def test_tools_are_loaded_in_the_order_asked_for() -> None:
    assert [tool.name for tool in load_tools("rotate, zoom")] == [ROTATE, ZOOM]
    assert load_tools("none") == ()


@pytest.mark.parametrize("names", ["", "zom", "zoom,none", "zoom,zoom", ","])
def test_a_tool_list_that_cannot_be_meant_is_a_usage_error(names: str) -> None:
    with pytest.raises(UsageError, match="--tools"):
        load_tools(names)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (Frame.PIXEL, ["[x1, y1, x2, y2]", "pixel"]),
        (Frame.REL1000, ["[x1, y1, x2, y2]", "0 to 1000"]),
        (Frame.REL1000_YX, ["[y1, x1, y2, x2]", "0 to 1000"]),
        (Frame.REL1, ["[x1, y1, x2, y2]", "0 to 1 "]),
    ],
)
@pytest.mark.parametrize("crop_from", list(CropFrom))
def test_the_zoom_schema_says_the_frame_and_the_picture(
    frame: Frame, words: list[str], crop_from: CropFrom
) -> None:
    zoom_schema, _ = toolbox(BoxFrame(frame, crop_from)).schemas()
    function = zoom_schema["function"]
    text = function["parameters"]["properties"]["bbox_2d"]["description"]
    assert function["name"] == ZOOM
    assert all(word in text for word in words)
    assert ("original" in text) == (crop_from is CropFrom.ORIGINAL)
    json.dumps(zoom_schema, allow_nan=False)


def test_the_rotate_schema_says_degrees_and_direction() -> None:
    _, schema = toolbox().schemas()
    text = json.dumps(schema).lower()
    assert schema["function"]["name"] == ROTATE
    assert "degrees" in text
    assert "counter-clockwise" in text


# --- zoom


@pytest.mark.parametrize(
    ("frame", "box"),
    [
        (Frame.PIXEL, (100, 75, 300, 225)),
        (Frame.REL1000, (250, 250, 750, 750)),
        (Frame.REL1000_YX, (250, 250, 750, 750)),
        (Frame.REL1, (0.25, 0.25, 0.75, 0.75)),
    ],
)
@pytest.mark.parametrize("rule", [AS_IS, ResizeRule(max_area_px=400 * 300, min_side_px=1)])
def test_zoom_crops_the_box_at_full_resolution_in_every_frame(
    frame: Frame, box: tuple[float, ...], rule: ResizeRule
) -> None:
    picture = noise(800, 600) if rule.max_area_px else noise(400, 300)
    width, height = picture.size
    expected = [width // 4, height // 4, width * 3 // 4, height * 3 // 4]
    (call,), (scene,) = run_calls(toolbox(BoxFrame(frame), rule), picture, [zoom(*box)])
    assert call.arguments == {"bbox_2d": expected}
    assert call.observation.success
    assert not call.clamped
    assert same_pixels(scene.current, picture.crop(expected))


def test_yx_boxes_are_taken_y_first() -> None:
    box = toolbox(BoxFrame(Frame.REL1000_YX))
    assert run_one(zoom(0, 500, 250, 1000), noise(400, 300), box).arguments == {"bbox_2d": [200, 0, 400, 75]}


def test_a_box_refers_to_the_picture_that_the_previous_call_made() -> None:
    picture = noise(400, 300)
    calls, scenes = run_calls(
        toolbox(BoxFrame(Frame.REL1000)), picture, [zoom(500, 500, 1000, 1000), zoom(0, 0, 500, 500)]
    )
    assert calls[1].arguments == {"bbox_2d": [0, 0, 100, 75]}
    assert same_pixels(scenes[1].current, picture.crop((200, 150, 300, 225)))


def test_stored_boxes_are_whole_numbers() -> None:
    box = run_one(zoom(1.2, 2.7, 30.1, 40.9)).arguments["bbox_2d"]
    assert box == [1, 2, 31, 41]
    assert all(type(side) is int for side in box)


def test_a_box_beyond_the_picture_is_clamped_and_says_so() -> None:
    call = run_one(zoom(-5, -5, 1000, 20))
    assert call.arguments == {"bbox_2d": [0, 0, 64, 20]}
    assert call.clamped
    assert call.observation.success


@pytest.mark.parametrize("value", ["[1, 2, 30, 40]", [1.0, "2", " 30 ", 40], ["1", "2", "30", "40"]])
def test_a_box_in_text_form_is_understood(value: Any) -> None:
    assert run_one(RawCall(ZOOM, {"bbox_2d": value})).arguments == {"bbox_2d": [1, 2, 30, 40]}


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        7,
        "a box",
        "",
        "1, 2, 30, 40",
        "[1, 2, 30",
        "[" * 100_000,
        "1" * 10_000,
        [],
        [1, 2, 3],
        [1, 2, 3, 4, 5],
        [[1, 2], [30, 40]],
        [[1, 2, 30, 40]],
        [1, 2, 30, None],
        [1, 2, 30, "wide"],
        [True, False, True, True],
        [1, 2, 30, math.nan],
        [1, 2, math.inf, 40],
        "[1, 2, NaN, 40]",
        [1, 2, 30, 10**400],
        {"x1": 1, "y1": 2, "x2": 30, "y2": 40},
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_malformed_box_is_answered_with_an_example(value: Any) -> None:
    message = refusal_of(RawCall(ZOOM, {"bbox_2d": value}))
    assert "four numbers" in message
    assert '{"bbox_2d": [' in message
    assert len(message) < 1000


@pytest.mark.parametrize("arguments", [{}, {"bbox": [1, 2, 30, 40]}, {"box_2d": [1, 2, 3, 4], "label": "x"}])
def test_a_missing_box_is_named_with_what_was_given(arguments: Mapping[str, Any]) -> None:
    message = refusal_of(RawCall(ZOOM, arguments))
    assert "bbox_2d" in message
    assert all(name in message for name in arguments)


@pytest.mark.parametrize("box", [(10, 10, 10, 20), (20, 10, 10, 20), (0, 0, 0, 0)])
def test_an_empty_box_is_answered_with_what_it_needs(box: tuple[int, ...]) -> None:
    assert "x1 < x2" in refusal_of(zoom(*box))


def test_a_box_outside_is_answered_with_the_size_as_sent() -> None:
    message = refusal_of(zoom(500, 500, 900, 900), noise(300, 200), toolbox(rule=ResizeRule(factor_px=28)))
    assert "308" in message
    assert "196" in message


def test_a_thin_box_is_refused_and_a_just_wide_enough_one_is_not() -> None:
    picture = noise(400, 400)
    assert "thin" in refusal_of(zoom(0, 0, 301, 3), picture)
    assert run_one(zoom(0, 0, 300, 3), picture).observation.success
    assert "thin" in refusal_of(zoom(7, 0, 8, 400), picture)


# --- crop_from original


def test_a_box_inside_the_current_crop_is_stored_relative_to_it() -> None:
    picture = noise(400, 300)
    calls, scenes = run_calls(
        toolbox(FROM_ORIGINAL), picture, [zoom(100, 50, 300, 250), zoom(150, 100, 250, 200)]
    )
    assert calls[1].arguments == {"bbox_2d": [50, 50, 150, 150]}
    assert same_pixels(scenes[1].current, picture.crop((150, 100, 250, 200)))
    assert same_pixels(restored(picture, calls), scenes[1].current)


def test_a_box_outside_the_current_crop_is_stored_as_of_the_original() -> None:
    picture = noise(400, 300)
    calls, scenes = run_calls(toolbox(FROM_ORIGINAL), picture, [zoom(0, 0, 100, 100), zoom(50, 50, 200, 150)])
    assert calls[1].arguments == {"bbox_2d": [50, 50, 200, 150], "crop_from": "original"}
    assert same_pixels(scenes[1].current, picture.crop((50, 50, 200, 150)))


def test_a_box_after_a_rotation_is_stored_as_of_the_original() -> None:
    picture = noise(400, 300)
    calls, scenes = run_calls(toolbox(FROM_ORIGINAL), picture, [rotate(90), zoom(10, 20, 200, 150)])
    assert calls[1].arguments == {"bbox_2d": [10, 20, 200, 150], "crop_from": "original"}
    assert same_pixels(scenes[1].current, picture.crop((10, 20, 200, 150)))


def test_after_a_crop_of_the_original_boxes_are_relative_again() -> None:
    picture = noise(400, 300)
    calls, scenes = run_calls(
        toolbox(FROM_ORIGINAL), picture, [rotate(45), zoom(100, 50, 300, 250), zoom(110, 60, 200, 200)]
    )
    assert calls[2].arguments == {"bbox_2d": [10, 10, 100, 150]}
    assert same_pixels(scenes[2].current, picture.crop((110, 60, 200, 200)))


def test_boxes_of_the_original_are_in_the_size_the_original_was_sent_at() -> None:
    picture = noise(800, 600)
    box = toolbox(BoxFrame(Frame.PIXEL, CropFrom.ORIGINAL), ResizeRule(max_area_px=400 * 300, min_side_px=1))
    calls, scenes = run_calls(box, picture, [zoom(100, 100, 300, 200), zoom(150, 125, 200, 150)])
    assert same_pixels(scenes[0].current, picture.crop((200, 200, 600, 400)))
    assert same_pixels(scenes[1].current, picture.crop((300, 250, 400, 300)))
    assert same_pixels(restored(picture, calls), scenes[1].current)


# --- rotate


@pytest.mark.parametrize(
    ("value", "stored"),
    [(90, 90), (90.0, 90), ("90", 90), ("-45.5", -45.5), (-90, -90), (0, 0), (720, 720), (12.25, 12.25)],
)
def test_an_angle_is_stored_in_degrees_and_turns_counter_clockwise(value: Any, stored: float) -> None:
    picture = noise(64, 48)
    (call,), (scene,) = run_calls(toolbox(), picture, [rotate(value)])
    assert call.arguments == {"angle": stored}
    assert type(call.arguments["angle"]) is type(stored)
    assert same_pixels(scene.current, picture.rotate(stored, expand=True))


def test_a_quarter_turn_brings_the_right_edge_to_the_top() -> None:
    picture = noise(64, 48)
    _, (scene,) = run_calls(toolbox(), picture, [rotate(90)])
    assert scene.current.size == (48, 64)
    assert scene.current.getpixel((0, 0)) == picture.getpixel((63, 0))


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        "ninety",
        "90°",
        "",
        [90],
        {"degrees": 90},
        math.nan,
        math.inf,
        "inf",
        "nan",
        10**400,
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_malformed_angle_is_answered_with_an_example(value: Any) -> None:
    message = refusal_of(rotate(value))
    assert "angle" in message
    assert '{"angle": 90}' in message


def test_a_missing_angle_is_named() -> None:
    assert "angle" in refusal_of(RawCall(ROTATE, {"degrees": 90}))


@pytest.mark.parametrize("angle", [1e300, -1e300, 1e15, 359.999999, 1e-9])
def test_an_extreme_angle_is_applied_or_refused(angle: float) -> None:
    assert run_one(rotate(angle)).observation.message


def test_slanted_rotations_cannot_grow_a_picture_without_bound() -> None:
    calls, scenes = run_calls(toolbox(), noise(1500, 1500, "L"), [rotate(45)] * 8)
    failed = [call for call in calls if not call.observation.success]
    assert failed
    assert all("too large" in call.observation.message for call in failed)
    assert max(math.prod(scene.current.size) for scene in scenes) <= 64_100_000
    assert calls[0].observation.success


@pytest.mark.parametrize("angle", [90, 360])
def test_a_quarter_turn_of_a_large_picture_is_no_growth(angle: int) -> None:
    picture = Image.new("1", (9000, 8000))
    (call,), _ = run_calls(toolbox(rule=ResizeRule(max_area_px=10_000)), picture, [rotate(angle)])
    assert call.observation.success


# --- the toolbox


@pytest.mark.parametrize("name", ["", "zoom", "python", "x" * 10_000, "image_zoom_in_tool "])
def test_an_unknown_tool_is_answered_with_the_tools_there_are(name: str) -> None:
    message = refusal_of(RawCall(name, {}))
    assert ZOOM in message
    assert ROTATE in message
    assert len(message) < 500


def test_a_tool_that_is_not_offered_is_unknown() -> None:
    only_zoom = Toolbox(load_tools("zoom"), PIXELS, AS_IS)
    assert ZOOM in refusal_of(rotate(90), box=only_zoom)


def test_a_call_that_could_not_be_read_is_answered_with_its_problem() -> None:
    assert "not valid JSON" in refusal_of(RawCall(ZOOM, "{broken", problem="not valid JSON"))


def test_a_failed_call_does_not_stop_the_calls_after_it() -> None:
    picture = noise(64, 48)
    calls, scenes = run_calls(toolbox(), picture, [zoom(8, 8, 40, 40), zoom(5, 5, 5, 5), rotate(180)])
    assert [call.observation.success for call in calls] == [True, False, True]
    expected = picture.crop((8, 8, 40, 40)).rotate(180, expand=True)
    assert same_pixels(scenes[2].current, expected)


def test_a_successful_call_says_so_and_reports_the_picture() -> None:
    picture = noise(64, 48)
    observation = run_one(zoom(0, 0, 40, 40), picture).observation
    assert observation.message == "Success: Image processed successfully"
    assert observation.facts == picture_facts(picture.crop((0, 0, 40, 40)))
    assert observation.sent is not None


def test_the_size_as_sent_is_stated_where_the_teacher_needs_it() -> None:
    box = toolbox(rule=ResizeRule(factor_px=28), states_size=True)
    observation = run_one(zoom(0, 0, 200, 100), noise(300, 200), box).observation
    assert "196×112" in observation.message


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_every_mode_can_be_cropped_turned_and_sent(mode: str) -> None:
    picture = noise(64, 48, mode)
    calls, scenes = run_calls(toolbox(), picture, [zoom(4, 4, 60, 44), rotate(90), rotate(10)])
    assert all(call.observation.success for call in calls)
    assert same_pixels(restored(picture, calls), scenes[-1].current)


# --- sampling and replay are one function

NUMBERS = st.floats(-0.2, 1.3)
ZOOMS = st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS).map(lambda box: ("zoom", box))
ROTATIONS = st.sampled_from([0, 90, -90, 180, 30, -12.5, 360]).map(lambda angle: ("rotate", angle))
CHAINS = st.lists(ZOOMS | ZOOMS | ROTATIONS, max_size=6)
RULES = st.sampled_from(
    [
        ResizeRule(),
        ResizeRule(factor_px=28, min_side_px=28, min_area_px=3136, max_area_px=20_000),
        ResizeRule(max_side_px=100),
    ]
)
BOX_FRAMES = st.builds(BoxFrame, st.sampled_from(list(Frame)), st.sampled_from(list(CropFrom)))
PHOTO = noise(160, 120)


def raw_calls(chain: Sequence[tuple[str, Any]], frame: Frame) -> list[RawCall]:
    scale = {Frame.PIXEL: 150.0, Frame.REL1: 1.0}.get(frame, 1000.0)
    return [
        rotate(value) if kind == "rotate" else zoom(*(side * scale for side in value))
        for kind, value in chain
    ]


@given(CHAINS, BOX_FRAMES, RULES)
def test_stored_arguments_give_the_same_pictures_again(
    chain: list[tuple[str, Any]], boxes: BoxFrame, rule: ResizeRule
) -> None:
    box = toolbox(boxes, rule)
    calls, scenes = run_calls(box, PHOTO, raw_calls(chain, boxes.frame))
    replayed = Scene.start(PHOTO)
    for call, scene in zip(calls, scenes, strict=True):
        if call.observation.success:
            stored = json.loads(json.dumps(call.arguments))
            observation, replayed = box.observe(call.raw.name, stored, replayed)
            assert observation == call.observation
        assert same_pixels(replayed.current, scene.current)


@given(CHAINS, BOX_FRAMES, RULES)
def test_the_restore_recipe_gives_the_same_final_picture(
    chain: list[tuple[str, Any]], boxes: BoxFrame, rule: ResizeRule
) -> None:
    calls, scenes = run_calls(toolbox(boxes, rule), PHOTO, raw_calls(chain, boxes.frame))
    succeeded = [call for call in calls if call.observation.success]
    if scenes and not any("crop_from" in call.arguments for call in succeeded):
        assert same_pixels(restored(PHOTO, succeeded), scenes[-1].current)


@given(CHAINS, BOX_FRAMES, RULES)
def test_a_crop_that_succeeded_never_holds_padding(
    chain: list[tuple[str, Any]], boxes: BoxFrame, rule: ResizeRule
) -> None:
    calls, scenes = run_calls(toolbox(boxes, rule), PHOTO, raw_calls(chain, boxes.frame))
    before = Scene.start(PHOTO)
    for call, scene in zip(calls, scenes, strict=True):
        if call.observation.success and call.raw.name == ZOOM:
            cropped = before.original if "crop_from" in call.arguments else before.current
            x1, y1, x2, y2 = call.arguments["bbox_2d"]
            assert 0 <= x1 < x2 <= cropped.width
            assert 0 <= y1 < y2 <= cropped.height
            assert scene.current.size == (x2 - x1, y2 - y1)
        before = scene


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from([ZOOM, ROTATE, "other"]), st.sampled_from(["bbox_2d", "angle", "x"]), JSON_VALUES)
def test_any_arguments_either_work_or_are_answered(name: str, key: str, value: Any) -> None:
    call = run_one(RawCall(name, {key: value}))
    assert call.observation.success or call.observation.message.startswith("Error: ")
    assert call.observation.success == (call.arguments != {})


def test_stored_arguments_that_name_an_unknown_tool_raise() -> None:
    with pytest.raises(ToolError, match="no tool"):
        toolbox().observe("other", {}, Scene.start(PHOTO))
