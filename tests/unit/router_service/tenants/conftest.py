"""A cache of two tenants over a store that a test controls."""

from __future__ import annotations

import pytest

from router_service.tenants.cache import TenantCache
from tests.unit.router_service.tenants.sources import Clock, FakeSource, cache_over


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def source() -> FakeSource:
    return FakeSource()


@pytest.fixture
def cache(source: FakeSource, clock: Clock) -> TenantCache:
    return cache_over(source, clock)
