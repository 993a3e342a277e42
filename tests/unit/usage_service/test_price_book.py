"""Exact costs and the price that held at a time."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from usage_service.domain.pricing import (
    Price,
    PriceBook,
    PricedUsage,
    PricingState,
    Rates,
    TokenCounts,
    at_answer_precision,
    at_ledger_precision,
    cost_of,
    price_usage,
)

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
RATES = Rates(input_usd=Decimal("0.59"), output_usd=Decimal("0.79"))
TOKENS = st.integers(min_value=0, max_value=10**12)
USD_PER_MILLION = st.decimals(min_value=0, max_value=Decimal("999999999.999999999"), places=9)


def price(provider: str = "groq", model: str = "llama", **changes: Any) -> Price:
    """A price at groq; `changes` are `since`, `price_id` or fields of `Rates`."""
    plain = Price(changes.pop("price_id", 1), provider, model, RATES, changes.pop("since", NOW), "test")
    return replace(plain, rates=replace(RATES, **changes))


def test_a_cost_is_price_times_tokens_by_part() -> None:
    cost = cost_of(TokenCounts(input_tokens=1_000, output_tokens=500), price().rates)

    assert cost is not None
    assert (cost.input_usd, cost.output_usd) == (Decimal("0.00059"), Decimal("0.000395"))
    assert cost.total_usd == Decimal("0.000985")


def test_cache_classes_without_a_price_cost_as_input_and_reasoning_costs_as_output() -> None:
    tokens = TokenCounts(cached_read_tokens=1_000_000, cached_write_tokens=1_000_000, reasoning_tokens=1_000_000)

    cost = cost_of(tokens, price().rates)

    assert cost is not None
    assert (cost.input_usd, cost.output_usd) == (Decimal("1.18"), Decimal("0.79"))


def test_a_price_of_zero_for_a_class_is_a_price() -> None:
    rates = price(cached_read_usd=Decimal(0)).rates

    cost = cost_of(TokenCounts(cached_read_tokens=10), rates)

    assert cost is not None
    assert cost.total_usd == 0


@given(st.builds(TokenCounts, TOKENS, TOKENS, TOKENS, TOKENS, TOKENS), USD_PER_MILLION, USD_PER_MILLION)
def test_a_cost_is_exact_whatever_the_numbers(tokens: TokenCounts, input_usd: Decimal, output_usd: Decimal) -> None:
    cost = cost_of(tokens, Rates(input_usd, output_usd))

    assert cost is not None
    completion_tokens = tokens.output_tokens + tokens.reasoning_tokens
    expected = Fraction(input_usd) * tokens.prompt_tokens + Fraction(output_usd) * completion_tokens
    assert Fraction(cost.total_usd) == expected / 1_000_000


@given(
    st.builds(TokenCounts, TOKENS, TOKENS, TOKENS, TOKENS, TOKENS),
    st.builds(Rates, USD_PER_MILLION, USD_PER_MILLION, *[st.none() | USD_PER_MILLION] * 3),
)
def test_what_is_booked_is_the_exact_cost_rounded_once(tokens: TokenCounts, rates: Rates) -> None:
    assume(tokens.total_tokens > 0)
    exact = cost_of(tokens, rates)
    assert exact is not None

    booked = price_usage(tokens, Price(1, "groq", "m", rates, NOW, "test")).cost_usd

    assert str(booked) == str(at_ledger_precision(exact.total_usd))


def test_a_rate_finer_than_the_price_book_keeps_is_not_rounded() -> None:
    rates = Rates(Decimal("0.0000000015"), Decimal(0))

    booked = price_usage(TokenCounts(input_tokens=10**9), Price(1, "groq", "m", rates, NOW, "test")).cost_usd

    assert booked == Decimal("0.000001500000")


def test_the_ledger_keeps_twelve_decimals_and_an_answer_six_both_half_to_even() -> None:
    tokens = TokenCounts(input_tokens=1)

    assert price_usage(tokens, price(input_usd=Decimal("0.0000005"))).cost_usd == Decimal("0.000000000000")
    assert price_usage(tokens, price(input_usd=Decimal("0.0000015"))).cost_usd == Decimal("0.000000000002")
    assert str(at_answer_precision(Decimal("0.0000025"))) == "0.000002"
    assert str(at_answer_precision(Decimal("0.0000035"))) == "0.000004"


def test_an_unknown_price_is_unpriced_and_never_zero() -> None:
    assert price_usage(TokenCounts(input_tokens=1), None) == PricedUsage(PricingState.UNPRICED, None, None)


def test_without_tokens_nothing_was_consumed_and_the_cost_is_exactly_zero() -> None:
    assert price_usage(TokenCounts(), price()) == PricedUsage(
        PricingState.NOTHING_CONSUMED, Decimal("0.000000000000"), None
    )


def test_a_prompt_beyond_what_the_price_holds_for_is_unpriced() -> None:
    stepped = price(max_prompt_tokens=200_000)

    assert price_usage(TokenCounts(input_tokens=200_000), stepped).state is PricingState.PRICED
    assert price_usage(TokenCounts(input_tokens=200_000, cached_read_tokens=1), stepped).cost_usd is None


def test_the_price_that_held_at_the_time_of_use_is_found() -> None:
    old, new = price(since=NOW - timedelta(days=2), price_id=1), price(since=NOW, price_id=2)
    book = PriceBook.of([new, old])

    assert book.find("groq", "llama", NOW - timedelta(microseconds=1)) is old
    assert book.find("groq", "llama", NOW) is new
    assert book.find("groq", "llama", NOW - timedelta(days=3)) is None


def test_a_models_own_price_goes_before_its_providers_star() -> None:
    own, star = price(model="llama", price_id=1), price(model="*", price_id=2)
    book = PriceBook.of([star, own])

    assert book.find("groq", "llama", NOW) is own
    assert book.find("groq", "gemma", NOW) is star
    assert book.find("openrouter", "gemma", NOW) is None


def test_a_listing_names_the_end_of_validity() -> None:
    old, new = price(since=NOW - timedelta(days=2)), price(since=NOW)
    later = price(model="a", since=NOW + timedelta(days=1))
    book = PriceBook.of([new, old, later])

    assert [(entry.price, entry.expires_at) for entry in book.listed(NOW - timedelta(days=1))] == [(old, NOW)]
    assert [(entry.price, entry.expires_at) for entry in book.listed(NOW)] == [(new, None)]
    found = book.find_listed("groq", "llama", NOW - timedelta(days=1))
    assert found is not None
    assert (found.price, found.expires_at) == (old, NOW)
