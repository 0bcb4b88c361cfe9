"""Thinking, tool calls and plain text are told apart, losing nothing and never hanging."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distil.messages.tags import split_thinking, text_outside, tool_call_bodies

PLAIN = st.text(st.characters(exclude_characters="<>", exclude_categories=["Cs"]), max_size=30)
THINK_TOKENS = ["<think>", "</think>", "<thinking>", "</thinking>"]
CALL_TOKENS = ["<tool_call>", "</tool_call>"]


def soup(tokens: list[str]) -> st.SearchStrategy[list[str]]:
    """Tags in any order, with numbered words between them."""
    return st.lists(st.sampled_from(["word", *tokens]), max_size=25).map(
        lambda parts: [f"[w{n}]" if part == "word" else part for n, part in enumerate(parts)]
    )


def words_of(parts: list[str]) -> list[str]:
    return [part for part in parts if part.startswith("[w")]


def visible(text: str) -> str:
    return text_outside(text, thinking=True, tool_calls=True)


def bodies(text: str) -> list[str]:
    return [body for _, _, body in tool_call_bodies(text)]


@pytest.mark.parametrize(
    ("text", "thinking", "rest"),
    [
        ("plain", "", "plain"),
        ("<think>a</think>b", "a", "b"),
        ("a</think>b", "a", "b"),  # the opening tag stands in the prompt
        ("a<think>b", "b", "a"),  # the turn was cut off
        ("<think>", "", ""),
        ("</think>", "", ""),
        ("</think>b", "", "b"),
        ("<think></think>b", "", "b"),
        ("<think>a</think>b<think>c</think>d", "a\nc", "bd"),
        ("<think>a</think>b</think>c", "a\nb", "c"),
        ("<think>a</think>b<think>c", "a\nc", "b"),
        ("<thinking>a</thinking>b", "a", "b"),
        ("a</thinking>b", "a", "b"),
        ("<thinker>a</thinker>", "", "<thinker>a</thinker>"),
    ],
)
def test_thinking_is_split_from_the_rest(text: str, thinking: str, rest: str) -> None:
    assert split_thinking(text) == (thinking, rest)


def test_nested_thinking_leaves_none_of_it_in_the_rest() -> None:
    thinking, rest = split_thinking("<think>a<think>b</think>c</think>answer")
    assert rest == "answer"
    assert all(part in thinking for part in "abc")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x<tool_call>a</tool_call>y", ["a"]),
        ("<tool_call>a</tool_call><tool_call>b</tool_call>", ["a", "b"]),
        ("<tool_call>a", ["a"]),  # the server stops at the closing tag
        ("<tool_call>a<tool_call>b</tool_call>", ["a", "b"]),
        ("<tool_call>a<tool_call>b", ["a", "b"]),
        ("</tool_call>", []),
        ("a</tool_call>b<tool_call>c</tool_call>", ["c"]),
        ("<tool_call></tool_call>", [""]),
        ("no call", []),
    ],
)
def test_tool_call_bodies_are_found_in_order(text: str, expected: list[str]) -> None:
    assert bodies(text) == expected


def test_a_tool_call_s_positions_cover_its_tags() -> None:
    text = "before<tool_call>body</tool_call>after"
    ((start, end, body),) = tool_call_bodies(text)
    assert (text[:start], body, text[end:]) == ("before", "body", "after")


def test_text_after_an_unclosed_tool_call_is_its_body_not_an_answer() -> None:
    assert visible("look <tool_call>{} \\boxed{1, 2}") == "look "


@pytest.mark.parametrize(
    "text",
    [
        "<think><tool_call>a</tool_call></think>b",
        "<tool_call>a</tool_call></think>b",
        "b<think><tool_call>a</tool_call>",
        "<think><tool_call>a</think>b",
    ],
)
def test_a_tool_call_inside_thinking_is_no_call(text: str) -> None:
    outside = text_outside(text, thinking=True, tool_calls=False)
    assert outside == "b"
    assert bodies(outside) == []


def test_each_kind_of_span_can_be_kept() -> None:
    text = "<think>t</think>a<tool_call>c</tool_call>b"
    assert text_outside(text, thinking=False, tool_calls=False) == text
    assert text_outside(text, thinking=True, tool_calls=False) == "a<tool_call>c</tool_call>b"
    assert text_outside(text, thinking=False, tool_calls=True) == "<think>t</think>ab"
    assert visible(text) == "ab"


@given(st.text())
def test_text_without_tags_is_untouched(text: str) -> None:
    tags = [*THINK_TOKENS, *CALL_TOKENS]
    if not any(tag in text for tag in tags):
        assert visible(text) == text
        assert split_thinking(text) == ("", text)


@given(st.lists(st.tuples(st.sampled_from(["plain", "think", "thinking", "tool_call"]), PLAIN), max_size=12))
def test_text_outside_well_formed_tags_is_kept_exactly(segments: list[tuple[str, str]]) -> None:
    text = "".join(body if kind == "plain" else f"<{kind}>{body}</{kind}>" for kind, body in segments)
    assert visible(text) == "".join(body for kind, body in segments if kind == "plain")
    assert bodies(text) == [body for kind, body in segments if kind == "tool_call"]


@given(PLAIN, PLAIN, PLAIN)
def test_a_lone_closing_tag_makes_all_before_it_thinking(before: str, inner: str, after: str) -> None:
    assert visible(f"{before}{inner}</think>{after}") == after
    assert visible(f"{before}<think>{inner}") == before


@given(soup(THINK_TOKENS))
def test_splitting_thinking_neither_loses_nor_doubles_a_word(parts: list[str]) -> None:
    thinking, rest = split_thinking("".join(parts))
    for word in words_of(parts):
        assert (thinking + rest).count(word) == 1


@given(soup(CALL_TOKENS))
def test_splitting_tool_calls_neither_loses_nor_doubles_a_word(parts: list[str]) -> None:
    text = "".join(parts)
    found = "\n".join([text_outside(text, thinking=False, tool_calls=True), *bodies(text)])
    for word in words_of(parts):
        assert found.count(word) == 1


@given(soup([*THINK_TOKENS, *CALL_TOKENS]))
def test_spans_of_any_tag_soup_are_in_order_and_do_not_overlap(parts: list[str]) -> None:
    text, position = "".join(parts), 0
    for start, end, body in tool_call_bodies(text):
        assert position <= start < end <= len(text)
        assert body in text[start:end]
        position = end
    assert len(visible(text)) <= len(text)


MEASURE = """
import time
from distil.messages.tags import split_thinking, text_outside, tool_call_bodies
text = {text}
start = time.process_time()
split_thinking(text)
sum(1 for _ in tool_call_bodies(text))
text_outside(text, thinking=True, tool_calls=True)
print(time.process_time() - start)
"""


@pytest.mark.parametrize(
    "text",
    [
        "'<think>' * 150_000",
        "'</think>' * 130_000",
        "'<think></think>' * 70_000",
        "'</think><think>' * 70_000",
        "'<thinking>' * 100_000 + '</think>' * 10",
        "'<tool_call>' * 90_000",
        "'</tool_call>' * 80_000",
        "'<tool_call>' * 90_000 + '</tool_call>'",
        "'<tool_call></tool_call>' * 45_000",
        "'<tool_call></think>' * 50_000",
        "'<' * 2_000_000",
        "'{' * 2_000_000",
        "' ' * 2_000_000",
        "'<think>' + ' ' * 2_000_000 + '</think>'",
    ],
)
def test_a_megabyte_of_adversarial_tags_is_split_in_seconds(text: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", MEASURE.format(text=text)],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert float(run.stdout) < 5
