"""A tenant whose rejected key is used without end, through the real router, in states and counts: who waits, who does
not, and what ends it. `python -m tests.bench.isolation --both-ways` has the times.

The router holds refusals back however idle it is, and for so long that none of them is told before a test says so.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from tests.bench.flood import HELLO
from tests.bench.routing_site import GOOD, Site, load, running_site
from tests.support.ports import free_ports
from turnpike.router.v1 import router_service_pb2, router_service_pb2_grpc

AT_ONCE = 20  # refusals of a quiet tenant before the pace binds
PATIENT_S = 600.0
REJECTED = grpc.StatusCode.FAILED_PRECONDITION


@dataclass(frozen=True)
class Holding:
    """A Turnpike that holds refusals for half a minute, and the port of the router's metrics."""

    site: Site
    metrics_port: int

    def metric(self, name: str) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        found = re.search(rf"^grpc_server_refusals_{name} (\S+)$", text, re.MULTILINE)
        assert found is not None, text
        return int(float(found[1]))

    async def until(self, name: str, holds: Callable[[int], bool]) -> int:
        """The metric's value once it `holds`."""
        async with asyncio.timeout(60):
            while not holds(value := await asyncio.to_thread(self.metric, name)):
                await asyncio.sleep(0.05)
        return value


@contextmanager
def running() -> Iterator[Holding]:
    port = free_ports()
    settings = {
        "ROUTER_HOLD_REFUSALS_S": "30",
        "ROUTER_HOLD_REFUSALS_BUSY_RATIO": "0",
        "ROUTER_METRICS_PORT": str(port),
    }
    with running_site(settings) as site:
        yield Holding(site, port)


@pytest.fixture(scope="module")
def holding() -> Iterator[Holding]:
    with running() as holding:
        yield holding


class Tenant:
    """A tenant's connection and its streams, each to whatever end."""

    def __init__(self, channel: grpc.aio.Channel, tenant_id: str) -> None:
        self.tenant_id = tenant_id
        self._stub: Any = router_service_pb2_grpc.RouterServiceStub(channel)
        self._request = router_service_pb2.StreamCompletionRequest(tenant_id=tenant_id, messages=[HELLO])
        self.ended: Counter[grpc.StatusCode] = Counter()

    def begin(self, count: int) -> Sequence[tuple[Any, asyncio.Task[None]]]:
        """So many streams, and what waits for the end of each."""
        calls = [self._stub.StreamCompletion(self._request, timeout=PATIENT_S) for _ in range(count)]
        return [(call, asyncio.create_task(self._follow(call))) for call in calls]

    async def ask(self, count: int) -> None:
        """So many streams at once, to their ends."""
        await asyncio.gather(*(end for _, end in self.begin(count)))

    async def _follow(self, call: Any) -> None:
        try:
            async for _ in call:
                pass
        except grpc.aio.AioRpcError as error:
            self.ended[error.code()] += 1
        except asyncio.CancelledError:
            if not call.cancelled():
                raise
            self.ended[grpc.StatusCode.CANCELLED] += 1


@asynccontextmanager
async def connected(site: Site, tenant_id: str) -> AsyncIterator[Tenant]:
    options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
    async with grpc.aio.insecure_channel(site.router, options=options) as channel:
        yield Tenant(channel, tenant_id)


@asynccontextmanager
async def told_of_its_key(site: Site) -> AsyncIterator[Tenant]:
    """A tenant whose key has been rejected, as the router knows."""
    tenant_id = site.tenant({"groq": f"{GOOD}&of={secrets.token_hex(4)}"}, key=f"sk-{secrets.token_hex(16)}")
    async with connected(site, tenant_id) as tenant:
        await tenant.ask(1)
        assert tenant.ended == {REJECTED: 1}
        yield tenant


async def test_only_who_asks_without_end_waits_and_others_are_served_and_refused_as_ever(holding: Holding) -> None:
    site, before = holding.site, holding.metric("held_total")
    async with told_of_its_key(site) as a, told_of_its_key(site) as c:
        await a.ask(AT_ONCE // 2)
        held_of_the_first = holding.metric("held_total") - before
        flood = a.begin(200)
        await holding.until("waiting", lambda waiting: waiting >= 100)
        of_b = await load(site.router, site.tenant({"groq": GOOD}), count=40, per_s=20)
        await c.ask(AT_ONCE // 2)
        still_waiting = holding.metric("waiting")
        for call, _ in flood:
            call.cancel()
        await holding.until("waiting", lambda waiting: waiting == 0)
        await asyncio.gather(*(end for _, end in flood))

    assert held_of_the_first == 0, "the first refusals are told at once"
    assert (of_b.served, of_b.errors) == (40, {})
    assert c.ended == {REJECTED: 1 + AT_ONCE // 2}
    assert still_waiting > 0, "the others were not kept until the flood was over"
    assert a.ended[grpc.StatusCode.CANCELLED] >= still_waiting / 2  # while they were being cancelled, some had turns


async def test_more_than_may_wait_are_told_at_once(holding: Holding) -> None:
    site, before = holding.site, holding.metric("not_held_total")
    async with (
        told_of_its_key(site) as a,
        connected(site, a.tenant_id) as again,
        connected(site, a.tenant_id) as once_more,
    ):
        flood = [each for connection in (a, again, once_more) for each in connection.begin(240)]
        not_held = await holding.until("not_held_total", lambda count: count > before) - before
        waiting = holding.metric("waiting")
        for call, _ in flood:
            call.cancel()
        await asyncio.gather(*(end for _, end in flood))

    assert 0 < not_held <= 3 * 240 - waiting
    assert waiting > 0


async def test_a_router_that_stops_tells_everybody_at_once() -> None:
    with running() as holding:
        async with told_of_its_key(holding.site) as a:
            flood = a.begin(200)
            # All have been taken up: who still stands in gRPC's queue is told by gRPC, and of its own end.
            waiting = await holding.until("waiting", lambda waiting: waiting + a.ended.total() >= 200)
            os.kill(holding.site.router_process.root, signal.SIGTERM)
            async with asyncio.timeout(60):
                await asyncio.gather(*(end for _, end in flood))

    assert waiting > 0, "nobody was left to be told"
    assert a.ended == {REJECTED: 1 + 200}
