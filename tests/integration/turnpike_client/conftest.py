"""Both services as fakes on real sockets, and the command line against them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from click.testing import CliRunner, Result

from turnpike_client import RouterClient, UsageClient
from turnpike_client.cli.program import program
from turnpike_client.cli.session import Session
from turnpike_client.testing import FakeTurnpike

Run = Callable[..., Awaitable[Result]]


@pytest.fixture
async def turnpike() -> AsyncIterator[FakeTurnpike]:
    async with FakeTurnpike() as fake:
        yield fake


@pytest.fixture
async def router(turnpike: FakeTurnpike) -> AsyncIterator[RouterClient]:
    async with RouterClient(turnpike.router_target) as client:
        yield client


@pytest.fixture
async def usage(turnpike: FakeTurnpike) -> AsyncIterator[UsageClient]:
    async with UsageClient(turnpike.usage_target) as client:
        yield client


@pytest.fixture
async def run(turnpike: FakeTurnpike) -> Run:
    """Run the command in a thread, its coroutines on the test's own loop: gRPC wants one loop per process."""
    loop = asyncio.get_running_loop()
    session = Session(runner=lambda work: asyncio.run_coroutine_threadsafe(work, loop).result())
    environment = {
        "TURNPIKE_ROUTER": turnpike.router_target,
        "TURNPIKE_USAGE": turnpike.usage_target,
        "TURNPIKE_TENANT": None,
    }

    async def invoke(*arguments: str, stdin: str | None = None, env: dict[str, str] | None = None) -> Result:
        def call() -> Result:
            return CliRunner().invoke(
                program, arguments, input=stdin, env={**environment, **(env or {})}, obj=session, catch_exceptions=False
            )

        return await asyncio.to_thread(call)

    return invoke
