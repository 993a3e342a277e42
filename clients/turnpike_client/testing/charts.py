"""The fake ledger's charts: what it holds, step by step and by duration."""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from turnpike.usage.v1 import usage_event_pb2, usage_service_pb2
from turnpike_client.wire import to_timestamp

Events = list[usage_event_pb2.UsageEvent]
Key = TypeVar("Key", bound=Hashable)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS = {
    usage_service_pb2.TIME_STEP_MINUTE: timedelta(minutes=1),
    usage_service_pb2.TIME_STEP_HOUR: timedelta(hours=1),
    usage_service_pb2.TIME_STEP_DAY: timedelta(days=1),
}


def grouped(
    events: Iterable[usage_event_pb2.UsageEvent], key: Callable[[usage_event_pb2.UsageEvent], Key]
) -> dict[Key, Events]:
    """The events by what `key` says of each."""
    groups: dict[Key, Events] = defaultdict(list)
    for event in events:
        groups[key(event)].append(event)
    return groups


def used_at(event: usage_event_pb2.UsageEvent) -> Timestamp:
    """The usage time: the millisecond in the event's id."""
    stamp = Timestamp()
    stamp.FromMilliseconds(uuid.UUID(event.event_id).int >> 80)
    return stamp


def names(event: usage_event_pb2.UsageEvent, grouping: int) -> tuple[str, str]:
    """Provider and model as far as they are added up apart."""
    return (
        event.provider if grouping != usage_service_pb2.USAGE_GROUPING_NONE else "",
        event.model if grouping == usage_service_pb2.USAGE_GROUPING_MODEL else "",
    )


def points(
    events: Events,
    request: usage_service_pb2.QueryUsageTimeSeriesRequest,
    usage_of: Callable[[Events, str, str], usage_service_pb2.UsageStats],
) -> list[usage_service_pb2.UsagePoint]:
    """A point for each step and group that used something, summed up by `usage_of`; days are those of UTC."""
    grouping = request.grouping or usage_service_pb2.USAGE_GROUPING_NONE
    length = _UNITS.get(request.step, timedelta(hours=1)) * (request.step_count or 1)
    found = []
    for (start, provider, model), members in sorted(
        grouped(events, lambda event: (_floor(used_at(event).ToDatetime(UTC), length), *names(event, grouping))).items()
    ):
        usage = usage_of(members, provider, model)
        found.append(
            usage_service_pb2.UsagePoint(
                start_time=to_timestamp(start), end_time=to_timestamp(start + length), usage=usage
            )
        )
    return found


def distribution(
    events: Iterable[usage_event_pb2.UsageEvent], provider: str, model: str
) -> usage_service_pb2.LatencyDistribution:
    """The durations as they are: each its own bucket."""
    held = list(events)
    return usage_service_pb2.LatencyDistribution(
        provider=provider,
        model=model,
        latency=_durations(event.latency for event in held if event.HasField("latency")),
        time_to_first_token=_durations(
            event.time_to_first_token for event in held if event.HasField("time_to_first_token")
        ),
    )


def _durations(durations: Iterable[Duration]) -> usage_service_pb2.DurationDistribution:
    values_ms = sorted(duration.ToMilliseconds() for duration in durations)
    summary = usage_service_pb2.LatencySummary(sample_count=len(values_ms))
    if values_ms:
        summary.average.FromMilliseconds(sum(values_ms) // len(values_ms))
        for field, ratio in ((summary.p50, 0.5), (summary.p90, 0.9), (summary.p95, 0.95), (summary.p99, 0.99)):
            field.FromMilliseconds(values_ms[min(len(values_ms) - 1, int(ratio * len(values_ms)))])
    return usage_service_pb2.DurationDistribution(
        summary=summary,
        buckets=[
            usage_service_pb2.DurationBucket(lower_bound=_span(value), upper_bound=_span(value + 1), count=count)
            for value, count in sorted(Counter(values_ms).items())
        ],
    )


def _span(milliseconds: int) -> Duration:
    span = Duration()
    span.FromMilliseconds(milliseconds)
    return span


def _floor(instant: datetime, length: timedelta) -> datetime:
    return instant - (instant - _EPOCH) % length


def window(request: Any) -> dict[str, Any]:
    """The window as it was asked for, else the last day."""
    now = datetime.now(UTC)
    return {
        "start_time": request.start_time if request.HasField("start_time") else to_timestamp(now - timedelta(days=1)),
        "end_time": request.end_time if request.HasField("end_time") else to_timestamp(now),
    }
