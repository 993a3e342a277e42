"""The tenants table: read, list, change, and seal what was written in clear."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import structlog

from router_service.domain.catalog import ProviderNames
from router_service.domain.secret import Secret
from router_service.tenants.rows import ParsedTenant, RowReader, TenantRow
from router_service.tenants.sealed_keys import KeyRing
from service_runtime.errors import Category, ServiceError
from service_runtime.postgres import Postgres, load_queries

if TYPE_CHECKING:
    from service_runtime.postgres import Connection

CHANNEL = "turnpike_tenants"
ALL_TENANTS = "all"

_QUERIES = load_queries(Path(__file__).with_name("queries.sql"))
_log = structlog.get_logger(__name__)


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
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._postgres = postgres
        self._reader = reader
        self._ring = ring
        self._names = names
        self._on_secret = on_secret
        self._now = now

    async def get(self, tenant_id: UUID) -> ParsedTenant | None:
        """The tenant, or None. Keys in clear are sealed on the way. Raises TENANT_CONFIG_INVALID for a broken row."""
        row = await self._one("get_tenant", tenant_id)
        return None if row is None else await self._understood(row)

    async def page(self, after: tuple[datetime, UUID] | None, limit: int) -> list[ParsedTenant | TenantRow]:
        """A page by creation time. A row that cannot be understood is given as it is, so that it can be shown."""
        created_at, tenant_id = after or (None, None)
        async with self._postgres.acquire() as connection:
            records = await connection.fetch(_QUERIES["list_tenants"], created_at, tenant_id, limit)
        return [self._parsed_or_raw(_row(record)) for record in records]

    async def versions(self, tenant_ids: list[UUID]) -> Mapping[UUID, int]:
        """The versions of those tenants that exist."""
        async with self._postgres.acquire() as connection:
            records = await connection.fetch(_QUERIES["list_versions"], tenant_ids)
        return {record["id"]: record["version"] for record in records}

    async def create(
        self, tenant_id: UUID, name: str, config: Mapping[str, object], tokens: Mapping[str, Secret]
    ) -> ParsedTenant:
        """A new tenant with sealed keys. Raises ALREADY_EXISTS when the id is taken."""
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
    ) -> ParsedTenant:
        """Replace name and configuration by what `change` makes of the row as it is.

        With `expected_version` 0 a change that somebody else's overtook is made again. Raises NOT_FOUND, or ABORTED
        when the tenant does not have the expected version.
        """
        actual_version = 0
        for _attempt in range(5):
            row = await self._one("get_tenant", tenant_id)
            if row is None:
                raise unknown_tenant(tenant_id)
            actual_version = row.version
            if expected_version and actual_version != expected_version:
                break
            name, config = change(row)
            updated = await self._one("update_tenant", tenant_id, row.version, name, json.dumps(config))
            if updated is not None:
                return await self._understood(updated)
        raise _version_moved(tenant_id, expected_version, actual_version)

    async def set_token(self, tenant_id: UUID, provider: str, secret: Secret) -> ParsedTenant:
        """Seal and store a key. Raises NOT_FOUND."""
        sealed = json.dumps(self._sealed(tenant_id, provider, secret))
        return await self._changed_tokens(
            tenant_id,
            provider,
            lambda connection, spellings: connection.fetchrow(
                _QUERIES["set_token"], tenant_id, spellings, provider, sealed
            ),
        )

    async def delete_token(self, tenant_id: UUID, provider: str) -> ParsedTenant:
        """Remove a key, if there is one. Raises NOT_FOUND."""
        return await self._changed_tokens(
            tenant_id,
            provider,
            lambda connection, spellings: connection.fetchrow(_QUERIES["delete_token"], tenant_id, spellings),
        )

    async def invalidate(self, tenant_id: UUID | None) -> None:
        """Tell every router to read a tenant anew; None for all."""
        payload = ALL_TENANTS if tenant_id is None else f"{tenant_id} 0"
        async with self._postgres.acquire() as connection:
            await connection.execute(_QUERIES["notify"], payload)

    async def _changed_tokens(
        self,
        tenant_id: UUID,
        provider: str,
        statement: Callable[[Connection, list[str]], Awaitable[asyncpg.Record | None]],
    ) -> ParsedTenant:
        async with self._postgres.transaction() as connection:
            record = await connection.fetchrow(_QUERIES["get_tenant"], tenant_id)
            if record is None:
                raise unknown_tenant(tenant_id)
            changed = await statement(connection, self._spellings(record["llm_tokens"], provider))
        assert changed is not None, "the row was read in the same transaction"
        return await self._understood(_row(changed))

    def _spellings(self, llm_tokens: str, provider: str) -> list[str]:
        """Every name in the column that means the provider: people write "Groq" as well as "groq"."""
        written = json.loads(llm_tokens)
        names = (
            [name for name in written if self._names.normalise(name) == provider] if isinstance(written, dict) else []
        )
        return [provider, *names]

    async def _understood(self, row: TenantRow) -> ParsedTenant:
        parsed = self._reader.read(row)
        for credential in parsed.tenant.credentials.values():
            self._on_secret(credential.secret.reveal())
        return await self._with_sealed_keys(row, parsed) if parsed.plaintext else parsed

    async def _with_sealed_keys(self, row: TenantRow, parsed: ParsedTenant) -> ParsedTenant:
        """Seal what was written in clear. When somebody changed the row meanwhile, the next reader seals."""
        tokens: dict[str, Any] = json.loads(row.llm_tokens)
        kept = {name: value for name, value in tokens.items() if self._names.normalise(name) not in parsed.plaintext}
        sealed = {provider: self._sealed(row.id, provider, secret) for provider, secret in parsed.plaintext.items()}
        updated = await self._one("seal_tokens", row.id, row.version, json.dumps(kept | sealed))
        if updated is None:
            return parsed
        _log.warning("tenant.keys_sealed", tenant_id=str(row.id), providers=sorted(sealed))
        return self._reader.read(updated)

    def _sealed(self, tenant_id: UUID, provider: str, secret: Secret) -> dict[str, str]:
        self._on_secret(secret.reveal())
        return self._ring.seal(secret, tenant_id=tenant_id, provider=provider).to_json(self._now().isoformat())

    def _parsed_or_raw(self, row: TenantRow) -> ParsedTenant | TenantRow:
        try:
            return self._reader.read(row)
        except ServiceError:
            return row

    async def _one(self, query: str, *arguments: object) -> TenantRow | None:
        async with self._postgres.acquire() as connection:
            record = await connection.fetchrow(_QUERIES[query], *arguments)
        return None if record is None else _row(record)


def unknown_tenant(tenant_id: UUID) -> ServiceError:
    """The refusal for a tenant that nobody created."""
    return ServiceError(
        Category.NOT_FOUND,
        "UNKNOWN_TENANT",
        f"there is no tenant {tenant_id}; create it with: turnpike tenants create",
        metadata={"tenant_id": str(tenant_id)},
    )


def _version_moved(tenant_id: UUID, expected: int, actual: int) -> ServiceError:
    return ServiceError(
        Category.ABORTED,
        "CONFIG_VERSION_MOVED",
        f"tenant {tenant_id} is at version {actual}, not {expected}; read it again and repeat the change",
        metadata={"tenant_id": str(tenant_id), "config_version": str(actual)},
    )


def _row(record: asyncpg.Record) -> TenantRow:
    return TenantRow(**dict(record))
