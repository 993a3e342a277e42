"""A call ends by its deadline, the server's cap, or because its caller is gone or reads nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from service_runtime.error_codec import from_rpc_error
from service_runtime.interceptors import BoundaryLimits
from service_runtime.metrics import Metrics
from tests.integration.service_runtime.echo import (
    METHODS,
    SERVICE,
    Echo,
    doing,
    echo_server,
    eventually,
    handled,
    raising,
)


@pytest.mark.parametrize("method", METHODS)
async def test_a_call_without_deadline_ends_at_the_servers_cap(method: str) -> None:
    """S5: every RPC ends."""
    cleaned_up = []

    async def unary(text: str, context: Any) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned_up.append(text)
        return text

    async with echo_server(doing(unary), limits=BoundaryLimits(max_duration_s=0.05)) as (_, client):
        error = await client.failure(method, "x")

    assert from_rpc_error(error).reason == "SERVER_CAP"
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert cleaned_up == ["x"]


@pytest.mark.parametrize("method", METHODS)
async def test_a_caller_who_never_sends_his_request_is_held_no_longer_than_that(method: str) -> None:
    async with echo_server(Echo(), limits=BoundaryLimits(max_duration_s=0.05)) as (_, client):
        opened: Any = client.channel.stream_stream(f"/{SERVICE}/{method}")
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await opened(timeout=60).read()

    assert from_rpc_error(ended.value).reason == "SERVER_CAP"


async def test_a_timeout_error_of_the_handlers_own_is_a_bug_and_not_the_cap() -> None:
    async with echo_server(raising(TimeoutError())) as (_, client):
        error = await client.failure("Unary")

    assert error.code() is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("method", METHODS)
async def test_a_caller_who_hangs_up_is_counted_as_cancelled_and_the_handler_cleans_up(method: str) -> None:
    metrics = Metrics()
    entered, cleaned_up = asyncio.Event(), asyncio.Event()

    async def unary(text: str, context: Any) -> str:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned_up.set()
        return text

    async with echo_server(doing(unary), metrics=metrics) as (server, client):
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


async def test_a_reader_is_told_that_he_was_too_slow_however_soon_that_is() -> None:
    """Interrupting the first message would leave him without an end."""
    async with echo_server(Echo(), limits=BoundaryLimits(write_timeout_s=0.0)) as (_, client):
        error = await client.failure("Generate", "abc", timeout=20)

    assert from_rpc_error(error).reason == "READER_TOO_SLOW"
