"""TenantService on a real Postgres, with the cache and the notifications that routers share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast
from uuid import UUID

import asyncpg
import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
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
from service_runtime.errors import Category, InvalidRequest, ServiceError
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


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def router(tenants_database: str, stack: AsyncExitStack) -> RouterOf:
    return await router_of(tenants_database, stack)


@pytest.fixture
async def psql(tenants_database: str, stack: AsyncExitStack) -> asyncpg.Connection[asyncpg.Record]:
    connection = await asyncpg.connect(tenants_database)
    stack.push_async_callback(connection.close)
    return connection


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


async def test_a_created_tenant_is_answered_with_all_that_may_be_known_of_its_keys(router: RouterOf) -> None:
    tenant = await create(
        router,
        inference_config=pb.InferenceConfig(preferred_provider="Groq (Llama 3.3 70B)", auto_failover=False),
        provider_tokens={"Groq": KEY},
    )

    got = (await router.servicer.GetTenant(pb.GetTenantRequest(tenant_id=ACME), CONTEXT)).tenant

    assert got == tenant
    assert (got.name, got.config_version) == ("Acme", 1)
    assert got.inference_config.preferred_provider == "groq"
    assert not got.inference_config.auto_failover
    assert got.inference_config.allow_system_keys
    (token,) = got.provider_tokens
    assert (token.provider, token.last4, token.state) == ("groq", "cdef", pb.PROVIDER_TOKEN_STATE_STORED)
    assert token.fingerprint
    assert token.HasField("create_time")


async def test_k1_no_answer_holds_a_key(router: RouterOf) -> None:
    await create(router, provider_tokens={"groq": KEY})
    servicer = router.servicer
    answers = [
        await servicer.GetTenant(pb.GetTenantRequest(tenant_id=ACME), CONTEXT),
        await servicer.ListTenants(pb.ListTenantsRequest(), CONTEXT),
        await servicer.UpdateTenant(pb.UpdateTenantRequest(tenant_id=ACME, name="Acme 2"), CONTEXT),
        await servicer.SetProviderToken(
            pb.SetProviderTokenRequest(tenant_id=ACME, provider="llm7", token=KEY), CONTEXT
        ),
        await servicer.VerifyProviderToken(pb.VerifyProviderTokenRequest(tenant_id=ACME, provider="groq"), CONTEXT),
        await servicer.ResealProviderTokens(pb.ResealProviderTokensRequest(), CONTEXT),
        await servicer.DeleteProviderToken(pb.DeleteProviderTokenRequest(tenant_id=ACME, provider="groq"), CONTEXT),
    ]

    assert [answer for answer in answers if KEY in str(answer) or "enc:v1" in str(answer)] == []


async def test_a_router_serves_its_own_write_at_once(router: RouterOf) -> None:
    await create(router)
    await router.cache.get(UUID(ACME))

    request = pb.SetProviderTokenRequest(tenant_id=ACME, provider="groq", token=KEY)
    written = (await router.servicer.SetProviderToken(request, CONTEXT)).tenant
    tenant = await router.cache.get(UUID(ACME))

    assert tenant.version == written.config_version == 2
    assert tenant.credentials["groq"].secret.reveal() == KEY


async def test_a_change_at_one_router_or_in_psql_reaches_the_other(
    router: RouterOf, tenants_database: str, stack: AsyncExitStack, psql: asyncpg.Connection[asyncpg.Record]
) -> None:
    other = await router_of(tenants_database, stack)
    await create(router)
    await served(other, version=1)

    await router.servicer.UpdateTenant(pb.UpdateTenantRequest(tenant_id=ACME, name="Acme 2"), CONTEXT)
    second = await served(other, version=2)
    await psql.execute("""UPDATE tenants SET inference_config = '{"auto_failover": false}'""")
    third = await served(other, version=3)

    assert second.name == "Acme 2"
    assert not third.config.auto_failover


async def test_a_change_that_was_missed_while_nobody_listened_is_found_when_listening_begins_again(
    router: RouterOf, psql: asyncpg.Connection[asyncpg.Record]
) -> None:
    await create(router)
    await served(router, version=1)
    await psql.execute("ALTER TABLE tenants DISABLE TRIGGER tenants_notify")
    await psql.execute("UPDATE tenants SET name = 'Acme 2'")

    await psql.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'turnpike-listener' AND datname = current_database()"
    )
    tenant = await served(router, version=2)

    assert tenant.name == "Acme 2"


async def test_an_update_from_an_outdated_version_is_aborted(router: RouterOf) -> None:
    await create(router)
    request = pb.UpdateTenantRequest(tenant_id=ACME, name="Acme 2", expected_config_version=7)

    error = await refusal(router.servicer.UpdateTenant(request, CONTEXT))

    assert error.category is Category.ABORTED
    assert error.metadata["config_version"] == "1"


async def test_a_masked_update_changes_only_what_it_names(router: RouterOf) -> None:
    await create(router, inference_config=pb.InferenceConfig(preferred_provider="groq", allowed_providers=["groq"]))
    request = pb.UpdateTenantRequest(
        tenant_id=ACME, update_mask=FieldMask(paths=["inference_config.allowed_providers"])
    )

    updated = (await router.servicer.UpdateTenant(request, CONTEXT)).tenant

    assert updated.inference_config.preferred_provider == "groq"
    assert list(updated.inference_config.allowed_providers) == []


async def test_pages_hold_every_tenant_once_and_a_broken_one_too(
    router: RouterOf, psql: asyncpg.Connection[asyncpg.Record]
) -> None:
    for number in range(5):
        await router.servicer.CreateTenant(pb.CreateTenantRequest(name=f"t{number}"), CONTEXT)
    await psql.execute("UPDATE tenants SET inference_config = '[]' WHERE name = 't2'")

    names: list[str] = []
    token, pages = "", 0
    while True:
        page = await router.servicer.ListTenants(pb.ListTenantsRequest(page_size=2, page_token=token), CONTEXT)
        names += [tenant.name for tenant in page.tenants]
        token, pages = page.next_page_token, pages + 1
        if not token:
            break

    assert names == ["t0", "t1", "t2", "t3", "t4"]
    assert pages == 3


@pytest.mark.parametrize(
    "token",
    ["x", "djF8MjAyNi0wMS0wMXww", "djF8MjAyNi0wMS0wMVQwMDowMDowMHwwMDAwMDAwMC0wMDAwLTAwMDAtMDAwMC0wMDAwMDAwMDAwMDA="],
)
async def test_a_page_token_from_elsewhere_is_refused(router: RouterOf, token: str) -> None:
    error = await refusal(router.servicer.ListTenants(pb.ListTenantsRequest(page_token=token), CONTEXT))

    assert isinstance(error, InvalidRequest)
    assert error.violations[0].field == "page_token"


async def test_a_verdict_is_told_and_shown_until_the_key_is_replaced(router: RouterOf) -> None:
    await create(router, provider_tokens={"groq": KEY})
    request = pb.VerifyProviderTokenRequest(tenant_id=ACME, provider="groq")
    get = pb.GetTenantRequest(tenant_id=ACME)

    async def state() -> pb.ProviderTokenState.ValueType:
        return (await router.servicer.GetTenant(get, CONTEXT)).tenant.provider_tokens[0].state

    router.groq.verdict = KeyVerdict.INVALID
    answer = await router.servicer.VerifyProviderToken(request, CONTEXT)
    rejected = await state()
    router.groq.verdict = KeyVerdict.UNKNOWN
    await router.servicer.VerifyProviderToken(request, CONTEXT)
    still_rejected = await state()
    router.groq.verdict = KeyVerdict.VALID
    await router.servicer.VerifyProviderToken(request, CONTEXT)
    accepted = await state()
    await router.servicer.SetProviderToken(
        pb.SetProviderTokenRequest(tenant_id=ACME, provider="groq", token=KEY + "2"), CONTEXT
    )

    assert (answer.verdict, answer.explanation) == (pb.TOKEN_VERDICT_INVALID, "so it said")
    assert (rejected, still_rejected) == (pb.PROVIDER_TOKEN_STATE_REJECTED, pb.PROVIDER_TOKEN_STATE_REJECTED)
    assert accepted == pb.PROVIDER_TOKEN_STATE_ACCEPTED
    assert await state() == pb.PROVIDER_TOKEN_STATE_STORED
    assert router.groq.asked[0] == (CATALOG["groq"].base_url, KEY)


async def test_a_key_that_is_missing_unreadable_or_not_served_is_not_verified(
    router: RouterOf, psql: asyncpg.Connection[asyncpg.Record]
) -> None:
    await create(router, provider_tokens={"openrouter": KEY})
    await psql.execute("""UPDATE tenants SET llm_tokens = llm_tokens || '{"llm7": 7}'""")

    async def verify(provider: str) -> pb.VerifyProviderTokenResponse:
        request = pb.VerifyProviderTokenRequest(tenant_id=ACME, provider=provider)
        return await router.servicer.VerifyProviderToken(request, CONTEXT)

    missing, unreadable = await refusal(verify("groq")), await refusal(verify("llm7"))
    not_served = await verify("openrouter")

    assert (missing.reason, unreadable.reason) == ("PROVIDER_KEY_MISSING", "PROVIDER_KEY_UNUSABLE")
    assert not_served.verdict == pb.TOKEN_VERDICT_UNKNOWN
    assert router.groq.asked == []


async def test_a_key_stored_where_another_stands_in_clear_is_kept_and_the_tenant_stays_refused(
    tenants_database: str, stack: AsyncExitStack, psql: asyncpg.Connection[asyncpg.Record]
) -> None:
    router = await router_of(tenants_database, stack, accepts_plaintext=False)
    await create(router)
    await psql.execute("UPDATE tenants SET llm_tokens = jsonb_build_object('llm7', $1::text)", KEY)

    request = pb.SetProviderTokenRequest(tenant_id=ACME, provider="groq", token=KEY)
    answer = await router.servicer.SetProviderToken(request, CONTEXT)
    error = await refusal(router.cache.get(UUID(ACME)))

    assert answer.tenant.config_version == 3
    assert "turnpike tenants set-token" in error.message
    assert KEY not in error.message


@pytest.mark.parametrize("tenant_id", [ACME, ""], ids=["one", "all"])
async def test_invalidating_makes_the_routers_read_what_they_hold_anew(
    router: RouterOf,
    tenants_database: str,
    stack: AsyncExitStack,
    psql: asyncpg.Connection[asyncpg.Record],
    tenant_id: str,
) -> None:
    await create(router)
    other = await router_of(tenants_database, stack)
    await router.listener.close()  # it must know of its own doing
    await psql.execute("ALTER TABLE tenants DISABLE TRIGGER tenants_notify")
    await served(router, version=1)
    await served(other, version=1)
    await psql.execute("UPDATE tenants SET name = name")
    held = await router.cache.get(UUID(ACME))

    await router.servicer.InvalidateCache(pb.InvalidateCacheRequest(tenant_id=tenant_id), CONTEXT)

    assert held.version == 1
    assert (await router.cache.get(UUID(ACME))).version == 2
    await served(other, version=2)


async def test_after_a_rotation_all_tenants_are_sealed_anew_page_by_page_and_the_other_routers_notice(
    router: RouterOf, tenants_database: str, stack: AsyncExitStack, psql: asyncpg.Connection[asyncpg.Record]
) -> None:
    await create(router, provider_tokens={"groq": KEY})
    for number in range(1, 5):
        request = pb.CreateTenantRequest(name=f"t{number}", provider_tokens={"groq": KEY, "llm7": KEY})
        await router.servicer.CreateTenant(request, CONTEXT)
    await psql.execute("UPDATE tenants SET inference_config = '[]' WHERE name = 't2'")
    await psql.execute("""UPDATE tenants SET llm_tokens = llm_tokens || '{"llm7": 7}' WHERE name = 't3'""")
    rotated = await router_of(tenants_database, stack, ring=ROTATED)
    await served(rotated, version=1)

    pages: list[pb.ResealProviderTokensResponse] = []
    while not pages or pages[-1].next_page_token:
        token = pages[-1].next_page_token if pages else ""
        asked = pb.ResealProviderTokensRequest(page_size=2, page_token=token)
        pages.append(await rotated.servicer.ResealProviderTokens(asked, CONTEXT))

    assert [len(page.tenants) for page in pages] == [2, 2, 1]
    assert {(page.active_key_id, *page.other_key_ids) for page in pages} == {("k2", "k1")}
    first, second, broken, unreadable, last = [tenant for page in pages for tenant in page.tenants]
    assert (first.tenant_id, list(first.resealed_providers)) == (ACME, ["groq"])
    assert list(second.resealed_providers) == list(last.resealed_providers) == ["groq", "llm7"]
    assert (broken.error.code, list(broken.resealed_providers)) == (grpc.StatusCode.FAILED_PRECONDITION.value[0], [])
    assert "inference_config" in broken.error.message
    assert list(unreadable.resealed_providers) == ["groq"]
    assert [token.provider for token in unreadable.unreadable_tokens] == ["llm7"]
    assert not any(tenant.HasField("error") for tenant in (first, second, unreadable, last))
    assert (await served(rotated, version=2)).credentials["groq"].secret.reveal() == KEY


class Deleting(TenantStore):
    """A store whose tenants somebody deletes after a page of them was read."""

    async def positions(self, after: tuple[datetime, UUID] | None, limit: int) -> list[tuple[datetime, UUID]]:
        found = await super().positions(after, limit)
        async with self._connection() as connection:
            await connection.execute("DELETE FROM tenants WHERE name = 't1'")
        return found


async def test_a_tenant_that_is_deleted_meanwhile_is_left_out_and_the_others_are_sealed_anew(
    router: RouterOf, tenants_database: str, stack: AsyncExitStack
) -> None:
    for number in range(3):
        request = pb.CreateTenantRequest(name=f"t{number}", provider_tokens={"groq": KEY})
        await router.servicer.CreateTenant(request, CONTEXT)
    rotated = await router_of(tenants_database, stack, ring=ROTATED, store_class=Deleting)

    answer = await rotated.servicer.ResealProviderTokens(pb.ResealProviderTokensRequest(), CONTEXT)

    assert [list(tenant.resealed_providers) for tenant in answer.tenants] == [["groq"], ["groq"]]


async def test_one_tenant_is_sealed_anew_alone(
    router: RouterOf, tenants_database: str, stack: AsyncExitStack, psql: asyncpg.Connection[asyncpg.Record]
) -> None:
    await create(router, provider_tokens={"groq": KEY})
    await router.servicer.CreateTenant(pb.CreateTenantRequest(name="t1", provider_tokens={"groq": KEY}), CONTEXT)
    rotated = await router_of(tenants_database, stack, ring=ROTATED)

    request = pb.ResealProviderTokensRequest(tenant_id=ACME)
    answer = await rotated.servicer.ResealProviderTokens(request, CONTEXT)
    sealed_with_k2 = await psql.fetch("SELECT name FROM tenants WHERE llm_tokens #>> '{groq,key}' LIKE 'enc:v1:k2:%'")

    assert [(tenant.tenant_id, list(tenant.resealed_providers)) for tenant in answer.tenants] == [(ACME, ["groq"])]
    assert answer.next_page_token == ""
    assert [record["name"] for record in sealed_with_k2] == ["Acme"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tenant_id": "acme"}, "tenant_id"),
        ({"tenant_id": ACME, "page_token": "x"}, "page_token"),
        ({"page_token": "x"}, "page_token"),
        ({"page_size": 1001}, "page_size"),
        ({"page_size": -1}, "page_size"),
    ],
)
async def test_sealing_anew_names_the_bad_field(router: RouterOf, fields: dict[str, Any], field: str) -> None:
    error = await refusal(router.servicer.ResealProviderTokens(pb.ResealProviderTokensRequest(**fields), CONTEXT))

    assert isinstance(error, InvalidRequest)
    assert [violation.field for violation in error.violations] == [field]


async def test_a_tenant_that_is_not_there_cannot_be_sealed_anew(router: RouterOf) -> None:
    request = pb.ResealProviderTokensRequest(tenant_id=ACME)

    error = await refusal(router.servicer.ResealProviderTokens(request, CONTEXT))

    assert error.reason == "UNKNOWN_TENANT"


async def test_a_tenant_that_is_not_there_or_is_no_uuid_is_said_to_be_so(router: RouterOf) -> None:
    unknown = await refusal(router.servicer.GetTenant(pb.GetTenantRequest(tenant_id=ACME), CONTEXT))
    malformed = await refusal(router.servicer.GetTenant(pb.GetTenantRequest(tenant_id="acme"), CONTEXT))
    taken_twice = [await create(router), await refusal(create(router))][1]

    assert unknown.category is Category.NOT_FOUND
    assert isinstance(malformed, InvalidRequest)
    assert isinstance(taken_twice, ServiceError)
    assert taken_twice.category is Category.ALREADY_EXISTS
