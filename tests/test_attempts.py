"""Retries have one owner: each fault of a real server, deadlines, outages, and what ends a wait."""

from __future__ import annotations

import email.utils
import itertools
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from builders import patience, teacher_settings
from fault_server import (
    Fault,
    FaultServer,
    Status,
    bad_gzip,
    empty_choices,
    endless,
    garbage,
    half_json,
    hang_up,
    no_http,
    ok,
    reset,
    reset_in_body,
    stall,
    trickle_body,
    trickle_error,
    trickle_head,
    truncated,
)
from hypothesis import given
from hypothesis import strategies as st
from test_teacher import closed_port

from distil.doctor.interview import ask_models_soon
from distil.errors import ContextOverflow, DeadlinePassed, RunHalted, TeacherError, TeacherRefused
from distil.teacher.attempts import AttemptFailed, Attempts
from distil.teacher.availability import Availability, Patience, Sign
from distil.teacher.client import Teacher, TeacherSettings
from distil.teacher.models import ask_models
from distil.teacher.refusals import (
    Means,
    advised_seconds,
    is_context_overflow,
    meaning,
    parse_number,
    parse_retry_after,
    parse_span,
)
from distil.teacher.replicas import Replicas, SampleReplica

MESSAGES = [b'{"role": "user", "content": "q"}']
QUICK = {"first_pause_seconds": 0.01, "max_pause_seconds": 0.05}
OUTAGE = {"probe_pause_seconds": 0.02, "max_probe_pause_seconds": 0.1, "max_outage_seconds": 20}


def settings(api_base: str, **changes: Any) -> TeacherSettings:
    return teacher_settings(api_base, "k", **{"model": "m"} | QUICK | OUTAGE | changes)


@contextmanager
def asking(*schedule: Fault, **changes: Any) -> Iterator[tuple[FaultServer, Teacher]]:
    with FaultServer(*schedule) as server, Teacher(settings(server.api_base, **changes)) as teacher:
        yield server, teacher


# --- each fault


@pytest.mark.parametrize(
    "fault",
    [reset, hang_up, truncated, reset_in_body, garbage, half_json, no_http, empty_choices, bad_gzip],
    ids=lambda fault: fault.__name__,
)
def test_a_fault_of_the_line_or_the_reply_is_retried(fault: Fault) -> None:
    with asking(fault, fault, ok, fault, ok) as (server, teacher):
        assert teacher.ask(MESSAGES, 0).content == "hi"
        assert teacher.ask(MESSAGES, 1).content == "hi"
    assert len(server.requests) == 5
    assert len(set(server.requests[:3])) == 1, "the same request again, to the byte"


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_a_passing_status_is_retried(status: int) -> None:
    with asking(Status(status), Status(status), ok) as (server, teacher):
        assert teacher.ask(MESSAGES, 0).content == "hi"
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_lasting_status_is_never_retried(status: int) -> None:
    with asking(Status(status)) as (server, teacher), pytest.raises(TeacherError) as caught:
        teacher.ask(MESSAGES, 0)
    assert (len(server.requests), caught.value.status, caught.value.attempts) == (1, status, 1)
    assert isinstance(caught.value, TeacherRefused) == (status in (401, 403, 404))


def test_the_client_itself_retries_nothing_and_the_error_counts_our_attempts() -> None:
    with asking(Status(500), max_retries=2) as (server, teacher):
        with pytest.raises(TeacherError, match=r"scripted 500 \(after 3 attempts\)") as caught:
            teacher.ask(MESSAGES, 0)
    assert (len(server.requests), caught.value.status, caught.value.attempts) == (3, 500, 3)


@pytest.mark.parametrize(
    "header",
    [
        "Retry-After: 0.4",
        "retry-after-ms: 400",
        "x-ratelimit-reset-requests: 400ms",
        "x-ratelimit-reset-tokens: 0m0.4s",
        "x-ratelimit-remaining-tokens: 0\r\nx-ratelimit-reset-tokens: 0.4s\r\nx-ratelimit-reset-requests: 9m",
    ],
)
def test_a_429_is_retried_no_sooner_than_the_server_says(header: str) -> None:
    with asking(Status(429, header + "\r\n"), ok) as (server, teacher):
        teacher.ask(MESSAGES, 0)
    pause = server.arrivals[1] - server.arrivals[0]
    assert 0.4 <= pause < 3


