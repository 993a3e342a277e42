"""TenantService as one router process has it, on a real Postgres."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID

import pytest
from prometheus_client import CollectorRegistry

from router_service.api.tenant_servicer import TenantServicer
from router_service.domain.catalog import ProviderNames
from router_service.domain.tenant import Credential, Tenant
from router_service.routing.ports import KeyVerdict, Provider
from router_service.tenants.cache import TenantCache
from router_service.tenants.metrics import TenantMetrics
from router_service.tenants.rows import RowReader
from router_service.tenants.sealed_keys import KeyRing
from router_service.tenants.source import StoredTenants
from router_service.tenants.store import CHANNEL, TenantStore, unknown_tenant
from service_runtime.errors import ServiceError
from service_runtime.postgres import Listener, Postgres
from tests.support.catalogs import CATALOG
from turnpike.router.v1 import tenant_service_pb2 as pb

ACME = "018f3f2e-0000-7000-8000-000000000001"
KEY = "gsk_canary_0123456789abcdef"
RING = KeyRing({"k1": bytes(32)}, active="k1")
ROTATED = KeyRing({"k2": bytes(range(32)), "k1": bytes(32)}, active="k2")
CONTEXT: Any = None  # the servicer asks nothing of it


class JudgingProvider:
    """Says of a key what it is told to say, and keeps whose key it was asked about."""

    def __init__(self) -> None:
        self.verdict = KeyVerdict.VALID
        self.asked: list[tuple[str, str]] = []

    async def verify_key(self, base_url: str, credential: Credential) -> tuple[KeyVerdict, str]:
        self.asked.append((base_url, credential.secret.reveal()))
        return self.verdict, "so it said"


@dataclass
class RouterOf:
    """What one router process has of the tenants."""

    servicer: TenantServicer
    cache: TenantCache
    listener: Listener
    groq: JudgingProvider = field(default_factory=JudgingProvider)


async def router_of(
    dsn: str,
    stack: AsyncExitStack,
    *,
    accepts_plaintext: bool = True,
    ring: KeyRing = RING,
    store_class: type[TenantStore] = TenantStore,
) -> RouterOf:
    postgres = await Postgres.connect(dsn, min_size=1, max_size=2, role="turnpike_router")
    stack.push_async_callback(postgres.close)
    names = ProviderNames(CATALOG)
    store = store_class(
        postgres,
        RowReader(names, ring, accepts_plaintext=accepts_plaintext),
        ring,
        names,
        on_secret=lambda _secret: None,
    )
    cache = TenantCache(
        StoredTenants(store),
        unknown_tenant=unknown_tenant,
        ttl_s=300,
        max_entries=100,
        now_s=time.monotonic,
        jitter=lambda: 0.0,
        metrics=TenantMetrics(CollectorRegistry()),
    )
    listener = Listener(
        dsn,
        [CHANNEL],
        on_connect=cache.on_listening,
        on_notify=lambda _channel, payload: cache.on_notification(payload),
    )
    listener.start()
    stack.push_async_callback(listener.close)
    groq = JudgingProvider()
    providers = {"groq": cast("Provider", groq)}
    ids = iter(UUID(int=number) for number in range(1, 1000))
    servicer = TenantServicer(store, cache, CATALOG, providers, new_id=lambda: next(ids))
    return RouterOf(servicer, cache, listener, groq)


async def create(router: RouterOf, **fields: Any) -> pb.Tenant:
    request = pb.CreateTenantRequest(tenant_id=ACME, name="Acme", **fields)
    return (await router.servicer.CreateTenant(request, CONTEXT)).tenant


async def refusal(call: Awaitable[object]) -> ServiceError:
    with pytest.raises(ServiceError) as refused:
        await call
    return refused.value


async def served(router: RouterOf, *, version: int) -> Tenant:
    """What the router serves, once it is of `version`: a notification takes a moment."""
    async with asyncio.timeout(10):
        while (tenant := await router.cache.get(UUID(ACME))).version != version:
            await asyncio.sleep(0.005)
    return tenant
