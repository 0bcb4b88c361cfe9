"""How teacher families talk: the frame of their boxes, how they resize pictures, their request fields.

To add a family, add one `Profile` to `PROFILES`; the first whose pattern is found in the model's name
wins. Sources: the model cards and processors of each family (Qwen2-VL `smart_resize`: Hugging Face
transformers, `image_processing_qwen2_vl.py`; Claude: "Vision" in Anthropic's docs; GPT: "Images and
vision" in OpenAI's docs; Gemini: "Image understanding" in Google's docs).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from distil.pictures import ResizeRule
from distil.records import Frame

_CLAUDE_RULE = ResizeRule(max_side_px=1568, max_area_px=1_150_000)
_GPT_RULE = ResizeRule(max_side_px=2048, max_area_px=1_500_000)
_QWEN25_RULE = ResizeRule(max_area_px=12_845_056, min_area_px=3_136, min_side_px=28, factor_px=28)


@dataclass(frozen=True, slots=True)
class Profile:
    """One teacher family. `states_size` tells it each picture's size in words: its boxes are pixels."""

    name: str
    pattern: str  # a regular expression, searched in the lower-case model name with "_" as "-"
    frame: Frame
    rule: ResizeRule = field(default_factory=ResizeRule)
    states_size: bool = False
    token_field: str = "max_tokens"
    sends_temperature: bool = True


PROFILES: tuple[Profile, ...] = (
    Profile("distil-sign-reader", r"^distil-sign-reader", Frame.PIXEL),
    Profile("pixel-reasoner", r"pixel-?reasoner|mini-?o3", Frame.REL1),
    # Absolute pixels after the server's resize: ours makes the server's the identity.
    Profile("qwen2.5-vl", r"qwen-?2[.-]?5-?vl|deepeyes", Frame.PIXEL, _QWEN25_RULE),
    Profile("qwen-vl", r"qwen.*vl|qvq|qwen-?3\.[5-9]", Frame.REL1000),
    Profile("internvl", r"internvl", Frame.REL1000),
    Profile("glm-v", r"glm-?4\.[0-9]+v|glm-?5v", Frame.REL1000),
    Profile("gemini", r"gemini", Frame.REL1000_YX),
    Profile("claude", r"claude", Frame.PIXEL, _CLAUDE_RULE, states_size=True),
    Profile(
        "gpt-reasoning",
        r"(^|/)(gpt-?[5-9]|o[1-9])",
        Frame.PIXEL,
        _GPT_RULE,
        states_size=True,
        token_field="max_completion_tokens",
        sends_temperature=False,
    ),
    Profile("gpt", r"(^|/)(gpt|chatgpt)", Frame.PIXEL, _GPT_RULE, states_size=True),
)
# More than most families look at (Claude 1.15, GPT 1.5, InternVL 2.4 million pixels), so they miss nothing;
# and no more than servers take: a photo of 100 million pixels is refused, or fills a context.
_UNKNOWN_RULE = ResizeRule(max_area_px=2048 * 2048)
UNKNOWN = Profile("unknown", "", Frame.PIXEL, _UNKNOWN_RULE, states_size=True)


def find_profile(model: str) -> Profile:
    """The profile of a model's family by its name; `UNKNOWN` states sizes and takes boxes as pixels."""
    name = model.lower().replace("_", "-")
    return next((profile for profile in PROFILES if re.search(profile.pattern, name)), UNKNOWN)


def with_frame(profile: Profile, frame: Frame | None) -> Profile:
    """The profile with its frame overridden; pixels of a family that has no such habit are stated."""
    if frame is None or frame is profile.frame:
        return profile
    return replace(profile, frame=frame, states_size=frame is Frame.PIXEL)


def with_max_area(profile: Profile, max_area_px: int | None) -> Profile:
    """The profile with pictures sent at no more than `max_area_px` pixels (`--image_max_pixels`).

    Where the family is not known, the limit is a guess, and gives way.
    """
    if max_area_px is None:
        return profile
    own = None if profile.name == UNKNOWN.name else profile.rule.max_area_px
    area = max_area_px if own is None else min(own, max_area_px)
    return replace(profile, rule=replace(profile.rule, max_area_px=area))
