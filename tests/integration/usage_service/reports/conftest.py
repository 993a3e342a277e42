"""The report methods on a real ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from service_runtime.postgres import Postgres
from tests.integration.usage_service.reports.clock import Clock
from usage_service.api.reports import ReportHandlers
from usage_service.domain.window import RollupRetention
from usage_service.metering.reporting import Reporting
from usage_service.storage.records import PostgresRecords
from usage_service.storage.rollups import PostgresRollups


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def postgres(ledger_database: str) -> AsyncIterator[Postgres]:
    pool = await Postgres.connect(ledger_database, min_size=1, max_size=2)
    yield pool
    await pool.close()


@pytest.fixture
def reports(postgres: Postgres, clock: Clock) -> ReportHandlers:
    return ReportHandlers(
        Reporting(
            rollups=PostgresRollups(postgres),
            records=PostgresRecords(postgres),
            retention=RollupRetention(),
            now=clock,
        )
    )
