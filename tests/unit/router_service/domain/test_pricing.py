"""The router's figure for a completion is the ledger's."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from router_service.domain.pricing import Price, cost_usd
from router_service.domain.usage import TokenUsage

PRICE = Price(Decimal("0.59"), Decimal("0.79"), cached_read_usd=Decimal("0.1"), max_prompt_tokens=1_000)


def test_every_class_of_tokens_has_its_price_or_that_of_its_kind() -> None:
    usage = TokenUsage(
        input_tokens=1, output_tokens=10, cached_read_tokens=100, cached_write_tokens=300, reasoning_tokens=5
    )

    assert cost_usd(PRICE, usage) == Decimal("0.00019944")


def test_cost_is_rounded_half_to_even_at_the_ledgers_12_decimals() -> None:
    tiny = Price(Decimal("0.0000005"), Decimal("0.0000015"))

    assert cost_usd(tiny, TokenUsage(1, 0)) == Decimal("0.000000000000")
    assert cost_usd(tiny, TokenUsage(0, 1)) == Decimal("0.000000000002")


@pytest.mark.parametrize(
    "prompt", [TokenUsage(1_001), TokenUsage(1, 0, 1_000), TokenUsage(1, 0, 500, 500)], ids=["plain", "read", "written"]
)
def test_a_prompt_beyond_the_length_that_the_price_holds_for_has_no_cost(prompt: TokenUsage) -> None:
    assert cost_usd(PRICE, prompt) is None
    assert cost_usd(replace(PRICE, max_prompt_tokens=None), prompt) is not None


def test_a_long_answer_to_a_prompt_within_the_length_has_one() -> None:
    assert cost_usd(PRICE, TokenUsage(input_tokens=1_000, output_tokens=5_000)) == Decimal("0.00454")
