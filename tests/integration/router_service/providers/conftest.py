"""A scripted provider on a real socket, and the router's own providers pointed at it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from router_service.providers.catalog import build_catalog
from router_service.providers.egress import EgressPolicy, parse_networks
from router_service.providers.provider_set import HttpSettings, ProviderSet, build_providers
from router_service.providers.transport import AiohttpTransport
from tests.integration.router_service.providers.transports import LOOPBACK, Open
from tests.support.provider_requests import Asker
from tests.support.provider_server import ScriptedProvider


@pytest.fixture
async def server() -> AsyncIterator[ScriptedProvider]:
    async with ScriptedProvider() as server:
        yield server


@pytest.fixture
async def providers(server: ScriptedProvider) -> AsyncIterator[ProviderSet]:
    catalog = build_catalog(dict.fromkeys(("groq", "openrouter", "llm7", "local"), server.base_url))
    providers = build_providers(catalog, HttpSettings(allowed_networks=parse_networks(["127.0.0.1"])))
    yield providers
    await providers.aclose()


@pytest.fixture
def ask(server: ScriptedProvider, providers: ProviderSet) -> Asker:
    return Asker(providers, server.base_url)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


@pytest.fixture
async def open_transport(threads: ThreadPoolExecutor) -> AsyncIterator[Open]:
    opened: list[AiohttpTransport] = []

    def open_one(base_url: str, policy: EgressPolicy = LOOPBACK, **options: Any) -> AiohttpTransport:
        opened.append(AiohttpTransport(base_url, policy, resolver_threads=threads, **options))
        return opened[-1]

    yield open_one
    for transport in opened:
        await transport.aclose()
