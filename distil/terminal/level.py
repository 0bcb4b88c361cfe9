"""The level of requests at once, in words."""

from __future__ import annotations

from distil.teacher.climber import LevelState, Reason

_WHY = {
    Reason.START: "it has only begun",
    Reason.FIXED: "as --fixed_workers says",
    Reason.GAIN: "more of them gave more",
    Reason.QUEUE: "more only waited longer",
    Reason.NEEDED: "fewer gave less",
    Reason.REFUSED: "the server refused more",
    Reason.NO_DEMAND: "more were not needed",
    Reason.CLIENT: "this machine is too busy for more",
}


def level_text(state: LevelState) -> str:
    """`12 of 64 requests at once: more only waited longer`."""
    return f"{state.level} of {state.ceiling} requests at once: {_WHY[state.reason]}"
