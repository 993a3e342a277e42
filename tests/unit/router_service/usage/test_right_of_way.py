"""Who may send when there are requests: one batch at a time, at a pace that the requests set."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import count

import pytest

from router_service.usage.metrics import UsageMetrics
from router_service.usage.pacing import PaceSettings
from router_service.usage.right_of_way import Batches, RightOfWay
from tests.support.attempts import journal_metrics

FLOOR_PER_S, FIRST_PER_S = 100.0, 1_000.0
SETTINGS = PaceSettings(floor_per_s=FLOOR_PER_S, ceiling_per_s=10_000.0, first_per_s=FIRST_PER_S)
BATCHES = Batches(smallest=10, largest=50)


@dataclass
class Clock:
    """Time that passes when it is told to; `late_s` is how much too late every sleeper wakes."""

    now_s: float = 1_000.0
    late_s: float = 0.0
    _sleepers: list[tuple[float, int, asyncio.Future[None]]] = field(default_factory=list)
    _numbers: count[int] = field(default_factory=count)

    def read(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        if seconds > 0:
            waiter = asyncio.get_running_loop().create_future()
            heapq.heappush(self._sleepers, (self.now_s + seconds + self.late_s, next(self._numbers), waiter))
            await waiter

    async def pass_by(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= until_s:
            at_s, _, waiter = heapq.heappop(self._sleepers)
            self.now_s = max(self.now_s, at_s)
            if not waiter.done():
                waiter.set_result(None)
            await settle()
        self.now_s = until_s
        await settle()


async def settle() -> None:
    """Let everybody do what they can without time."""
    for _ in range(10):
        await asyncio.sleep(0)


@dataclass
class Road:
    clock: Clock
    way: RightOfWay
    metrics: UsageMetrics
    idle_s: float = 0.0
    sent_at_s: list[float] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    async def send(self, batches: int, *, events: int = 100, takes_s: float = 0.01) -> None:
        """Batches, one after the other."""
        for _ in range(batches):
            async with self.way.turn(BATCHES, self.clock.sleep) as turn:
                self.at_once += 1
                self.most_at_once = max(self.most_at_once, self.at_once)
                self.sent_at_s.append(self.clock.now_s)
                await self.clock.sleep(takes_s)
                turn.sent = events
                self.at_once -= 1


@pytest.fixture
async def road() -> AsyncIterator[Road]:
    clock, metrics = Clock(), journal_metrics()
    way = RightOfWay(lambda: 0.0, metrics, settings=SETTINGS, now_s=clock.read, sleep=clock.sleep)
    yield Road(clock, way, metrics)
    await way.close()


def gauge(metric: object) -> float:
    (family,) = metric.collect()  # type: ignore[attr-defined]
    return float(family.samples[0].value)


@pytest.mark.parametrize(("idle_s", "is_taken"), [(0.0, True), (0.4, True), (0.6, False), (math.inf, False)])
def test_requests_are_there_when_one_was_seen_a_moment_ago(idle_s: float, is_taken: bool) -> None:
    assert RightOfWay(lambda: idle_s, journal_metrics()).is_taken is is_taken


async def test_batches_go_as_far_apart_as_the_pace_says(road: Road) -> None:
    sending = asyncio.create_task(road.send(3))
    await road.clock.pass_by(0.5)
    await asyncio.wait_for(sending, 5)

    assert [round(at_s - road.sent_at_s[0], 6) for at_s in road.sent_at_s] == [0.0, 0.1, 0.2]


async def test_of_all_that_sends_in_a_process_one_batch_goes_at_a_time_and_all_share_one_rate(road: Road) -> None:
    senders = [asyncio.create_task(road.send(2)) for _ in range(3)]
    await road.clock.pass_by(1.0)
    await asyncio.wait_for(asyncio.gather(*senders), 5)

    assert road.most_at_once == 1
    assert road.sent_at_s[-1] - road.sent_at_s[0] == pytest.approx(0.5)


async def test_a_batch_that_fails_gives_its_turn_back(road: Road) -> None:
    with pytest.raises(ConnectionError):
        async with road.way.turn(BATCHES, road.clock.sleep):
            raise ConnectionError
    sending = asyncio.create_task(road.send(1))
    await road.clock.pass_by(0.1)

    await asyncio.wait_for(sending, 5)


async def test_whoever_leaves_the_line_holds_nobody_up(road: Road) -> None:
    first = asyncio.create_task(road.send(2))
    second = asyncio.create_task(road.send(1))
    await road.clock.pass_by(0.05)
    second.cancel()
    await road.clock.pass_by(0.5)

    await asyncio.wait_for(first, 5)
    assert len(road.sent_at_s) == 2


async def test_requests_that_wait_longer_for_the_journal_during_batches_slow_the_backlog_down(road: Road) -> None:
    sending = asyncio.create_task(road.send(100, takes_s=0.04))
    for _ in range(500):
        await road.clock.pass_by(0.01)
        road.way.waited_for_journal(0.02 if road.at_once else 0.002)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)

    assert road.way.pace.per_s < FIRST_PER_S
    assert gauge(road.metrics.backlog_pace) == road.way.pace.per_s
    assert gauge(road.metrics.backlog_strain) > 1.25


async def test_requests_that_do_not_notice_let_the_backlog_go_faster(road: Road) -> None:
    sending = asyncio.create_task(road.send(1_000, takes_s=0.02))
    for _ in range(500):
        await road.clock.pass_by(0.01)
        road.way.waited_for_journal(0.002)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)

    assert road.way.pace.per_s > 2 * FIRST_PER_S


async def test_an_event_loop_that_is_late_during_batches_slows_the_backlog_down(road: Road) -> None:
    sending = asyncio.create_task(road.send(100, takes_s=0.04))
    for _ in range(2_500):
        road.clock.late_s = 0.02 if road.at_once else 0.0
        await road.clock.pass_by(0.002)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)

    assert road.way.pace.per_s < FIRST_PER_S


async def test_batches_are_small_until_one_takes_so_long_that_the_floor_needs_larger_ones(road: Road) -> None:
    sizes = []
    for takes_s in (0.01, 0.3, 0.01):
        async with road.way.turn(BATCHES, lambda _: road.clock.sleep(0)) as turn:
            sizes.append(turn.size)
            road.clock.now_s += takes_s

    assert sizes == [10, 10, 30]


async def test_when_the_backlog_is_gone_nobody_listens_any_more(road: Road) -> None:
    sending = asyncio.create_task(road.send(20))
    await road.clock.pass_by(2.5)
    await asyncio.wait_for(sending, 5)
    assert gauge(road.metrics.backlog_pace) > 0
    await road.clock.pass_by(3.0)

    assert gauge(road.metrics.backlog_pace) == 0
    assert not road.clock._sleepers
