"""One tenant or model that usage_service refuses must not keep the router from learning about the others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from router_service.usage import limit_cache
from router_service.usage.channel import usage_channel
from router_service.usage.limit_cache import LimitCache
from router_service.usage.price_cache import PriceCache
from tests.support.fake_usage_service import FakeUsageService, serving
from turnpike.usage.v1 import pricing_service_pb2, quota_service_pb2, token_usage_pb2

BAD, GOOD, MISCONFIGURED = UUID(int=1), UUID(int=2), UUID(int=3)


class Picky(FakeUsageService):
    """Refuses tenant BAD and model `bad`; counts what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []  # models
        self.batches_of_tenants: list[list[str]] = []
        self.before_answer: Callable[[], None] = lambda: None

    @property
    def tenants_asked(self) -> list[str]:
        """Each tenant as often as it was asked about."""
        return [tenant_id for batch in self.batches_of_tenants for tenant_id in batch]

    async def BatchCheckRateLimitStatus(self, request: Any, context: Any) -> Any:
        self.batches_of_tenants.append(list(request.tenant_ids))
        self.before_answer()
        if str(BAD) in request.tenant_ids:
            await context.abort(grpc.StatusCode.INTERNAL, "internal error, ref 1")
        answer = await super().BatchCheckRateLimitStatus(request, context)
        for result in answer.results:
            if result.tenant_id == str(MISCONFIGURED):
                result.ClearField("status")
                result.error.code = grpc.StatusCode.FAILED_PRECONDITION.value[0]
        return answer

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
        statuses=[quota_service_pb2.RateLimitStatus(provider="groq", usage_percent=25)],
        level=quota_service_pb2.LIMIT_LEVEL_HEALTHY,
        valid_for=Duration(seconds=30),
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


@pytest.mark.parametrize("tenant_id", [BAD, MISCONFIGURED])
async def test_a_tenant_that_cannot_be_answered_is_not_asked_for_every_second(
    service: Picky, channel: grpc.aio.Channel, tenant_id: UUID
) -> None:
    now = [0.0]
    limits = LimitCache(channel, now_s=lambda: now[0])

    for second in range(32):
        now[0] = float(second)
        assert limits.headroom(tenant_id, "groq", "m") is None
        await limits.refresh()

    assert service.tenants_asked == [str(tenant_id)] * 2


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

    # All at once, then one probe each at 1, 3, 7, 15 and 31 s.
    assert [len(batch) for batch in service.batches_of_tenants] == [20, 1, 1, 1, 1, 1]


async def test_s1_when_usage_service_is_back_all_who_waited_are_answered_in_ever_larger_calls(
    service: Picky, channel: grpc.aio.Channel
) -> None:
    now = [0.0]
    limits = LimitCache(channel, now_s=lambda: now[0])
    tenants = [UUID(int=number) for number in range(100, 300)]
    for tenant in tenants:
        limits.headroom(tenant, "groq", "m")
    service.failure = grpc.StatusCode.UNAVAILABLE
    await limits.refresh()
    service.failure = None
    now[0] = 2.0

    await limits.refresh()

    assert all(limits.headroom(tenant, "groq", "m") is not None for tenant in tenants)
    assert [len(batch) for batch in service.batches_of_tenants] == [100, 1, 4, 16, 64, 100, 15]


async def test_many_tenants_are_asked_about_in_one_call_and_each_once(
    service: Picky, channel: grpc.aio.Channel
) -> None:
    limits = LimitCache(channel, now_s=lambda: 0.0)
    tenants = [UUID(int=number) for number in range(100, 400)]
    for tenant in tenants * 2:
        limits.headroom(tenant, "groq", "m")

    await limits.refresh()

    assert all(limits.headroom(tenant, "groq", "m") is not None for tenant in tenants)
    assert [len(batch) for batch in service.batches_of_tenants] == [100, 100, 100]
    assert service.tenants_asked == [str(tenant) for tenant in tenants]


async def test_a_healthy_tenant_is_asked_about_again_only_when_one_of_its_requests_finds_its_position_due(
    service: Picky, channel: grpc.aio.Channel
) -> None:
    now = [0.0]
    limits = LimitCache(channel, now_s=lambda: now[0])
    quiet, busy = UUID(int=100), UUID(int=101)
    limits.headroom(quiet, "groq", "m")

    for second in range(60):
        now[0] = float(second)
        limits.headroom(busy, "groq", "m")
        await limits.refresh()

    assert service.tenants_asked == [str(quiet), str(busy), str(busy)]


async def test_a_tenant_close_to_a_limit_is_followed_between_its_requests_for_a_minute(
    service: Picky, channel: grpc.aio.Channel
) -> None:
    now = [0.0]
    limits = LimitCache(channel, now_s=lambda: now[0])
    service.status.level = quota_service_pb2.LIMIT_LEVEL_CRITICAL
    service.status.valid_for.seconds = 5
    limits.headroom(GOOD, "groq", "m")

    known = []
    for second in range(120):
        now[0] = float(second)
        await limits.refresh()
        if second % 12 == 0 and second <= 24:
            known.append(limits.headroom(GOOD, "groq", "m") is not None)

    assert known == [True, True, True]
    assert service.tenants_asked == [str(GOOD)] * 17  # every 5 s from 0 to 80; the last request was at 24 s


async def test_a_position_is_used_no_longer_than_twice_as_long_as_it_is_valid_from_when_it_was_asked_for(
    service: Picky, channel: grpc.aio.Channel
) -> None:
    now = [0.0]

    def take_a_while() -> None:
        now[0] += 1.5

    service.before_answer = take_a_while
    limits = LimitCache(channel, now_s=lambda: now[0])
    limits.headroom(GOOD, "groq", "m")
    await limits.refresh()
    service.failure = grpc.StatusCode.UNAVAILABLE

    usable_at = []
    for second in range(2, 90, 4):
        now[0] = float(second)
        if limits.headroom(GOOD, "groq", "m") is not None:
            usable_at.append(second)
        await limits.refresh()

    assert usable_at == list(range(2, 61, 4))


async def test_no_more_tenants_are_remembered_than_there_is_room_for(
    service: Picky, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limit_cache, "_MAX_TENANTS", 50)
    limits = LimitCache(channel, now_s=lambda: 0.0)
    for number in range(100, 200):
        limits.headroom(UUID(int=number), "groq", "m")

    await limits.refresh()

    assert service.tenants_asked == [str(UUID(int=number)) for number in range(150, 200)]


async def test_a_model_that_cannot_be_priced_does_not_keep_the_next_from_its_price(channel: grpc.aio.Channel) -> None:
    prices = PriceCache(channel)
    prices.usd_per_million("groq", "bad")
    prices.usd_per_million("groq", "good")

    await prices.refresh()

    assert prices.usd_per_million("groq", "bad") is None
    assert prices.usd_per_million("groq", "good") is not None
