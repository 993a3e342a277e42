"""Calls that share several servers, as a router's workers are when each has a port of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from tests.integration.turnpike_client.conftest import Run
from turnpike_client import RouterClient
from turnpike_client.errors import ServerUnreachable
from turnpike_client.testing import FakeTurnpike

TENANT = "01990000-0000-7000-8000-000000000001"


@pytest.fixture
async def pair() -> AsyncIterator[tuple[FakeTurnpike, FakeTurnpike]]:
    async with FakeTurnpike() as one, FakeTurnpike() as other:
        yield one, other


def target_of(pair: tuple[FakeTurnpike, FakeTurnpike]) -> str:
    return ",".join(turnpike.router_target for turnpike in pair)


async def ask(router: RouterClient, count: int) -> None:
    for _ in range(count):
        assert await router.complete_for_tenant(TENANT, "Hello", timeout_s=30)


async def test_both_get_calls_and_one_that_goes_away_fails_none_of_the_later_ones(
    pair: tuple[FakeTurnpike, FakeTurnpike],
) -> None:
    one, other = pair
    async with RouterClient(target_of(pair)) as router:
        while not (one.router.requests and other.router.requests):  # the first calls go to whom was connected first
            await ask(router, 1)
        before = len(one.router.requests), len(other.router.requests)
        await ask(router, 10)
        after = len(one.router.requests), len(other.router.requests)
        await one.stop()
        for _ in range(4):
            with suppress(ServerUnreachable):  # who calls before the connection is known to be gone
                await ask(router, 1)
        later = len(other.router.requests)
        await ask(router, 10)

    assert after[0] > before[0]
    assert after[1] > before[1]
    assert len(other.router.requests) - later == 10


async def test_the_command_line_takes_several_addresses_and_names_one_that_is_none(
    run: Run, pair: tuple[FakeTurnpike, FakeTurnpike]
) -> None:
    fine = await run("--router", target_of(pair), "chat", "--tenant", TENANT, "Hello")
    wrong = await run("--router", "127.0.0.1:1,nowhere", "chat", "--tenant", TENANT, "Hello")

    assert fine.exit_code == 0, fine.output
    assert any(turnpike.router.requests for turnpike in pair)
    assert wrong.exit_code == 2
    assert "'nowhere'" in wrong.output
