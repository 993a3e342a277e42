"""The providers of one router, built from its catalogue."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from router_service.domain.catalog import ProviderSpec
from router_service.providers.egress import EgressPolicy, Network
from router_service.providers.groq import GROQ
from router_service.providers.llm7 import LLM7
from router_service.providers.local import LOCAL
from router_service.providers.openai_provider import OpenAiProvider
from router_service.providers.openrouter import OPENROUTER
from router_service.providers.read_window import ReadWindows
from router_service.providers.sandbox import SandboxProvider
from router_service.providers.transport import AiohttpTransport, ConnectionLimits
from router_service.providers.vendor import Vendor
from router_service.routing.ports import Provider

VENDORS: Final[Mapping[str, Vendor]] = {"groq": GROQ, "openrouter": OPENROUTER, "llm7": LLM7, "local": LOCAL}
_RESOLVER_THREADS: Final = 4


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """How the router reaches providers.

    `allowed_networks` are addresses that policy would refuse and the operator wants reached, such as a gateway of his
    own on a private network; `ca_file` names further authorities to trust.
    """

    allowed_networks: tuple[Network, ...] = ()
    ca_file: str | None = None
    limits: ConnectionLimits = field(default_factory=ConnectionLimits)
    read_window_s: float = 0.0
    sandbox_token_delay_s: float = 0.02


class ProviderSet(Mapping[str, Provider]):
    """Providers by catalogue name, with what they share. Close it once, at the end."""

    def __init__(self, providers: Mapping[str, OpenAiProvider | SandboxProvider], threads: ThreadPoolExecutor) -> None:
        self._providers = dict(providers)
        self._threads = threads

    def __getitem__(self, name: str) -> Provider:
        return self._providers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._providers)

    def __len__(self) -> int:
        return len(self._providers)

    async def aclose(self) -> None:
        """Close every connection; streams that are under way fail."""
        for provider in self._providers.values():
            await provider.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)


def build_providers(catalog: Mapping[str, ProviderSpec], settings: HttpSettings | None = None) -> ProviderSet:
    """A provider for each entry of the catalogue. Opens no connection yet, and needs no running loop.

    Only `local` may reach loopback and private addresses by itself, and each provider only its own configured origin.
    """
    settings = settings or HttpSettings()
    tls = ssl.create_default_context()
    if settings.ca_file is not None:
        tls.load_verify_locations(settings.ca_file)
    threads = ThreadPoolExecutor(_RESOLVER_THREADS, thread_name_prefix="resolver")
    windows = ReadWindows(settings.read_window_s)
    providers: dict[str, OpenAiProvider | SandboxProvider] = {}
    for name, spec in catalog.items():
        if spec.is_sandbox:
            providers[name] = SandboxProvider(token_delay_s=settings.sandbox_token_delay_s)
            continue
        policy = EgressPolicy(settings.allowed_networks, private_allowed=name == "local")
        transport = AiohttpTransport(
            spec.base_url, policy, resolver_threads=threads, tls=tls, limits=settings.limits, windows=windows
        )
        providers[name] = OpenAiProvider(transport, VENDORS.get(name, Vendor()))
    return ProviderSet(providers, threads)
