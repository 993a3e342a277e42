"""Sealing stored keys anew after a rotation of the key-encryption key, on a real Postgres."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast
from uuid import UUID

import asyncpg
import pytest

from router_service.domain.catalog import ProviderNames
from router_service.domain.secret import Secret
from router_service.tenants.rows import ParsedTenant, RowReader
from router_service.tenants.sealed_keys import KeyRing
from router_service.tenants.store import Resealed, TenantEntry, TenantStore
from service_runtime.postgres import Postgres
from tests.support.catalogs import CATALOG

if TYPE_CHECKING:
    from service_runtime.postgres import Connection

ACME = UUID("018f3f2e-0000-7000-8000-000000000001")
KEY = "gsk_canary_0123456789abcdef"
ONLY_K1 = KeyRing({"k1": bytes(32)}, active="k1")
ROTATED = KeyRing({"k2": bytes(range(32)), "k1": bytes(32)}, active="k2")
ONLY_K2 = KeyRing({"k2": bytes(range(32))}, active="k2")
NAMES = ProviderNames(CATALOG)


def understood(entry: TenantEntry | None) -> ParsedTenant:
    assert isinstance(entry, ParsedTenant)
    return entry


@dataclass
class Opened:
    """The store of a router from before the rotation, and a connection as an administrator's psql has."""

    store: TenantStore
    psql: asyncpg.Connection[asyncpg.Record]


@pytest.fixture
async def before(tenants_database: str) -> AsyncIterator[Opened]:
    psql = await asyncpg.connect(tenants_database)
    async with store_with(tenants_database, ONLY_K1) as store:
        yield Opened(store, psql)
    await psql.close()


@asynccontextmanager
async def store_with(
    dsn: str, ring: KeyRing, on_secret: Callable[[str], None] = lambda secret: None
) -> AsyncIterator[TenantStore]:
    """The store of a router that was started with this ring."""
    postgres = await Postgres.connect(dsn, min_size=1, max_size=1, role="turnpike_router")
    yield store_on(postgres, ring, on_secret)
    await postgres.close()


def store_on(postgres: Postgres, ring: KeyRing, on_secret: Callable[[str], None] = lambda secret: None) -> TenantStore:
    reader = RowReader(NAMES, ring, accepts_plaintext=True)
    return TenantStore(postgres, reader, ring, NAMES, on_secret=on_secret)


@asynccontextmanager
async def overtaken_store(opened: Opened, dsn: str, times: int) -> AsyncIterator[TenantStore]:
    """The store of a router with the rotated ring whose changes others overtake, so many times."""
    postgres = await Postgres.connect(dsn, min_size=1, max_size=1, role="turnpike_router")
    yield store_on(cast("Postgres", Overtaking(postgres, opened.psql, times)), ROTATED)
    await postgres.close()


async def test_after_a_rotation_keys_are_sealed_anew_and_unreadable_ones_are_named(
    before: Opened, tenants_database: str
) -> None:
    await before.store.create(ACME, "Acme", {}, {"groq": Secret(KEY), "llm7": Secret(KEY)})
    await before.psql.execute("UPDATE tenants SET llm_tokens = jsonb_set(llm_tokens, '{llm7,key}', '7')")
    stored = understood(await before.store.get(ACME)).keys[0]

    async with store_with(tenants_database, ROTATED) as rotated:
        first, again = await rotated.reseal(ACME), await rotated.reseal(ACME)
        found = understood(await rotated.get(ACME))

    assert (first.providers, again.providers) == (("groq",), ())
    assert [[key.provider for key in resealed.unreadable] for resealed in (first, again)] == [["llm7"], ["llm7"]]
    assert found.tenant.credentials["groq"].secret.reveal() == KEY
    assert found.sealed_currently == {"groq"}
    assert found.tenant.version == 3  # sealing what is sealed already changes nothing
    assert found.keys[0].created_at == stored.created_at
    assert found.keys[0].fingerprint == stored.fingerprint


