"""The router's promises over fakes: U1 settled before told, one row a request that we refuse, what is reported."""

from __future__ import annotations

import asyncio
from contextlib import closing
from decimal import Decimal

import pytest

from router_service.domain.completion import (
    CompletionResult,
    ContentDelta,
    IndexedDelta,
    ProviderAccepted,
    QuotaHeaders,
    RouteChosen,
    TaskType,
    ToolCall,
    ToolCallDelta,
)
from router_service.domain.errors import FailureKind
from router_service.domain.selection import Needs
from router_service.domain.usage import AttemptStatus, Funding, UsageSource
from router_service.routing.settings import RoutingSettings
from service_runtime.errors import Category, QuotaExceeded
from tests.support.router_fakes import (
    USAGE,
    FakeProvider,
    Silence,
    Until,
    World,
    answer,
    failure,
    finished,
    request,
    text,
)
from tests.unit.router_service.routing.asking import events_of, failure_of, leave_after, rows

# ── success ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_stream_is_a_route_deltas_and_a_result() -> None:
    world = World({"groq": FakeProvider([ProviderAccepted(), text("hel"), text("lo"), finished(model="groq-real")])})

    events = await events_of(world.router)

    assert isinstance(events[0], RouteChosen)
    assert (events[0].provider, events[0].attempt, events[0].config_version) == ("groq", 1, 7)
    deltas = [event for event in events if isinstance(event, IndexedDelta)]
    assert "".join(delta.content.text for delta in deltas) == "hello"
    assert [delta.index for delta in deltas] == list(range(len(deltas)))
    result = events[-1]
    assert isinstance(result, CompletionResult)
    assert (result.model, result.requested_model) == ("groq-real", "groq-model")
    assert (result.usage, result.usage_source) == (USAGE, UsageSource.PROVIDER)
    assert result.cost_usd == Decimal("0.00002")
    assert [attempt.status for attempt in result.attempts] == [AttemptStatus.SUCCESS]


async def test_the_row_is_settled_before_the_result_is_told() -> None:
    world = World({"groq": FakeProvider()})

    async for event in await world.router.stream(request(), deadline_s=None):
        if isinstance(event, CompletionResult):
            assert rows(world) == [("groq", 1, AttemptStatus.SUCCESS, False)]

    assert world.journal.is_balanced


async def test_usage_that_the_provider_does_not_report_is_estimated() -> None:
    world = World({"groq": FakeProvider(answer("x" * 300, usage=None))})

    result = (await events_of(world.router))[-1]

    assert isinstance(result, CompletionResult)
    assert result.usage_source is UsageSource.ESTIMATED
    assert result.usage.output_tokens == 100
    assert result.usage.input_tokens > 0


async def test_a_whole_answer_holds_text_reasoning_and_joined_tool_calls() -> None:
    world = World(
        {
            "groq": FakeProvider(
                [
                    ContentDelta(reasoning="hm"),
                    ContentDelta(text="a", tool_calls=(ToolCallDelta(0, "c1", "look", '{"q":'),)),
                    ContentDelta(tool_calls=(ToolCallDelta(1, "c2", "see"), ToolCallDelta(0, arguments="1}"))),
                    finished(),
                ]
            )
        }
    )

    _, whole = await world.router.complete(request(), deadline_s=None)

    assert (whole.content, whole.reasoning) == ("a", "hm")
    assert whole.tool_calls == (ToolCall("c1", "look", '{"q":1}'), ToolCall("c2", "see", ""))


async def test_the_operators_key_is_said_to_pay() -> None:
    world = World({"groq": FakeProvider()}, system_keys=["groq"])

    result = (await events_of(world.router))[-1]

    assert isinstance(result, CompletionResult)
    assert result.funding is Funding.SYSTEM_KEY
    assert world.journal.rows[0].opened.funding is Funding.SYSTEM_KEY


# ── admission ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_running_request_is_not_run_twice() -> None:
    world = World({"groq": FakeProvider([text("a"), Silence()])})
    asked = request()
    with closing(await world.router.stream(asked, deadline_s=None)) as events:
        await anext(events)

        error = await failure_of(world.router, asked)

    assert (error.category, error.reason) == (Category.ABORTED, "REQUEST_IN_FLIGHT")
    await world.idle()
    assert len(world.journal.rows) == 1


async def test_a_request_over_the_tenants_places_is_one_row_without_tokens() -> None:
    world = World({"groq": FakeProvider([text("a"), Silence()])}, settings=RoutingSettings(max_running_per_tenant=1))
    with closing(await world.router.stream(request(), deadline_s=None)) as events:
        await anext(events)

        error = await failure_of(world.router)

    assert isinstance(error, QuotaExceeded)
    refused = world.journal.rows[0]
    assert (refused.opened.provider, refused.status) == ("turnpike", AttemptStatus.RATE_LIMIT)
    assert (refused.usage, refused.usage_source) == (None, UsageSource.NONE)
    await world.idle()


async def test_a_full_provider_gives_way_to_the_next() -> None:
    world = World(
        {"groq": FakeProvider([text("a"), Silence()]), "llm7": FakeProvider()},
        settings=RoutingSettings(max_running_per_provider=1),
    )
    with closing(await world.router.stream(request(), deadline_s=None)) as running:
        await anext(running)

        events = await events_of(world.router)

    assert isinstance(events[-1], CompletionResult)
    assert events[-1].provider == "llm7"
    await world.idle()


