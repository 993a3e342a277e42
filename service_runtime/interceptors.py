"""The outermost layer of every RPC: what comes out of a handler is an answer, a `ServiceError`, or says nothing.

For each call it sets the request id and the deadline, refuses what cannot be served, counts, keeps track of the
handlers in flight, and turns exceptions into statuses. Handlers are coroutines or async generators; both are run as
coroutines, so that deadline and cleanup work the same for either. Costs about 20 microseconds per call and, for
generators, a few per message.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import structlog
from google.protobuf.message import DecodeError
from prometheus_client import Counter

from service_runtime.call_context import REQUEST_ID_KEY, Call, enter_call, outgoing_metadata
from service_runtime.error_codec import STATUS_DETAILS_KEY, DetailToProto, internal_status
from service_runtime.errors import Category, ServiceError
from service_runtime.held_refusals import HeldRefusals
from service_runtime.ids import uuid7_text
from service_runtime.in_flight import InFlight
from service_runtime.metrics import Metrics
from service_runtime.overload import PRIORITY_KEY, Gate, GateOf, OpenGate, no_gates
from service_runtime.refusal_log import RefusalLog
from service_runtime.rendered_status import RenderedStatus, StatusRenderer

__all__ = ["BoundaryLimits", "ErrorBoundary", "outgoing_metadata"]

log = structlog.get_logger(__name__)

PUSHBACK_KEY = "grpc-retry-pushback-ms"
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}", re.ASCII)
# Health and reflection: never shed with the requests, but bounded on their own.
_INFRASTRUCTURE_PREFIX = "/grpc."
_MAX_INFRASTRUCTURE_CALLS = 100
_OVERLOADED_RETRY_AFTER_S = 1.0
_MAX_ABORT_S = 5.0
_CANCELLATION_COMES_WITHIN_S = 1.0

_CODES = {code.value[0]: code for code in grpc.StatusCode}

if TYPE_CHECKING:  # the stubs make it generic; at run time it is not
    _Handler = grpc.RpcMethodHandler[Any, Any]

# context: grpc.aio.ServicerContext, whose type lacks half of its methods.
_Behaviour = Callable[[Any, Any], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class BoundaryLimits:
    """What a call may take."""

    max_duration_s: float = 600.0  # the deadline of a caller that gave none, and the latest that anybody gets
    min_remaining_s: float = 0.002  # with less left an answer cannot arrive in time: refused before any work is done
    max_calls: int = 2000  # in flight at once; bounds memory
    write_timeout_s: float = 30.0  # for one message of a generator: a reader that stands still holds resources


class ErrorBoundary(grpc.aio.ServerInterceptor):
    """The interceptor. One per server; it must be the first.

    Nothing of ours but the cap interrupts the first message of a call: the library forgets that its headers are under
    way, sends them again with the status, and the core refuses both: the caller hears nothing until he gives up.
    """

    def __init__(
        self,
        *,
        metrics: Metrics,
        in_flight: InFlight,
        limits: BoundaryLimits | None = None,
        detail_to_proto: DetailToProto | None = None,
        gate_of: GateOf = no_gates,
        held: HeldRefusals | None = None,
    ) -> None:
        """`detail_to_proto` renders `ServiceError.detail` as a further detail message of the status; `gate_of` says
        which methods refuse calls that would be too late; `held` holds refusals of who asks too fast.
        """
        self._gate_of = gate_of
        self._held = held
        self._hold = _tell_at_once if held is None else held.hold
        self._limits = limits or BoundaryLimits()
        self._in_flight = in_flight
        self._statuses = StatusRenderer(detail_to_proto)
        self._outcomes = _Outcomes(metrics)
        self._refusals = RefusalLog()
        self._wrapped: dict[str, tuple[_Handler, _Handler]] = {}

    def tell_refusals(self) -> None:
        """Log at once what of the refusals was only counted: before the process ends."""
        self._refusals.tell()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """The method's handler inside the boundary, wrapped once and kept."""
        handler = await continuation(details)
        if handler is None:
            return None
        method: str = details.method
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = self._wrapped[method] = (handler, self._wrap(method, handler))
        return known[1]

    def _wrap(self, method: str, handler: Any) -> _Handler:
        behaviour = (
            handler.stream_stream or handler.stream_unary or handler.unary_stream or handler.unary_unary
        )  # exactly one is set
        if handler.response_streaming and inspect.isasyncgenfunction(behaviour):
            behaviour = self._writing(behaviour)
        gate = self._gate_of(method)
        if not handler.request_streaming:
            behaviour = _reading(behaviour)
        if self._held is not None and not (self._held.knows_user_of(method) or _is_infrastructure(method)):
            behaviour = self._held.for_nobody(behaviour)
        behaviour = self._guarded(method, behaviour, gate or OpenGate())
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return make(_letting_go(behaviour), handler.request_deserializer, handler.response_serializer)

    def _writing(self, generator: Callable[[Any, Any], AsyncIterator[Any]]) -> _Behaviour:
        """The coroutine that writes what the generator yields, and has closed it when it returns."""
        timeout_s = self._limits.write_timeout_s

        async def write_all(request: Any, context: Any) -> None:
            patience_s: float | None = None  # for the first one
            async with aclosing(generator(request, context)) as messages:  # type: ignore[type-var]
                async for message in messages:
                    try:
                        async with asyncio.timeout(patience_s):
                            await context.write(message)
                    except TimeoutError:
                        raise ServiceError(
                            Category.CANCELLED,
                            "READER_TOO_SLOW",
                            f"no message was taken for {timeout_s:g} s; read faster",
                        ) from None
                    patience_s = timeout_s

        return write_all

    def _guarded(self, method: str, behaviour: _Behaviour, gate: Gate | OpenGate) -> _Behaviour:
        """The whole boundary in one coroutine: in a flood nearly every call ends here, and each layer has its price."""
        in_flight, limits, outcomes = self._in_flight, self._limits, self._outcomes.of(method)
        is_infrastructure = _is_infrastructure(method)
        calls = in_flight.infrastructure if is_infrastructure else in_flight.requests
        max_calls = _MAX_INFRASTRUCTURE_CALLS if is_infrastructure else limits.max_calls
        turn_away = self._turning_away(method, outcomes)

        async def guarded(request: Any, context: Any) -> Any:
            started_s = time.monotonic()
            given_s = context.time_remaining()
            remaining_s = limits.max_duration_s if given_s is None else min(given_s, limits.max_duration_s)
            request_id, priority = _asked(context)
            if (too_late := gate.enter(remaining_s, priority)) is not None:
                await turn_away(context, request_id, too_late)
            call = Call(method, request_id, started_s + remaining_s)
            enter_call(call)
            context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
            outcome = grpc.StatusCode.CANCELLED
            task = asyncio.current_task()
            # Where the caller's deadline is the sooner, gRPC itself ends the call; a second timer would be waste.
            scope = asyncio.timeout(remaining_s) if remaining_s == limits.max_duration_s else None
            calls.add(task)
            try:
                _admit(len(calls), max_calls, remaining_s, limits)
                if scope is None:
                    response = await behaviour(request, context)
                else:
                    async with scope:
                        response = await behaviour(request, context)
            except (asyncio.CancelledError, grpc.aio.InternalError):  # the second: `_letting_go` says when
                if call.remaining_s() <= 0:
                    outcome = grpc.StatusCode.DEADLINE_EXCEEDED
                raise
            except grpc.aio.AbortError:
                outcome = _code_of(context)
                raise
            except Exception as error:
                if _is_gone(context):
                    raise  # nobody is there to be told; gRPC drops it
                status = self._status(call, error, timed_out=scope is not None and scope.expired())
                await self._hold(context, error, call.remaining_s(), _Aside(calls, gate))
                outcome = status.code
                await _abort(context, request_id, status, error, timeout_s=limits.write_timeout_s)
            else:
                outcome = _code_of(context)
                return response
            finally:
                calls.discard(task)
                gate.leave()
                outcomes.record(outcome, time.monotonic() - started_s)

        return guarded

    def _turning_away(
        self, method: str, outcomes: _MethodOutcomes
    ) -> Callable[[Any, str, ServiceError], Awaitable[NoReturn]]:
        """What ends a call that its gate does not let in, before its request is read."""
        refusals, statuses = self._refusals, self._statuses
        told: ServiceError | None = None
        status: RenderedStatus | None = None

        async def turn_away(context: Any, request_id: str, error: ServiceError) -> NoReturn:
            nonlocal told, status
            if status is None or error is not told:
                told, status = error, statuses.render(error)
            refusals.refused(method, error)
            outcomes.record(status.code, 0.0)
            await context.abort(status.code, status.message, ((REQUEST_ID_KEY, request_id), *_trailing(status, error)))
            raise AssertionError("abort returned")

        return turn_away

    def _status(self, call: Call, error: Exception, *, timed_out: bool) -> RenderedStatus:
        if timed_out and isinstance(error, TimeoutError):
            error = ServiceError(
                Category.DEADLINE_EXCEEDED,
                "SERVER_CAP",
                f"not done after {self._limits.max_duration_s:g} s, the server's cap",
            )
        if isinstance(error, ServiceError):
            self._refusals.refused(call.method, error)
            try:
                return self._statuses.render(error)
            except Exception:  # a bug in rendering the error is a bug like any other
                log.exception("rpc.error_not_rendered", method=call.method, reason=error.reason)
                return RenderedStatus.of(internal_status(call.request_id))
        log.error("rpc.crashed", method=call.method, exc_info=error)
        return RenderedStatus.of(internal_status(call.request_id))


