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

from service_runtime.errors import Category, InvalidRequest, ServiceError
from usage_service.domain.report import (
    DailyCost,
    Failure,
    Grouping,
    ModelUsage,
    StoredRecord,
    UsageFilter,
    UsagePoint,
    UsageReport,
    UsageSeries,
    total_of,
)
from usage_service.domain.steps import Step, StepTooFine, TooManySteps, default_step, steps
from usage_service.domain.window import RollupRetention, Window, answerable, local_days, tiles
from usage_service.metering.report_ports import (
    AfterDailyCost,
    AfterFailure,
    AfterGroup,
    AfterRecord,
    AfterStep,
    Records,
    Rollups,
)

# The report of usage has no pages. Models are named by callers, so their number needs a bound.
MAX_MODELS = 5_000
# One page of a time series; a point is about 300 bytes on the wire, and an answer may have 8 MiB.
MAX_POINTS = 10_000

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

    async def usage(
        self,
        tenant_id: UUID,
        window: Window,
        only: UsageFilter,
        *,
        grouping: Grouping = Grouping.MODEL,
        after: AfterGroup | None = None,
        page_size: int | None = None,
    ) -> UsageReport:
        """Usage by group, over the smallest window around `window` that the kept rollups can answer.

        Without a `page_size` it is all of them, or all that follow `after` up to `MAX_MODELS`: raises ServiceError
        FAILED_PRECONDITION REPORT_TOO_LARGE when all are more than that.
        """
        answered = answerable(window, self._retention.kept_at(self._now()))
        if page_size is None and after is None:
            models = await self._rollups.usage_by_group(
                tenant_id, tiles(answered), only, grouping=grouping, limit=MAX_MODELS + 1
            )
            if len(models) > MAX_MODELS:
                raise _too_large(
                    f"the window holds more than {MAX_MODELS} models; set page_size, filter by provider or model, or "
                    "shorten the window"
                )
            return UsageReport(answered, models, total_of(models))
        size = page_size or MAX_MODELS
        found = await self._rollups.page_of_usage_by_group(
            tenant_id, tiles(answered), only, grouping=grouping, after=after, limit=size + 1
        )
        page = _page(found.groups, size)
        return UsageReport(answered, page.entries, found.total, page.has_more)

    async def series(
        self,
        tenant_id: UUID,
        window: Window,
        only: UsageFilter,
        *,
        step: Step | None,
        zone: ZoneInfo,
        grouping: Grouping,
        after: AfterStep | None,
        page_size: int,
    ) -> UsageSeries:
        """Usage step by step, oldest first; `step` None leaves its length to the window's.

        Raises InvalidRequest for more steps than there may be, ServiceError FAILED_PRECONDITION STEP_TOO_FINE where
        only coarser rollups are kept and REPORT_TOO_LARGE above `MAX_POINTS` points.
        """
        kept = self._retention.kept_at(self._now())
        answered = answerable(window, kept)
        resolved = after.step if after else step or default_step(answered, kept)
        try:
            cut = steps(answered, resolved, zone, kept)
        except TooManySteps as error:
            raise InvalidRequest.at("step", str(error)) from error
        except StepTooFine as error:
            raise ServiceError(
                Category.FAILED_PRECONDITION,
                "STEP_TOO_FINE",
                f"steps of {resolved.count} {resolved.unit.name.lower()} can be told since {error.since.isoformat()}; "
                "take longer steps or a later start_time",
            ) from error
        wanted = [one for one in cut if after is None or one.start >= after.resume_at]
        shown, rest = wanted[:page_size], wanted[page_size:]
        points: Sequence[UsagePoint] = []
        if shown:
            points = await self._rollups.usage_by_step(tenant_id, shown, only, grouping=grouping, limit=MAX_POINTS + 1)
        if len(points) > MAX_POINTS:
            raise _too_large(f"the page holds more than {MAX_POINTS} points; lower page_size, filter, or group by less")
        if grouping is Grouping.NONE:
            by_step = {point.window: point for point in points}
            points = [by_step.get(one, UsagePoint(one, ModelUsage())) for one in shown]
        return UsageSeries(answered, resolved, points, rest[0].start if rest else None)

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


def _too_large(message: str) -> ServiceError:
    return ServiceError(Category.FAILED_PRECONDITION, "REPORT_TOO_LARGE", message)
