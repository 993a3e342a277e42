"""RouterService over gRPC: a request in, a call, an answer out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any
from uuid import UUID

import grpc

from router_service.api.convert import completion_from_proto, route_question_from_proto, tenant_id_from_proto
from router_service.api.render import event_to_proto, explanation_to_proto, providers_to_proto, whole_to_proto
from router_service.api.request_check import RequestRules
from router_service.domain.completion import CompletionResult, IndexedDelta
from router_service.routing.router import Router
from router_service.routing.watchdog import Interrupted, Reason, Watchdog
from service_runtime.errors import Category, ServiceError
from service_runtime.faults import CrashPoint, crash_point
from turnpike.router.v1 import router_service_pb2 as pb
from turnpike.router.v1.router_service_pb2_grpc import RouterServiceServicer

WRITE_TIMEOUT_S = 30.0  # a caller who does not read for so long has left

Context = grpc.aio.ServicerContext[Any, Any]


def _nobody_asks(_context: Context, _tenant_id: UUID) -> None:
    """Where refusals are never held, nobody has to know."""


class RouterServicer(RouterServiceServicer):
    """See router_service.proto. Errors leave as `ServiceError`; the interceptors know what they are in gRPC."""

    def __init__(
        self,
        router: Router,
        rules: RequestRules,
        *,
        used_by: Callable[[Context, UUID], None] = _nobody_asks,
        write_timeout_s: float = WRITE_TIMEOUT_S,
    ) -> None:
        """`used_by` is told of every completion for which tenant it is."""
        self._router = router
        self._rules = rules
        self._used_by = used_by
        self._write_timeout_s = write_timeout_s

    async def StreamCompletion(  # type: ignore[override]
        self, request: pb.StreamCompletionRequest, context: Context
    ) -> None:
        """Write the events as they come."""
        completion = completion_from_proto(request, self._rules)
        self._used_by(context, completion.tenant_id)
        events = await self._router.stream(completion, deadline_s=context.time_remaining())
        watch = Watchdog()
        has_begun = False
        try:
            with closing(events), watch:
                async for event in events:
                    if has_begun:  # who interrupts the first message cannot end the call: see `ErrorBoundary`
                        watch.expect(self._write_timeout_s, Reason.CALLER_LEFT)
                    is_last = isinstance(event, CompletionResult)
                    if is_last:
                        crash_point(CrashPoint.CALLER_BEFORE_FINAL_WRITE)
                    await context.write(event_to_proto(event))
                    watch.expect_nothing()
                    has_begun = True
                    if is_last:
                        crash_point(CrashPoint.CALLER_AFTER_FINAL_WRITE)
                    elif isinstance(event, IndexedDelta) and event.index == 0:
                        crash_point(CrashPoint.CALLER_AFTER_FIRST_TOKEN)
        except Interrupted:
            message = f"nothing was read for {self._write_timeout_s:g} s: read the stream as it comes"
            raise ServiceError(Category.CANCELLED, "READER_TOO_SLOW", message) from None

    async def Complete(self, request: pb.CompleteRequest, context: Context) -> pb.CompleteResponse:
        """Answer whole."""
        completion = completion_from_proto(request, self._rules)
        self._used_by(context, completion.tenant_id)
        result, answer = await self._router.complete(completion, deadline_s=context.time_remaining())
        crash_point(CrashPoint.CALLER_BEFORE_FINAL_WRITE)
        return whole_to_proto(result, answer)

    async def ExplainRoute(self, request: pb.ExplainRouteRequest, context: Context) -> pb.ExplainRouteResponse:
        """Explain without calling anybody."""
        del context
        question = route_question_from_proto(request, self._rules)
        explanation = await self._router.explain(
            question.tenant_id, question.needs, question.task, remaining_s=question.remaining_s
        )
        return explanation_to_proto(explanation)

    async def ListProviders(self, request: pb.ListProvidersRequest, context: Context) -> pb.ListProvidersResponse:
        """List the catalogue as the tenant finds it."""
        del context
        return providers_to_proto(await self._router.providers_for(tenant_id_from_proto(request)))
