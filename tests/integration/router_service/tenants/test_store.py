from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import UUID

import asyncpg
import pytest

from router_service.domain.catalog import ProviderNames
from router_service.domain.secret import Secret
from router_service.tenants.rows import ParsedTenant, RowReader, TenantRow
from router_service.tenants.sealed_keys import KeyRing
from router_service.tenants.store import TenantEntry, TenantStore
from service_runtime.errors import Category, ServiceError
from service_runtime.postgres import Postgres
from tests.support.catalogs import CATALOG

ACME = UUID("018f3f2e-0000-7000-8000-000000000001")
KEY = "gsk_canary_0123456789abcdef"
RING = KeyRing({"k1": bytes(32)}, active="k1")
NAMES = ProviderNames(CATALOG)


def understood(entry: TenantEntry | None) -> ParsedTenant:
    assert isinstance(entry, ParsedTenant)
    return entry


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

    with pytest.raises(ServiceError, match=f"turnpike tenants set-token {ACME} groq") as refused:
        await production.store.get(ACME)

    assert refused.value.reason == "TENANT_CONFIG_INVALID"
    assert KEY not in str(refused.value)


@pytest.mark.parametrize(
    ("column", "value", "field"),
    [
        ("llm_tokens", "[]", "llm_tokens"),
        ("llm_tokens", "null", "llm_tokens"),
        ("llm_tokens", '"text"', "llm_tokens"),
        ("llm_tokens", '{"nobody": "gsk_12345678"}', "llm_tokens"),
        ("inference_config", "7", "inference_config"),
        ("inference_config", '{"preferred_provider": 7}', "inference_config.preferred_provider"),
        ("inference_config", '{"preferred_provider": "nobody"}', "inference_config.preferred_provider"),
        ("inference_config", '{"auto_failover": "yes"}', "inference_config.auto_failover"),
        ("inference_config", '{"preferred_models": []}', "inference_config.preferred_models"),
        ("inference_config", '{"score_weights": {"price": -1}}', "inference_config.score_weights.price"),
        ("inference_config", '{"score_weights": {"luck": 1}}', "inference_config.score_weights"),
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
    assert understood(mended).tenant.credentials["groq"].secret.reveal() == KEY


async def test_friendly_names_are_understood_and_replaced(development: Opened) -> None:
    await development.store.create(ACME, "Acme", {"preferred_provider": "Groq (Llama 3.3 70B)"}, {})
    await development.psql.execute("UPDATE tenants SET llm_tokens = jsonb_build_object('Groq', $1::text)", KEY)

    updated = await development.store.set_token(ACME, "groq", Secret("gsk_another_0123456789"))
    stored = json.loads(await development.psql.fetchval("SELECT llm_tokens::text FROM tenants"))

    assert understood(updated).tenant.config.preferred_provider == "groq"
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
    assert understood(await development.store.update(ACME, 2, lambda row: ("Acme 3", {}))).tenant.version == 3


async def test_a_deleted_key_is_gone_and_deleting_it_again_succeeds(development: Opened) -> None:
    await development.store.create(ACME, "Acme", {}, {"groq": Secret(KEY)})

    await development.store.delete_token(ACME, "groq")
    again = await development.store.delete_token(ACME, "groq")

    assert understood(again).tenant.credentials == {}


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


async def test_a_key_in_clear_inside_the_sealed_forms_object_is_sealed_too(development: Opened) -> None:
    await development.store.create(ACME, "Acme", {}, {})
    await development.psql.execute(
        "UPDATE tenants SET llm_tokens = jsonb_build_object('groq', jsonb_build_object('key', $1::text))", KEY
    )

    found = understood(await development.store.get(ACME))

    assert found.tenant.credentials["groq"].secret.reveal() == KEY
    assert KEY not in await development.psql.fetchval("SELECT llm_tokens::text FROM tenants")


@pytest.mark.parametrize(
    "tokens",
    [
        {KEY: "groq"},
        {"groq": [KEY]},
        {"groq": {"key": f"enc:v1:k1:{KEY}"}},
        {"groq": f"enc:v1:{KEY}"},
        {"groq": KEY + "\x01"},
        {"Groq": KEY, "groq": KEY},
    ],
)
async def test_k1_a_key_in_the_wrong_place_is_not_quoted(development: Opened, tokens: dict[str, object]) -> None:
    await development.store.create(ACME, "Acme", {}, {})
    await development.psql.execute("UPDATE tenants SET llm_tokens = $1::jsonb", json.dumps(tokens))

    try:
        told = repr(understood(await development.store.get(ACME)).tenant)
    except ServiceError as error:
        told = repr((error.message, error.metadata))

    assert KEY not in told


@pytest.mark.parametrize(
    "value",
    ["[" * 2000 + "]" * 2000, json.dumps({"preferred_provider": "x" * 1_000_000}), '{"allowed_providers": [""]}'],
    ids=["deep", "huge", "empty entry"],
)
@pytest.mark.parametrize("column", ["llm_tokens", "inference_config"])
async def test_monstrous_json_fails_its_tenant_and_can_be_mended(development: Opened, column: str, value: str) -> None:
    await development.store.create(ACME, "Acme", {}, {})
    if column == "llm_tokens":
        value = value.replace("preferred_provider", "groq").replace("allowed_providers", "nobody")
    await development.psql.execute(f"UPDATE tenants SET {column} = $1::jsonb", value)

    with pytest.raises(ServiceError) as refused:
        await development.store.get(ACME)
    listed = await development.store.page(None, 10)
    after_token = await development.store.set_token(ACME, "llm7", Secret(KEY))

    assert refused.value.reason == "TENANT_CONFIG_INVALID"
    assert isinstance(listed[0], TenantRow)
    assert len(listed[0].llm_tokens) + len(listed[0].inference_config) < 70_000
    assert isinstance(after_token, ParsedTenant) == (column == "llm_tokens" and value.startswith("["))


async def test_a_change_stands_although_the_row_is_broken_elsewhere(production: Opened) -> None:
    await production.store.create(ACME, "Acme", {}, {})
    await production.psql.execute(
        "UPDATE tenants SET llm_tokens = jsonb_build_object('groq', $1::text, 'llm7', $1::text)", KEY
    )

    first = await production.store.set_token(ACME, "groq", Secret(KEY))
    second = await production.store.set_token(ACME, "llm7", Secret(KEY))

    assert isinstance(first, TenantRow)
    assert set(understood(second).tenant.credentials) == {"groq", "llm7"}


async def test_a_database_that_can_only_be_read_serves_a_key_in_clear(development: Opened) -> None:
    await development.store.create(ACME, "Acme", {}, {})
    await development.psql.execute("UPDATE tenants SET llm_tokens = jsonb_build_object('groq', $1::text)", KEY)
    await development.psql.execute("REVOKE UPDATE ON tenants FROM turnpike_router")

    found = understood(await development.store.get(ACME))

    assert found.tenant.credentials["groq"].secret.reveal() == KEY
    assert set(found.plaintext) == {"groq"}


async def test_a_statement_that_takes_too_long_counts_as_an_absent_database(tenants_database: str) -> None:
    postgres = await Postgres.connect(tenants_database, min_size=1, max_size=1, statement_timeout_s=0.05)
    reader = RowReader(NAMES, RING, accepts_plaintext=True)
    store = TenantStore(postgres, reader, RING, NAMES, on_secret=lambda secret: None)
    psql = await asyncpg.connect(tenants_database)

    async with psql.transaction():
        await psql.execute("LOCK TABLE tenants")
        with pytest.raises(ServiceError) as refused:
            await store.get(ACME)
    await psql.close()
    await postgres.close()

    assert refused.value.reason == "DATABASE_UNAVAILABLE"


async def test_k2_a_row_copied_to_another_tenant_does_not_open(development: Opened) -> None:
    other = UUID(int=2)
    await development.store.create(ACME, "Acme", {}, {"groq": Secret(KEY)})
    await development.store.create(other, "Globex", {}, {})
    await development.psql.execute(
        "UPDATE tenants SET llm_tokens = (SELECT llm_tokens FROM tenants WHERE id = $1) WHERE id = $2", ACME, other
    )

    found = understood(await development.store.get(other))

    assert found.tenant.credentials == {}
    assert "another tenant" in found.tenant.unusable_credentials["groq"]


async def test_changes_at_the_same_time_are_all_kept(development: Opened) -> None:
    await development.store.create(ACME, "Acme", {}, {})

    await asyncio.gather(
        development.store.set_token(ACME, "groq", Secret(KEY)),
        development.store.set_token(ACME, "llm7", Secret(KEY)),
        development.store.update(ACME, 0, lambda row: ("Acme 2", {})),
    )
    found = understood(await development.store.get(ACME))

    assert found.tenant.name == "Acme 2"
    assert set(found.tenant.credentials) == {"groq", "llm7"}
    assert found.tenant.version == 4


@pytest.mark.parametrize("change", ["update", "set_token", "delete_token", "reseal"])
async def test_a_tenant_that_is_not_there_cannot_be_changed(development: Opened, change: str) -> None:
    changes: dict[str, Callable[[], Awaitable[object]]] = {
        "update": lambda: development.store.update(ACME, 0, lambda row: ("Acme", {})),
        "set_token": lambda: development.store.set_token(ACME, "groq", Secret(KEY)),
        "delete_token": lambda: development.store.delete_token(ACME, "groq"),
        "reseal": lambda: development.store.reseal(ACME),
    }

    with pytest.raises(ServiceError) as refused:
        await changes[change]()

    assert refused.value.reason == "UNKNOWN_TENANT"
