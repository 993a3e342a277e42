"""The ledger under logins of all kinds, and what the services' own roles may and may not do in one database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from service_runtime.embedded_postgres import EmbeddedPostgres
from service_runtime.migrations import migrate
from service_runtime.postgres import Postgres, usable_role
from tests.support.postgres import LEDGER_MIGRATIONS, TENANTS_MIGRATIONS, dsn_of

ROLE = "turnpike_usage"
FORBIDDEN = {
    "turnpike_usage": (
        "SELECT llm_tokens FROM tenants",
        "SELECT id FROM tenants",
        "UPDATE tenants SET llm_tokens = '{}'",
        "UPDATE usage_cost_adjustments SET reason = ''",
    ),
    "turnpike_router": (
        "SELECT count(*) FROM model_usage_stats",
        "INSERT INTO model_usage_stats SELECT * FROM model_usage_stats",
        "UPDATE usage_rollup_day SET cost_usd = 0",
        "INSERT INTO usage_cost_adjustments SELECT * FROM usage_cost_adjustments",
        "UPDATE model_prices SET input_usd = 0",
        "DELETE FROM usage_limits",
    ),
}


async def execute(server: EmbeddedPostgres, *statements: str) -> None:
    connection = await asyncpg.connect(dsn_of(server, "postgres"))
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """Roles belong to a server, so these tests have one of their own."""
    with EmbeddedPostgres(tmp_path_factory.mktemp("roles"), settings={"fsync": "off"}) as server:
        yield server


@pytest.fixture
async def server(own_server: EmbeddedPostgres) -> AsyncIterator[EmbeddedPostgres]:
    yield own_server
    await execute(
        own_server,
        "DROP DATABASE IF EXISTS ledger WITH (FORCE)",
        "DROP ROLE IF EXISTS turnpike_usage",
        "DROP ROLE IF EXISTS turnpike_router",
        "DROP ROLE IF EXISTS keeper",
    )


def as_keeper(server: EmbeddedPostgres) -> str:
    return dsn_of(server, "ledger").replace("//postgres@", "//keeper@")


async def may_read_the_ledger(dsn: str, role: str | None) -> bool:
    postgres = await Postgres.connect(dsn, min_size=0, max_size=1, role=role)
    try:
        async with postgres.acquire() as connection:
            assert await connection.fetchval("SELECT current_user") == (role or "keeper")
            return bool(await connection.fetchval("SELECT count(*) = 0 FROM model_usage_stats"))
    finally:
        await postgres.close()


async def test_a_login_that_may_make_roles_makes_it_and_works_as_it(server: EmbeddedPostgres) -> None:
    await execute(server, "CREATE ROLE keeper LOGIN CREATEROLE", "CREATE DATABASE ledger OWNER keeper")

    await migrate(as_keeper(server), "usage_service", LEDGER_MIGRATIONS)

    assert await usable_role(as_keeper(server), ROLE) == ROLE
    assert await may_read_the_ledger(as_keeper(server), ROLE)


async def test_a_login_that_may_not_make_roles_works_as_itself(server: EmbeddedPostgres) -> None:
    await execute(server, "CREATE ROLE keeper LOGIN", "CREATE DATABASE ledger OWNER keeper")

    await migrate(as_keeper(server), "usage_service", LEDGER_MIGRATIONS)

    assert await usable_role(as_keeper(server), ROLE) is None
    assert await may_read_the_ledger(as_keeper(server), None)


async def test_a_role_that_the_operator_made_and_granted_is_used(server: EmbeddedPostgres) -> None:
    await execute(
        server,
        "CREATE ROLE keeper LOGIN",
        "CREATE ROLE turnpike_usage NOLOGIN",
        "GRANT turnpike_usage TO keeper",
        "CREATE DATABASE ledger OWNER keeper",
    )

    await migrate(as_keeper(server), "usage_service", LEDGER_MIGRATIONS)

    assert await usable_role(as_keeper(server), ROLE) == ROLE
    assert await may_read_the_ledger(as_keeper(server), ROLE)


async def test_a_role_that_belongs_to_somebody_else_is_left_alone(server: EmbeddedPostgres) -> None:
    await execute(
        server,
        "CREATE ROLE keeper LOGIN",
        "CREATE ROLE turnpike_usage NOLOGIN",
        "CREATE DATABASE ledger OWNER keeper",
    )

    await migrate(as_keeper(server), "usage_service", LEDGER_MIGRATIONS)

    assert await usable_role(as_keeper(server), ROLE) is None
    assert await may_read_the_ledger(as_keeper(server), None)


async def rights(dsn: str, role: str) -> dict[str, set[str]]:
    """What a role may do with every table and view, its own and those of others; partitions belong to their tables."""
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch(
            """
            SELECT relname, privilege
            FROM pg_class, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER']) AS privilege
            WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p', 'v') AND NOT relispartition
              AND has_table_privilege($1, oid, privilege)
            """,
            role,
        )
    finally:
        await connection.close()
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row["relname"], set()).add(row["privilege"])
    return found


async def test_in_one_database_neither_service_reaches_the_others_tables(server: EmbeddedPostgres) -> None:
    await execute(server, "CREATE DATABASE ledger")
    dsn = dsn_of(server, "ledger")
    await migrate(dsn, "usage_service", LEDGER_MIGRATIONS)
    await migrate(dsn, "router_service", TENANTS_MIGRATIONS)

    usage, router = await rights(dsn, "turnpike_usage"), await rights(dsn, "turnpike_router")

    everything, append = {"SELECT", "INSERT", "UPDATE", "DELETE"}, {"SELECT", "INSERT"}
    assert router == {"tenants": everything}
    assert "tenants" not in usage
    assert {name: usage.pop(name, None) for name in ("usage_cost_adjustments", "model_prices_replaced")} == {
        "usage_cost_adjustments": append,
        "model_prices_replaced": append,
    }
    assert usage.pop("model_prices_ever") == {"SELECT"}
    assert {"model_usage_stats", "model_prices", "usage_limits", "usage_limit_levels"} <= set(usage)
    assert all(allowed <= everything for allowed in usage.values())
    for role, statements in FORBIDDEN.items():
        postgres = await Postgres.connect(dsn, min_size=0, max_size=1, role=role)
        for statement in statements:
            async with postgres.acquire() as connection:
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(statement)
        await postgres.close()
