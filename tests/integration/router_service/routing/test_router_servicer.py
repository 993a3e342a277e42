"""RouterService over real sockets: the contract as a client of the stubs sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import grpc
import pytest

from router_service.api.render import detail_to_proto
from router_service.api.request_check import RequestRules
from router_service.api.router_servicer import RouterServicer
from router_service.domain.catalog import ProviderNames
from router_service.domain.completion import ProviderAccepted
from router_service.domain.errors import FailureKind
from router_service.domain.usage import AttemptStatus, UsageSource
from router_service.routing.settings import RoutingSettings
from service_runtime.error_codec import from_rpc_error
from service_runtime.errors import Category, InvalidRequest, ServiceError
from service_runtime.grpc_server import GrpcServer
from service_runtime.ids import uuid7
from service_runtime.metrics import Metrics
from tests.support.router_fakes import TENANT_ID, FakeProvider, Silence, World, answer, failure, finished, text
from turnpike.router.v1 import completion_pb2 as completion
from turnpike.router.v1 import router_service_pb2 as pb
from turnpike.router.v1.router_service_pb2_grpc import RouterServiceStub, add_RouterServiceServicer_to_server

if TYPE_CHECKING:
    from turnpike.router.v1.router_service_pb2_grpc import RouterServiceAsyncStub  # known to type checkers only

USER = completion.ChatMessage(role=completion.ROLE_USER, content="Say hello.")
ASK = pb.StreamCompletionRequest(tenant_id=str(TENANT_ID), messages=[USER])


@asynccontextmanager
async def serving(world: World, *, write_timeout_s: float = 30.0) -> AsyncIterator[RouterServiceAsyncStub]:
    """A client of a server of the world's router."""
    server = GrpcServer(host="127.0.0.1", port=0, metrics=Metrics(), detail_to_proto=detail_to_proto)
    rules = RequestRules(ProviderNames(world.catalog), new_request_id=uuid7)
    servicer = RouterServicer(world.router, rules, write_timeout_s=write_timeout_s)
    server.add("turnpike.router.v1.RouterService", partial(add_RouterServiceServicer_to_server, servicer))
    port = await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield RouterServiceStub(channel)
    finally:
        await world.router.drain(0.0)
        await server.drain(0.0)


def detail_from_any(packed: object) -> object | None:
    failure_proto = completion.CompletionFailure()
    return failure_proto if packed.Unpack(failure_proto) else None  # type: ignore[attr-defined]  # an Any


async def refused(
    call: grpc.aio.UnaryStreamCall[pb.StreamCompletionRequest, pb.StreamCompletionResponse],
) -> ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return from_rpc_error(caught.value, detail_from_any)


async def test_a_stream_ends_with_exactly_one_result() -> None:
    world = World({"groq": FakeProvider([ProviderAccepted(), text("hel"), text("lo"), finished()])})

    async with serving(world) as stub:
        events = [event async for event in stub.StreamCompletion(ASK)]

    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "route_chosen"
    assert kinds[-1] == "result"
    assert kinds.count("result") == 1
    assert "".join(event.delta.text for event in events) == "hello"
    assert len(world.journal.rows) == 1


async def test_a_whole_answer_comes_at_once() -> None:
    world = World({"groq": FakeProvider([text("x"), failure(FailureKind.STREAM_BROKEN)]), "llm7": FakeProvider()})

    async with serving(world) as stub:
        response = await stub.Complete(pb.CompleteRequest(tenant_id=str(TENANT_ID), messages=[USER]))

    assert (response.result.content, response.result.provider) == ("hello", "llm7")
    assert len(response.result.attempts) == 2


async def test_bad_fields_arrive_with_their_paths() -> None:
    async with serving(World({"groq": FakeProvider()})) as stub:
        error = await refused(stub.StreamCompletion(pb.StreamCompletionRequest(tenant_id="x")))

    assert isinstance(error, InvalidRequest)
    assert {violation.field for violation in error.violations} == {"tenant_id", "messages"}


