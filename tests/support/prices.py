"""A price book and a vendor's price list in memory."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal

from usage_service.domain.pricing import ListedPrice, Price, Rates
from usage_service.metering.ports import PriceDiffers, PriceEntered, PriceStands

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
    replaced: list[ListedPrice] = field(default_factory=list)
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

    async def enter(self, price: Price, *, replace: bool) -> PriceEntered | PriceStands | PriceDiffers:
        standing = self._standing(price)
        if standing is not None and standing.rates == price.rates:
            return PriceStands(standing)
        if standing is not None and not replace:
            return PriceDiffers(standing)
        if standing is not None:
            self.entries.remove(standing)
            self.replaced.append(ListedPrice(standing, expires_at=None, replaced_at=EARLY))
        await self.add([price])
        return PriceEntered(self.entries[-1], standing)

    async def history(self, provider: str, model: str) -> list[ListedPrice]:
        ever = [*(ListedPrice(entry, expires_at=None) for entry in self.entries), *self.replaced]
        return sorted(
            (one for one in ever if (one.price.provider, one.price.model) == (provider, model)),
            key=lambda one: (one.price.effective_at, one.price.price_id or 0),
            reverse=True,
        )

    def _standing(self, price: Price) -> Price | None:
        for entry in self.entries:
            same_start = entry.effective_at == price.effective_at
            if same_start and (entry.provider, entry.model) == (price.provider, price.model):
                return entry
        return None


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
