"""Fakes for tests of code that uses this package: both services in the test's own process, on real sockets.

    async with FakeTurnpike() as turnpike:
        turnpike.replies.append(Reply(chunks=("Hel", "lo")))
        async with RouterClient(turnpike.router_target) as router:
            assert (await router.complete(TENANT, "Hi")).content == "Hello"

The router answers with the replies in their order and echoes when there are none left. The ledger adds up what was
recorded. Neither calls a provider, keeps anything or checks more than the contract's most basic rules.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

import grpc.aio

from turnpike.router.v1 import router_service_pb2_grpc, tenant_service_pb2_grpc
from turnpike.usage.v1 import (
    audit_service_pb2_grpc,
    pricing_service_pb2_grpc,
    quota_service_pb2_grpc,
    usage_service_pb2_grpc,
)
from turnpike_client.testing.audit import FakeAudit
from turnpike_client.testing.ledger import FakeLedger
from turnpike_client.testing.pricing import FakePricing
from turnpike_client.testing.quota import FakeQuota
from turnpike_client.testing.replies import Reply
from turnpike_client.testing.router import FakeRouter
from turnpike_client.testing.tenants import FakeTenants

__all__ = ["FakeAudit", "FakeLedger", "FakePricing", "FakeQuota", "FakeRouter", "FakeTenants", "FakeTurnpike", "Reply"]


class FakeTurnpike:
    """Router and usage service.

    What they were told is in `router`, `tenants`, `ledger`, `audit`, `quota` and `pricing`.
    """

    def __init__(self) -> None:
        self.replies: list[Reply] = []  # what the router will answer, next first
        self.router = FakeRouter(self.replies)
        self.tenants = FakeTenants()
        self.pricing = FakePricing()
        self.ledger = FakeLedger(self.pricing)
        self.audit = FakeAudit()
        self.quota = FakeQuota()
        self.router_target = ""
        self.usage_target = ""
        self._servers: list[grpc.aio.Server] = []

    async def __aenter__(self) -> Self:
        router, self.router_target = _server()
        router_service_pb2_grpc.add_RouterServiceServicer_to_server(self.router, router)
        tenant_service_pb2_grpc.add_TenantServiceServicer_to_server(self.tenants, router)
        usage, self.usage_target = _server()
        usage_service_pb2_grpc.add_UsageServiceServicer_to_server(self.ledger, usage)
        audit_service_pb2_grpc.add_AuditServiceServicer_to_server(self.audit, usage)
        quota_service_pb2_grpc.add_QuotaServiceServicer_to_server(self.quota, usage)
        pricing_service_pb2_grpc.add_PricingServiceServicer_to_server(self.pricing, usage)
        self._servers = [router, usage]
        for server in self._servers:
            await server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Break off every call and stop listening, as a service that goes away. Twice is fine."""
        for server in self._servers:
            await server.stop(grace=None)


def _server() -> tuple[grpc.aio.Server, str]:
    """A server on a free port of the loopback interface, which nobody else may share."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    return server, f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