def test_retry_after_may_be_a_date() -> None:
    until = int(time.time()) + 2
    header = f"Retry-After: {email.utils.formatdate(until, usegmt=True)}\r\n"
    with asking(Status(429, header), ok) as (_, teacher):
        teacher.ask(MESSAGES, 0)
        assert time.time() >= until


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("by_chunks", [True, False])
def test_a_huge_reply_is_cut_off_and_not_asked_for_again(status: int, by_chunks: bool) -> None:
    with asking(endless(status, by_chunks)) as (server, teacher):
        with pytest.raises(TeacherError, match="larger than 16 MiB"):
            teacher.ask(MESSAGES, 0)
        assert len(server.requests) == 1
        assert getattr(server, "sent_mib", 0) < 40, "not read to its end"


@pytest.mark.parametrize(
    "error",
    [
        {"message": "too long", "code": "context_length_exceeded"},
        {
            "message": "This model's maximum context length is 4096 tokens. However, you requested 5000",
            "code": 400,
        },
        {"message": "You passed 9 input tokens … the model's context length is only 8 tokens", "code": 400},
        {"message": "The decoder prompt (length 9) is longer than the maximum model length of 8."},
        {"message": "The input (9 tokens) is longer than the model's context length (8 tokens)."},
        {"message": "request (9 tokens) exceeds the available context size (8 tokens)", "code": 400},
        {"message": "no", "type": "exceed_context_size_error", "code": 400, "n_ctx": 8},
        {
            "message": "The input token count (1200293) exceeds the maximum number of tokens allowed (1048576).",
            "code": 400,
            "status": "INVALID_ARGUMENT",
        },
        {"message": "prompt is too long: 210000 tokens > 200000 maximum", "type": "invalid_request_error"},
        {
            "message": "input length and `max_tokens` exceed context limit: 182831 + 64000 > 200000, decrease "
            "input length or `max_tokens` and try again",
            "type": "invalid_request_error",
        },
        {"message": "This model's maximum prompt length is 131072 but the request contains 537812 tokens."},
    ],
    ids=lambda error: str(error["message"])[:20],
)
def test_a_context_overflow_is_told_apart(error: dict[str, object]) -> None:
    with asking(Status(400, error=error)) as (server, teacher), pytest.raises(ContextOverflow):
        teacher.ask(MESSAGES, 0)
    assert len(server.requests) == 1


# --- deadlines


@pytest.mark.parametrize("fault", [stall, trickle_body, trickle_head, trickle_error])
def test_an_attempt_that_takes_too_long_is_cut_off_and_the_server_sees_it(fault: Fault) -> None:
    with asking(fault, ok, timeout_seconds=0.4) as (server, teacher):
        assert teacher.ask(MESSAGES, 0).content == "hi"
        assert 0.3 <= server.arrivals[1] - server.arrivals[0] < 2
        gone_after = wait_for(lambda: server.disconnects)[0] - server.arrivals[0]
    assert 0.3 <= gone_after < 2


@pytest.mark.parametrize("fault", [stall, trickle_body])
def test_a_turn_ends_at_its_deadline(fault: Fault) -> None:
    with asking(fault, timeout_seconds=0.2, turn_timeout_seconds=0.7) as (server, teacher):
        started = time.monotonic()
        with pytest.raises(DeadlinePassed, match=r"turn's 0\.7 s") as caught:
            teacher.ask(MESSAGES, 0)
        assert 0.3 < time.monotonic() - started < 2
    assert caught.value.attempts >= len(server.requests) >= 2, "the last may be cut before it is heard"


def test_a_sample_ends_at_its_deadline_and_asks_no_more() -> None:
    with asking(ok, stall) as (server, teacher):
        with teacher.asking(0.5) as sample:
            assert sample.ask(MESSAGES, 0).content == "hi"
            for _ in range(2):
                with pytest.raises(DeadlinePassed, match=r"sample's 0\.5 s"):
                    sample.ask(MESSAGES, 0)
        assert len(server.requests) == 2


def test_a_pause_the_server_asks_for_is_not_the_samples_time() -> None:
    with asking(Status(429, "retry-after: 0.8\r\n"), ok, turn_timeout_seconds=0.5) as (_, teacher):
        with teacher.asking(0.5) as sample:
            assert sample.ask(MESSAGES, 0).content == "hi"


# --- outages


