"""A tenant that changes: by notification, by poll, by this router's own writes."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from router_service.domain.tenant import Tenant
from router_service.tenants.cache import TenantCache
from service_runtime.errors import Category, ServiceError
from tests.unit.router_service.tenants.sources import ACME, Clock, FakeSource, cache_over, settle


async def test_a_notified_change_is_seen_by_the_next_request(cache: TenantCache, source: FakeSource) -> None:
    source.put(ACME, 1)
    await cache.get(ACME)
    source.put(ACME, 2)

    cache.on_notification(f"{ACME} 2")

    assert (await cache.get(ACME)).version == 2


async def test_a_notification_of_what_is_already_held_costs_no_read(cache: TenantCache, source: FakeSource) -> None:
    source.put(ACME, 2)
    await cache.get(ACME)

    cache.on_notification(f"{ACME} 2")
    await cache.get(ACME)

    assert source.reads == 1


async def test_a_read_that_a_change_overtook_does_not_bring_the_old_configuration_back(
    cache: TenantCache, source: FakeSource
) -> None:
    source.put(ACME, 1)
    source.gate.clear()
    waiting = asyncio.create_task(cache.get(ACME))
    await settle()
    source.put(ACME, 2)
    cache.on_notification(f"{ACME} 2")
    source.gate.set()

    assert (await waiting).version == 2
    assert (await cache.get(ACME)).version == 2


async def test_a_created_tenant_is_found_although_it_was_unknown_a_moment_ago(
    cache: TenantCache, source: FakeSource
) -> None:
    await cache.get(ACME)
    source.put(ACME, 1)

    cache.on_notification(f"{ACME} 1")

    assert (await cache.get(ACME)).version == 1


async def test_a_request_that_knows_of_a_newer_version_gets_it(cache: TenantCache, source: FakeSource) -> None:
    source.put(ACME, 1)
    await cache.get(ACME)
    source.put(ACME, 5)

    assert (await cache.get(ACME, min_version=5)).version == 5


async def test_a_version_that_is_nowhere_yet_is_a_passing_failure(cache: TenantCache, source: FakeSource) -> None:
    source.put(ACME, 1)

    with pytest.raises(ServiceError) as refused:
        await cache.get(ACME, min_version=9)

    assert refused.value.reason == "CONFIG_VERSION_BEHIND"
    assert refused.value.category is Category.UNAVAILABLE


async def test_the_poll_finds_a_change_that_no_notification_told(cache: TenantCache, source: FakeSource) -> None:
    source.put(ACME, 1)
    await cache.get(ACME)
    source.put(ACME, 2)

    await cache.poll_versions()

    assert (await cache.get(ACME)).version == 2


async def test_the_poll_compares_many_tenants_part_by_part_and_finds_what_changed_in_any(
    source: FakeSource, clock: Clock
) -> None:
    cache = cache_over(source, clock, max_entries=5_000)
    tenants = [UUID(int=number) for number in range(1, 2_501)]
    for tenant_id in tenants:
        source.put(tenant_id, 1)
        await cache.get(tenant_id)
    changed = tenants[0], tenants[1_200], tenants[-1]
    for tenant_id in changed:
        source.put(tenant_id, 2)

    await cache.poll_versions()

    assert source.compared == [1_000, 1_000, 500]
    assert [(await cache.get(tenant_id)).version for tenant_id in changed] == [2, 2, 2]
    assert source.reads == len(tenants) + len(changed)


@pytest.mark.parametrize("payload", ["", "nonsense", f"{ACME} x", "all all"])
async def test_a_notification_that_cannot_be_read_changes_nothing(
    cache: TenantCache, source: FakeSource, payload: str
) -> None:
    source.put(ACME, 1)
    await cache.get(ACME)

    cache.on_notification(payload)

    assert (await cache.get(ACME)).version == 1
    assert source.reads == 1


async def test_a_version_that_was_written_during_somebody_elses_read_is_found(
    cache: TenantCache, source: FakeSource
) -> None:
    source.put(ACME, 1)
    source.gate.clear()
    earlier = asyncio.create_task(cache.get(ACME))
    await settle()
    source.put(ACME, 5)

    later = asyncio.create_task(cache.get(ACME, min_version=5))
    await settle()
    source.gate.set()

    assert (await later).version == 5
    assert (await earlier).version == 1


async def test_of_two_writes_the_later_one_is_served_whichever_was_answered_first(
    cache: TenantCache, source: FakeSource
) -> None:
    source.put(ACME, 3)

    cache.put(Tenant(ACME, "third", 3))
    cache.put(Tenant(ACME, "second", 2))

    assert (await cache.get(ACME)).version == 3


async def test_the_poll_finds_a_row_that_was_deleted_and_made_anew_with_a_lower_version(
    cache: TenantCache, source: FakeSource
) -> None:
    source.put(ACME, 9)
    await cache.get(ACME)
    source.put(ACME, 1)

    await cache.poll_versions()

    assert (await cache.get(ACME)).version == 1


async def test_a_row_that_was_deleted_is_no_tenant_any_more(cache: TenantCache, source: FakeSource) -> None:
    source.put(ACME, 9)
    await cache.get(ACME)
    del source.stored[ACME]

    cache.on_notification(f"{ACME} 0")

    assert (await cache.get(ACME)).version == 0


async def test_a_tenant_that_changes_during_every_read_is_still_answered(
    cache: TenantCache, source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.put(ACME, 1)
    read = source.tenant

    async def restless(tenant_id: UUID) -> Tenant | None:
        cache.invalidate(tenant_id)
        return await read(tenant_id)

    monkeypatch.setattr(source, "tenant", restless)

    assert (await cache.get(ACME)).version == 1
    assert source.reads == 10


async def test_a_read_that_began_before_a_write_of_this_router_does_not_undo_it(
    cache: TenantCache, source: FakeSource
) -> None:
    source.put(ACME, 1)
    source.gate.clear()
    reading = asyncio.create_task(cache.get(ACME))
    await settle()
    source.put(ACME, 2)

    cache.put(Tenant(ACME, "t", 2))
    source.gate.set()
    await reading

    assert (await cache.get(ACME)).version == 2
