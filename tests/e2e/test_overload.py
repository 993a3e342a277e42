"""A real router under several times the load that it can serve; `make bench-overload` has the figures."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.bench.open_flood import Flood, flood
from tests.bench.site import Site, running_site
from turnpike.router.v1 import completion_pb2, router_service_pb2, router_service_pb2_grpc

FLOOD_PER_S = 2_000.0
FLOOD_S = 4.0
DEADLINE_S = 5.0
PATIENT_S = 60.0
WIDE = {"ROUTER_MAX_RUNNING_PER_TENANT": "4000", "ROUTER_MAX_RUNNING_PER_PROVIDER": "4000"}
ROUTER = "turnpike.router.v1.RouterService"
CANCELLED = str(grpc.StatusCode.CANCELLED.value[0])
SERVING = health_pb2.HealthCheckResponse.SERVING


@contextmanager
def flooded(site: Site) -> Iterator[Flood]:
    """While it lasts the router is flooded; afterwards there is what came of it."""
    told: list[Flood] = []
    whole = Flood()

    def run() -> None:
        told.append(flood(site.router, site.tenants, per_s=FLOOD_PER_S, seconds=FLOOD_S, deadline_s=DEADLINE_S))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        time.sleep(FLOOD_S / 4)
        yield whole
    finally:
        thread.join()
    whole.served_ms, whole.codes = told[0].served_ms, told[0].codes


def complete(channel: grpc.Channel, site: Site, *, priority: str = "") -> str:
    request = router_service_pb2.CompleteRequest(
        tenant_id=site.tenants[0],
        messages=[completion_pb2.ChatMessage(role=completion_pb2.ROLE_USER, content="hello")],
        model="one",
        provider="local",
    )
    stub: Any = router_service_pb2_grpc.RouterServiceStub(channel)
    answer = stub.Complete(request, timeout=PATIENT_S, metadata=(("x-turnpike-priority", priority),))
    return str(answer.result.content)


@pytest.mark.parametrize(
    "max_waiting", [pytest.param("20", id="few may wait"), pytest.param("100000", id="all may wait")]
)
def test_a_flooded_router_refuses_at_once_whom_it_cannot_serve_and_stays_well(max_waiting: str) -> None:
    bounded = max_waiting == "20"
    settings = {**WIDE, "ROUTER_MAX_WAITING_RPCS": max_waiting}
    with running_site(settings) as site, grpc.insecure_channel(site.router) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        complete(channel, site)
        with flooded(site) as told:
            checks = [health_pb2.HealthCheckRequest(service=name) for name in ("", ROUTER)]
            checked = [health.Check(check, timeout=PATIENT_S).status for check in checks]
            # Core is blind to priorities: with a bound that is always reached nobody can be promised anything.
            patient = "" if bounded else complete(channel, site, priority="high")
        after = [complete(channel, site) for _ in range(20)]

    assert checked == [SERVING, SERVING]
    assert told.served_ms, "nobody was served"
    if bounded:
        assert told.codes[CANCELLED] > 0
    else:
        assert told.codes[CANCELLED] == 0
        assert patient == "word0 "
    assert after == ["word0 "] * 20
