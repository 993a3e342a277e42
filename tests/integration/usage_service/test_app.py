"""The whole service in one process, on a database that did not exist before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.ledger import ledger_on
from tests.support.usage_app import TENANT, an_event, running_app
from turnpike.usage.v1 import (
    pricing_service_pb2,
    pricing_service_pb2_grpc,
    quota_service_pb2,
    quota_service_pb2_grpc,
    usage_service_pb2,
    usage_service_pb2_grpc,
)
from usage_service.domain.window import RollupRetention
from usage_service.storage.maintenance import Maintenance


@pytest.fixture
async def channel(empty_database: str, tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    async with running_app(empty_database, tmp_path) as channel:
        yield channel


async def test_what_is_recorded_is_seen_by_every_service(channel: grpc.aio.Channel) -> None:
    usage = usage_service_pb2_grpc.UsageServiceStub(channel)
    event = an_event()

    recorded = await usage.RecordUsage(usage_service_pb2.RecordUsageRequest(router_id="router-1", events=[event]))
    stats = await usage.GetTenantUsageStats(usage_service_pb2.GetTenantUsageStatsRequest(tenant_id=TENANT))
    costs = await usage.ListDailyCosts(usage_service_pb2.ListDailyCostsRequest(tenant_id=TENANT))
    failures = await usage.ListErrors(usage_service_pb2.ListErrorsRequest(tenant_id=TENANT))
    records = await usage.ListUsageRecords(usage_service_pb2.ListUsageRecordsRequest(tenant_id=TENANT))
    quota = await quota_service_pb2_grpc.QuotaServiceStub(channel).CheckRateLimitStatus(
        quota_service_pb2.CheckRateLimitStatusRequest(tenant_id=TENANT, provider="groq")
    )

    assert recorded.results[0].disposition == usage_service_pb2.RECORD_DISPOSITION_ACCEPTED
    assert (stats.total.requests, stats.total.cost.cost_usd) == (1, "0.000985000000")
    assert costs.costs[0].cost.exact_usd == "0.000985000000"
    assert len(failures.errors) == 0
    assert records.records[0].event == event
    assert {status.used for status in quota.statuses} >= {"1", "1500"}


async def test_reports_are_answered_while_ingest_uses_every_connection_that_it_has(
    empty_database: str, tmp_path: Path
) -> None:
    async with running_app(empty_database, tmp_path, {"database_pool_max": 1}) as channel:
        usage = usage_service_pb2_grpc.UsageServiceStub(channel)
        connection = await asyncpg.connect(empty_database)
        async with connection.transaction():
            await connection.execute("LOCK TABLE usage_rollup_day IN SHARE MODE")  # who reads may, who writes waits
            recording = asyncio.ensure_future(
                usage.RecordUsage(usage_service_pb2.RecordUsageRequest(router_id="router-1", events=[an_event()]))
            )
            while not await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.01)

            stats = await usage.GetTenantUsageStats(usage_service_pb2.GetTenantUsageStatsRequest(tenant_id=TENANT))

            assert not recording.done()
        await connection.close()

        assert stats.total.requests == 0
        assert (await recording).results[0].disposition == usage_service_pb2.RECORD_DISPOSITION_ACCEPTED


async def test_prices_are_served(channel: grpc.aio.Channel) -> None:
    pricing = pricing_service_pb2_grpc.PricingServiceStub(channel)

    cost = await pricing.CalculateCost(
        pricing_service_pb2.CalculateCostRequest(
            provider="LLM7", model="gpt-4o", input_tokens=1_000_000, output_tokens=1_000_000
        )
    )
    book = await pricing.ListPrices(pricing_service_pb2.ListPricesRequest())

    assert cost.cost_usd == "20.000000"
    assert len(book.prices) == 11
    assert {price.source for price in book.prices} == {"seed"}


async def test_a_price_that_was_wrong_is_set_right_in_every_report(channel: grpc.aio.Channel) -> None:
    usage = usage_service_pb2_grpc.UsageServiceStub(channel)
    pricing = pricing_service_pb2_grpc.PricingServiceStub(channel)
    event = an_event()
    event.provider_reported_cost_usd = "0.000900000000"
    await usage.RecordUsage(usage_service_pb2.RecordUsageRequest(router_id="router-1", events=[event]))
    start = Timestamp(seconds=int((datetime.now(UTC) - timedelta(days=1)).timestamp()))

    changed = await pricing.SetPrice(
        pricing_service_pb2.SetPriceRequest(
            provider="groq",
            model=event.model,
            input_usd_per_million="1",
            output_usd_per_million="1",
            effective_time=start,
        )
    )
    run = pricing_service_pb2.RepriceRequest(start_time=start, tenant_id=TENANT)
    dry = await pricing.Reprice(run)
    untouched = await usage.GetTenantUsageStats(usage_service_pb2.GetTenantUsageStatsRequest(tenant_id=TENANT))
    run.apply, run.reason = True, "contract"
    applied = await pricing.Reprice(run)

    stats = await usage.GetTenantUsageStats(usage_service_pb2.GetTenantUsageStatsRequest(tenant_id=TENANT))
    records = await usage.ListUsageRecords(usage_service_pb2.ListUsageRecordsRequest(tenant_id=TENANT))
    adjustments = await pricing.ListCostAdjustments(
        pricing_service_pb2.ListCostAdjustmentsRequest(tenant_id=TENANT, job_id=applied.job_id)
    )
    assert (changed.created, changed.reprice_needed) == (True, True)
    assert (dry.changed_rows, applied.changed_rows) == (1, 1)
    assert untouched.total.cost.cost_usd == "0.000985000000"
    assert stats.total.cost.cost_usd == records.records[0].cost_usd == "0.001500000000"
    assert records.records[0].price_id == changed.price.price_id
    assert records.records[0].event.provider_reported_cost_usd == "0.000900000000"
    assert [one.delta_usd for one in adjustments.adjustments] == ["0.000515000000"]


async def test_a_malformed_batch_is_refused_with_its_fields(channel: grpc.aio.Channel) -> None:
    usage = usage_service_pb2_grpc.UsageServiceStub(channel)

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await usage.RecordUsage(usage_service_pb2.RecordUsageRequest(router_id="router-1"))

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "1 to 1000 events" in (refused.value.details() or "")


async def test_each_service_says_that_it_serves(channel: grpc.aio.Channel) -> None:
    health: Any = health_pb2_grpc.HealthStub(channel)

    for service in ("", "UsageService", "QuotaService", "PricingService"):
        name = f"turnpike.usage.v1.{service}" if service else ""
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_maintenance_makes_partitions_ahead_and_drops_what_retention_says(ledger_database: str) -> None:
    now = datetime(2026, 11, 20, 12, tzinfo=UTC)
    clock = [now]
    async with ledger_on(ledger_database) as ledger:
        maintenance = Maintenance(
            ledger.owner,
            ledger.partitions,
            accept_back=timedelta(days=35),
            raw_retention=timedelta(days=42),
            rollup_retention=RollupRetention(),
            now=lambda: clock[0],
        )

        for weeks in range(6):
            clock[0] = now + timedelta(weeks=weeks)
            await maintenance.run()

        assert await partition_names(ledger.connection) == [
            f"model_usage_stats_{datetime(2026, 11, 9, tzinfo=UTC) + timedelta(weeks=number):%Y%m%d}"
            for number in range(9)
        ]


async def partition_names(connection: asyncpg.Connection[asyncpg.Record]) -> list[str]:
    names = await connection.fetch(
        "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'model_usage_stats'::regclass"
    )
    return sorted(row["name"] for row in names)
