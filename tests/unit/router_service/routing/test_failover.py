"""Failover before content, over fakes: U2 one row an attempt."""

from __future__ import annotations

import pytest

from router_service.domain.catalog import ModelFacts
from router_service.domain.completion import (
    CompletionFailure,
    CompletionResult,
    ProviderAccepted,
    RouteChosen,
    StreamRestarted,
    TaskType,
)
from router_service.domain.errors import FailureKind
from router_service.domain.selection import Needs
from router_service.domain.tenant import InferenceConfig
from router_service.domain.usage import AttemptStatus, UsageSource
from service_runtime.errors import Category
from tests.support.router_fakes import (
    TENANT_ID,
    FakeProvider,
    Silence,
    World,
    failure,
    spec,
)
from tests.unit.router_service.routing.asking import IMPATIENT, events_of, failure_of, rows

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


@pytest.mark.parametrize("kind", [FailureKind.KEY_REJECTED, FailureKind.NO_CREDIT])
async def test_where_there_is_no_key_none_is_said_to_be_rejected(kind: FailureKind) -> None:
    wanting_one = FakeProvider([failure(kind, status=401)])
    world = World({"local": wanting_one}, specs=[spec("local", needs_key=False)], tenant_keys=[])

    first, while_it_rests = await failure_of(world.router), await failure_of(world.router)

    assert first.message == while_it_rests.message
    assert "Local does not answer without a key: store one: turnpike tenants set-token" in first.message
    assert "or set LOCAL_API_KEY for the router" in first.message
    assert len(wanting_one.calls) == 1
    explained = await world.router.explain(TENANT_ID, Needs(), TaskType.CHAT)
    assert "does not answer without a key" in explained.excluded[0].explanation


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


async def test_a_silent_provider_is_left_for_all_its_models() -> None:
    models = {name: ModelFacts(name) for name in ("groq-model", "groq-large")}
    silent, other = FakeProvider([failure(FailureKind.TIMED_OUT)]), FakeProvider()
    config = InferenceConfig(preferred_provider="groq", preferred_models={"groq": "groq-large"})
    world = World({"groq": silent, "llm7": other}, specs=[spec("groq", models=models)], config=config)

    await events_of(world.router)

    assert (len(silent.calls), len(other.calls)) == (1, 1)


async def test_without_failover_one_candidate_is_all() -> None:
    other = FakeProvider()
    world = World(
        {"groq": FakeProvider([failure(FailureKind.TIMED_OUT)]), "llm7": other},
        config=InferenceConfig(auto_failover=False),
    )

    error = await failure_of(world.router)

    assert error.reason == "ALL_TARGETS_FAILED"
    assert other.calls == []


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
