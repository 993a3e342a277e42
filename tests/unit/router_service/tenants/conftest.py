"""A cache of two tenants over a store that a test controls."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from router_service.domain.tenant import Tenant
from router_service.tenants.cache import TenantCache
from router_service.tenants.metrics import TenantMetrics
from tests.unit.router_service.tenants.sources import Clock, FakeSource


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
