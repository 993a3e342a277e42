"""Failover over fakes: U2 one row an attempt, S4 no silent restart, S6 no more attempts than it takes."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from uuid import uuid4

import pytest

from router_service.domain.catalog import ModelFacts
from router_service.domain.completion import (
    CompletionFailure,
    CompletionResult,
    IndexedDelta,
    MidstreamFailurePolicy,
    ProviderAccepted,
    RouteChosen,
    StreamRestarted,
)
from router_service.domain.errors import FailureKind
from router_service.domain.retry_budget import FURTHER_FLOOR
from router_service.domain.tenant import InferenceConfig
from router_service.domain.usage import AttemptStatus, UsageSource
from router_service.routing.settings import RoutingSettings
from service_runtime.errors import Category, ServiceError
from tests.support.router_fakes import (
    TENANT_ID,
    USAGE,
    FakeProvider,
    Silence,
    Step,
    World,
    answer,
    failure,
    finished,
    request,
    spec,
    text,
)
from tests.unit.router_service.routing.asking import IMPATIENT, events_of, failure_of, rows

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
    events = await world.router.stream(request(), deadline_s=None)

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
