"""Each teacher family's boxes and pictures, by the model's name."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distil.pictures import Frame, ResizeRule, sent_size
from distil.teacher.profile import PROFILES, UNKNOWN, Profile, find_profile, with_frame, with_max_area


@pytest.mark.parametrize(
    ("model", "frame"),
    [
        ("Qwen/Qwen-VL-Chat", Frame.REL1000),
        ("Qwen/Qwen2-VL-7B-Instruct", Frame.REL1000),
        ("Qwen/Qwen3-VL-235B-A22B-Instruct", Frame.REL1000),
        ("qwen3-vl:8b", Frame.REL1000),
        ("Qwen3_VL-8B", Frame.REL1000),
        ("Qwen3.5-397B-A17B", Frame.REL1000),
        ("OpenGVLab/InternVL2_5-78B", Frame.REL1000),
        ("OpenGVLab/InternVL3_5-38B", Frame.REL1000),
        ("zai-org/GLM-4.5V", Frame.REL1000),
        ("glm-4.6v-flash", Frame.REL1000),
        ("Qwen/Qwen2.5-VL-72B-Instruct", Frame.PIXEL),
        ("qwen2.5vl:7b", Frame.PIXEL),
        ("models/Qwen2_5-VL-7B", Frame.PIXEL),
        ("gemini-2.5-pro", Frame.REL1000_YX),
        ("google/gemini-3-pro-preview", Frame.REL1000_YX),
        ("claude-sonnet-4-5", Frame.PIXEL),
        ("anthropic/claude-opus-4.1", Frame.PIXEL),
        ("gpt-4o", Frame.PIXEL),
        ("openai/gpt-5-mini", Frame.PIXEL),
        ("o3", Frame.PIXEL),
        ("TIGER-Lab/PixelReasoner-RL-v1", Frame.REL1),
        ("Pixel-Reasoner-Qwen2.5-VL-7B", Frame.REL1),
        ("Mini-o3-7B-v1", Frame.REL1),
        ("llava-onevision", Frame.PIXEL),
    ],
)
def test_a_model_s_name_decides_its_box_frame(model: str, frame: Frame) -> None:
    assert find_profile(model).frame is frame


@pytest.mark.parametrize("model", ["Qwen2.5-VL-7B-Instruct", "qwen2.5vl:7b", "Qwen2_5_VL-7B"])
def test_qwen25_pictures_are_resized_as_its_server_would(model: str) -> None:
    assert sent_size((1920, 1080), find_profile(model).rule) == (1932, 1092)


@pytest.mark.parametrize("model", ["claude-sonnet-4-5", "gpt-4o", "gpt-5", "o3", "some-unknown-model"])
def test_a_family_without_a_convention_is_told_the_size(model: str) -> None:
    assert find_profile(model).states_size


@pytest.mark.parametrize("model", ["Qwen3-VL-8B", "gemini-2.5-flash", "InternVL3-8B"])
def test_a_family_with_relative_boxes_is_not_told_the_size(model: str) -> None:
    assert not find_profile(model).states_size


@pytest.mark.parametrize("model", ["o1", "o3-mini", "openai/o4-mini", "gpt-5", "gpt-5-nano"])
def test_reasoning_models_take_max_completion_tokens_and_no_temperature(model: str) -> None:
    profile = find_profile(model)
    assert profile.token_field == "max_completion_tokens"
    assert not profile.sends_temperature


@pytest.mark.parametrize("model", ["gpt-4o", "chatgpt-4o-latest", "Qwen3-VL-8B", "Mini-o3-7B", "unknown"])
def test_other_models_take_max_tokens_and_a_temperature(model: str) -> None:
    profile = find_profile(model)
    assert profile.token_field == "max_tokens"
    assert profile.sends_temperature


def test_names_in_the_table_are_unique() -> None:
    names = [profile.name for profile in (*PROFILES, UNKNOWN)]
    assert len(set(names)) == len(names)


@given(st.text())
def test_any_model_name_has_a_profile(model: str) -> None:
    assert find_profile(model) in (*PROFILES, UNKNOWN)


@pytest.mark.parametrize("profile", [*PROFILES, UNKNOWN], ids=lambda profile: profile.name)
@given(width=st.integers(60, 9000), aspect=st.floats(1, 40), upright=st.booleans())
def test_a_sent_picture_leaves_nothing_to_resize(
    profile: Profile, width: int, aspect: float, upright: bool
) -> None:
    size = (width, math.ceil(width / aspect))
    sent = sent_size(size[::-1] if upright else size, profile.rule)
    rule = profile.rule
    assert all(side % rule.factor_px == 0 and side >= rule.min_side_px for side in sent)
    assert rule.max_area_px is None or sent[0] * sent[1] <= rule.max_area_px
    assert rule.max_side_px is None or max(sent) <= rule.max_side_px
    assert sent_size(sent, rule) == sent


def test_without_an_override_the_frame_stays() -> None:
    qwen = find_profile("Qwen3-VL-8B")
    assert with_frame(qwen, None) == qwen
    assert with_frame(qwen, Frame.REL1000) == qwen


def test_pixels_asked_of_a_relative_family_are_stated() -> None:
    changed = with_frame(find_profile("Qwen3-VL-8B"), Frame.PIXEL)
    assert (changed.frame, changed.states_size) == (Frame.PIXEL, True)


def test_relative_boxes_asked_of_a_pixel_family_need_no_stated_size() -> None:
    changed = with_frame(find_profile("gpt-4o"), Frame.REL1000)
    assert (changed.frame, changed.states_size) == (Frame.REL1000, False)


def test_image_max_pixels_lowers_a_limit_and_never_raises_it() -> None:
    qwen25 = find_profile("Qwen2.5-VL-7B")
    assert with_max_area(qwen25, None) == qwen25
    assert with_max_area(qwen25, 1_003_520).rule.max_area_px == 1_003_520
    assert with_max_area(qwen25, 10**9).rule.max_area_px == qwen25.rule.max_area_px
    assert with_max_area(UNKNOWN, 500_000).rule == ResizeRule(max_area_px=500_000)
    assert with_max_area(UNKNOWN, 10**8).rule == ResizeRule(max_area_px=10**8), "but a guess gives way"


def test_image_max_pixels_keeps_the_factor() -> None:
    rule = with_max_area(find_profile("Qwen2.5-VL-7B"), 1_003_520).rule
    assert sent_size((1920, 1080), rule) == (1316, 728)
