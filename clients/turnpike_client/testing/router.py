"""A router that answers from a list."""

# ruff: noqa: N802, ARG002 - the contract names the methods and what they are given
from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any, cast

from turnpike.router.v1 import completion_pb2, router_service_pb2, router_service_pb2_grpc
from turnpike.usage.v1 import token_usage_pb2, usage_event_pb2
from turnpike_client.enums import to_wire
from turnpike_client.testing.replies import Reply, fail
from turnpike_client.wire import new_event_id, to_duration

_Request = router_service_pb2.StreamCompletionRequest | router_service_pb2.CompleteRequest
_Event = router_service_pb2.StreamCompletionResponse


class FakeRouter(router_service_pb2_grpc.RouterServiceServicer):
    """Answers completions from `replies` and remembers the `requests`; echoes when no reply is left.

    `cancelled_request_count` counts the streams whose caller left. `explanation` and `providers` are answered as set,
    the former to the `questions`.
    """

    def __init__(self, replies: list[Reply]) -> None:
        self.replies = replies
        self.requests: list[_Request] = []
        self.cancelled_request_count = 0
        self.questions: list[router_service_pb2.ExplainRouteRequest] = []
        self.explanation = router_service_pb2.ExplainRouteResponse(auto_failover=True)
        self.providers: list[router_service_pb2.ProviderInfo] = [
            router_service_pb2.ProviderInfo(
                name="sandbox",
                display_name="Sandbox (built in)",
                usable=True,
                funding=token_usage_pb2.FUNDING_SYSTEM_KEY,
                models=[router_service_pb2.Model(name="fake-1", is_default=True, context_window_tokens=8192)],
                breaker_state="closed",
            )
        ]

    async def StreamCompletion(
        self, request: router_service_pb2.StreamCompletionRequest, context: Any
    ) -> AsyncIterator[_Event]:
        reply = self._next(request)
        request_id = request.request_id or str(uuid.uuid4())
        try:
            async for event in _events(reply, request_id):
                yield event
            if reply.hangs:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled_request_count += 1
            raise
        if reply.failure:
            await fail(context, reply.failure)
        if reply.has_result:
            yield _Event(result=_result(reply, request_id))

    async def Complete(
        self, request: router_service_pb2.CompleteRequest, context: Any
    ) -> router_service_pb2.CompleteResponse:
        reply = self._next(request)
        if reply.failure:
            await fail(context, reply.failure)
        result = _result(reply, request.request_id or str(uuid.uuid4()))
        result.content = "".join(reply.chunks)
        result.reasoning = reply.reasoning
        result.tool_calls.extend(_tool_calls(reply))
        return router_service_pb2.CompleteResponse(result=result)

    async def ExplainRoute(
        self, request: router_service_pb2.ExplainRouteRequest, context: Any
    ) -> router_service_pb2.ExplainRouteResponse:
        self.questions.append(request)
        return self.explanation

    async def ListProviders(
        self, request: router_service_pb2.ListProvidersRequest, context: Any
    ) -> router_service_pb2.ListProvidersResponse:
        return router_service_pb2.ListProvidersResponse(providers=self.providers)

    def _next(self, request: _Request) -> Reply:
        self.requests.append(request)
        if self.replies:
            return self.replies.pop(0)
        return Reply(chunks=(request.messages[-1].content,))


async def _events(reply: Reply, request_id: str) -> AsyncIterator[_Event]:
    yield _Event(route_chosen=_route(reply, request_id, attempt=1))
    index = 0
    for chunk in reply.voided_chunks:
        yield _Event(delta=completion_pb2.ContentDelta(index=index, text=chunk))
        index += 1
    if reply.voided_chunks:
        yield _Event(
            restarted=completion_pb2.StreamRestarted(attempt=2, reason="stream_broken", discard_through_index=index - 1)
        )
        yield _Event(route_chosen=_route(reply, request_id, attempt=2))
    if reply.reasoning:
        yield _Event(delta=completion_pb2.ContentDelta(index=index, reasoning=reply.reasoning))
        index += 1
    for chunk in reply.chunks:
        yield _Event(delta=completion_pb2.ContentDelta(index=index, text=chunk))
        index += 1
    if reply.tool_calls:
        yield _Event(delta=completion_pb2.ContentDelta(index=index, tool_calls=_tool_call_deltas(reply)))


def _route(reply: Reply, request_id: str, *, attempt: int) -> completion_pb2.RouteChosen:
    return completion_pb2.RouteChosen(
        request_id=request_id,
        provider=reply.provider,
        model=reply.model,
        attempt=attempt,
        funding=token_usage_pb2.FUNDING_TENANT_KEY,
        config_version=1,
    )


def _result(reply: Reply, request_id: str) -> completion_pb2.CompletionResult:
    unpriced = reply.cost_usd is None
    return completion_pb2.CompletionResult(
        request_id=request_id,
        provider=reply.provider,
        model=reply.model,
        requested_model=reply.model,
        finish_reason=cast("Any", to_wire(reply.finish_reason)),
        input_tokens=reply.tokens.input_tokens,
        output_tokens=reply.tokens.output_tokens,
        cached_read_tokens=reply.tokens.cached_read_tokens,
        cached_write_tokens=reply.tokens.cached_write_tokens,
        reasoning_tokens=reply.tokens.reasoning_tokens,
        total_tokens=reply.tokens.total,
        usage_source=token_usage_pb2.TOKEN_USAGE_SOURCE_PROVIDER,
        cost_usd="" if reply.cost_usd is None else f"{reply.cost_usd:f}",
        pricing_state=token_usage_pb2.PRICING_STATE_UNPRICED if unpriced else token_usage_pb2.PRICING_STATE_PRICED,
        latency=to_duration(reply.latency),
        time_to_first_token=to_duration(reply.time_to_first_token),
        attempts=list(_attempts(reply)),
        funding=token_usage_pb2.FUNDING_TENANT_KEY,
        config_version=1,
    )


def _attempts(reply: Reply) -> list[completion_pb2.AttemptSummary]:
    attempts = []
    if reply.voided_chunks:
        attempts.append(_attempt(reply, 1, usage_event_pb2.USAGE_STATUS_ERROR, "stream_broken"))
    return [*attempts, _attempt(reply, len(attempts) + 1, usage_event_pb2.USAGE_STATUS_SUCCESS, "")]


def _attempt(
    reply: Reply, number: int, status: usage_event_pb2.UsageStatus.ValueType, error_class: str
) -> completion_pb2.AttemptSummary:
    return completion_pb2.AttemptSummary(
        attempt=number,
        provider=reply.provider,
        model=reply.model,
        funding=token_usage_pb2.FUNDING_TENANT_KEY,
        status=status,
        error_class=error_class,
        latency=to_duration(reply.latency),
        usage_event_id=str(new_event_id()),
    )


def _tool_calls(reply: Reply) -> list[completion_pb2.ToolCall]:
    return [completion_pb2.ToolCall(id=c.id, name=c.name, arguments=c.arguments) for c in reply.tool_calls]


def _tool_call_deltas(reply: Reply) -> list[completion_pb2.ToolCallDelta]:
    return [
        completion_pb2.ToolCallDelta(index=index, id=call.id, name=call.name, arguments=call.arguments)
        for index, call in enumerate(reply.tool_calls)
    ]
