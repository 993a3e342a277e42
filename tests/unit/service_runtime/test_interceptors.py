"""What becomes of a call whose caller is gone before the library has told anybody."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import grpc
import pytest
from structlog.testing import capture_logs

from service_runtime.errors import Category, ServiceError
from service_runtime.in_flight import InFlight
from service_runtime.interceptors import ErrorBoundary
from service_runtime.metrics import Metrics

FAILED = grpc.aio.InternalError('Failed "execute_batch"')  # what a send becomes that the core no longer takes


class DeadCall:
    """A context whose call has ended in the core: whatever it sends fails, and the handler is cancelled soon after."""

    def time_remaining(self) -> float:
        return 5.0

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def set_trailing_metadata(self, _metadata: object) -> None: ...

    def cancelled(self) -> bool:
        return False

    def done(self) -> bool:
        return False

    async def read(self) -> object:
        return "a request"

    async def write(self, _message: object) -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(task.cancel)
        raise FAILED

    async def abort(self, *_: object) -> None:
        await self.write(None)


class Details:
    method = "/test.v1.Echo/Write"


async def writes(_request: object, context: Any) -> None:
    await context.write("a message")


async def fails(_request: object, _context: Any) -> None:
    raise ServiceError(Category.NOT_FOUND, "GONE_MISSING", "it is not there")


@pytest.mark.parametrize(("behaviour", "counted_as"), [(writes, "CANCELLED"), (fails, "NOT_FOUND")])
async def test_who_left_a_moment_ago_is_no_fault_of_ours(
    behaviour: Callable[[object, Any], Awaitable[None]], counted_as: str
) -> None:
    metrics, in_flight = Metrics(), InFlight()
    boundary = ErrorBoundary(metrics=metrics, in_flight=in_flight)
    handler: Any = grpc.unary_stream_rpc_method_handler(behaviour)

    async def found(_details: object) -> Any:
        return handler

    guarded: Any = await boundary.intercept_service(found, cast("Any", Details()))
    with capture_logs() as logs, pytest.raises(asyncio.CancelledError):  # of which the library logs nothing
        await guarded.stream_stream(iter(()), DeadCall())

    labels = {"service": "test.v1.Echo", "method": "Write", "code": counted_as}
    assert metrics.registry.get_sample_value("grpc_server_handled_total", labels) == 1.0
    assert not in_flight.requests
    assert [entry for entry in logs if entry["log_level"] == "error"] == []