async def test_a_rotation_from_the_first_key_to_the_second_alone(before: Opened, tenants_database: str) -> None:
    await before.store.create(ACME, "Acme", {}, {"groq": Secret(KEY)})
    await before.psql.execute(
        "UPDATE tenants SET llm_tokens = llm_tokens || jsonb_build_object('llm7', $1::text)", KEY
    )  # in clear: to be sealed on the same occasion, with the other

    async with store_with(tenants_database, ONLY_K2) as too_early:
        lost = await too_early.reseal(ACME)
    async with store_with(tenants_database, ROTATED) as rotated:
        resealed = await rotated.reseal(ACME)
    async with store_with(tenants_database, ONLY_K2) as afterwards:
        found = understood(await afterwards.get(ACME))

    assert [(key.provider, key.missing_key_id) for key in lost.unreadable] == [("groq", "k1")]
    assert (lost.providers, resealed.providers, resealed.unreadable) == (("llm7",), ("groq",), ())
    assert {name: key.secret.reveal() for name, key in found.tenant.credentials.items()} == {"groq": KEY, "llm7": KEY}
    assert not found.tenant.unusable_credentials


async def test_to_seal_anew_makes_the_router_forget_none_of_the_secrets_that_it_serves_with(
    before: Opened, tenants_database: str
) -> None:
    await before.store.create(ACME, "Acme", {}, {"groq": Secret(KEY)})
    secrets: list[str] = []  # what is told here pushes the longest known out of what is kept from the logs

    async with store_with(tenants_database, ROTATED, secrets.append) as rotated:
        resealed = await rotated.reseal(ACME)
        told_by_resealing = list(secrets)
        await rotated.get(ACME)

    assert resealed.providers == ("groq",)
    assert told_by_resealing == []
    assert secrets == [KEY]


class Overtaking:
    """Postgres, where somebody changes the tenant so many times after a reading, before the writing that follows."""

    def __init__(self, postgres: Postgres, psql: asyncpg.Connection[asyncpg.Record], times: int) -> None:
        self._postgres = postgres
        self._psql = psql
        self._times = times
        self._turns = 0

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Connection]:
        async with self._postgres.acquire() as connection:
            yield connection
        self._turns += 1
        is_reading = self._turns % 2 == 1
        if is_reading and self._turns < 2 * self._times:
            await self._psql.execute("UPDATE tenants SET name = 'Acme ' || version")


@pytest.mark.parametrize("times", [1, 4])
async def test_a_change_while_keys_are_sealed_anew_is_kept_and_they_are_sealed_all_the_same(
    before: Opened, tenants_database: str, times: int
) -> None:
    await before.store.create(ACME, "Acme", {}, {"groq": Secret(KEY)})

    async with overtaken_store(before, tenants_database, times) as rotated:
        resealed = await rotated.reseal(ACME)
        found = understood(await rotated.get(ACME))

    assert resealed == Resealed(ACME, ("groq",))
    assert found.sealed_currently == {"groq"}
    assert found.tenant.name == f"Acme {times}"


async def test_a_tenant_that_changes_without_end_is_told_as_not_done(before: Opened, tenants_database: str) -> None:
    await before.store.create(ACME, "Acme", {}, {"groq": Secret(KEY)})

    async with overtaken_store(before, tenants_database, 1000) as rotated:
        resealed = await rotated.reseal(ACME)
    found = understood(await before.store.get(ACME))

    assert resealed.error is not None
    assert (resealed.error.reason, resealed.providers) == ("CONFIG_VERSION_MOVED", ())
    assert found.tenant.credentials["groq"].secret.reveal() == KEY


async def test_a_broken_row_is_told_and_left_as_it_is(before: Opened, tenants_database: str) -> None:
    await before.store.create(ACME, "Acme", {}, {"groq": Secret(KEY)})
    await before.psql.execute("UPDATE tenants SET inference_config = '[]'")
    written = await before.psql.fetchval("SELECT llm_tokens::text FROM tenants")

    async with store_with(tenants_database, ROTATED) as rotated:
        resealed = await rotated.reseal(ACME)

    assert resealed.error is not None
    assert (resealed.error.reason, resealed.providers) == ("TENANT_CONFIG_INVALID", ())
    assert await before.psql.fetchval("SELECT llm_tokens::text FROM tenants") == written
