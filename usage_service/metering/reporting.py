"""Answer what a tenant used, what it cost and what failed.

Everything but single records comes from rollups: a report's price is its number of buckets, not the tenant's traffic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

from service_runtime.errors import Category, ServiceError
from usage_service.domain.report import DailyCost, Failure, StoredRecord, UsageFilter, UsageReport
from usage_service.domain.window import RollupRetention, Window, answerable, local_days, tiles
from usage_service.metering.report_ports import AfterDailyCost, AfterFailure, AfterRecord, Records, Rollups

# The report of usage has no pages. Models are named by callers, so their number needs a bound.
MAX_MODELS = 5_000

Entry = TypeVar("Entry")


@dataclass(frozen=True, slots=True)
class Page(Generic[Entry]):
    """Some entries, and whether more follow."""

    entries: Sequence[Entry]
    has_more: bool


class Reporting:
    """Every report on the ledger. `now` tells the time in UTC."""

    def __init__(
        self, *, rollups: Rollups, records: Records, retention: RollupRetention, now: Callable[[], datetime]
    ) -> None:
        self._rollups = rollups
        self._records = records
        self._retention = retention
        self._now = now

    def now(self) -> datetime:
        """The present, where windows end unless the caller says otherwise."""
        return self._now()

    async def usage(self, tenant_id: UUID, window: Window, only: UsageFilter) -> UsageReport:
        """Usage by provider and model, over the smallest window around `window` that the kept rollups can answer.

        Raises ServiceError FAILED_PRECONDITION REPORT_TOO_LARGE above `MAX_MODELS` entries.
        """
        answered = answerable(window, self._retention.kept_at(self._now()))
        models = await self._rollups.usage_by_model(tenant_id, tiles(answered), only, limit=MAX_MODELS + 1)
        if len(models) > MAX_MODELS:
            raise ServiceError(
                Category.FAILED_PRECONDITION,
                "REPORT_TOO_LARGE",
                f"the window holds more than {MAX_MODELS} models; filter by provider or model, or shorten the window",
            )
        return UsageReport(answered, models)

    async def daily_costs(
        self,
        tenant_id: UUID,
        window: Window,
        only: UsageFilter,
        *,
        zone: ZoneInfo,
        after: AfterDailyCost | None,
        page_size: int,
    ) -> Page[DailyCost]:
        """Cost per day of `zone` and provider, newest day first, then highest cost."""
        kept = self._retention.kept_at(self._now())
        days = local_days(answerable(window, kept), zone, kept)
        # Newer days stand on the pages before.
        wanted = [day for day in days if after is None or day.day <= after.day]
        found = await self._rollups.costs_by_day(tenant_id, wanted, only, after=after, limit=page_size + 1)
        return _page(found, page_size)

    async def failures(
        self, tenant_id: UUID, window: Window, only: UsageFilter, *, after: AfterFailure | None, page_size: int
    ) -> Page[Failure]:
        """Kinds of failure, most frequent first."""
        kept = self._retention.kept_at(self._now())
        covering = tiles(answerable(window, kept))
        found = await self._rollups.failures(tenant_id, covering, only, kept=kept, after=after, limit=page_size + 1)
        return _page(found, page_size)

    async def records(
        self,
        tenant_id: UUID,
        window: Window,
        only: UsageFilter,
        *,
        request_id: UUID | None,
        after: AfterRecord | None,
        page_size: int,
    ) -> Page[StoredRecord]:
        """Single rows of exactly `window`, newest first."""
        found = await self._records.newest(
            tenant_id, window, only, request_id=request_id, after=after, limit=page_size + 1
        )
        return _page(found, page_size)


def _page(found: Sequence[Entry], page_size: int) -> Page[Entry]:
    return Page(found[:page_size], has_more=len(found) > page_size)
