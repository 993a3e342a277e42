from __future__ import annotations

import pytest

from router_service.configured import gates
from router_service.settings import RouterSettings
from turnpike.router.v1 import router_service_pb2, tenant_service_pb2

SERVICES = (
    router_service_pb2.DESCRIPTOR.services_by_name["RouterService"],
    tenant_service_pb2.DESCRIPTOR.services_by_name["TenantService"],
)
METHODS = [f"/{service.full_name}/{method.name}" for service in SERVICES for method in service.methods]
METHODS.append("/grpc.health.v1.Health/Check")


@pytest.mark.parametrize("sheds", [True, False])
def test_completions_and_nothing_else_may_be_refused_for_want_of_time(
    monkeypatch: pytest.MonkeyPatch, sheds: bool
) -> None:
    monkeypatch.setenv("TURNPIKE_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    monkeypatch.setenv("ROUTER_SHED_LATE_CALLS", str(sheds))

    gate_of = gates(RouterSettings())

    gated = {method.rpartition("/")[2] for method in METHODS if gate_of(method) is not None}
    assert gated == ({"StreamCompletion", "Complete"} if sheds else set())
