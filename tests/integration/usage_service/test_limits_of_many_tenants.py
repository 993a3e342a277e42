"""The positions of many tenants at once, on a real Postgres: each as if it were alone, at the price of one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

import pytest

from service_runtime.errors import InvalidRequest
from service_runtime.postgres import Postgres
from tests.support.ledger_rows import ledger_row, store
from turnpike.usage.v1 import quota_service_pb2 as pb
from usage_service.api.quota_servicer import QuotaServicer
from usage_service.domain.provider_names import CATALOGUE_PROVIDERS
from usage_service.domain.rate_limit import MONTH_S, LevelThresholds, LimitMetric, LimitRule
from usage_service.domain.window import RollupRetention
from usage_service.metering.limit_setting import LimitSetting
from usage_service.metering.limiting import Limiting
from usage_service.storage.limits import PostgresLimits
from usage_service.storage.rollups import PostgresRollups

NOW = datetime(2026, 3, 18, 10, 41, 7, 500_000, tzinfo=UTC)
CONTEXT = cast("Any", None)  # the methods do not look at it
TENANTS = [UUID(int=number) for number in range(1, 101)]


class Listening(Postgres):
    """A pool that notes down every statement."""

    def __init__(self, pool: Postgres) -> None:
        self._asked = pool
        self.statements: list[str] = []

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Any]:
        async with self._asked.acquire() as connection:
            with connection.query_logger(lambda record: self.statements.append(record.query)):
                yield connection


@pytest.fixture
async def postgres(ledger_database: str) -> AsyncIterator[Listening]:
    pool = await Postgres.connect(ledger_database, min_size=0, max_size=4, role="turnpike_usage")
    yield Listening(pool)
    await pool.close()


@pytest.fixture
async def owner(ledger_database: str) -> AsyncIterator[Postgres]:
    pool = await Postgres.connect(ledger_database, min_size=0, max_size=1)
    yield pool
    await pool.close()


@pytest.fixture
def quota(postgres: Listening) -> QuotaServicer:
    limits = PostgresLimits(postgres)
    limiting = Limiting(
        rollups=PostgresRollups(postgres),
        limits=limits,
        defaults=[LimitRule.parse("groq", text) for text in ("5 requests per 1m", "9_000 tokens per 1h")],
        thresholds=LevelThresholds(),
        retention=RollupRetention(),
        now=lambda: NOW,
    )
    return QuotaServicer(limiting, LimitSetting(limits), providers=CATALOGUE_PROVIDERS)


async def ask(quota: QuotaServicer, tenants: Sequence[UUID]) -> pb.BatchCheckRateLimitStatusResponse:
    request = pb.BatchCheckRateLimitStatusRequest(tenant_ids=map(str, tenants))
    return await quota.BatchCheckRateLimitStatus(request, CONTEXT)


async def with_usage_and_limits(owner: Postgres) -> None:
    """A hundred tenants of various usage; one in three has limits of its own, over all kinds of windows."""
    second = timedelta(seconds=1)
    ago = (0 * second, 3 * second, 50 * second, timedelta(minutes=20), timedelta(hours=9), timedelta(days=12))
    rows = [
        ledger_row(NOW - back, tenant_id=str(tenant_id), model=f"m{number % 2}", cost_usd=Decimal(number))
        for number, tenant_id in enumerate(TENANTS)
        for back in ago[: number % (len(ago) + 1)]
    ]
    await store(owner, rows)
    limits = PostgresLimits(owner)
    for number, tenant_id in enumerate(TENANTS):
        if number % 3 == 0:
            for metric, window_s in (
                (LimitMetric.REQUESTS, 10),
                (LimitMetric.TOKENS, 3600),
                (LimitMetric.COST, MONTH_S),
            ):
                rule = LimitRule(
                    "groq", metric, window_s, Decimal(5 + number), ("", "m1")[number % 2], is_override=True
                )
                await limits.set(tenant_id, rule, most=100)


async def test_each_of_many_tenants_is_answered_as_if_it_were_alone(quota: QuotaServicer, owner: Postgres) -> None:
    await with_usage_and_limits(owner)

    together = await ask(quota, TENANTS[::-1])
    alone = [
        await quota.CheckRateLimitStatus(pb.CheckRateLimitStatusRequest(tenant_id=str(tenant_id)), CONTEXT)
        for tenant_id in TENANTS[::-1]
    ]

    assert [result.tenant_id for result in together.results] == [str(tenant_id) for tenant_id in TENANTS[::-1]]
    assert [result.status for result in together.results] == alone
    assert len({result.status.SerializeToString() for result in together.results}) > 30
    assert len({result.status.level for result in together.results}) >= 3


async def test_a_hundred_tenants_cost_no_more_statements_than_one(
    quota: QuotaServicer, owner: Postgres, postgres: Listening
) -> None:
    await with_usage_and_limits(owner)

    async def statements_for(*tenants: UUID) -> int:
        postgres.statements.clear()
        await ask(quota, tenants)
        return len(postgres.statements)

    await statements_for(*TENANTS)  # tells levels, and has the connection learn about types

    assert await statements_for(*TENANTS) == await statements_for(TENANTS[0])
    assert len(postgres.statements) == 4, "own limits, what rollups and what rows say, and the levels told"


async def test_a_limit_that_cannot_be_used_is_its_tenants_own_trouble(quota: QuotaServicer, owner: Postgres) -> None:
    async with owner.acquire() as connection:  # as an operator would
        await connection.execute(
            "INSERT INTO usage_limits (tenant_id, provider, model_name, metric, window_s, limit_value) "
            "VALUES ($1, 'groq', '', 'requests', 61, 5)",
            TENANTS[1],
        )

    answer = await ask(quota, TENANTS[:3])

    assert [result.HasField("status") for result in answer.results] == [True, False, True]
    assert "requests per 61 s" in answer.results[1].error.message


async def test_levels_that_many_tenants_were_told_are_remembered_for_each(
    quota: QuotaServicer, owner: Postgres
) -> None:
    await store(owner, [ledger_row(NOW, tenant_id=str(tenant_id)) for tenant_id in TENANTS[:20] for _ in range(5)])
    before = await ask(quota, TENANTS[:20])
    limits = PostgresLimits(owner)
    for tenant_id in TENANTS[:10]:  # raised, so that usage is below where the level began, for half of them far below
        amount = Decimal(100) if tenant_id.int % 2 else Decimal("5.3")
        await limits.set(tenant_id, LimitRule("groq", LimitMetric.REQUESTS, 60, amount), most=100)

    after = await ask(quota, TENANTS[:20])

    assert {result.status.level for result in before.results} == {pb.LIMIT_LEVEL_CRITICAL}
    levels = [result.status.level for result in after.results]
    assert levels[:10] == [pb.LIMIT_LEVEL_HEALTHY, pb.LIMIT_LEVEL_CRITICAL] * 5
    assert set(levels[10:]) == {pb.LIMIT_LEVEL_CRITICAL}


@pytest.mark.parametrize(
    ("tenant_ids", "field"),
    [([], "tenant_ids"), ([str(UUID(int=1))] * 101, "tenant_ids"), ([str(UUID(int=1)), "x"], "tenant_ids[1]")],
)
async def test_a_question_about_none_about_too_many_or_about_no_tenant_is_refused_by_name(
    quota: QuotaServicer, tenant_ids: list[str], field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await quota.BatchCheckRateLimitStatus(pb.BatchCheckRateLimitStatusRequest(tenant_ids=tenant_ids), CONTEXT)

    assert [one.field for one in caught.value.violations] == [field]
