"""PricingService on the wire."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from service_runtime.errors import InvalidRequest
from tests.support.booked_rows import RowsInMemory
from tests.support.prices import PublishedPrices, StoredPrices, price_of
from turnpike.usage.v1 import pricing_service_pb2 as pb
from turnpike.usage.v1 import token_usage_pb2
from usage_service.api.pricing_servicer import PricingServicer
from usage_service.domain.provider_names import CATALOGUE_PROVIDERS
from usage_service.metering.pricing import Pricing
from usage_service.metering.repricing import Repricing

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
CONTEXT = cast("Any", None)  # the methods do not look at it


@pytest.fixture
async def servicer() -> PricingServicer:
    store = StoredPrices()
    await store.add(
        [
            price_of("groq", "llama", "0.59", "0.79"),
            price_of("groq", "llama", "0.50", "0.70", since=NOW),
            *(price_of("openrouter", f"model-{number}", "1", "2") for number in range(5)),
            price_of("local", "*", "0", "0"),
        ]
    )
    pricing = Pricing(store=store, vendors=PublishedPrices(), now=lambda: NOW)
    await pricing.refresh()
    repricing = Repricing(rows=RowsInMemory(), pricing=pricing, monotonic_s=lambda: 0.0)
    return PricingServicer(pricing=pricing, repricing=repricing, providers=CATALOGUE_PROVIDERS, now=lambda: NOW)


def asked(**fields: Any) -> pb.CalculateCostRequest:
    return pb.CalculateCostRequest(**{"provider": "groq", "model": "llama", "input_tokens": 1_000, **fields})


async def test_a_cost_is_answered_at_six_decimals_with_its_parts_and_its_price(servicer: PricingServicer) -> None:
    answer = await servicer.CalculateCost(asked(output_tokens=501), CONTEXT)

    assert (answer.cost_usd, answer.input_cost_usd, answer.output_cost_usd) == ("0.000851", "0.000500", "0.000351")
    assert answer.pricing_state == token_usage_pb2.PRICING_STATE_PRICED
    assert (answer.price.input_usd_per_million, answer.price.price_id) == ("0.5", "2")
    assert not answer.price.HasField("expire_time")


async def test_a_cost_is_rounded_half_to_even(servicer: PricingServicer) -> None:
    assert (await servicer.CalculateCost(asked(input_tokens=5), CONTEXT)).cost_usd == "0.000002"  # 0.0000025
    assert (await servicer.CalculateCost(asked(input_tokens=7), CONTEXT)).cost_usd == "0.000004"  # 0.0000035


async def test_a_cost_as_of_the_past_uses_the_price_of_the_past(servicer: PricingServicer) -> None:
    request = asked()
    request.as_of_time.FromDatetime(NOW - timedelta(days=1))

    answer = await servicer.CalculateCost(request, CONTEXT)

    assert answer.cost_usd == "0.000590"
    assert answer.price.expire_time.ToDatetime(tzinfo=UTC) == NOW


async def test_a_friendly_provider_name_will_do(servicer: PricingServicer) -> None:
    assert (await servicer.CalculateCost(asked(provider="Groq (Llama 3.3 70B)"), CONTEXT)).cost_usd == "0.000500"


async def test_an_unknown_price_is_unpriced_and_has_no_cost(servicer: PricingServicer) -> None:
    answer = await servicer.CalculateCost(asked(model="unheard-of"), CONTEXT)

    assert answer == pb.CalculateCostResponse(pricing_state=token_usage_pb2.PRICING_STATE_UNPRICED)


async def test_a_price_of_zero_is_a_price(servicer: PricingServicer) -> None:
    answer = await servicer.CalculateCost(asked(provider="local", model="qwen"), CONTEXT)

    assert (answer.cost_usd, answer.pricing_state) == ("0.000000", token_usage_pb2.PRICING_STATE_PRICED)
    assert (answer.price.model, answer.price.input_usd_per_million) == ("*", "0")


async def test_nothing_consumed_costs_exactly_nothing(servicer: PricingServicer) -> None:
    answer = await servicer.CalculateCost(asked(input_tokens=0), CONTEXT)

    assert answer.cost_usd == "0.000000"
    assert answer.pricing_state == token_usage_pb2.PRICING_STATE_NOTHING_CONSUMED


async def test_every_bad_field_is_named(servicer: PricingServicer) -> None:
    request = asked(provider="acme", model="", input_tokens=-1, reasoning_tokens=10**13)
    request.as_of_time.seconds = 2**60

    with pytest.raises(InvalidRequest) as refused:
        await servicer.CalculateCost(request, CONTEXT)

    fields = [violation.field for violation in refused.value.violations]
    assert fields == ["provider", "model", "input_tokens", "reasoning_tokens", "as_of_time"]


async def listed(servicer: PricingServicer, **fields: Any) -> list[tuple[str, str]]:
    """All pages of a listing, one after another."""
    found: list[tuple[str, str]] = []
    token = ""
    while True:
        page = await servicer.ListPrices(pb.ListPricesRequest(page_token=token, **fields), CONTEXT)
        found.extend((price.provider, price.model) for price in page.prices)
        token = page.next_page_token
        if not token:
            return found


@pytest.mark.parametrize("page_size", [0, 1, 2, 7, 1000])
async def test_pages_of_any_size_list_every_price_once_in_order(servicer: PricingServicer, page_size: int) -> None:
    assert await listed(servicer, page_size=page_size) == [
        ("groq", "llama"),
        ("local", "*"),
        *(("openrouter", f"model-{number}") for number in range(5)),
    ]


async def test_a_listing_can_be_of_one_provider(servicer: PricingServicer) -> None:
    assert await listed(servicer, provider="Groq (fast)", page_size=1) == [("groq", "llama")]


async def test_a_page_token_is_of_use_for_the_same_question_only(servicer: PricingServicer) -> None:
    first = await servicer.ListPrices(pb.ListPricesRequest(page_size=2), CONTEXT)

    for other in (
        pb.ListPricesRequest(page_size=2, page_token=first.next_page_token, provider="groq"),
        pb.ListPricesRequest(page_size=2, page_token="x" + first.next_page_token),
        pb.ListPricesRequest(page_size=-1),
    ):
        with pytest.raises(InvalidRequest) as refused:
            await servicer.ListPrices(other, CONTEXT)
        assert refused.value.violations[0].field in {"page_token", "page_size"}
