"""A store of tenants to cache, and a clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from prometheus_client import CollectorRegistry

from router_service.domain.tenant import Tenant
from router_service.tenants.cache import TenantCache
from router_service.tenants.metrics import TenantMetrics
from service_runtime.errors import Category, ServiceError

ACME, GLOBEX = UUID(int=1), UUID(int=2)
AWAY = ServiceError(Category.UNAVAILABLE, "DATABASE_UNAVAILABLE", "away")


class FakeSource:
    """Tenants by version; counts reads, and can hold them back or fail them."""

    def __init__(self) -> None:
        self.stored: dict[UUID, Tenant | ServiceError] = {}
        self.reads = 0
        self.compared: list[int] = []  # tenants in each question about versions
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
        self.compared.append(len(tenant_ids))
        asked = {tenant_id: self.stored.get(tenant_id) for tenant_id in tenant_ids}
        return {key: entry.version for key, entry in asked.items() if isinstance(entry, Tenant)}


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def cache_over(source: FakeSource, now_s: Callable[[], float], **options: Any) -> TenantCache:
    """A cache of two tenants, if `options` do not say otherwise, without luck and with metrics of its own."""
    return TenantCache(
        source,
        unknown_tenant=lambda tenant_id: Tenant(tenant_id, "", 0),
        now_s=now_s,
        jitter=lambda: 0.0,
        metrics=TenantMetrics(CollectorRegistry()),
        **{"ttl_s": 300, "max_entries": 2, **options},
    )
