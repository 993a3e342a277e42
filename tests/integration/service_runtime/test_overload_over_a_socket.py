"""What callers see of the two lines of defence, through gRPC's real core."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from service_runtime.error_codec import from_rpc_error
from service_runtime.errors import Category
from service_runtime.overload import ALWAYS_ADMITTED, LEAST_ENDED, WINDOW_S, Gate, Saturation
from tests.integration.service_runtime.echo import SERVICE, Echo, echo_server, eventually

CALLS = 100
MAX_WAITING = 5
TAKEN_UP = 1  # the call for which the server had asked before it stood still
UNARY = f"/{SERVICE}/Unary"
HEALTH = "/grpc.health.v1.Health/Check"


def saturated_gate() -> Gate:
    """A gate that takes a call to last ten seconds and more."""
    now = [0.0]
    gate = Gate(Saturation(now_s=lambda: now[0], busy_s=lambda: now[0]))
    for _ in range(20 * LEAST_ENDED + ALWAYS_ADMITTED):
        gate.enter(1e9, "")
    for _ in range(LEAST_ENDED):
        gate.leave()
    now[0] = 2 * WINDOW_S
    return gate


async def test_core_refuses_who_comes_on_top_of_those_who_wait_even_while_the_event_loop_stands_still() -> None:
    async with echo_server(Echo(), max_waiting_calls=MAX_WAITING) as (server, _):
        with grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            unary: Any = channel.unary_unary(UNARY)
            health: Any = channel.unary_unary(HEALTH)
            await asyncio.to_thread(unary, b"", timeout=60)  # connects
            told = threading.Semaphore(0)
            # No await from here: the server's loop is this one.
            calls = [unary.future(StringValue(value="x").SerializeToString(), timeout=60) for _ in range(CALLS)]
            check = health.future(b"", timeout=60)
            for call in calls:
                call.add_done_callback(lambda _: told.release())
            for _ in range(CALLS - 2 * MAX_WAITING - TAKEN_UP):
                assert told.acquire(timeout=30)
            early = Counter(call.code() for call in calls if call.done())
            at_last = Counter([await asyncio.to_thread(call.code) for call in calls])
            health_code = await asyncio.to_thread(check.code)

    assert set(early) == {grpc.StatusCode.CANCELLED}
    assert set(at_last) == {grpc.StatusCode.CANCELLED, grpc.StatusCode.OK}
    assert MAX_WAITING < at_last[grpc.StatusCode.OK] <= 2 * MAX_WAITING + TAKEN_UP
    assert health_code is grpc.StatusCode.OK  # it waits in a queue of its own


@pytest.mark.parametrize("method", ["Unary", "Generate", "Write"])
async def test_who_is_refused_at_the_gate_is_told_why_and_when_to_come_back_and_is_not_even_read(method: str) -> None:
    gate = saturated_gate()
    async with echo_server(Echo(), gate_of=lambda _: gate) as (_, client):
        malformed: Any = client.channel.unary_stream(f"/{SERVICE}/{method}")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await malformed(b"\xff", timeout=5, metadata=(("x-request-id", "mine"),)).read()
        answers = await client.finish(method, "abc", timeout=60)

    error = from_rpc_error(refused.value)
    trailing = dict(refused.value.trailing_metadata() or ())
    assert (error.category, error.reason) == (Category.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert error.retry_after_s == 5.0
    assert trailing["x-request-id"] == "mine"
    assert trailing["grpc-retry-pushback-ms"] == "5000"
    assert "".join(answers) == "abc"


async def test_a_caller_who_hangs_up_leaves_the_gate() -> None:
    started, gate, echo = asyncio.Event(), Gate(Saturation()), Echo()

    async def forever(text: str, context: Any) -> str:
        started.set()
        await asyncio.Event().wait()
        return text

    echo.unary = forever
    async with echo_server(echo, gate_of=lambda _: gate) as (_, client):
        call = client.call("Unary", "x", timeout=60)
        await asyncio.wait_for(started.wait(), 30)
        assert gate.in_progress == 1
        call.cancel()
        await eventually(lambda: gate.in_progress == 0)
