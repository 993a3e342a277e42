"""Pricing stored usage anew: which rows have another price by today's book, and what that changes.

A row is compared with what it would be booked with now, price and all. So a second run finds nothing to do, and a cost
that is not its price times its tokens is found too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

from usage_service.domain.pricing import PriceBook, PricedUsage, PricingState, TokenCounts, price_usage
from usage_service.domain.window import Grain


class RollupKey(NamedTuple):
    """The rollup row that an attempt is counted in, without the tenant."""

    bucket: datetime
    provider: str
    model: str
    status: str
    error_class: str
    funding: str
    absorbed: bool
    usage_source: str


@dataclass(frozen=True, slots=True)
class BookedUsage:
    """What a row of the ledger says of one attempt, as far as its price and its place in the rollups go."""

    tenant_id: UUID
    event_id: UUID
    used_at: datetime
    provider: str
    model: str
    status: str
    error_class: str
    funding: str
    absorbed: bool
    usage_source: str
    tokens: TokenCounts
    priced: PricedUsage

    def rollup_key(self, grain: Grain) -> RollupKey:
        """Where the attempt is counted in the rollup of this grain."""
        return RollupKey(
            grain.floor(self.used_at),
            self.provider,
            self.model,
            self.status,
            self.error_class,
            self.funding,
            self.absorbed,
            self.usage_source,
        )


@dataclass(frozen=True, slots=True)
class Correction:
    """An attempt that is booked with one price and should be with another."""

    usage: BookedUsage
    corrected: PricedUsage

    @property
    def delta_usd(self) -> Decimal:
        """What it adds to every sum; an unpriced side counts as 0, as it does there."""
        return (self.corrected.cost_usd or Decimal(0)) - (self.usage.priced.cost_usd or Decimal(0))

    @property
    def delta_unpriced_attempts(self) -> int:
        """1 when the price was lost, -1 when it was found."""
        return _is_unpriced(self.corrected) - _is_unpriced(self.usage.priced)


@dataclass(frozen=True, slots=True)
class RollupChange:
    """What corrections add to one rollup row."""

    cost_usd: Decimal = Decimal(0)
    unpriced_attempts: int = 0
    unpriced_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Adjustment:
    """A correction as it was appended to the books: the `revision`th of its attempt, counted from 1."""

    event_id: UUID
    used_at: datetime
    revision: int
    provider: str
    model: str
    old_cost_usd: Decimal | None
    old_price_id: int | None
    new_cost_usd: Decimal | None
    new_price_id: int | None
    delta_usd: Decimal
    reason: str
    job_id: UUID
    created_at: datetime


@dataclass(frozen=True, slots=True)
class RepriceSummary:
    """What became of rows that were looked at. The costs leave unpriced rows out."""

    scanned_rows: int = 0
    changed_rows: int = 0
    newly_priced_rows: int = 0
    newly_unpriced_rows: int = 0
    unpriced_rows: int = 0
    old_cost_usd: Decimal = Decimal(0)
    new_cost_usd: Decimal = Decimal(0)

    @property
    def delta_usd(self) -> Decimal:
        return self.new_cost_usd - self.old_cost_usd

    @classmethod
    def of(cls, rows: Sequence[BookedUsage], corrections: Sequence[Correction]) -> RepriceSummary:
        """Of rows, of which some are corrected."""
        old_cost_usd = sum((row.priced.cost_usd or Decimal(0) for row in rows), start=Decimal(0))
        changes = [one.delta_unpriced_attempts for one in corrections]
        return cls(
            scanned_rows=len(rows),
            changed_rows=len(corrections),
            newly_priced_rows=changes.count(-1),
            newly_unpriced_rows=changes.count(1),
            unpriced_rows=sum(_is_unpriced(row.priced) for row in rows) + sum(changes),
            old_cost_usd=old_cost_usd,
            new_cost_usd=old_cost_usd + sum((one.delta_usd for one in corrections), start=Decimal(0)),
        )

    def __add__(self, other: RepriceSummary) -> RepriceSummary:
        return RepriceSummary(
            self.scanned_rows + other.scanned_rows,
            self.changed_rows + other.changed_rows,
            self.newly_priced_rows + other.newly_priced_rows,
            self.newly_unpriced_rows + other.newly_unpriced_rows,
            self.unpriced_rows + other.unpriced_rows,
            self.old_cost_usd + other.old_cost_usd,
            self.new_cost_usd + other.new_cost_usd,
        )


def corrections_of(rows: Iterable[BookedUsage], book: PriceBook) -> list[Correction]:
    """The rows that are not booked as `book` says."""
    found = []
    for row in rows:
        price = book.find(row.provider, row.model, row.used_at) if row.tokens.total_tokens else None
        corrected = price_usage(row.tokens, price)
        if corrected != row.priced:
            found.append(Correction(row, corrected))
    return found


def rollup_changes(corrections: Iterable[Correction], grain: Grain) -> Mapping[RollupKey, RollupChange]:
    """What the corrections add to each row of the rollup of this grain."""
    changes: dict[RollupKey, RollupChange] = {}
    for one in corrections:
        key = one.usage.rollup_key(grain)
        before = changes.get(key, RollupChange())
        changes[key] = RollupChange(
            before.cost_usd + one.delta_usd,
            before.unpriced_attempts + one.delta_unpriced_attempts,
            before.unpriced_tokens + one.delta_unpriced_attempts * one.usage.tokens.total_tokens,
        )
    return changes


def _is_unpriced(priced: PricedUsage) -> bool:
    return priced.state is PricingState.UNPRICED
