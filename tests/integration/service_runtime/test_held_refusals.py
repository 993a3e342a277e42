"""Refusals that wait for their turn, over a socket: whose do, what ends their wait, and what they count into.

The clock of the turns stands still, so that a turn comes when a test says so, and never by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from service_runtime.error_codec import from_rpc_error
from service_runtime.errors import Category, ServiceError
from service_runtime.grpc_server import GrpcServer
from service_runtime.held_refusals import HeldRefusals
from service_runtime.interceptors import BoundaryLimits
from service_runtime.metrics import Metrics
from service_runtime.overload import Gate, Saturation
from service_runtime.refusal_turns import TurnRules
from tests.integration.service_runtime.echo import (
    METHODS,
    SERVICE,
    Client,
    Echo,
    doing,
    echo_server,
    eventually,
    handled,
)

AT_ONCE, MOST_WAITING = 2, 4
RULES = TurnRules(longest_wait_s=8.0, busy_ratio=0.0, most_waiting=MOST_WAITING, at_once=AT_ONCE)  # a turn each 2 s
PATIENT_S = 600.0


@dataclass
class Refusing:
    """A service that refuses everybody but `served`, and whoever calls it; the request names the user."""

    held: HeldRefusals
    metrics: Metrics
    now_s: list[float]
    server: GrpcServer = field(init=False)
    client: Client = field(init=False)
    refused: int = 0
    category: Category = Category.FAILED_PRECONDITION

    async def unary(self, text: str, context: Any) -> str:
        self.held.used(context, text)
        if text == "served":
            return text
        self.refused += 1
        raise ServiceError(self.category, "NOT_YOURS", f"{text} has nothing here")

    def passes(self, length_s: float) -> None:
        self.now_s[0] += length_s

    def count(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name) or 0.0

    def call(self, method: str, count: int, *, user: str = "a", client: Client | None = None) -> Sequence[Any]:
        """So many calls of a user, under way."""
        using = client or self.client
        calls = [using.call(method, user, timeout=PATIENT_S) for _ in range(count)]
        return [asyncio.ensure_future(told(using, call)) for call in calls]


async def told(client: Client, call: Any) -> str:
    """The code and the reason of the error that a call ends with."""
    try:
        await client.drain(call)
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name} {from_rpc_error(error).reason}"
    except asyncio.CancelledError:
        if not call.cancelled():
            raise
        return "CANCELLED"
    return "OK"


@asynccontextmanager
async def refusing(
    *, service: str = SERVICE, echo: Echo | None = None, most_held: int = 100, **options: Any
) -> AsyncIterator[Refusing]:
    metrics, now_s = Metrics(), [100.0]
    held = HeldRefusals(RULES, metrics, service=service, now_s=lambda: now_s[0], most_held=most_held)
    service_of = Refusing(held, metrics, now_s)
    async with echo_server(echo or doing(service_of.unary), metrics=metrics, held=held, **options) as (server, client):
        service_of.server, service_of.client = server, client
        yield service_of


@pytest.mark.parametrize("method", METHODS)
async def test_the_first_refusals_come_at_once_and_further_ones_by_turns(method: str) -> None:
    async with refusing() as service:
        first = await asyncio.gather(*service.call(method, AT_ONCE))
        further = service.call(method, 3)
        await eventually(lambda: service.held.waiting == 3)
        service.passes(2.0)
        await eventually(lambda: service.held.waiting == 2)
        ended = sum(call.done() for call in further)
        service.passes(4.0)
        answers = await asyncio.gather(*further)

    assert first == ["FAILED_PRECONDITION NOT_YOURS"] * AT_ONCE
    assert ended <= 1
    assert answers == ["FAILED_PRECONDITION NOT_YOURS"] * 3
    assert service.count("grpc_server_refusals_held_total") == 3
    assert service.count("grpc_server_refusals_waiting") == 0
    assert handled(service.metrics, method, "FAILED_PRECONDITION") == AT_ONCE + 3


async def test_who_would_wait_too_long_is_told_at_once() -> None:
    async with refusing() as service:
        await asyncio.gather(*service.call("Unary", AT_ONCE))
        waiting = service.call("Unary", MOST_WAITING)
        await eventually(lambda: service.held.waiting == MOST_WAITING)
        on_top = await asyncio.gather(*service.call("Unary", 10))
        still_waiting = service.held.waiting
        service.passes(8.0)
        await asyncio.gather(*waiting)

    assert on_top == ["FAILED_PRECONDITION NOT_YOURS"] * 10
    assert still_waiting == MOST_WAITING
    assert service.count("grpc_server_refusals_not_held_total") == 10


async def test_of_all_together_only_so_many_wait() -> None:
    async with refusing(most_held=3) as service:
        await asyncio.gather(*service.call("Unary", AT_ONCE))
        calls = service.call("Unary", MOST_WAITING)
        await eventually(lambda: service.refused == AT_ONCE + MOST_WAITING)
        await eventually(lambda: service.held.waiting == 3)
        service.passes(8.0)
        await asyncio.gather(*calls)

    assert service.count("grpc_server_refusals_held_total") == 3
    assert service.count("grpc_server_refusals_not_held_total") == MOST_WAITING - 3


@pytest.mark.parametrize("method", METHODS)
async def test_a_caller_who_leaves_waits_no_longer(method: str) -> None:
    async with refusing() as service:
        await asyncio.gather(*service.call(method, AT_ONCE))
        call = service.client.call(method, "a", timeout=PATIENT_S)
        answer = asyncio.ensure_future(told(service.client, call))
        await eventually(lambda: service.held.waiting == 1)
        call.cancel()
        await eventually(lambda: service.held.waiting == 0)
        await eventually(lambda: handled(service.metrics, method, "CANCELLED") == 1)
        left = len(service.server.in_flight.requests)

        assert await answer == "CANCELLED"
    assert left == 0


async def test_a_drain_tells_everybody_at_once_and_nobody_waits_from_then_on() -> None:
    async with refusing() as service:
        await asyncio.gather(*service.call("Unary", AT_ONCE))
        waiting = service.call("Unary", 3)
        await eventually(lambda: service.held.waiting == 3)
        service.server.release_held()  # as a service does while it still takes calls
        answers = await asyncio.gather(*waiting)
        later = await asyncio.gather(*service.call("Unary", 3))

    assert answers == later == ["FAILED_PRECONDITION NOT_YOURS"] * 3
    assert service.held.waiting == 0


async def test_a_server_that_stops_leaves_no_held_call_behind() -> None:
    async with refusing() as service:
        await asyncio.gather(*service.call("Unary", AT_ONCE))
        waiting = service.call("Unary", 3)
        await eventually(lambda: service.held.waiting == 3)
        left = await service.server.drain(grace_s=60)
        answers = await asyncio.gather(*waiting)

    assert left == 0
    assert answers == ["FAILED_PRECONDITION NOT_YOURS"] * 3


async def test_who_waits_for_a_turn_counts_into_no_bound_of_others() -> None:
    gate = Gate(Saturation())
    limits = BoundaryLimits(max_calls=1)
    async with refusing(limits=limits, gate_of=lambda _: gate) as service:
        for _ in range(AT_ONCE):
            await asyncio.gather(*service.call("Unary", 1))
        waiting: list[Any] = []
        for number in range(1, 4):
            waiting += service.call("Unary", 1)
            await eventually(lambda expected=number: service.held.waiting == expected)  # type: ignore[misc]
        in_progress, in_flight = gate.in_progress, len(service.server.in_flight.requests)
        served = await service.client.finish("Unary", "served", timeout=PATIENT_S)
        service.passes(8.0)
        await asyncio.gather(*waiting)
        await eventually(lambda: gate.in_progress == 0)

    assert (in_progress, in_flight) == (0, 0)
    assert served == ["served"]


async def test_a_connection_that_others_use_as_well_is_never_held_up() -> None:
    async with refusing() as service:
        await service.client.finish("Unary", "served")
        answers = await asyncio.gather(*service.call("Unary", 20))

    assert answers == ["FAILED_PRECONDITION NOT_YOURS"] * 20
    assert service.count("grpc_server_refusals_held_total") == 0


async def test_nor_is_one_over_which_another_service_is_called() -> None:
    """An administrator who mends what is wrong must not stand in line behind it."""
    async with refusing(service="test.v1.Another") as service:
        answers = await asyncio.gather(*service.call("Unary", 20))

    assert answers == ["FAILED_PRECONDITION NOT_YOURS"] * 20
    assert service.count("grpc_server_refusals_held_total") == 0


async def test_another_users_first_refusals_come_at_once_beside_a_flood() -> None:
    async with refusing() as service:
        waiting = service.call("Unary", AT_ONCE + MOST_WAITING)
        await eventually(lambda: service.held.waiting == MOST_WAITING)
        own = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(service.server.address, options=own) as channel:
            of_b = await asyncio.gather(*service.call("Unary", AT_ONCE, user="b", client=Client(channel)))
        still_waiting = service.held.waiting
        service.passes(8.0)
        await asyncio.gather(*waiting)

    assert of_b == ["FAILED_PRECONDITION NOT_YOURS"] * AT_ONCE
    assert still_waiting == MOST_WAITING


@pytest.mark.parametrize("category", [Category.UNAVAILABLE, Category.RESOURCE_EXHAUSTED, Category.ABORTED])
async def test_who_is_asked_to_come_back_is_told_at_once(category: Category) -> None:
    async with refusing() as service:
        service.category = category
        answers = await asyncio.gather(*service.call("Unary", 20))

    assert answers == [f"{category.name} NOT_YOURS"] * 20
    assert service.count("grpc_server_refusals_held_total") == 0
