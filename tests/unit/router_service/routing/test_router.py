"""The router's promises over fakes: U1 settled before told, U2 one row an attempt, S4 no silent restart, S5, S7."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from dataclasses import replace
from decimal import Decimal
from uuid import uuid4

import pytest

from router_service.domain.catalog import CallerGonePolicy, Clocks, ModelFacts
from router_service.domain.completion import (
    CompletionFailure,
    CompletionRequest,
    CompletionResult,
    ContentDelta,
    IndexedDelta,
    MidstreamFailurePolicy,
    ProviderAccepted,
    QuotaHeaders,
    RouteChosen,
    RouterEvent,
    StreamRestarted,
    TaskType,
    ToolCall,
    ToolCallDelta,
)
from router_service.domain.errors import FailureKind
from router_service.domain.retry_budget import FURTHER_FLOOR
from router_service.domain.selection import Needs
from router_service.domain.tenant import InferenceConfig
from router_service.domain.usage import AttemptStatus, Funding, UsageSource
from router_service.routing.router import Router
from router_service.routing.settings import RoutingSettings
from service_runtime.errors import Category, QuotaExceeded, ServiceError
from tests.support.router_fakes import (
    TENANT_ID,
    USAGE,
    FakeProvider,
    Silence,
    Step,
    Until,
    World,
    answer,
    failure,
    finished,
    request,
    spec,
    text,
)

IMPATIENT = Clocks(first_content_s=0.02, content_gap_s=0.02, total_s=5.0)


async def events_of(
    router: Router, asked: CompletionRequest | None = None, *, deadline_s: float | None = None
) -> list[RouterEvent]:
    return [event async for event in router.stream(asked or request(), deadline_s=deadline_s)]


async def failure_of(
    router: Router, asked: CompletionRequest | None = None, *, deadline_s: float | None = None
) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await events_of(router, asked, deadline_s=deadline_s)
    return caught.value


def rows(world: World) -> list[tuple[str, int, AttemptStatus, bool]]:
    return [(r.opened.provider, r.opened.attempt, r.status, r.absorbed) for r in world.journal.rows]


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

    async for event in world.router.stream(request(), deadline_s=None):
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


# ── failover before content ──────────────────────────────────────────────────────────────────────────────────────

MOVES_ON = [
    FailureKind.NO_CREDIT,
    FailureKind.NOT_ALLOWED,
    FailureKind.REQUEST_TOO_LARGE,
    FailureKind.MODEL_GONE,
    FailureKind.RATE_LIMITED,
    FailureKind.OVERLOADED,
    FailureKind.UPSTREAM_BROKEN,
    FailureKind.PROTOCOL_VIOLATION,
    FailureKind.CONNECT_FAILED,
    FailureKind.TRANSPORT_FAILED,
    FailureKind.TIMED_OUT,
    FailureKind.STREAM_BROKEN,
    FailureKind.POLICY_REFUSED,
]


@pytest.mark.parametrize("kind", MOVES_ON)
async def test_a_failure_before_content_is_absorbed_by_the_next_candidate(kind: FailureKind) -> None:
    world = World({"groq": FakeProvider([failure(kind)]), "llm7": FakeProvider()})

    events = await events_of(world.router)

    assert [(e.provider, e.attempt) for e in events if isinstance(e, RouteChosen)] == [("groq", 1), ("llm7", 2)]
    assert not any(isinstance(event, StreamRestarted) for event in events)
    first = AttemptStatus.RATE_LIMIT if kind is FailureKind.RATE_LIMITED else AttemptStatus.ERROR
    assert rows(world) == [("groq", 1, first, True), ("llm7", 2, AttemptStatus.SUCCESS, False)]
    assert world.journal.rows[0].error_class == kind.value


FINAL = [
    (FailureKind.BAD_REQUEST, Category.INVALID_ARGUMENT, "PROVIDER_REFUSED_REQUEST"),
    (FailureKind.CONTENT_REFUSED, Category.INVALID_ARGUMENT, "CONTENT_REFUSED"),
    (FailureKind.CONTEXT_TOO_LONG, Category.INVALID_ARGUMENT, "CONTEXT_LENGTH"),
    (FailureKind.KEY_REJECTED, Category.FAILED_PRECONDITION, "PROVIDER_KEY_REJECTED"),
]


@pytest.mark.parametrize(("kind", "category", "reason"), FINAL)
async def test_a_failure_that_another_candidate_cannot_cure_is_final(
    kind: FailureKind, category: Category, reason: str
) -> None:
    other = FakeProvider()
    world = World({"groq": FakeProvider([failure(kind, status=400)]), "llm7": other})

    error = await failure_of(world.router)

    assert (error.category, error.reason) == (category, reason)
    assert other.calls == []
    assert rows(world) == [("groq", 1, AttemptStatus.ERROR, False)]
    assert isinstance(error.detail, CompletionFailure)
    assert [attempt.error_class for attempt in error.detail.attempts] == [kind.value]


async def test_a_rejected_key_of_the_operators_moves_on() -> None:
    world = World(
        {"groq": FakeProvider([failure(FailureKind.KEY_REJECTED)]), "llm7": FakeProvider()},
        system_keys=["groq", "llm7"],
    )

    events = await events_of(world.router)

    assert isinstance(events[-1], CompletionResult)


async def test_a_rejected_key_of_the_tenants_own_is_told_again_without_asking_again() -> None:
    rejecting, other = FakeProvider([failure(FailureKind.KEY_REJECTED, status=401)]), FakeProvider()
    config = InferenceConfig(preferred_provider="groq")
    world = World({"groq": rejecting, "llm7": other}, config=config)
    await failure_of(world.router)

    again = await failure_of(world.router)

    assert again.reason == "PROVIDER_KEY_REJECTED"
    assert len(rejecting.calls) == 1
    assert other.calls == []


async def test_a_tenant_out_of_credit_does_not_spend_the_operators_money() -> None:
    operators = FakeProvider()
    world = World({"groq": FakeProvider([failure(FailureKind.NO_CREDIT)]), "llm7": operators}, system_keys=["llm7"])

    error = await failure_of(world.router)

    assert error.reason == "PROVIDER_KEY_REJECTED"
    assert operators.calls == []


async def test_too_long_goes_on_to_a_larger_window_only() -> None:
    small, large = FakeProvider(), FakeProvider()
    world = World(
        {"groq": FakeProvider([failure(FailureKind.CONTEXT_TOO_LONG)]), "llm7": small, "local": large},
        specs=[spec("groq", window=100_000), spec("llm7", window=90_000), spec("local", window=110_000)],
        config=InferenceConfig(preferred_provider="groq"),
    )

    events = await events_of(world.router)

    assert isinstance(events[-1], CompletionResult)
    assert (len(small.calls), len(large.calls)) == (0, 1)


@pytest.mark.parametrize("kind", [FailureKind.OVERLOADED, FailureKind.UPSTREAM_BROKEN, FailureKind.CONNECT_FAILED])
async def test_the_only_candidate_is_tried_once_more(kind: FailureKind) -> None:
    world = World({"groq": FakeProvider([failure(kind)], answer())})

    await events_of(world.router)

    assert rows(world) == [("groq", 1, AttemptStatus.ERROR, True), ("groq", 2, AttemptStatus.SUCCESS, False)]


async def test_a_silent_provider_is_not_asked_twice() -> None:
    silent = FakeProvider([failure(FailureKind.TIMED_OUT)])
    world = World({"groq": silent})

    error = await failure_of(world.router)

    assert error.reason == "ALL_TARGETS_FAILED"
    assert len(silent.calls) == 1


async def test_a_short_retry_after_is_waited_for_when_nobody_else_is_left() -> None:
    world = World({"groq": FakeProvider([failure(FailureKind.RATE_LIMITED, retry_after_s=0.01)], answer())})

    events = await events_of(world.router)

    assert isinstance(events[-1], CompletionResult)


async def test_a_long_retry_after_is_told_to_the_caller() -> None:
    world = World({"groq": FakeProvider([failure(FailureKind.RATE_LIMITED, retry_after_s=30)])})

    error = await failure_of(world.router)

    assert (error.category, error.reason) == (Category.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    assert error.retry_after_s == 30


async def test_while_a_key_rests_the_provider_is_not_asked() -> None:
    limited = FakeProvider([failure(FailureKind.RATE_LIMITED, retry_after_s=30)])
    world = World({"groq": limited})
    await failure_of(world.router)

    error = await failure_of(world.router)

    assert error.reason == "RATE_LIMITED"
    assert error.retry_after_s is not None
    assert len(limited.calls) == 1


async def test_an_empty_answer_is_asked_for_once_more_and_its_tokens_are_kept() -> None:
    world = World({"groq": FakeProvider([finished()], answer())})

    events = await events_of(world.router)

    assert isinstance(events[-1], CompletionResult)
    assert (world.journal.rows[0].usage, world.journal.rows[0].error_class) == (USAGE, "model_misbehaved")


async def test_a_silent_provider_is_left_for_all_its_models() -> None:
    models = {name: ModelFacts(name) for name in ("groq-model", "groq-large")}
    silent, other = FakeProvider([failure(FailureKind.TIMED_OUT)]), FakeProvider()
    config = InferenceConfig(preferred_provider="groq", preferred_models={"groq": "groq-large"})
    world = World({"groq": silent, "llm7": other}, specs=[spec("groq", models=models)], config=config)

    await events_of(world.router)

    assert (len(silent.calls), len(other.calls)) == (1, 1)


async def test_a_route_that_a_failure_has_closed_is_not_asked_again_by_the_same_request() -> None:
    broken = FakeProvider([failure(FailureKind.UPSTREAM_BROKEN)])
    world = World({"groq": broken})
    for _ in range(2):  # two attempts each
        await failure_of(world.router)

    await failure_of(world.router)

    assert len(broken.calls) == 5


async def test_when_everybody_failed_the_caller_learns_when_to_come_back() -> None:
    world = World(
        {
            "groq": FakeProvider([failure(FailureKind.OVERLOADED, retry_after_s=30)]),
            "llm7": FakeProvider([failure(FailureKind.OVERLOADED, retry_after_s=20)]),
        }
    )

    first, again = await failure_of(world.router), await failure_of(world.router)

    assert (first.reason, first.retry_after_s) == ("ALL_TARGETS_FAILED", 20)
    assert again.reason == "ALL_TARGETS_FAILED"
    assert again.retry_after_s == pytest.approx(20, abs=1)
    assert [len(provider.calls) for provider in world.providers.values()] == [1, 1]


async def test_while_all_routes_fail_retries_stay_a_tenth_of_the_requests() -> None:
    """S6: refusals by open breakers included, nobody is asked more often than callers ask."""
    flaky: list[list[Step]] = [[failure(FailureKind.UPSTREAM_BROKEN)], answer()] * 400
    world = World({"groq": FakeProvider(*flaky), "llm7": FakeProvider(*flaky[1:])})

    for _ in range(300):
        with suppress(ServiceError):
            await events_of(world.router)

    attempts = sum(len(provider.calls) for provider in world.providers.values())
    assert attempts <= 1.1 * 300 + FURTHER_FLOOR


async def test_a_tenant_whose_requests_all_fail_over_leaves_the_others_their_share() -> None:
    world = World(
        {"groq": FakeProvider([failure(FailureKind.REQUEST_TOO_LARGE)]), "llm7": FakeProvider()},
        config=InferenceConfig(preferred_provider="groq"),
    )
    other = uuid4()
    world.tenants.tenants[other] = replace(world.tenants.tenants[TENANT_ID], id=other)
    refused = 0
    for _ in range(200):
        try:
            await events_of(world.router)
        except ServiceError:
            refused += 1

    events = await events_of(world.router, request(tenant_id=other))

    assert refused > 100
    assert isinstance(events[-1], CompletionResult)


async def test_without_failover_one_candidate_is_all() -> None:
    other = FakeProvider()
    world = World(
        {"groq": FakeProvider([failure(FailureKind.TIMED_OUT)]), "llm7": other},
        config=InferenceConfig(auto_failover=False),
    )

    error = await failure_of(world.router)

    assert error.reason == "ALL_TARGETS_FAILED"
    assert other.calls == []


async def test_no_request_takes_more_than_its_attempts() -> None:
    providers = {name: FakeProvider([failure(FailureKind.TIMED_OUT)]) for name in ("a", "b", "c", "d")}
    world = World(providers, settings=RoutingSettings(max_attempts=3))

    error = await failure_of(world.router)

    assert isinstance(error.detail, CompletionFailure)
    assert len(error.detail.attempts) == 3
    assert [row.absorbed for row in world.journal.rows] == [True, True, False]


async def test_five_failures_in_a_row_keep_the_route_closed_to_others() -> None:
    broken = FakeProvider([failure(FailureKind.TIMED_OUT)])
    world = World({"groq": broken, "llm7": FakeProvider()}, config=InferenceConfig(preferred_provider="groq"))
    candidate_calls = []

    for _ in range(8):
        await events_of(world.router)
        candidate_calls.append(len(broken.calls))

    assert candidate_calls[-1] <= 5
    assert candidate_calls[-1] == candidate_calls[-2]


async def test_a_provider_that_says_nothing_gives_way_when_its_clock_runs_out() -> None:
    world = World(
        {"groq": FakeProvider([ProviderAccepted(), Silence()]), "llm7": FakeProvider()},
        specs=[spec("groq", clocks=IMPATIENT)],
    )

    events = await events_of(world.router)

    assert isinstance(events[-1], CompletionResult)
    silent = world.journal.rows[0]
    assert (silent.error_class, silent.usage_source) == ("timed_out", UsageSource.ESTIMATED)
    assert world.providers["groq"].closed == 1


async def test_a_short_deadline_leaves_time_for_the_next_candidate_and_is_no_evidence() -> None:
    world = World({"groq": FakeProvider([Silence()]), "llm7": FakeProvider()})

    events = await events_of(world.router, deadline_s=0.4)

    assert isinstance(events[-1], CompletionResult)
    assert events[-1].provider == "llm7"
    states = {state.spec.name: state for state in await world.router.providers_for(None)}
    assert states["groq"].breaker.value == "closed"


async def test_the_prompt_of_a_refused_attempt_is_not_charged() -> None:
    world = World({"groq": FakeProvider([failure(FailureKind.BAD_REQUEST, status=400)])})

    await failure_of(world.router)

    assert (world.journal.rows[0].usage, world.journal.rows[0].usage_source) == (None, UsageSource.NONE)


# ── after content ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_stream_that_breaks_after_content_is_an_error_with_what_it_consumed() -> None:
    other = FakeProvider()
    world = World({"groq": FakeProvider([text("x" * 30), failure(FailureKind.STREAM_BROKEN)]), "llm7": other})
    events = world.router.stream(request(), deadline_s=None)

    seen = [await anext(events), await anext(events)]
    with pytest.raises(ServiceError) as caught:
        await anext(events)

    assert (caught.value.category, caught.value.reason) == (Category.UNAVAILABLE, "STREAM_INTERRUPTED")
    assert seen[1] == IndexedDelta(0, text("x" * 30))
    assert other.calls == []
    detail = caught.value.detail
    assert isinstance(detail, CompletionFailure)
    assert detail.partial_usage is not None
    assert (detail.partial_usage.output_tokens, detail.usage_source) == (10, UsageSource.ESTIMATED)


async def test_what_a_provider_reported_before_it_failed_is_booked_instead_of_an_estimate() -> None:
    reported = failure(FailureKind.STREAM_BROKEN)
    reported.usage, reported.reported_cost_usd, reported.model = USAGE, Decimal("0.25"), "the-real-one"
    world = World({"groq": FakeProvider([text("x" * 30), reported])})

    error = await failure_of(world.router)

    row = world.journal.rows[0]
    assert (row.usage, row.usage_source) == (USAGE, UsageSource.PROVIDER)
    assert (row.reported_cost_usd, row.model) == (Decimal("0.25"), "the-real-one")
    assert isinstance(error.detail, CompletionFailure)
    assert (error.detail.partial_usage, error.detail.usage_source) == (USAGE, UsageSource.PROVIDER)


async def test_a_stream_that_ends_without_finish_reason_is_no_success() -> None:
    world = World({"groq": FakeProvider([text("half")])})

    error = await failure_of(world.router)

    assert error.reason == "STREAM_INTERRUPTED"
    assert world.journal.rows[0].error_class == "stream_broken"


async def test_a_caller_who_wants_restarts_is_told_what_to_discard() -> None:
    world = World(
        {
            "groq": FakeProvider([text("wrong"), failure(FailureKind.STREAM_BROKEN)]),
            "llm7": FakeProvider(answer("right")),
        }
    )

    events = await events_of(world.router, request(on_midstream_failure=MidstreamFailurePolicy.RESTART))

    kinds = [type(event) for event in events]
    assert kinds == [RouteChosen, IndexedDelta, StreamRestarted, RouteChosen, IndexedDelta, CompletionResult]
    restart = events[2]
    assert isinstance(restart, StreamRestarted)
    assert (restart.attempt, restart.reason, restart.discard_through_index) == (2, "stream_broken", 0)
    assert isinstance(events[4], IndexedDelta)
    assert events[4].index == 1
    assert rows(world) == [("groq", 1, AttemptStatus.ERROR, True), ("llm7", 2, AttemptStatus.SUCCESS, False)]


async def test_a_refused_content_is_not_restarted_elsewhere() -> None:
    world = World({"groq": FakeProvider([text("a"), failure(FailureKind.CONTENT_REFUSED)]), "llm7": FakeProvider()})

    error = await failure_of(world.router, request(on_midstream_failure=MidstreamFailurePolicy.RESTART))

    assert error.reason == "STREAM_INTERRUPTED"


async def test_a_whole_answer_fails_over_unseen_even_in_its_middle() -> None:
    world = World(
        {
            "groq": FakeProvider([text("wrong"), failure(FailureKind.STREAM_BROKEN)]),
            "llm7": FakeProvider(answer("right")),
        }
    )

    result, whole = await world.router.complete(request(), deadline_s=None)

    assert (whole.content, result.provider) == ("right", "llm7")
    assert [row.absorbed for row in world.journal.rows] == [True, False]
    assert world.journal.rows[0].usage_source is UsageSource.ESTIMATED


async def test_a_pause_within_the_answer_ends_it() -> None:
    world = World({"groq": FakeProvider([text("a"), Silence()])}, specs=[spec("groq", clocks=IMPATIENT)])

    error = await failure_of(world.router)

    assert error.reason == "STREAM_INTERRUPTED"
    assert world.journal.rows[0].error_class == "timed_out"


async def test_an_answer_without_end_is_cut() -> None:
    endless = FakeProvider([text("x" * 100) for _ in range(20)])
    world = World({"groq": endless}, settings=RoutingSettings(max_answer=500))

    error = await failure_of(world.router)

    assert error.reason == "STREAM_INTERRUPTED"
    assert endless.handed_out == 6


# ── the caller leaves ────────────────────────────────────────────────────────────────────────────────────────────


async def leave_after(world: World, count: int) -> None:
    """Read `count` events, then leave."""
    async with aclosing(world.router.stream(request(), deadline_s=None)) as events:
        for _ in range(count):
            await anext(events)


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
    events = world.router.stream(request(), deadline_s=None)
    await anext(events)
    while not limited.closed:
        await asyncio.sleep(0)
    await asyncio.sleep(0)

    await events.aclose()
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


# ── admission ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_running_request_is_not_run_twice() -> None:
    world = World({"groq": FakeProvider([text("a"), Silence()])})
    asked = request()
    async with aclosing(world.router.stream(asked, deadline_s=None)) as events:
        await anext(events)

        error = await failure_of(world.router, asked)

    assert (error.category, error.reason) == (Category.ABORTED, "REQUEST_IN_FLIGHT")
    await world.idle()
    assert len(world.journal.rows) == 1


async def test_a_request_over_the_tenants_places_is_one_row_without_tokens() -> None:
    world = World({"groq": FakeProvider([text("a"), Silence()])}, settings=RoutingSettings(max_running_per_tenant=1))
    async with aclosing(world.router.stream(request(), deadline_s=None)) as events:
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
    async with aclosing(world.router.stream(request(), deadline_s=None)) as running:
        await anext(running)

        events = await events_of(world.router)

    assert isinstance(events[-1], CompletionResult)
    assert events[-1].provider == "llm7"
    await world.idle()


async def test_a_request_that_finds_every_provider_full_is_one_refused_row() -> None:
    world = World({"groq": FakeProvider([text("a"), Silence()])}, settings=RoutingSettings(max_running_per_provider=1))
    async with aclosing(world.router.stream(request(), deadline_s=None)) as running:
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


# ── back-pressure ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_slow_caller_holds_the_provider_back() -> None:
    deltas = [text("x" * 100) for _ in range(100)]
    world = World({"groq": FakeProvider([*deltas, finished()])}, settings=RoutingSettings(max_unread=1000))
    events = world.router.stream(request(), deadline_s=None)
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
    events = world.router.stream(request(), deadline_s=None)
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
