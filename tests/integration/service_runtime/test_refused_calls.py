"""Calls that are refused before or by their handler."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import grpc
import pytest

from service_runtime.error_codec import from_rpc_error
from service_runtime.errors import Category, ServiceError
from service_runtime.interceptors import BoundaryLimits
from service_runtime.overload import LEAST_ENDED, Gate, Saturation
from tests.integration.service_runtime.echo import METHODS, SERVICE, Echo, doing, echo_server, eventually


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

    gc.disable()
    try:
        async with echo_server(doing(unary)) as (_, client):
            for _ in range(3):
                await client.failure(method)
            await eventually(lambda: all(refusal() is None for refusal in refusals))
    finally:
        gc.enable()

    assert len(refusals) == 3
