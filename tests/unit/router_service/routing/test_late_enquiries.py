"""Late enquiries over fakes: one record, let go once, with the provider's figures or with the estimate."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from dataclasses import replace
from decimal import Decimal
from uuid import uuid4

import pytest
from msgspec import structs

from router_service.domain.completion import (
    CompletionRequest,
    ContentDelta,
    IndexedDelta,
    ProviderAccepted,
    ProviderIdentified,
)
from router_service.domain.errors import FailureKind
from router_service.domain.usage import AttemptStatus, LateUsage, TokenUsage, UsageSource
from router_service.routing.settings import RoutingSettings
from service_runtime.errors import ServiceError
from tests.support.router_fakes import FakeProvider, Silence, World, failure, finished, request, spec, text

# Asked soon, and waited for longer than any load can hold a test up.
PROMPTLY = RoutingSettings(late_usage_first_delay_s=0.001, late_usage_wait_s=3600.0)
LATE = LateUsage(TokenUsage(31, 7), Decimal("0.00042"), "vendor/model")
IDENTIFIED = ProviderIdentified("gen-7", "vendor/model")


def world(provider: FakeProvider, *, settings: RoutingSettings = PROMPTLY) -> World:
    return World({"openrouter": provider}, specs=[spec("openrouter", counts_late=True)], settings=settings)


def endless() -> FakeProvider:
    return FakeProvider([ProviderAccepted(), IDENTIFIED, text("hel"), Silence()])


async def leave_after_content(router_world: World, asked: CompletionRequest | None = None) -> None:
    with closing(await router_world.router.stream(asked or request(), deadline_s=None)) as events:
        async for event in events:
            if isinstance(event, IndexedDelta):
                break
    await router_world.idle()


async def all_released(router_world: World, count: int = 1) -> None:
    while len(router_world.journal.released) < count:
        await asyncio.sleep(0.001)


async def test_what_a_caller_left_behind_is_enquired_after_with_the_same_key() -> None:
    provider = endless()
    provider.late_answers = [None, failure(FailureKind.UPSTREAM_BROKEN), LATE]
    left = world(provider)

    await leave_after_content(left)
    await all_released(left)

    (row,) = left.journal.rows
    assert (row.status, row.usage_source, row.model) == (
        AttemptStatus.CANCELLED,
        UsageSource.ESTIMATED,
        "vendor/model",
    )
    assert provider.enquiries == [("print-of-openrouter", "gen-7")] * 3
    assert left.journal.released == [(row.opened.event_id, LATE)]
    assert left.metric("turnpike_router_late_enquiries_ended_total", provider="openrouter", outcome="answered") == 1


async def test_the_id_in_the_header_is_enough() -> None:
    provider = FakeProvider([ProviderAccepted(response_id="gen-of-header"), text("a"), Silence()])
    provider.late_answers = [LATE]
    left = world(provider)

    await leave_after_content(left)
    await all_released(left)

    assert [response_id for _, response_id in provider.enquiries] == ["gen-of-header"]


async def test_a_provider_that_never_answers_leaves_the_estimate() -> None:
    silent = world(endless(), settings=replace(PROMPTLY, late_usage_wait_s=0.02))

    await leave_after_content(silent)
    await all_released(silent)

    assert [late for _, late in silent.journal.released] == [None]


@pytest.mark.parametrize("kind", [FailureKind.KEY_REJECTED, FailureKind.NOT_ALLOWED])
async def test_asking_stops_when_it_is_hopeless(kind: FailureKind) -> None:
    provider = endless()
    provider.late_answers = [failure(kind)]
    left = world(provider)

    await leave_after_content(left)
    await all_released(left)

    assert len(provider.enquiries) == 1
    assert [late for _, late in left.journal.released] == [None]


async def test_a_broken_answer_is_enquired_after_and_a_counted_one_is_not() -> None:
    broken = FakeProvider(
        [ProviderAccepted(), IDENTIFIED, text("a"), failure(FailureKind.STREAM_BROKEN)],
        [ProviderAccepted(), IDENTIFIED, text("a"), finished()],
    )
    broken.late_answers = [LATE]
    served = world(broken)

    with pytest.raises(ServiceError):
        [event async for event in await served.router.stream(request(), deadline_s=None)]
    [event async for event in await served.router.stream(request(), deadline_s=None)]
    await all_released(served)

    assert [row.enquiry is not None for row in served.journal.rows] == [True, False]


async def test_what_a_provider_counted_before_it_failed_is_what_it_cost() -> None:
    counted = failure(FailureKind.STREAM_BROKEN)
    counted.usage, counted.reported_cost_usd, counted.model = TokenUsage(9, 1), Decimal("0.01"), "vendor/other"
    served = world(FakeProvider([ProviderAccepted(), IDENTIFIED, text("a"), counted]))

    with pytest.raises(ServiceError):
        [event async for event in await served.router.stream(request(), deadline_s=None)]

    (row,) = served.journal.rows
    assert (row.usage, row.usage_source, row.enquiry) == (TokenUsage(9, 1), UsageSource.PROVIDER, None)
    assert (row.reported_cost_usd, row.model) == (Decimal("0.01"), "vendor/other")


async def test_a_provider_that_cannot_count_late_is_not_asked() -> None:
    plain = World({"groq": FakeProvider([ProviderAccepted(), IDENTIFIED, ContentDelta("a"), Silence()])})

    await leave_after_content(plain)

    assert [row.enquiry for row in plain.journal.rows] == [None]


@pytest.mark.parametrize(
    "settings", [replace(PROMPTLY, late_usage_wait_s=0.0), replace(PROMPTLY, max_late_enquiries=0)]
)
async def test_with_enquiries_off_or_all_places_taken_the_estimate_goes_at_once(settings: RoutingSettings) -> None:
    off = world(endless(), settings=settings)

    await leave_after_content(off)

    assert [row.enquiry for row in off.journal.rows] == [None]


async def test_s7_a_router_that_stops_leaves_no_record_held() -> None:
    stopping = world(endless(), settings=RoutingSettings(late_usage_first_delay_s=60.0, last_enquiry_s=0.01))
    await leave_after_content(stopping)
    assert len(stopping.journal.held_back) == 1

    await stopping.router.drain(0.0)

    assert stopping.journal.held_back == {}
    assert [late for _, late in stopping.journal.released] == [None]


async def test_s7_a_router_that_stops_while_the_patience_with_a_provider_ends_stops_all_the_same() -> None:
    settings = RoutingSettings(late_usage_first_delay_s=60.0, late_usage_wait_s=0.2, last_enquiry_s=0.1)
    stopping = world(endless(), settings=settings)
    await leave_after_content(stopping)

    draining = asyncio.create_task(stopping.router.drain(0.0))
    for _ in range(10):
        await asyncio.sleep(0)  # it waits for the last counts now
    time.sleep(0.4)  # noqa: ASYNC251 - a loop that is behind finds both times over at once
    await draining

    assert [late for _, late in stopping.journal.released] == [None]


async def test_u2_what_an_earlier_run_held_is_asked_for_again_with_the_key_of_its_fingerprint() -> None:
    provider = endless()
    provider.late_answers = [LATE]
    before = world(provider, settings=RoutingSettings(late_usage_first_delay_s=60.0))
    await leave_after_content(before)
    after = world(provider)
    after.journal.held_back = before.journal.held_back

    await after.router.resume()
    await all_released(after)

    assert provider.enquiries == [("print-of-openrouter", "gen-7")]
    assert [late for _, late in after.journal.released] == [LATE]


async def test_without_the_key_that_paid_an_earlier_runs_estimate_stands() -> None:
    provider = endless()
    before = world(provider, settings=RoutingSettings(late_usage_first_delay_s=60.0))
    await leave_after_content(before)
    after = world(provider)
    (row,) = before.journal.rows
    assert row.enquiry is not None
    after.journal.held_back = {
        uuid4(): structs.replace(row, enquiry=replace(row.enquiry, key_fingerprint="print-of-another"))
    }

    await after.router.resume()
    await all_released(after)

    assert provider.enquiries == []
    assert [late for _, late in after.journal.released] == [None]
