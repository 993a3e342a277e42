"""Events and answers as protos."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from uuid import UUID

import pytest
from msgspec.structs import replace

from router_service.api.render import (
    FINISH_REASONS,
    FUNDINGS,
    SOURCES,
    STATUSES,
    detail_to_proto,
    event_to_proto,
    providers_to_proto,
    whole_to_proto,
)
from router_service.domain.catalog import ModelFacts
from router_service.domain.completion import (
    AttemptSummary,
    CompletionFailure,
    CompletionResult,
    ContentDelta,
    FinishReason,
    IndexedDelta,
    RouteChosen,
    StreamRestarted,
    ToolCall,
    ToolCallDelta,
)
from router_service.domain.health import BreakerState
from router_service.domain.usage import AttemptStatus, Funding, TokenUsage, UsageSource
from router_service.routing.router import ProviderState
from router_service.routing.sinks import WholeAnswer
from tests.support.router_fakes import spec
from turnpike.router.v1 import completion_pb2 as completion
from turnpike.usage.v1 import token_usage_pb2 as tokens
from turnpike.usage.v1 import usage_event_pb2 as usage_event

ID = UUID("22222222-2222-4222-8222-222222222222")
ATTEMPT = AttemptSummary(1, "groq", "m", Funding.TENANT_KEY, AttemptStatus.SUCCESS, 1.25, ID)
RESULT = CompletionResult(
    request_id=ID,
    provider="groq",
    model="m-real",
    requested_model="m",
    finish_reason=FinishReason.STOP,
    usage=TokenUsage(1, 2, 3, 4, 5),
    usage_source=UsageSource.PROVIDER,
    cost_usd=Decimal("0.00000049999"),
    latency_s=1.5,
    time_to_first_token_s=0.25,
    attempts=(ATTEMPT,),
    funding=Funding.TENANT_KEY,
    config_version=3,
)


def test_every_enum_of_the_domain_has_its_number() -> None:
    assert set(FUNDINGS) == {None, *Funding}
    assert set(STATUSES) == set(AttemptStatus)
    assert set(SOURCES) == set(UsageSource)
    assert set(FINISH_REASONS) == set(FinishReason)
    assert 0 not in {*STATUSES.values(), *SOURCES.values(), *FINISH_REASONS.values()}


def test_a_delta_keeps_its_parts() -> None:
    call = ToolCallDelta(1, "c1", "find", "{")

    proto = event_to_proto(IndexedDelta(4, ContentDelta("text", "hm", (call,)))).delta

    assert (proto.index, proto.text, proto.reasoning) == (4, "text", "hm")
    assert proto.tool_calls[0] == completion.ToolCallDelta(index=1, id="c1", name="find", arguments="{")


def test_a_lone_surrogate_does_not_break_a_stream() -> None:
    proto = event_to_proto(IndexedDelta(0, ContentDelta("a\ud800é"))).delta

    assert proto.text == "a?é"


def test_a_route_and_a_restart_are_told() -> None:
    route = event_to_proto(RouteChosen(ID, "groq", "m", 2, None, 9)).route_chosen
    restart = event_to_proto(StreamRestarted(2, "stream_broken", 7)).restarted

    assert (route.request_id, route.attempt, route.funding, route.config_version) == (str(ID), 2, 0, 9)
    assert (restart.attempt, restart.reason, restart.discard_through_index) == (2, "stream_broken", 7)


def test_a_result_is_told_whole() -> None:
    proto = event_to_proto(RESULT).result

    assert proto.total_tokens == 15
    assert proto.cost_usd == "0.000000"
    assert proto.pricing_state == tokens.PRICING_STATE_PRICED
    assert proto.latency.ToMilliseconds() == 1500
    assert proto.time_to_first_token.ToMilliseconds() == 250
    assert proto.attempts[0].status == usage_event.USAGE_STATUS_SUCCESS


@pytest.mark.parametrize(
    ("usage", "cost", "state", "text"),
    [
        (TokenUsage(1), Decimal("1234.5678905"), tokens.PRICING_STATE_PRICED, "1234.567890"),
        (TokenUsage(1), None, tokens.PRICING_STATE_UNPRICED, ""),
        (TokenUsage(1), Decimal(0), tokens.PRICING_STATE_PRICED, "0.000000"),
        (TokenUsage(), Decimal(0), tokens.PRICING_STATE_NOTHING_CONSUMED, "0.000000"),
    ],
)
def test_an_unknown_price_is_not_zero(usage: TokenUsage, cost: Decimal | None, state: int, text: str) -> None:
    proto = event_to_proto(replace(RESULT, usage=usage, cost_usd=cost)).result

    assert (proto.pricing_state, proto.cost_usd) == (state, text)


def test_a_first_token_that_never_came_is_absent() -> None:
    assert not event_to_proto(replace(RESULT, time_to_first_token_s=None)).result.HasField("time_to_first_token")


def test_a_whole_answer_carries_its_content() -> None:
    proto = whole_to_proto(RESULT, WholeAnswer("text", "hm", (ToolCall("c", "f", "{}"),))).result

    assert (proto.content, proto.reasoning, proto.tool_calls[0].name) == ("text", "hm", "f")


def test_a_failure_lists_its_attempts_and_what_it_consumed() -> None:
    failed = replace(ATTEMPT, status=AttemptStatus.ERROR, error_class="timed_out", error_message="no content")

    proto = detail_to_proto(CompletionFailure(ID, (failed,), TokenUsage(1, 2), UsageSource.ESTIMATED))

    assert isinstance(proto, completion.CompletionFailure)
    assert proto.attempts[0].error_class == "timed_out"
    assert (proto.partial_usage.input_tokens, proto.partial_usage.output_tokens) == (1, 2)
    assert proto.usage_source == tokens.TOKEN_USAGE_SOURCE_ESTIMATED


def test_a_failure_without_content_has_no_partial_usage_and_other_details_are_not_ours() -> None:
    proto = detail_to_proto(CompletionFailure(ID, ()))

    assert isinstance(proto, completion.CompletionFailure)
    assert not proto.HasField("partial_usage")
    assert detail_to_proto("something else") is None


def test_a_provider_shows_its_models_and_whether_they_are_retired() -> None:
    models = {
        "groq-model": ModelFacts("groq-model", context_window_tokens=5, supports_tools=True),
        "old": ModelFacts("old", retirement_date=date(2026, 1, 1)),
    }
    state = ProviderState(
        spec("groq", models=models), "no key: set GROQ_API_KEY", None, BreakerState.HALF_OPEN, date(2026, 11, 23)
    )

    info = providers_to_proto([state]).providers[0]

    assert (info.usable, info.unusable_reason, info.breaker_state) == (False, "no key: set GROQ_API_KEY", "half_open")
    assert [(m.name, m.retired, m.is_default) for m in info.models] == [
        ("groq-model", False, True),
        ("old", True, False),
    ]
