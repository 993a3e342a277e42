"""The monitoring queries that the ledger's users have, letter by letter."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import pytest

from tests.support.ledger import ledger_on
from tests.support.usage_events import OTHER_TENANT, TENANT, reported_event, submission
from usage_service.domain.pricing import TokenCounts
from usage_service.domain.usage_event import AttemptStatus
from usage_service.metering.recording import Batch

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

BY_MODEL = """
SELECT provider, model_name, COUNT(*) AS requests, SUM(total_tokens) AS tokens, SUM(estimated_cost_usd) AS cost_usd, AVG(latency_ms) AS avg_latency
FROM model_usage_stats WHERE tenant_id = $1 AND timestamp >= NOW() - INTERVAL '24 hours' GROUP BY provider, model_name ORDER BY requests DESC;
"""  # noqa: E501 - as its users have it

RATE_LIMITED = """
SELECT provider, COUNT(*) AS request_count, COUNT(*) FILTER (WHERE status = 'rate_limit') AS rate_limited
FROM model_usage_stats WHERE tenant_id = $1 AND timestamp >= NOW() - INTERVAL '24 hours' GROUP BY provider;
"""

DAILY_COST = """
SELECT DATE(timestamp) AS date, provider, SUM(estimated_cost_usd) AS daily_cost
FROM model_usage_stats WHERE tenant_id = $1 AND timestamp >= NOW() - INTERVAL '30 days' GROUP BY DATE(timestamp), provider ORDER BY date DESC, daily_cost DESC;
"""  # noqa: E501 - as its users have it

ERRORS = """
SELECT provider, model_name, status, error_message, COUNT(*) AS occurrences
FROM model_usage_stats WHERE tenant_id = $1 AND status != 'success' AND timestamp >= NOW() - INTERVAL '24 hours'
GROUP BY provider, model_name, status, error_message ORDER BY occurrences DESC;
"""

NOW = datetime.now(UTC)
LLAMA = "llama-3.3-70b-versatile"


@pytest.fixture
async def connection(ledger_database: str) -> AsyncIterator[Connection]:
    limited: dict[str, Any] = {
        "status": AttemptStatus.RATE_LIMIT,
        "tokens": TokenCounts(),
        "error_message": "slow down",
    }
    failed: dict[str, Any] = {"status": AttemptStatus.ERROR, "tokens": TokenCounts(), "error_message": "overloaded"}
    sent = [
        reported_event(NOW, latency_ms=100),
        reported_event(NOW - timedelta(hours=1), latency_ms=200),
        reported_event(NOW, latency_ms=300, **limited),
        reported_event(NOW, provider="openrouter", model="deepseek/deepseek-r1", **failed),
        reported_event(NOW, provider="openrouter", model="deepseek/deepseek-r1", **failed),
        reported_event(NOW - timedelta(days=3)),
        reported_event(NOW - timedelta(days=31)),
        reported_event(NOW, tenant_id=OTHER_TENANT),
    ]
    async with ledger_on(ledger_database) as ledger:
        await ledger.recorder.record(Batch("router-1", "", [submission(event) for event in sent]))
        yield ledger.connection


async def answer(connection: Connection, query: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await connection.fetch(query, UUID(TENANT))]


async def test_usage_by_provider_and_model_in_a_day(connection: Connection) -> None:
    groq, openrouter = await answer(connection, BY_MODEL)

    assert groq == ("groq", LLAMA, 3, 3_000, Decimal("0.00197"), Decimal(200))
    assert openrouter == ("openrouter", "deepseek/deepseek-r1", 2, 0, Decimal(0), Decimal(812))


async def test_rate_limited_requests_in_a_day(connection: Connection) -> None:
    assert sorted(await answer(connection, RATE_LIMITED)) == [("groq", 3, 1), ("openrouter", 2, 0)]


async def test_cost_by_day_and_provider(connection: Connection) -> None:
    costs = await answer(connection, DAILY_COST)

    by_provider: dict[str, Decimal] = {}
    for _, provider, cost in costs:
        by_provider[provider] = by_provider.get(provider, 0) + cost
    assert by_provider == {"groq": Decimal("0.002955"), "openrouter": 0}
    assert [date for date, _, _ in costs] == sorted((date for date, _, _ in costs), reverse=True)


async def test_failures_in_a_day(connection: Connection) -> None:
    assert await answer(connection, ERRORS) == [
        ("openrouter", "deepseek/deepseek-r1", "error", "overloaded", 2),
        ("groq", LLAMA, "rate_limit", "slow down", 1),
    ]


async def test_the_queries_read_only_the_partitions_that_they_need(connection: Connection) -> None:
    plan = await connection.fetch(f"EXPLAIN {BY_MODEL.strip().rstrip(';').replace('$1', repr(TENANT))}")

    scanned = "\n".join(row[0] for row in plan)
    assert "Subplans Removed" in scanned
