"""How the terminal says things: what others wrote steers nothing and never looks like a line of ours."""

from __future__ import annotations

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distil.terminal.terminal import Terminal
from distil.terminal.words import NOT_REPORTED, figure, number, one_line, printable, short


def said(line: str, width: int = 40) -> str:
    file = io.StringIO()
    Terminal(file, width).say(line)
    return file.getvalue()


@given(st.text())
def test_no_control_character_of_others_reaches_the_terminal(text: str) -> None:
    shown = printable(text)
    assert len(shown) == len(text)
    kinds = {unicodedata.category(letter) for letter in shown if letter not in "\n\t"}
    assert not kinds & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@given(st.text())
def test_a_line_stays_one_line_whatever_others_wrote(text: str) -> None:
    assert len(one_line(text).splitlines()) <= 1
    assert len(said(text).splitlines()) <= 1


def test_spaces_of_other_scripts_are_shown() -> None:
    assert printable("/data/東京\u3000塔\xa0.jpg") == "/data/東京\u3000塔\xa0.jpg"


@pytest.mark.parametrize("line", ["x" * 200, "/out/[bold]/[/nonsense]", "2024-01-01 [a]: 'x'"])
def test_a_line_is_said_as_it_is_however_long(line: str) -> None:
    assert said(line) == line + "\n"


def test_figures_and_long_texts_are_said_in_one_way() -> None:
    assert (figure(1234), figure(0), figure(None)) == ("1,234", "0", NOT_REPORTED)
    assert (number(1, "request"), number(1234, "request")) == ("1 request", "1,234 requests")
    assert short("a" * 600) == "a" * 600
    assert short("a" * 1601) == "a" * 600 + " … (1,601 characters; --verbose)"
