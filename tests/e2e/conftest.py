"""One whole Turnpike for the session, with scripted providers behind it and canaries for keys."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from tests.support.stack import Stack
from turnpike.router.v1 import router_service_pb2_grpc, tenant_service_pb2_grpc
from turnpike.usage.v1 import pricing_service_pb2_grpc, quota_service_pb2_grpc, usage_service_pb2_grpc


@dataclass(frozen=True)
class Stubs:
    """Every service of a stack, through the generated stubs."""

    router: router_service_pb2_grpc.RouterServiceStub
    tenants: tenant_service_pb2_grpc.TenantServiceStub
    usage: usage_service_pb2_grpc.UsageServiceStub
    quota: quota_service_pb2_grpc.QuotaServiceStub
    pricing: pricing_service_pb2_grpc.PricingServiceStub


@pytest.fixture(scope="session")
def canaries() -> dict[str, str]:
    """Keys that nothing may ever show: two of the operator's and two of the tenants'."""
    return {name: f"sk-canary-{name}-{secrets.token_hex(16)}" for name in ("groq", "openrouter", "own", "revoked")}


@pytest.fixture(scope="session")
def stubs(stack: Stack) -> Iterator[Stubs]:
    with grpc.insecure_channel(stack.router) as router, grpc.insecure_channel(stack.usage) as usage:
        yield Stubs(
            router_service_pb2_grpc.RouterServiceStub(router),
            tenant_service_pb2_grpc.TenantServiceStub(router),
            usage_service_pb2_grpc.UsageServiceStub(usage),
            quota_service_pb2_grpc.QuotaServiceStub(usage),
            pricing_service_pb2_grpc.PricingServiceStub(usage),
        )


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running Turnpike without any provider key: only the sandbox can answer."""
    running = Stack(Path(tmp_path_factory.mktemp("turnpike")) / "data").start()
    yield running
    assert running.stop() == 0, running.output()
