"""The client of the router: completions, routes, providers, and tenants through `tenants`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, Unpack, cast

import grpc

from turnpike.router.v1 import router_service_pb2, router_service_pb2_grpc
from turnpike_client import completion_codec as codec
from turnpike_client.assembly import Assembler
from turnpike_client.completions import (
    ChatMessage,
    Completion,
    CompletionOptions,
    Provider,
    RouteExplanation,
    StreamEvent,
)
from turnpike_client.connection import DEFAULT_ROUTER, Connection, Deadlines
from turnpike_client.enums import MidstreamFailure, TaskType, to_wire
from turnpike_client.errors import Failure, StreamInterrupted
from turnpike_client.tenant_client import TenantClient
from turnpike_client.wire import to_duration


class CompletionStream(AsyncIterator[StreamEvent]):
    """The events of one completion, in order; the last one is the whole `Completion`.

        async for event in router.stream(tenant_id, "Tell me a story"):
            match event:
                case ContentDelta():
                    print(event.text, end="")
                case StreamRestarted():
                    clear_screen()

    Leaving the loop early cancels the request. Where that shall happen at once rather than when Python drops the
    stream, use `async with router.stream(…) as events:`. A stream that fails raises, whatever it had sent.
    """

    def __init__(self, events: AsyncGenerator[StreamEvent, None]) -> None:
        self._events = events

    async def __anext__(self) -> StreamEvent:
        return await anext(self._events)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel the request, if it still runs."""
        await self._events.aclose()

    async def completion(self) -> Completion:
        """Read the rest of the stream and return the whole completion."""
        completion: Completion | None = None
        async for event in self._events:
            if isinstance(event, Completion):
                completion = event
        if completion is None:
            raise RuntimeError("the stream was read to its end before; its last event is the completion")
        return completion


