"""A router's TenantService on a database of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import asyncpg
import pytest

from tests.integration.router_service.tenants.servicer_site import (
    RouterOf,
    router_of,
)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def router(tenants_database: str, stack: AsyncExitStack) -> RouterOf:
    return await router_of(tenants_database, stack)


@pytest.fixture
async def psql(tenants_database: str, stack: AsyncExitStack) -> asyncpg.Connection[asyncpg.Record]:
    connection = await asyncpg.connect(tenants_database)
    stack.push_async_callback(connection.close)
    return connection
