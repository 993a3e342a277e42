from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

SERVICE = "turnpike.router.v1.RouterService"


class Server:
    def __init__(self) -> None:
        self.health = health.HealthServicer()
        self._server = grpc.aio.server()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    async def start(self) -> None:
        await self._server.start()
        await self.health.set("", health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        await self._server.stop(None)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    started = Server()
    await started.start()
    yield started
    await started.stop()


async def check(*arguments: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service_runtime.healthcheck", *arguments), stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    return process.returncode, errors.decode()


async def test_a_process_that_lives_is_healthy(server: Server) -> None:
    assert await check(server.target) == (0, "")


async def test_a_service_is_healthy_once_it_takes_requests(server: Server) -> None:
    await server.health.set(SERVICE, health_pb2.HealthCheckResponse.NOT_SERVING)
    before = await check(server.target, SERVICE)
    await server.health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    after = await check(server.target, SERVICE)

    assert before == (1, f"{SERVICE} at {server.target} is not healthy: NOT_SERVING\n")
    assert after == (0, "")


async def test_a_service_that_is_not_there_is_not_healthy(server: Server) -> None:
    code, message = await check(server.target, "no.such.Service")

    assert code == 1
    assert "NOT_FOUND" in message


async def test_nobody_at_the_address_is_not_healthy() -> None:
    code, message = await check("127.0.0.1:1")

    assert code == 1
    assert message.startswith("process at 127.0.0.1:1 is not healthy: UNAVAILABLE")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("arguments", [(), ("a", "b", "c")])
async def test_wrong_usage_is_not_the_code_that_engines_reserve(arguments: tuple[str, ...]) -> None:
    code, message = await check(*arguments)

    assert code == 64
    assert message.startswith("usage: ")
