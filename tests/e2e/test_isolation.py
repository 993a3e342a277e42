"""S2 and S6 in counts, through the real router; `make bench-routing` has the times."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator

import grpc
import pytest

from tests.bench.routing_site import GOOD, Site, load, running_site
from turnpike.router.v1 import router_service_pb2, router_service_pb2_grpc

REQUESTS = 300
PER_S = 75.0


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running_site() as site:
        yield site


def breaker_states(site: Site, tenant: str) -> dict[str, str]:
    with grpc.insecure_channel(site.router) as channel:
        stub = router_service_pb2_grpc.RouterServiceStub(channel)
        answer = stub.ListProviders(router_service_pb2.ListProvidersRequest(tenant_id=tenant))
    return {provider.name: provider.breaker_state for provider in answer.providers}


async def test_s6_in_a_brown_out_load_is_multiplied_by_a_fifth_at_most(site: Site) -> None:
    sick = {name: f"flaky?percent=50&n=2&mark={name}" for name in ("groq", "openrouter", "third")}
    one_sick = site.tenant({"groq": sick["third"], "openrouter": GOOD})
    both_sick = site.tenant({name: sick[name] for name in ("groq", "openrouter")})

    of_one, of_both = await asyncio.gather(
        load(site.router, one_sick, count=REQUESTS, per_s=PER_S),
        load(site.router, both_sick, count=REQUESTS, per_s=PER_S),
    )

    seen_of_both = await asyncio.to_thread(site.requests_seen, sick["groq"], sick["openrouter"])
    assert seen_of_both <= 1.2 * REQUESTS
    assert site.requests_seen(sick["third"], GOOD) <= 1.2 * REQUESTS
    assert of_one.served >= 0.99 * REQUESTS
    assert of_both.served + of_both.failed == REQUESTS
    assert of_both.served >= 0.3 * REQUESTS


async def test_s2_a_rejected_key_that_is_used_all_the_time_costs_others_nothing(site: Site) -> None:
    of_a, of_b = f"{GOOD}&of=a", f"{GOOD}&of=b"
    tenant_a = site.tenant({"groq": of_a}, key=f"sk-{secrets.token_hex(16)}")
    tenant_b = site.tenant({"groq": of_b})

    a, b = await asyncio.gather(
        load(site.router, tenant_a, count=1000, per_s=500), load(site.router, tenant_b, count=60, per_s=30)
    )

    assert (a.served, a.failed) == (0, 1000)
    assert (b.served, b.errors) == (60, {})
    refused = [one for one in site.providers[0].served if one.status == 401]
    assert 1 <= len(refused) <= 100  # those under way before the first verdict; then the router knows
    assert breaker_states(site, tenant_b)["groq"] == "closed"


async def test_s3_open_breakers_keep_all_but_the_probes_from_the_providers(site: Site) -> None:
    dead = {name: f"status?code=500&mark={name}" for name in ("groq", "openrouter")}
    tenant = site.tenant(dead)

    await load(site.router, tenant, count=20, per_s=20)  # opens both
    before = site.requests_seen(*dead.values())

    calls = await load(site.router, tenant, count=300, per_s=150)

    assert (calls.served, calls.failed) == (0, 300)
    assert site.requests_seen(*dead.values()) - before <= 300 / 10  # of 600 candidates; probes, however long it took
