"""Finding the price of what was used."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from tests.support.prices import EARLY, PublishedPrices, StoredPrices, price_of
from usage_service.domain.pricing import Price, Rates, TokenCounts
from usage_service.metering.pricing import ModelUse, Pricing

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
CHEAP, DEAR = Rates(Decimal(1), Decimal(2)), Rates(Decimal(3), Decimal(4))
USE = ModelUse("openrouter", "acme/new", NOW)
TOKENS = TokenCounts(input_tokens=1_000_000, output_tokens=1_000_000)


async def pricing(store: StoredPrices, vendors: PublishedPrices) -> Pricing:
    pricing = Pricing(store=store, vendors=vendors, now=lambda: NOW)
    await pricing.refresh()
    return pricing


async def test_a_model_in_the_book_is_priced_without_asking_anybody() -> None:
    store, vendors = StoredPrices(), PublishedPrices({("openrouter", "acme/new"): DEAR})
    await store.add([price_of("openrouter", "acme/new", "1", "2")])

    book = await (await pricing(store, vendors)).book_for([USE])

    found = book.find("openrouter", "acme/new", NOW)
    assert found is not None
    assert (found.rates, found.source) == (CHEAP, "seed")
    assert vendors.questions == 0


async def test_a_model_that_only_its_vendor_prices_is_entered_at_its_first_use() -> None:
    store, vendors = StoredPrices(), PublishedPrices({("openrouter", "acme/new"): CHEAP})
    finder = await pricing(store, vendors)

    for _ in range(2):
        book = await finder.book_for([USE, ModelUse("openrouter", "acme/new", NOW - timedelta(days=30))])

    assert [(entry.source, entry.price_id, entry.effective_at) for entry in store.entries] == [("list 1.0", 1, EARLY)]
    assert book.find("openrouter", "acme/new", NOW - timedelta(days=30)) == store.entries[0]
    assert vendors.questions == 1


async def test_a_model_that_nobody_prices_is_asked_for_once() -> None:
    vendors = PublishedPrices()
    finder = await pricing(StoredPrices(), vendors)

    for _ in range(3):
        book = await finder.book_for([USE])

    assert book.find("openrouter", "acme/new", NOW) is None
    assert vendors.questions == 1


async def test_a_price_that_an_operator_enters_is_seen_after_a_refresh() -> None:
    store = StoredPrices()
    finder = await pricing(store, PublishedPrices())
    await finder.book_for([USE])
    await store.add([price_of("openrouter", "acme/new", "1", "2", source="operator")])

    await finder.refresh()

    assert (await finder.book_for([USE])).find("openrouter", "acme/new", NOW) == store.entries[0]


async def test_a_quote_stores_nothing() -> None:
    store, vendors = StoredPrices(), PublishedPrices({("openrouter", "acme/new"): CHEAP})

    quote = await (await pricing(store, vendors)).quote("openrouter", "acme/new", TOKENS, NOW)

    assert quote.cost is not None
    assert quote.cost.total_usd == 3
    assert quote.listed is not None
    assert quote.listed.price.price_id is None
    assert store.entries == []


async def test_a_quote_of_an_old_price_names_the_end_of_its_validity() -> None:
    store = StoredPrices()
    await store.add([price_of("groq", "llama", "1", "2"), price_of("groq", "llama", "3", "4", since=NOW)])

    quote = await (await pricing(store, PublishedPrices())).quote("groq", "llama", TOKENS, NOW - timedelta(days=1))

    assert quote.cost is not None
    assert quote.cost.total_usd == 3
    assert quote.listed is not None
    assert quote.listed.expires_at == NOW


async def test_a_quote_for_a_model_that_nobody_prices_is_unpriced() -> None:
    quote = await (await pricing(StoredPrices(), PublishedPrices())).quote("groq", "llama", TOKENS, NOW)

    assert (quote.cost, quote.listed) == (None, None)


async def test_a_newer_edition_of_the_vendors_prices_holds_from_now_on() -> None:
    store, vendors = StoredPrices(), PublishedPrices({("openrouter", "acme/new"): DEAR}, source="list 2.0")
    await store.add(
        [
            price_of("openrouter", "acme/new", "1", "2", source="list 1.0"),
            price_of("groq", "llama", "1", "2", source="seed"),
            price_of("groq", "gone", "1", "2", source="list 1.0"),
        ]
    )
    finder = await pricing(store, vendors)

    assert await finder.follow_vendors() == 1
    assert await finder.follow_vendors() == 0

    before, after = (finder.book.find("openrouter", "acme/new", at) for at in (NOW - timedelta(seconds=1), NOW))
    assert before is not None
    assert after is not None
    assert (before.rates, after.rates, after.source) == (CHEAP, DEAR, "list 2.0")


async def test_a_slow_read_of_the_book_does_not_undo_a_price_that_was_set_meanwhile() -> None:
    class SlowFirstRead(StoredPrices):
        def __init__(self) -> None:
            super().__init__()
            self.goes_on = asyncio.Event()
            self.reads = 0

        async def load(self) -> list[Price]:
            self.reads += 1
            found = await super().load()
            if self.reads == 1:
                await self.goes_on.wait()
            return found

    store = SlowFirstRead()
    finder = Pricing(store=store, vendors=PublishedPrices(), now=lambda: NOW)
    slow = asyncio.create_task(finder.refresh())
    await asyncio.sleep(0)

    await finder.set_price("openrouter", "acme/new", DEAR, effective_at=EARLY, replace=False, source="operator")
    store.goes_on.set()
    await slow

    found = finder.book.find("openrouter", "acme/new", NOW)
    assert found is not None
    assert found.rates == DEAR
