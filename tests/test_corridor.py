"""The corridor from a rollout's `ask` to the socket is short, and each step of it has a name that grep finds."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import photo_bytes, save_photos
from scripted_teacher import ScriptedTeacher
from test_settings_sent import answers, distil

from distil.teacher.connection import Connection

PACKAGE = Path(inspect.getfile(Connection)).parent.parent
MAX_FRAMES = 8


def frames_to_the_socket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """For each request of a run's rollouts, our functions from `run_conversation`, without it, to the client."""
    asked: list[list[str]] = []
    post = Connection.post

    def seen(self: Connection, path: str, pieces: Sequence[bytes], seconds: float) -> bytes:
        ours = [frame for frame in inspect.stack()[1:] if Path(frame.filename).is_relative_to(PACKAGE)]
        names = [frame.function for frame in ours]
        if "run_conversation" in names:
            asked.append([*reversed(names[: names.index("run_conversation")]), "post"])
        return post(self, path, pieces, seconds)

    monkeypatch.setattr(Connection, "post", seen)
    photos = save_photos(folder / "photos", [photo_bytes(1, (64, 48))])
    with ScriptedTeacher(answers) as server:
        distil(server, photos, folder / "run")
    return asked


def test_from_ask_to_the_socket_there_are_at_most_eight_frames_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = frames_to_the_socket(tmp_path, monkeypatch)
    assert len(asked) == 2
    for names in asked:
        assert len(names) <= MAX_FRAMES, names
        assert not any("<lambda>" in name for name in names), names


def test_a_run_asks_each_server_for_its_models_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[str] = []
    get = Connection.get

    def seen(self: Connection, path: str, seconds: float) -> bytes:
        paths.append(path)
        return get(self, path, seconds)

    monkeypatch.setattr(Connection, "get", seen)
    photos = save_photos(tmp_path / "photos", [photo_bytes(1, (64, 48))])
    with ScriptedTeacher(answers) as server, ScriptedTeacher(answers) as other:
        both = f"{server.api_base},{other.api_base}"
        for number, flags in enumerate(([], ["--model", "m"], ["--api_base", both])):
            paths.clear()
            distil(server, photos, tmp_path / f"run-{number}", *flags)
            assert paths == ["/models"], flags
