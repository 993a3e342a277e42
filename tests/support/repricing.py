"""Reprice as the service puts it together, on a test's own database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from tests.support.ledger import LedgerUnderTest
from usage_service.domain.repricing import RepriceSummary
from usage_service.domain.window import Window
from usage_service.metering.repricing import RepriceJob, RepriceScope, Repricing
from usage_service.storage.corrections import PostgresBookedRows

JOB = UUID("44444444-4444-4444-8444-444444444444")
EVERYTHING = RepriceScope(Window(datetime(2020, 1, 1, tzinfo=UTC), datetime.now(UTC) + timedelta(days=1)))


async def reprice(
    ledger: LedgerUnderTest,
    scope: RepriceScope = EVERYTHING,
    *,
    apply: bool = True,
    max_rows: int = 1_000,
    rows_per_transaction: int = 500,
    job_id: UUID = JOB,
) -> RepriceSummary:
    """A whole run, call by call."""
    repricing = Repricing(
        rows=PostgresBookedRows(ledger.postgres, jitter=lambda: 0.5),
        pricing=ledger.pricing,
        monotonic_s=lambda: 0.0,
        rows_per_transaction=rows_per_transaction,
    )
    summary, rest = RepriceSummary(), None
    while True:
        progress = await repricing.run(RepriceJob(scope, job_id, "test", apply), rest, max_rows=max_rows)
        summary += progress.summary
        rest = progress.rest
        if rest is None:
            return summary
