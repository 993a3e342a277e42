"""The price book in Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import asyncpg

from service_runtime.postgres import Postgres, load_queries
from usage_service.domain.pricing import Price, Rates

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
        records = [
            (
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
            for price in prices
        ]
        async with self._postgres.acquire() as connection:
            await connection.execute(_QUERIES["add"], *zip(*records, strict=True))


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
