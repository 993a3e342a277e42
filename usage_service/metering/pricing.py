"""Finds the price of what was used: the price book first, then what the vendors publish."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from usage_service.domain.pricing import Cost, ListedPrice, Price, PriceBook, TokenCounts, cost_of
from usage_service.metering.ports import PriceStore, VendorPrices

# A published price that is entered at its first use holds for all events that may still arrive. It is the seeded
# prices' date, so that services that enter it at the same moment enter the same row.
_FIRST_ENTRY_EFFECTIVE_AT = datetime(2020, 1, 1, tzinfo=UTC)
# Bounds the memory for names that nobody publishes a price for; past it they are looked up again.
_MAX_REMEMBERED_UNKNOWN_MODELS = 10_000


@dataclass(frozen=True, slots=True)
class ModelUse:
    """A model that was used, and when."""

    provider: str
    model: str
    used_at: datetime


@dataclass(frozen=True, slots=True)
class Quote:
    """An answer to "what would these tokens cost": both None when unpriced."""

    cost: Cost | None
    listed: ListedPrice | None


class Pricing:
    """The price book in memory. It is read anew by `refresh`, which somebody has to call now and then."""

    def __init__(self, *, store: PriceStore, vendors: VendorPrices, now: Callable[[], datetime]) -> None:
        self._store = store
        self._vendors = vendors
        self._now = now
        self._book = PriceBook()
        self._without_price: set[tuple[str, str]] = set()

    @property
    def book(self) -> PriceBook:
        """The latest snapshot."""
        return self._book

    async def refresh(self) -> None:
        """Read the price book anew. Raises `ServiceError` UNAVAILABLE; the last snapshot then stays."""
        self._book = PriceBook.of(await self._store.load())

    async def book_for(self, uses: Iterable[ModelUse]) -> PriceBook:
        """A price book that names every used model whose price is known anywhere.

        A model that only the vendor prices gets an entry of its own, so that a ledger row can refer to it.
        """
        unnamed = {
            (use.provider, use.model) for use in uses if self._book.find(use.provider, use.model, use.used_at) is None
        } - self._without_price
        if not unnamed:
            return self._book
        offers: list[Price] = []
        for provider, model in sorted(unnamed):
            offer = await self._vendors.quote(provider, model, self._now())
            if offer is None:
                self._remember_without_price(provider, model)
            else:
                offers.append(replace(offer, effective_at=_FIRST_ENTRY_EFFECTIVE_AT))
        if offers:
            await self._store.add(offers)
            await self.refresh()
        return self._book

    async def quote(self, provider: str, model: str, tokens: TokenCounts, at: datetime) -> Quote:
        """What tokens would cost at a time. Stores nothing."""
        listed = self._book.find_listed(provider, model, at)
        if listed is None:
            offer = await self._vendors.quote(provider, model, at)
            listed = None if offer is None else ListedPrice(offer, expires_at=None)
        if listed is None:
            return Quote(None, None)
        cost = cost_of(tokens, listed.price.rates)
        return Quote(cost, None if cost is None else listed)

    async def follow_vendors(self) -> int:
        """Bring entries that came from an older edition of the vendors' prices up to date; returns how many changed.

        A changed price holds from now on: what was used before keeps the price it was booked with.
        """
        now = self._now()
        changed: list[Price] = []
        origin = self._vendors.source.partition(" ")[0]
        for entry in self._book.latest():
            if entry.source == self._vendors.source or entry.source.partition(" ")[0] != origin:
                continue
            offer = await self._vendors.quote(entry.provider, entry.model, now)
            if offer is not None and offer.rates != entry.rates:
                changed.append(replace(offer, effective_at=now))
        if changed:
            await self._store.add(changed)
            await self.refresh()
        return len(changed)

    def _remember_without_price(self, provider: str, model: str) -> None:
        if len(self._without_price) >= _MAX_REMEMBERED_UNKNOWN_MODELS:
            self._without_price.clear()
        self._without_price.add((provider, model))
