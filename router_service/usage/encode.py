"""Attempts as the usage events that travel to the ledger."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from router_service.domain.usage import AttemptOpened, AttemptSettled, AttemptStatus, Funding, TokenUsage, UsageSource
from turnpike.usage.v1 import token_usage_pb2, usage_event_pb2

_STATUS = {
    AttemptStatus.SUCCESS: usage_event_pb2.USAGE_STATUS_SUCCESS,
    AttemptStatus.ERROR: usage_event_pb2.USAGE_STATUS_ERROR,
    AttemptStatus.RATE_LIMIT: usage_event_pb2.USAGE_STATUS_RATE_LIMIT,
    AttemptStatus.CANCELLED: usage_event_pb2.USAGE_STATUS_CANCELLED,
    AttemptStatus.INTERRUPTED: usage_event_pb2.USAGE_STATUS_INTERRUPTED,
}
_SOURCE = {
    UsageSource.PROVIDER: token_usage_pb2.TOKEN_USAGE_SOURCE_PROVIDER,
    UsageSource.PROVIDER_LATE: token_usage_pb2.TOKEN_USAGE_SOURCE_PROVIDER_LATE,
    UsageSource.COUNTED: token_usage_pb2.TOKEN_USAGE_SOURCE_COUNTED,
    UsageSource.ESTIMATED: token_usage_pb2.TOKEN_USAGE_SOURCE_ESTIMATED,
    UsageSource.NONE: token_usage_pb2.TOKEN_USAGE_SOURCE_NONE,
}
_FUNDING = {
    None: token_usage_pb2.FUNDING_UNSPECIFIED,
    Funding.TENANT_KEY: token_usage_pb2.FUNDING_TENANT_KEY,
    Funding.SYSTEM_KEY: token_usage_pb2.FUNDING_SYSTEM_KEY,
}
_MAX_MODEL, _MAX_MESSAGE = 200, 500


def interrupted_event(opened: AttemptOpened) -> usage_event_pb2.UsageEvent:
    """What the ledger shall hold if the router dies before the attempt ends: the prompt, by estimate."""
    event = _opened_event(opened)
    event.status = usage_event_pb2.USAGE_STATUS_INTERRUPTED
    event.error_class = "interrupted"
    event.error_message = "the router stopped while the attempt was running"
    event.usage_source = token_usage_pb2.TOKEN_USAGE_SOURCE_ESTIMATED
    event.token_usage.input_tokens = opened.estimated_input_tokens
    return event


def settled_event(settled: AttemptSettled) -> usage_event_pb2.UsageEvent:
    """How the attempt ended."""
    event = _opened_event(settled.opened)
    if settled.model and settled.model != settled.opened.model:
        event.model = _storable(settled.model, _MAX_MODEL)
        event.requested_model = settled.opened.model
    event.status = _STATUS[settled.status]
    event.error_class = settled.error_class
    event.error_message = _storable(settled.error_message, _MAX_MESSAGE)
    event.absorbed = settled.absorbed
    event.usage_source = _SOURCE[settled.usage_source]
    if settled.usage is not None:
        event.token_usage.CopyFrom(token_usage_to_proto(settled.usage))
    event.latency.CopyFrom(_duration(settled.latency_s))
    if settled.time_to_first_token_s is not None:
        event.time_to_first_token.CopyFrom(_duration(settled.time_to_first_token_s))
    if settled.reported_cost_usd is not None:
        event.provider_reported_cost_usd = format(settled.reported_cost_usd, "f")
    return event


def token_usage_to_proto(usage: TokenUsage) -> token_usage_pb2.TokenUsage:
    """The five disjoint classes."""
    return token_usage_pb2.TokenUsage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_read_tokens=usage.cached_read_tokens,
        cached_write_tokens=usage.cached_write_tokens,
        reasoning_tokens=usage.reasoning_tokens,
    )


def _opened_event(opened: AttemptOpened) -> usage_event_pb2.UsageEvent:
    return usage_event_pb2.UsageEvent(
        event_id=str(opened.event_id),
        tenant_id=str(opened.tenant_id),
        request_id=str(opened.request_id),
        attempt=opened.attempt,
        provider=opened.provider,
        model=opened.model,
        endpoint=opened.endpoint,
        user_id=opened.user_id,
        funding=_FUNDING[opened.funding],
        labels=opened.labels,
        task_type=opened.task_type,
        decision=opened.decision,
    )


def _storable(text: str, limit: int) -> str:
    """Text that came from a provider, fit for the wire and the ledger: no lone surrogates, no NUL, not too long."""
    if text.isascii() and "\x00" not in text:
        return text[:limit]
    return text.encode("utf-8", errors="replace").decode().replace("\x00", "")[:limit]


def _duration(seconds: float) -> Duration:
    whole = int(seconds)
    return Duration(seconds=whole, nanos=int((seconds - whole) * 1_000_000) * 1000)
