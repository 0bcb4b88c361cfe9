"""Which terminals can show pictures, and how each takes them.

Three ways are in use: kitty's graphics protocol (kitty, Ghostty), iTerm2's inline images (iTerm2, WezTerm,
mintty) and sixel (foot, mlterm, contour, Konsole, Windows Terminal, xterm where it is built with it).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum


class Protocol(StrEnum):
    """How a terminal takes a picture."""

    AUTO = "auto"  # the one that this terminal understands, if any
    KITTY = "kitty"
    ITERM = "iterm"
    SIXEL = "sixel"
    NONE = "none"


def find_protocol(asked: Protocol, environment: Mapping[str, str], is_terminal: bool) -> Protocol:
    """How pictures are shown here; NONE where they cannot be, or where that is not known.

    Only what a terminal says of itself in the environment counts: asking it would read what a person types.
    """
    if asked is not Protocol.AUTO:
        return asked
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    is_inside_another = "TMUX" in environment or term.startswith(("screen", "tmux"))
    if not is_terminal or term == "dumb" or is_inside_another:
        return Protocol.NONE
    if "KITTY_WINDOW_ID" in environment or re.search("kitty|ghostty", f"{term} {program}"):
        return Protocol.KITTY
    if program in ("iTerm.app", "WezTerm", "mintty") or environment.get("LC_TERMINAL") == "iTerm2":
        return Protocol.ITERM
    if re.match("foot|mlterm|contour|yaft|.*sixel", term) or "WT_SESSION" in environment:
        return Protocol.SIXEL
    # Versions are YYMMPP: it shows pictures since 22.04.
    return Protocol.SIXEL if environment.get("KONSOLE_VERSION", "")[:4] >= "2204" else Protocol.NONE
