"""What one request costs between `ask` and the socket, counted: locks, objects of the HTTP client, system calls.

Each lock is one that a thread may hold while it waits for the interpreter, and each system call lets go of
the interpreter, which is waited for afterwards: with many threads that is what a request's time goes to.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from scripted_teacher import ScriptedTeacher, says
from test_teacher import MESSAGES, settings

from distil.teacher.client import Teacher
from distil.teacher.wire import httpx

ELSEWHERE = ("budget.py", "slots.py")  # that count what is spent and in flight
NUM_ASKS = 5
SYSTEM_CALLS = ("sendmsg", "sendall", "send", "recv", "recv_into", "poll", "select", "connect")


TAKEN_BY: Counter[str] = Counter()


class CountedLock:
    """A lock that counts by whom it is taken."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self.release = lock.release

    def acquire(self, *arguments: Any, **options: Any) -> Any:
        frame = sys._getframe(1)
        while frame.f_back and frame.f_code.co_filename in (threading.__file__, __file__):
            frame = frame.f_back
        TAKEN_BY[Path(frame.f_code.co_filename).name] += 1
        return self._lock.acquire(*arguments, **options)

    def __enter__(self) -> Any:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)


@pytest.fixture
def locks(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The locks taken, by the file that takes them, of all locks made from now on."""
    for name in ("Lock", "RLock"):
        make = getattr(threading, name)
        monkeypatch.setattr(threading, name, lambda make=make: CountedLock(make()))
    TAKEN_BY.clear()
    return TAKEN_BY


@contextmanager
def asked_once() -> Iterator[Teacher]:
    """A teacher that has been asked once, so that its connection is open."""
    with ScriptedTeacher(lambda _: says("hi")) as server, Teacher(settings(server.api_base)) as teacher:
        with teacher.asking() as sample:
            sample.ask(MESSAGES, 0)
        yield teacher


def ask_more(teacher: Teacher) -> None:
    with teacher.asking() as sample:
        for seed in range(NUM_ASKS):
            assert sample.ask(MESSAGES, seed).content == "hi"


def test_a_request_takes_no_lock_of_the_corridors(locks: Counter[str]) -> None:
    with asked_once() as teacher:
        locks.clear()
        ask_more(teacher)
        assert locks["budget.py"], "locks are counted"
        # A sample takes its replica and gives it back.
        of_requests = {
            name: count for name, count in locks.items() if name not in (*ELSEWHERE, "replicas.py")
        }
    of_server = ("socketserver.py", "scripted_teacher.py", "_weakrefset.py")
    assert not set(of_requests) - set(of_server), of_requests
    assert locks["replicas.py"] <= 2


def test_a_request_makes_no_object_of_the_http_client(monkeypatch: pytest.MonkeyPatch) -> None:
    made: Counter[str] = Counter()
    with asked_once() as teacher:
        for name in ("URL", "Headers", "Request", "Response", "Timeout"):
            init = getattr(httpx, name).__init__

            def counted(
                self: Any, *arguments: Any, _name: str = name, _init: Any = init, **options: Any
            ) -> None:
                made[_name] += 1
                _init(self, *arguments, **options)

            monkeypatch.setattr(getattr(httpx, name), "__init__", counted)
        ask_more(teacher)
        assert not made
        httpx.Headers()
    assert made == {"Headers": 1}, "they are counted"


def test_a_request_leaves_in_one_send_and_is_polled_for_once() -> None:
    system_calls: Counter[str] = Counter()

    def count(_: Any, event: str, function: Any) -> None:
        if event == "c_call" and function.__name__ in SYSTEM_CALLS:
            system_calls[function.__name__] += 1

    with asked_once() as teacher:
        sys.setprofile(count)
        try:
            ask_more(teacher)
        finally:
            sys.setprofile(None)
    num_reads = system_calls.pop("recv")  # the test's server writes head and body one after the other
    assert NUM_ASKS <= num_reads <= 2 * NUM_ASKS
    assert system_calls == {"sendmsg": NUM_ASKS, "poll": NUM_ASKS}
