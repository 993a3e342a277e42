"""Prices stored usage anew: tenant by tenant, day by day, a bounded number of rows per transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

import structlog

from usage_service.domain.pricing import PriceBook
from usage_service.domain.repricing import (
    Adjustment,
    BookedUsage,
    Correction,
    RepriceSummary,
    corrections_of,
)
from usage_service.domain.window import Grain, Window
from usage_service.metering.pricing import ModelUse, Pricing

# Rows whose locks are held together; it bounds how long an event of the same rollup rows waits.
ROWS_PER_TRANSACTION = 500
_LONGEST_CALL_S = 10.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RepriceScope:
    """Which rows: those of a window, and of a tenant, a catalogue provider, a model where these are given."""

    window: Window
    tenant_id: UUID | None = None
    provider: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class RepriceJob:
    """One run. Without `apply` nothing is changed. Id and reason stand in every adjustment."""

    scope: RepriceScope
    job_id: UUID
    reason: str = ""
    apply: bool = False


@dataclass(frozen=True, slots=True)
class RowPosition:
    """A place between rows: those up to and including this one are done."""

    tenant_id: UUID
    used_at: datetime
    event_id: UUID

    @classmethod
    def start_of(cls, scope: RepriceScope) -> RowPosition:
        """Before all rows of a scope."""
        return cls(scope.tenant_id or UUID(int=0), scope.window.start, UUID(int=0))


@dataclass(frozen=True, slots=True)
class RepriceProgress:
    """What one call did, and where the next begins; `rest` is None when the run is through."""

    summary: RepriceSummary
    rest: RowPosition | None


@dataclass(frozen=True, slots=True)
class AfterAdjustment:
    """The last entry of a page of adjustments."""

    used_at: datetime
    event_id: UUID
    revision: int


Decide = Callable[[Sequence[BookedUsage]], Sequence[Correction]]


class BookedRows(Protocol):
    """The ledger's rows, to be read and corrected. All methods raise `ServiceError` UNAVAILABLE."""

    async def next_day(self, scope: RepriceScope, after: RowPosition) -> tuple[UUID, datetime] | None:
        """The first tenant and UTC day, not before the position, that has usage of the scope; None when none has."""
        ...

    async def read(self, scope: RepriceScope, day: Window, after: RowPosition, *, limit: int) -> Sequence[BookedUsage]:
        """At most `limit` rows of the position's tenant in `day` after the position, in order of time and id."""
        ...

    async def correct(
        self, job: RepriceJob, day: Window, after: RowPosition, *, limit: int, decide: Decide
    ) -> tuple[Sequence[BookedUsage], Sequence[Correction]]:
        """The same rows, locked, and corrected as `decide` says, together with the rollups, in one transaction.

        What `decide` raises passes through, and nothing is changed. Raises `ServiceError` FAILED_PRECONDITION
        LEDGER_UNBALANCED when a row is in no day rollup, RESOURCE_EXHAUSTED LEDGER_BUSY when others are in the way.
        """
        ...

    async def adjustments(
        self, tenant_id: UUID, window: Window, *, job_id: UUID | None, after: AfterAdjustment | None, limit: int
    ) -> Sequence[Adjustment]:
        """At most `limit` adjustments of usage in a window after `after`: newest usage, then latest revision first."""
        ...


class _PricesNeeded(Exception):
    """Rows use models that the book at hand does not name; look those up, then read the rows again."""

    def __init__(self, uses: Sequence[ModelUse]) -> None:
        super().__init__(f"{len(uses)} models without a price at hand")
        self.uses = uses