async def _tell_at_once(_context: Any, _error: Exception, _remaining_s: float, _while_waiting: _Aside) -> None:
    """Where refusals are never held."""


class _Aside(AbstractContextManager[None]):
    """While it lasts the call of this task counts neither into those in progress nor into how long they take."""

    def __init__(self, calls: set[asyncio.Task[Any] | None], gate: Gate | OpenGate) -> None:
        self._calls, self._gate = calls, gate

    def __enter__(self) -> None:
        self._calls.discard(asyncio.current_task())
        self._gate.step_aside()

    def __exit__(self, *_: object) -> None:
        self._gate.step_back()
        self._calls.add(asyncio.current_task())


def _is_infrastructure(method: str) -> bool:
    return method.startswith(_INFRASTRUCTURE_PREFIX)


def _letting_go(behaviour: _Behaviour) -> _Behaviour:
    """Keeps an aborted call from being garbage, and one whose caller has just left from being taken for our fault.

    The library keeps the exception of an abort with its call, and the exception's frames keep the call: a cycle around
    all that the call held. A flood of refusals so fills the heap with what only a garbage collection frees, an eighth
    of the time that it takes, in pauses of many milliseconds for everybody else's streams.
    """

    async def letting_go(request: Any, context: Any) -> Any:
        try:
            return await behaviour(request, context)
        except grpc.aio.AbortError as abort:
            del request, context  # this frame will be the exception's only one
            abort.__traceback__ = abort.__context__ = None
            raise
        except grpc.aio.InternalError:
            # The core takes nothing more to send once a call is over, and says so a moment before the library cancels
            # the handler: `context.cancelled()` does not know yet. Where nothing cancels it, it is a fault after all.
            await asyncio.sleep(_CANCELLATION_COMES_WITHIN_S)
            raise

    return letting_go


