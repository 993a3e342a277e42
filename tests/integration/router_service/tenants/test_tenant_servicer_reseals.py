"""Sealing tenants' keys anew by TenantService, on a real Postgres."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import grpc
import pytest

from router_service.tenants.store import TenantStore
from service_runtime.errors import InvalidRequest
from tests.integration.router_service.tenants.servicer_site import (
    ACME,
    CONTEXT,
    KEY,
    ROTATED,
    RouterOf,
    create,
    refusal,
    router_of,
    served,
)
from turnpike.router.v1 import tenant_service_pb2 as pb


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
