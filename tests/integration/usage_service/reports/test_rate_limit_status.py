"""How near a tenant is to its limits, as a caller sees it, on a real ledger."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest

from service_runtime.errors import Category, InvalidRequest, ServiceError
from service_runtime.postgres import Postgres
from tests.integration.usage_service.reports.clock import NOW, Clock
from tests.support.ledger_rows import ledger_row, store
from tests.support.usage_events import TENANT
from turnpike.usage.v1 import quota_service_pb2
from usage_service.api.convert_reports import timestamp_to_proto
from usage_service.api.quota_servicer import QuotaServicer
from usage_service.domain.pricing import TokenCounts
from usage_service.domain.provider_names import CATALOGUE_PROVIDERS
from usage_service.domain.rate_limit import LevelThresholds, LimitRule
from usage_service.domain.usage_event import AttemptStatus
from usage_service.domain.window import RollupRetention
from usage_service.metering.limit_setting import LimitSetting
from usage_service.metering.limiting import Limiting
from usage_service.storage.limits import PostgresLimits
from usage_service.storage.rollups import PostgresRollups


def quota(postgres: Postgres, clock: Clock, *defaults: str) -> QuotaServicer:
    return QuotaServicer(
        Limiting(
            rollups=PostgresRollups(postgres),
            limits=PostgresLimits(postgres),
            defaults=[LimitRule.parse("groq", text) for text in defaults],
            thresholds=LevelThresholds(),
            retention=RollupRetention(),
            now=clock,
        ),
        LimitSetting(PostgresLimits(postgres)),
        providers=CATALOGUE_PROVIDERS,
    )


async def check(servicer: QuotaServicer, **fields: str) -> quota_service_pb2.CheckRateLimitStatusResponse:
    request = quota_service_pb2.CheckRateLimitStatusRequest(tenant_id=TENANT, **fields)
    return await servicer.CheckRateLimitStatus(request, None)  # type: ignore[arg-type]  # it asks nothing of the context


async def test_a_limit_is_judged_by_the_usage_of_its_window(postgres: Postgres, clock: Clock) -> None:
    await store(
        postgres,
        [
            *(ledger_row(NOW - timedelta(seconds=1), absorbed=number < 2) for number in range(4)),
            ledger_row(NOW - timedelta(minutes=1)),
            ledger_row(NOW, provider="turnpike", model="", status=AttemptStatus.RATE_LIMIT, tokens=TokenCounts()),
        ],
    )

    answer = await check(quota(postgres, clock, "5 requests per 1m", "9_000 tokens per 1h"))

    tokens, requests = answer.statuses
    assert (requests.provider, requests.metric) == ("groq", quota_service_pb2.LIMIT_METRIC_REQUESTS)
    assert (requests.limit, requests.used, requests.remaining) == ("5", "4", "1")
    assert requests.usage_percent == 80.0
    assert requests.level == quota_service_pb2.LIMIT_LEVEL_WARNING
    assert requests.reset_time == timestamp_to_proto(datetime(2026, 3, 18, 10, 42, tzinfo=UTC))
    assert not requests.is_override
    assert (tokens.used, tokens.remaining) == ("7500", "1500")
    # 7500 of 9000 tokens after 41 of 60 minutes: at this pace they are gone before the hour is.
    assert (tokens.level, tokens.should_failover) == (quota_service_pb2.LIMIT_LEVEL_CRITICAL, True)
    assert (answer.level, answer.should_failover) == (quota_service_pb2.LIMIT_LEVEL_CRITICAL, True)
    assert answer.as_of_time == timestamp_to_proto(NOW)
    assert answer.valid_for.seconds == 5


async def set_limit(postgres: Postgres, metric: str, window_s: int, limit: str, *, model: str = "") -> None:
    async with postgres.acquire() as connection:
        await connection.execute(
            "INSERT INTO usage_limits (tenant_id, provider, model_name, metric, window_s, limit_value) "
            "VALUES ($1, 'groq', $2, $3, $4, $5)",
            UUID(TENANT),
            model,
            metric,
            window_s,
            Decimal(limit),
        )


async def test_a_tenants_own_limits_replace_the_defaults(postgres: Postgres, clock: Clock) -> None:
    await set_limit(postgres, "cost", 86_400, "2.50")
    await set_limit(postgres, "requests", 60, "1000", model="gpt-oss-20b")
    await store(postgres, [ledger_row(NOW, cost_usd=Decimal("0.5")), ledger_row(NOW, model="gpt-oss-20b")])

    answer = await check(quota(postgres, clock, "5 requests per 1m"), provider="Groq")

    cost, requests = answer.statuses
    assert (cost.metric, cost.is_override) == (quota_service_pb2.LIMIT_METRIC_COST, True)
    assert (cost.limit, cost.used, cost.remaining) == ("2.500000000000", "0.500985000000", "1.999015000000")
    assert (requests.model, requests.limit, requests.used) == ("gpt-oss-20b", "1000", "1")


@pytest.mark.parametrize(("metric", "window_s"), [("requests", 61), ("requests", 90), ("concurrency", 60)])
async def test_a_limit_that_cannot_be_used_is_named_instead_of_ignored(
    postgres: Postgres, clock: Clock, metric: str, window_s: int
) -> None:
    # Straight into the table, as an operator would.
    await set_limit(postgres, metric, window_s, "5")

    with pytest.raises(ServiceError, match=f"{metric} per {window_s} s.*correct or delete") as caught:
        await check(quota(postgres, clock))

    assert (caught.value.category, caught.value.reason) == (Category.FAILED_PRECONDITION, "LIMIT_INVALID")


async def test_limits_on_a_provider_that_has_none_are_an_empty_healthy_answer(postgres: Postgres, clock: Clock) -> None:
    answer = await check(quota(postgres, clock, "5 requests per 1m"), provider="local")

    assert list(answer.statuses) == []
    assert answer.level == quota_service_pb2.LIMIT_LEVEL_HEALTHY
    assert not answer.should_failover


async def test_a_bad_quota_request_names_every_bad_field(postgres: Postgres, clock: Clock) -> None:
    request = quota_service_pb2.CheckRateLimitStatusRequest(tenant_id="x", provider="p" * 201, model="m\x00")

    with pytest.raises(InvalidRequest) as caught:
        await quota(postgres, clock).CheckRateLimitStatus(request, None)  # type: ignore[arg-type]

    assert [one.field for one in caught.value.violations] == ["tenant_id", "provider", "model"]
