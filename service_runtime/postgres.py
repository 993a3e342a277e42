"""The connection to Postgres: a pool, named statements, and a listener for notifications.

Nothing here knows a table. Failures of the connection become `ServiceError` UNAVAILABLE `DATABASE_UNAVAILABLE`;
failures of a statement stay asyncpg's own, because only the code that wrote the statement knows what they mean.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import structlog

from service_runtime.errors import Category, ServiceError

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Connection = PoolConnectionProxy[asyncpg.Record]

log = structlog.get_logger(__name__)

_RETRY_AFTER_S = 1.0
_CONNECT_TIMEOUT_S = 5.0
# A frozen server does not enforce its own statement_timeout; the client gives up this much later.
_CLIENT_TIMEOUT_MARGIN_S = 1.0

# The server is away, going away, coming up or full. asyncpg.InterfaceError is told apart by the connection's state:
# it also reports wrong arguments.
CONNECTION_FAILURES: tuple[type[Exception], ...] = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InternalClientError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
)
_ACQUIRE_FAILURES: tuple[type[Exception], ...] = (*CONNECTION_FAILURES, asyncpg.InterfaceError)


class Postgres:
    """A pool of connections to one database, all under one role and with one statement time-out.

    What a block sets for its session stays for the next one that gets the connection: use SET LOCAL and locks of the
    transaction. A transaction that a block leaves open is rolled back.
    """

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], *, acquire_timeout_s: float) -> None:
        self._pool = pool
        self._acquire_timeout_s = acquire_timeout_s

    @classmethod
    async def connect(
        cls,
        dsn: str,
        *,
        min_size: int,
        max_size: int,
        role: str | None = None,
        acquire_timeout_s: float = 2.0,
        statement_timeout_s: float = 5.0,
        application_name: str = "turnpike",
        settings: Mapping[str, str] | None = None,
    ) -> Postgres:
        """Open `min_size` connections and return the pool; with 0 the database is not asked until first use.

        `role` is what the statements run as (`SET ROLE`), so that a service that logs in with one user has only its
        own rights. `settings` are further settings of the server's for these connections alone. Raises ServiceError
        UNAVAILABLE when the database does not answer.
        """
        server_settings = {
            "application_name": application_name,
            "statement_timeout": f"{statement_timeout_s * 1000:.0f}ms",
            # Of a caller that died or hangs inside a transaction; its locks would hold up everybody.
            "idle_in_transaction_session_timeout": f"{statement_timeout_s * 2000:.0f}ms",
            "timezone": "UTC",
            **(settings or {}),
        }
        if role is not None:
            server_settings["role"] = role
        with translated_failures():
            pool = await asyncpg.create_pool(
                dsn,
                min_size=min_size,
                max_size=max_size,
                timeout=_CONNECT_TIMEOUT_S,
                command_timeout=statement_timeout_s + _CLIENT_TIMEOUT_MARGIN_S,
                server_settings=server_settings,
                reset=_nothing_to_reset,
            )
        return cls(pool, acquire_timeout_s=acquire_timeout_s)

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Connection]:
        """A connection for the block; waits at most `acquire_timeout_s` for a free one.

        Only database work belongs into the block: a TimeoutError or OSError from it is taken for the database's.
        Raises ServiceError UNAVAILABLE DATABASE_UNAVAILABLE, from the failure, when the connection cannot be had or
        is lost. What a statement was doing when the connection broke is unknown: it may have been committed.
        """
        try:
            connection = await self._pool.acquire(timeout=self._acquire_timeout_s)
        except _ACQUIRE_FAILURES as error:
            raise _unavailable(error) from error
        try:
            yield connection
        except CONNECTION_FAILURES as error:
            await self._distrust_others(connection, error)
            raise _unavailable(error) from error
        except asyncpg.InterfaceError as error:
            if not _is_lost(connection):
                raise
            await self._distrust_others(connection, error)
            raise _unavailable(error) from error
        finally:
            await self._release(connection)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection inside a transaction: committed when the block ends, rolled back when it raises."""
        async with self.acquire() as connection, connection.transaction():
            yield connection

    async def close(self, timeout_s: float = 5.0) -> None:
        """Close every connection; those that are still busy after `timeout_s` are cut."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def _distrust_others(self, connection: Connection, error: Exception) -> None:
        """After a loss have every connection opened anew before its next use: a restart has cut all of them.

        Otherwise each of them would cost one more caller an error.
        """
        if _is_lost(connection) or isinstance(error, asyncpg.InternalClientError):
            await self._pool.expire_connections()

    async def _release(self, connection: Connection) -> None:
        try:
            await self._pool.release(connection, timeout=self._acquire_timeout_s)
        except _ACQUIRE_FAILURES as error:
            # The pool has dropped the connection. Whether the work was done is told by the block's own outcome.
            log.info("postgres.connection_dropped", cause=type(error).__name__)


async def _nothing_to_reset(_connection: object) -> None:
    """Instead of asyncpg's RESET ALL after every use: a round trip, a tenth of a short statement's time."""


def _is_lost(connection: Connection) -> bool:
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:
        return True  # the pool took it back when it closed


class translated_failures:  # noqa: N801 - used as a statement, like contextlib.suppress
    """`with translated_failures():` turns connection failures into ServiceError DATABASE_UNAVAILABLE."""

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, CONNECTION_FAILURES):
            raise _unavailable(error) from error


def _unavailable(error: BaseException) -> ServiceError:
    # The type alone: asyncpg's messages can hold the address, the user and parts of statements.
    return ServiceError(
        Category.UNAVAILABLE,
        "DATABASE_UNAVAILABLE",
        f"the database does not answer ({type(error).__name__}); retry later",
        retry_after_s=_RETRY_AFTER_S,
    )


_NAME_LINE = re.compile(r"^-- name:\s*(?P<name>[a-z][a-z0-9_]*)\s*$")


def load_queries(path: Path) -> Mapping[str, str]:
    """Read the named statements of a .sql file.

    Each begins with `-- name: get_tenant` and a comment line that says what it is for, and ends with the next name
    or the file. Raises ValueError, naming file and line, for text before the first name, a name given twice, a
    missing purpose line or an empty statement.
    """
    bodies: dict[str, list[str]] = {}
    body: list[str] | None = None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if match := _NAME_LINE.match(line):
            name = match["name"]
            if name in bodies:
                raise ValueError(f"{path.name}:{number}: the statement {name!r} is there already")
            body = bodies[name] = []
        elif body is not None:
            body.append(line)
        elif line.strip() and not line.startswith("--"):
            raise ValueError(f"{path.name}:{number}: a statement without a '-- name:' line above it")
    return {name: _statement(path, name, lines) for name, lines in bodies.items()}


def _statement(path: Path, name: str, lines: list[str]) -> str:
    if not lines or not lines[0].startswith("-- ") or not lines[0].removeprefix("-- ").strip():
        raise ValueError(f"{path.name}: the statement {name!r} lacks the comment line that says what it is for")
    text = "\n".join(lines).strip()
    if all(not line.strip() or line.lstrip().startswith("--") for line in lines):
        raise ValueError(f"{path.name}: the statement {name!r} is empty")
    # The name travels with the statement, so that pg_stat_activity and the server's log tell it.
    return f"/* {name} */ {text}"


class Listener:
    """A connection of its own that listens for notifications and comes back after every loss.

    Nothing is kept for a listener that is away. So `on_connect` runs after each LISTEN, the first included, and must
    load whatever may have changed; `on_notify(channel, payload)` runs for each notification from then on, and also
    for those that arrive while `on_connect` is still loading. `on_notify` must be quick and must not raise.
    """

    def __init__(
        self,
        dsn: str,
        channels: Sequence[str],
        *,
        on_connect: Callable[[], Awaitable[None]],
        on_notify: Callable[[str, str], None],
        role: str | None = None,
        check_interval_s: float = 15.0,
        first_retry_s: float = 0.1,
        longest_retry_s: float = 5.0,
    ) -> None:
        """`check_interval_s`: how often a silent connection is asked whether it lives; a dead peer says nothing."""
        self._dsn = dsn
        self._channels = tuple(channels)
        self._on_connect = on_connect
        self._on_notify = on_notify
        self._role = role
        self._check_interval_s = check_interval_s
        self._first_retry_s = first_retry_s
        self._longest_retry_s = longest_retry_s
        self._task: asyncio.Task[None] | None = None
        self.is_connected = False
        self.connections = 0

    def start(self) -> None:
        """Begin to listen in a task of its own; a database that is away is waited for."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="postgres listener")

    async def close(self) -> None:
        """Stop listening and close the connection."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        failures = 0
        while True:
            before = self.connections
            try:
                await self._listen_until_lost()
            except Exception as error:  # noqa: BLE001 - also of on_connect: it is tried again with the next connection
                log.warning("postgres.listener_lost", cause=type(error).__name__, channels=self._channels)
            finally:
                self.is_connected = False
            failures = 1 if self.connections > before else failures + 1
            wait_s = min(self._longest_retry_s, self._first_retry_s * 2 ** min(failures - 1, 20))
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret

    async def _listen_until_lost(self) -> None:
        server_settings = {"application_name": "turnpike-listener", **({"role": self._role} if self._role else {})}
        connection = await asyncpg.connect(
            self._dsn, timeout=_CONNECT_TIMEOUT_S, command_timeout=_CONNECT_TIMEOUT_S, server_settings=server_settings
        )
        lost = asyncio.Event()
        try:
            connection.add_termination_listener(lambda _connection: lost.set())
            for channel in self._channels:
                await connection.add_listener(channel, self._received)
            await self._on_connect()
            self.connections += 1
            self.is_connected = True
            while not lost.is_set():
                try:
                    async with asyncio.timeout(self._check_interval_s):
                        await lost.wait()
                except TimeoutError:
                    await connection.execute("SELECT 1")
        finally:
            connection.terminate()

    def _received(self, _connection: object, _process_id: int, channel: str, payload: object) -> None:
        self._on_notify(channel, str(payload))


async def usable_role(dsn: str, role: str) -> str | None:
    """`role` if the login may work as it; None where it does not exist or was not granted to the login.

    Raises ServiceError UNAVAILABLE when the database does not answer.
    """
    with translated_failures():
        connection = await asyncpg.connect(dsn, timeout=_CONNECT_TIMEOUT_S, command_timeout=_CONNECT_TIMEOUT_S)
        try:
            may_become = await connection.fetchval(
                # From Postgres 16 on a member may lack the right to SET ROLE.
                "SELECT pg_has_role(current_user, oid, CASE WHEN current_setting('server_version_num')::int < 160000 "
                "THEN 'MEMBER' ELSE 'SET' END) FROM pg_roles WHERE rolname = $1",
                role,
            )
        finally:
            await connection.close(timeout=_CONNECT_TIMEOUT_S)
    return role if may_become else None
