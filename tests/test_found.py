"""What somebody found who tried to break it: a race, a slow pattern, a strange cookie, a half line."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from test_journal import Asked, ask_turns
from test_teacher import MESSAGES, settings
from test_wire import ANSWER, RawServer, reply

from distil.errors import FolderError
from distil.records import SampleId
from distil.store.journal import Journal
from distil.store.json_lines import LineFile, read_lines
from distil.teacher.client import Teacher
from distil.teacher.wire import httpx, opened


def test_a_sample_that_ends_while_its_turns_are_written_anew_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file goes with it, after it was found worn and before it was read."""
    journal = Journal(tmp_path, "s", segment_bytes=2000)
    lasting = journal.of(SampleId(1), "f").journaled(Asked())
    lasting([b"m"], 0)
    ask_turns(journal.of(SampleId(2), "f"), Asked(), 12)
    journal.drop([SampleId(2)])
    found = Journal._turns_of_worn_files
    num_ended = 0

    def then_it_ends(self: Journal) -> Sequence[Any]:
        nonlocal num_ended
        turns = found(self)
        num_ended += len(turns)
        self.drop({turn.sample_id for turn in turns})
        return turns

    monkeypatch.setattr(Journal, "_turns_of_worn_files", then_it_ends)
    ask_turns(journal.of(SampleId(3), "f"), Asked(), 12)
    assert num_ended >= 1
    assert journal.unfinished() == {SampleId(3): "s"}


def test_a_header_of_many_blanks_is_read_at_once() -> None:
    """A pattern that tries every way to split them holds the interpreter for minutes: no deadline ends that."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A:" + b" " * 1500

    def answer(number: int, _: bytes) -> bytes:
        return head + (b"\0" if number == 1 else b"1") + b" \t\r\n\r\nok"

    with RawServer(answer) as server:
        host, _, port = server.netloc.rpartition(":")
        started = time.process_time()
        with pytest.raises(httpx.RemoteProtocolError, match="illegal header line"):
            ask_once(host, int(port))
        assert ask_once(host, int(port)) == b"1"
        assert time.process_time() - started < 1


def ask_once(host: str, port: int) -> bytes | None:
    wire = opened(host, port, None, 5.0, lambda _: None)
    try:
        return wire.ask([b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"]).value(b"x-a")
    finally:
        wire.close()


def test_a_cookie_that_cannot_be_sent_back_costs_no_reply() -> None:
    with (
        RawServer(lambda *_: reply(ANSWER, Set_Cookie="place=大阪; Path=/")) as server,
        Teacher(settings(server.api_base)) as teacher,
    ):
        assert [teacher.ask(MESSAGES, seed).content for seed in range(2)] == ["hi", "hi"]
        assert len(server.requests) == 2
        assert not any(b"\r\ncookie:" in request.lower() for request in server.requests)


def test_a_line_that_comes_after_half_a_line_is_one_of_its_own(tmp_path: Path) -> None:
    """A disk that was full for a moment costs the line that it was full for, and not the next."""
    path = tmp_path / "lines.jsonl"
    file = LineFile(path)
    file.append({"n": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15, hard))
    try:
        with pytest.raises(FolderError, match="No space left"):
            file.append({"n": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    file.append({"n": 3})
    file.append({"n": 4})
    file.close()
    assert [line for line, _ in read_lines(path) if line is not None] == [{"n": 1}, {"n": 3}, {"n": 4}]
