"""One tenant or model that usage_service refuses must not keep the router from learning about the others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import grpc
import grpc.aio
import pytest

from router_service.usage.channel import usage_channel
from router_service.usage.limit_cache import LimitCache
from router_service.usage.price_cache import PriceCache
from tests.support.fake_usage_service import FakeUsageService, serving
from turnpike.usage.v1 import pricing_service_pb2, quota_service_pb2, token_usage_pb2

BAD, GOOD = UUID(int=1), UUID(int=2)


class Picky(FakeUsageService):
    """Refuses tenant BAD and model `bad`; counts what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    async def CheckRateLimitStatus(self, request: Any, context: Any) -> Any:
        self.asked.append(request.tenant_id)
        if request.tenant_id == str(BAD):
            await context.abort(grpc.StatusCode.INTERNAL, "internal error, ref 1")
        return await super().CheckRateLimitStatus(request, context)

    async def CalculateCost(self, request: Any, context: Any) -> Any:
        self.asked.append(request.model)
        if request.model == "bad":
            await context.abort(grpc.StatusCode.INTERNAL, "internal error, ref 2")
        return pricing_service_pb2.CalculateCostResponse(
            pricing_state=token_usage_pb2.PRICING_STATE_PRICED,
            price=pricing_service_pb2.Price(input_usd_per_million="2", output_usd_per_million="3"),
        )


@pytest.fixture
def service() -> Picky:
    picky = Picky()
    picky.status = quota_service_pb2.CheckRateLimitStatusResponse(
        statuses=[quota_service_pb2.RateLimitStatus(provider="groq", usage_percent=25)]
    )
    return picky


@pytest.fixture
async def channel(service: Picky) -> AsyncIterator[grpc.aio.Channel]:
    async with serving(service) as target, usage_channel(target) as opened:
        yield opened


async def test_s2_one_tenant_that_cannot_be_answered_does_not_blind_the_others(channel: grpc.aio.Channel) -> None:
    limits = LimitCache(channel, now_s=lambda: 0.0)
    limits.headroom(BAD, "groq", "m")
    limits.headroom(GOOD, "groq", "m")

    await limits.refresh()

    found = limits.headroom(GOOD, "groq", "m")
    assert limits.headroom(BAD, "groq", "m") is None
    assert found is not None
    assert found.remaining_ratio == pytest.approx(0.75)


async def test_a_tenant_that_cannot_be_answered_is_not_asked_for_every_second(
    service: Picky, channel: grpc.aio.Channel
) -> None:
    limits = LimitCache(channel, now_s=lambda: 0.0)
    limits.headroom(BAD, "groq", "m")

    await limits.refresh()
    await limits.refresh()

    assert service.asked == [str(BAD)]


async def test_s1_while_usage_service_is_away_it_is_asked_ever_more_rarely(
    service: Picky, channel: grpc.aio.Channel
) -> None:
    now = [0.0]
    limits = LimitCache(channel, now_s=lambda: now[0])
    service.failure = grpc.StatusCode.UNAVAILABLE
    for tenant in range(100, 120):
        limits.headroom(UUID(int=tenant), "groq", "m")

    for second in range(60):
        now[0] = float(second)
        await limits.refresh()

    assert 0 < len(service.asked) <= 8 + 5  # eight at once, then one probe each at 1, 3, 7, 15 and 31 s


async def test_more_tenants_than_fit_into_one_moment_are_all_answered(channel: grpc.aio.Channel) -> None:
    limits = LimitCache(channel, now_s=lambda: 0.0)
    tenants = [UUID(int=number) for number in range(100, 400)]
    for tenant in tenants:
        limits.headroom(tenant, "groq", "m")

    await limits.refresh()

    assert all(limits.headroom(tenant, "groq", "m") is not None for tenant in tenants)


async def test_a_model_that_cannot_be_priced_does_not_keep_the_next_from_its_price(channel: grpc.aio.Channel) -> None:
    prices = PriceCache(channel)
    prices.usd_per_million("groq", "bad")
    prices.usd_per_million("groq", "good")

    await prices.refresh()

    assert prices.usd_per_million("groq", "bad") is None
    assert prices.usd_per_million("groq", "good") is not None
