"""The tenants' own limits and the levels that were told, on a real Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

import pytest
from google.protobuf.duration_pb2 import Duration

from service_runtime.errors import Category, InvalidRequest, ServiceError
from service_runtime.postgres import Postgres
from tests.support.ledger_rows import ledger_row, store
from tests.support.usage_events import OTHER_TENANT, TENANT
from turnpike.usage.v1 import quota_service_pb2 as pb
from usage_service.api.quota_servicer import QuotaServicer
from usage_service.domain.provider_names import CATALOGUE_PROVIDERS
from usage_service.domain.rate_limit import (
    MONTH_S,
    LevelThresholds,
    LimitKey,
    LimitLevel,
    LimitMetric,
    LimitRule,
    ToldLevel,
)
from usage_service.domain.window import RollupRetention
from usage_service.metering.limit_setting import LimitSetting
from usage_service.metering.limiting import Limiting
from usage_service.metering.report_ports import LevelChange
from usage_service.storage.limits import PostgresLimits, forget_levels
from usage_service.storage.rollups import PostgresRollups

NOW = datetime(2026, 3, 18, 10, 41, 7, 500_000, tzinfo=UTC)
CONTEXT = cast("Any", None)  # the methods do not look at it
REQUESTS, COST = pb.LIMIT_METRIC_REQUESTS, pb.LIMIT_METRIC_COST


@pytest.fixture
async def postgres(ledger_database: str) -> AsyncIterator[Postgres]:
    pool = await Postgres.connect(ledger_database, min_size=0, max_size=8, role="turnpike_usage")
    yield pool
    await pool.close()


@pytest.fixture
async def owner(ledger_database: str) -> AsyncIterator[Postgres]:
    pool = await Postgres.connect(ledger_database, min_size=0, max_size=1)
    yield pool
    await pool.close()


@pytest.fixture
def quota(postgres: Postgres) -> QuotaServicer:
    return replica(postgres)


def replica(postgres: Postgres) -> QuotaServicer:
    limits = PostgresLimits(postgres)
    return QuotaServicer(
        Limiting(
            rollups=PostgresRollups(postgres),
            limits=limits,
            defaults=(),
            thresholds=LevelThresholds(),
            retention=RollupRetention(),
            now=lambda: NOW,
        ),
        LimitSetting(limits),
        providers=CATALOGUE_PROVIDERS,
    )


def limit(amount: str = "100", *, window_s: int = 60, **fields: Any) -> pb.SetLimitRequest:
    plain = {"tenant_id": TENANT, "provider": "groq", "metric": REQUESTS, "window": Duration(seconds=window_s)}
    return pb.SetLimitRequest(**{**plain, "limit": amount, **fields})


def named(request: pb.SetLimitRequest) -> pb.DeleteLimitRequest:
    return pb.DeleteLimitRequest(
        tenant_id=request.tenant_id,
        provider=request.provider,
        model=request.model,
        metric=request.metric,
        window=request.window,
    )


async def status(servicer: QuotaServicer) -> pb.CheckRateLimitStatusResponse:
    return await servicer.CheckRateLimitStatus(pb.CheckRateLimitStatusRequest(tenant_id=TENANT), CONTEXT)


async def test_a_limit_is_set_changed_told_and_removed(quota: QuotaServicer) -> None:
    first = await quota.SetLimit(limit("2.50", metric=COST, window_s=MONTH_S, provider="Groq (fast)"), CONTEXT)
    again = await quota.SetLimit(limit("2.5", metric=COST, window_s=MONTH_S), CONTEXT)
    raised = await quota.SetLimit(limit("1000000000000", metric=COST, window_s=MONTH_S), CONTEXT)
    told = await status(quota)
    removed = await quota.DeleteLimit(named(limit(metric=COST, window_s=MONTH_S)), CONTEXT)

    assert (first.limit.provider, first.limit.limit, first.previous_limit) == ("groq", "2.500000000000", "")
    assert (again.limit, again.previous_limit) == (first.limit, "2.500000000000")
    assert raised.previous_limit == "2.500000000000"
    [position] = told.statuses
    assert (position.is_override, position.window.seconds, position.level) == (True, MONTH_S, pb.LIMIT_LEVEL_HEALTHY)
    assert position.reset_time.ToDatetime(tzinfo=UTC) == datetime(2026, 4, 1, tzinfo=UTC)
    assert removed.limit == raised.limit
    assert (await status(quota)) == pb.CheckRateLimitStatusResponse(
        level=pb.LIMIT_LEVEL_HEALTHY, as_of_time=told.as_of_time, valid_for=Duration(seconds=30)
    )


async def test_a_limit_that_does_not_exist_cannot_be_removed(quota: QuotaServicer) -> None:
    await quota.SetLimit(limit(), CONTEXT)

    for other in (limit(model="m"), limit(window_s=3600), limit(tenant_id=OTHER_TENANT), limit(metric=COST)):
        with pytest.raises(ServiceError, match="ListLimits") as refused:
            await quota.DeleteLimit(named(other), CONTEXT)
        assert (refused.value.category, refused.value.reason) == (Category.NOT_FOUND, "UNKNOWN_LIMIT")


async def test_pages_of_any_size_list_every_limit_once_in_order(quota: QuotaServicer) -> None:
    requests = [
        limit(tenant_id=tenant, model=model, window_s=window_s)
        for tenant in (TENANT, OTHER_TENANT)
        for model in ("", "m")
        for window_s in (1, 60)
    ]
    for request in reversed(requests):
        await quota.SetLimit(request, CONTEXT)
    await quota.SetLimit(limit(provider="llm7"), CONTEXT)

    async def listed(page_size: int, **fields: Any) -> list[tuple[str, str, str, int]]:
        found, token = [], ""
        while True:
            page = await quota.ListLimits(
                pb.ListLimitsRequest(page_size=page_size, page_token=token, **fields), CONTEXT
            )
            found += [(one.tenant_id, one.provider, one.model, one.window.seconds) for one in page.limits]
            token = page.next_page_token
            if not token:
                return found

    groq = [(one.tenant_id, "groq", one.model, one.window.seconds) for one in requests]
    for page_size in (0, 1, 2, 5):
        assert await listed(page_size, provider="Groq") == groq
        assert await listed(page_size, tenant_id=TENANT) == [*groq[:4], (TENANT, "llm7", "", 60)]
        assert await listed(page_size) == [*groq[:4], (TENANT, "llm7", "", 60), *groq[4:]]


async def test_a_page_token_is_of_use_for_the_same_question_only(quota: QuotaServicer) -> None:
    for window_s in (1, 2, 3):
        await quota.SetLimit(limit(window_s=window_s), CONTEXT)
    token = (await quota.ListLimits(pb.ListLimitsRequest(page_size=1), CONTEXT)).next_page_token

    for bad in (
        pb.ListLimitsRequest(page_token=token, tenant_id=TENANT),
        pb.ListLimitsRequest(page_token=token[:-6] + "AAAA=="),
        pb.ListLimitsRequest(page_token="x"),
        pb.ListLimitsRequest(page_size=1001),
    ):
        with pytest.raises(InvalidRequest) as refused:
            await quota.ListLimits(bad, CONTEXT)
        assert refused.value.violations[0].field in {"page_token", "page_size"}


async def test_a_tenant_has_at_most_so_many_limits_however_many_are_set_at_once(postgres: Postgres) -> None:
    table = PostgresLimits(postgres)
    rules = [
        LimitRule("groq", LimitMetric.REQUESTS, minutes * 60, Decimal(1), is_override=True) for minutes in range(1, 9)
    ]

    done = await asyncio.gather(*(table.set(UUID(TENANT), rule, most=3) for rule in rules))
    [kept] = [one.limit.rule for one in done if one is not None][:1]
    changed = await table.set(UUID(TENANT), kept, most=3)

    assert sum(one is not None for one in done) == 3
    assert changed is not None
    stored = (await table.of_tenants([UUID(TENANT)]))[UUID(TENANT)]
    assert not isinstance(stored, ServiceError)
    assert len(stored) == 3


async def test_windows_of_seconds_are_counted_from_rows(quota: QuotaServicer, owner: Postgres) -> None:
    second = timedelta(seconds=1)
    await store(
        owner,
        [
            ledger_row(NOW, model="a"),
            ledger_row(NOW - 0.4 * second, model="b"),  # in the same second
            ledger_row(NOW - second, model="a"),
            ledger_row(NOW - 10 * second, model="a"),
            ledger_row(NOW, model="a", provider="llm7"),
        ],
    )
    for request in (
        limit("5", window_s=1),
        limit("5", window_s=10),
        limit("5", window_s=10, model="a"),
        limit("5", window_s=1, metric=COST),
    ):
        await quota.SetLimit(request, CONTEXT)

    found = {(one.window.seconds, one.model, one.metric): one.used for one in (await status(quota)).statuses}

    assert found == {
        (1, "", REQUESTS): "2",
        (10, "", REQUESTS): "3",
        (10, "a", REQUESTS): "2",
        (1, "", COST): "0.001970000000",
    }


async def test_a_level_that_one_replica_told_is_kept_by_the_other_until_usage_is_the_margin_below(
    postgres: Postgres, owner: Postgres
) -> None:
    one, other = replica(postgres), replica(postgres)
    await store(owner, [ledger_row(NOW, cost_usd=Decimal(80))])
    await one.SetLimit(limit("100", metric=COST), CONTEXT)

    begun = await status(one)
    await one.SetLimit(limit("105", metric=COST), CONTEXT)  # 76 % now
    kept = [(await status(servicer)).level for servicer in (other, one)]
    await one.SetLimit(limit("110", metric=COST), CONTEXT)  # 73 %
    left = [(await status(servicer)).level for servicer in (other, one)]
    await one.SetLimit(limit("1000", metric=COST), CONTEXT)
    healthy = await status(other)

    assert begun.level == pb.LIMIT_LEVEL_WARNING
    assert kept == [pb.LIMIT_LEVEL_WARNING] * 2
    assert left == [pb.LIMIT_LEVEL_NORMAL] * 2
    assert healthy.level == pb.LIMIT_LEVEL_HEALTHY
    assert await PostgresLimits(postgres).told_levels([UUID(TENANT)]) == {}


async def test_of_levels_told_at_the_same_time_the_worse_one_stays(postgres: Postgres, owner: Postgres) -> None:
    limits = PostgresLimits(postgres)
    key = LimitKey("groq", "", LimitMetric.COST, 60)
    window, before, after = NOW, NOW - timedelta(minutes=1), NOW + timedelta(minutes=1)

    async def tell(level: LimitLevel, *, was: LimitLevel | None, at: datetime = window) -> ToldLevel | None:
        told = None if was is None else ToldLevel(at, was)
        await limits.tell_levels({UUID(TENANT): [LevelChange(key, told, ToldLevel(at, level))]})
        return (await limits.told_levels([UUID(TENANT)])).get(UUID(TENANT), {}).get(key)

    critical = ToldLevel(window, LimitLevel.CRITICAL)
    assert await tell(LimitLevel.CRITICAL, was=None) == critical
    assert await tell(LimitLevel.NORMAL, was=None) == critical  # did not know of the other
    assert await tell(LimitLevel.NORMAL, was=LimitLevel.WARNING) == critical
    assert await tell(LimitLevel.CRITICAL, was=None, at=before) == critical  # too late
    assert await tell(LimitLevel.NORMAL, was=LimitLevel.CRITICAL) == ToldLevel(window, LimitLevel.NORMAL)
    assert await tell(LimitLevel.NORMAL, was=None, at=after) == ToldLevel(after, LimitLevel.NORMAL)
    assert await tell(LimitLevel.HEALTHY, was=LimitLevel.WARNING, at=after) == ToldLevel(after, LimitLevel.NORMAL)
    assert await tell(LimitLevel.HEALTHY, was=LimitLevel.NORMAL, at=after) is None

    assert await tell(LimitLevel.NORMAL, was=None) is not None
    await forget_levels(owner, datetime.now(UTC) - timedelta(days=1))
    assert await limits.told_levels([UUID(TENANT)]) != {}
    await forget_levels(owner, datetime.now(UTC) + timedelta(days=1))
    assert await limits.told_levels([UUID(TENANT)]) == {}


async def test_many_replicas_that_tell_many_levels_at_once_do_not_get_into_each_others_way(postgres: Postgres) -> None:
    limits = PostgresLimits(postgres)
    keys = [LimitKey("groq", f"m{number}", LimitMetric.COST, 60) for number in range(20)]

    async def tell(turn: int) -> None:
        changes = [
            LevelChange(key, None, ToldLevel(NOW, LimitLevel(2 + (turn + number) % 3)))
            for number, key in enumerate(keys)
        ]
        await limits.tell_levels({UUID(TENANT): changes[turn:] + changes[:turn]})

    await asyncio.gather(*(tell(turn) for turn in range(12)))

    told = (await limits.told_levels([UUID(TENANT)]))[UUID(TENANT)]
    assert {one.level for one in told.values()} == {LimitLevel.CRITICAL}
    assert len(told) == len(keys)
