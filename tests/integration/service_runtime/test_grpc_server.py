from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from service_runtime.grpc_server import GrpcServer, PortTaken
from service_runtime.metrics import Metrics
from service_runtime.startup import StartupError
from tests.integration.service_runtime.echo import SERVICE, Client, Echo, echo_server, eventually

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def health_stub(client: Client) -> Any:
    return health_pb2_grpc.HealthStub(client.channel)


async def status(client: Client, service: str) -> int:
    stub = health_stub(client)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


async def listed_services(client: Client) -> set[str]:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(client.channel)  # type: ignore[arg-type] # takes either
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    call = stub.ServerReflectionInfo(iter([request]))
    answers = [answer async for answer in call]
    return {service.name for service in answers[0].list_services_response.service}


async def test_health_tells_liveness_and_each_services_readiness() -> None:
    async with echo_server(Echo()) as (server, client):
        when_ready = await status(client, SERVICE)
        server.set_serving(False)
        when_not = await status(client, SERVICE)
        alive = await status(client, "")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await status(client, "no.such.Service")

    assert (when_ready, when_not, alive) == (SERVING, NOT_SERVING, SERVING)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_watch_sees_each_change_and_ends_when_the_server_drains() -> None:
    async with echo_server(Echo()) as (server, client):
        watch = health_stub(client).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        seen = [(await watch.read()).status]
        server.set_serving(False)
        seen.append((await watch.read()).status)
        server.set_serving(True)
        seen.append((await watch.read()).status)
        left = await asyncio.wait_for(server.drain(grace_s=30), 5)
        seen.append((await watch.read()).status)
        end = await watch.read()

    assert seen == [SERVING, NOT_SERVING, SERVING, NOT_SERVING]
    assert end is grpc.aio.EOF
    assert left == 0


async def test_an_unknown_service_may_be_watched() -> None:
    async with echo_server(Echo()) as (_, client):
        watch = health_stub(client).Watch(health_pb2.HealthCheckRequest(service="not.yet"))
        seen = (await watch.read()).status
        watch.cancel()

    assert seen == SERVICE_UNKNOWN


async def test_reflection_lists_the_services_so_that_grpcurl_works_unaided() -> None:
    async with echo_server(Echo()) as (_, client):
        services = await listed_services(client)

    assert services == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


async def test_reflection_can_be_off() -> None:
    async with echo_server(Echo(), reflection_is_on=False) as (_, client):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await listed_services(client)

    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_second_server_on_the_port_is_refused_in_one_line() -> None:
    async with echo_server(Echo()) as (first, _):
        port = int(first.address.rpartition(":")[2])
        second = GrpcServer(host="127.0.0.1", port=port, metrics=Metrics())
        with pytest.raises(PortTaken, match=f"^port {port} on 127.0.0.1 is taken; stop its owner or set another port$"):
            await second.start()


async def test_an_address_of_another_machine_is_refused() -> None:
    server = GrpcServer(host="192.0.2.1", port=0, metrics=Metrics())

    with pytest.raises(StartupError, match=r"^cannot listen on 192\.0\.2\.1:0"):
        await server.start()


async def test_workers_of_one_service_may_share_a_port() -> None:
    async with echo_server(Echo(), reuse_port=True) as (first, _):
        port = int(first.address.rpartition(":")[2])
        second = GrpcServer(host="127.0.0.1", port=port, metrics=Metrics(), reuse_port=True)

        assert await second.start() == port
        await second.drain(grace_s=0)


async def test_a_drain_lets_a_stream_finish_and_refuses_new_calls() -> None:
    """S7: SIGTERM loses no stream inside the grace time."""
    echo, release = Echo(), asyncio.Event()

    async def generate(text: str, context: Any) -> AsyncIterator[str]:
        yield "first"
        await release.wait()
        yield "last"

    echo.generate = generate
    async with echo_server(echo) as (server, client):
        call = client.call("Generate")
        await call.read()
        drained = asyncio.create_task(server.drain(grace_s=10))
        await server.draining.wait()
        refused = await client.failure("Unary", "late", timeout=1)
        release.set()
        last, end = await call.read(), await call.read()
        left = await drained

    assert last.value == "last"
    assert end is grpc.aio.EOF
    # CANCELLED: gRPC's answer to a call that crosses its GOAWAY on the wire.
    assert refused.code() in {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
    }
    assert left == 0


async def test_a_drain_waits_for_the_cleanup_of_the_handlers_that_it_cancels() -> None:
    echo, settled = Echo(), []

    async def write(text: str, context: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            settled.append(text)

    echo.write = write
    async with echo_server(echo) as (server, client):
        calls = [client.call("Write", str(number)) for number in range(20)]
        await eventually(lambda: len(server.in_flight.requests) == 20)
        left = await server.drain(grace_s=0)
        settled_at_return = len(settled)
        for call in calls:
            call.cancel()

    assert (left, settled_at_return) == (0, 20)


async def test_an_oversized_request_is_refused_without_reaching_the_handler() -> None:
    async with echo_server(Echo(), max_message_bytes=10_000) as (_, client):
        error = await client.failure("Unary", "x" * 20_000)

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_connection_that_says_nothing_is_closed_and_harms_nobody() -> None:
    async with echo_server(Echo()) as (server, client):
        port = int(server.address.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answers = await client.finish("Unary", "hello")
        async with asyncio.timeout(25):  # gRPC's own patience is longer
            await reader.read()  # until the server hangs up
        writer.close()

    assert answers == ["hello"]


async def test_one_connection_has_only_so_many_calls_open_and_its_others_wait() -> None:
    echo, release = Echo(), asyncio.Event()
    running, most = 0, 0

    async def held(text: str, context: Any) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await release.wait()
        running -= 1
        return text

    async with echo_server(echo, max_waiting_calls=10_000) as (_, client):
        await client.finish("Unary", "first")  # by its end the client knows the server's settings
        echo.unary = held
        calls = [asyncio.create_task(client.finish("Unary", str(number))) for number in range(300)]
        await eventually(lambda: running >= 250)
        release.set()
        answers = await asyncio.gather(*calls)

    assert most == 250
    assert answers == [[str(number)] for number in range(300)]
