"""Forward-only schema migrations, one directory of numbered SQL files per service.

File names are `NNNN_pre_name.sql` or `NNNN_post_name.sql`. `pre` must be applied before the new code runs and must
leave the old code working; `post` may be applied only when no old code runs any more. Each file is one transaction.
An applied file never changes: its checksum is kept and compared.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import asyncpg

from service_runtime.postgres import translated_failures
from service_runtime.startup import StartupError

# One lock for all services of a database: they are few, migrations are short, and no order of locks can deadlock
# when there is only one.
_LOCK_KEY = 0x7475726E_70696B65  # "turnpike"
_LOCK_POLL_S = 0.05
_CONNECT_TIMEOUT_S = 5.0
# A server that is frozen in the middle of a statement never answers; a migration may rightly take minutes.
_STATEMENT_TIMEOUT_S = 600.0
# A migration that waits for a table lock holds up all traffic behind it. It gives up soon, and tries again.
_TABLE_LOCK_TIMEOUT_S = 3
_TABLE_LOCK_ATTEMPTS = 10

_FILE_NAME = re.compile(r"^(?P<version>\d{4})_(?P<phase>pre|post)_[a-z0-9_]+\.sql$")

_CREATE_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    service    text        NOT NULL,
    version    integer     NOT NULL,
    name       text        NOT NULL,
    checksum   text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (service, version)
)"""


class MigrationError(StartupError):
    """The files and the database disagree, or a migration failed. The database is as before the file that failed."""


@dataclass(frozen=True, slots=True)
class _Migration:
    version: int
    name: str
    is_post: bool
    sql: str
    checksum: str


async def migrate(dsn: str, service: str, directory: Path, *, include_post: bool = True) -> list[str]:
    """Apply what is pending of `directory` and return the names of the files applied, in order.

    Creates the database when it is missing. Any number of processes may call it at once: one applies, the others
    wait and find nothing to do. `include_post=False` leaves `post` files pending that no `pre` file follows, for
    rolling upgrades in which old code is still running. Files that the database has and the directory has not are
    those of a newer version and are left alone.

    Raises MigrationError for a changed, misnamed or failing file, ServiceError UNAVAILABLE when the database does not
    answer.
    """
    migrations = _read(directory)
    with translated_failures():
        connection = await _connect_creating_the_database(dsn)
        try:
            await _take_lock(connection)
            return await _apply_pending(connection, service, migrations, include_post=include_post)
        finally:
            # Ends the session, and with it the lock.
            await connection.close(timeout=_CONNECT_TIMEOUT_S)


def _read(directory: Path) -> list[_Migration]:
    if not directory.is_dir():
        raise MigrationError(f"the migrations directory {directory} is missing")
    by_version: dict[int, _Migration] = {}
    for path in sorted(directory.glob("*.sql")):
        match = _FILE_NAME.match(path.name)
        if match is None:
            raise MigrationError(f"{path.name} is no migration; name it NNNN_pre_name.sql or NNNN_post_name.sql")
        sql = path.read_text(encoding="utf-8")
        version = int(match["version"])
        if version in by_version:
            raise MigrationError(f"{path.name} and {by_version[version].name} have the same number; renumber one")
        checksum = hashlib.sha256(sql.encode()).hexdigest()
        by_version[version] = _Migration(version, path.name, match["phase"] == "post", sql, checksum)
    if not by_version:
        raise MigrationError(f"the migrations directory {directory} holds no .sql file")
    return [by_version[version] for version in sorted(by_version)]


async def _connect_creating_the_database(dsn: str) -> asyncpg.Connection[asyncpg.Record]:
    try:
        return await _connect(dsn)
    except asyncpg.InvalidCatalogNameError:
        await _create_database(dsn)
        return await _connect(dsn)