class Crowd:
    """Threads that each ask a number of times."""

    def __init__(self, teacher: Teacher, num_threads: int, num_asks: int = 1) -> None:
        self.errors: list[Exception] = []
        self.num_done = 0
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._ask, args=(teacher, num_asks), daemon=True)
            for _ in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def _ask(self, teacher: Teacher, num_asks: int) -> None:
        for seed in range(num_asks):
            try:
                teacher.ask(MESSAGES, seed)
                with self._lock:
                    self.num_done += 1
            except Exception as error:
                self.errors.append(error)

    def join(self, seconds: float = 20) -> float:
        """Wait for all of them; returns how long that took."""
        started = time.monotonic()
        for thread in self._threads:
            thread.join(max(0.0, started + seconds - time.monotonic()))
        assert not any(thread.is_alive() for thread in self._threads), "hung"
        return time.monotonic() - started


def wait_for(found: Callable[[], Any], seconds: float = 10) -> Any:
    until = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.01)
    return value


def test_a_server_that_goes_and_comes_back_costs_no_sample() -> None:
    lines: list[str] = []
    port = closed_port()
    with Teacher(settings(f"http://127.0.0.1:{port}/v1")) as teacher:
        teacher.tell_by(lines.append)
        with FaultServer(ok, port=port):
            Crowd(teacher, 8).join()
        crowd = Crowd(teacher, 8, num_asks=3)
        wait_for(lambda: lines)
        time.sleep(0.5)
        assert crowd.num_done == 0 and crowd.errors == []
        with FaultServer(ok, port=port) as server:
            crowd.join()
    assert (crowd.num_done, crowd.errors, len(server.requests)) == (24, [], 24)
    assert len(lines) == 2
    assert "does not answer since" in lines[0] and "--max_outage" in lines[0]
    assert "answers again" in lines[1]


def test_while_it_is_down_one_request_at_a_time_goes_out() -> None:
    lines: list[str] = []
    with asking(*[Status(503)] * 20, ok) as (server, teacher):
        teacher.tell_by(lines.append)
        crowd = Crowd(teacher, 12)
        crowd.join()
    assert (crowd.num_done, crowd.errors) == (12, [])
    assert len(server.requests) == 20 + 12, "each asked until it was answered, and no more"
    assert server.arrivals[20] - server.arrivals[15] > 5 * 0.05, "probes keep their distance"
    assert len(lines) == 2


def test_a_server_that_stays_away_stops_the_run() -> None:
    with Teacher(settings(f"http://127.0.0.1:{closed_port()}/v1", max_outage_seconds=0.6)) as teacher:
        crowd = Crowd(teacher, 4)
        assert 0.5 < crowd.join() < 5
    assert [type(error) for error in crowd.errors] == [TeacherRefused] * 4
    assert "--max_outage_seconds" in str(crowd.errors[0])


def test_a_server_whose_engine_has_died_is_down_although_it_answers() -> None:
    with FaultServer(Status(500)) as server:
        with Teacher(settings(server.api_base, max_outage_seconds=0.6)) as teacher:
            crowd = Crowd(teacher, 4)
            crowd.join()
    assert [type(error) for error in crowd.errors] == [TeacherRefused] * 4


def test_an_outage_is_seen_although_little_of_the_samples_time_is_left() -> None:
    nowhere = settings(f"http://127.0.0.1:{closed_port()}/v1", max_outage_seconds=0.6, timeout_seconds=600)
    with Teacher(nowhere) as teacher, teacher.asking(60) as sample:
        with pytest.raises(TeacherRefused, match="--max_outage_seconds"):
            sample.ask(MESSAGES, 0)


def test_one_request_that_breaks_each_time_stops_no_other() -> None:
    lines: list[str] = []

    def picky(exchange: Any) -> None:
        (reset if b"poison" in exchange.request else ok)(exchange)

    with asking(picky, max_retries=8, max_pause_seconds=0.02) as (server, teacher):
        teacher.tell_by(lines.append)
        with pytest.raises(TeacherError, match="after 9 attempts"):
            teacher.ask([b'{"role": "user", "content": "poison"}'], 0)
        assert teacher.ask(MESSAGES, 0).content == "hi"
    assert (len(server.requests), lines) == (10, [])


# --- waits end when the run does


