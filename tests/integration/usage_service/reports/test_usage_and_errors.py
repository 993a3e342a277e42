"""What was used and what failed, as a caller sees it, on a real ledger."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from service_runtime.errors import Category, ServiceError
from service_runtime.postgres import Postgres
from tests.integration.usage_service.reports.clock import LAST_DAY, NOW
from tests.support.ledger_rows import ledger_row, random_rows, store, within
from tests.support.usage_events import OTHER_TENANT, TENANT
from turnpike.usage.v1 import token_usage_pb2, usage_event_pb2
from turnpike.usage.v1 import usage_service_pb2 as pb
from usage_service.api.convert_reports import timestamp_to_proto
from usage_service.api.reports import ReportHandlers
from usage_service.domain.usage_event import AttemptStatus, UsageSource
from usage_service.metering import reporting as reporting_module


async def test_usage_of_the_last_day_is_the_default_and_the_answered_window_is_told(
    postgres: Postgres, reports: ReportHandlers
) -> None:
    await store(
        postgres,
        [
            ledger_row(NOW - timedelta(days=1), cost_usd=Decimal("0.5")),
            ledger_row(NOW - timedelta(days=1, minutes=2), cost_usd=Decimal(100)),
            ledger_row(NOW - timedelta(minutes=5), cost_usd=Decimal("0.25"), usage_source=UsageSource.ESTIMATED),
            ledger_row(NOW - timedelta(minutes=4), cost_usd=None),
        ],
    )

    answer = await reports.get_tenant_usage_stats(pb.GetTenantUsageStatsRequest(tenant_id=TENANT))

    assert answer.start_time == timestamp_to_proto(datetime(2026, 3, 17, 10, 41, tzinfo=UTC))
    assert answer.end_time == timestamp_to_proto(datetime(2026, 3, 18, 10, 42, tzinfo=UTC))
    assert [(one.provider, one.model, one.requests) for one in answer.stats] == [("groq", "llama-3.3-70b-versatile", 3)]
    assert answer.total.requests == 3
    assert answer.total.cost == pb.CostSummary(
        cost_usd="0.750000000000",
        exact_usd="0.500000000000",
        estimated_usd="0.250000000000",
        unpriced_attempts=1,
        unpriced_tokens=1500,
    )
    assert answer.total.token_usage == token_usage_pb2.TokenUsage(input_tokens=3000, output_tokens=1500)
    assert answer.total.latency.sample_count == 3
    assert answer.total.latency.average.ToMilliseconds() == 812
    assert answer.total.latency.p99.ToMilliseconds() == pytest.approx(
        812, rel=answer.total.latency.relative_error_bound
    )


async def test_a_tenant_without_usage_gets_zeros(reports: ReportHandlers) -> None:
    answer = await reports.get_tenant_usage_stats(pb.GetTenantUsageStatsRequest(tenant_id=OTHER_TENANT))

    assert list(answer.stats) == []
    assert answer.total.attempts == 0
    assert answer.total.cost.cost_usd == "0.000000000000"
    assert not answer.total.latency.HasField("p50")


async def test_a_report_with_more_models_than_fit_asks_for_a_filter(
    postgres: Postgres, reports: ReportHandlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting_module, "MAX_MODELS", 1)
    await store(postgres, [ledger_row(NOW, model=model) for model in ("a", "b")])
    request = pb.GetTenantUsageStatsRequest(tenant_id=TENANT)

    with pytest.raises(ServiceError) as caught:
        await reports.get_tenant_usage_stats(request)

    assert (caught.value.category, caught.value.reason) == (Category.FAILED_PRECONDITION, "REPORT_TOO_LARGE")
    request.filter.model = "a"
    assert (await reports.get_tenant_usage_stats(request)).total.requests == 1


async def test_every_page_tells_the_total_of_the_whole_report(postgres: Postgres, reports: ReportHandlers) -> None:
    await store(postgres, random_rows(random.Random(3), 200, LAST_DAY))
    request = pb.GetTenantUsageStatsRequest(tenant_id=TENANT)
    whole = await reports.get_tenant_usage_stats(request)
    request.page_size = 2
    shown: list[pb.UsageStats] = []

    while True:
        page = await reports.get_tenant_usage_stats(request)
        assert page.total == whole.total
        shown += page.stats
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token

    assert len(whole.stats) > 2
    assert shown == list(whole.stats)


async def test_a_friendly_name_filters_by_provider(postgres: Postgres, reports: ReportHandlers) -> None:
    await store(postgres, [ledger_row(NOW), ledger_row(NOW, provider="llm7", model="gpt-4o")])

    answer = await reports.get_tenant_usage_stats(
        pb.GetTenantUsageStatsRequest(tenant_id=TENANT, filter=pb.UsageFilter(provider="Groq (Llama 3.3 70B)"))
    )

    assert [one.provider for one in answer.stats] == ["groq"]


async def test_a_tenant_sees_nothing_of_another(postgres: Postgres, reports: ReportHandlers) -> None:
    rows = random_rows(random.Random(9), 50, LAST_DAY, tenant_id=OTHER_TENANT)
    await store(postgres, rows)

    assert within(rows, LAST_DAY, tenant_id=OTHER_TENANT)
    assert not (await reports.get_tenant_usage_stats(pb.GetTenantUsageStatsRequest(tenant_id=TENANT))).stats
    assert not (await reports.list_daily_costs(pb.ListDailyCostsRequest(tenant_id=TENANT))).costs
    assert not (await reports.list_errors(pb.ListErrorsRequest(tenant_id=TENANT))).errors
    assert not (await reports.list_usage_records(pb.ListUsageRecordsRequest(tenant_id=TENANT))).records


async def test_errors_tell_when_and_how_often_and_what_they_cost(postgres: Postgres, reports: ReportHandlers) -> None:
    overloaded: dict[str, Any] = {"status": AttemptStatus.ERROR, "error_class": "overloaded"}
    await store(
        postgres,
        [
            ledger_row(NOW - timedelta(hours=20), **overloaded, error_message="first", absorbed=True),
            ledger_row(NOW - timedelta(hours=3), **overloaded, error_message="second"),
            ledger_row(NOW - timedelta(hours=2), status=AttemptStatus.RATE_LIMIT, error_class="rate_limited"),
            ledger_row(NOW - timedelta(hours=1)),
        ],
    )

    answer = await reports.list_errors(pb.ListErrorsRequest(tenant_id=TENANT))

    most, least = answer.errors
    assert (most.status, most.error_class) == (usage_event_pb2.USAGE_STATUS_ERROR, "overloaded")
    assert (most.occurrences, most.absorbed, most.sample_message) == (2, 1, "second")
    assert most.first_seen_time == timestamp_to_proto(datetime(2026, 3, 17, 14, 41, tzinfo=UTC))
    assert most.last_seen_time == timestamp_to_proto(datetime(2026, 3, 18, 7, 41, tzinfo=UTC))
    assert most.cost.cost_usd == "0.001970000000"
    assert (least.status, least.sample_message) == (usage_event_pb2.USAGE_STATUS_RATE_LIMIT, "")
