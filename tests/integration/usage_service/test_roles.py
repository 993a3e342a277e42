"""The ledger under logins of all kinds: one that may make roles, one that may not, one whose operator made it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from service_runtime.embedded_postgres import EmbeddedPostgres
from service_runtime.migrations import migrate
from service_runtime.postgres import Postgres, usable_role
from tests.support.postgres import LEDGER_MIGRATIONS, dsn_of

ROLE = "turnpike_usage"


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
