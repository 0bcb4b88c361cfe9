"""How quickly the level rises, and what it makes of a busy machine: simulated runs on a clock of their own.

Workers ask, one processor sends and reads for all of them, a server replies. Then real threads at real slots.
"""

from __future__ import annotations

import heapq
import random
import resource
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType

import pytest

from distil.teacher.climber import Climber, Reason, Ticket
from distil.teacher.slots import Slots

TICK_SECONDS = 0.02  # as `Slots` looks after the level
FEW_SECONDS = 24


@dataclass
class Run:
    """`num_workers` that each ask `calls` times, a request taking `cpu_seconds` of the one processor.

    The server takes `seconds` on one of `num_slots`, first come first served, and `seconds_per_neighbour` for
    each request beside it; above `refuses_above` it refuses.
    """

    climber: Climber
    num_workers: int
    seconds: float
    calls: int = 10**9
    cpu_seconds: float = 0.0
    num_slots: int = 10**9
    refuses_above: int = 10**9
    seconds_per_neighbour: float = 0.0
    sigma: float = 0.0
    wake_seconds: float = 0.0  # that a thread takes to wake, however many there are
    now: float = 0.0
    num_served: int = 0
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _waiting: deque[int] = field(default_factory=deque)
    _for_processor: deque[Callable[[], None]] = field(default_factory=deque)
    _at_server: deque[Callable[[], None]] = field(default_factory=deque)
    _num_events: int = 0
    _num_at_server: int = 0
    _num_served_now: int = 0
    _is_processing: bool = False

    def __post_init__(self) -> None:
        self._generator = random.Random(0)
        self._left = [self.calls] * self.num_workers
        self._waiting.extend(range(self.num_workers))
        self._tick()

    def throughput(self, seconds: float = float("inf")) -> float:
        """Calls a second until all are made or the time is over."""
        num_all = self.calls * self.num_workers
        while self.num_served < num_all and self._events[0][0] < seconds:
            self.now, _, event = heapq.heappop(self._events)
            event()
        return self.num_served / min(self.now, seconds)

    def share_of_ideal(self) -> float:
        """Of the rate at which nobody waits for anything but the server."""
        return self.throughput() * self.seconds / self.num_workers

    def _after(self, seconds: float, event: Callable[[], None]) -> None:
        self._num_events += 1
        heapq.heappush(self._events, (self.now + seconds, self._num_events, event))

    def _tick(self) -> None:
        self.climber.rise_by_time(self.now)
        self.climber.pass_over_stuck(self.now)
        self._admit()
        self._after(TICK_SECONDS, self._tick)

    def _admit(self) -> None:
        while self._waiting and self.climber.has_room:
            worker, ticket = self._waiting.popleft(), self.climber.start(self.now)
            then = partial(self._process, partial(self._send, worker, ticket))
            self._after(self.wake_seconds, then)

    def _process(self, then: Callable[[], None]) -> None:
        """Half of a request's time of the processor, after those that came before."""
        self._for_processor.append(then)
        if not self._is_processing:
            self._is_processing = True
            self._after(self.cpu_seconds / 2, self._end_process)

    def _end_process(self) -> None:
        self._for_processor.popleft()()
        self._is_processing = bool(self._for_processor)
        if self._is_processing:
            self._after(self.cpu_seconds / 2, self._end_process)

    def _send(self, worker: int, ticket: Ticket) -> None:
        ticket.lag_seconds = self.now - ticket.started_at - self.cpu_seconds / 2
        if self._num_at_server == self.refuses_above:
            self._after(0.002, lambda: self._refused(worker, ticket))
            return
        self._num_at_server += 1
        self._at_server.append(lambda: self._process(lambda: self._done(worker, ticket)))
        self._serve()

    def _refused(self, worker: int, ticket: Ticket) -> None:
        self.climber.refuse(ticket, self.now)
        self.climber.finish(ticket, self.now, None)
        self._after(self._generator.random(), lambda: self._ask(worker))
        self._admit()

    def _serve(self) -> None:
        while self._at_server and self._num_served_now < self.num_slots:
            self._num_served_now += 1
            noise = self._generator.lognormvariate(-(self.sigma**2) / 2, self.sigma)
            seconds = self.seconds + self.seconds_per_neighbour * (self._num_at_server - 1)
            reply = self._at_server.popleft()
            self._after(seconds * noise, partial(self._reply, reply))

    def _reply(self, reply: Callable[[], None]) -> None:
        self._num_served_now -= 1
        self._num_at_server -= 1
        self._serve()
        reply()

    def _done(self, worker: int, ticket: Ticket) -> None:
        self.climber.finish(ticket, self.now, self.now - ticket.started_at)
        self.num_served += 1
        self._left[worker] -= 1
        if self._left[worker]:
            self._ask(worker)
        else:
            self._admit()

    def _ask(self, worker: int) -> None:
        self._waiting.append(worker)
        self._admit()


