from __future__ import annotations

import asyncio
import gc
import uuid
import weakref
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from service_runtime.call_context import current_call, current_request_id, outgoing_metadata
from service_runtime.error_codec import from_rpc_error
from service_runtime.errors import Category, InvalidRequest, QuotaExceeded, QuotaViolation, ServiceError
from service_runtime.interceptors import BoundaryLimits
from service_runtime.metrics import Metrics
from service_runtime.overload import LEAST_ENDED, Gate, Saturation
from tests.integration.service_runtime.echo import SERVICE, Echo, echo_server, eventually

SECRET = "sk-CANARY-0123456789"
METHODS = ("Unary", "Generate", "Write")


def raising(error: Exception) -> Echo:
    """A service each of whose methods raises `error`."""
    echo = Echo()

    async def unary(text: str, context: Any) -> str:
        raise error

    async def generate(text: str, context: Any) -> AsyncIterator[str]:
        for letter in text:  # which makes it a generator
            yield letter
        raise error

    async def write(text: str, context: Any) -> None:
        raise error

    echo.unary, echo.generate, echo.write = unary, generate, write
    return echo


def handled(metrics: Metrics, method: str, code: str) -> float:
    labels = {"service": SERVICE, "method": method, "code": code}
    return metrics.registry.get_sample_value("grpc_server_handled_total", labels) or 0.0


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


@pytest.mark.parametrize("method", METHODS)
async def test_the_request_id_is_kept_passed_on_and_echoed(method: str) -> None:
    echo = Echo()
    seen: list[object] = []

    async def unary(text: str, context: Any) -> str:
        seen.append((current_request_id(), outgoing_metadata()))
        return text

    async def generate(text: str, context: Any) -> AsyncIterator[str]:
        yield await unary(text, context)

    async def write(text: str, context: Any) -> None:
        await unary(text, context)

    echo.unary, echo.generate, echo.write = unary, generate, write
    async with echo_server(echo) as (_, client):
        call = client.call(method, metadata=(("x-request-id", "abc-1"),))
        await client.drain(call)
        trailing = dict(await call.trailing_metadata())

    assert seen == [("abc-1", (("x-request-id", "abc-1"),))]
    assert trailing["x-request-id"] == "abc-1"


@pytest.mark.parametrize("offered", [(), (("x-request-id", "has spaces"),), (("x-request-id", "x" * 129),)])
async def test_a_missing_or_unusable_request_id_is_replaced(offered: tuple[tuple[str, str], ...]) -> None:
    async with echo_server(Echo()) as (_, client):
        call = client.call("Unary", metadata=offered)
        trailing = dict(await call.trailing_metadata())

    assert uuid.UUID(trailing["x-request-id"]).version == 7


@pytest.mark.parametrize("method", METHODS)
async def test_a_call_without_deadline_ends_at_the_servers_cap(method: str) -> None:
    """S5: every RPC ends."""
    echo = Echo()
    cleaned_up = []

    async def unary(text: str, context: Any) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned_up.append(text)
        return text

    async def generate(text: str, context: Any) -> AsyncIterator[str]:
        yield await unary(text, context)

    async def write(text: str, context: Any) -> None:
        await unary(text, context)

    echo.unary, echo.generate, echo.write = unary, generate, write
    async with echo_server(echo, limits=BoundaryLimits(max_duration_s=0.05)) as (_, client):
        error = await client.failure(method, "x")

    assert from_rpc_error(error).reason == "SERVER_CAP"
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert cleaned_up == ["x"]


async def test_the_handler_learns_how_long_the_caller_will_wait() -> None:
    echo = Echo()

    async def unary(text: str, context: Any) -> str:
        call = current_call()
        assert call is not None
        return str(call.remaining_s())

    echo.unary = unary
    async with echo_server(echo) as (_, client):
        given = float((await client.finish("Unary", timeout=20))[0])
        capped = float((await client.finish("Unary", timeout=9999))[0])
        unset = float((await client.finish("Unary"))[0])

    assert 10 < given <= 21  # the wire format rounds it up
    assert 590 < capped <= 600
    assert 590 < unset <= 600


async def test_a_timeout_error_of_the_handlers_own_is_a_bug_and_not_the_cap() -> None:
    async with echo_server(raising(TimeoutError())) as (_, client):
        error = await client.failure("Unary")

    assert error.code() is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("method", METHODS)
async def test_a_caller_who_hangs_up_is_counted_as_cancelled_and_the_handler_cleans_up(method: str) -> None:
    echo, metrics = Echo(), Metrics()
    entered, cleaned_up = asyncio.Event(), asyncio.Event()

    async def unary(text: str, context: Any) -> str:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned_up.set()
        return text

    async def generate(text: str, context: Any) -> AsyncIterator[str]:
        yield await unary(text, context)

    async def write(text: str, context: Any) -> None:
        await unary(text, context)

    echo.unary, echo.generate, echo.write = unary, generate, write
    async with echo_server(echo, metrics=metrics) as (server, client):
        call = client.call(method)
        await entered.wait()
        call.cancel()
        await asyncio.wait_for(cleaned_up.wait(), 5)
        await eventually(lambda: not server.in_flight.requests)

    assert handled(metrics, method, "CANCELLED") == 1


async def test_a_callers_deadline_is_counted_as_such() -> None:
    echo, metrics = Echo(), Metrics()

    async def unary(text: str, context: Any) -> str:
        await asyncio.Event().wait()
        return text

    echo.unary = unary
    async with echo_server(echo, metrics=metrics) as (server, client):
        error = await client.failure("Unary", timeout=1.0)  # on a busy machine less may be over before it begins
        await eventually(lambda: not server.in_flight.requests)

    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert handled(metrics, "Unary", "DEADLINE_EXCEEDED") == 1


