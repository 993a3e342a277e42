"""The store as the cache reads it."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from router_service.domain.tenant import Tenant
from router_service.tenants.store import TenantStore


class StoredTenants:
    """Implements `cache.TenantSource`."""

    def __init__(self, store: TenantStore) -> None:
        self._store = store

    async def tenant(self, tenant_id: UUID) -> Tenant | None:
        """See `cache.TenantSource`."""
        parsed = await self._store.get(tenant_id)
        return None if parsed is None else parsed.tenant

    async def versions(self, tenant_ids: list[UUID]) -> Mapping[UUID, int]:
        """See `cache.TenantSource`."""
        return await self._store.versions(tenant_ids)
