"""What reports and limits need from the ledger. `storage` fits these; tests bring their own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Protocol
from uuid import UUID

from service_runtime.errors import ServiceError
from usage_service.domain.rate_limit import Consumption, LimitKey, LimitRule, ToldLevel
from usage_service.domain.report import (
    DailyCost,
    Failure,
    FailureKey,
    GroupedUsage,
    Grouping,
    ModelUsage,
    StoredRecord,
    UsageFilter,
    UsagePoint,
)
from usage_service.domain.steps import Step
from usage_service.domain.window import KeptGrains, LocalDay, Tile, Window

Consumed = Mapping[tuple[int, str, str], Consumption]
"""What a tenant used, by key of the window, provider and model."""


@dataclass(frozen=True, slots=True)
class AfterDailyCost:
    """The last entry of a page of daily costs."""

    day: date
    cost_usd: Decimal
    provider: str


@dataclass(frozen=True, slots=True)
class AfterFailure:
    """The last entry of a page of failures."""

    occurrences: int
    key: FailureKey


@dataclass(frozen=True, slots=True)
class AfterRecord:
    """The last entry of a page of records."""

    used_at: datetime
    event_id: UUID


@dataclass(frozen=True, slots=True)
class AfterGroup:
    """The last entry of a page of usage by group."""

    requests: int
    attempts: int
    provider: str
    model: str


@dataclass(frozen=True, slots=True)
class AfterStep:
    """Where the next page of a time series begins, and the step that the first one resolved."""

    resume_at: datetime
    step: Step


class Rollups(Protocol):
    """Sums over the rollups. `tiles` are disjoint; each method reads one state of the ledger."""

    async def usage_by_group(
        self, tenant_id: UUID, tiles: Sequence[Tile], only: UsageFilter, *, grouping: Grouping, limit: int
    ) -> Sequence[ModelUsage]:
        """At most `limit` groups, most requests first."""
        ...

    async def page_of_usage_by_group(
        self,
        tenant_id: UUID,
        tiles: Sequence[Tile],
        only: UsageFilter,
        *,
        grouping: Grouping,
        after: AfterGroup | None,
        limit: int,
    ) -> GroupedUsage:
        """At most `limit` groups after `after`, most requests first, and the total of all groups."""
        ...

    async def usage_by_step(
        self, tenant_id: UUID, steps: Sequence[Window], only: UsageFilter, *, grouping: Grouping, limit: int
    ) -> Sequence[UsagePoint]:
        """At most `limit` points by step, provider and model, none for what is empty. `steps` follow one another."""
        ...

    async def costs_by_day(
        self, tenant_id: UUID, days: Sequence[LocalDay], only: UsageFilter, *, after: AfterDailyCost | None, limit: int
    ) -> Sequence[DailyCost]:
        """At most `limit` entries after `after`: newest day first, then highest cost, then provider."""
        ...

    async def failures(
        self,
        tenant_id: UUID,
        tiles: Sequence[Tile],
        only: UsageFilter,
        *,
        kept: KeptGrains,
        after: AfterFailure | None,
        limit: int,
    ) -> Sequence[Failure]:
        """At most `limit` kinds of failure after `after`, most frequent first, each with a message from its rows.

        `kept` says how finely the first and the last occurrence can be told.
        """
        ...

    async def consumption(self, windows: Mapping[UUID, Mapping[int, Sequence[Tile]]]) -> Mapping[UUID, Consumed]:
        """What each tenant used in its windows; those that used nothing are left out. One question for all of them."""
        ...


class Records(Protocol):
    """Single rows of the ledger."""

    async def newest(
        self,
        tenant_id: UUID,
        window: Window,
        only: UsageFilter,
        *,
        request_id: UUID | None,
        after: AfterRecord | None,
        limit: int,
    ) -> Sequence[StoredRecord]:
        """At most `limit` rows after `after`, newest first."""
        ...


class Limits(Protocol):
    """The tenants' own limits. Each is one question, of however many tenants; those without an answer are left out."""

    async def of_tenants(self, tenant_ids: Collection[UUID]) -> Mapping[UUID, Sequence[LimitRule] | ServiceError]:
        """The tenants' own limits; FAILED_PRECONDITION LIMIT_INVALID, naming the limit, for one that cannot be used."""
        ...

    async def told_levels(self, tenant_ids: Collection[UUID]) -> Mapping[UUID, Mapping[LimitKey, ToldLevel]]:
        """The levels that were last told of the tenants' limits, of whatever window; HEALTHY ones are left out."""
        ...

    async def tell_levels(self, changes: Mapping[UUID, Sequence[LevelChange]]) -> None:
        """Remember what is told now, for every replica; what another has told meanwhile stays where it is worse."""
        ...

    async def recent_consumption(self, windows: Mapping[UUID, Mapping[int, Window]]) -> Mapping[UUID, Consumed]:
        """What each tenant used in its windows, from rows: for those of less than a minute."""
        ...


@dataclass(frozen=True, slots=True)
class LevelChange:
    """A level that differs from the one told last, which is None when there was none of any window."""

    key: LimitKey
    before: ToldLevel | None
    now: ToldLevel
