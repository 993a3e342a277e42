"""The router over the real wire to scripted providers: what it books is what they served."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from router_service.domain.catalog import CallerGonePolicy, Clocks, ProviderSpec
from router_service.domain.completion import CompletionRequest, CompletionResult, FinishReason, Sampling
from router_service.domain.tenant import InferenceConfig
from router_service.domain.usage import AttemptStatus, UsageSource
from router_service.providers.provider_set import HttpSettings, build_providers
from router_service.routing.metrics import RoutingMetrics
from router_service.routing.router import Router
from service_runtime.errors import ServiceError
from service_runtime.ids import uuid7
from tests.support.provider_server import ScriptedProvider
from tests.support.router_fakes import (
    FakeJournal,
    FakeLimits,
    FakePrices,
    FakeTenants,
    request,
    spec,
    tenant,
)

# Short for those that say nothing, and still not so short that a machine that is behind takes a reset for silence.
IMPATIENT = Clocks(first_content_s=1.0, content_gap_s=1.0)


class Wire:
    """A router before two scripted providers; `first` is preferred and `second` always answers."""

    def __init__(self, first: ScriptedProvider, second: ScriptedProvider) -> None:
        self.first, self.second = first, second
        self.journal = FakeJournal()
        self.catalog: dict[str, ProviderSpec] = {
            "first": replace(spec("first", clocks=IMPATIENT), base_url=first.base_url),
            "second": replace(spec("second"), base_url=second.base_url),
        }
        network = HttpSettings(allowed_networks=(ipaddress.ip_network("127.0.0.0/8"),))
        self.providers = build_providers(self.catalog, network)
        preferring = InferenceConfig(preferred_provider="first")
        self.router = Router(
            tenants=FakeTenants(tenant(keys=["first", "second"], config=preferring)),
            providers=self.providers,
            catalog=self.catalog,
            system_credentials={},
            journal=self.journal,
            prices=FakePrices(),
            limits=FakeLimits(),
            metrics=RoutingMetrics(CollectorRegistry()),
            new_event_id=uuid7,
            luck=lambda: 0.0,
        )

    def asking(self, *scripts: str) -> CompletionRequest:
        """A request whose first provider follows `scripts`, one an attempt."""
        self.first.script("first-model", *scripts)
        return request()

    async def result(self, asked: CompletionRequest) -> CompletionResult:
        last = None
        async for event in await self.router.stream(asked, deadline_s=10.0):
            last = event
        assert isinstance(last, CompletionResult)
        return last


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    async with ScriptedProvider() as first, ScriptedProvider() as second:
        built = Wire(first, second)
        yield built
        await built.router.drain(0.0)
        await built.providers.aclose()


async def test_what_is_booked_is_what_was_served(wire: Wire) -> None:
    result = await wire.result(wire.asking("ok?n=7"))

    assert result.usage_source is UsageSource.PROVIDER
    assert result.usage.output_tokens == wire.first.completions[0].tokens_generated == 7
    assert wire.journal.rows[0].usage == result.usage


@pytest.mark.parametrize(
    ("script", "error_class"),
    [
        ("status?code=503", "overloaded"),
        ("status?code=429", "rate_limited"),
        ("status?code=500", "upstream_broken"),
        ("silence", "timed_out"),
        ("trickle", "timed_out"),
        ("reset", "transport_failed"),
    ],
)
async def test_a_provider_that_fails_before_content_is_replaced_unseen(
    wire: Wire, script: str, error_class: str
) -> None:
    result = await wire.result(wire.asking(script))

    assert result.provider == "second"
    assert [(row.error_class, row.absorbed) for row in wire.journal.rows] == [(error_class, True), ("", False)]


async def test_an_empty_answer_is_one_where_a_stop_text_may_have_ended_it_before_its_first_word(wire: Wire) -> None:
    asked = wire.asking("ok?n=0")

    result = await wire.result(msgspec.structs.replace(asked, sampling=Sampling(stop=("\n",))))

    assert (result.provider, result.finish_reason) == ("first", FinishReason.STOP)
    assert [row.error_class for row in wire.journal.rows] == [""]


async def test_an_empty_answer_that_nothing_explains_is_asked_for_again(wire: Wire) -> None:
    await wire.result(wire.asking("ok?n=0", "ok?n=1"))

    assert [(row.opened.provider, row.error_class) for row in wire.journal.rows] == [
        ("first", "model_misbehaved"),
        ("first", ""),
    ]


@pytest.mark.parametrize("script", ["reset?after=2", "close?after=2", "cut?after=2"])
async def test_a_stream_that_breaks_is_never_a_success(wire: Wire, script: str) -> None:
    with pytest.raises(ServiceError) as caught:
        await wire.result(wire.asking(script))

    assert caught.value.reason == "STREAM_INTERRUPTED"
    row = wire.journal.rows[0]
    assert (row.status, row.usage_source) == (AttemptStatus.ERROR, UsageSource.ESTIMATED)
    assert wire.second.completions == []


async def test_a_caller_who_leaves_closes_the_connection_at_once(wire: Wire) -> None:
    asked = wire.asking("ok?n=1000&gap_ms=5")
    with closing(await wire.router.stream(asked, deadline_s=10.0)) as events:
        for _ in range(3):
            await anext(events)

    while wire.router.running or wire.first.completions[0].outcome == "open":
        await asyncio.sleep(0.001)

    assert wire.first.completions[0].outcome == "client_left"
    assert [row.status for row in wire.journal.rows] == [AttemptStatus.CANCELLED]


async def test_where_the_bill_goes_on_the_exact_usage_is_booked_for_a_caller_who_left(wire: Wire) -> None:
    wire.catalog["first"] = replace(wire.catalog["first"], on_caller_gone=CallerGonePolicy.DRAIN)
    asked = wire.asking("ok?n=20&gap_ms=2")
    with closing(await wire.router.stream(asked, deadline_s=10.0)) as events:
        await anext(events)
        await anext(events)

    while wire.router.running:
        await asyncio.sleep(0.001)

    row = wire.journal.rows[0]
    assert (row.status, row.usage_source) == (AttemptStatus.CANCELLED, UsageSource.PROVIDER)
    assert row.usage is not None
    assert row.usage.output_tokens == 20
    assert wire.first.completions[0].outcome == "complete"
