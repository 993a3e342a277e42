"""What the benches of routing run against: a Turnpike, two scripted providers, and an open loop of streams."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc

from tests.bench.figures import percentile
from tests.bench.flood import HELLO
from tests.bench.processes import Tree, child_running
from tests.support.provider_server import ProviderProcess
from tests.support.stack import Stack
from turnpike.router.v1 import (
    router_service_pb2,
    router_service_pb2_grpc,
    tenant_service_pb2,
    tenant_service_pb2_grpc,
)

GOOD: Final = "ok?n=2&first_ms=20"


@dataclass(frozen=True, slots=True)
class Site:
    """A Turnpike with two scripted providers; groq takes only the key of tenant B."""

    router: str
    providers: Sequence[ProviderProcess]
    good_key: str
    router_process: Tree

    def tenant(self, models: dict[str, str], *, key: str | None = None) -> str:
        """A tenant with keys of its own, who prefers groq."""
        with grpc.insecure_channel(self.router) as channel:
            stub = tenant_service_pb2_grpc.TenantServiceStub(channel)
            config = tenant_service_pb2.InferenceConfig(
                preferred_provider="groq", preferred_models=models, allowed_providers=list(models)
            )
            keys = dict.fromkeys(models, key or self.good_key)
            request = tenant_service_pb2.CreateTenantRequest(name="t", inference_config=config, provider_tokens=keys)
            return stub.CreateTenant(request, timeout=10).tenant.id

    def requests_seen(self, *models: str) -> int:
        """Completions for these models that the providers have logged, once all have ended."""
        time.sleep(0.5)
        return sum(one.model in models for provider in self.providers for one in provider.served)


@contextmanager
def running_site(settings: Mapping[str, str] | None = None, *, workers: int = 1) -> Iterator[Site]:
    """Everything on loopback and free ports, with data of its own; without default limits, which would turn B away.

    `settings` are further variables of its environment.
    """
    good_key = f"sk-{secrets.token_hex(16)}"
    with tempfile.TemporaryDirectory(prefix="turnpike-isolation-") as directory:
        paths = [Path(directory) / name for name in ("groq", "openrouter")]
        for path in paths:
            path.mkdir()
        with ProviderProcess(paths[0], "--accept-key", good_key) as groq, ProviderProcess(paths[1]) as openrouter:
            stack = Stack(
                Path(directory) / "data",
                {
                    "ROUTER_GROQ_BASE_URL": groq.base_url,
                    "ROUTER_OPENROUTER_BASE_URL": openrouter.base_url,
                    "ROUTER_ALLOWED_NETWORKS": "127.0.0.1",
                    "ROUTER_MAX_RUNNING_PER_TENANT": "256",
                    "ROUTER_MAX_RUNNING_PER_PROVIDER": "1024",  # a machine that is behind has many open at a time
                    "ROUTER_MAX_WAITING_RPCS": "2000",  # core refuses without looking at the tenant
                    "USAGE_LIMITS": "{}",
                    "ROUTER_WORKERS": str(workers),
                    "ROUTER_METRICS_PORT": "0",  # each worker takes any, where the next to one may be taken
                    **(settings or {}),
                },
            )
            try:
                stack.start()
                assert stack.process is not None
                router = Tree(child_running(stack.process.pid, "router_service"))
                yield Site(stack.router, (groq, openrouter), good_key, router)
            finally:
                if stack.process is not None:
                    stack.stop()
                    stack.kill()


@dataclass(slots=True)
class Calls:
    """What became of a load's calls; milliseconds from the intended start to the end of each, ascending, and to when
    the load itself came to start it, which is the load's own part of it.
    """

    served: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)

    @property
    def failed(self) -> int:
        return self.errors.total()

    def ms(self, fraction: float) -> float:
        """The latency that `fraction` of the calls do not exceed."""
        return percentile(self.latencies_ms, fraction)

    @classmethod
    def pooled(cls, parts: Iterable[Calls]) -> Calls:
        """The latencies of all of them."""
        return cls(latencies_ms=sorted(ms for part in parts for ms in part.latencies_ms))


async def load(router: str, tenant: str, *, count: int, per_s: float, connections: int = 1) -> Calls:
    """An open loop: `per_s` streams are begun each second, however the others fare, by turns on the connections."""
    calls = Calls()
    request = router_service_pb2.StreamCompletionRequest(tenant_id=tenant, messages=[HELLO])
    async with AsyncExitStack() as opened:
        stubs = []
        for _ in range(connections):
            # Connections of its own: two loads over one would wait for each other's streams.
            channel = grpc.aio.insecure_channel(router, options=[("grpc.use_local_subchannel_pool", 1)])
            stubs.append(router_service_pb2_grpc.RouterServiceStub(await opened.enter_async_context(channel)))
        begins_at = time.monotonic() + 0.2

        async def one(number: int) -> None:
            intended_at = begins_at + number / per_s
            await asyncio.sleep(max(0.0, intended_at - time.monotonic()))
            calls.late_ms.append((time.monotonic() - intended_at) * 1000)
            try:
                async for _ in stubs[number % connections].StreamCompletion(request, timeout=30):
                    pass
                calls.served += 1
            except grpc.aio.AioRpcError as error:
                calls.errors[f"{error.code().name}: {error.details()}"] += 1
            calls.latencies_ms.append((time.monotonic() - intended_at) * 1000)

        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(one(number))
    calls.latencies_ms.sort()
    calls.late_ms.sort()
    return calls
