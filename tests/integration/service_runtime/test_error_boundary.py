"""What a caller learns of an error, and what of it is counted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from service_runtime.error_codec import from_rpc_error
from service_runtime.errors import Category, InvalidRequest, QuotaExceeded, QuotaViolation, ServiceError
from service_runtime.metrics import Metrics
from service_runtime.overload import Gate, GateOf, Saturation, no_gates
from tests.integration.service_runtime.echo import METHODS, SERVICE, Echo, echo_server, eventually, handled, raising

SECRET = "sk-CANARY-0123456789"


@pytest.mark.parametrize("method", METHODS)
async def test_answers_pass_unchanged_and_are_counted(method: str) -> None:
    metrics = Metrics()
    async with echo_server(Echo(), metrics=metrics) as (server, client):
        answers = await client.finish(method, "abc")
        await eventually(lambda: not server.in_flight.requests)

    assert "".join(answers) == "abc"
    assert handled(metrics, method, "OK") == 1


@pytest.mark.parametrize("method", METHODS)
async def test_a_bug_tells_the_caller_nothing_but_a_reference(method: str, caplog: pytest.LogCaptureFixture) -> None:
    async with echo_server(raising(ValueError(f"bad key {SECRET}"))) as (_, client):
        error = await client.failure(method, metadata=(("x-request-id", "my-id"),))

    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == "internal error, ref my-id"
    assert SECRET not in repr((error.details(), error.trailing_metadata(), error.debug_error_string()))


@pytest.mark.parametrize("method", METHODS)
async def test_a_service_error_arrives_as_it_was_raised(method: str) -> None:
    raised = ServiceError(
        Category.UNAVAILABLE, "ALL_TARGETS_FAILED", "nobody answers", metadata={"attempts": "3"}, retry_after_s=1.5
    )
    metrics = Metrics()

    async with echo_server(raising(raised), metrics=metrics) as (server, client):
        error = await client.failure(method)
        await eventually(lambda: not server.in_flight.requests)

    received = from_rpc_error(error)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert (received.category, received.reason, received.message) == (raised.category, raised.reason, raised.message)
    assert (received.metadata, received.retry_after_s) == ({"attempts": "3"}, 1.5)
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "1500"
    assert handled(metrics, method, "UNAVAILABLE") == 1


async def test_bad_fields_and_exceeded_limits_keep_their_violations() -> None:
    async with echo_server(raising(InvalidRequest.at("messages[2].role", "is empty"))) as (_, client):
        bad = from_rpc_error(await client.failure("Unary"))
    over = QuotaExceeded([QuotaViolation("tenant:4f2", "10 requests per minute")], retry_after_s=2.0)
    async with echo_server(raising(over)) as (_, client):
        exceeded = from_rpc_error(await client.failure("Unary"))

    assert isinstance(bad, InvalidRequest)
    assert bad.violations[0].field == "messages[2].role"
    assert isinstance(exceeded, QuotaExceeded)
    assert (exceeded.violations, exceeded.retry_after_s) == (over.violations, 2.0)


async def test_a_secret_in_a_service_error_does_not_reach_the_caller() -> None:
    raised = ServiceError(Category.UNAVAILABLE, "X", f"provider said {SECRET}", metadata={"echo": f"Bearer {SECRET}"})

    async with echo_server(raising(raised)) as (_, client):
        error = await client.failure("Unary")

    assert SECRET not in repr((error.details(), error.trailing_metadata()))


async def test_a_detail_that_cannot_be_rendered_is_a_bug_and_not_a_hang() -> None:
    def broken(detail: object) -> None:
        raise KeyError(SECRET)

    raised = ServiceError(Category.ABORTED, "X", "x", detail=object())

    async with echo_server(raising(raised), detail_to_proto=broken) as (_, client):
        error = await client.failure("Unary")

    assert error.code() is grpc.StatusCode.INTERNAL
    assert SECRET not in repr((error.details(), error.trailing_metadata()))


async def test_a_generator_that_fails_after_messages_delivers_them_first() -> None:
    echo = Echo()

    async def generate(text: str, context: Any) -> AsyncIterator[str]:
        yield "partial"
        raise ServiceError(Category.ABORTED, "STREAM_INTERRUPTED", "the provider hung up")

    echo.generate = generate
    async with echo_server(echo) as (_, client):
        call = client.call("Generate")
        first = await call.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()

    assert first.value == "partial"
    assert from_rpc_error(caught.value).reason == "STREAM_INTERRUPTED"


async def test_a_handler_may_abort_by_itself_and_is_counted_with_its_code() -> None:
    echo, metrics = Echo(), Metrics()

    async def unary(text: str, context: Any) -> str:
        await context.abort(grpc.StatusCode.NOT_FOUND, "gone")
        return text

    echo.unary = unary
    async with echo_server(echo, metrics=metrics) as (server, client):
        error = await client.failure("Unary")
        await eventually(lambda: not server.in_flight.requests)

    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "gone")
    assert handled(metrics, "Unary", "NOT_FOUND") == 1


@pytest.mark.parametrize("gate_of", [no_gates, lambda _: Gate(Saturation())], ids=["without a gate", "behind one"])
@pytest.mark.parametrize("method", METHODS)
async def test_a_request_that_cannot_be_read_is_refused_as_such(method: str, gate_of: GateOf) -> None:
    async with echo_server(Echo(), gate_of=gate_of) as (server, client):
        path = f"/{SERVICE}/{method}"
        malformed: Any = client.channel.unary_stream(path)
        empty: Any = client.channel.stream_stream(path)
        with pytest.raises(grpc.aio.AioRpcError) as unreadable:
            await malformed(b"\xff", timeout=60).read()
        with pytest.raises(grpc.aio.AioRpcError) as missing:
            await empty(iter(()), timeout=60).read()
        await eventually(lambda: not server.in_flight.requests)

    assert from_rpc_error(unreadable.value).reason == "MALFORMED_REQUEST"
    assert from_rpc_error(missing.value).reason == "NO_REQUEST"
