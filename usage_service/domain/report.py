"""What the reports answer, as values.

Rollups and rows become these in `storage`, protos are made of them in `api`; sums of them are exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from functools import reduce
from typing import Any, NamedTuple
from uuid import UUID

from usage_service.domain import histogram
from usage_service.domain.pricing import PricingState, TokenCounts
from usage_service.domain.steps import Step
from usage_service.domain.usage_event import AttemptStatus, Funding, UsageSource
from usage_service.domain.window import Window


@dataclass(frozen=True, slots=True)
class UsageFilter:
    """What a report counts. Empty and None do not filter; `provider` is a catalogue name."""

    provider: str = ""
    model: str = ""
    absorbed: bool | None = None
    funding: Funding = Funding.NO_KEY


class Cost(NamedTuple):
    """Money in US dollars by how sure it is. `unpriced` attempts consumed tokens for which no price is known."""

    exact_usd: Decimal = Decimal(0)
    estimated_usd: Decimal = Decimal(0)
    unpriced_attempts: int = 0
    unpriced_tokens: int = 0

    @property
    def usd(self) -> Decimal:
        return self.exact_usd + self.estimated_usd


@dataclass(frozen=True, slots=True)
class Durations:
    """Measured durations: how many, their exact sum in ms, and their histogram."""

    count: int = 0
    sum_ms: int = 0
    histogram: Sequence[int] = ()


class Outcomes(NamedTuple):
    """How attempts ended. `requests` are the attempts that failover did not absorb; `failed` includes interrupted."""

    requests: int = 0
    attempts: int = 0
    succeeded: int = 0
    failed: int = 0
    rate_limited: int = 0
    cancelled: int = 0
    absorbed: int = 0


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """Usage of one provider and model. A name that was not added up apart is empty: in a total both are."""

    provider: str = ""
    model: str = ""
    outcomes: Outcomes = field(default_factory=Outcomes)
    tokens: TokenCounts = field(default_factory=TokenCounts)
    cost: Cost = field(default_factory=Cost)
    latency: Durations = field(default_factory=Durations)
    first_token: Durations = field(default_factory=Durations)


def total_of(groups: Sequence[ModelUsage]) -> ModelUsage:
    """All groups together."""
    return ModelUsage(
        outcomes=Outcomes(*_sums(group.outcomes for group in groups)),
        tokens=TokenCounts(*_sums(group.tokens for group in groups)),
        cost=Cost(*_sums(group.cost for group in groups)),
        latency=_all([group.latency for group in groups]),
        first_token=_all([group.first_token for group in groups]),
    )


def _sums(rows: Iterable[tuple[Any, ...]]) -> Iterable[Any]:
    """The sum of each column."""
    return map(sum, zip(*rows, strict=True))


def _all(durations: Sequence[Durations]) -> Durations:
    return Durations(
        count=sum(one.count for one in durations),
        sum_ms=sum(one.sum_ms for one in durations),
        histogram=reduce(histogram.add, (one.histogram for one in durations), ()),
    )


class Grouping(Enum):
    """What a report adds up apart."""

    NONE = "none"
    PROVIDER = "provider"
    MODEL = "model"

    @property
    def by_provider(self) -> bool:
        return self is not Grouping.NONE

    @property
    def by_model(self) -> bool:
        return self is Grouping.MODEL


@dataclass(frozen=True, slots=True)
class GroupedUsage:
    """Some groups, most requests first, and the total of all groups, those that are not among them included."""

    groups: Sequence[ModelUsage]
    total: ModelUsage


@dataclass(frozen=True, slots=True)
class UsageReport:
    """A page of a tenant's usage by group, most requests first, the total of all pages, and the window it covers."""

    window: Window
    models: Sequence[ModelUsage]
    total: ModelUsage
    has_more: bool = False


@dataclass(frozen=True, slots=True)
class UsagePoint:
    """Usage of one group within one step."""

    window: Window
    usage: ModelUsage


@dataclass(frozen=True, slots=True)
class UsageSeries:
    """A page of steps, oldest first; `resume_at` is where the next page begins, None on the last."""

    window: Window
    step: Step
    points: Sequence[UsagePoint]
    resume_at: datetime | None


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
