"""A stream that fails after its first content, over fakes: S4 no silent restart."""

from __future__ import annotations

from decimal import Decimal

import pytest

from router_service.domain.completion import (
    CompletionFailure,
    CompletionResult,
    IndexedDelta,
    MidstreamFailurePolicy,
    RouteChosen,
    StreamRestarted,
)
from router_service.domain.errors import FailureKind
from router_service.domain.usage import AttemptStatus, UsageSource
from router_service.routing.settings import RoutingSettings
from service_runtime.errors import Category, ServiceError
from tests.support.router_fakes import (
    USAGE,
    FakeProvider,
    Silence,
    World,
    answer,
    failure,
    request,
    spec,
    text,
)
from tests.unit.router_service.routing.asking import IMPATIENT, events_of, failure_of, rows


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
