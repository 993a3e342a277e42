"""A service's database as it comes up: migrated and opened at once, or whenever it answers.

A wrong password or a name that nobody can resolve stops the start with one line. A database that is away is waited for:
whoever asks meanwhile gets UNAVAILABLE, and the process lives.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import asyncpg
import structlog

from service_runtime.errors import Category, ServiceError
from service_runtime.migrations import migrate
from service_runtime.postgres import Postgres, usable_role
from service_runtime.process import Lifecycle
from service_runtime.startup import StartupError

if TYPE_CHECKING:
    from service_runtime.postgres import Connection

log = structlog.get_logger(__name__)

_FIRST_RETRY_S = 0.2
_LONGEST_RETRY_S = 5.0
_PING_TIMEOUT_S = 2.0

# Those that pass by themselves; every other complaint of the server's is about how it was asked.
_PASSING: tuple[type[Exception], ...] = (
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.TransactionRollbackError,
    asyncpg.LockNotAvailableError,
)


class LatePostgres(Postgres):
    """A pool that may be opened after the start; until then it says that the database does not answer."""

    def __init__(self) -> None:
        self._opened: Postgres | None = None

    def use(self, opened: Postgres) -> None:
        """From now on, answer from this pool."""
        self._opened = opened

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Connection]:
        """See `Postgres.acquire`."""
        if self._opened is None:
            raise ServiceError(
                Category.UNAVAILABLE,
                "DATABASE_UNAVAILABLE",
                "the database has not answered since this process started; retry later",
                retry_after_s=_LONGEST_RETRY_S,
            )
        async with self._opened.acquire() as connection:
            yield connection

    async def close(self, timeout_s: float = 5.0) -> None:
        """See `Postgres.close`."""
        if self._opened is not None:
            await self._opened.close(timeout_s)


class ServiceDatabase:
    """Brings one service's schema up to date and opens its pools.

    `role` is what the service works as where the login may; `setting` names the variable that holds the address.
    """

    def __init__(self, dsn: str, *, service: str, migrations: Path, role: str, setting: str) -> None:
        """Raises StartupError for an address that cannot be one, before anything else of the service is at work."""
        _require_address(dsn, setting)
        self._dsn = dsn
        self._service = service
        self._migrations = migrations
        self._wanted_role = role
        self._setting = setting
        self._pools: list[tuple[LatePostgres, bool, dict[str, Any]]] = []
        self.role: str | None = None
        self.is_open = False

    def pool(self, *, as_owner: bool = False, **options: Any) -> LatePostgres:
        """A pool that is opened with the database; `options` are those of `Postgres.connect`."""
        pool = LatePostgres()
        self._pools.append((pool, as_owner, options))
        return pool

    async def open(self) -> None:
        """Migrate and open every pool.

        Raises ServiceError UNAVAILABLE while the database is away, StartupError for what waiting cannot mend.
        """
        try:
            await migrate(self._dsn, self._service, self._migrations)
            self.role = await usable_role(self._dsn, self._wanted_role)
            opened = [
                await Postgres.connect(self._dsn, role=None if as_owner else self.role, **options)
                for _, as_owner, options in self._pools
            ]
        except ServiceError as error:
            if isinstance(error.__cause__, socket.gaierror):
                host = urlsplit(self._dsn).hostname
                raise StartupError(f"the database's host {host!r} has no address; correct {self._setting}") from None
            raise
        except asyncpg.InvalidAuthorizationSpecificationError as error:
            raise StartupError(
                f"the database refuses the user or the password ({type(error).__name__}); correct {self._setting}"
            ) from None
        except asyncpg.PostgresError as error:
            if isinstance(error, _PASSING):
                raise _not_now(error) from error
            raise StartupError(f"the database cannot be used ({type(error).__name__}: {error})") from error
        for (pool, _, _), each in zip(self._pools, opened, strict=True):
            pool.use(each)
        self.is_open = True
        if self.role is None:
            log.warning(
                "postgres.role_missing",
                role=self._wanted_role,
                remedy="create it and grant it to the login, to limit its rights",
            )

    async def open_when_it_answers(self, then: Callable[[], Awaitable[None]]) -> None:
        """Try to open until it works, then run `then` until that works too. Ends only so, or by being cancelled."""
        failures = 0
        while True:
            try:
                if not self.is_open:
                    await self.open()
                await then()
            except (ServiceError, StartupError, asyncpg.PostgresError) as error:
                failures += 1
                # Said at each doubling: a day's outage is a dozen lines.
                if failures & (failures - 1) == 0:
                    log.warning("postgres.awaited", cause=str(error), failures=failures, setting=self._setting)
                wait_s = min(_LONGEST_RETRY_S, _FIRST_RETRY_S * 2 ** min(failures, 10))
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
            else:
                if failures:
                    log.info("postgres.answers", after_failures=failures)
                return

    async def answers(self) -> bool:
        """Whether the database answers now, asked through the first pool."""
        if not self.is_open:
            return False
        try:
            async with asyncio.timeout(_PING_TIMEOUT_S), self._pools[0][0].acquire() as connection:
                await connection.fetchval("SELECT 1")
        except (ServiceError, asyncpg.PostgresError, TimeoutError):
            return False
        return True

    async def close(self) -> None:
        """Close every pool."""
        for pool, _, _ in reversed(self._pools):
            await pool.close()


def _require_address(dsn: str, setting: str) -> None:
    # Not quoted, and not chained: the address holds a password.
    unreadable = StartupError(f"the database URL cannot be read; write {setting} like postgresql://user@host/turnpike")
    try:
        parts = urlsplit(dsn)
        if "," not in parts.netloc:  # several hosts, which urlsplit does not know
            _ = parts.port
    except ValueError:
        raise unreadable from None
    if parts.scheme not in {"postgres", "postgresql"}:
        raise unreadable


def _not_now(error: Exception) -> ServiceError:
    return ServiceError(
        Category.UNAVAILABLE,
        "DATABASE_UNAVAILABLE",
        f"the database could not do it now ({type(error).__name__}); retry later",
        retry_after_s=1.0,
    )


class BringUp:
    """The first opening of a service's database, and the wait for it when it is away.

    `then` runs once the database is open, again until it succeeds; what it starts must bear being started twice.
    """

    def __init__(self, database: ServiceDatabase, lifecycle: Lifecycle, *, then: Callable[[], Awaitable[None]]) -> None:
        self._database = database
        self._lifecycle = lifecycle
        self._then = then
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Open the database and run `then`; when it is away, go on trying in the background, and return.

        Raises StartupError for what waiting cannot mend.
        """
        try:
            await self._database.open()
            await self._then()
        except ServiceError as error:
            log.warning("postgres.away_at_start", cause=error.message)
            self._lifecycle.waiting(error.message)
            self._task = asyncio.create_task(
                self._database.open_when_it_answers(self._then), name="wait for the database"
            )

    async def stop(self) -> None:
        """Give up waiting."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