def adaptive(num_workers: int, seconds: float, **kinds: float) -> Run:
    return Run(Climber(num_workers, 0.0), num_workers, seconds, **kinds)  # type: ignore[arg-type]


def fixed(num_workers: int, seconds: float, **kinds: float) -> Run:
    return Run(Climber(num_workers, 0.0, is_fixed=True), num_workers, seconds, **kinds)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("num_workers", "seconds", "calls", "share"),
    [(256, 2.0, 15, 0.95), (512, 5.0, 15, 0.97), (512, 20.0, 3, 0.97), (32, 0.2, 15, 0.9)],
)
def test_a_slow_teacher_is_waited_for_by_all_workers_at_once(
    num_workers: int, seconds: float, calls: int, share: float
) -> None:
    run = adaptive(num_workers, seconds, calls=calls)
    assert run.share_of_ideal() >= share
    assert (run.climber.level, run.climber.reason) == (num_workers, Reason.GAIN)


def test_replies_of_very_different_length_do_not_stop_the_rise() -> None:
    asked = (256, 2.0)
    given = [run(*asked, calls=15, sigma=0.8).throughput() for run in (adaptive, fixed)]
    assert given[0] >= 0.9 * given[1]


def test_it_is_at_the_ceiling_before_a_slow_teacher_has_said_anything() -> None:
    run = adaptive(256, 2.0)
    run.throughput(1.9)
    assert run.num_served == 0
    assert run.climber.level == run.climber.in_flight == 256


@pytest.mark.parametrize("ending", ["reply", "failure"])
def test_it_does_not_rise_by_time_once_requests_have_come_back(ending: str) -> None:
    climber = Climber(256, 0.0)
    tickets = [climber.start(0.0) for _ in range(climber.level)]
    for ticket in tickets[:4]:
        climber.finish(ticket, 0.1, 0.1 if ending == "reply" else None)
    level = climber.level
    while climber.has_room:
        climber.start(0.1)
    climber.rise_by_time(2.0)
    assert climber.level == level <= 12


def test_it_does_not_rise_by_time_once_a_request_was_refused() -> None:
    climber = Climber(256, 0.0)
    tickets = [climber.start(0.0) for _ in range(climber.level)]
    climber.refuse(tickets[0], 0.1)
    climber.rise_by_time(2.0)
    assert climber.level == len(tickets)


def test_it_does_not_rise_by_time_where_no_more_are_asked_for() -> None:
    climber = Climber(256, 0.0)
    before = climber.level
    for _ in range(before - 1):
        climber.start(0.0)
    climber.rise_by_time(2.0)
    assert climber.level == before


@pytest.mark.parametrize(
    ("best", "share", "kinds"),
    [
        (160, 0.98, {"seconds": 0.05, "num_slots": 8}),
        (160, 0.97, {"seconds": 0.05, "num_slots": 8, "sigma": 0.5}),
        (160, 0.97, {"seconds": 0.05, "num_slots": 8, "refuses_above": 16}),
        (160, 0.94, {"seconds": 0.1, "num_slots": 16, "refuses_above": 16, "sigma": 0.3}),
        (64 / 0.515, 0.95, {"seconds": 0.2, "seconds_per_neighbour": 0.005, "sigma": 0.3}),
        (160, 0.92, {"seconds": 0.4, "sigma": 0.3}),
    ],
    ids=["queues", "queues, noisy", "refuses above 16", "16 slots", "batches", "no limit"],
)
def test_a_server_of_known_capacity_gives_it_from_the_start(
    best: float, share: float, kinds: dict[str, float]
) -> None:
    run = adaptive(64, **kinds)  # type: ignore[arg-type]
    assert run.throughput(FEW_SECONDS) >= share * best


