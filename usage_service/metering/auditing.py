"""Proves the ledger: recounts it part by part and says what does not agree."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol
from uuid import UUID

import structlog

from service_runtime.errors import Category, ServiceError
from usage_service.domain.audit import AuditPart, CheckResult, LedgerCheck, Results, added, day_runs
from usage_service.domain.window import Grain, RollupRetention, Window

# Recounted in about a second.
_ROWS_OF_A_PART = 100_000
_TENANTS_AT_A_TIME = 200
_MAX_AUDITS = 2
_NO_TENANT = UUID(int=0)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class AuditPosition:
    """Where an audit goes on: with a tenant's days from `resume_at`, or with what belongs to no tenant (None)."""

    tenant_id: UUID | None
    resume_at: datetime


@dataclass(frozen=True, slots=True)
class AuditPage:
    """What a part of an audit found, and where the next one goes on; None when all is done."""

    window: Window
    results: Results
    resume: AuditPosition | None


@dataclass(frozen=True, slots=True)
class HeldRows:
    """Since when raw rows are whole, and whether older ones were dropped."""

    since: datetime
    some_were_dropped: bool


class AuditStore(Protocol):
    """What an audit reads. Every method raises `ServiceError` UNAVAILABLE when the database is away."""

    async def held_rows(self, now: datetime, raw_retention: timedelta | None) -> HeldRows:
        """From when on rows are kept, also for as long as the audit may take."""
        ...

    async def tenants_after(self, tenant_id: UUID, window: Window, *, limit: int) -> Sequence[UUID]:
        """At most `limit` tenants after a given one that may have rows in the window or any rollup, ascending."""
        ...

    async def rows_by_day(self, tenant_id: UUID, window: Window) -> Mapping[datetime, int]:
        """About how many rows a tenant has on each UTC day."""
        ...

    async def verify_part(self, part: AuditPart, *, most: int) -> Results:
        """Recount a tenant's days on one snapshot, naming at most `most` discrepancies a check."""
        ...

    async def verify_journals(
        self, window: Window, held: HeldRows, *, now: datetime, open_since: datetime, accept_back: timedelta, most: int
    ) -> Results:
        """Verify event ids and the routers' journals on one snapshot; attempts may be open since `open_since`."""
        ...

    def alone(self) -> AbstractAsyncContextManager[bool]:
        """A block that only one process is in; False for the others."""
        ...


class AuditMetrics(Protocol):
    """What can be seen of audits from outside."""

    def audited(self, results: Results, at: datetime) -> None:
        """A scheduled audit was completed."""
        ...