@pytest.mark.parametrize(
    "fault",
    [stall, trickle_body, Status(429, "retry-after: 3600\r\n"), Status(503)],
    ids=["stall", "trickle_body", "429 for an hour", "503"],
)
def test_closing_wakes_every_thread_at_once(fault: Fault) -> None:
    slow = {"num_failures": 3, "probe_pause_seconds": 60, "max_probe_pause_seconds": 60}
    pauses = {"first_pause_seconds": 60, "max_pause_seconds": 60, "max_outage_seconds": 1800}
    with asking(fault, **slow, **pauses) as (server, teacher):
        crowd = Crowd(teacher, 6)
        wait_for(lambda: len(server.requests) >= 3)  # then it counts as down, and the rest may wait
        time.sleep(0.1)
        teacher.close()
        assert crowd.join() < 2
        with pytest.raises(RunHalted):
            teacher.ask(MESSAGES, 0)
    assert len(crowd.errors) == 6
    assert not any(isinstance(error, TeacherRefused) for error in crowd.errors)


def test_closing_lets_the_server_drop_what_it_generates() -> None:
    with asking(stall) as (server, teacher):
        Crowd(teacher, 3)
        wait_for(lambda: len(server.requests) == 3)
        teacher.close()
        wait_for(lambda: len(server.disconnects) == 3)


def test_a_long_pause_is_told_once() -> None:
    lines: list[str] = []
    with asking(Status(429, "retry-after: 3600\r\n")) as (server, teacher):
        teacher.tell_by(lines.append)
        crowd = Crowd(teacher, 4)
        wait_for(lambda: len(server.requests) == 4)
        time.sleep(0.1)
        teacher.close()
        crowd.join()
    assert lines == [f"The teacher at {server.api_base} asks to wait 3600 s before the next request."]


# --- before a run


def test_a_dead_address_is_told_quickly() -> None:
    started = time.monotonic()
    with pytest.raises(TeacherRefused, match="no reply from"):
        ask_models(teacher_settings(f"http://127.0.0.1:{closed_port()}/v1", "k"))
    assert time.monotonic() - started < 4


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_says_when_to_come_back_is_waited_for_before_a_run_too(status: int) -> None:
    busy = Status(status, "retry-after: 0.3\r\n")
    models = lambda exchange: exchange.reply(200, b'{"data": [{"id": "m"}]}')
    with FaultServer(busy, busy, busy, busy, models) as server:
        assert ask_models(teacher_settings(server.api_base, "k")) == (("m",), None)
    assert min(late - early for early, late in itertools.pairwise(server.arrivals)) >= 0.3


def test_the_doctor_waits_for_nobody_long() -> None:
    with FaultServer(Status(429, "retry-after: 3600\r\n")) as server:
        assert "429" in str(ask_models_soon(teacher_settings(server.api_base, "k"))[1])


# --- the loop without a server


class FakeTime:
    """A clock that moves only when someone sleeps, and chance that is always the same."""

    def __init__(self, chance: float = 1.0) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        self.chance = chance

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def run(
        self,
        patience: Patience,
        attempt: Callable[[float], Any],
    ) -> Any:
        """What the first attempt that succeeds, given its seconds, returns."""
        replica = SampleReplica(Replicas(["http://here"]))
        availability = Availability(patience, "here")
        timing = (self.sleep, lambda: self.now, lambda: self.chance)
        attempts = Attempts(patience, availability, replica, math.inf, *timing)
        while True:
            with attempts as seconds:
                return attempt(seconds)


def waiting(turn_seconds: float = 1e9, **changes: Any) -> Patience:
    return patience(turn_timeout_seconds=turn_seconds, **changes)


def failing(error: str = "busy", advised: float | None = None) -> Callable[[float], Any]:
    def attempt(_: float) -> Any:
        raise AttemptFailed(TeacherError(error, 429), True, Sign.ALIVE, advised)

    return attempt


def test_pauses_double_up_to_a_ceiling() -> None:
    fake = FakeTime()
    with pytest.raises(TeacherError, match="after 7 attempts"):
        fake.run(waiting(max_retries=6, max_pause_seconds=8.0), failing())
    assert fake.pauses == [1, 2, 4, 8, 8, 8]


def test_jitter_comes_on_top_of_advice() -> None:
    fake = FakeTime(chance=0.5)
    with pytest.raises(TeacherError):
        fake.run(waiting(10, max_retries=2, max_pause_seconds=8.0), failing(advised=5000.0))
    assert fake.pauses == [5000.5, 5001.0], "of any length, and not counted against the deadline"


