"""From the domain to the protos of RouterService. Rendering cannot fail.

What every request is told is filled in, field by field: a message that is made by itself is copied into the one around
it. A delta takes 1.4 us so instead of 2.7, a whole answer 13 instead of 21.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from decimal import ROUND_HALF_EVEN, Decimal

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message as ProtoMessage

from router_service.domain.catalog import ModelFacts
from router_service.domain.completion import (
    AttemptSummary,
    CompletionFailure,
    CompletionResult,
    FinishReason,
    IndexedDelta,
    RouteChosen,
    RouterEvent,
    StreamRestarted,
)
from router_service.domain.scoring import Scored
from router_service.domain.usage import AttemptStatus, Funding, TokenUsage, UsageSource
from router_service.routing.router import Explanation, ProviderState
from router_service.routing.sinks import WholeAnswer
from turnpike.router.v1 import completion_pb2 as completion
from turnpike.router.v1 import router_service_pb2 as pb
from turnpike.usage.v1 import token_usage_pb2 as tokens
from turnpike.usage.v1 import usage_event_pb2 as usage_event

SIX_DECIMALS = Decimal("0.000001")

FUNDINGS = {
    None: tokens.FUNDING_UNSPECIFIED,
    Funding.TENANT_KEY: tokens.FUNDING_TENANT_KEY,
    Funding.SYSTEM_KEY: tokens.FUNDING_SYSTEM_KEY,
}
STATUSES = {
    AttemptStatus.SUCCESS: usage_event.USAGE_STATUS_SUCCESS,
    AttemptStatus.ERROR: usage_event.USAGE_STATUS_ERROR,
    AttemptStatus.RATE_LIMIT: usage_event.USAGE_STATUS_RATE_LIMIT,
    AttemptStatus.CANCELLED: usage_event.USAGE_STATUS_CANCELLED,
    AttemptStatus.INTERRUPTED: usage_event.USAGE_STATUS_INTERRUPTED,
}
SOURCES = {
    UsageSource.PROVIDER: tokens.TOKEN_USAGE_SOURCE_PROVIDER,
    UsageSource.PROVIDER_LATE: tokens.TOKEN_USAGE_SOURCE_PROVIDER_LATE,
    UsageSource.COUNTED: tokens.TOKEN_USAGE_SOURCE_COUNTED,
    UsageSource.ESTIMATED: tokens.TOKEN_USAGE_SOURCE_ESTIMATED,
    UsageSource.NONE: tokens.TOKEN_USAGE_SOURCE_NONE,
}
FINISH_REASONS = {
    FinishReason.STOP: completion.FINISH_REASON_STOP,
    FinishReason.LENGTH: completion.FINISH_REASON_LENGTH,
    FinishReason.TOOL_CALLS: completion.FINISH_REASON_TOOL_CALLS,
    FinishReason.CONTENT_FILTER: completion.FINISH_REASON_CONTENT_FILTER,
}


def event_to_proto(event: RouterEvent) -> pb.StreamCompletionResponse:
    """One event of a stream."""
    message = pb.StreamCompletionResponse()
    if isinstance(event, IndexedDelta):
        _fill_delta(message.delta, event)
        return message
    if isinstance(event, RouteChosen):
        return pb.StreamCompletionResponse(route_chosen=_route_chosen(event))
    if isinstance(event, StreamRestarted):
        return pb.StreamCompletionResponse(
            restarted=completion.StreamRestarted(
                attempt=event.attempt, reason=event.reason, discard_through_index=event.discard_through_index
            )
        )
    _fill_result(message.result, event)
    return message


def whole_to_proto(result: CompletionResult, answer: WholeAnswer) -> pb.CompleteResponse:
    """The answer of Complete."""
    response = pb.CompleteResponse()
    message = response.result
    _fill_result(message, result)
    message.content = _utf8(answer.content)
    message.reasoning = _utf8(answer.reasoning)
    message.tool_calls.extend(
        completion.ToolCall(id=_utf8(call.id), name=_utf8(call.name), arguments=_utf8(call.arguments))
        for call in answer.tool_calls
    )
    return response


def detail_to_proto(detail: object) -> ProtoMessage | None:
    """The detail message of a failed completion; None for a detail that is not the router's."""
    if not isinstance(detail, CompletionFailure):
        return None
    message = completion.CompletionFailure(
        request_id=str(detail.request_id),
        partial_usage=_usage(detail.partial_usage) if detail.partial_usage is not None else None,
        usage_source=SOURCES[detail.usage_source],
    )
    for attempt in detail.attempts:
        _fill_attempt(message.attempts.add(), attempt)
    return message


def explanation_to_proto(explanation: Explanation) -> pb.ExplainRouteResponse:
    """The answer of ExplainRoute."""
    return pb.ExplainRouteResponse(
        candidates=[_ranked(rank, scored) for rank, scored in enumerate(explanation.candidates, start=1)],
        excluded=[
            pb.ExcludedCandidate(provider=out.provider, model=out.model, reason=out.reason, explanation=out.explanation)
            for out in explanation.excluded
        ],
        auto_failover=explanation.auto_failover,
        config_version=explanation.config_version,
    )


def providers_to_proto(states: Iterable[ProviderState]) -> pb.ListProvidersResponse:
    """The answer of ListProviders."""
    return pb.ListProvidersResponse(providers=[_provider(state) for state in states])


