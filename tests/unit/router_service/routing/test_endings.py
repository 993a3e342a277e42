"""How requests end that are not simply answered: the caller leaves or is slow, time is up, the router stops. S5, S7."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from router_service.domain.catalog import CallerGonePolicy
from router_service.domain.completion import (
    CompletionFailure,
    CompletionResult,
    FinishReason,
    IndexedDelta,
    ProviderAccepted,
)
from router_service.domain.errors import FailureKind
from router_service.domain.usage import AttemptStatus, UsageSource
from router_service.routing.settings import RoutingSettings
from service_runtime.errors import Category
from tests.support.router_fakes import (
    USAGE,
    FakeProvider,
    Silence,
    Until,
    World,
    failure,
    finished,
    request,
    spec,
    text,
)
from tests.unit.router_service.routing.asking import IMPATIENT, events_of, failure_of, leave_after, rows

# ── the caller leaves ────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_caller_who_leaves_before_content_is_one_cancelled_row() -> None:
    world = World({"groq": FakeProvider([ProviderAccepted(), Silence()])})

    await leave_after(world, 1)
    await world.idle()

    assert rows(world) == [("groq", 1, AttemptStatus.CANCELLED, False)]
    assert world.providers["groq"].closed == len(world.providers["groq"].calls)


async def test_a_caller_who_leaves_after_content_pays_for_what_came() -> None:
    world = World({"groq": FakeProvider([text("x" * 30), Silence()])})

    await leave_after(world, 2)
    await world.idle()

    row = world.journal.rows[0]
    assert (row.status, row.usage_source) == (AttemptStatus.CANCELLED, UsageSource.ESTIMATED)
    assert row.usage is not None
    assert row.usage.output_tokens == 10


async def test_a_caller_who_leaves_while_the_attempt_is_recorded_sends_nothing() -> None:
    world = World({"groq": FakeProvider()})
    world.journal.gate = asyncio.Event()
    reading = asyncio.create_task(events_of(world.router))
    while not world.router.running:
        await asyncio.sleep(0)
    await asyncio.sleep(0)

    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    world.journal.gate.set()
    await world.idle()

    assert world.providers["groq"].calls == []
    assert rows(world) == [("groq", 1, AttemptStatus.CANCELLED, False)]
    assert world.journal.rows[0].usage_source is UsageSource.NONE


async def test_a_caller_who_leaves_during_a_wait_for_a_retry_ends_the_request() -> None:
    limited = FakeProvider([failure(FailureKind.RATE_LIMITED, retry_after_s=2)])
    world = World({"groq": limited})
    events = await world.router.stream(request(), deadline_s=None)
    await anext(events)
    while not limited.closed:
        await asyncio.sleep(0)
    await asyncio.sleep(0)

    events.close()
    await world.idle()

    assert len(limited.calls) == 1
    assert world.journal.is_balanced
    assert len(world.journal.rows) == 1


async def test_where_the_bill_goes_on_the_stream_is_read_to_its_end() -> None:
    rest = asyncio.Event()
    world = World(
        {"groq": FakeProvider([text("a"), Until(rest), text("b"), finished()])},
        specs=[spec("groq", on_caller_gone=CallerGonePolicy.DRAIN)],
    )

    await leave_after(world, 2)
    assert world.metric("turnpike_router_streams_draining") == 1
    rest.set()
    await world.idle()

    row = world.journal.rows[0]
    assert (row.status, row.usage, row.usage_source) == (AttemptStatus.CANCELLED, USAGE, UsageSource.PROVIDER)
    assert world.metric("turnpike_router_streams_draining") == 0


@pytest.mark.parametrize(
    "settings", [RoutingSettings(drain_s=0.01), RoutingSettings(max_drain=10), RoutingSettings(max_draining=0)]
)
async def test_reading_without_a_caller_is_bounded_in_time_bytes_and_number(settings: RoutingSettings) -> None:
    world = World(
        {"groq": FakeProvider([text("a"), Until(rest := asyncio.Event()), text("x" * 11), Silence()])},
        specs=[spec("groq", on_caller_gone=CallerGonePolicy.DRAIN)],
        settings=settings,
    )

    await leave_after(world, 2)
    if settings.max_drain == 10:
        rest.set()
    await world.idle()

    assert world.journal.rows[0].status is AttemptStatus.CANCELLED
    assert world.metric("turnpike_router_streams_draining") in (0, None)


async def test_a_caller_who_leaves_a_whole_answer_is_settled_too() -> None:
    world = World({"groq": FakeProvider([text("a"), Silence()])})
    asking = asyncio.create_task(world.router.complete(request(), deadline_s=None))
    while world.providers["groq"].handed_out == 0:
        await asyncio.sleep(0)

    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await world.idle()

    assert rows(world) == [("groq", 1, AttemptStatus.CANCELLED, False)]


async def test_a_caller_who_leaves_trips_no_breaker() -> None:
    world = World({"groq": FakeProvider([Silence()])})

    for _ in range(8):
        await leave_after(world, 1)
    await world.idle()

    state = (await world.router.providers_for(None))[0]
    assert state.breaker.value == "closed"


# ── deadline ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_passed_deadline_calls_nobody() -> None:
    world = World({"groq": FakeProvider()})

    error = await failure_of(world.router, deadline_s=0.01)

    assert error.category is Category.DEADLINE_EXCEEDED
    assert world.providers["groq"].calls == []
    assert world.journal.opened_attempts == []


async def test_a_deadline_during_the_answer_is_told_with_the_attempt() -> None:
    world = World({"groq": FakeProvider([text("x" * 30), Silence()])})

    error = await failure_of(world.router, deadline_s=0.2)
    await world.idle()

    assert error.category is Category.DEADLINE_EXCEEDED
    assert isinstance(error.detail, CompletionFailure)
    assert error.detail.partial_usage is not None
    row = world.journal.rows[0]
    assert (row.status, row.error_class) == (AttemptStatus.CANCELLED, "deadline_exceeded")


async def test_past_the_deadline_a_billed_stream_is_still_read_to_its_end() -> None:
    rest = asyncio.Event()
    world = World(
        {"groq": FakeProvider([text("a"), Until(rest), finished()])},
        specs=[spec("groq", on_caller_gone=CallerGonePolicy.DRAIN)],
    )

    error = await failure_of(world.router, deadline_s=0.2)
    rest.set()
    await world.idle()

    assert error.category is Category.DEADLINE_EXCEEDED
    assert world.journal.rows[0].usage_source is UsageSource.PROVIDER


# ── back-pressure ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_slow_caller_holds_the_provider_back() -> None:
    deltas = [text("x" * 100) for _ in range(100)]
    world = World({"groq": FakeProvider([*deltas, finished()])}, settings=RoutingSettings(max_unread=1000))
    events = await world.router.stream(request(), deadline_s=None)
    await anext(events)
    for _ in range(50):
        await asyncio.sleep(0)

    held_back_at = world.providers["groq"].handed_out
    received = [event async for event in events]

    assert held_back_at <= 8
    content = "".join(event.content.text for event in received if isinstance(event, IndexedDelta))
    assert len(content) == 10_000
    assert isinstance(received[-1], CompletionResult)


async def test_a_slow_caller_is_not_the_providers_fault() -> None:
    deltas = [text("x" * 100) for _ in range(30)]
    world = World(
        {"groq": FakeProvider([*deltas, finished()])},
        specs=[spec("groq", clocks=IMPATIENT)],
        settings=RoutingSettings(max_unread=500),
    )
    events = await world.router.stream(request(), deadline_s=None)
    await anext(events)
    await asyncio.sleep(0.06)

    received = [event async for event in events]

    assert isinstance(received[-1], CompletionResult)


async def test_a_caller_who_leaves_while_the_provider_is_held_back_frees_it() -> None:
    deltas = [text("x" * 100) for _ in range(100)]
    world = World({"groq": FakeProvider([*deltas, finished()])}, settings=RoutingSettings(max_unread=500))

    await leave_after(world, 2)
    await world.idle()

    assert world.journal.rows[0].status is AttemptStatus.CANCELLED


# ── shutdown ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_draining_router_ends_what_runs_and_takes_nothing_new() -> None:
    rest = asyncio.Event()
    world = World({"groq": FakeProvider([text("a"), Until(rest), finished()])})
    reading = asyncio.create_task(events_of(world.router))
    while world.providers["groq"].handed_out == 0:
        await asyncio.sleep(0)

    draining = asyncio.create_task(world.router.drain(5.0))
    await asyncio.sleep(0)
    error = await failure_of(world.router)
    rest.set()
    await draining

    assert error.reason == "SHUTTING_DOWN"
    assert isinstance((await reading)[-1], CompletionResult)


async def test_what_outlasts_the_grace_is_cut_and_settled_as_interrupted() -> None:
    world = World(
        {"groq": FakeProvider([text("a"), Silence()])},
        specs=[spec("groq", on_caller_gone=CallerGonePolicy.DRAIN)],
    )
    reading = asyncio.create_task(failure_of(world.router))
    while world.providers["groq"].handed_out == 0:
        await asyncio.sleep(0)

    await world.router.drain(0.0)

    assert rows(world) == [("groq", 1, AttemptStatus.INTERRUPTED, False)]
    assert (await reading).reason == "STREAM_INTERRUPTED"
    assert world.router.running == 0


@pytest.mark.parametrize("is_whole", [False, True])
async def test_a_success_that_is_being_recorded_when_the_router_is_cut_reaches_its_caller(*, is_whole: bool) -> None:
    """Else the ledger has a success that nobody has seen, and the caller asks, and pays, again."""
    world = World({"groq": FakeProvider()})
    world.journal.settling_gate = asyncio.Event()
    asked = world.router.complete(request(), deadline_s=None) if is_whole else events_of(world.router)
    asking: asyncio.Task[Any] = asyncio.create_task(asked)
    while not world.journal.rows:
        await asyncio.sleep(0)

    draining = asyncio.create_task(world.router.drain(0.0))
    for _ in range(10):
        await asyncio.sleep(0)  # the grace is over: it waits for nothing but the journal
    world.journal.settling_gate.set()
    await draining

    results = [each for each in await asking if isinstance(each, CompletionResult)]
    assert [result.finish_reason for result in results] == [FinishReason.STOP]
    assert rows(world) == [("groq", 1, AttemptStatus.SUCCESS, False)]
