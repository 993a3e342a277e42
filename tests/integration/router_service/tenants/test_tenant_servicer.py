"""TenantService on a real Postgres, with the cache and the notifications that routers share."""

from __future__ import annotations

from contextlib import AsyncExitStack
from uuid import UUID

import asyncpg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from router_service.routing.ports import KeyVerdict
from service_runtime.errors import Category, InvalidRequest, ServiceError
from tests.integration.router_service.tenants.servicer_site import (
    ACME,
    CONTEXT,
    KEY,
    RouterOf,
    create,
    refusal,
    router_of,
    served,
)
from tests.support.catalogs import CATALOG
from turnpike.router.v1 import tenant_service_pb2 as pb


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


async def test_a_tenant_that_is_not_there_or_is_no_uuid_is_said_to_be_so(router: RouterOf) -> None:
    unknown = await refusal(router.servicer.GetTenant(pb.GetTenantRequest(tenant_id=ACME), CONTEXT))
    malformed = await refusal(router.servicer.GetTenant(pb.GetTenantRequest(tenant_id="acme"), CONTEXT))
    taken_twice = [await create(router), await refusal(create(router))][1]

    assert unknown.category is Category.NOT_FOUND
    assert isinstance(malformed, InvalidRequest)
    assert isinstance(taken_twice, ServiceError)
    assert taken_twice.category is Category.ALREADY_EXISTS
