"""A real Postgres for tests: one server per run, one database per test.

Databases with the schema in them are copies of a template that is migrated once, which takes milliseconds.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import pytest

from service_runtime.embedded_postgres import EmbeddedPostgres
from service_runtime.migrations import migrate

ROOT = Path(__file__).parents[2]
LEDGER_MIGRATIONS = ROOT / "usage_service" / "storage" / "migrations"
TENANTS_MIGRATIONS = ROOT / "router_service" / "tenants" / "migrations"

# Nothing here needs to survive a power cut, and copies of a template need no checkpoint.
FAST_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "autovacuum": "off",
    "max_wal_size": "128MB",  # with the databases, of which each test drops its own, this is all that it takes
}
RAM_DISK = Path("/dev/shm")
ROOM_BYTES = 1 << 30

T = TypeVar("T")
_numbers = itertools.count(1)


def dsn_of(server: EmbeddedPostgres, database: str) -> str:
    """The address of another database of the server."""
    return server.dsn.replace("@/turnpike?", f"@/{database}?")


def run_apart(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in a loop and thread of its own, for fixtures that live longer than a test's loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """A running server with nothing in it, shared by all tests of the run. Tests that kill servers start their own."""
    with (
        tempfile.TemporaryDirectory(prefix="turnpike-test-", dir=_fast_disk()) as directory,
        EmbeddedPostgres(Path(directory), settings=FAST_SETTINGS) as server,
    ):
        yield server


def _fast_disk() -> Path | None:
    """Memory, where there is enough: a copy of a database, some 300 files, takes 20 ms there and 350 on a disk."""
    if RAM_DISK.is_dir() and os.access(RAM_DISK, os.W_OK) and shutil.disk_usage(RAM_DISK).free >= ROOM_BYTES:
        return RAM_DISK
    return None


@pytest.fixture(scope="session")
def ledger_template(postgres_server: EmbeddedPostgres) -> str:
    """The name of a database with the ledger's schema, to be copied and never connected to."""
    run_apart(migrate(dsn_of(postgres_server, "ledger_template"), "usage_service", LEDGER_MIGRATIONS))
    return "ledger_template"


@pytest.fixture(scope="session")
def tenants_template(postgres_server: EmbeddedPostgres) -> str:
    """The name of a database with the tenants' schema, to be copied and never connected to."""
    run_apart(migrate(dsn_of(postgres_server, "tenants_template"), "router_service", TENANTS_MIGRATIONS))
    return "tenants_template"


@pytest.fixture
async def empty_database(postgres_server: EmbeddedPostgres) -> AsyncIterator[str]:
    """The address of a fresh database without any table."""
    async with copy_of(postgres_server, "template1") as dsn:
        yield dsn


@pytest.fixture
async def ledger_database(postgres_server: EmbeddedPostgres, ledger_template: str) -> AsyncIterator[str]:
    """The address of a fresh database with the ledger's schema and seeds."""
    async with copy_of(postgres_server, ledger_template) as dsn:
        yield dsn


@pytest.fixture
async def tenants_database(postgres_server: EmbeddedPostgres, tenants_template: str) -> AsyncIterator[str]:
    """The address of a fresh database with the tenants' schema."""
    async with copy_of(postgres_server, tenants_template) as dsn:
        yield dsn


@asynccontextmanager
async def copy_of(server: EmbeddedPostgres, template: str) -> AsyncIterator[str]:
    """The address of a copy of a database that nobody is connected to."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    await _execute(server, f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy')
    yield dsn_of(server, name)
    await _execute(server, f'DROP DATABASE "{name}" WITH (FORCE)')


@contextmanager
def filled_template(
    server: EmbeddedPostgres, template: str, fill: Callable[[str], Coroutine[Any, Any, None]]
) -> Iterator[str]:
    """The name of a copy of a template with what `fill` has put into it, for tests that begin with the same rows."""
    name = f"filled_{os.getpid()}_{next(_numbers)}"
    run_apart(_execute(server, f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy'))
    run_apart(fill(dsn_of(server, name)))
    yield name
    run_apart(_execute(server, f'DROP DATABASE "{name}" WITH (FORCE)'))


async def _execute(server: EmbeddedPostgres, statement: str) -> None:
    connection = await asyncpg.connect(dsn_of(server, "postgres"))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
