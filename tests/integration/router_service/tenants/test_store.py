from __future__ import annotations

import json
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest

from router_service.domain.catalog import ProviderNames
from router_service.domain.secret import Secret
from router_service.tenants.rows import ParsedTenant, RowReader
from router_service.tenants.sealed_keys import KeyRing
from router_service.tenants.store import TenantStore
from service_runtime.errors import Category, ServiceError
from service_runtime.postgres import Postgres
from tests.support.catalogs import CATALOG

ACME = UUID("018f3f2e-0000-7000-8000-000000000001")
KEY = "gsk_canary_0123456789abcdef"
RING = KeyRing({"k1": bytes(32)}, active="k1")
NAMES = ProviderNames(CATALOG)


class Opened:
    """A store on a fresh database, the secrets it told, and a connection as an administrator's psql has."""

    def __init__(self, store: TenantStore, psql: asyncpg.Connection[asyncpg.Record], secrets: list[str]) -> None:
        self.store = store
        self.psql = psql
        self.secrets = secrets


async def open_store(dsn: str, *, accepts_plaintext: bool) -> AsyncIterator[Opened]:
    postgres = await Postgres.connect(dsn, min_size=1, max_size=2, role="turnpike_router")
    psql = await asyncpg.connect(dsn)
    secrets: list[str] = []
    reader = RowReader(NAMES, RING, accepts_plaintext=accepts_plaintext)
    yield Opened(TenantStore(postgres, reader, RING, NAMES, on_secret=secrets.append), psql, secrets)
    await psql.close()
    await postgres.close()


@pytest.fixture
async def development(tenants_database: str) -> AsyncIterator[Opened]:
    async for opened in open_store(tenants_database, accepts_plaintext=True):
        yield opened


@pytest.fixture
async def production(tenants_database: str) -> AsyncIterator[Opened]:
    async for opened in open_store(tenants_database, accepts_plaintext=False):
        yield opened


async def test_a_key_is_stored_sealed_and_read_back_whole(development: Opened) -> None:
    await development.store.create(ACME, "Acme", {}, {"groq": Secret(KEY)})

    found = await development.store.get(ACME)
    stored = await development.psql.fetchval("SELECT llm_tokens::text FROM tenants")

    assert found is not None
    assert found.tenant.credentials["groq"].secret.reveal() == KEY
    assert found.keys[0].last4 == "cdef"
    assert KEY not in stored
    assert "enc:v1:k1:" in stored
    assert KEY in development.secrets


async def test_the_documented_update_in_clear_is_sealed_at_the_first_read(development: Opened) -> None:
    await development.store.create(ACME, "Acme", {}, {})
    await development.psql.execute(
        """UPDATE tenants SET llm_tokens = '{"groq": "gsk_canary_0123456789abcdef", "openrouter": null, "llm7": null}',
  inference_config = '{"preferred_provider": "groq", "auto_failover": true}' WHERE id = $1""",
        ACME,
    )

    found = await development.store.get(ACME)
    stored = await development.psql.fetchrow("SELECT llm_tokens::text AS tokens, version FROM tenants")

    assert found is not None
    assert found.tenant.credentials["groq"].secret.reveal() == KEY
    assert found.tenant.config.preferred_provider == "groq"
    assert stored is not None
    assert KEY not in stored["tokens"]
    assert json.loads(stored["tokens"]).keys() == {"groq", "openrouter", "llm7"}
    assert found.tenant.version == stored["version"] == 3


async def test_where_keys_in_clear_are_not_accepted_the_tenant_is_refused_with_the_command_to_run(
    production: Opened,
) -> None:
    await production.store.create(ACME, "Acme", {}, {})
    await production.psql.execute("UPDATE tenants SET llm_tokens = jsonb_build_object('groq', $1::text)", KEY)

    with pytest.raises(ServiceError, match="turnpike tenants set-token") as refused:
        await production.store.get(ACME)

    assert refused.value.reason == "TENANT_CONFIG_INVALID"
    assert KEY not in str(refused.value)


@pytest.mark.parametrize(
    ("column", "value", "field"),
    [
        ("llm_tokens", "[]", "llm_tokens"),
        ("llm_tokens", "null", "llm_tokens"),
        ("llm_tokens", '"text"', "llm_tokens"),
        ("llm_tokens", '{"nobody": "gsk_12345678"}', "llm_tokens.'nobody'"),
        ("inference_config", "7", "inference_config"),
        ("inference_config", '{"preferred_provider": 7}', "inference_config.preferred_provider"),
        ("inference_config", '{"preferred_provider": "nobody"}', "inference_config.preferred_provider"),
        ("inference_config", '{"auto_failover": "yes"}', "inference_config.auto_failover"),
        ("inference_config", '{"preferred_models": []}', "inference_config.preferred_models"),
        ("inference_config", '{"score_weights": {"price": -1}}', "inference_config.score_weights.price"),
        ("inference_config", '{"score_weights": {"luck": 1}}', "inference_config.score_weights.'luck'"),
    ],
)
async def test_a_broken_row_names_its_field(development: Opened, column: str, value: str, field: str) -> None:
    await development.store.create(ACME, "Acme", {}, {})
    await development.psql.execute(f"UPDATE tenants SET {column} = $1::jsonb", value)

    with pytest.raises(ServiceError) as refused:
        await development.store.get(ACME)

    assert refused.value.reason == "TENANT_CONFIG_INVALID"
    assert refused.value.metadata == {"tenant_id": str(ACME), "field": field}


