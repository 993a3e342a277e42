"""Counting what a provider did not: by the tokenizer of the model that answered, and told as it is booked."""

from __future__ import annotations

from contextlib import closing

import pytest
from msgspec.structs import replace

from router_service.domain.catalog import ModelFacts
from router_service.domain.completion import (
    CompletionRequest,
    CompletionResult,
    ContentDelta,
    IndexedDelta,
    Message,
    ProviderAccepted,
    ProviderIdentified,
    ResponseFormat,
    ResponseFormatKind,
    Role,
    Tool,
    ToolCallDelta,
)
from router_service.domain.errors import FailureKind
from router_service.domain.tokens import MAX_COUNTED_ANSWER_BYTES, MAX_COUNTED_BYTES, TEMPLATES
from router_service.domain.usage import TokenUsage, UsageSource
from router_service.routing.settings import RoutingSettings
from service_runtime.errors import ServiceError
from tests.support.router_fakes import FakeProvider, Silence, Step, World, failure, finished, request, spec, text

KNOWN = ModelFacts("vendor-model", vocabulary="o200k_base")
TEMPLATE = TEMPLATES["o200k_base"]
ASKED = request(messages=(Message(Role.SYSTEM, "Be brief"), Message(Role.USER, "one two three")))
PROMPT_TOKENS = 5 + 2 * TEMPLATE.per_message + TEMPLATE.fixed
UNCOUNTED: list[Step] = [ProviderAccepted(), ContentDelta("a good day", "hm hm"), finished(None)]


def world(*script: Step, model: ModelFacts = KNOWN, counts_late: bool = False) -> World:
    served = spec("vendor", models={model.name: model}, counts_late=counts_late)
    return World({"vendor": FakeProvider(list(script))}, specs=[served])


async def result_of(served: World, asked: CompletionRequest = ASKED) -> CompletionResult:
    last = [event async for event in await served.router.stream(asked, deadline_s=None)][-1]
    assert isinstance(last, CompletionResult)
    return last


async def test_u1_what_is_counted_is_told_and_booked_alike() -> None:
    served = world(*UNCOUNTED)

    result = await result_of(served)

    (row,) = served.journal.rows
    assert result.usage == row.usage == TokenUsage(PROMPT_TOKENS, output_tokens=3, reasoning_tokens=2)
    assert result.usage_source is row.usage_source is UsageSource.COUNTED
    assert served.counter.asked == [("o200k_base", ("a good day", "hm hm", "Be brief", "one two three"))]


async def test_a_counter_that_crashes_costs_an_estimate_and_neither_the_answer_nor_its_row() -> None:
    served = world(*UNCOUNTED)
    served.counter.fault = RuntimeError("the handler is closed")  # as uvloop says of a closed pipe

    result = await result_of(served)

    (row,) = served.journal.rows
    assert result.usage == row.usage
    assert result.usage_source is row.usage_source is UsageSource.ESTIMATED


async def test_what_the_provider_counted_is_not_counted_again() -> None:
    served = world(ProviderAccepted(), text("a"), finished())

    assert (await result_of(served)).usage_source is UsageSource.PROVIDER
    assert served.counter.asked == []


async def test_a_broken_answer_is_counted_as_far_as_it_came() -> None:
    served = world(ProviderAccepted(), text("a good "), failure(FailureKind.STREAM_BROKEN))

    with pytest.raises(ServiceError):
        await result_of(served)

    (row,) = served.journal.rows
    assert (row.usage, row.usage_source) == (TokenUsage(PROMPT_TOKENS, 2), UsageSource.COUNTED)


async def test_a_caller_who_left_is_charged_what_is_counted() -> None:
    served = world(ProviderAccepted(), text("a good "), Silence())
    with closing(await served.router.stream(ASKED, deadline_s=None)) as events:
        async for event in events:
            if isinstance(event, IndexedDelta):
                break
    await served.idle()

    assert [row.usage_source for row in served.journal.rows] == [UsageSource.COUNTED]


async def test_a_model_that_was_put_in_place_of_the_known_one_is_estimated() -> None:
    served = world(ProviderAccepted(), ProviderIdentified(model="another"), text("a"), finished(None, model="another"))

    assert (await result_of(served)).usage_source is UsageSource.ESTIMATED
    assert served.counter.asked == []


async def test_a_count_stands_in_while_the_provider_is_asked_afterwards() -> None:
    broken = failure(FailureKind.STREAM_BROKEN)
    served = world(ProviderAccepted(response_id="gen-1"), text("a good"), broken, counts_late=True)

    with pytest.raises(ServiceError):
        await result_of(served)

    (row,) = served.journal.rows
    assert row.usage_source is UsageSource.COUNTED
    assert row.enquiry is not None


async def test_without_the_tokenizer_the_estimate_stands() -> None:
    served = world(*UNCOUNTED)
    served.counter.is_away = True

    assert (await result_of(served)).usage_source is UsageSource.ESTIMATED


async def test_a_model_without_a_known_tokenizer_is_estimated() -> None:
    served = world(*UNCOUNTED, model=ModelFacts("vendor-model"))

    assert (await result_of(served)).usage_source is UsageSource.ESTIMATED
    assert served.counter.asked == []


@pytest.mark.parametrize(
    "asked",
    [
        replace(ASKED, tools=(Tool("clock"),)),
        replace(ASKED, messages=(Message(Role.USER, "what?", image_urls=("https://x.test/a.png",)),)),
        replace(ASKED, response_format=ResponseFormat(ResponseFormatKind.JSON_SCHEMA, json_schema="{}")),
        replace(ASKED, messages=(Message(Role.USER, "x" * (MAX_COUNTED_BYTES + 1)),)),
    ],
    ids=["tools", "an image", "a schema", "a long prompt"],
)
async def test_what_no_count_of_texts_can_tell_is_estimated(asked: CompletionRequest) -> None:
    served = world(*UNCOUNTED)

    assert (await result_of(served, asked)).usage_source is UsageSource.ESTIMATED


@pytest.mark.parametrize(
    "delta",
    [ContentDelta(tool_calls=(ToolCallDelta(0, "c", "clock", "{}"),)), text("x" * (MAX_COUNTED_ANSWER_BYTES + 1))],
    ids=["a tool call", "a long answer"],
)
async def test_an_answer_that_cannot_be_counted_is_estimated(delta: ContentDelta) -> None:
    served = world(ProviderAccepted(), delta, text("more"), finished(None))

    assert (await result_of(served)).usage_source is UsageSource.ESTIMATED


async def test_a_caller_without_time_does_not_wait_for_a_count() -> None:
    served = world(*UNCOUNTED)

    events = [event async for event in await served.router.stream(ASKED, deadline_s=1.0)]

    assert isinstance(events[-1], CompletionResult)
    assert events[-1].usage_source is UsageSource.ESTIMATED


async def test_s7_a_router_that_stops_does_not_wait_for_counts() -> None:
    served = World(
        {"vendor": FakeProvider([ProviderAccepted(), text("a good "), Silence()])},
        specs=[spec("vendor", models={KNOWN.name: KNOWN})],
        settings=RoutingSettings(),
    )
    events = await served.router.stream(ASKED, deadline_s=None)
    await anext(events)
    await anext(events)

    await served.router.drain(0.0)

    assert [row.usage_source for row in served.journal.rows] == [UsageSource.ESTIMATED]
    assert served.counter.asked == []
    with pytest.raises(ServiceError):
        await anext(events)
