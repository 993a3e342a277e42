"""The books between the client's values and the wire."""

from __future__ import annotations

from typing import Any, cast

from turnpike.usage.v1 import (
    pricing_service_pb2,
    quota_service_pb2,
    token_usage_pb2,
    usage_event_pb2,
    usage_service_pb2,
)
from turnpike_client.accounting import (
    CostQuote,
    CostSummary,
    DailyCost,
    ErrorSummary,
    LatencySummary,
    LimitReport,
    LimitStatus,
    Price,
    RecordResult,
    UsageEvent,
    UsageFilter,
    UsageRecord,
    UsageReport,
    UsageStats,
)
from turnpike_client.completion_codec import tokens_from_proto
from turnpike_client.completions import TokenUsage
from turnpike_client.enums import (
    ErrorCause,
    Funding,
    LimitLevel,
    LimitMetric,
    PricingState,
    RecordDisposition,
    UsageSource,
    UsageStatus,
    from_wire,
    to_wire,
)
from turnpike_client.wire import instant, known_money, money, span, to_duration


def filter_to_proto(value: UsageFilter) -> usage_service_pb2.UsageFilter:
    """What a report counts."""
    return usage_service_pb2.UsageFilter(
        provider=value.provider,
        model=value.model,
        attempts=cast("Any", to_wire(value.attempts)),
        funding=cast("Any", to_wire(value.funding)),
    )


def tokens_to_proto(tokens: TokenUsage) -> token_usage_pb2.TokenUsage:
    """Tokens by class."""
    return token_usage_pb2.TokenUsage(
        input_tokens=tokens.input_tokens,
        output_tokens=tokens.output_tokens,
        cached_read_tokens=tokens.cached_read_tokens,
        cached_write_tokens=tokens.cached_write_tokens,
        reasoning_tokens=tokens.reasoning_tokens,
    )


def event_to_proto(event: UsageEvent) -> usage_event_pb2.UsageEvent:
    """An attempt to report."""
    cost = event.provider_reported_cost_usd
    return usage_event_pb2.UsageEvent(
        event_id=event.event_id,
        tenant_id=event.tenant_id,
        request_id=event.request_id,
        attempt=event.attempt,
        provider=event.provider,
        model=event.model,
        requested_model=event.requested_model,
        endpoint=event.endpoint,
        user_id=event.user_id,
        status=cast("Any", to_wire(event.status)),
        error_class=event.error_class,
        error_message=event.error_message,
        absorbed=event.absorbed,
        token_usage=tokens_to_proto(event.tokens) if event.tokens else None,
        usage_source=cast("Any", to_wire(event.usage_source)),
        funding=cast("Any", to_wire(event.funding)),
        latency=to_duration(event.latency) if event.latency is not None else None,
        time_to_first_token=to_duration(event.time_to_first_token) if event.time_to_first_token is not None else None,
        provider_reported_cost_usd="" if cost is None else f"{cost:f}",
        labels=event.labels,
        task_type=event.task_type,
        decision=event.decision,
    )


def event_from_proto(message: usage_event_pb2.UsageEvent) -> UsageEvent:
    """An attempt as it was stored."""
    has = message.HasField
    return UsageEvent(
        event_id=message.event_id,
        tenant_id=message.tenant_id,
        request_id=message.request_id,
        provider=message.provider,
        model=message.model,
        status=from_wire(UsageStatus, message.status),
        usage_source=from_wire(UsageSource, message.usage_source),
        attempt=message.attempt,
        tokens=tokens_from_proto(message.token_usage) if has("token_usage") else None,
        requested_model=message.requested_model,
        endpoint=message.endpoint,
        user_id=message.user_id,
        error_class=message.error_class,
        error_message=message.error_message,
        absorbed=message.absorbed,
        funding=from_wire(Funding, message.funding),
        latency=span(message.latency) if has("latency") else None,
        time_to_first_token=span(message.time_to_first_token) if has("time_to_first_token") else None,
        provider_reported_cost_usd=money(message.provider_reported_cost_usd),
        labels=dict(message.labels),
        task_type=message.task_type,
        decision=message.decision,
    )


def record_from_proto(message: usage_service_pb2.UsageRecord) -> UsageRecord:
    """One stored attempt."""
    return UsageRecord(
        event=event_from_proto(message.event),
        used_at=instant(message.usage_time),
        stored_at=instant(message.ingest_time),
        cost_usd=money(message.cost_usd),
        pricing_state=from_wire(PricingState, message.pricing_state),
        price_id=message.price_id,
        router_id=message.router_id,
        proto=message,
    )


def result_from_proto(message: usage_service_pb2.RecordUsageResult) -> RecordResult:
    """What became of one event."""
    return RecordResult(
        event_id=message.event_id,
        disposition=from_wire(RecordDisposition, message.disposition),
        cost_usd=money(message.cost_usd),
        pricing_state=from_wire(PricingState, message.pricing_state),
        problem=message.error.message,
        proto=message,
    )


