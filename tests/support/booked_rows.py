"""Rows that Reprice reads and corrects, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from uuid import UUID

from tests.support.usage_events import TENANT, event_id_at
from usage_service.domain.pricing import PricedUsage, PricingState, TokenCounts
from usage_service.domain.repricing import Adjustment, BookedUsage, Correction
from usage_service.domain.window import Grain, Window
from usage_service.metering.repricing import AfterAdjustment, Decide, RepriceJob, RepriceScope, RowPosition

UNPRICED = PricedUsage(PricingState.UNPRICED, None, None)


def booked_usage(
    used_at: datetime,
    *,
    tenant_id: str = TENANT,
    provider: str = "groq",
    model: str = "llama",
    tokens: TokenCounts | None = None,
    priced: PricedUsage = UNPRICED,
) -> BookedUsage:
    """An attempt of a thousand prompt tokens, without a price unless one is given."""
    return BookedUsage(
        tenant_id=UUID(tenant_id),
        event_id=event_id_at(used_at),
        used_at=used_at,
        provider=provider,
        model=model,
        status="success",
        error_class="",
        funding="tenant_key",
        absorbed=False,
        usage_source="provider",
        tokens=TokenCounts(input_tokens=1_000) if tokens is None else tokens,
        priced=priced,
    )


@dataclass
class RowsInMemory:
    """Implements `BookedRows`; `transactions` are the sizes of those that were opened to correct rows."""

    rows: list[BookedUsage] = field(default_factory=list)
    appended: list[tuple[RepriceJob, Correction]] = field(default_factory=list)
    transactions: list[int] = field(default_factory=list)

    async def next_day(self, scope: RepriceScope, after: RowPosition) -> tuple[UUID, datetime] | None:
        days = sorted(
            {
                (row.tenant_id, Grain.DAY.floor(row.used_at))
                for row in self.rows
                if _matches(row, scope) and scope.tenant_id in (None, row.tenant_id)
            }
        )
        first = (after.tenant_id, Grain.DAY.floor(after.used_at))
        return next((day for day in days if day >= first), None)

    async def read(self, scope: RepriceScope, day: Window, after: RowPosition, *, limit: int) -> list[BookedUsage]:
        found = [
            row
            for row in self.rows
            if row.tenant_id == after.tenant_id
            and day.start <= row.used_at < day.end
            and (row.used_at, row.event_id) > (after.used_at, after.event_id)
            and _matches(row, scope)
        ]
        return sorted(found, key=lambda row: (row.used_at, row.event_id))[:limit]

    async def correct(
        self, job: RepriceJob, day: Window, after: RowPosition, *, limit: int, decide: Decide
    ) -> tuple[Sequence[BookedUsage], Sequence[Correction]]:
        rows = await self.read(job.scope, day, after, limit=limit)
        corrections = decide(rows)
        self.transactions.append(len(rows))
        for one in corrections:
            self.rows[self.rows.index(one.usage)] = replace(one.usage, priced=one.corrected)
            self.appended.append((job, one))
        return rows, corrections

    async def adjustments(
        self, tenant_id: UUID, window: Window, *, job_id: UUID | None, after: AfterAdjustment | None, limit: int
    ) -> list[Adjustment]:
        found = [
            Adjustment(
                event_id=one.usage.event_id,
                used_at=one.usage.used_at,
                revision=1,
                provider=one.usage.provider,
                model=one.usage.model,
                old_cost_usd=one.usage.priced.cost_usd,
                old_price_id=one.usage.priced.price_id,
                new_cost_usd=one.corrected.cost_usd,
                new_price_id=one.corrected.price_id,
                delta_usd=one.delta_usd,
                reason=job.reason,
                job_id=job.job_id,
                created_at=datetime(2026, 11, 20, tzinfo=UTC),
            )
            for job, one in self.appended
            if one.usage.tenant_id == tenant_id
            and window.start <= one.usage.used_at < window.end
            and job_id in (None, job.job_id)
        ]
        place = None if after is None else (after.used_at, after.event_id)
        newest = sorted(found, key=lambda one: (one.used_at, one.event_id), reverse=True)
        return [one for one in newest if place is None or (one.used_at, one.event_id) < place][:limit]


def _matches(row: BookedUsage, scope: RepriceScope) -> bool:
    return scope.provider in ("", row.provider) and scope.model in ("", row.model)
