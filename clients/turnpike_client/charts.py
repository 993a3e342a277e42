"""What charts are drawn from: usage step by step, how latencies are distributed, and live totals."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from turnpike.usage.v1 import usage_service_pb2
from turnpike_client.accounting import LatencySummary, UsageStats


@dataclass(frozen=True, slots=True)
class UsagePoint:
    """Usage within one step, `start` included and `end` not. Names that were not asked for apart are empty."""

    start: datetime
    end: datetime
    usage: UsageStats
    proto: usage_service_pb2.UsagePoint = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class DurationBucket:
    """How many durations lie between two bounds, the upper one not included; None is no bound."""

    lower_bound: timedelta
    upper_bound: timedelta | None
    count: int


@dataclass(frozen=True, slots=True)
class DurationDistribution:
    """Percentiles, None where nothing was measured, and every bucket that is not empty, shortest first."""

    summary: LatencySummary | None
    buckets: tuple[DurationBucket, ...]


@dataclass(frozen=True, slots=True)
class LatencyDistribution:
    """How the durations of one group are distributed. Names that were not asked for apart are empty."""

    provider: str
    model: str
    latency: DurationDistribution
    time_to_first_token: DurationDistribution


@dataclass(frozen=True, slots=True)
class LatencyReport:
    """A tenant's distributions in a window, most requests first, and all of them together."""

    distributions: tuple[LatencyDistribution, ...]
    total: LatencyDistribution
    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class LiveUsage:
    """A tenant's totals in the window that ends now; `stats` are the groups that were asked for apart.

    `is_heartbeat`: nothing has changed since the one before. `as_of` is when the ledger was asked.
    """

    stats: tuple[UsageStats, ...]
    total: UsageStats
    start: datetime
    end: datetime
    as_of: datetime
    is_heartbeat: bool
