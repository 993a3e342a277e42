"""Limits and positions against them as they stand in answers."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal

from service_runtime.error_codec import to_status
from service_runtime.errors import ServiceError
from turnpike.usage.v1 import quota_service_pb2
from usage_service.api.convert_reports import duration_to_proto, timestamp_to_proto, usd_to_text
from usage_service.domain.rate_limit import LimitLevel, LimitMetric, LimitPosition, TenantLimit
from usage_service.metering.limiting import LimitStatus

_METRIC = {metric: quota_service_pb2.LimitMetric.Value(f"LIMIT_METRIC_{metric.name}") for metric in LimitMetric}
_LEVEL = {level: quota_service_pb2.LimitLevel.Value(f"LIMIT_LEVEL_{level.name}") for level in LimitLevel}
METRIC_FROM_PROTO: Mapping[int, LimitMetric] = {number: metric for metric, number in _METRIC.items()}


def limit_status_to_proto(status: LimitStatus) -> quota_service_pb2.CheckRateLimitStatusResponse:
    """A tenant's position against all limits that apply."""
    return quota_service_pb2.CheckRateLimitStatusResponse(
        statuses=[limit_position_to_proto(one) for one in status.positions],
        level=_LEVEL[status.level],
        should_failover=status.should_failover,
        as_of_time=timestamp_to_proto(status.as_of),
        valid_for=duration_to_proto(status.valid_for),
    )


def tenant_status_to_proto(
    tenant_id: str, status: LimitStatus | ServiceError
) -> quota_service_pb2.TenantRateLimitStatus:
    """One tenant's entry among those of many; `tenant_id` as it was asked for."""
    if isinstance(status, ServiceError):
        return quota_service_pb2.TenantRateLimitStatus(tenant_id=tenant_id, error=to_status(status))
    return quota_service_pb2.TenantRateLimitStatus(tenant_id=tenant_id, status=limit_status_to_proto(status))


def limit_position_to_proto(position: LimitPosition) -> quota_service_pb2.RateLimitStatus:
    """A tenant's position against one limit."""
    rule = position.rule
    return quota_service_pb2.RateLimitStatus(
        provider=rule.provider,
        model=rule.model,
        metric=_METRIC[rule.metric],
        window=duration_to_proto(timedelta(seconds=rule.window_s)),
        limit=limit_amount_to_text(rule.metric, rule.limit),
        used=limit_amount_to_text(rule.metric, position.used),
        remaining=limit_amount_to_text(rule.metric, position.remaining),
        usage_percent=position.usage_ratio * 100,
        level=_LEVEL[position.level],
        should_failover=position.should_failover,
        reset_time=timestamp_to_proto(position.reset_at),
        is_override=rule.is_override,
    )


def usage_limit_to_proto(limit: TenantLimit) -> quota_service_pb2.UsageLimit:
    """A limit of a tenant's own."""
    rule = limit.rule
    return quota_service_pb2.UsageLimit(
        tenant_id=str(limit.tenant_id),
        provider=rule.provider,
        model=rule.model,
        metric=_METRIC[rule.metric],
        window=duration_to_proto(timedelta(seconds=rule.window_s)),
        limit=limit_amount_to_text(rule.metric, rule.limit),
        update_time=timestamp_to_proto(limit.updated_at),
    )


def limit_amount_to_text(metric: LimitMetric, amount: Decimal) -> str:
    """A count, or US dollars with 12 decimals."""
    if metric is LimitMetric.COST:
        return usd_to_text(amount)
    return str(int(amount)) if amount == amount.to_integral_value() else f"{amount.normalize():f}"
