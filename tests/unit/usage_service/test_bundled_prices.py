"""List prices from the bundled data. Which models it knows changes with its releases; what is asked here is old."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import version

import pytest

from usage_service.storage.bundled_prices import BundledPrices

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


async def test_a_price_says_where_it_is_from() -> None:
    price = await BundledPrices().quote("groq", "llama-3.1-8b-instant", NOW)

    assert price is not None
    assert (price.rates.input_usd, price.rates.output_usd) == (Decimal("0.05"), Decimal("0.08"))
    assert price.source == f"genai-prices {version('genai-prices')}"
    assert price.price_id is None


async def test_a_price_that_rises_with_the_prompt_holds_up_to_the_first_step() -> None:
    price = await BundledPrices().quote("openrouter", "google/gemini-2.5-pro", NOW)

    assert price is not None
    assert price.rates.max_prompt_tokens == 200_000
    assert price.rates.input_usd == Decimal("1.25")


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("llm7", "gpt-4o"),  # no such vendor in the data
        ("local", "llama"),
        ("sandbox", "echo"),
        ("turnpike", "llama"),
        ("groq", "no-such-model"),
        ("groq", "canopylabs/orpheus-v1-english"),  # priced by character
    ],
)
async def test_what_is_not_known_per_token_has_no_price(provider: str, model: str) -> None:
    assert await BundledPrices().quote(provider, model, NOW) is None


async def test_questions_at_the_same_time_share_one_loading() -> None:
    prices = BundledPrices()
    prices.load()
    loading = prices._loading

    await prices.quote("groq", "llama-3.1-8b-instant", NOW)
    prices.load()

    assert prices._loading is loading
