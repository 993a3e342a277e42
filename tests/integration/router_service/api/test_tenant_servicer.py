from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from uuid import UUID

import pytest
import uuid_utils.compat

from router_service.api.tenant_servicer import TenantServicer
from router_service.domain.candidate import Candidate
from router_service.domain.catalog import ProviderNames
from router_service.domain.completion import CompletionRequest, ProviderItem
from router_service.domain.tenant import Credential, Tenant
from router_service.routing.ports import KeyVerdict
from router_service.tenants.cache import TenantCache
from router_service.tenants.rows import RowReader
from router_service.tenants.sealed_keys import KeyRing
from router_service.tenants.source import StoredTenants
from router_service.tenants.store import TenantStore
from service_runtime.errors import Category, InvalidRequest, ServiceError
from service_runtime.postgres import Postgres
from tests.support.catalogs import CATALOG
from turnpike.router.v1 import tenant_service_pb2 as pb

NAMES = ProviderNames(CATALOG)
RING = KeyRing({"k1": bytes(32)}, active="k1")
KEY = "gsk_canary_0123456789abcdef"


class FakeProvider:
    """Accepts one key."""

    def __init__(self, accepted: Sequence[str]) -> None:
        self._accepted = accepted

    def stream(
        self, candidate: Candidate, request: CompletionRequest, *, connect_timeout_s: float
    ) -> AsyncIterator[ProviderItem]:
        raise AssertionError("nobody asks for a completion here")

    async def verify_key(self, base_url: str, credential: Credential) -> tuple[KeyVerdict, str]:
        is_known = credential.secret.reveal() in self._accepted
        return (KeyVerdict.VALID, "accepted") if is_known else (KeyVerdict.INVALID, "rejected")


@pytest.fixture
async def cache_and_servicer(tenants_database: str) -> AsyncIterator[tuple[TenantCache, TenantServicer]]:
    postgres = await Postgres.connect(tenants_database, min_size=1, max_size=2, role="turnpike_router")
    store = TenantStore(
        postgres, RowReader(NAMES, RING, accepts_plaintext=True), RING, NAMES, on_secret=lambda _key: None
    )
    cache = TenantCache(
        StoredTenants(store),
        unknown_tenant=lambda tenant_id: Tenant(tenant_id, "", 0),
        ttl_s=300,
        max_entries=100,
        now_s=lambda: 0.0,
        jitter=lambda: 0.0,
    )
    providers = {name: FakeProvider([KEY]) for name in CATALOG}
    yield cache, TenantServicer(store, cache, CATALOG, providers, new_id=uuid_utils.compat.uuid7)
    await postgres.close()


@pytest.fixture
def servicer(cache_and_servicer: tuple[TenantCache, TenantServicer]) -> TenantServicer:
    return cache_and_servicer[1]


async def create(servicer: TenantServicer, **fields: str) -> pb.Tenant:
    request = pb.CreateTenantRequest(name="Acme", provider_tokens=fields)
    return (await servicer.CreateTenant(request, None)).tenant


async def test_k1_no_answer_holds_a_key(servicer: TenantServicer) -> None:
    created = await create(servicer, groq=KEY)
    read = await servicer.GetTenant(pb.GetTenantRequest(tenant_id=created.id), None)
    listed = await servicer.ListTenants(pb.ListTenantsRequest(), None)

    assert KEY not in str(created) + str(read) + str(listed)
    assert read.tenant.provider_tokens[0].last4 == "cdef"
    assert read.tenant.provider_tokens[0].state == pb.PROVIDER_TOKEN_STATE_STORED


async def test_a_write_is_in_the_cache_before_it_is_answered(
    cache_and_servicer: tuple[TenantCache, TenantServicer],
) -> None:
    cache, servicer = cache_and_servicer
    created = await create(servicer)

    await servicer.SetProviderToken(
        pb.SetProviderTokenRequest(tenant_id=created.id, provider="Groq", token=f" {KEY}\n"), None
    )

    tenant = await cache.get(UUID(created.id))
    assert tenant.credentials["groq"].secret.reveal() == KEY


async def test_the_providers_verdict_on_a_key_is_told_and_remembered(servicer: TenantServicer) -> None:
    created = await create(servicer, groq=KEY, llm7="llm7_wrong_0123456789")

    good = await servicer.VerifyProviderToken(
        pb.VerifyProviderTokenRequest(tenant_id=created.id, provider="groq"), None
    )
    bad = await servicer.VerifyProviderToken(pb.VerifyProviderTokenRequest(tenant_id=created.id, provider="llm7"), None)
    tenant = (await servicer.GetTenant(pb.GetTenantRequest(tenant_id=created.id), None)).tenant

    assert (good.verdict, bad.verdict) == (pb.TOKEN_VERDICT_VALID, pb.TOKEN_VERDICT_INVALID)
    assert {token.provider: token.state for token in tenant.provider_tokens} == {
        "groq": pb.PROVIDER_TOKEN_STATE_ACCEPTED,
        "llm7": pb.PROVIDER_TOKEN_STATE_REJECTED,
    }


async def test_verifying_a_key_that_is_not_there_names_the_command_that_stores_one(servicer: TenantServicer) -> None:
    created = await create(servicer)

    with pytest.raises(InvalidRequest, match="turnpike tenants set-token"):
        await servicer.VerifyProviderToken(pb.VerifyProviderTokenRequest(tenant_id=created.id, provider="groq"), None)


async def test_a_tenant_nobody_created_is_not_found(servicer: TenantServicer) -> None:
    with pytest.raises(ServiceError) as refused:
        await servicer.GetTenant(pb.GetTenantRequest(tenant_id=str(UUID(int=5))), None)

    assert refused.value.category is Category.NOT_FOUND


async def test_pages_hold_every_tenant_once(servicer: TenantServicer) -> None:
    created = [(await create(servicer)).id for _ in range(5)]

    listed: list[str] = []
    token = ""
    while True:
        page = await servicer.ListTenants(pb.ListTenantsRequest(page_size=2, page_token=token), None)
        listed += [tenant.id for tenant in page.tenants]
        token = page.next_page_token
        if not token:
            break

    assert listed == created


@pytest.mark.parametrize("token", ["nonsense", "djF8eHx5", "=="])
async def test_a_page_token_from_elsewhere_is_refused(servicer: TenantServicer, token: str) -> None:
    with pytest.raises(InvalidRequest, match="page_token"):
        await servicer.ListTenants(pb.ListTenantsRequest(page_token=token), None)


async def test_negative_page_sizes_are_refused(servicer: TenantServicer) -> None:
    with pytest.raises(InvalidRequest, match="page_size"):
        await servicer.ListTenants(pb.ListTenantsRequest(page_size=-1), None)