def _fill_delta(delta: completion.ContentDelta, event: IndexedDelta) -> None:
    content = event.content
    delta.index = event.index
    try:
        delta.text = content.text
        if content.reasoning:
            delta.reasoning = content.reasoning
    except UnicodeEncodeError:
        delta.text, delta.reasoning = _utf8(content.text), _utf8(content.reasoning)
    for call in content.tool_calls:
        delta.tool_calls.add(
            index=call.index, id=_utf8(call.id), name=_utf8(call.name), arguments=_utf8(call.arguments)
        )


def _route_chosen(event: RouteChosen) -> completion.RouteChosen:
    return completion.RouteChosen(
        request_id=str(event.request_id),
        provider=event.provider,
        model=event.model,
        attempt=event.attempt,
        funding=FUNDINGS[event.funding],
        config_version=event.config_version,
    )


def _fill_result(message: completion.CompletionResult, result: CompletionResult) -> None:
    usage, cost_usd = result.usage, result.cost_usd
    message.request_id = str(result.request_id)
    message.provider = result.provider
    message.model = _utf8(result.model)
    message.requested_model = result.requested_model
    message.finish_reason = FINISH_REASONS[result.finish_reason]
    message.input_tokens = usage.input_tokens
    message.output_tokens = usage.output_tokens
    message.cached_read_tokens = usage.cached_read_tokens
    message.cached_write_tokens = usage.cached_write_tokens
    message.reasoning_tokens = usage.reasoning_tokens
    message.total_tokens = usage.total_tokens
    message.usage_source = SOURCES[result.usage_source]
    if cost_usd is not None:
        message.cost_usd = f"{cost_usd.quantize(SIX_DECIMALS, ROUND_HALF_EVEN):f}"
    message.pricing_state = _pricing_state(usage, cost_usd)
    _fill_duration(message.latency, result.latency_s)
    if result.time_to_first_token_s is not None:
        _fill_duration(message.time_to_first_token, result.time_to_first_token_s)
    for attempt in result.attempts:
        _fill_attempt(message.attempts.add(), attempt)
    message.funding = FUNDINGS[result.funding]
    message.config_version = result.config_version


def _pricing_state(usage: TokenUsage, cost_usd: Decimal | None) -> tokens.PricingState.ValueType:
    if usage.total_tokens == 0:
        return tokens.PRICING_STATE_NOTHING_CONSUMED
    return tokens.PRICING_STATE_UNPRICED if cost_usd is None else tokens.PRICING_STATE_PRICED


def _fill_attempt(message: completion.AttemptSummary, attempt: AttemptSummary) -> None:
    message.attempt = attempt.attempt
    message.provider = attempt.provider
    message.model = attempt.model
    message.funding = FUNDINGS[attempt.funding]
    message.status = STATUSES[attempt.status]
    if attempt.error_class:
        message.error_class = attempt.error_class
        message.error_message = _utf8(attempt.error_message)
    _fill_duration(message.latency, attempt.latency_s)
    message.usage_event_id = str(attempt.usage_event_id)


def _usage(usage: TokenUsage) -> tokens.TokenUsage:
    return tokens.TokenUsage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_read_tokens=usage.cached_read_tokens,
        cached_write_tokens=usage.cached_write_tokens,
        reasoning_tokens=usage.reasoning_tokens,
    )


def _ranked(rank: int, scored: Scored) -> pb.RankedCandidate:
    candidate = scored.candidate
    return pb.RankedCandidate(
        rank=rank,
        provider=candidate.provider,
        model=candidate.model.name,
        funding=FUNDINGS[candidate.funding],
        score=scored.score,
        terms=[
            pb.ScoreTerm(name=term.name, value=term.value, weight=term.weight, evidence=term.evidence)
            for term in scored.terms
        ],
    )


def _provider(state: ProviderState) -> pb.ProviderInfo:
    spec = state.spec
    return pb.ProviderInfo(
        name=spec.name,
        display_name=spec.display_name,
        usable=not state.unusable_reason,
        unusable_reason=state.unusable_reason,
        funding=FUNDINGS[state.funding],
        needs_key=spec.needs_key,
        models=[
            _model(facts, state.today, is_default=facts.name == spec.default_model) for facts in spec.models.values()
        ],
        breaker_state=state.breaker.value,
    )


def _model(facts: ModelFacts, today: date, *, is_default: bool) -> pb.Model:
    return pb.Model(
        name=facts.name,
        context_window_tokens=facts.context_window_tokens or 0,
        supports_tools=facts.supports_tools is True,
        supports_json=facts.supports_json is True,
        supports_vision=facts.supports_vision is True,
        retirement_date=facts.retirement_date.isoformat() if facts.retirement_date is not None else "",
        retired=facts.is_retired(today),
        is_default=is_default,
    )


def _fill_duration(duration: Duration, seconds: float) -> None:
    nanoseconds = max(0, round(seconds * 1e9))
    duration.SetInParent()  # a time of nothing is still a time
    duration.seconds, duration.nanos = divmod(nanoseconds, 1_000_000_000)


def _utf8(text: str) -> str:
    """The text as a proto can carry it: a lone surrogate, which JSON allows, becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
