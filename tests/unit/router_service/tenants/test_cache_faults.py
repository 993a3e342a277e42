"""Broken rows, and a store that is away, frozen or faulty."""

from __future__ import annotations

from uuid import UUID

import pytest

from router_service.domain.tenant import Tenant
from router_service.tenants.cache import TenantCache
from service_runtime.errors import Category, ServiceError
from tests.unit.router_service.tenants.sources import ACME, GLOBEX, Clock, FakeSource, cache_over, settle

BROKEN = ServiceError(Category.FAILED_PRECONDITION, "TENANT_CONFIG_INVALID", "broken")


async def test_s1_while_postgres_is_away_the_last_good_configuration_serves(
    cache: TenantCache, source: FakeSource, clock: Clock
) -> None:
    source.put(ACME, 7)
    await cache.get(ACME)
    source.away = True
    clock.now_s += 10_000
    cache.invalidate_all()

    assert (await cache.get(ACME)).version == 7


async def test_without_postgres_a_tenant_nobody_asked_for_before_is_unavailable(
    cache: TenantCache, source: FakeSource
) -> None:
    source.away = True

    with pytest.raises(ServiceError) as refused:
        await cache.get(ACME)

    assert refused.value.reason == "CONFIG_UNAVAILABLE"
    assert refused.value.retry_after_s


async def test_a_broken_row_fails_its_own_tenant_only(cache: TenantCache, source: FakeSource) -> None:
    source.stored[ACME] = BROKEN
    source.put(GLOBEX, 1)

    with pytest.raises(ServiceError) as refused:
        await cache.get(ACME)

    assert refused.value.reason == "TENANT_CONFIG_INVALID"
    assert (await cache.get(GLOBEX)).version == 1


async def test_a_broken_row_that_was_mended_works_at_once(cache: TenantCache, source: FakeSource) -> None:
    source.stored[ACME] = BROKEN
    with pytest.raises(ServiceError):
        await cache.get(ACME)
    source.put(ACME, 2)

    cache.on_notification(f"{ACME} 2")

    assert (await cache.get(ACME)).version == 2


async def test_s1_while_postgres_is_frozen_a_changed_tenant_is_served_as_it_was(
    source: FakeSource, clock: Clock
) -> None:
    cache = cache_over(source, clock, outdated_wait_s=0.01)
    source.put(ACME, 1)
    await cache.get(ACME)
    source.put(ACME, 2)
    source.gate.clear()
    cache.on_notification(f"{ACME} 2")

    frozen = await cache.get(ACME)
    source.gate.set()
    await settle()

    assert frozen.version == 1
    assert (await cache.get(ACME)).version == 2


async def test_s1_while_postgres_is_away_the_default_of_a_tenant_nobody_created_serves_on(
    cache: TenantCache, source: FakeSource, clock: Clock
) -> None:
    await cache.get(ACME)
    source.away = True
    clock.now_s += 60

    assert (await cache.get(ACME)).version == 0


async def test_a_refusal_that_is_kept_does_not_collect_the_frames_of_those_it_refused(
    cache: TenantCache, source: FakeSource
) -> None:
    source.stored[ACME] = BROKEN
    refusals = []

    for _ in range(3):
        with pytest.raises(ServiceError) as refused:
            await cache.get(ACME)
        refusals.append(refused.value)

    assert len({id(refusal) for refusal in refusals}) == 3
    assert source.reads == 1


async def test_a_fault_of_the_store_reaches_whoever_waits_and_is_forgotten(
    cache: TenantCache, source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def faulty(tenant_id: UUID) -> Tenant | None:
        raise ZeroDivisionError

    source.put(ACME, 1)
    with monkeypatch.context() as patch:
        patch.setattr(source, "tenant", faulty)
        with pytest.raises(ZeroDivisionError):
            await cache.get(ACME)

    assert (await cache.get(ACME)).version == 1
