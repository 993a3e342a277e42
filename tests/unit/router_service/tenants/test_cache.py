"""A tenant is read once, kept for its time, and makes room for others."""

from __future__ import annotations

import asyncio
from uuid import UUID

from router_service.tenants.cache import TenantCache
from tests.unit.router_service.tenants.sources import ACME, Clock, FakeSource, settle


async def test_many_requests_for_a_cold_tenant_read_it_once(cache: TenantCache, source: FakeSource) -> None:
    source.put(ACME, 3)

    tenants = await asyncio.gather(*(cache.get(ACME) for _ in range(100)))

    assert {tenant.version for tenant in tenants} == {3}
    assert source.reads == 1


async def test_past_its_time_a_tenant_is_served_while_it_is_read_anew(
    cache: TenantCache, source: FakeSource, clock: Clock
) -> None:
    source.put(ACME, 1)
    await cache.get(ACME)
    source.put(ACME, 2)
    clock.now_s += 301

    during = await cache.get(ACME)
    await settle()
    after = await cache.get(ACME)

    assert (during.version, after.version) == (1, 2)


async def test_an_unknown_tenant_is_asked_for_once_and_gets_the_default(cache: TenantCache, source: FakeSource) -> None:
    first, second = await cache.get(ACME), await cache.get(ACME)

    assert (first.version, second.version) == (0, 0)
    assert source.reads == 1


async def test_the_tenant_that_was_not_used_longest_makes_room(cache: TenantCache, source: FakeSource) -> None:
    for number in (1, 2, 3):
        source.put(UUID(int=number), 1)
        await cache.get(UUID(int=number))

    await cache.get(UUID(int=3))
    await cache.get(UUID(int=1))

    assert source.reads == 4


async def test_s2_a_flood_of_made_up_ids_pushes_out_no_tenant_that_exists(
    cache: TenantCache, source: FakeSource
) -> None:
    source.put(ACME, 1)
    await cache.get(ACME)

    for number in range(100, 200):
        await cache.get(UUID(int=number))
    source.away = True

    assert (await cache.get(ACME)).version == 1


async def test_a_caller_that_leaves_does_not_take_the_read_away_from_the_others(
    cache: TenantCache, source: FakeSource
) -> None:
    source.put(ACME, 1)
    source.gate.clear()
    leaving, staying = asyncio.create_task(cache.get(ACME)), asyncio.create_task(cache.get(ACME))
    await settle()

    leaving.cancel()
    source.gate.set()

    assert (await staying).version == 1
    assert source.reads == 1
