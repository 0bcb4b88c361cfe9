"""The level of requests in flight: against simulated servers on a clock of their own, and with real threads."""

from __future__ import annotations

import heapq
import random
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distil.errors import RunHalted
from distil.teacher.climber import Climber, Reason, Ticket
from distil.teacher.slots import Slots

SERVICE_SECONDS = 0.05
Noise = Callable[[random.Random], float]
NOISES: dict[str, Noise] = {
    "constant": lambda _: 1.0,
    "log-normal": lambda generator: generator.lognormvariate(-0.125, 0.5),
    "exponential": lambda generator: generator.expovariate(1),
}


@dataclass
class QueueingServer:
    """A server with `num_slots` that queues first come first served, and refuses above `refuses_above`."""

    climber: Climber
    num_slots: int
    noise: Noise = NOISES["log-normal"]
    refuses_above: int = 10**6
    demand: int = 10**6  # more requests there never are
    fault_share: float = 0.0  # 503s that have nothing to do with load
    stall_share: float = 0.0  # requests that get no reply and no slot, until they are given up
    seed: int = 0
    now: float = 0.0
    num_served: int = 0
    most_in_flight: int = 0
    _queue: deque[tuple[Ticket, float]] = field(default_factory=deque)
    _ends: list[tuple[float, int, bool, Ticket, float]] = field(default_factory=list)
    _num_busy: int = 0
    _count: int = 0

    def __post_init__(self) -> None:
        self._generator = random.Random(self.seed)

    def run(self, seconds: float) -> float:
        """Keep as many requests in flight as the level lets; the throughput."""
        until, served = self.now + seconds, self.num_served
        while self.now < until:
            while self.climber.has_room and self.climber.in_flight < self.demand:
                self._send()
            self._serve_queue()
            self._end_one()
        return (self.num_served - served) / seconds

    def _send(self) -> None:
        epoch = self.climber.start(self.now)
        num_open = self.climber.in_flight + self.climber.num_overtaken
        self.most_in_flight = max(self.most_in_flight, num_open)
        if self._generator.random() < self.stall_share:
            self._end_after(160 * SERVICE_SECONDS, True, (epoch, self.now))
        elif self.climber.in_flight > self.refuses_above or self._generator.random() < self.fault_share:
            self._end_after(0.02, True, (epoch, self.now))
        else:
            self._queue.append((epoch, self.now))

    def _serve_queue(self) -> None:
        while self._queue and self._num_busy < self.num_slots:
            self._num_busy += 1
            self._end_after(SERVICE_SECONDS * self.noise(self._generator), False, self._queue.popleft())

    def _end_after(self, seconds: float, is_refused: bool, request: tuple[Ticket, float]) -> None:
        self._count += 1
        heapq.heappush(self._ends, (self.now + seconds, self._count, is_refused, *request))

    def _end_one(self) -> None:
        self.now, _, is_refused, epoch, started = heapq.heappop(self._ends)
        if is_refused:
            if self.now - started < 1:
                self.climber.refuse(epoch, self.now)
            self.climber.finish(epoch, self.now, None)
            return
        self._num_busy -= 1
        self.num_served += 1
        self.climber.finish(epoch, self.now, self.now - started)


def best(num_slots: int) -> float:
    return num_slots / SERVICE_SECONDS


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES.keys())
@pytest.mark.parametrize("num_slots", [1, 8, 20])
def test_it_finds_what_a_queueing_server_can_take(noise: Noise, num_slots: int) -> None:
    servers = [QueueingServer(Climber(64, 0.0), num_slots, noise, seed=seed) for seed in range(4)]
    for server in servers:
        server.run(10)
    throughputs = [server.run(30) for server in servers]
    assert statistics.fmean(throughputs) >= 0.93 * best(num_slots)
    assert min(throughputs) >= 0.8 * best(num_slots)
    assert statistics.median(server.climber.level for server in servers) <= 3 * num_slots + 4
    assert all(server.climber.changes[Reason.QUEUE] for server in servers)


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES.keys())
def test_without_a_queue_it_rises_to_the_ceiling(noise: Noise) -> None:
    server = QueueingServer(Climber(64, 0.0), 1000, noise)
    server.run(2)
    assert server.climber.highest == server.most_in_flight == 64
    assert server.run(20) >= 0.9 * best(64)


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES.keys())
def test_the_usual_small_run_stays_at_its_ceiling(noise: Noise) -> None:
    server = QueueingServer(Climber(4, 0.0), 1000, noise)
    while server.num_served < 60:
        server.run(SERVICE_SECONDS)
        assert server.climber.level == 4


def test_refusals_lower_it_to_what_is_not_refused() -> None:
    server = QueueingServer(Climber(64, 0.0), 1000, refuses_above=16)
    server.run(10)
    assert server.run(20) >= 0.9 * best(16)
    assert server.climber.level <= 17
    assert server.climber.changes[Reason.REFUSED] > 0


def test_it_falls_when_a_server_gets_slow_and_rises_when_it_recovers() -> None:
    server = QueueingServer(Climber(64, 0.0), 1000)
    server.run(10)
    assert server.climber.level >= 50
    server.num_slots = 5
    server.run(60)
    assert server.climber.level < 40
    server.num_slots = 1000
    server.run(40)
    assert server.climber.level >= 40


def test_it_recovers_from_a_spell_of_refusals() -> None:
    server = QueueingServer(Climber(32, 0.0), 1000)
    server.run(5)
    server.refuses_above = 0
    server.run(2)
    assert server.climber.level <= 2
    server.refuses_above = 10**6
    server.run(30)
    assert server.climber.level >= 24


