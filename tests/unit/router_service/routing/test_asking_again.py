"""Who is asked again after a failure and when, over fakes: S6 no more attempts than it takes."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from uuid import uuid4

import pytest

from router_service.domain.completion import (
    CompletionFailure,
    CompletionResult,
)
from router_service.domain.errors import FailureKind
from router_service.domain.retry_budget import FURTHER_FLOOR
from router_service.domain.tenant import InferenceConfig
from router_service.domain.usage import AttemptStatus
from router_service.routing.settings import RoutingSettings
from service_runtime.errors import Category, ServiceError
from tests.support.router_fakes import (
    TENANT_ID,
    USAGE,
    FakeProvider,
    Step,
    World,
    answer,
    failure,
    finished,
    request,
)
from tests.unit.router_service.routing.asking import events_of, failure_of, rows


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


async def test_whoever_comes_a_moment_behind_the_probe_is_told_of_the_failures_and_not_of_a_full_provider() -> None:
    now = [0.0]
    broken = FakeProvider([failure(FailureKind.UPSTREAM_BROKEN)])
    world = World({"groq": broken}, monotonic=lambda: now[0])
    while (await failure_of(world.router)).message.startswith("every attempt failed"):
        now[0] += 0.01
    asked_before = len(broken.calls)
    now[0] += 5.0  # the probe is due

    errors = await asyncio.gather(failure_of(world.router), failure_of(world.router))

    assert len(broken.calls) == asked_before + 1
    assert [error.reason for error in errors] == ["ALL_TARGETS_FAILED"] * 2
    assert "kept out after repeated failures" in errors[1].message
    assert errors[1].retry_after_s == pytest.approx(5.0)
    assert {row.opened.provider for row in world.journal.rows} == {"groq"}