def cost_from_proto(message: usage_service_pb2.CostSummary) -> CostSummary:
    """Cost split by how sure it is."""
    return CostSummary(
        cost_usd=known_money(message.cost_usd),
        exact_usd=known_money(message.exact_usd),
        estimated_usd=known_money(message.estimated_usd),
        unpriced_attempts=message.unpriced_attempts,
        unpriced_tokens=message.unpriced_tokens,
    )


def latency_from_proto(message: usage_service_pb2.LatencySummary) -> LatencySummary | None:
    """Percentiles; None when nothing was measured."""
    if not message.sample_count:
        return None
    return LatencySummary(
        sample_count=message.sample_count,
        average=span(message.average),
        p50=span(message.p50),
        p90=span(message.p90),
        p95=span(message.p95),
        p99=span(message.p99),
        relative_error_bound=message.relative_error_bound,
    )


def stats_from_proto(message: usage_service_pb2.UsageStats) -> UsageStats:
    """Usage of one provider and model."""
    return UsageStats(
        provider=message.provider,
        model=message.model,
        requests=message.requests,
        attempts=message.attempts,
        succeeded=message.succeeded,
        failed=message.failed,
        rate_limited=message.rate_limited,
        cancelled=message.cancelled,
        absorbed=message.absorbed,
        tokens=tokens_from_proto(message.token_usage),
        total_tokens=message.total_tokens,
        cost=cost_from_proto(message.cost),
        latency=latency_from_proto(message.latency),
        time_to_first_token=latency_from_proto(message.time_to_first_token),
    )


def report_from_proto(message: usage_service_pb2.GetTenantUsageStatsResponse) -> UsageReport:
    """A tenant's usage."""
    return UsageReport(
        stats=tuple(stats_from_proto(stats) for stats in message.stats),
        total=stats_from_proto(message.total),
        start=instant(message.start_time),
        end=instant(message.end_time),
        proto=message,
    )


def daily_cost_from_proto(message: usage_service_pb2.DailyCost) -> DailyCost:
    """Cost of one provider on one day."""
    return DailyCost(
        date=message.date,
        provider=message.provider,
        requests=message.requests,
        total_tokens=message.total_tokens,
        cost=cost_from_proto(message.cost),
        proto=message,
    )


def error_from_proto(message: usage_service_pb2.ErrorSummary) -> ErrorSummary:
    """Failures of one kind."""
    return ErrorSummary(
        provider=message.provider,
        model=message.model,
        status=from_wire(UsageStatus, message.status),
        error_class=message.error_class,
        occurrences=message.occurrences,
        absorbed=message.absorbed,
        first_seen=instant(message.first_seen_time),
        last_seen=instant(message.last_seen_time),
        cost=cost_from_proto(message.cost),
        sample_message=message.sample_message,
        cause=from_wire(ErrorCause, message.cause),
        proto=message,
    )


def limits_from_proto(message: quota_service_pb2.CheckRateLimitStatusResponse) -> LimitReport:
    """Position against every limit."""
    return LimitReport(
        statuses=tuple(limit_from_proto(status) for status in message.statuses),
        # Without any limit there is nothing to be near to, whatever level was or was not stated.
        level=from_wire(LimitLevel, message.level) if message.statuses else LimitLevel.HEALTHY,
        should_failover=message.should_failover,
        as_of=instant(message.as_of_time),
        valid_for=span(message.valid_for),
        proto=message,
    )


def limit_from_proto(message: quota_service_pb2.RateLimitStatus) -> LimitStatus:
    """Position against one limit."""
    return LimitStatus(
        provider=message.provider,
        model=message.model,
        metric=from_wire(LimitMetric, message.metric),
        window=span(message.window),
        limit=known_money(message.limit),
        used=known_money(message.used),
        remaining=known_money(message.remaining),
        usage_percent=message.usage_percent,
        level=from_wire(LimitLevel, message.level),
        should_failover=message.should_failover,
        resets_at=instant(message.reset_time),
        is_override=message.is_override,
    )


def price_from_proto(message: pricing_service_pb2.Price) -> Price:
    """An entry of the price book."""
    return Price(
        price_id=message.price_id,
        provider=message.provider,
        model=message.model,
        input_usd_per_million=known_money(message.input_usd_per_million),
        output_usd_per_million=known_money(message.output_usd_per_million),
        cached_read_usd_per_million=money(message.cached_read_usd_per_million),
        cached_write_usd_per_million=money(message.cached_write_usd_per_million),
        reasoning_usd_per_million=money(message.reasoning_usd_per_million),
        effective_at=instant(message.effective_time),
        expires_at=instant(message.expire_time) if message.HasField("expire_time") else None,
        source=message.source,
        max_prompt_tokens=message.max_prompt_tokens or None,
        replaced_at=instant(message.replace_time) if message.HasField("replace_time") else None,
        proto=message,
    )


def quote_from_proto(message: pricing_service_pb2.CalculateCostResponse) -> CostQuote:
    """What a number of tokens costs."""
    return CostQuote(
        cost_usd=money(message.cost_usd),
        input_cost_usd=money(message.input_cost_usd),
        output_cost_usd=money(message.output_cost_usd),
        pricing_state=from_wire(PricingState, message.pricing_state),
        price=price_from_proto(message.price) if message.HasField("price") else None,
        proto=message,
    )
