"""Charts between the client's values and the wire."""

from __future__ import annotations

from turnpike.usage.v1 import usage_service_pb2
from turnpike_client.accounting_codec import latency_from_proto, stats_from_proto
from turnpike_client.charts import DurationBucket, DurationDistribution, LatencyDistribution, LiveUsage, UsagePoint
from turnpike_client.wire import instant, span


def point_from_proto(message: usage_service_pb2.UsagePoint) -> UsagePoint:
    """Usage within one step."""
    return UsagePoint(
        start=instant(message.start_time),
        end=instant(message.end_time),
        usage=stats_from_proto(message.usage),
        proto=message,
    )


def live_from_proto(message: usage_service_pb2.WatchUsageResponse) -> LiveUsage:
    """Live totals."""
    return LiveUsage(
        stats=tuple(stats_from_proto(stats) for stats in message.stats),
        total=stats_from_proto(message.total),
        start=instant(message.start_time),
        end=instant(message.end_time),
        as_of=instant(message.as_of_time),
        is_heartbeat=message.is_heartbeat,
    )


def distribution_from_proto(message: usage_service_pb2.LatencyDistribution) -> LatencyDistribution:
    """How the durations of one group are distributed."""
    return LatencyDistribution(
        provider=message.provider,
        model=message.model,
        latency=_durations_from_proto(message.latency),
        time_to_first_token=_durations_from_proto(message.time_to_first_token),
    )


def _durations_from_proto(message: usage_service_pb2.DurationDistribution) -> DurationDistribution:
    return DurationDistribution(
        summary=latency_from_proto(message.summary),
        buckets=tuple(
            DurationBucket(
                lower_bound=span(bucket.lower_bound),
                upper_bound=span(bucket.upper_bound) if bucket.HasField("upper_bound") else None,
                count=bucket.count,
            )
            for bucket in message.buckets
        ),
    )
