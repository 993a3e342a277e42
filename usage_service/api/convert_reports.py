"""Reports between protos and values. Reading a request may fail, writing an answer may not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from turnpike.usage.v1 import token_usage_pb2, usage_event_pb2, usage_service_pb2
from usage_service.domain.failure_cause import FailureCause, cause_of
from usage_service.domain.histogram import RELATIVE_ERROR_BOUND, bounds_ms, percentiles_ms
from usage_service.domain.pricing import PricingState, TokenCounts
from usage_service.domain.report import (
    Cost,
    DailyCost,
    Durations,
    Failure,
    ModelUsage,
    StoredRecord,
    UsageReport,
    UsageSeries,
)
from usage_service.domain.steps import StepUnit
from usage_service.domain.usage_event import AttemptStatus, Funding, UsageSource

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_STATUS = {status: usage_event_pb2.UsageStatus.Value(f"USAGE_STATUS_{status.name}") for status in AttemptStatus}
_SOURCE = {
    source: token_usage_pb2.TokenUsageSource.Value(f"TOKEN_USAGE_SOURCE_{source.name}") for source in UsageSource
}
_FUNDING = {
    Funding.NO_KEY: token_usage_pb2.FUNDING_UNSPECIFIED,
    Funding.TENANT_KEY: token_usage_pb2.FUNDING_TENANT_KEY,
    Funding.SYSTEM_KEY: token_usage_pb2.FUNDING_SYSTEM_KEY,
}
_PRICING = {state: token_usage_pb2.PricingState.Value(f"PRICING_STATE_{state.name}") for state in PricingState}
_STEP = {unit: usage_service_pb2.TimeStep.Value(f"TIME_STEP_{unit.name}") for unit in StepUnit}
_CAUSE = {
    cause: usage_service_pb2.ErrorCause.Value(
        f"ERROR_CAUSE_{'UNSPECIFIED' if cause is FailureCause.UNKNOWN else cause.name}"
    )
    for cause in FailureCause
}


def usage_report_to_proto(report: UsageReport) -> usage_service_pb2.GetTenantUsageStatsResponse:
    """Without the token of the next page."""
    return usage_service_pb2.GetTenantUsageStatsResponse(
        stats=[model_usage_to_proto(one) for one in report.models],
        total=model_usage_to_proto(report.total),
        start_time=timestamp_to_proto(report.window.start),
        end_time=timestamp_to_proto(report.window.end),
    )


def series_to_proto(series: UsageSeries) -> usage_service_pb2.QueryUsageTimeSeriesResponse:
    """Without the token of the next page."""
    return usage_service_pb2.QueryUsageTimeSeriesResponse(
        points=[
            usage_service_pb2.UsagePoint(
                start_time=timestamp_to_proto(point.window.start),
                end_time=timestamp_to_proto(point.window.end),
                usage=model_usage_to_proto(point.usage),
            )
            for point in series.points
        ],
        start_time=timestamp_to_proto(series.window.start),
        end_time=timestamp_to_proto(series.window.end),
        step=_STEP[series.step.unit],
        step_count=series.step.count,
    )


def distributions_to_proto(report: UsageReport) -> usage_service_pb2.GetLatencyDistributionResponse:
    """Without the token of the next page."""
    return usage_service_pb2.GetLatencyDistributionResponse(
        distributions=[_distribution_to_proto(one) for one in report.models],
        total=_distribution_to_proto(report.total),
        start_time=timestamp_to_proto(report.window.start),
        end_time=timestamp_to_proto(report.window.end),
    )


def _distribution_to_proto(usage: ModelUsage) -> usage_service_pb2.LatencyDistribution:
    return usage_service_pb2.LatencyDistribution(
        provider=usage.provider,
        model=usage.model,
        latency=_buckets_to_proto(usage.latency),
        time_to_first_token=_buckets_to_proto(usage.first_token),
    )


def _buckets_to_proto(durations: Durations) -> usage_service_pb2.DurationDistribution:
    buckets = []
    for bucket, count in enumerate(durations.histogram):
        if count:
            lower_ms, upper_ms = bounds_ms(bucket)
            message = usage_service_pb2.DurationBucket(count=count, lower_bound=_milliseconds_to_proto(lower_ms))
            if upper_ms is not None:
                message.upper_bound.CopyFrom(_milliseconds_to_proto(upper_ms))
            buckets.append(message)
    return usage_service_pb2.DurationDistribution(summary=durations_to_proto(durations), buckets=buckets)


def model_usage_to_proto(usage: ModelUsage) -> usage_service_pb2.UsageStats:
    outcomes = usage.outcomes
    return usage_service_pb2.UsageStats(
        provider=usage.provider,
        model=usage.model,
        requests=outcomes.requests,
        attempts=outcomes.attempts,
        succeeded=outcomes.succeeded,
        failed=outcomes.failed,
        rate_limited=outcomes.rate_limited,
        cancelled=outcomes.cancelled,
        absorbed=outcomes.absorbed,
        token_usage=tokens_to_proto(usage.tokens),
        total_tokens=usage.tokens.total_tokens,
        cost=cost_to_proto(usage.cost),
        latency=durations_to_proto(usage.latency),
        time_to_first_token=durations_to_proto(usage.first_token),
    )


def daily_cost_to_proto(one: DailyCost) -> usage_service_pb2.DailyCost:
    return usage_service_pb2.DailyCost(
        date=one.day.isoformat(),
        provider=one.provider,
        requests=one.requests,
        total_tokens=one.total_tokens,
        cost=cost_to_proto(one.cost),
    )


def failure_to_proto(failure: Failure) -> usage_service_pb2.ErrorSummary:
    return usage_service_pb2.ErrorSummary(
        provider=failure.key.provider,
        model=failure.key.model,
        status=_STATUS[failure.key.status],
        error_class=failure.key.error_class,
        occurrences=failure.occurrences,
        absorbed=failure.absorbed,
        first_seen_time=timestamp_to_proto(failure.first_seen),
        last_seen_time=timestamp_to_proto(failure.last_seen),
        cost=cost_to_proto(failure.cost),
        sample_message=failure.sample_message,
        cause=_CAUSE[cause_of(failure.key)],
    )


def record_to_proto(record: StoredRecord) -> usage_service_pb2.UsageRecord:
    return usage_service_pb2.UsageRecord(
        event=_event_to_proto(record),
        usage_time=timestamp_to_proto(record.used_at),
        ingest_time=timestamp_to_proto(record.ingested_at),
        cost_usd="" if record.cost_usd is None else usd_to_text(record.cost_usd),
        pricing_state=_PRICING[record.pricing_state],
        price_id="" if record.price_id is None else str(record.price_id),
        router_id=record.router_id,
    )


def _event_to_proto(record: StoredRecord) -> usage_event_pb2.UsageEvent:
    event = usage_event_pb2.UsageEvent(
        event_id=str(record.event_id),
        tenant_id=str(record.tenant_id),
        request_id=str(record.request_id),
        attempt=record.attempt,
        provider=record.provider,
        model=record.model,
        requested_model=record.requested_model,
        endpoint=record.endpoint,
        user_id=record.user_id,
        status=_STATUS[record.status],
        error_class=record.error_class,
        error_message=record.error_message,
        absorbed=record.absorbed,
        usage_source=_SOURCE[record.usage_source],
        funding=_FUNDING[record.funding],
        labels=record.labels,
        sequence=record.sequence,
        task_type=record.task_type,
        decision=record.decision,
    )
    # Absent stays absent: "nothing consumed" and "not measured" are no zeros.
    if record.tokens.total_tokens or record.usage_source is not UsageSource.NONE:
        event.token_usage.CopyFrom(tokens_to_proto(record.tokens))
    if record.latency_ms is not None:
        event.latency.CopyFrom(duration_to_proto(timedelta(milliseconds=record.latency_ms)))
    if record.first_token_ms is not None:
        event.time_to_first_token.CopyFrom(duration_to_proto(timedelta(milliseconds=record.first_token_ms)))
    if record.provider_cost_usd is not None:
        event.provider_reported_cost_usd = usd_to_text(record.provider_cost_usd)
    return event


def tokens_to_proto(tokens: TokenCounts) -> token_usage_pb2.TokenUsage:
    return token_usage_pb2.TokenUsage(
        input_tokens=tokens.input_tokens,
        output_tokens=tokens.output_tokens,
        cached_read_tokens=tokens.cached_read_tokens,
        cached_write_tokens=tokens.cached_write_tokens,
        reasoning_tokens=tokens.reasoning_tokens,
    )


def cost_to_proto(cost: Cost) -> usage_service_pb2.CostSummary:
    return usage_service_pb2.CostSummary(
        cost_usd=usd_to_text(cost.usd),
        exact_usd=usd_to_text(cost.exact_usd),
        estimated_usd=usd_to_text(cost.estimated_usd),
        unpriced_attempts=cost.unpriced_attempts,
        unpriced_tokens=cost.unpriced_tokens,
    )


def durations_to_proto(durations: Durations) -> usage_service_pb2.LatencySummary:
    """Mean and percentiles; without a sample they stay absent."""
    summary = usage_service_pb2.LatencySummary(sample_count=durations.count, relative_error_bound=RELATIVE_ERROR_BOUND)
    if durations.count:
        _set_nanoseconds(summary.average, durations.sum_ms * 1_000_000 // durations.count)
        fields = (summary.p50, summary.p90, summary.p95, summary.p99)
        for field, value_ms in zip(fields, percentiles_ms(durations.histogram, (0.5, 0.9, 0.95, 0.99)), strict=True):
            _set_nanoseconds(field, round(value_ms * 1e6))
    return summary


def timestamp_to_proto(instant: datetime) -> Timestamp:
    seconds, rest = divmod(instant - _EPOCH, timedelta(seconds=1))
    return Timestamp(seconds=seconds, nanos=rest.microseconds * 1000)


def instant_from_proto(timestamp: Timestamp) -> datetime:
    """Rounded up to the microsecond, which for usage times in whole milliseconds moves no event over the edge.

    Raises ValueError outside the years 1970 to 2199.
    """
    if not 0 <= timestamp.nanos < 1_000_000_000 or not 0 <= timestamp.seconds < _END_OF_TIME_S:
        raise ValueError("must lie between 1970 and 2199")
    return _EPOCH + timedelta(seconds=timestamp.seconds, microseconds=-(-timestamp.nanos // 1000))


_END_OF_TIME_S = int((datetime(2200, 1, 1, tzinfo=UTC) - _EPOCH).total_seconds())


def duration_to_proto(duration: timedelta) -> Duration:
    return _nanoseconds_to_proto(duration // timedelta(microseconds=1) * 1000)


def usd_to_text(amount: Decimal) -> str:
    """US dollars with 12 decimals, as the ledger keeps them."""
    return f"{amount:.12f}"


def _milliseconds_to_proto(milliseconds: int) -> Duration:
    return _nanoseconds_to_proto(milliseconds * 1_000_000)


def _nanoseconds_to_proto(nanoseconds: int) -> Duration:
    duration = Duration()
    _set_nanoseconds(duration, nanoseconds)
    return duration


def _set_nanoseconds(field: Duration, nanoseconds: int) -> None:
    """The field is present afterwards, also with 0. A report has fifty of them, and copying takes twice as long."""
    field.seconds, field.nanos = divmod(nanoseconds, 1_000_000_000)
