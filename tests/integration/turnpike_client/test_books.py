from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from turnpike.usage.v1 import quota_service_pb2, usage_service_pb2
from turnpike_client import (
    Funding,
    LimitLevel,
    LimitMetric,
    PricingState,
    RecordDisposition,
    TokenUsage,
    UsageClient,
    UsageEvent,
    UsageFilter,
    UsageNotRecorded,
    UsageSource,
    UsageStatus,
    new_event_id,
)
from turnpike_client.testing import FakeTurnpike

TENANT = "5b4c2a10-5f0e-4a53-9d5c-0f3a6f6f2b11"
REQUEST = "0c6e6f3e-7d62-4c2e-a1a0-3f1e1a4b5c6d"
TOKENS = TokenUsage(input_tokens=1000, output_tokens=500)


async def test_tracked_usage_stands_in_the_books(turnpike: FakeTurnpike, usage: UsageClient) -> None:
    turnpike.pricing.add("groq", "m", input_usd="0.59", output_usd="0.79")

    result = await usage.track_usage(
        TENANT, "groq", "m", TOKENS, latency=timedelta(milliseconds=250), endpoint="search", labels={"team": "red"}
    )

    assert result.disposition is RecordDisposition.ACCEPTED
    assert result.cost_usd == Decimal("0.000985")
    [event] = turnpike.ledger.events.values()
    assert event.event_id == result.event_id
    [record] = [record async for record in usage.records(TENANT)]
    assert record.event.tokens == TOKENS
    assert record.event.usage_source is UsageSource.PROVIDER
    assert record.event.funding is Funding.TENANT_KEY
    assert record.event.latency == timedelta(milliseconds=250)
    assert record.event.labels == {"team": "red"}
    assert datetime.now(UTC) - record.used_at < timedelta(minutes=1)


async def test_the_same_event_counts_once_however_often_it_is_sent(turnpike: FakeTurnpike, usage: UsageClient) -> None:
    event_id = str(new_event_id())

    first = await usage.track_usage(TENANT, "groq", "m", TOKENS, event_id=event_id, request_id=REQUEST)
    again = await usage.track_usage(TENANT, "groq", "m", TOKENS, event_id=event_id, request_id=REQUEST)

    assert (first.disposition, again.disposition) == (RecordDisposition.ACCEPTED, RecordDisposition.DUPLICATE)
    assert len(turnpike.ledger.events) == 1


@pytest.mark.parametrize(
    "disposition", [RecordDisposition.CONFLICT, RecordDisposition.REJECTED, RecordDisposition.RETRY]
)
async def test_what_the_ledger_does_not_store_is_never_taken_for_stored(
    turnpike: FakeTurnpike, usage: UsageClient, disposition: RecordDisposition
) -> None:
    turnpike.ledger.dispositions[""] = disposition

    with pytest.raises(UsageNotRecorded, match="as the test asked") as caught:
        await usage.track_usage(TENANT, "groq", "m", TOKENS)

    assert caught.value.disposition is disposition
    assert isinstance(caught.value.event, UsageEvent)
    assert turnpike.ledger.events == {}
    [result] = await usage.record([caught.value.event])
    assert result.disposition is RecordDisposition.ACCEPTED


async def test_usage_without_tokens_claims_none(turnpike: FakeTurnpike, usage: UsageClient) -> None:
    await usage.track_usage(TENANT, "groq", "m", None, status=UsageStatus.ERROR, error_class="overloaded")

    [record] = [record async for record in usage.records(TENANT)]
    assert (record.event.tokens, record.event.usage_source) == (None, UsageSource.NONE)
    assert record.pricing_state is PricingState.NOTHING_CONSUMED


async def test_the_reporter_has_a_name(turnpike: FakeTurnpike) -> None:
    async with UsageClient(turnpike.usage_target, reporter_id="billing-job") as usage:
        await usage.track_usage(TENANT, "groq", "m", TOKENS)

    [request] = turnpike.ledger.requests
    assert request.router_id == "billing-job"