def _admit(calls_in_flight: int, max_calls: int, remaining_s: float, limits: BoundaryLimits) -> None:
    if calls_in_flight > max_calls:
        raise ServiceError(
            Category.RESOURCE_EXHAUSTED,
            "OVERLOADED",
            f"{max_calls} calls are in progress; retry later",
            retry_after_s=_OVERLOADED_RETRY_AFTER_S,
        )
    if remaining_s < limits.min_remaining_s:
        raise ServiceError(Category.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT", "the deadline had passed on arrival")


def _reading(behaviour: _Behaviour) -> _Behaviour:
    """The handler of one request as that of a stream of requests, which gRPC begins before it reads any.

    So a call that is refused is not read, and one without a request, or with a malformed one, ends as any other does.
    """

    async def read_and_run(_messages: Any, context: Any) -> Any:
        try:
            request = await context.read()
        except DecodeError as error:
            raise ServiceError(
                Category.INVALID_ARGUMENT, "MALFORMED_REQUEST", "the request is no message of this method"
            ) from error
        if request is grpc.aio.EOF:
            raise ServiceError(Category.INVALID_ARGUMENT, "NO_REQUEST", "the call ended without a request")
        return await behaviour(request, context)

    return read_and_run


def _asked(context: Any) -> tuple[str, str]:
    """The id that the caller gave the call, a new one where that is none, and the priority, '' where there is none.

    In one pass: the library builds its metadata anew for whoever asks.
    """
    request_id = priority = ""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and not request_id and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            request_id = value
        elif key == PRIORITY_KEY and not priority and isinstance(value, str):
            priority = value
    return request_id or uuid7_text(), priority


def _is_gone(context: Any) -> bool:
    """Whether the caller has hung up. A handler that was writing then learns it as an error of the write."""
    return bool(context.cancelled() or context.done())


async def _abort(
    context: Any, request_id: str, status: RenderedStatus, error: Exception, *, timeout_s: float
) -> NoReturn:
    # The status may stand in line behind messages that the caller does not take. gRPC then keeps it; we keep nothing.
    task = asyncio.current_task()
    assert task is not None
    patience = asyncio.get_running_loop().call_later(min(timeout_s, _MAX_ABORT_S), task.cancel)
    try:
        await context.abort(status.code, status.message, ((REQUEST_ID_KEY, request_id), *_trailing(status, error)))
    finally:
        patience.cancel()
    raise AssertionError("abort returned")


def _trailing(status: RenderedStatus, error: Exception) -> tuple[tuple[str, str | bytes], ...]:
    """The details of a refusal, and in gRPC's own words when to come back."""
    details: tuple[str, str | bytes] = (STATUS_DETAILS_KEY, status.details)
    if not isinstance(error, ServiceError) or error.retry_after_s is None:
        return (details,)
    return (details, (PUSHBACK_KEY, str(max(0, round(error.retry_after_s * 1000)))))


def _code_of(context: Any) -> grpc.StatusCode:
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code
    return _CODES.get(code or 0, grpc.StatusCode.UNKNOWN)


class _Outcomes:
    """The RPC metrics, each method's looked up once."""

    def __init__(self, metrics: Metrics) -> None:
        self.handled = metrics.counter(
            "grpc_server_handled", "RPCs completed on the server, by status code.", ("service", "method", "code")
        )
        self.seconds = metrics.histogram(
            "grpc_server_handling_seconds", "Duration of RPCs, streams to their end.", ("service", "method")
        )

    def of(self, method: str) -> _MethodOutcomes:
        service, _, name = method.removeprefix("/").rpartition("/")
        return _MethodOutcomes(self, service, name)


class _MethodOutcomes:
    def __init__(self, outcomes: _Outcomes, service: str, name: str) -> None:
        self._handled, self._service, self._name = outcomes.handled, service, name
        self._by_code: dict[grpc.StatusCode, Counter] = {}
        self._seconds = outcomes.seconds.labels(service, name)

    def record(self, code: grpc.StatusCode, duration_s: float) -> None:
        counter = self._by_code.get(code)
        if counter is None:
            counter = self._by_code[code] = self._handled.labels(self._service, self._name, code.name)
        counter.inc()
        self._seconds.observe(duration_s)