class Auditing:
    """Verifies the ledger on request and on schedule. `now` tells the time in UTC."""

    def __init__(
        self,
        *,
        store: AuditStore,
        metrics: AuditMetrics,
        retention: RollupRetention,
        raw_retention: timedelta | None,
        accept_back: timedelta,
        open_attempt_bound: timedelta,
        now: Callable[[], datetime],
        monotonic_s: Callable[[], float],
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._retention = retention
        self._raw_retention = raw_retention
        self._accept_back = accept_back
        self._open_attempt_bound = open_attempt_bound
        self._now = now
        self._monotonic_s = monotonic_s
        self._running = 0

    def now(self) -> datetime:
        """The present, where windows end unless the caller says otherwise."""
        return self._now()

    async def verify(
        self, window: Window, tenant_id: UUID | None, *, most: int, after: AuditPosition | None, budget_s: float
    ) -> AuditPage:
        """Verify the whole UTC days around `window`, or as many parts of them as `budget_s` is enough for.

        Raises ServiceError RESOURCE_EXHAUSTED AUDIT_BUSY when others are verified, UNAVAILABLE without a database.
        """
        until_s = self._monotonic_s() + budget_s
        if self._running >= _MAX_AUDITS:
            raise ServiceError(
                Category.RESOURCE_EXHAUSTED,
                "AUDIT_BUSY",
                f"{_MAX_AUDITS} audits are running already; try again later",
                retry_after_s=budget_s,
            )
        self._running += 1
        try:
            return await self._verify(window, tenant_id, most=most, after=after, until_s=until_s)
        finally:
            self._running -= 1

    async def verify_on_schedule(self, days: int) -> Results | None:
        """Verify the latest days and tell the metrics. None when another process is about it."""
        async with self._store.alone() as is_alone:
            if not is_alone:
                return None
            now = self._now()
            window = Window(now - timedelta(days=days), now)
            results: Results = {}
            position: AuditPosition | None = None
            while True:
                page = await self._verify(window, None, most=10, after=position, until_s=float("inf"))
                results = added(results, page.results, most=10)
                position = page.resume
                if position is None:
                    break
        for check, result in results.items():
            if result.wrong or result.unchecked:
                first = result.discrepancies[0] if result.discrepancies else None
                _log.error(
                    "ledger.does_not_agree",
                    check=check.value,
                    wrong=result.wrong,
                    unchecked=len(result.unchecked),
                    first=None if first is None else f"{first.key}: {first.expected}, but {first.actual}",
                    remedy="turnpike verify",
                )
        self._metrics.audited(results, self._now())
        return results

    async def _verify(
        self, window: Window, tenant_id: UUID | None, *, most: int, after: AuditPosition | None, until_s: float
    ) -> AuditPage:
        now = self._now()
        held = await self._store.held_rows(now, self._raw_retention)
        start = max(Grain.DAY.floor(window.start.astimezone(UTC)), held.since)
        end = Grain.DAY.ceil(window.end.astimezone(UTC))
        if start >= end:
            # Nothing is kept of it, so there is nothing that could disagree.
            return AuditPage(Window(end - Grain.DAY.value, end), {}, None)
        days = Window(start, end)
        results: Results = {}
        if after is None or after.tenant_id is not None:
            async for position, part in self._parts(days, tenant_id, after, now):
                if results and self._monotonic_s() >= until_s:
                    return AuditPage(days, results, position)
                results = added(results, await self._store.verify_part(part, most=most), most=most)
        if tenant_id is None:
            if results and self._monotonic_s() >= until_s:
                return AuditPage(days, results, AuditPosition(None, days.start))
            found = await self._store.verify_journals(
                days,
                held,
                now=now,
                open_since=now - self._open_attempt_bound,
                accept_back=self._accept_back,
                most=most,
            )
            results = added(results, found, most=most)
        return AuditPage(days, added({check: CheckResult() for check in _checks(tenant_id)}, results, most=most), None)

    async def _parts(
        self, days: Window, tenant_id: UUID | None, after: AuditPosition | None, now: datetime
    ) -> AsyncIterator[tuple[AuditPosition, AuditPart]]:
        """The parts that are still to be verified, each with its position."""
        kept = self._retention.kept_at(now)
        resume_at = max(after.resume_at, days.start) if after else days.start
        async for tenant in self._tenants(days, tenant_id, after):
            if resume_at < days.end:
                left = Window(resume_at, days.end)
                rows = await self._store.rows_by_day(tenant, left)
                for run in day_runs(left, rows, most_rows=_ROWS_OF_A_PART):
                    part = AuditPart(tenant, run, kept.minutes_since, kept.hours_since)
                    yield AuditPosition(tenant, run.start), part
            resume_at = days.start

    async def _tenants(self, days: Window, tenant_id: UUID | None, after: AuditPosition | None) -> AsyncIterator[UUID]:
        if tenant_id is not None:
            yield tenant_id
            return
        last = _NO_TENANT
        if after is not None and after.tenant_id is not None:
            last = after.tenant_id
            yield last
        while found := await self._store.tenants_after(last, days, limit=_TENANTS_AT_A_TIME):
            for tenant in found:
                yield tenant
            last = found[-1]


_OF_NO_TENANT = frozenset(
    {
        LedgerCheck.DUPLICATE_EVENT,
        LedgerCheck.DUPLICATE_SEQUENCE,
        LedgerCheck.SEQUENCE_GAP,
        LedgerCheck.OPEN_ATTEMPT,
    }
)


def _checks(tenant_id: UUID | None) -> list[LedgerCheck]:
    """The checks that an audit makes, also where it finds nothing to look at."""
    return [check for check in LedgerCheck if tenant_id is None or check not in _OF_NO_TENANT]
