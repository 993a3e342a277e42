"""What the reports answer, as values.

Rollups and rows become these in `storage`, protos are made of them in `api`; sums of them are exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from uuid import UUID

from usage_service.domain import histogram
from usage_service.domain.pricing import PricingState, TokenCounts
from usage_service.domain.usage_event import AttemptStatus, Funding, UsageSource
from usage_service.domain.window import Window


@dataclass(frozen=True, slots=True)
class UsageFilter:
    """What a report counts. Empty and None do not filter; `provider` is a catalogue name."""

    provider: str = ""
    model: str = ""
    absorbed: bool | None = None
    funding: Funding = Funding.NO_KEY


@dataclass(frozen=True, slots=True)
class Cost:
    """Money in US dollars by how sure it is. `unpriced` attempts consumed tokens for which no price is known."""

    exact_usd: Decimal = Decimal(0)
    estimated_usd: Decimal = Decimal(0)
    unpriced_attempts: int = 0
    unpriced_tokens: int = 0

    @property
    def usd(self) -> Decimal:
        return self.exact_usd + self.estimated_usd

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.exact_usd + other.exact_usd,
            self.estimated_usd + other.estimated_usd,
            self.unpriced_attempts + other.unpriced_attempts,
            self.unpriced_tokens + other.unpriced_tokens,
        )


@dataclass(frozen=True, slots=True)
class Durations:
    """Measured durations: how many, their exact sum in ms, and their histogram."""

    count: int = 0
    sum_ms: int = 0
    histogram: Sequence[int] = ()

    def __add__(self, other: Durations) -> Durations:
        return Durations(
            self.count + other.count, self.sum_ms + other.sum_ms, histogram.add(self.histogram, other.histogram)
        )


@dataclass(frozen=True, slots=True)
class Outcomes:
    """How attempts ended. `requests` are the attempts that failover did not absorb; `failed` includes interrupted."""

    requests: int = 0
    attempts: int = 0
    succeeded: int = 0
    failed: int = 0
    rate_limited: int = 0
    cancelled: int = 0
    absorbed: int = 0

    def __add__(self, other: Outcomes) -> Outcomes:
        return Outcomes(
            requests=self.requests + other.requests,
            attempts=self.attempts + other.attempts,
            succeeded=self.succeeded + other.succeeded,
            failed=self.failed + other.failed,
            rate_limited=self.rate_limited + other.rate_limited,
            cancelled=self.cancelled + other.cancelled,
            absorbed=self.absorbed + other.absorbed,
        )


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """Usage of one provider and model; in a total both names are empty."""

    provider: str = ""
    model: str = ""
    outcomes: Outcomes = field(default_factory=Outcomes)
    tokens: TokenCounts = field(default_factory=TokenCounts)
    cost: Cost = field(default_factory=Cost)
    latency: Durations = field(default_factory=Durations)
    first_token: Durations = field(default_factory=Durations)


@dataclass(frozen=True, slots=True)
class UsageReport:
    """A tenant's usage by provider and model, most requests first, and the window that it covers."""

    window: Window
    models: Sequence[ModelUsage]

    @property
    def total(self) -> ModelUsage:
        """All models together."""
        outcomes, tokens, cost = Outcomes(), TokenCounts(), Cost()
        latency, first_token = Durations(), Durations()
        for one in self.models:
            outcomes += one.outcomes
            tokens = _added(tokens, one.tokens)
            cost += one.cost
            latency += one.latency
            first_token += one.first_token
        return ModelUsage("", "", outcomes, tokens, cost, latency, first_token)


@dataclass(frozen=True, slots=True)
class DailyCost:
    """Cost of one provider on one day of the asked calendar."""

    day: date
    provider: str
    requests: int
    total_tokens: int
    cost: Cost


@dataclass(frozen=True, slots=True)
class FailureKey:
    """What tells one kind of failure from another."""

    provider: str
    model: str
    status: AttemptStatus
    error_class: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Failures of one kind. The times are starts of buckets: to the minute, or as fine as is still kept."""

    key: FailureKey
    occurrences: int
    absorbed: int
    first_seen: datetime
    last_seen: datetime
    cost: Cost
    sample_message: str


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """One row of the ledger."""

    event_id: UUID
    tenant_id: UUID
    request_id: UUID
    used_at: datetime
    ingested_at: datetime
    attempt: int
    provider: str
    model: str
    requested_model: str
    endpoint: str
    user_id: str
    status: AttemptStatus
    error_class: str
    error_message: str
    absorbed: bool
    tokens: TokenCounts
    usage_source: UsageSource
    funding: Funding
    latency_ms: int | None
    first_token_ms: int | None
    provider_cost_usd: Decimal | None
    cost_usd: Decimal | None
    pricing_state: PricingState
    price_id: int | None
    router_id: str
    sequence: int
    labels: Mapping[str, str]
    task_type: str
    decision: str


def _added(one: TokenCounts, other: TokenCounts) -> TokenCounts:
    return TokenCounts(
        input_tokens=one.input_tokens + other.input_tokens,
        output_tokens=one.output_tokens + other.output_tokens,
        cached_read_tokens=one.cached_read_tokens + other.cached_read_tokens,
        cached_write_tokens=one.cached_write_tokens + other.cached_write_tokens,
        reasoning_tokens=one.reasoning_tokens + other.reasoning_tokens,
    )
