"""The books: usage, cost, errors, records, limits and prices.

Money is US dollars as Decimal; None means unknown, which is not zero. Windows are half open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal

from turnpike.usage.v1 import pricing_service_pb2, quota_service_pb2, usage_service_pb2
from turnpike_client.completions import TokenUsage
from turnpike_client.enums import (
    AttemptFilter,
    ErrorCause,
    Funding,
    LimitLevel,
    LimitMetric,
    PricingState,
    RecordDisposition,
    UsageSource,
    UsageStatus,
)


@dataclass(frozen=True, slots=True)
class UsageFilter:
    """What a report counts. Empty fields do not filter; Funding.NONE neither."""

    provider: str = ""
    model: str = ""
    attempts: AttemptFilter = AttemptFilter.ALL
    funding: Funding = Funding.NONE


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """Exact mean and percentiles of a duration; the percentiles are off by at most `relative_error_bound`."""

    sample_count: int
    average: timedelta
    p50: timedelta
    p90: timedelta
    p95: timedelta
    p99: timedelta
    relative_error_bound: float


@dataclass(frozen=True, slots=True)
class CostSummary:
    """Known cost, in its exact and its estimated part, and how much of the usage has no known price."""

    cost_usd: Decimal
    exact_usd: Decimal
    estimated_usd: Decimal
    unpriced_attempts: int
    unpriced_tokens: int


@dataclass(frozen=True, slots=True)
class UsageStats:
    """Usage of one provider and model; both are empty in a total. Latencies are None where nothing was measured."""

    provider: str
    model: str
    requests: int
    attempts: int
    succeeded: int
    failed: int
    rate_limited: int
    cancelled: int
    absorbed: int
    tokens: TokenUsage
    total_tokens: int
    cost: CostSummary
    latency: LatencySummary | None
    time_to_first_token: LatencySummary | None


@dataclass(frozen=True, slots=True)
class UsageReport:
    """A tenant's usage in a window, most requests first."""

    stats: tuple[UsageStats, ...]
    total: UsageStats
    start: datetime
    end: datetime
    proto: usage_service_pb2.GetTenantUsageStatsResponse = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class DailyCost:
    """Cost of one provider on one day, YYYY-MM-DD in the asked time zone."""

    date: str
    provider: str
    requests: int
    total_tokens: int
    cost: CostSummary
    proto: usage_service_pb2.DailyCost = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class ErrorSummary:
    """Failures of one kind; first and last seen to the minute."""

    provider: str
    model: str
    status: UsageStatus
    error_class: str
    occurrences: int
    absorbed: int
    first_seen: datetime
    last_seen: datetime
    cost: CostSummary
    sample_message: str
    cause: ErrorCause
    proto: usage_service_pb2.ErrorSummary = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class UsageEvent:
    """One attempt at a provider, as it is reported. `event_id` is a UUIDv7: its millisecond is the usage time.

    `decision` is the JSON that the router kept of how it ranked the candidates; empty when it kept none.
    """

    event_id: str
    tenant_id: str
    request_id: str
    provider: str
    model: str
    status: UsageStatus
    usage_source: UsageSource
    attempt: int = 1
    tokens: TokenUsage | None = None
    requested_model: str = ""
    endpoint: str = ""
    user_id: str = ""
    error_class: str = ""
    error_message: str = ""
    absorbed: bool = False
    funding: Funding = Funding.NONE
    latency: timedelta | None = None
    time_to_first_token: timedelta | None = None
    provider_reported_cost_usd: Decimal | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    task_type: str = ""
    decision: str = ""


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """One stored attempt. `cost_usd` is None and `price_id` empty when it is unpriced."""

    event: UsageEvent
    used_at: datetime
    stored_at: datetime
    cost_usd: Decimal | None
    pricing_state: PricingState
    price_id: str
    router_id: str
    proto: usage_service_pb2.UsageRecord = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class RecordResult:
    """What became of one event; `problem` is empty when it is stored."""

    event_id: str
    disposition: RecordDisposition
    cost_usd: Decimal | None
    pricing_state: PricingState
    problem: str
    proto: usage_service_pb2.RecordUsageResult = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class LimitStatus:
    """Position against one limit. Amounts are counts, or US dollars for LimitMetric.COST."""

    provider: str
    model: str
    metric: LimitMetric
    window: timedelta
    limit: Decimal
    used: Decimal
    remaining: Decimal
    usage_percent: float
    level: LimitLevel
    should_failover: bool
    resets_at: datetime
    is_override: bool


@dataclass(frozen=True, slots=True)
class LimitReport:
    """Position against every limit that applies, worst first; it may be reused for `valid_for`."""

    statuses: tuple[LimitStatus, ...]
    level: LimitLevel
    should_failover: bool
    as_of: datetime
    valid_for: timedelta
    proto: quota_service_pb2.CheckRateLimitStatusResponse = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class UsageLimit:
    """A limit of a tenant's own: a count, or US dollars for COST, per window. Without a model: all together."""

    tenant_id: str
    provider: str
    model: str
    metric: LimitMetric
    window: timedelta
    limit: Decimal
    updated_at: datetime
    proto: quota_service_pb2.UsageLimit = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class LimitChange:
    """A limit as it stands after it was set; `previous` is what it was, None when there was none."""

    limit: UsageLimit
    previous: Decimal | None
    proto: quota_service_pb2.SetLimitResponse = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Price:
    """An entry of the price book, in US dollars per million tokens.

    None for a cached class means "priced as input", for reasoning "priced as output"; `expires_at` None: still valid;
    `max_prompt_tokens` None: prompts of any length; `replaced_at` None: no other entry took its place.
    """

    price_id: str
    provider: str
    model: str
    input_usd_per_million: Decimal
    output_usd_per_million: Decimal
    cached_read_usd_per_million: Decimal | None
    cached_write_usd_per_million: Decimal | None
    reasoning_usd_per_million: Decimal | None
    effective_at: datetime
    expires_at: datetime | None
    source: str
    max_prompt_tokens: int | None
    replaced_at: datetime | None
    proto: pricing_service_pb2.Price = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class PriceChange:
    """A price as it stands after it was set, and the entry that it replaced, if any.

    `reprice_needed`: usage may have been booked with another price since it holds.
    """

    price: Price
    created: bool
    replaced: Price | None
    reprice_needed: bool
    proto: pricing_service_pb2.SetPriceResponse = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class RepriceReport:
    """What a run changed of stored usage, or in a dry run would change. The costs leave unpriced rows out."""

    job_id: str
    applied: bool
    scanned_rows: int
    changed_rows: int
    newly_priced_rows: int
    newly_unpriced_rows: int
    unpriced_rows: int
    old_cost_usd: Decimal
    new_cost_usd: Decimal
    delta_usd: Decimal


@dataclass(frozen=True, slots=True)
class CostAdjustment:
    """One correction of the cost of one attempt; a cost of None is unpriced, and then its price id is empty."""

    event_id: str
    used_at: datetime
    revision: int
    provider: str
    model: str
    old_cost_usd: Decimal | None
    old_price_id: str
    new_cost_usd: Decimal | None
    new_price_id: str
    delta_usd: Decimal
    reason: str
    job_id: str
    created_at: datetime
    proto: pricing_service_pb2.CostAdjustment = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class CostQuote:
    """What a number of tokens costs; all None when no price is known."""

    cost_usd: Decimal | None
    input_cost_usd: Decimal | None
    output_cost_usd: Decimal | None
    pricing_state: PricingState
    price: Price | None
    proto: pricing_service_pb2.CalculateCostResponse = field(repr=False, compare=False)