async def test_an_unpriced_model_costs_nothing_known(turnpike: FakeTurnpike, usage: UsageClient) -> None:
    turnpike.pricing.add("groq", "m", input_usd="1", output_usd="2")
    await usage.track_usage(TENANT, "groq", "m", TOKENS)
    await usage.track_usage(TENANT, "groq", "unheard-of", TOKENS)
    await usage.track_usage("another tenant", "groq", "m", TOKENS)

    report = await usage.stats(TENANT)

    assert {stats.model for stats in report.stats} == {"m", "unheard-of"}
    assert report.total.requests == 2
    assert report.total.tokens == TokenUsage(input_tokens=2000, output_tokens=1000)
    assert report.total.cost.cost_usd == Decimal("0.002")
    assert (report.total.cost.unpriced_attempts, report.total.cost.unpriced_tokens) == (1, 1500)
    assert report.total.latency is None


async def test_windows_and_filters_reach_the_service(turnpike: FakeTurnpike, usage: UsageClient) -> None:
    start, end = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 11, 2, tzinfo=UTC)

    report = await usage.stats(TENANT, start=start, end=end, only=UsageFilter(provider="groq"))

    assert (report.start, report.end) == (start, end)
    [request] = turnpike.ledger.requests
    assert request.filter.provider == "groq"


async def test_lists_go_over_all_their_pages(turnpike: FakeTurnpike, usage: UsageClient) -> None:
    for index in range(5):
        turnpike.pricing.add("groq", f"m{index}", input_usd="1", output_usd="2")
        await usage.track_usage(TENANT, f"p{index}", "m", TOKENS, status=UsageStatus.ERROR)

    assert len([day async for day in usage.daily_costs(TENANT, page_size=2)]) == 5
    assert len([error async for error in usage.errors(TENANT, page_size=2)]) == 5
    assert len([record async for record in usage.records(TENANT, page_size=2)]) == 5
    assert len([price async for price in usage.prices(page_size=2)]) == 5


async def test_a_reader_who_stops_fetches_no_further_page(turnpike: FakeTurnpike, usage: UsageClient) -> None:
    for _ in range(5):
        await usage.track_usage(TENANT, "groq", "m", TOKENS)
    turnpike.ledger.requests.clear()

    async for _ in usage.records(TENANT, page_size=2):
        break

    assert len(turnpike.ledger.requests) == 1
    assert isinstance(turnpike.ledger.requests[0], usage_service_pb2.ListUsageRecordsRequest)


async def test_a_quote_for_an_unknown_model_is_no_zero(turnpike: FakeTurnpike, usage: UsageClient) -> None:
    turnpike.pricing.add("groq", "m", input_usd="0.59", output_usd="0.79")

    known = await usage.calculate_cost("groq", "m", TOKENS)
    unknown = await usage.calculate_cost("groq", "unheard-of", TOKENS)

    assert known.cost_usd == Decimal("0.000985")
    assert known.price is not None
    assert known.price.cached_read_usd_per_million is None
    assert (unknown.cost_usd, unknown.pricing_state, unknown.price) == (None, PricingState.UNPRICED, None)


async def test_limits_are_told_with_their_level(turnpike: FakeTurnpike, usage: UsageClient) -> None:
    assert (await usage.limits(TENANT)).level is LimitLevel.HEALTHY
    turnpike.quota.response = quota_service_pb2.CheckRateLimitStatusResponse(
        statuses=[
            quota_service_pb2.RateLimitStatus(
                provider="groq",
                metric=quota_service_pb2.LIMIT_METRIC_COST,
                window=Duration(seconds=86400),
                limit="10.00",
                used="9.60",
                remaining="0.40",
                usage_percent=96,
                level=quota_service_pb2.LIMIT_LEVEL_CRITICAL,
                should_failover=True,
                reset_time=Timestamp(seconds=1_800_000_000),
            )
        ],
        level=quota_service_pb2.LIMIT_LEVEL_CRITICAL,
        should_failover=True,
    )

    report = await usage.limits(TENANT, provider="groq")

    [status] = report.statuses
    assert (report.level, report.should_failover) == (LimitLevel.CRITICAL, True)
    assert (status.metric, status.limit, status.window) == (LimitMetric.COST, Decimal("10.00"), timedelta(days=1))
