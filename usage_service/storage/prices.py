"""The price book in Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from service_runtime.postgres import Postgres, load_queries
from usage_service.domain.pricing import ListedPrice, Price, Rates
from usage_service.metering.ports import PriceDiffers, PriceEntered, PriceStands

if TYPE_CHECKING:
    from service_runtime.postgres import Connection

_QUERIES = load_queries(Path(__file__).with_name("prices.sql"))


class PostgresPrices:
    """The table `model_prices`."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def load(self) -> list[Price]:
        """Every entry, past and future ones included."""
        async with self._postgres.acquire() as connection:
            return [_price_from_row(row) for row in await connection.fetch(_QUERIES["load"])]

    async def add(self, prices: Sequence[Price]) -> None:
        """Enter prices; one that stands there already, by provider, model and start, stays."""
        if not prices:
            return
        async with self._postgres.acquire() as connection:
            await connection.execute(_QUERIES["add"], *zip(*map(_record, prices), strict=True))

    async def enter(self, price: Price, *, replace: bool) -> PriceEntered | PriceStands | PriceDiffers:
        """Enter a price, or tell what stands in its place; see `metering.ports.PriceStore`."""
        async with self._postgres.transaction() as connection:
            await connection.execute(_QUERIES["lock_book"])
            standing = await _with_start_of(price, connection)
            if standing is None:
                await connection.execute(_QUERIES["add"], *([value] for value in _record(price)))
                # Not under the lock: a vendor's price that another process needed for the first time at this moment.
                standing = await _with_start_of(price, connection)
                assert standing is not None
                if standing.rates == price.rates:
                    return PriceEntered(standing, None)
            if standing.rates == price.rates:
                return PriceStands(standing)
            if not replace:
                return PriceDiffers(standing)
            removed = await connection.fetchrow(_QUERIES["remove"], standing.price_id)
            assert removed is not None
            await connection.execute(_QUERIES["add"], *([value] for value in _record(price)))
            entered = await _with_start_of(price, connection)
            assert entered is not None
            await connection.execute(_QUERIES["keep_replaced"], *removed.values(), entered.price_id)
        return PriceEntered(entered, standing)

    async def history(self, provider: str, model: str) -> list[ListedPrice]:
        """Every entry of a model, replaced ones included; see `metering.ports.PriceStore`."""
        async with self._postgres.acquire() as connection:
            rows = await connection.fetch(_QUERIES["history"], provider, model)
        return [ListedPrice(_price_from_row(row), row["expires_at"], row["replaced_at"]) for row in rows]


async def _with_start_of(price: Price, connection: Connection) -> Price | None:
    row = await connection.fetchrow(_QUERIES["find_with_start"], price.provider, price.model, price.effective_at)
    return None if row is None else _price_from_row(row)


def _record(price: Price) -> tuple[object, ...]:
    """The values in the order of the statement `add`."""
    return (
        price.provider,
        price.model,
        price.rates.input_usd,
        price.rates.output_usd,
        price.rates.cached_read_usd,
        price.rates.cached_write_usd,
        price.rates.reasoning_usd,
        price.rates.max_prompt_tokens,
        price.effective_at,
        price.source,
    )


def _price_from_row(row: asyncpg.Record) -> Price:
    return Price(
        price_id=row["id"],
        provider=row["provider"],
        model=row["model_name"],
        rates=Rates(
            input_usd=row["input_usd"],
            output_usd=row["output_usd"],
            cached_read_usd=row["cached_read_usd"],
            cached_write_usd=row["cached_write_usd"],
            reasoning_usd=row["reasoning_usd"],
            max_prompt_tokens=row["max_prompt_tokens"],
        ),
        effective_at=row["effective_at"],
        source=row["source"],
    )