class RouterClient:
    """A typed client of the router.

    async with RouterClient("127.0.0.1:50051") as router:
        completion = await router.complete(tenant_id, "Hello")
    """

    def __init__(
        self,
        target: str = DEFAULT_ROUTER,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Mapping[str, str] | None = None,
        deadlines: Deadlines | None = None,
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        """Prepare a client; nothing is connected before the first call.

        `target` may name several addresses, `127.0.0.1:50061,127.0.0.1:50062`, which share the calls by turns.
        `credentials` turns TLS on; `metadata` goes with every call; `options` are channel options of gRPC, added to
        ours and stronger than they.
        """
        self._connection = Connection(target, credentials=credentials, metadata=metadata, options=options)
        self._deadlines = deadlines or Deadlines()
        self.tenants = TenantClient(self._connection, self._deadlines)

    @property
    def target(self) -> str:
        """The router's address."""
        return self._connection.target

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection and cancel what runs on it."""
        await self._connection.close()

    def stream(
        self,
        tenant_id: str,
        messages: str | Sequence[ChatMessage],
        *,
        on_midstream_failure: MidstreamFailure = MidstreamFailure.FAIL,
        timeout_s: float | None = None,
        **options: Unpack[CompletionOptions],
    ) -> CompletionStream:
        """Stream a completion. A plain text is one message of the user.

        With RESTART, a provider's failure after content arrives as a `StreamRestarted` event; else as
        `StreamInterrupted`. The request is sent when the first event is asked for.
        """
        request = router_service_pb2.StreamCompletionRequest(
            **codec.completion_arguments(tenant_id, messages, options),
            on_midstream_failure=cast("Any", to_wire(on_midstream_failure)),
        )
        return CompletionStream(self._events(request, timeout_s))

    async def complete(
        self,
        tenant_id: str,
        messages: str | Sequence[ChatMessage],
        *,
        timeout_s: float | None = None,
        **options: Unpack[CompletionOptions],
    ) -> Completion:
        """Complete whole: nothing is seen before the end, so even a provider that breaks off is replaced unseen."""
        request = router_service_pb2.CompleteRequest(**codec.completion_arguments(tenant_id, messages, options))
        response: router_service_pb2.CompleteResponse = await self._connection.unary(
            self._stub().Complete,
            request,
            timeout_s=self._completion_timeout_s(timeout_s),
            request_id=request.request_id,
        )
        return codec.completion_from_proto(response.result)

    async def complete_for_tenant(
        self, tenant_id: str, text: str, *, timeout_s: float | None = None, **options: Unpack[CompletionOptions]
    ) -> str:
        """Just the answer's text to one message of a tenant's user."""
        completion = await self.complete(tenant_id, text, timeout_s=timeout_s, **options)
        return completion.content

    async def explain_route(
        self,
        tenant_id: str,
        *,
        task_type: TaskType = TaskType.CHAT,
        estimated_tokens: int = 0,
        model: str | None = None,
        provider: str | None = None,
        needs_tools: bool = False,
        needs_json: bool = False,
        needs_vision: bool = False,
        remaining_time: timedelta | None = None,
    ) -> RouteExplanation:
        """How a request would be routed, without calling a provider; `remaining_time`: until its deadline."""
        request = router_service_pb2.ExplainRouteRequest(
            tenant_id=tenant_id,
            task_type=cast("Any", to_wire(task_type)),
            estimated_tokens=estimated_tokens,
            model=model,
            provider=provider,
            needs_tools=needs_tools,
            needs_json=needs_json,
            needs_vision=needs_vision,
            remaining_time=to_duration(remaining_time) if remaining_time is not None else None,
        )
        response: router_service_pb2.ExplainRouteResponse = await self._connection.unary(
            self._stub().ExplainRoute, request, timeout_s=self._deadlines.call_s
        )
        return codec.explanation_from_proto(response)

    async def list_providers(self, tenant_id: str = "") -> list[Provider]:
        """The providers of the catalogue, and whether the tenant (else: the operator) can use them."""
        response: router_service_pb2.ListProvidersResponse = await self._connection.unary(
            self._stub().ListProviders,
            router_service_pb2.ListProvidersRequest(tenant_id=tenant_id),
            timeout_s=self._deadlines.call_s,
        )
        return [codec.provider_from_proto(provider) for provider in response.providers]

    def _stub(self) -> router_service_pb2_grpc.RouterServiceAsyncStub:
        return router_service_pb2_grpc.RouterServiceStub(self._connection.channel)

    def _completion_timeout_s(self, timeout_s: float | None) -> float:
        return self._deadlines.completion_s if timeout_s is None else timeout_s

    async def _events(
        self, request: router_service_pb2.StreamCompletionRequest, timeout_s: float | None
    ) -> AsyncGenerator[StreamEvent, None]:
        messages = self._connection.server_stream(
            self._stub().StreamCompletion,
            request,
            timeout_s=self._completion_timeout_s(timeout_s),
            request_id=request.request_id,
        )
        answer = Assembler()
        request_id = request.request_id
        has_result = False
        try:
            # Read on after the result: a call cancelled just before its status would look like a caller who left.
            async for message in messages:
                if message.HasField("route_chosen"):
                    request_id = message.route_chosen.request_id
                event = _event(message, answer)
                has_result = has_result or isinstance(event, Completion)
                if event is not None:
                    yield event
        finally:
            await messages.aclose()
        if not has_result:
            raise _unfinished(request_id, self.target)


def _event(message: router_service_pb2.StreamCompletionResponse, answer: Assembler) -> StreamEvent | None:
    """The event in a message; None for a kind that a newer router invented, which older clients pass over."""
    match message.WhichOneof("event"):
        case "route_chosen":
            return codec.route_from_proto(message.route_chosen)
        case "delta":
            delta = codec.delta_from_proto(message.delta)
            answer.add(delta)
            return delta
        case "restarted":
            restart = codec.restart_from_proto(message.restarted)
            answer.restart(restart)
            return restart
        case "result":
            return answer.complete(codec.completion_from_proto(message.result))
        case _:
            return None


def _unfinished(request_id: str, target: str) -> StreamInterrupted:
    """The error for a stream that ended well by its status, but without result."""
    return StreamInterrupted(
        Failure(
            code="UNAVAILABLE",
            message="the stream ended without a result; what it sent is not the whole answer",
            reason="STREAM_INTERRUPTED",
            request_id=request_id,
            target=target,
        )
    )