async def test_a_broken_row_is_listed_and_can_be_mended(development: Opened) -> None:
    await development.store.create(ACME, "Acme", {}, {})
    await development.psql.execute("UPDATE tenants SET inference_config = '[]', llm_tokens = '7'")

    listed = await development.store.page(None, 10)
    await development.psql.execute("UPDATE tenants SET inference_config = '{}'")
    mended = await development.store.set_token(ACME, "groq", Secret(KEY))

    assert len(listed) == 1
    assert mended.tenant.credentials["groq"].secret.reveal() == KEY


async def test_friendly_names_are_understood_and_replaced(development: Opened) -> None:
    await development.store.create(ACME, "Acme", {"preferred_provider": "Groq (Llama 3.3 70B)"}, {})
    await development.psql.execute("UPDATE tenants SET llm_tokens = jsonb_build_object('Groq', $1::text)", KEY)

    updated = await development.store.set_token(ACME, "groq", Secret("gsk_another_0123456789"))
    stored = json.loads(await development.psql.fetchval("SELECT llm_tokens::text FROM tenants"))

    assert updated.tenant.config.preferred_provider == "groq"
    assert list(stored) == ["groq"]


async def test_one_unreadable_key_leaves_the_others_usable(development: Opened) -> None:
    await development.store.create(ACME, "Acme", {}, {"groq": Secret(KEY), "llm7": Secret("llm7_0123456789")})
    other = KeyRing({"k1": b"x" * 32}, active="k1").seal(Secret(KEY), tenant_id=ACME, provider="groq").to_json("")
    await development.psql.execute(
        "UPDATE tenants SET llm_tokens = llm_tokens || jsonb_build_object('groq', $1::jsonb)", json.dumps(other)
    )

    found = await development.store.get(ACME)

    assert found is not None
    assert set(found.tenant.credentials) == {"llm7"}
    assert "store it again" in found.tenant.unusable_credentials["groq"]


async def test_an_id_is_taken_once(development: Opened) -> None:
    await development.store.create(ACME, "Acme", {}, {})

    with pytest.raises(ServiceError) as refused:
        await development.store.create(ACME, "Other", {}, {})

    assert refused.value.category is Category.ALREADY_EXISTS


async def test_a_change_from_an_outdated_version_is_refused_and_from_none_is_made(development: Opened) -> None:
    await development.store.create(ACME, "Acme", {}, {})
    await development.store.update(ACME, 0, lambda row: ("Acme 2", {}))

    with pytest.raises(ServiceError) as refused:
        await development.store.update(ACME, 1, lambda row: ("Acme 3", {}))

    assert refused.value.category is Category.ABORTED
    assert (await development.store.update(ACME, 2, lambda row: ("Acme 3", {}))).tenant.version == 3


async def test_a_deleted_key_is_gone_and_deleting_it_again_succeeds(development: Opened) -> None:
    await development.store.create(ACME, "Acme", {}, {"groq": Secret(KEY)})

    await development.store.delete_token(ACME, "groq")
    again = await development.store.delete_token(ACME, "groq")

    assert again.tenant.credentials == {}


async def test_pages_follow_the_creation_time(development: Opened) -> None:
    ids = [UUID(int=number) for number in (3, 1, 2)]
    for tenant_id in ids:
        await development.store.create(tenant_id, "t", {}, {})

    first = await development.store.page(None, 2)
    last = first[-1]
    assert isinstance(last, ParsedTenant)
    second = await development.store.page((last.created_at, last.tenant.id), 2)

    assert [entry.tenant.id for entry in (*first, *second) if isinstance(entry, ParsedTenant)] == ids


async def test_every_change_is_notified_with_its_version(development: Opened) -> None:
    heard: list[str] = []
    await development.psql.add_listener("turnpike_tenants", lambda *message: heard.append(str(message[3])))

    await development.store.create(ACME, "Acme", {}, {})
    await development.store.update(ACME, 0, lambda row: ("Acme 2", {}))
    await development.store.invalidate(None)
    await development.psql.execute("SELECT 1")

    assert heard == [f"{ACME} 1", f"{ACME} 2", "all"]


async def test_the_routers_role_cannot_touch_anything_but_tenants(development: Opened) -> None:
    await development.psql.execute("CREATE TABLE foreign_books (id int)")
    await development.psql.execute("SET ROLE turnpike_router")

    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await development.psql.execute("SELECT * FROM foreign_books")
