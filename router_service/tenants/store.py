"""The tenants table: read, list, change, and seal what was written in clear."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import structlog

from router_service.domain.catalog import ProviderNames
from router_service.domain.secret import Secret
from router_service.tenants.rows import CONFIG_INVALID, ParsedTenant, RowReader, StoredKey, TenantRow
from router_service.tenants.sealed_keys import KeyRing
from service_runtime.errors import Category, ServiceError
from service_runtime.postgres import Postgres, load_queries

if TYPE_CHECKING:
    from service_runtime.postgres import Connection

CHANNEL = "turnpike_tenants"
ALL_TENANTS = "all"

_PASSING_FAILURES = (
    asyncpg.QueryCanceledError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.TransactionRollbackError,
    asyncpg.LockNotAvailableError,
)

_ATTEMPTS = 5  # at a change that others overtake

_QUERIES = load_queries(Path(__file__).with_name("queries.sql"))
_log = structlog.get_logger(__name__)


TenantEntry = ParsedTenant | TenantRow
"""A tenant, or its row as it stands when that cannot be understood: it can still be shown and mended."""


@dataclass(frozen=True, slots=True)
class Resealed:
    """What resealing a tenant did: the providers whose keys were sealed anew, and the keys that do not open.

    `error` says why nothing could be done: the row is broken, or was changed again and again meanwhile.
    """

    tenant_id: UUID
    providers: tuple[str, ...] = ()
    unreadable: tuple[StoredKey, ...] = ()
    error: ServiceError | None = None


class TenantStore:
    """Tenants in Postgres. Every method raises ServiceError DATABASE_UNAVAILABLE when Postgres is away."""

    def __init__(
        self,
        postgres: Postgres,
        reader: RowReader,
        ring: KeyRing,
        names: ProviderNames,
        *,
        on_secret: Callable[[str], None],
        on_read: Callable[[TenantRow, ParsedTenant], None] = lambda _row, _parsed: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._postgres = postgres
        self._reader = reader
        self._ring = ring
        self._names = names
        self._on_secret = on_secret
        self._on_read = on_read  # learns of every row that was read and understood
        self._now = now

    async def get(self, tenant_id: UUID) -> ParsedTenant | None:
        """The tenant, or None. Keys in clear are sealed on the way. Raises TENANT_CONFIG_INVALID for a broken row."""
        row = await self._one("get_tenant", tenant_id)
        return None if row is None else await self._understood(row)

    async def page(self, after: tuple[datetime, UUID] | None, limit: int) -> list[TenantEntry]:
        """A page by creation time. Nothing is sealed here: looking at a list changes nothing."""
        created_at, tenant_id = after or (None, None)
        async with self._connection() as connection:
            records = await connection.fetch(_QUERIES["list_tenants"], created_at, tenant_id, limit)
        return [self._parsed_or_raw(_row(record)) for record in records]

    async def positions(self, after: tuple[datetime, UUID] | None, limit: int) -> list[tuple[datetime, UUID]]:
        """Creation times and ids of the tenants that `page` would give."""
        created_at, tenant_id = after or (None, None)
        async with self._connection() as connection:
            records = await connection.fetch(_QUERIES["list_positions"], created_at, tenant_id, limit)
        return [(record["created_at"], record["id"]) for record in records]

    async def versions(self, tenant_ids: list[UUID]) -> Mapping[UUID, int]:
        """The versions of those tenants that exist."""
        async with self._connection() as connection:
            records = await connection.fetch(_QUERIES["list_versions"], tenant_ids)
        return {record["id"]: record["version"] for record in records}

    async def create(
        self, tenant_id: UUID, name: str, config: Mapping[str, object], tokens: Mapping[str, Secret]
    ) -> ParsedTenant:
        """A new tenant with sealed keys. Raises ALREADY_EXISTS when the id is taken."""
        for secret in tokens.values():
            self._on_secret(secret.reveal())
        sealed = {provider: self._sealed(tenant_id, provider, secret) for provider, secret in tokens.items()}
        row = await self._one("create_tenant", tenant_id, name, json.dumps(sealed), json.dumps(config))
        if row is None:
            raise ServiceError(
                Category.ALREADY_EXISTS,
                "TENANT_EXISTS",
                f"there is a tenant {tenant_id} already; choose another id or leave it out",
                metadata={"tenant_id": str(tenant_id)},
            )
        return await self._understood(row)

    async def update(
        self, tenant_id: UUID, expected_version: int, change: Callable[[TenantRow], tuple[str, Mapping[str, object]]]
    ) -> TenantEntry:
        """Replace name and configuration by what `change` makes of the row as it is.

        With `expected_version` 0 a change that somebody else's overtook is made again. Raises NOT_FOUND, or ABORTED
        when the tenant does not have the expected version.
        """
        actual_version = 0
        for _attempt in range(_ATTEMPTS):
            row = await self._one("get_tenant", tenant_id)
            if row is None:
                raise unknown_tenant(tenant_id)
            actual_version = row.version
            if expected_version and actual_version != expected_version:
                break
            name, config = change(row)
            updated = await self._one("update_tenant", tenant_id, row.version, name, json.dumps(config))
            if updated is not None:
                return await self._written(updated)
        raise _version_moved(tenant_id, expected_version, actual_version)

    async def set_token(self, tenant_id: UUID, provider: str, secret: Secret) -> TenantEntry:
        """Seal and store a key. Raises NOT_FOUND."""
        self._on_secret(secret.reveal())
        sealed = json.dumps(self._sealed(tenant_id, provider, secret))
        return await self._changed_tokens(
            tenant_id,
            provider,
            lambda connection, spellings: connection.fetchrow(
                _QUERIES["set_token"], tenant_id, spellings, provider, sealed
            ),
        )

    async def delete_token(self, tenant_id: UUID, provider: str) -> TenantEntry:
        """Remove a key, if there is one. Raises NOT_FOUND."""
        return await self._changed_tokens(
            tenant_id,
            provider,
            lambda connection, spellings: connection.fetchrow(_QUERIES["delete_token"], tenant_id, spellings),
        )

    async def reseal(self, tenant_id: UUID) -> Resealed:
        """Seal a tenant's keys anew with the active key-encryption key, after that was rotated.

        Keys in clear are sealed too. Those that no key of the ring opens are left as they are and named. When somebody
        changes the row meanwhile it is done again with what is there then. Raises NOT_FOUND; what else is wrong with
        the tenant is told in the result, for there are others to go on with.

        `on_read` and `on_secret` learn nothing of it: all tenants in turn would push out those that are served, and
        no key leaves here but sealed.
        """
        for _attempt in range(_ATTEMPTS):
            row = await self._one("get_tenant", tenant_id)
            if row is None:
                raise unknown_tenant(tenant_id)
            try:
                parsed = self._reader.read(row)
            except ServiceError as error:
                return Resealed(tenant_id, error=error)
            outdated = {
                provider: credential.secret
                for provider, credential in parsed.tenant.credentials.items()
                if provider not in parsed.sealed_currently
            }
            stored_at = {key.provider: key.created_at for key in parsed.keys}
            if not outdated or await self._replaced_keys(row, outdated, stored_at) is not None:
                unreadable = tuple(sorted((key for key in parsed.keys if key.unreadable), key=_provider_of))
                return Resealed(tenant_id, tuple(sorted(outdated)), unreadable)
        return Resealed(tenant_id, error=_kept_changing(tenant_id))

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of the key-encryption keys, the one that seals first."""
        return self._ring.key_ids

    async def invalidate(self, tenant_id: UUID | None) -> None:
        """Tell every router to read a tenant anew; None for all."""
        payload = ALL_TENANTS if tenant_id is None else f"{tenant_id} 0"
        async with self._connection() as connection:
            await connection.execute(_QUERIES["notify"], payload)

    async def _changed_tokens(
        self,
        tenant_id: UUID,
        provider: str,
        statement: Callable[[Connection, list[str]], Awaitable[asyncpg.Record | None]],
    ) -> TenantEntry:
        async with self._connection() as connection, connection.transaction():
            record = await connection.fetchrow(_QUERIES["lock_tokens"], tenant_id)
            if record is None:
                raise unknown_tenant(tenant_id)
            # People write "Groq" as well as "groq": every name that means the provider is meant.
            spellings = [name for name in record["names"] if self._names.normalise(name) == provider]
            changed = await statement(connection, [provider, *spellings])
        assert changed is not None, "the row is locked"
        return await self._written(_row(changed))

    async def _written(self, row: TenantRow) -> TenantEntry:
        """What a change made of the row. The change stands, also when the row is still broken elsewhere."""
        try:
            return await self._understood(row)
        except ServiceError as error:
            if error.reason != CONFIG_INVALID:
                raise
            return row

    async def _understood(self, row: TenantRow) -> ParsedTenant:
        parsed = self._reader.read(row)
        for credential in parsed.tenant.credentials.values():
            self._on_secret(credential.secret.reveal())
        if parsed.plaintext:
            row, parsed = await self._with_sealed_keys(row, parsed)
        self._on_read(row, parsed)
        return parsed

    async def _with_sealed_keys(self, row: TenantRow, parsed: ParsedTenant) -> tuple[TenantRow, ParsedTenant]:
        """Seal what was written in clear. When somebody changed the row meanwhile, the next reader seals.

        A database that can be read and not written is no reason to refuse the tenant.
        """
        try:
            updated = await self._replaced_keys(row, parsed.plaintext)
        except (ServiceError, asyncpg.PostgresError) as error:
            _log.warning("tenant.sealing_failed", tenant_id=str(row.id), error=type(error).__name__)
            return row, parsed
        if updated is None:
            return row, parsed
        _log.warning("tenant.keys_sealed", tenant_id=str(row.id), providers=sorted(parsed.plaintext))
        return updated, self._reader.read(updated)

    async def _replaced_keys(
        self, row: TenantRow, secrets: Mapping[str, Secret], stored_at: Mapping[str, datetime | None] | None = None
    ) -> TenantRow | None:
        """The row with these keys sealed by the active key; None when somebody changed it since it was read.

        `stored_at` tells of a provider when its key was stored; without it, now.
        """
        tokens: dict[str, Any] = json.loads(row.llm_tokens)
        kept = {name: value for name, value in tokens.items() if self._names.normalise(name) not in secrets}
        sealed = {
            provider: self._sealed(row.id, provider, secret, (stored_at or {}).get(provider))
            for provider, secret in secrets.items()
        }
        return await self._one("seal_tokens", row.id, row.version, json.dumps(kept | sealed))

    def _sealed(
        self, tenant_id: UUID, provider: str, secret: Secret, stored_at: datetime | None = None
    ) -> dict[str, str]:
        sealed = self._ring.seal(secret, tenant_id=tenant_id, provider=provider)
        return sealed.to_json((stored_at or self._now()).isoformat())

    def _parsed_or_raw(self, row: TenantRow) -> TenantEntry:
        try:
            return self._reader.read(row)
        except ServiceError:
            return row

    async def _one(self, query: str, *arguments: object) -> TenantRow | None:
        async with self._connection() as connection:
            record = await connection.fetchrow(_QUERIES[query], *arguments)
        return None if record is None else _row(record)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        """A connection; a server that is too busy, or only a replica at the moment, counts as one that is away."""
        try:
            async with self._postgres.acquire() as connection:
                yield connection
        except _PASSING_FAILURES as error:
            raise ServiceError(
                Category.UNAVAILABLE,
                "DATABASE_UNAVAILABLE",
                f"the database could not do it now ({type(error).__name__}); retry later",
                retry_after_s=1.0,
            ) from error


def unknown_tenant(tenant_id: UUID) -> ServiceError:
    """The refusal for a tenant that nobody created."""
    return ServiceError(
        Category.NOT_FOUND,
        "UNKNOWN_TENANT",
        f"there is no tenant {tenant_id}; create it with: turnpike tenants create NAME --id {tenant_id}",
        metadata={"tenant_id": str(tenant_id)},
    )


def _version_moved(tenant_id: UUID, expected: int, actual: int) -> ServiceError:
    return ServiceError(
        Category.ABORTED,
        "CONFIG_VERSION_MOVED",
        f"tenant {tenant_id} is at version {actual}, not {expected}; read it again and repeat the change",
        metadata={"tenant_id": str(tenant_id), "config_version": str(actual)},
    )


def _kept_changing(tenant_id: UUID) -> ServiceError:
    return ServiceError(
        Category.ABORTED,
        "CONFIG_VERSION_MOVED",
        f"tenant {tenant_id} was changed {_ATTEMPTS} times while its keys were being sealed anew; do it again",
        metadata={"tenant_id": str(tenant_id)},
    )


def _provider_of(key: StoredKey) -> str:
    return key.provider


def _row(record: asyncpg.Record) -> TenantRow:
    return TenantRow(**dict(record))
