"""A price book and a vendor's price list in memory."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal

from usage_service.domain.pricing import Price, Rates

EARLY = datetime(2020, 1, 1, tzinfo=UTC)


def price_of(
    provider: str, model: str, input_usd: str, output_usd: str, *, since: datetime = EARLY, source: str = "seed"
) -> Price:
    """A price that stands in no book yet."""
    return Price(None, provider, model, Rates(Decimal(input_usd), Decimal(output_usd)), since, source)


@dataclass
class StoredPrices:
    """A price book that gives ids and takes each (provider, model, start) once, as the table does."""

    entries: list[Price] = field(default_factory=list)
    _ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def load(self) -> list[Price]:
        return list(self.entries)

    async def add(self, prices: Sequence[Price]) -> None:
        taken = {(entry.provider, entry.model, entry.effective_at) for entry in self.entries}
        self.entries.extend(
            replace(price, price_id=next(self._ids))
            for price in prices
            if (price.provider, price.model, price.effective_at) not in taken
        )


@dataclass
class PublishedPrices:
    """What vendors publish; counts how often it was asked."""

    rates: Mapping[tuple[str, str], Rates] = field(default_factory=dict)
    source: str = "list 1.0"
    questions: int = 0

    async def quote(self, provider: str, model: str, at: datetime) -> Price | None:
        self.questions += 1
        rates = self.rates.get((provider, model))
        return None if rates is None else Price(None, provider, model, rates, at, self.source)