@pytest.mark.parametrize("method", ["Generate", "Write"])
async def test_a_caller_who_hangs_up_during_a_blocked_write_lets_the_handler_clean_up(method: str) -> None:
    echo = Echo()
    written, cleaned_up = [], asyncio.Event()
    chunk = "x" * 500_000

    async def generate(text: str, context: Any) -> AsyncIterator[str]:
        try:
            while True:
                yield chunk
                written.append(1)
        finally:
            cleaned_up.set()

    async def write(text: str, context: Any) -> None:
        try:
            while True:
                await context.write(StringValue(value=chunk))
                written.append(1)
        finally:
            cleaned_up.set()

    echo.generate, echo.write = generate, write
    async with echo_server(echo) as (server, client):
        call = client.call(method)
        await call.read()
        before = -1
        while before != len(written):  # until it stands still: the caller reads nothing
            before = len(written)
            await asyncio.sleep(0.1)
        call.cancel()
        await asyncio.wait_for(cleaned_up.wait(), 5)
        await eventually(lambda: not server.in_flight.requests)

    assert cleaned_up.is_set()


async def test_a_reader_that_stands_still_is_dropped() -> None:
    """S3: slow readers hold nothing for ever."""
    echo, cleaned_up = Echo(), asyncio.Event()

    async def generate(text: str, context: Any) -> AsyncIterator[str]:
        try:
            while True:
                yield "x" * 500_000
        finally:
            cleaned_up.set()

    echo.generate = generate
    async with echo_server(echo, limits=BoundaryLimits(write_timeout_s=0.1)) as (server, client):
        call = client.call("Generate")
        await asyncio.wait_for(cleaned_up.wait(), 5)
        await eventually(lambda: not server.in_flight.requests)
        call.cancel()


async def test_calls_beyond_the_limit_are_refused_while_health_still_answers() -> None:
    echo, release = Echo(), asyncio.Event()

    async def unary(text: str, context: Any) -> str:
        await release.wait()
        return text

    echo.unary = unary
    async with echo_server(echo, limits=BoundaryLimits(max_calls=2)) as (server, client):
        waiting = [asyncio.create_task(client.finish("Unary", name)) for name in "ab"]
        await eventually(lambda: len(server.in_flight.requests) == 2)
        refused = from_rpc_error(await client.failure("Unary", "c"))
        check: Any = client.channel.unary_unary("/grpc.health.v1.Health/Check")
        health = await check(b"")
        release.set()
        answers = await asyncio.gather(*waiting)

    assert (refused.category, refused.reason) == (Category.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert refused.retry_after_s is not None
    assert health == b"\x08\x01"
    assert answers == [["a"], ["b"]]


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


async def test_a_saturated_service_refuses_at_once_who_would_be_too_late_and_serves_who_matters_more() -> None:
    now, busy, release, echo = [0.0], [0.0], asyncio.Event(), Echo()
    gate = Gate(Saturation(now_s=lambda: now[0], busy_s=lambda: busy[0]))

    async def held(text: str, context: Any) -> str:
        if text == "held":
            await release.wait()
        return text

    echo.unary = held
    gate_of = {f"/{SERVICE}/Unary": gate}.get
    async with echo_server(echo, gate_of=gate_of) as (server, client):
        running = [asyncio.ensure_future(client.call("Unary", "held", timeout=60)) for _ in range(20 * LEAST_ENDED)]
        await eventually(lambda: len(server.in_flight.requests) == 20 * LEAST_ENDED)
        for _ in range(LEAST_ENDED):
            assert (await client.call("Unary", "done", timeout=60)).value == "done"
        now[0] = busy[0] = 1.0  # twenty times as many are in progress as end in a second: one takes 20 s

        refused = from_rpc_error(await client.failure("Unary", timeout=18))
        served = await client.call("Unary", "high", timeout=18, metadata=(("x-turnpike-priority", "high"),))
        patient = await client.call("Unary", "patient", timeout=60)
        other = await client.call("Write", "", timeout=18).read()

        release.set()
        await asyncio.gather(*running)

    assert (refused.category, refused.reason) == (Category.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert refused.retry_after_s == 5.0
    assert (served.value, patient.value) == ("high", "patient")
    assert other is grpc.aio.EOF


@pytest.mark.parametrize("method", METHODS)
async def test_of_a_refused_call_nothing_is_left_for_the_garbage_collector(method: str) -> None:
    refusals: list[weakref.ref[ServiceError]] = []

    def refuse() -> ServiceError:
        error = ServiceError(Category.UNAVAILABLE, "AWAY", "away; come again")
        refusals.append(weakref.ref(error))
        return error

    async def unary(text: str, context: Any) -> str:
        raise refuse()

    async def generate(text: str, context: Any) -> AsyncIterator[str]:
        for letter in text[:0]:  # which makes it a generator
            yield letter
        raise refuse()

    async def write(text: str, context: Any) -> None:
        raise refuse()

    echo = Echo()
    echo.unary, echo.generate, echo.write = unary, generate, write
    gc.disable()
    try:
        async with echo_server(echo) as (_, client):
            for _ in range(3):
                await client.failure(method)
            await eventually(lambda: all(refusal() is None for refusal in refusals))
    finally:
        gc.enable()

    assert len(refusals) == 3
