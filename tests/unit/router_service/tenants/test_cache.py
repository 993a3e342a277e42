import asyncio
from collections.abc import Mapping
from uuid import UUID

import pytest
from prometheus_client import CollectorRegistry

from router_service.domain.tenant import Tenant
from router_service.tenants.cache import TenantCache
from router_service.tenants.metrics import TenantMetrics
from service_runtime.errors import Category, ServiceError

ACME, GLOBEX = UUID(int=1), UUID(int=2)
BROKEN = ServiceError(Category.FAILED_PRECONDITION, "TENANT_CONFIG_INVALID", "broken")
AWAY = ServiceError(Category.UNAVAILABLE, "DATABASE_UNAVAILABLE", "away")


class FakeSource:
    """Tenants by version; counts reads, and can hold them back or fail them."""

    def __init__(self) -> None:
        self.stored: dict[UUID, Tenant | ServiceError] = {}
        self.reads = 0
        self.away = False
        self.gate = asyncio.Event()
        self.gate.set()

    def put(self, tenant_id: UUID, version: int) -> None:
        self.stored[tenant_id] = Tenant(tenant_id, "t", version)

    async def tenant(self, tenant_id: UUID) -> Tenant | None:
        self.reads += 1
        found = AWAY if self.away else self.stored.get(tenant_id)
        await self.gate.wait()
        if isinstance(found, ServiceError):
            raise found
        return found

    async def versions(self, tenant_ids: list[UUID]) -> Mapping[UUID, int]:
        return {key: entry.version for key, entry in self.stored.items() if isinstance(entry, Tenant)}


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def source() -> FakeSource:
    return FakeSource()


@pytest.fixture
def cache(source: FakeSource, clock: Clock) -> TenantCache:
    return TenantCache(
        source,
        unknown_tenant=lambda tenant_id: Tenant(tenant_id, "", 0),
        ttl_s=300,
        max_entries=2,
        now_s=clock,
        jitter=lambda: 0.0,
        metrics=TenantMetrics(CollectorRegistry()),
    )


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


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


async def test_an_unknown_tenant_is_asked_for_once_and_gets_the_default(cache: TenantCache, source: FakeSource) -> None:
    first, second = await cache.get(ACME), await cache.get(ACME)

    assert (first.version, second.version) == (0, 0)
    assert source.reads == 1


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


async def test_the_tenant_that_was_not_used_longest_makes_room(cache: TenantCache, source: FakeSource) -> None:
    for number in (1, 2, 3):
        source.put(UUID(int=number), 1)
        await cache.get(UUID(int=number))

    await cache.get(UUID(int=3))
    await cache.get(UUID(int=1))

    assert source.reads == 4


@pytest.mark.parametrize("payload", ["", "nonsense", f"{ACME} x", "all all"])
async def test_a_notification_that_cannot_be_read_changes_nothing(
    cache: TenantCache, source: FakeSource, payload: str
) -> None:
    source.put(ACME, 1)
    await cache.get(ACME)

    cache.on_notification(payload)

    assert (await cache.get(ACME)).version == 1
    assert source.reads == 1


async def test_s1_while_postgres_is_frozen_a_changed_tenant_is_served_as_it_was(
    source: FakeSource, clock: Clock
) -> None:
    cache = TenantCache(
        source,
        unknown_tenant=lambda tenant_id: Tenant(tenant_id, "", 0),
        ttl_s=300,
        max_entries=2,
        now_s=clock,
        jitter=lambda: 0.0,
        metrics=TenantMetrics(CollectorRegistry()),
        outdated_wait_s=0.01,
    )
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


async def test_s2_a_flood_of_made_up_ids_pushes_out_no_tenant_that_exists(
    cache: TenantCache, source: FakeSource
) -> None:
    source.put(ACME, 1)
    await cache.get(ACME)

    for number in range(100, 200):
        await cache.get(UUID(int=number))
    source.away = True

    assert (await cache.get(ACME)).version == 1


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
