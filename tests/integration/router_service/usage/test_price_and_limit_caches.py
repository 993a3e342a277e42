from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from uuid import UUID

import grpc
import grpc.aio
import pytest

from router_service.domain.usage import TokenUsage
from router_service.usage.channel import usage_channel
from router_service.usage.limit_cache import LimitCache
from router_service.usage.price_cache import PriceCache
from service_runtime.errors import ServiceError
from tests.support.fake_usage_service import FakeUsageService, serving
from turnpike.usage.v1 import pricing_service_pb2, quota_service_pb2

TENANT = UUID(int=1)


@pytest.fixture
def service() -> FakeUsageService:
    return FakeUsageService()


@pytest.fixture
async def channel(service: FakeUsageService) -> AsyncIterator[grpc.aio.Channel]:
    async with serving(service) as target, usage_channel(target) as opened:
        yield opened


def price(provider: str, model: str, usd: str) -> pricing_service_pb2.Price:
    return pricing_service_pb2.Price(
        provider=provider, model=model, input_usd_per_million=usd, output_usd_per_million=usd
    )


async def test_prices_of_all_pages_are_known(service: FakeUsageService, channel: grpc.aio.Channel) -> None:
    service.prices = [price("groq", "m", "0.59"), price("local", "*", "0")]
    prices = PriceCache(channel)

    await prices.refresh()

    assert prices.cost_usd("groq", "m", TokenUsage(1000, 1000)) == Decimal("0.00118")
    assert prices.cost_usd("local", "whatever", TokenUsage(5, 5)) == 0
    assert prices.cost_usd("groq", "unknown", TokenUsage(5, 5)) is None


async def test_a_prompt_longer_than_its_price_holds_for_has_no_cost(
    service: FakeUsageService, channel: grpc.aio.Channel
) -> None:
    stepped = price("groq", "m", "1")
    stepped.max_prompt_tokens = 200_000
    service.prices = [stepped]
    prices = PriceCache(channel)

    await prices.refresh()

    assert prices.cost_usd("groq", "m", TokenUsage(200_000, 0)) == Decimal("0.2")
    assert prices.cost_usd("groq", "m", TokenUsage(200_001, 0)) is None


async def test_a_model_outside_the_book_is_asked_for_once_somebody_used_it(
    service: FakeUsageService, channel: grpc.aio.Channel
) -> None:
    service.other_prices = {"new": price("groq", "new", "2")}
    prices = PriceCache(channel)
    before = prices.usd_per_million("groq", "new")

    await prices.refresh()

    assert before is None
    assert prices.usd_per_million("groq", "new") == (Decimal(2), Decimal(2))


async def test_the_models_of_the_catalogue_have_their_prices_before_anybody_uses_them(
    service: FakeUsageService, channel: grpc.aio.Channel
) -> None:
    service.prices = [price("local", "*", "0")]
    service.other_prices = {"new": price("groq", "new", "2")}
    prices = PriceCache(channel, [("groq", "new"), ("groq", "nobody knows"), ("local", "default")])

    await prices.refresh()

    assert prices.usd_per_million("groq", "new") == (Decimal(2), Decimal(2))
    assert prices.usd_per_million("groq", "nobody knows") is None
    assert service.prices_asked == ["new", "nobody knows"]


async def test_s1_without_usage_service_the_last_good_prices_stay(
    service: FakeUsageService, channel: grpc.aio.Channel
) -> None:
    service.prices = [price("groq", "m", "1")]
    prices = PriceCache(channel)
    await prices.refresh()
    service.failure = grpc.StatusCode.UNAVAILABLE

    with pytest.raises(ServiceError):
        await prices.refresh()

    assert prices.usd_per_million("groq", "m") == (Decimal(1), Decimal(1))


async def test_the_tightest_limit_decides_the_headroom_and_lapses_when_it_is_not_renewed(
    service: FakeUsageService, channel: grpc.aio.Channel
) -> None:
    service.status = quota_service_pb2.CheckRateLimitStatusResponse(
        statuses=[
            quota_service_pb2.RateLimitStatus(provider="groq", usage_percent=20),
            quota_service_pb2.RateLimitStatus(provider="groq", usage_percent=97, should_failover=True),
            quota_service_pb2.RateLimitStatus(provider="groq", model="m", usage_percent=50),
        ]
    )
    service.status.valid_for.FromTimedelta(timedelta(seconds=10))
    now = [0.0]
    limits = LimitCache(channel, now_s=lambda: now[0])

    unknown = limits.headroom(TENANT, "groq", "m")
    await limits.refresh()
    known = limits.headroom(TENANT, "groq", "m")
    now[0] = 25.0
    lapsed = limits.headroom(TENANT, "groq", "m")

    assert unknown is None
    assert known is not None
    assert known.should_failover
    assert known.remaining_ratio == pytest.approx(0.03)
    assert lapsed is None
    assert limits.headroom(TENANT, "openrouter", "m") is None
