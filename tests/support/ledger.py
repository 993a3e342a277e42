"""The ledger as the service puts it together, on a test's own database."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import asyncpg

from service_runtime.metrics import Metrics
from service_runtime.postgres import Postgres
from usage_service.api.recording_metrics import PrometheusRecordingMetrics
from usage_service.domain.usage_event import EventRules
from usage_service.metering.group_commit import GroupedLedger
from usage_service.metering.pricing import Pricing
from usage_service.metering.recording import Recorder
from usage_service.storage.bundled_prices import BundledPrices
from usage_service.storage.events import PostgresLedger
from usage_service.storage.partitions import Partitions
from usage_service.storage.prices import PostgresPrices
from usage_service.storage.quarantine import PostgresQuarantine


@dataclass
class LedgerUnderTest:
    """The parts of the write side, and a connection of the owner to look behind them."""

    postgres: Postgres
    owner: Postgres
    partitions: Partitions
    store: PostgresLedger
    pricing: Pricing
    recorder: Recorder
    metrics: Metrics
    retries: list[float]  # one entry for every time that a transaction was tried again
    connection: asyncpg.Connection[asyncpg.Record] = field(repr=False)


@asynccontextmanager
async def ledger_on(
    dsn: str, *, rules: EventRules | None = None, now: Callable[[], datetime] | None = None
) -> AsyncIterator[LedgerUnderTest]:
    """Put the write side together; `now` is the service's clock."""
    clock = now or (lambda: datetime.now(UTC))
    owner = await Postgres.connect(dsn, min_size=0, max_size=2)
    postgres = await Postgres.connect(dsn, min_size=1, max_size=8, role="turnpike_usage")
    connection = await asyncpg.connect(dsn)
    partitions = Partitions(owner)
    retries: list[float] = []

    def jitter() -> float:
        retries.append(0.5)
        return 0.5

    store = PostgresLedger(postgres, partitions=partitions, jitter=jitter)
    pricing = Pricing(store=PostgresPrices(postgres), vendors=BundledPrices(), now=clock)
    await pricing.refresh()
    metrics = Metrics()
    recorder = Recorder(
        ledger=GroupedLedger(store),
        quarantine=PostgresQuarantine(postgres),
        pricing=pricing,
        rules=rules or EventRules(),
        metrics=PrometheusRecordingMetrics(metrics),
        now=clock,
        monotonic_s=time.monotonic,
    )
    try:
        yield LedgerUnderTest(postgres, owner, partitions, store, pricing, recorder, metrics, retries, connection)
    finally:
        await connection.close()
        await postgres.close()
        await owner.close()
