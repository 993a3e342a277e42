"""Completions between the client's values and the wire."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from google.protobuf.message import Message

from turnpike.router.v1 import completion_pb2 as pb
from turnpike.router.v1 import router_service_pb2
from turnpike.usage.v1 import token_usage_pb2
from turnpike_client.completions import (
    Attempt,
    ChatMessage,
    Completion,
    CompletionOptions,
    ContentDelta,
    ExcludedCandidate,
    Model,
    Provider,
    RankedCandidate,
    ResponseFormat,
    RouteChosen,
    RouteExplanation,
    ScoreTerm,
    StreamRestarted,
    TokenUsage,
    Tool,
    ToolCall,
    ToolCallDelta,
    user,
)
from turnpike_client.enums import FinishReason, Funding, PricingState, UsageSource, UsageStatus, from_wire, to_wire
from turnpike_client.wire import money, span

_SAMPLING = frozenset(field.name for field in pb.Sampling.DESCRIPTOR.fields)


def completion_arguments(
    tenant_id: str, messages: str | Sequence[ChatMessage], options: CompletionOptions
) -> dict[str, Any]:
    """The fields that `StreamCompletionRequest` and `CompleteRequest` share. A plain text is one message of the user.

    Raises TypeError for an option that does not exist: a misspelt one must not be ignored.
    """
    conversation = [user(messages)] if isinstance(messages, str) else messages
    arguments: dict[str, Any] = {
        "tenant_id": tenant_id,
        "messages": [message_to_proto(message) for message in conversation],
    }
    sampling: dict[str, Any] = {}
    for name, value in cast("Mapping[str, Any]", options).items():
        if name not in CompletionOptions.__optional_keys__:
            raise TypeError(f"there is no completion option {name!r}")
        if name in _SAMPLING:
            sampling[name] = value
        else:
            arguments[name] = _option_to_proto(name, value)
    if sampling:
        arguments["sampling"] = pb.Sampling(**sampling)
    return arguments


def _option_to_proto(name: str, value: Any) -> Any:
    match name:
        case "task_type":
            return to_wire(value)
        case "tools":
            return [tool_to_proto(tool) for tool in value]
        case "tool_choice":
            return pb.ToolChoice(mode=cast("Any", to_wire(value.mode)), name=value.name)
        case "response_format":
            return response_format_to_proto(value)
        case _:
            return value


def message_to_proto(message: ChatMessage) -> pb.ChatMessage:
    """One message of a conversation."""
    return pb.ChatMessage(
        role=cast("Any", to_wire(message.role)),
        content=message.content,
        name=message.name,
        tool_calls=[pb.ToolCall(id=c.id, name=c.name, arguments=c.arguments) for c in message.tool_calls],
        tool_call_id=message.tool_call_id,
        image_urls=message.image_urls,
    )


def tool_to_proto(tool: Tool) -> pb.Tool:
    """A function that the model may call."""
    schema = json.dumps(tool.parameters) if tool.parameters else ""
    return pb.Tool(name=tool.name, description=tool.description, parameters_json_schema=schema, strict=tool.strict)


def response_format_to_proto(form: ResponseFormat) -> pb.ResponseFormat:
    """Form of the answer."""
    return pb.ResponseFormat(
        kind=cast("Any", to_wire(form.kind)),
        schema_name=form.schema_name,
        json_schema=json.dumps(form.schema) if form.schema else "",
        strict=form.strict,
    )


def route_from_proto(message: pb.RouteChosen) -> RouteChosen:
    """A chosen route."""
    return RouteChosen(
        request_id=message.request_id,
        provider=message.provider,
        model=message.model,
        attempt=message.attempt,
        funding=from_wire(Funding, message.funding),
        config_version=message.config_version,
        proto=message,
    )


def delta_from_proto(message: pb.ContentDelta) -> ContentDelta:
    """A piece of content."""
    return ContentDelta(
        index=message.index,
        text=message.text,
        reasoning=message.reasoning,
        tool_calls=tuple(ToolCallDelta(c.index, c.id, c.name, c.arguments) for c in message.tool_calls),
        proto=message,
    )


def restart_from_proto(message: pb.StreamRestarted) -> StreamRestarted:
    """A restart."""
    return StreamRestarted(
        attempt=message.attempt,
        reason=message.reason,
        discard_through_index=message.discard_through_index,
        proto=message,
    )


def attempts_from_proto(messages: Iterable[pb.AttemptSummary]) -> tuple[Attempt, ...]:
    """The attempts of a request, in order."""
    return tuple(
        Attempt(
            number=message.attempt,
            provider=message.provider,
            model=message.model,
            funding=from_wire(Funding, message.funding),
            status=from_wire(UsageStatus, message.status),
            error_class=message.error_class,
            error_message=message.error_message,
            latency=span(message.latency),
            usage_event_id=message.usage_event_id,
        )
        for message in messages
    )


def tokens_from_proto(message: token_usage_pb2.TokenUsage | pb.CompletionResult) -> TokenUsage:
    """Tokens by class; a result carries the same five fields."""
    return TokenUsage(
        input_tokens=message.input_tokens,
        output_tokens=message.output_tokens,
        cached_read_tokens=message.cached_read_tokens,
        cached_write_tokens=message.cached_write_tokens,
        reasoning_tokens=message.reasoning_tokens,
    )


def tool_calls_from_proto(messages: Iterable[pb.ToolCall]) -> tuple[ToolCall, ...]:
    """Whole tool calls."""
    return tuple(ToolCall(message.id, message.name, message.arguments) for message in messages)


def completion_from_proto(message: pb.CompletionResult) -> Completion:
    """The end of a completion. A streamed one has no content in it: `assembly` adds that."""
    return Completion(
        request_id=message.request_id,
        provider=message.provider,
        model=message.model,
        requested_model=message.requested_model,
        content=message.content,
        reasoning=message.reasoning,
        tool_calls=tool_calls_from_proto(message.tool_calls),
        finish_reason=from_wire(FinishReason, message.finish_reason),
        tokens=tokens_from_proto(message),
        usage_source=from_wire(UsageSource, message.usage_source),
        cost_usd=money(message.cost_usd),
        pricing_state=from_wire(PricingState, message.pricing_state),
        latency=span(message.latency),
        time_to_first_token=_optional_span(message, "time_to_first_token"),
        attempts=attempts_from_proto(message.attempts),
        funding=from_wire(Funding, message.funding),
        config_version=message.config_version,
        proto=message,
    )


def _optional_span(message: Message, field: str) -> Any:
    return span(getattr(message, field)) if message.HasField(field) else None


def explanation_from_proto(message: router_service_pb2.ExplainRouteResponse) -> RouteExplanation:
    """How a request would be routed."""
    return RouteExplanation(
        candidates=tuple(
            RankedCandidate(
                rank=candidate.rank,
                provider=candidate.provider,
                model=candidate.model,
                funding=from_wire(Funding, candidate.funding),
                score=candidate.score,
                terms=tuple(ScoreTerm(t.name, t.value, t.weight, t.evidence) for t in candidate.terms),
            )
            for candidate in message.candidates
        ),
        excluded=tuple(ExcludedCandidate(e.provider, e.model, e.reason, e.explanation) for e in message.excluded),
        auto_failover=message.auto_failover,
        config_version=message.config_version,
        proto=message,
    )


def provider_from_proto(message: router_service_pb2.ProviderInfo) -> Provider:
    """A provider of the catalogue."""
    return Provider(
        name=message.name,
        display_name=message.display_name,
        usable=message.usable,
        unusable_reason=message.unusable_reason,
        funding=from_wire(Funding, message.funding),
        needs_key=message.needs_key,
        breaker_state=message.breaker_state,
        models=tuple(
            Model(
                name=model.name,
                context_window_tokens=model.context_window_tokens or None,
                supports_tools=model.supports_tools,
                supports_json=model.supports_json,
                supports_vision=model.supports_vision,
                retirement_date=model.retirement_date,
                retired=model.retired,
                is_default=model.is_default,
            )
            for model in message.models
        ),
        proto=message,
    )