async def test_a_failed_completion_carries_its_attempts() -> None:
    async with serving(World({"groq": FakeProvider([failure(FailureKind.TIMED_OUT)])})) as stub:
        error = await refused(stub.StreamCompletion(ASK))

    assert (error.category, error.reason) == (Category.UNAVAILABLE, "ALL_TARGETS_FAILED")
    assert isinstance(error.detail, completion.CompletionFailure)
    assert [attempt.error_class for attempt in error.detail.attempts] == ["timed_out"]


async def test_a_fault_of_our_own_tells_no_more_than_a_reference() -> None:
    async with serving(World({"groq": FakeProvider([text("a"), ValueError("sk-canary")])})) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.StreamCompletion(ASK):
                pass

    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "canary" not in str(caught.value.details())


async def test_a_cancelled_call_is_one_cancelled_row() -> None:
    world = World({"groq": FakeProvider([text("x" * 30), Silence()])})

    async with serving(world) as stub:
        call = stub.StreamCompletion(ASK)
        first = [await call.read(), await call.read()]
        call.cancel()
        while world.router.running:
            await asyncio.sleep(0.001)

    assert len(first) == 2
    row = world.journal.rows[0]
    assert (row.status, row.usage_source) == (AttemptStatus.CANCELLED, UsageSource.ESTIMATED)


async def test_a_callers_deadline_ends_the_call_and_the_attempt() -> None:
    world = World({"groq": FakeProvider([text("a"), Silence()])})

    async with serving(world) as stub:
        error = await refused(stub.StreamCompletion(ASK, timeout=0.3))
        while world.router.running:
            await asyncio.sleep(0.001)

    assert error.category is Category.DEADLINE_EXCEEDED
    assert [row.status for row in world.journal.rows] == [AttemptStatus.CANCELLED]


async def test_a_caller_who_reads_nothing_is_given_up() -> None:
    flood = [text("x" * 100_000) for _ in range(300)]
    world = World({"groq": FakeProvider([*flood, Silence()])}, settings=RoutingSettings(max_answer=1 << 30))

    async with serving(world, write_timeout_s=0.05) as stub:
        call = stub.StreamCompletion(ASK)
        await call.read()
        while not world.journal.rows:
            await asyncio.sleep(0.001)
        call.cancel()

    assert world.journal.rows[0].status is AttemptStatus.CANCELLED
    assert world.providers["groq"].handed_out < 300


async def test_a_caller_is_told_that_he_is_given_up_however_soon_that_is() -> None:
    """Interrupting the first message would leave him without an end."""
    async with serving(World({"groq": FakeProvider()}), write_timeout_s=0.0) as stub:
        call = stub.StreamCompletion(ASK, timeout=20)
        with suppress(grpc.aio.AioRpcError):
            async for _ in call:
                pass

        assert await call.code() in {grpc.StatusCode.CANCELLED, grpc.StatusCode.OK}  # as quick as the writes are


async def test_a_route_is_explained_and_providers_are_listed() -> None:
    world = World({"groq": FakeProvider(), "llm7": FakeProvider(answer())}, tenant_keys=["groq"])

    async with serving(world) as stub:
        explained = await stub.ExplainRoute(pb.ExplainRouteRequest(tenant_id=str(TENANT_ID)))
        listed = await stub.ListProviders(pb.ListProvidersRequest(tenant_id=str(TENANT_ID)))
        for_nobody = await stub.ListProviders(pb.ListProvidersRequest())

    assert [(c.rank, c.provider) for c in explained.candidates] == [(1, "groq")]
    assert {term.name for term in explained.candidates[0].terms} >= {"latency", "price", "preference"}
    assert [(out.provider, out.reason) for out in explained.excluded] == [("llm7", "NO_KEY")]
    assert [(p.name, p.usable) for p in listed.providers] == [("groq", True), ("llm7", False)]
    assert [p.usable for p in for_nobody.providers] == [False, False]
    assert "TENANT_ID" in for_nobody.providers[0].unusable_reason