async def _connect(dsn: str, database: str | None = None) -> asyncpg.Connection[asyncpg.Record]:
    settings = {"application_name": "turnpike-migrations", "lock_timeout": f"{_TABLE_LOCK_TIMEOUT_S}s"}
    try:
        return await asyncpg.connect(
            dsn,
            database=database,
            timeout=_CONNECT_TIMEOUT_S,
            command_timeout=_STATEMENT_TIMEOUT_S,
            server_settings=settings,
        )
    except (asyncpg.ClientConfigurationError, ValueError):
        # Not quoted, and not chained: the URL holds a password.
        raise MigrationError("the database URL cannot be read; write it like postgresql://user@host/turnpike") from None


async def _create_database(dsn: str) -> None:
    name = _database_name(dsn)
    try:
        maintenance = await _connect(dsn, database="postgres")
    except asyncpg.PostgresError as error:
        raise MigrationError(
            f"the database {name!r} does not exist and cannot be created ({type(error).__name__}); create it"
        ) from error
    try:
        await _take_lock(maintenance)
        if not await maintenance.fetchval("SELECT count(*) FROM pg_database WHERE datname = $1", name):
            quoted = name.replace('"', '""')
            await maintenance.execute(f'CREATE DATABASE "{quoted}"')
    except asyncpg.InsufficientPrivilegeError as error:
        raise MigrationError(
            f"the database {name!r} does not exist and this user may not create it; create it"
        ) from error
    finally:
        await maintenance.close(timeout=_CONNECT_TIMEOUT_S)


def _database_name(dsn: str) -> str:
    name = unquote(urlsplit(dsn).path.removeprefix("/"))
    if not name:
        raise MigrationError("the database URL names no database; add one, as in postgresql://host/turnpike")
    return name


async def _take_lock(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    # Polled rather than waited for: a waiting statement holds a snapshot, and a migration of another process may
    # itself have to wait for all snapshots to end.
    while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK_KEY, timeout=_CONNECT_TIMEOUT_S):  # noqa: ASYNC110 - the event is in another process
        await asyncio.sleep(_LOCK_POLL_S)


async def _apply_pending(
    connection: asyncpg.Connection[asyncpg.Record], service: str, migrations: list[_Migration], *, include_post: bool
) -> list[str]:
    await connection.execute(_CREATE_TABLE, timeout=_CONNECT_TIMEOUT_S)
    rows = await connection.fetch(
        "SELECT version, name, checksum FROM schema_migrations WHERE service = $1", service, timeout=_CONNECT_TIMEOUT_S
    )
    applied = {row["version"]: row for row in rows}
    for migration in migrations:
        known = applied.get(migration.version)
        if known is not None and known["checksum"] != migration.checksum:
            raise MigrationError(
                f"{migration.name} was changed after it had been applied to this database (as {known['name']}); "
                "restore it and put the change into a new file"
            )
    pending = [migration for migration in migrations if migration.version not in applied]
    if not include_post:
        while pending and pending[-1].is_post:
            pending.pop()
    for migration in pending:
        await _apply(connection, service, migration)
    return [migration.name for migration in pending]


async def _apply(connection: asyncpg.Connection[asyncpg.Record], service: str, migration: _Migration) -> None:
    for attempt in range(1, _TABLE_LOCK_ATTEMPTS + 1):
        try:
            async with connection.transaction():
                await connection.execute(migration.sql)
                await connection.execute(
                    "INSERT INTO schema_migrations (service, version, name, checksum) VALUES ($1, $2, $3, $4)",
                    service,
                    migration.version,
                    migration.name,
                    migration.checksum,
                )
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
            if attempt == _TABLE_LOCK_ATTEMPTS:
                raise MigrationError(
                    f"{migration.name} could not get its table locks in {attempt} attempts; "
                    "look for long transactions in pg_stat_activity"
                ) from error
            await asyncio.sleep(0.1 * attempt)
        except asyncpg.PostgresError as error:
            if isinstance(error, asyncpg.PostgresConnectionError | asyncpg.OperatorInterventionError):
                raise
            raise MigrationError(f"{migration.name} failed and was rolled back: {error}") from error
        else:
            return
