"""What a fake router answers, and how its failures look on the wire."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any, NoReturn, cast

import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from turnpike.router.v1 import completion_pb2
from turnpike_client.accounting_codec import tokens_to_proto
from turnpike_client.completions import Attempt, TokenUsage, ToolCall
from turnpike_client.enums import FinishReason, to_wire
from turnpike_client.error_codec import DETAILS_KEY, DOMAIN, REQUEST_ID_KEY
from turnpike_client.errors import Failure
from turnpike_client.wire import to_duration


@dataclass(frozen=True, slots=True)
class Reply:
    """One completion: a delta per chunk, then the result.

    `voided_chunks` are streamed first and then voided by a restart. With `failure` the call fails after the chunks
    instead; with `hangs` it stays open until its caller leaves; without `has_result` it just ends. `cost_usd` None
    means unpriced.
    """

    chunks: tuple[str, ...] = ("Hello",)
    voided_chunks: tuple[str, ...] = ()
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    provider: str = "sandbox"
    model: str = "fake-1"
    finish_reason: FinishReason = FinishReason.STOP
    tokens: TokenUsage = field(default_factory=lambda: TokenUsage(input_tokens=3, output_tokens=2))
    cost_usd: Decimal | None = Decimal("0.000010")
    latency: timedelta = timedelta(milliseconds=120)
    time_to_first_token: timedelta = timedelta(milliseconds=40)
    failure: Failure | None = None
    hangs: bool = False
    has_result: bool = True


async def fail(context: grpc.aio.ServicerContext[Any, Any], failure: Failure) -> NoReturn:
    """End an RPC the way Turnpike's services do: with a rich status, and the request's id in the trailers."""
    sent: dict[str, Any] = dict(cast("Any", context.invocation_metadata()) or ())
    trailers: list[tuple[str, Any]] = [(REQUEST_ID_KEY, failure.request_id or sent.get(REQUEST_ID_KEY, ""))]
    if failure.reason:
        trailers.append((DETAILS_KEY, status_of(failure).SerializeToString()))
    await context.abort(grpc.StatusCode[failure.code], failure.message, trailing_metadata=tuple(trailers))
    raise AssertionError("abort raises")


def status_of(failure: Failure) -> status_pb2.Status:
    """A failure as `google.rpc.Status` with all its details."""
    code = grpc.StatusCode[failure.code].value[0]
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=failure.reason, domain=DOMAIN, metadata=dict(failure.metadata))
    ]
    if failure.field_violations:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
            for v in failure.field_violations
        ]
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    if failure.quota_violations:
        quotas = [
            error_details_pb2.QuotaFailure.Violation(subject=v.subject, description=v.description)
            for v in failure.quota_violations
        ]
        details.append(error_details_pb2.QuotaFailure(violations=quotas))
    if failure.retry_after is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=to_duration(failure.retry_after)))
    if failure.attempts or failure.partial_tokens:
        details.append(_completion_failure(failure))
    return status_pb2.Status(code=code, message=failure.message, details=[_packed(detail) for detail in details])


def attempt_to_proto(attempt: Attempt) -> completion_pb2.AttemptSummary:
    """An attempt as the router reports it."""
    return completion_pb2.AttemptSummary(
        attempt=attempt.number,
        provider=attempt.provider,
        model=attempt.model,
        funding=cast("Any", to_wire(attempt.funding)),
        status=cast("Any", to_wire(attempt.status)),
        error_class=attempt.error_class,
        error_message=attempt.error_message,
        latency=to_duration(attempt.latency),
        usage_event_id=attempt.usage_event_id,
    )


def _completion_failure(failure: Failure) -> completion_pb2.CompletionFailure:
    return completion_pb2.CompletionFailure(
        request_id=failure.request_id,
        attempts=[attempt_to_proto(attempt) for attempt in failure.attempts],
        partial_usage=tokens_to_proto(failure.partial_tokens) if failure.partial_tokens else None,
        usage_source=cast("Any", to_wire(failure.usage_source)),
    )


def _packed(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed
