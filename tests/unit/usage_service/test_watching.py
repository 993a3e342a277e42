"""Live totals: what watchers are told, and what it costs the database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from service_runtime.errors import Category, ServiceError
from usage_service.domain.report import Grouping, ModelUsage, Outcomes, UsageFilter, UsageReport
from usage_service.domain.window import Window
from usage_service.metering.watching import LiveTotals, Watched, Watching, WatchLimits

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
FAST = WatchLimits(poll_s=0.001, heartbeat_s=60.0)
AWAY = ServiceError(Category.UNAVAILABLE, "DATABASE_UNAVAILABLE", "the database does not answer")


class Usage:
    """A report whose requests the test sets; counts how often it was asked for, and how often at once."""

    def __init__(self) -> None:
        self.requests = 0
        self.failure: Exception | None = None
        self.asked: list[tuple[UUID, Window, Grouping]] = []
        self.at_once = self.most_at_once = 0

    def now(self) -> datetime:
        return NOW

    async def usage(
        self,
        tenant_id: UUID,
        window: Window,
        only: UsageFilter,
        *,
        grouping: Grouping = Grouping.MODEL,
        page_size: int | None = None,
    ) -> UsageReport:
        self.asked.append((tenant_id, window, grouping))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if self.failure is not None:
            raise self.failure
        return UsageReport(window, [], ModelUsage(outcomes=Outcomes(requests=self.requests)))

    async def until_asked(self, times: int) -> None:
        already = len(self.asked)
        async with asyncio.timeout(5):
            while len(self.asked) < already + times:
                await asyncio.sleep(0.001)


@pytest.fixture
def usage() -> Usage:
    return Usage()


def watched(tenant: int = 1, length: timedelta = timedelta(hours=1)) -> Watched:
    return Watched(UUID(int=tenant), length, UsageFilter(), Grouping.NONE)


def watch(watching: Watching, what: Watched | None = None, **others: Any) -> AsyncIterator[LiveTotals]:
    arguments: dict[str, Any] = {"min_interval_s": 0.0, "remaining_s": lambda: 60.0} | others
    return watching.watch(what or watched(), **arguments)


def requests_of(totals: LiveTotals) -> int:
    return totals.report.total.outcomes.requests


async def test_the_first_totals_come_at_once_and_the_next_when_they_change(usage: Usage) -> None:
    watching = Watching(usage, FAST)
    async with aclosing(watch(watching)) as totals:  # type: ignore[type-var]
        first = await anext(totals)
        usage.requests = 5
        second = await anext(totals)

    assert (requests_of(first), requests_of(second)) == (0, 5)
    assert (first.is_heartbeat, second.is_heartbeat) == (False, False)
    assert first.as_of == NOW
    assert usage.asked[0][1] == Window(NOW - timedelta(hours=1), NOW)


async def test_many_watchers_of_one_window_are_served_by_one_poll(usage: Usage) -> None:
    watching = Watching(usage, WatchLimits(poll_s=60.0, most=50, most_of_tenant=50))

    async def first() -> LiveTotals:
        async with aclosing(watch(watching)) as totals:  # type: ignore[type-var]
            told = await anext(totals)
            everybody.release()
            await done.wait()
            return told

    everybody, done = asyncio.Semaphore(0), asyncio.Event()
    tasks = [asyncio.create_task(first()) for _ in range(40)]
    for _ in tasks:
        await everybody.acquire()
    assert (watching.watchers, watching.polls, len(usage.asked)) == (40, 1, 1)
    done.set()
    await asyncio.gather(*tasks)

    assert (watching.watchers, watching.polls) == (0, 0)


async def test_nobody_watches_and_nothing_is_asked(usage: Usage) -> None:
    watching = Watching(usage, FAST)
    async with aclosing(watch(watching)) as totals:  # type: ignore[type-var]
        await anext(totals)
    asked = len(usage.asked)

    await asyncio.sleep(0.02)

    assert len(usage.asked) == asked


async def test_polls_of_many_windows_never_take_more_than_two_connections(usage: Usage) -> None:
    watching = Watching(usage, FAST)
    streams = [watch(watching, watched(tenant)) for tenant in range(10)]
    for stream in streams:
        await anext(stream)
    await usage.until_asked(30)

    assert usage.most_at_once <= 2
    assert watching.polls == 10
    for stream in streams:
        await stream.aclose()  # type: ignore[attr-defined]


async def test_changes_within_an_interval_are_told_together(usage: Usage) -> None:
    watching = Watching(usage, FAST)
    async with aclosing(watch(watching, min_interval_s=0.2)) as totals:  # type: ignore[type-var]
        await anext(totals)
        for usage.requests in (1, 2, 3):
            await usage.until_asked(2)
        second = await anext(totals)

    assert requests_of(second) == 3


async def test_without_a_change_there_is_a_heartbeat(usage: Usage) -> None:
    watching = Watching(usage, WatchLimits(poll_s=0.001, heartbeat_s=0.01))
    async with aclosing(watch(watching)) as totals:  # type: ignore[type-var]
        told = [await anext(totals) for _ in range(3)]

    assert [one.is_heartbeat for one in told] == [False, True, True]


async def test_a_watch_ends_when_its_time_is_up(usage: Usage) -> None:
    deadline = asyncio.get_running_loop().time() + 0.05
    watching = Watching(usage, FAST)

    told = [one async for one in watch(watching, remaining_s=lambda: deadline - asyncio.get_running_loop().time())]

    assert len(told) == 1
    assert watching.watchers == 0


async def test_a_watch_ends_when_the_service_stops_and_leaves_no_poll(usage: Usage) -> None:
    watching = Watching(usage, FAST)
    stream = watch(watching)
    await anext(stream)

    await watching.stop()

    assert [one async for one in stream] == []
    assert (watching.watchers, watching.polls) == (0, 0)
    assert [one async for one in watch(watching)] == []


@pytest.mark.parametrize(
    ("limits", "tenants"),
    [(WatchLimits(most=2), (1, 2, 3)), (WatchLimits(most_of_tenant=2), (1, 1, 1))],
    ids=["of all", "of a tenant"],
)
async def test_one_watcher_too_many_is_refused(usage: Usage, limits: WatchLimits, tenants: tuple[int, ...]) -> None:
    watching = Watching(usage, limits)
    streams = [watch(watching, watched(tenant)) for tenant in tenants[:2]]
    for stream in streams:
        await anext(stream)

    with pytest.raises(ServiceError, match="2 watch already") as refused:
        await anext(watch(watching, watched(tenants[2])))

    assert (refused.value.category, refused.value.reason) == (Category.RESOURCE_EXHAUSTED, "TOO_MANY_WATCHERS")
    for stream in streams:
        await stream.aclose()  # type: ignore[attr-defined]
    async with aclosing(watch(watching, watched(tenants[2]))) as totals:  # type: ignore[type-var]
        await anext(totals)


async def test_a_watch_that_cannot_begin_says_why(usage: Usage) -> None:
    usage.failure = AWAY
    watching = Watching(usage, FAST)

    with pytest.raises(ServiceError, match="does not answer"):
        await anext(watch(watching))

    assert watching.polls == 0


@pytest.mark.parametrize("failure", [AWAY, RuntimeError("a bug")], ids=["foreseen", "a bug"])
async def test_a_watch_outlasts_a_failure_and_goes_on(usage: Usage, failure: Exception) -> None:
    watching = Watching(usage, WatchLimits(poll_s=0.001, heartbeat_s=0.01))
    async with aclosing(watch(watching)) as totals:  # type: ignore[type-var]
        await anext(totals)
        usage.failure = failure
        meanwhile = await anext(totals)
        usage.failure, usage.requests = None, 7
        told = await anext(totals)
        while told.is_heartbeat:
            told = await anext(totals)

    assert meanwhile.is_heartbeat
    assert requests_of(told) == 7