async def test_a_request_that_finds_every_provider_full_is_one_refused_row() -> None:
    world = World({"groq": FakeProvider([text("a"), Silence()])}, settings=RoutingSettings(max_running_per_provider=1))
    with closing(await world.router.stream(request(), deadline_s=None)) as running:
        await anext(running)
        while not world.providers["groq"].calls:
            await asyncio.sleep(0)

        error = await failure_of(world.router)

    assert isinstance(error, QuotaExceeded)
    await world.idle()
    assert [row.opened.provider for row in world.journal.rows] == ["turnpike", "groq"]


async def test_places_are_given_back_whatever_happens() -> None:
    world = World(
        {"groq": FakeProvider(answer(), [failure(FailureKind.TIMED_OUT)], [text("a"), Silence()], answer())},
        settings=RoutingSettings(max_running_per_provider=1, max_running_per_tenant=1),
    )

    await events_of(world.router)
    await failure_of(world.router)
    await leave_after(world, 2)
    await world.idle()
    events = await events_of(world.router)

    assert isinstance(events[-1], CompletionResult)


async def test_a_tenant_without_keys_learns_what_to_set() -> None:
    world = World({"groq": FakeProvider(), "llm7": FakeProvider()}, tenant_keys=[])

    error = await failure_of(world.router)

    assert (error.category, error.reason) == (Category.FAILED_PRECONDITION, "NO_PROVIDER")
    assert "GROQ_API_KEY" in error.message
    assert "turnpike tenants set-token" in error.message
    assert world.journal.rows == []


# ── the journal and our own faults ───────────────────────────────────────────────────────────────────────────────


async def test_a_full_journal_sends_nothing() -> None:
    world = World({"groq": FakeProvider()})
    world.journal.refuses_opening = True

    error = await failure_of(world.router)

    assert error.reason == "JOURNAL_FULL"
    assert world.providers["groq"].calls == []


async def test_a_failover_that_cannot_be_recorded_leaves_the_first_failure_visible() -> None:
    broken = FakeProvider([Until(gate := asyncio.Event()), failure(FailureKind.TIMED_OUT)])
    world = World({"groq": broken, "llm7": FakeProvider()})
    reading = asyncio.create_task(failure_of(world.router))
    while not broken.calls:
        await asyncio.sleep(0)
    world.journal.refuses_opening = True
    gate.set()

    error = await reading

    assert error.reason == "ALL_TARGETS_FAILED"
    assert rows(world) == [("groq", 1, AttemptStatus.ERROR, False)]


async def test_an_end_that_cannot_be_recorded_is_no_success_and_frees_every_place() -> None:
    world = World(
        {"groq": FakeProvider([failure(FailureKind.TIMED_OUT)]), "llm7": FakeProvider()},
        settings=RoutingSettings(max_running_per_provider=1, max_running_per_tenant=1),
    )
    world.journal.breaks_settling = True
    error = await failure_of(world.router)
    world.journal.breaks_settling = False

    events = await events_of(world.router)

    assert error.reason == "JOURNAL_BROKEN"
    assert isinstance(events[-1], CompletionResult)
    assert events[-1].provider == "llm7"


async def test_a_fault_of_our_own_is_settled_and_raised_as_it_is() -> None:
    world = World({"groq": FakeProvider([text("a"), ZeroDivisionError("ours")])})

    with pytest.raises(ZeroDivisionError):
        await events_of(world.router)

    row = world.journal.rows[0]
    assert (row.status, row.error_class, row.error_message) == (AttemptStatus.ERROR, "internal", "internal error")


# ── what is reported ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_attempts_and_completions_are_counted() -> None:
    world = World({"groq": FakeProvider([failure(FailureKind.OVERLOADED)]), "llm7": FakeProvider()})

    await events_of(world.router)

    count = world.metric("turnpike_router_attempts_total", provider="groq", status="error", reason="overloaded")
    assert count == 1
    assert world.metric("turnpike_router_completions_total", outcome="success") == 1
    await world.idle()
    assert world.metric("turnpike_router_completions_in_flight") == 0


async def test_explaining_calls_nobody_and_ranks_as_the_router_does() -> None:
    world = World({"groq": FakeProvider(), "llm7": FakeProvider()}, tenant_keys=["llm7"])

    explained = await world.router.explain(request().tenant_id, Needs(), TaskType.CHAT)

    assert [scored.candidate.provider for scored in explained.candidates] == ["llm7"]
    assert [(out.provider, out.reason) for out in explained.excluded] == [("groq", "NO_KEY")]
    assert explained.config_version == 7
    assert world.providers["llm7"].calls == []


async def test_a_provider_whose_key_is_nearly_used_up_is_ranked_lower() -> None:
    quota = QuotaHeaders(remaining_requests=1, limit_requests=100)
    world = World({"groq": FakeProvider([ProviderAccepted(quota), text("a"), finished()]), "llm7": FakeProvider()})
    await events_of(world.router)

    second = (await events_of(world.router))[-1]

    assert isinstance(second, CompletionResult)
    assert second.provider == "llm7"


async def test_a_journal_that_breaks_in_a_way_nobody_foresaw_still_leaves_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World({"groq": FakeProvider([failure(FailureKind.UPSTREAM_BROKEN)]), "llm7": FakeProvider()})

    async def settled(_attempt: object) -> None:
        raise RuntimeError("what no journal says")

    monkeypatch.setattr(world.journal, "settled", settled)

    async with asyncio.timeout(30):
        with pytest.raises(RuntimeError):
            await events_of(world.router)

    assert len(world.journal.opened_attempts) == 2  # neither of which can be settled
