"""Finds the price of what was used: the price book first, then what the vendors publish. Enters prices, too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import assert_never

from service_runtime.errors import Category, ServiceError
from usage_service.domain.pricing import Cost, ListedPrice, Price, PriceBook, Rates, TokenCounts, cost_of
from usage_service.metering.ports import PriceDiffers, PriceEntered, PriceStands, PriceStore, VendorPrices

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


@dataclass(frozen=True, slots=True)
class PriceSet:
    """A price as it stands after it was set.

    `created`: this call entered it, in the place of `replaced` if that is not None. `reprice_needed`: usage may have
    been booked with another price since its start.
    """

    listed: ListedPrice
    created: bool
    replaced: Price | None
    reprice_needed: bool


class Pricing:
    """The price book in memory. It is read anew by `refresh`, which somebody has to call now and then."""

    def __init__(
        self,
        *,
        store: PriceStore,
        vendors: VendorPrices,
        now: Callable[[], datetime],
        seen_within: timedelta = timedelta(seconds=15),
    ) -> None:
        """`seen_within`: how long it takes at most until every process has read a change of the book."""
        self._store = store
        self._vendors = vendors
        self._now = now
        self._seen_within = seen_within
        self._book = PriceBook()
        self._refreshes_begun = 0
        self._book_of_turn = 0
        self._is_loaded = False
        self._without_price: set[tuple[str, str]] = set()

    @property
    def book(self) -> PriceBook:
        """The latest snapshot."""
        return self._book

    async def refresh(self) -> None:
        """Read the price book anew. Raises `ServiceError` UNAVAILABLE; the last snapshot then stays.

        Reads overlap, and one that began earlier may end later: it does not put its older snapshot over a newer one.
        """
        self._refreshes_begun += 1
        turn = self._refreshes_begun
        book = PriceBook.of(await self._store.load())
        if turn > self._book_of_turn:
            self._book_of_turn, self._book = turn, book
        self._is_loaded = True

    async def book_for(self, uses: Iterable[ModelUse]) -> PriceBook:
        """A price book that names every used model whose price is known anywhere.

        A model that only the vendor prices gets an entry of its own, so that a ledger row can refer to it.
        """
        if not self._is_loaded:
            await self.refresh()  # the database was away at the start: an empty book would leave events unpriced
        offers = await self._offers(uses, self._book)
        if offers:
            await self._store.add(offers)
            await self.refresh()
        return self._book

    async def preview(self, uses: Iterable[ModelUse], book: PriceBook) -> PriceBook:
        """What `book_for` would make of `book`. Stores nothing: what it adds has no id."""
        offers = await self._offers(uses, book)
        return book.including(offers) if offers else book

    async def _offers(self, uses: Iterable[ModelUse], book: PriceBook) -> list[Price]:
        """The vendors' prices of the used models that `book` does not name, as entries for all time."""
        unnamed = {
            (use.provider, use.model) for use in uses if book.find(use.provider, use.model, use.used_at) is None
        } - self._without_price
        offers: list[Price] = []
        for provider, model in sorted(unnamed):
            offer = await self._vendors.quote(provider, model, self._now())
            if offer is None:
                self._remember_without_price(provider, model)
            else:
                offers.append(replace(offer, effective_at=_FIRST_ENTRY_EFFECTIVE_AT))
        return offers

    async def quote(self, provider: str, model: str, tokens: TokenCounts, at: datetime) -> Quote:
        """What tokens would cost at a time. Stores nothing."""
        if not self._is_loaded:
            await self.refresh()
        listed = self._book.find_listed(provider, model, at)
        if listed is None:
            offer = await self._vendors.quote(provider, model, at)
            listed = None if offer is None else ListedPrice(offer, expires_at=None)
        if listed is None:
            return Quote(None, None)
        cost = cost_of(tokens, listed.price.rates)
        return Quote(cost, None if cost is None else listed)

    async def set_price(
        self, provider: str, model: str, rates: Rates, *, effective_at: datetime | None, replace: bool, source: str
    ) -> PriceSet:
        """Enter a price that holds from `effective_at` on; None is now, unless the price in force is the same.

        The same price again changes nothing. Raises `ServiceError` ALREADY_EXISTS PRICE_DIFFERS when another one has
        the same start and `replace` is false, UNAVAILABLE when the database is away.
        """
        await self.refresh()
        now = self._now()
        in_force = self._book.find_own(provider, model, now)
        if effective_at is None and in_force is not None and in_force.rates == rates:
            return self._as_set(in_force, created=False, replaced=None)
        price = Price(None, provider, model, rates, effective_at or now, source)
        match await self._store.enter(price, replace=replace):
            case PriceEntered(entered, replaced):
                await self.refresh()
                return self._as_set(entered, created=True, replaced=replaced)
            case PriceStands(standing):
                await self.refresh()
                return self._as_set(standing, created=False, replaced=None)
            case PriceDiffers(standing):
                raise _differs(standing)
            case outcome:
                assert_never(outcome)

    async def history(self, provider: str, model: str) -> Sequence[ListedPrice]:
        """Every price of a model, latest start first, replaced ones after those that took their place."""
        return await self._store.history(provider, model)

    def _as_set(self, price: Price, *, created: bool, replaced: Price | None) -> PriceSet:
        # Another process may have replaced it meanwhile; then nothing is known of its end.
        listed = self._book.find_listed(price.provider, price.model, price.effective_at)
        return PriceSet(
            listed if listed is not None and listed.price == price else ListedPrice(price, expires_at=None),
            created,
            replaced,
            reprice_needed=price.effective_at <= self._now() + self._seen_within,
        )

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


def _differs(standing: Price) -> ServiceError:
    start = standing.effective_at.isoformat()
    return ServiceError(
        Category.ALREADY_EXISTS,
        "PRICE_DIFFERS",
        f"{standing.provider} {standing.model!r} has another price from {start} on: {standing.rates.input_usd:f} in, "
        f"{standing.rates.output_usd:f} out, from {standing.source!r}; set replace to put the new one in its place, "
        "or choose another effective_time",
        metadata={"price_id": str(standing.price_id), "effective_time": start},
    )