def test_a_queue_that_a_slow_server_let_grow_is_left() -> None:
    """Nothing had come back before all were sent: what the server can take shows only then."""
    run = adaptive(256, 2.0, num_slots=8)
    assert run.throughput(120) >= 0.95 * 8 / 2
    assert run.climber.highest == 256
    assert run.climber.level <= 16
    assert run.climber.changes[Reason.QUEUE]


@pytest.mark.parametrize("num_workers", [64, 128, 512])
def test_a_busy_machine_of_our_own_is_named_and_does_not_lower_the_level(num_workers: int) -> None:
    run = adaptive(num_workers, 0.2, cpu_seconds=0.006)
    throughput = run.throughput(FEW_SECONDS)
    climber = run.climber
    assert climber.reason is Reason.CLIENT
    assert not {Reason.QUEUE, Reason.NEEDED} & climber.changes.keys()
    assert climber.level == climber.highest
    assert throughput >= 0.98 * fixed(num_workers, 0.2, cpu_seconds=0.006).throughput(FEW_SECONDS)


def test_a_server_that_queues_is_named_though_our_machine_is_half_busy() -> None:
    run = adaptive(64, 0.05, num_slots=8, cpu_seconds=0.003)
    assert run.throughput(FEW_SECONDS) >= 0.96 * 160
    assert run.climber.changes[Reason.QUEUE]
    assert run.climber.level <= 28


def test_threads_that_wake_late_whatever_the_level_do_not_keep_it_down() -> None:
    run = adaptive(64, 0.05, num_slots=8, wake_seconds=0.01)
    run.throughput(10)
    assert run.climber.level <= 40
    run.num_slots = 10**9
    run.throughput(40)
    assert run.climber.level >= 50


@pytest.mark.parametrize("cpu_seconds", [0.0, 0.001, 0.006])
def test_more_workers_never_give_fewer_calls(cpu_seconds: float) -> None:
    throughputs = [
        adaptive(num_workers, 0.2, cpu_seconds=cpu_seconds).throughput(12)
        for num_workers in (1, 8, 32, 64, 128, 256, 512)
    ]
    assert all(more >= 0.99 * fewer for fewer, more in zip(throughputs, throughputs[1:], strict=False))


class CountedLock:
    """A lock that counts how often it is taken."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.num_taken = 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self.num_taken += 1

    def __exit__(
        self,
        error_class: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._lock.release()


def in_threads(number: int, work: Callable[[], None]) -> list[threading.Thread]:
    threads = [threading.Thread(target=work, daemon=True) for _ in range(number)]
    for thread in threads:
        thread.start()
    return threads


def test_real_threads_are_let_in_though_no_reply_has_come() -> None:
    slots, all_are_in = Slots(64), threading.Barrier(64, timeout=30)
    passed: Counter[str] = Counter()

    def work() -> None:
        with slots.slot():
            all_are_in.wait()
            passed["in"] += 1

    for thread in in_threads(64, work):
        thread.join(30)
    assert passed["in"] == 64


def test_a_request_takes_the_lock_twice_whether_or_not_it_waits() -> None:
    slots = Slots(16, is_fixed=True)
    lock = CountedLock()
    slots._lock = lock  # type: ignore[assignment]

    def work() -> None:
        for _ in range(20):
            with slots.slot():
                pass

    for thread in in_threads(64, work):
        thread.join(30)
    assert lock.num_taken == 2 * 64 * 20


def test_who_waits_sleeps_until_it_is_let_in_and_nobody_else_is_woken() -> None:
    """One slot, and 100 threads that wait for it: neither time nor a slot that is given back wakes them."""
    slots = Slots(1)
    switches: list[int] = []

    def work() -> None:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        with slots.slot():
            switches.append(resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before)

    with slots.slot():
        threads = in_threads(100, work)
        time.sleep(1.2)
    for thread in threads:
        thread.join(30)
    assert len(switches) == 100
    switches.sort()
    assert switches[50] <= 4, "one to wait, and what waiting for the interpreter takes"


def test_how_late_a_thread_ran_is_told_for_those_that_waited() -> None:
    ticks = iter(range(10**6))
    slots = Slots(1, clock=lambda: next(ticks))  # a second passes whenever it is asked
    lags: list[float] = []

    def work() -> None:
        with slots.slot() as ticket:
            lags.append(ticket.lag_seconds)

    with slots.slot() as first:
        assert first.lag_seconds == 0
        (thread,) = in_threads(1, work)
        while not slots._waiters:
            time.sleep(0.01)
    thread.join(30)
    assert lags[0] >= 1