def test_a_few_faults_are_no_overload() -> None:
    server = QueueingServer(Climber(64, 0.0), 1000, fault_share=0.03)
    server.run(10)
    assert server.run(10) >= 0.8 * best(64)


@pytest.mark.parametrize("num_slots", [8, 20])
def test_requests_that_are_stuck_take_no_room(num_slots: int) -> None:
    """One in 70 gets no reply in 160 times the usual time: most of a level would soon be stuck."""
    servers = [
        QueueingServer(Climber(256, 0.0), num_slots, stall_share=0.014, seed=seed) for seed in range(4)
    ]
    for server in servers:
        server.run(20)
    assert statistics.fmean(server.run(60) for server in servers) >= 0.85 * best(num_slots)
    assert max(server.most_in_flight for server in servers) <= 256


def fill(climber: Climber, now: float) -> list[Ticket]:
    """As many requests as there is room for."""
    tickets = []
    while climber.has_room:
        tickets.append(climber.start(now))
    return tickets


def test_while_nothing_was_ever_answered_no_more_is_sent() -> None:
    climber = Climber(64, 0.0)
    assert len(fill(climber, 0.0)) == climber.level < 64
    climber.pass_over_stuck(10**6)
    assert not climber.has_room


def test_a_level_that_is_stuck_as_a_whole_takes_no_room() -> None:
    climber = Climber(64, 0.0)
    for ticket in fill(climber, 0.0):
        climber.finish(ticket, 1.0, 1.0)
    stuck = fill(climber, 1.0)
    climber.pass_over_stuck(20.0)
    assert not climber.has_room
    climber.pass_over_stuck(22.0)
    assert fill(climber, 22.0)
    for ticket in stuck:
        climber.finish(ticket, 600.0, None)
    assert climber.num_overtaken == 0


def test_it_does_not_rise_where_nobody_asks_for_more() -> None:
    server = QueueingServer(Climber(64, 0.0), 1000, demand=5)
    server.run(20)
    assert server.climber.level <= 8


def test_refusals_of_one_round_lower_it_once() -> None:
    climber = Climber(8, 0.0)
    for ticket in fill(climber, 0.0):
        climber.refuse(ticket, 0.1)
    assert climber.level == 5
    assert climber.changes == {Reason.REFUSED: 1}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(0, 2**20))
def test_the_level_stays_between_one_and_the_ceiling_whatever_happens(ceiling: int, seed: int) -> None:
    generator = random.Random(seed)
    climber, now, under_way = Climber(ceiling, 0.0), 0.0, [0]
    under_way.clear()
    for _ in range(1500):
        now += generator.choice((0.0, 0.001, 0.1, 100.0))
        choice = generator.random()
        if choice < 0.5 and climber.has_room:
            under_way.append(climber.start(now))
        elif under_way:
            epoch = under_way.pop(generator.randrange(len(under_way)))
            if choice > 0.9:
                climber.refuse(epoch, now)
            climber.finish(epoch, now, generator.choice((None, 0.0, 0.01, 50.0)))
        assert 1 <= climber.level <= climber.highest <= ceiling
        assert climber.in_flight + climber.num_overtaken == len(under_way) <= ceiling


def test_a_fixed_level_never_moves() -> None:
    server = QueueingServer(Climber(32, 0.0, is_fixed=True), 4, refuses_above=20)
    server.run(10)
    assert (server.climber.level, server.climber.reason, server.climber.changes) == (32, Reason.FIXED, {})


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 24), st.integers(1, 32), st.integers(0, 1000))
def test_threads_are_never_more_in_flight_than_the_level(ceiling: int, num_threads: int, seed: int) -> None:
    slots, lock = Slots(ceiling), threading.Lock()
    in_flight = highest = most_at_level = done = 0

    def work(number: int) -> None:
        nonlocal in_flight, highest, most_at_level, done
        generator = random.Random(seed * 1000 + number)
        for _ in range(12):
            with suppress(ZeroDivisionError), slots.slot() as ticket:
                with lock:
                    in_flight += 1
                    highest = max(highest, in_flight)
                    # On a busy machine some are passed over as stuck, and take no room in the level.
                    most_at_level = max(most_at_level, in_flight - slots._climber.num_overtaken)
                time.sleep(generator.random() / 500)
                with lock:
                    in_flight -= 1
                    done += 1
                if generator.random() < 0.2:
                    slots.refuse(ticket)
                    raise ZeroDivisionError

    threads = [threading.Thread(target=work, args=(number,)) for number in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert done == 12 * num_threads
    assert most_at_level <= slots.state().highest <= ceiling
    assert highest <= ceiling


def test_slots_are_given_in_the_order_they_were_asked_for() -> None:
    slots = Slots(1)
    order: list[int] = []

    def work(number: int) -> None:
        with slots.slot():
            order.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(10)]
    with slots.slot():
        for thread in threads:
            thread.start()
            time.sleep(0.02)
    for thread in threads:
        thread.join(10)
    assert order == list(range(10))


def test_closing_wakes_all_who_wait_and_lets_nobody_in() -> None:
    slots = Slots(1)
    errors: list[RunHalted] = []

    def work() -> None:
        try:
            with slots.slot():
                pass
        except RunHalted as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(5)]
    with slots.slot():
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        slots.close()
        for thread in threads:
            thread.join(10)
        assert len(errors) == 5
    with pytest.raises(RunHalted, match="given up"), slots.slot():
        pass


def test_a_failure_gives_its_slot_back() -> None:
    slots = Slots(1)
    with pytest.raises(ZeroDivisionError), slots.slot():
        raise ZeroDivisionError
    with slots.slot():
        assert slots.state().level == 1
