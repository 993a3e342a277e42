"""List prices from the data that the `genai-prices` package bundles. Nothing is fetched."""

from __future__ import annotations

import asyncio
from datetime import datetime
from decimal import Decimal
from importlib.metadata import version
from typing import TYPE_CHECKING

from usage_service.domain.pricing import Price, Rates

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo

_PACKAGE = "genai-prices"


class BundledPrices:
    """Vendors' list prices, by the provider's catalogue name. `load` reads them in a thread: it takes half a second."""

    def __init__(self) -> None:
        self._loading: asyncio.Task[DataSnapshot] | None = None

    @property
    def source(self) -> str:
        """What entries from here are marked with, such as "genai-prices 0.2.3"."""
        return f"{_PACKAGE} {version(_PACKAGE)}"

    def load(self) -> None:
        """Begin to read the data in the background, so that the first question need not wait for it."""
        if self._loading is None or (self._loading.done() and self._loading.exception() is not None):
            self._loading = asyncio.create_task(asyncio.to_thread(_load), name="load list prices")

    async def quote(self, provider: str, model: str, at: datetime) -> Price | None:
        """The list price that holds at a time, without an id; None when it is unknown or not per token."""
        self.load()
        assert self._loading is not None
        # Shielded: one caller who leaves must not end it for the others.
        snapshot = await asyncio.shield(self._loading)
        found = _find(snapshot, provider, model)
        rates = None if found is None else _rates(found, at)
        return None if rates is None else Price(None, provider, model, rates, at, self.source)


def _load() -> DataSnapshot:
    # Imported here, in a thread: it builds thousands of objects, and most ledgers never need one of them.
    from genai_prices.data_snapshot import get_snapshot

    return get_snapshot()


def _find(snapshot: DataSnapshot, provider: str, model: str) -> ModelInfo | None:
    # In two steps: the package's own way in one remembers every model name that it was ever asked for.
    try:
        vendor = snapshot.find_provider(None, provider, None)
    except LookupError:
        return None
    return vendor.find_model(model, all_providers=snapshot.providers)


def _rates(model: ModelInfo, at: datetime) -> Rates | None:
    """Rates that the price book can express, or None.

    Prices that rise with the length of the prompt are taken at their base, and only for prompts up to the first step.
    A model priced by image, character or second has no price by token.
    """
    prices = model.get_prices(at)
    steps: list[int] = []
    input_usd = _base(prices, "input_mtok", steps)
    output_usd = _base(prices, "output_mtok", steps)
    if input_usd is None or output_usd is None:
        return None
    return Rates(
        input_usd=input_usd,
        output_usd=output_usd,
        cached_read_usd=_base(prices, "cache_read_mtok", steps),
        cached_write_usd=_base(prices, "cache_write_mtok", steps),
        reasoning_usd=None,
        max_prompt_tokens=min(steps, default=None),
    )


def _base(prices: object, field: str, steps: list[int]) -> Decimal | None:
    """One price in US dollars per million tokens; the starts of its steps, if it has any, are added to `steps`."""
    price = getattr(prices, field, None)
    if price is None or isinstance(price, Decimal):
        return price
    steps.extend(tier.start for tier in price.tiers)
    base: Decimal = price.base
    return base