class Repricing:
    """Corrects what was booked with a price that has changed since. Any number of runs, and ingest, go on beside it."""

    def __init__(
        self,
        *,
        rows: BookedRows,
        pricing: Pricing,
        monotonic_s: Callable[[], float],
        rows_per_transaction: int = ROWS_PER_TRANSACTION,
    ) -> None:
        self._rows = rows
        self._pricing = pricing
        self._monotonic_s = monotonic_s
        self._rows_per_transaction = rows_per_transaction

    async def run(self, job: RepriceJob, after: RowPosition | None, *, max_rows: int) -> RepriceProgress:
        """Go through at most `max_rows` rows after a position, or as many as ten seconds allow.

        Each transaction stands for itself: what a call that fails has changed stays changed and is right.
        """
        ends_at_s = self._monotonic_s() + _LONGEST_CALL_S
        await self._pricing.refresh()
        run = _Run(self._rows, self._pricing, job)
        summary = RepriceSummary()
        position = after or RowPosition.start_of(job.scope)
        day: Window | None = None
        while summary.scanned_rows < max_rows and self._monotonic_s() < ends_at_s:
            if day is None:
                found = await self._rows.next_day(job.scope, position)
                if found is None:
                    return _told(job, RepriceProgress(summary, None))
                position, day = _at(found, position, job.scope)
            limit = min(self._rows_per_transaction, max_rows - summary.scanned_rows)
            rows, corrections = await run.chunk(day, position, limit)
            summary += RepriceSummary.of(rows, corrections)
            if len(rows) == limit:
                position = RowPosition(position.tenant_id, rows[-1].used_at, rows[-1].event_id)
            else:
                next_day = Grain.DAY.floor(day.start) + Grain.DAY.value
                position, day = RowPosition(position.tenant_id, next_day, UUID(int=0)), None
        return _told(job, RepriceProgress(summary, position))

    async def adjustments(
        self, tenant_id: UUID, window: Window, *, job_id: UUID | None, after: AfterAdjustment | None, limit: int
    ) -> Sequence[Adjustment]:
        """What was corrected of a tenant's usage in a window, newest usage first."""
        return await self._rows.adjustments(tenant_id, window, job_id=job_id, after=after, limit=limit)


class _Run:
    """One call's price book, and the models that were looked up for it."""

    def __init__(self, rows: BookedRows, pricing: Pricing, job: RepriceJob) -> None:
        self._rows = rows
        self._pricing = pricing
        self._job = job
        self._book: PriceBook = pricing.book
        self._looked_up: set[tuple[str, str]] = set()

    async def chunk(
        self, day: Window, after: RowPosition, limit: int
    ) -> tuple[Sequence[BookedUsage], Sequence[Correction]]:
        """The next rows of a day, and how they were, or would be, corrected."""
        while True:
            try:
                if self._job.apply:
                    return await self._rows.correct(self._job, day, after, limit=limit, decide=self._decide)
                rows = await self._rows.read(self._job.scope, day, after, limit=limit)
                return rows, self._decide(rows)
            except _PricesNeeded as needed:
                # Not while rows are locked: looking up may take a while, and writes to the price book.
                await self._look_up(needed.uses)

    def _decide(self, rows: Sequence[BookedUsage]) -> Sequence[Correction]:
        needed = [
            ModelUse(row.provider, row.model, row.used_at)
            for row in rows
            if row.tokens.total_tokens
            and (row.provider, row.model) not in self._looked_up
            and self._book.find(row.provider, row.model, row.used_at) is None
        ]
        if needed:
            raise _PricesNeeded(needed)
        return corrections_of(rows, self._book)

    async def _look_up(self, uses: Iterable[ModelUse]) -> None:
        # The rows may be priced by an entry that another process has made since the book was read.
        await self._pricing.refresh()
        if self._job.apply:
            self._book = await self._pricing.book_for(uses)
        else:
            self._book = await self._pricing.preview(uses, self._pricing.book)
        self._looked_up.update((use.provider, use.model) for use in uses)


def _at(found: tuple[UUID, datetime], position: RowPosition, scope: RepriceScope) -> tuple[RowPosition, Window]:
    """Where to go on, and the part of the found day that is in the scope."""
    tenant_id, start = found
    day = Window(max(start, scope.window.start), min(start + Grain.DAY.value, scope.window.end))
    if tenant_id != position.tenant_id or position.used_at < day.start:
        position = RowPosition(tenant_id, day.start, UUID(int=0))
    return position, day


def _told(job: RepriceJob, progress: RepriceProgress) -> RepriceProgress:
    if job.apply and progress.summary.changed_rows:
        _log.info(
            "ledger.repriced",
            job_id=str(job.job_id),
            scanned_rows=progress.summary.scanned_rows,
            changed_rows=progress.summary.changed_rows,
            delta_usd=f"{progress.summary.delta_usd:f}",
        )
    return progress
