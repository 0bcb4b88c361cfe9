"""The corridor from a rollout's `ask` to the socket is short, and each step of it has a name that grep finds."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from conftest import photo_bytes, save_photos
from scripted_teacher import ScriptedTeacher
from test_settings_sent import answers, distil

from distil.teacher.connection import Connection

PACKAGE = Path(inspect.getfile(Connection)).parent.parent
MAX_FRAMES = 8


def names_of(frame: FrameType | None) -> list[str]:
    """Our functions that are at work, the innermost first."""
    names = []
    while frame is not None:
        if Path(frame.f_code.co_filename).is_relative_to(PACKAGE):
            names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names


def frames_to_the_socket(folder: Path) -> list[list[str]]:
    """For each request of a run's rollouts, our functions from `run_conversation`, without it, to its send."""
    asked: list[list[str]] = []

    def seen(frame: FrameType, event: str, function: Any) -> None:
        if event == "c_call" and function.__name__ == "sendmsg":
            names = names_of(frame)
            if "run_conversation" in names:
                asked.append([*reversed(names[: names.index("run_conversation")])])

    photos = save_photos(folder / "photos", [photo_bytes(1, (64, 48))])
    threading.setprofile(seen)
    try:
        with ScriptedTeacher(answers) as server:
            distil(server, photos, folder / "run")
    finally:
        threading.setprofile(None)  # type: ignore[arg-type]
    return asked


def test_from_ask_to_the_socket_there_are_at_most_eight_frames_of_ours(tmp_path: Path) -> None:
    asked = frames_to_the_socket(tmp_path)
    assert len(asked) == 2
    for names in asked:
        assert len(names) <= MAX_FRAMES, names
        assert not any("<lambda>" in name for name in names), names


def test_a_run_asks_each_server_for_its_models_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[str] = []
    ask = Connection.ask

    def seen(self: Connection, path: str, pieces: Sequence[bytes], seconds: float) -> bytes:
        paths.extend([] if pieces else [path])
        return ask(self, path, pieces, seconds)

    monkeypatch.setattr(Connection, "ask", seen)
    photos = save_photos(tmp_path / "photos", [photo_bytes(1, (64, 48))])
    with ScriptedTeacher(answers) as server, ScriptedTeacher(answers) as other:
        both = f"{server.api_base},{other.api_base}"
        for number, flags in enumerate(([], ["--model", "m"], ["--api_base", both])):
            paths.clear()
            distil(server, photos, tmp_path / f"run-{number}", *flags)
            assert paths == ["/models"], flags
