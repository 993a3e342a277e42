"""Live totals: one poll of the database for each tenant and window, however many watch it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

import structlog

from service_runtime.errors import Category, ServiceError
from usage_service.domain.report import Grouping, UsageFilter, UsageReport
from usage_service.domain.window import Window

_RETRY_AFTER_S = 5.0
# Of the database's connections, whatever number of windows is watched: reports and ingest need the others.
_POLLS_AT_A_TIME = 2
MOST_GROUPS = 100  # that a message has; its total is of all

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Watched:
    """What is watched: a tenant's usage in the time of this length that ends now."""

    tenant_id: UUID
    length: timedelta
    only: UsageFilter
    grouping: Grouping


@dataclass(frozen=True, slots=True)
class LiveTotals:
    """The usage as of a time. `is_heartbeat`: nothing has changed since the message before."""

    report: UsageReport
    as_of: datetime
    is_heartbeat: bool = False


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """`poll_s` is how often the database is asked, so that a change is seen within it."""

    poll_s: float = 1.0
    heartbeat_s: float = 15.0
    most: int = 200
    most_of_tenant: int = 20


class Usage(Protocol):
    """The report that is watched; `metering.reporting.Reporting` is one."""

    def now(self) -> datetime:
        """The present."""
        ...

    async def usage(
        self,
        tenant_id: UUID,
        window: Window,
        only: UsageFilter,
        *,
        grouping: Grouping = ...,
        page_size: int | None = ...,
    ) -> UsageReport:
        """Usage by group, and the total of all groups."""
        ...


class _Feed:
    """The latest totals of one window, and the task that keeps them up to date while anybody watches."""

    def __init__(self) -> None:
        self.latest: LiveTotals | None = None
        self.version = 0  # of the totals
        self.failure: Exception | None = None
        self.news: set[asyncio.Event] = set()  # one of each watcher
        self.task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        for news in self.news:
            news.set()


class Watching:
    """Everybody who watches, and the polls that serve them."""

    def __init__(self, usage: Usage, limits: WatchLimits) -> None:
        self._usage = usage
        self._limits = limits
        self._feeds: dict[Watched, _Feed] = {}
        self._polling = asyncio.Semaphore(_POLLS_AT_A_TIME)
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopping = False

    @property
    def watchers(self) -> int:
        """How many watch."""
        return sum(len(feed.news) for feed in self._feeds.values())

    @property
    def polls(self) -> int:
        """How many windows are polled for them."""
        return len(self._feeds)

    def now(self) -> datetime:
        """The present, where windows end."""
        return self._usage.now()

    async def stop(self) -> None:
        """End every watch, as the service drains, and wait for the polls. A watch that begins later ends at once."""
        self._is_stopping = True
        for feed in self._feeds.values():
            feed.wake()
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def watch(
        self, watched: Watched, *, min_interval_s: float, remaining_s: Callable[[], float]
    ) -> AsyncIterator[LiveTotals]:
        """The totals at once, then whenever they change, at most every `min_interval_s`, and now and then a heartbeat.

        Ends when `remaining_s` runs out, and when the service stops. Raises ServiceError RESOURCE_EXHAUSTED
        TOO_MANY_WATCHERS, and what the first report raises. Later failures are outlasted: the totals tell their age.
        """
        with self._place(watched) as (feed, news):
            told_version, told_at_s = -1, -math.inf
            now_s = asyncio.get_running_loop().time
            while remaining_s() > 0 and not self._is_stopping:
                wait_s = math.inf
                if feed.latest is not None:
                    is_heartbeat = feed.version == told_version
                    wait_s = (self._limits.heartbeat_s if is_heartbeat else min_interval_s) - (now_s() - told_at_s)
                    if wait_s <= 0:
                        told_version, told_at_s = feed.version, now_s()
                        yield replace(feed.latest, is_heartbeat=is_heartbeat)
                        continue
                elif feed.failure is not None:
                    raise feed.failure
                news.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, min(wait_s, remaining_s()))):
                        await news.wait()

    @contextmanager
    def _place(self, watched: Watched) -> Iterator[tuple[_Feed, asyncio.Event]]:
        """A place among the watchers of a window; the first one's begins its poll, the last one's ends it."""
        limits = self._limits
        of_tenant = sum(len(feed.news) for key, feed in self._feeds.items() if key.tenant_id == watched.tenant_id)
        if self.watchers >= limits.most or of_tenant >= limits.most_of_tenant:
            raise ServiceError(
                Category.RESOURCE_EXHAUSTED,
                "TOO_MANY_WATCHERS",
                f"{self.watchers} watch already, {of_tenant} of them this tenant; there may be {limits.most}, "
                f"{limits.most_of_tenant} of one tenant; end one, or read GetTenantUsageStats now and then",
                retry_after_s=_RETRY_AFTER_S,
            )
        feed = self._feeds.get(watched)
        if feed is None:
            feed = self._feeds[watched] = _Feed()
            feed.task = asyncio.create_task(self._poll(watched, feed), name="watch usage")
            self._tasks.add(feed.task)
            feed.task.add_done_callback(self._tasks.discard)
        news = asyncio.Event()
        feed.news.add(news)
        try:
            yield feed, news
        finally:
            feed.news.discard(news)
            if not feed.news:
                del self._feeds[watched]
                if feed.task is not None:
                    feed.task.cancel()

    async def _poll(self, watched: Watched, feed: _Feed) -> None:
        while True:
            try:
                async with self._polling:
                    now = self._usage.now()
                    report = await self._usage.usage(
                        watched.tenant_id,
                        Window(now - watched.length, now),
                        watched.only,
                        grouping=watched.grouping,
                        page_size=MOST_GROUPS,
                    )
            except ServiceError as error:
                _log.info("watch.poll_failed", reason=error.reason)
                feed.failure = error
                feed.wake()
            except Exception as error:  # noqa: BLE001 - a bug: who waits for the first totals is to get it, not to hang
                _log.exception("watch.poll_crashed")
                feed.failure = error
                feed.wake()
            else:
                before = feed.latest.report if feed.latest is not None else None
                feed.latest = LiveTotals(report, now)
                if before is None or (before.models, before.total) != (report.models, report.total):
                    feed.version += 1
                    feed.wake()
            await asyncio.sleep(self._limits.poll_s)
