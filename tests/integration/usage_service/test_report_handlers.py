"""The report methods as a caller sees them, on a real ledger."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from service_runtime.errors import Category, InvalidRequest, ServiceError
from service_runtime.postgres import Postgres
from tests.support.ledger_rows import ledger_row, random_rows, store, within
from tests.support.usage_events import OTHER_TENANT, TENANT, event_id_at
from turnpike.usage.v1 import quota_service_pb2, token_usage_pb2, usage_event_pb2, usage_service_pb2
from usage_service.api.convert_reports import timestamp_to_proto
from usage_service.api.quota_servicer import QuotaServicer
from usage_service.api.reports import ReportHandlers
from usage_service.domain.pricing import TokenCounts
from usage_service.domain.provider_names import CATALOGUE_PROVIDERS
from usage_service.domain.rate_limit import LevelThresholds, LimitRule
from usage_service.domain.usage_event import AttemptStatus, Funding, UsageSource
from usage_service.domain.window import RollupRetention, Window
from usage_service.metering import reporting as reporting_module
from usage_service.metering.limit_setting import LimitSetting
from usage_service.metering.limiting import Limiting
from usage_service.metering.reporting import Reporting
from usage_service.storage.limits import PostgresLimits
from usage_service.storage.records import PostgresRecords
from usage_service.storage.rollups import PostgresRollups

NOW = datetime(2026, 3, 18, 10, 41, 7, 123_000, tzinfo=UTC)
LAST_DAY = Window(NOW - timedelta(days=1), NOW)
pb = usage_service_pb2


@dataclass
class Clock:
    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now


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
    shown: list[usage_service_pb2.UsageStats] = []

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


@pytest.mark.parametrize("page_size", [1, 7, 40])
async def test_pages_of_every_list_put_together_are_the_whole_list(
    postgres: Postgres, reports: ReportHandlers, page_size: int
) -> None:
    rows = random_rows(random.Random(5), 60, LAST_DAY)
    await store(postgres, rows)

    async def pages(method: Any, request: Any, entries: str) -> list[Any]:
        found = []
        while True:
            answer = await method(request)
            found.append(list(getattr(answer, entries)))
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token

    lists: list[tuple[Any, Any, str]] = [
        (reports.list_daily_costs, pb.ListDailyCostsRequest, "costs"),
        (reports.list_errors, pb.ListErrorsRequest, "errors"),
        (reports.list_usage_records, pb.ListUsageRecordsRequest, "records"),
    ]
    for method, kind, entries in lists:
        whole = getattr(await method(kind(tenant_id=TENANT, page_size=1000)), entries)
        turned = await pages(method, kind(tenant_id=TENANT, page_size=page_size), entries)

        assert len(whole) > 5
        assert [one for page in turned for one in page] == list(whole)
        assert all(len(page) == page_size for page in turned[:-1])
        assert 1 <= len(turned[-1]) <= page_size


async def test_records_keep_their_window_while_pages_are_turned(
    postgres: Postgres, reports: ReportHandlers, clock: Clock
) -> None:
    oldest = ledger_row(NOW - timedelta(days=1))
    newer = ledger_row(NOW - timedelta(hours=1))
    await store(postgres, [oldest, newer])
    request = pb.ListUsageRecordsRequest(tenant_id=TENANT, page_size=1)
    first = await reports.list_usage_records(request)

    clock.now += timedelta(hours=3)
    await store(postgres, [ledger_row(clock.now - timedelta(minutes=1))])
    request.page_token = first.next_page_token
    second = await reports.list_usage_records(request)

    assert [one.event.event_id for one in second.records] == [str(oldest.event.event_id)]
    assert second.next_page_token == ""


async def test_records_of_the_same_millisecond_are_neither_lost_nor_repeated(
    postgres: Postgres, reports: ReportHandlers
) -> None:
    rows = [ledger_row(NOW - timedelta(minutes=1)) for _ in range(5)]
    await store(postgres, rows)
    request = pb.ListUsageRecordsRequest(tenant_id=TENANT, page_size=2)
    seen: list[str] = []

    for _ in range(3):
        answer = await reports.list_usage_records(request)
        seen += [one.event.event_id for one in answer.records]
        request.page_token = answer.next_page_token

    assert seen == sorted((str(row.event.event_id) for row in rows), reverse=True)


async def test_a_records_window_is_exact_and_half_open(postgres: Postgres, reports: ReportHandlers) -> None:
    start, end = NOW - timedelta(minutes=10), NOW - timedelta(minutes=5)
    rows = [ledger_row(at) for at in (start - timedelta(milliseconds=1), start, end - timedelta(milliseconds=1), end)]
    await store(postgres, rows)

    answer = await reports.list_usage_records(
        pb.ListUsageRecordsRequest(
            tenant_id=TENANT, start_time=timestamp_to_proto(start), end_time=timestamp_to_proto(end)
        )
    )

    assert [one.event.event_id for one in answer.records] == [str(row.event.event_id) for row in (rows[2], rows[1])]


async def test_a_record_says_all_that_was_stored(postgres: Postgres, reports: ReportHandlers) -> None:
    used_at = NOW - timedelta(minutes=1)
    row = ledger_row(
        used_at,
        attempt=2,
        requested_model="llama",
        status=AttemptStatus.CANCELLED,
        error_class="caller_gone",
        error_message="the caller left",
        absorbed=True,
        tokens=TokenCounts(1, 2, 3, 4, 5),
        usage_source=UsageSource.COUNTED,
        funding=Funding.SYSTEM_KEY,
        latency_ms=1234,
        first_token_ms=None,
        provider_reported_cost_usd="0.5",
        sequence=17,
    )
    await store(postgres, [row])

    (record,) = (await reports.list_usage_records(pb.ListUsageRecordsRequest(tenant_id=TENANT))).records

    event = record.event
    assert record.usage_time == timestamp_to_proto(used_at)
    assert record.HasField("ingest_time")
    assert (record.cost_usd, record.pricing_state) == ("0.000985000000", token_usage_pb2.PRICING_STATE_PRICED)
    assert (record.price_id, record.router_id) == ("1", "router-1")
    assert event.event_id == str(row.event.event_id)
    assert (event.attempt, event.absorbed, event.sequence) == (2, True, 17)
    assert (event.requested_model, event.endpoint, event.user_id) == ("llama", "/v1/chat", "user-7")
    assert event.status == usage_event_pb2.USAGE_STATUS_CANCELLED
    assert (event.error_class, event.error_message) == ("caller_gone", "the caller left")
    assert event.token_usage == token_usage_pb2.TokenUsage(
        input_tokens=1, output_tokens=2, cached_read_tokens=3, cached_write_tokens=4, reasoning_tokens=5
    )
    assert event.usage_source == token_usage_pb2.TOKEN_USAGE_SOURCE_COUNTED
    assert event.funding == token_usage_pb2.FUNDING_SYSTEM_KEY
    assert event.latency.ToMilliseconds() == 1234
    assert not event.HasField("time_to_first_token")
    assert event.provider_reported_cost_usd == "0.500000000000"
    assert dict(event.labels) == {"team": "search"}
    assert (event.task_type, event.decision) == ("chat", '{"score": 0.9}')


async def test_what_was_not_consumed_priced_or_measured_stays_absent(
    postgres: Postgres, reports: ReportHandlers
) -> None:
    await store(
        postgres,
        [
            ledger_row(NOW - timedelta(minutes=1), cost_usd=None, labels={}, task_type="", decision=""),
            ledger_row(
                NOW - timedelta(minutes=2), tokens=TokenCounts(), usage_source=UsageSource.NONE, latency_ms=None
            ),
        ],
    )

    unpriced, unsent = (await reports.list_usage_records(pb.ListUsageRecordsRequest(tenant_id=TENANT))).records

    assert (unpriced.cost_usd, unpriced.price_id) == ("", "")
    assert unpriced.pricing_state == token_usage_pb2.PRICING_STATE_UNPRICED
    assert unsent.cost_usd == "0.000000000000"
    assert not unsent.event.HasField("token_usage")
    assert not unsent.event.HasField("latency")


async def test_records_of_one_request_are_all_its_attempts(postgres: Postgres, reports: ReportHandlers) -> None:
    request_id = UUID(int=77)
    attempts = [ledger_row(NOW - timedelta(seconds=9 - number), request_id=str(request_id)) for number in range(3)]
    await store(postgres, [*attempts, ledger_row(NOW)])

    answer = await reports.list_usage_records(
        pb.ListUsageRecordsRequest(tenant_id=TENANT, request_id=str(request_id), page_size=2)
    )

    assert [one.event.event_id for one in answer.records] == [str(row.event.event_id) for row in attempts[:0:-1]]
    assert answer.next_page_token


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


async def test_a_page_token_of_a_changed_request_is_refused(postgres: Postgres, reports: ReportHandlers) -> None:
    await store(postgres, [ledger_row(NOW - timedelta(minutes=minute)) for minute in range(3)])
    first = await reports.list_usage_records(pb.ListUsageRecordsRequest(tenant_id=TENANT, page_size=1))
    changed = [
        pb.ListUsageRecordsRequest(tenant_id=OTHER_TENANT),
        pb.ListUsageRecordsRequest(tenant_id=TENANT, filter=pb.UsageFilter(model="a")),
        pb.ListUsageRecordsRequest(tenant_id=TENANT, end_time=timestamp_to_proto(NOW)),
        pb.ListUsageRecordsRequest(tenant_id=TENANT, request_id=str(event_id_at(NOW))),
    ]

    for request in changed:
        request.page_token = first.next_page_token
        with pytest.raises(InvalidRequest) as caught:
            await reports.list_usage_records(request)
        assert [one.field for one in caught.value.violations] == ["page_token"]
    with pytest.raises(InvalidRequest, match="page_token"):
        await reports.list_errors(pb.ListErrorsRequest(tenant_id=TENANT, page_token=first.next_page_token))


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