def test_no_one_sleeps_beyond_a_deadline() -> None:
    fake = FakeTime()
    with pytest.raises(DeadlinePassed, match=r"turn's 6 s are over after 3 attempts; the last: busy"):
        fake.run(waiting(6, max_retries=9), failing())
    assert fake.pauses == [1, 2]


def test_an_attempt_gets_no_more_time_than_is_left() -> None:
    given: list[float] = []
    fake = FakeTime()
    fake.run(waiting(6), given.append)
    fake.run(waiting(600, timeout_seconds=6), given.append)
    assert given == [6, 6]


@given(st.integers(0, 5000), st.none() | st.floats(0, 1e8), st.floats(0, 1))
def test_a_pause_is_at_least_the_advice_and_at_most_a_ceiling_more(
    num_retries: int, advised: float | None, chance: float
) -> None:
    waits = patience()
    pause = waits.pause_seconds(num_retries, advised, chance)
    assert (advised or 0) <= pause <= (advised or 0) + waits.max_pause_seconds


@given(st.integers(100, 599))
def test_statuses_that_are_retried(status: int) -> None:
    assert (Means.RETRIED in meaning(status)) == (status in (408, 409, 429) or status >= 500)


# --- headers


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("6m0s", 360),
        ("20ms", 0.02),
        ("1h2m3.5s", 3723.5),
        ("2m59.56s", 179.56),
        ("7", 7),
        ("1d", 86400),
    ],
)
def test_spans(text: str, seconds: float) -> None:
    assert parse_span(text) == pytest.approx(seconds)


@given(st.integers(0, 9), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_spans_add_up(hours: int, minutes: int, seconds: int, milliseconds: int) -> None:
    text = f"{hours}h{minutes}m{seconds}s{milliseconds}ms"
    assert parse_span(text) == pytest.approx(hours * 3600 + minutes * 60 + seconds + milliseconds / 1000)


@given(st.text(max_size=30), st.floats(0, 4e9))
def test_no_header_text_is_too_strange(text: str, now: float) -> None:
    for value in (parse_span(text), parse_retry_after(text, now), parse_number(text)):
        assert value is None or value >= 0
    names = ("retry-after", "retry-after-ms", "x-ratelimit-reset-tokens", "x-ratelimit-remaining-tokens")
    advised = advised_seconds(429, dict.fromkeys(names, text), now)
    assert advised is None or advised >= 0


@pytest.mark.parametrize("text", ["", "soon", "-1", "nan", "inf", "1e300", "1x", "s", "1s1", "１s"])
def test_what_is_no_span_is_no_advice(text: str) -> None:
    assert parse_span(text) is None


@given(st.integers(0, 4_000_000_000), st.integers(-100_000, 100_000))
def test_dates_are_read_to_the_second_and_those_gone_by_are_now(now: int, offset: int) -> None:
    moment = max(0, now + offset)
    text = email.utils.formatdate(moment, usegmt=True)
    assert parse_retry_after(text, now) == max(0, moment - now)


def test_a_date_is_told_by_the_servers_clock_if_it_tells_it() -> None:
    headers = {"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT", "date": "Wed, 21 Oct 2015 07:28:00 GMT"}
    for now in (0.0, 1445412480.0, 2e9):  # our clock may be years off
        assert advised_seconds(503, headers, now) == 30


def test_headers_by_rank() -> None:
    everything = {"retry-after-ms": "1500", "retry-after": "9", "x-ratelimit-reset-requests": "1m"}
    assert advised_seconds(429, everything, 0) == 1.5
    del everything["retry-after-ms"]
    assert advised_seconds(503, everything, 0) == 9
    del everything["retry-after"]
    assert advised_seconds(429, everything, 0) == 60
    assert advised_seconds(503, everything, 0) is None, "every reply of a limiting server has these"
    assert advised_seconds(429, {}, 0) is None


def test_other_bad_requests_are_no_overflow() -> None:
    assert not is_context_overflow(400, "None None", "max_tokens is too large")
    assert not is_context_overflow(
        400, "None None", "max_tokens: 9 > 8, which is the maximum allowed number of …"
    )
    assert not is_context_overflow(500, "context_length_exceeded", "context_length_exceeded")


def test_the_fault_server_hears_whole_requests() -> None:
    with asking(ok) as (server, teacher):
        teacher.ask(MESSAGES, 7)
    assert json.loads(server.requests[0])["seed"] == 7
