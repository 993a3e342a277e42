"""The tenants on disk: what a router that starts while Postgres is away serves from.

A copy of the rows that were read, with sealed keys only: what is not sealed is left out, whatever it is. One file,
written whole or not at all, readable by its owner alone, bounded in rows and bytes, and useless after its time.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from uuid import UUID

import msgspec
import structlog

from router_service.domain.tenant import InferenceConfig, Tenant
from router_service.tenants.cache import TenantSource
from router_service.tenants.metrics import TenantMetrics
from router_service.tenants.rows import CONFIG_INVALID, ParsedTenant, RowReader, TenantRow
from router_service.tenants.sealed_keys import SEALED_PREFIX
from service_runtime.errors import ServiceError

_log = structlog.get_logger(__name__)

FILE_NAME = "tenants.snapshot"
_VERSION = 1
MAX_BYTES = 64 << 20
_CONFIG_FIELDS = frozenset(field.name for field in fields(InferenceConfig))
_CONFIRMATION_STEP = 24  # of the maximal age: how often a row that does not change is written again


class _Kept(msgspec.Struct, frozen=True):
    """A row as it is kept, and when Postgres last confirmed it, in seconds since 1970."""

    id: UUID
    name: str
    llm_tokens: str
    inference_config: str
    version: int
    created_at: datetime
    updated_at: datetime
    confirmed_s: float

    def is_as(self, other: _Kept) -> bool:
        """Whether the row is the same, whenever it was confirmed."""
        return msgspec.structs.replace(self, confirmed_s=other.confirmed_s) == other

    def row(self) -> TenantRow:
        return TenantRow(
            self.id,
            self.name,
            self.llm_tokens,
            self.inference_config,
            self.version,
            self.created_at,
            self.updated_at,
        )


class TenantSnapshot:
    """The rows in memory and their file. `max_age_s`: a row that Postgres has not confirmed for so long is dropped."""

    def __init__(
        self,
        path: Path,
        *,
        max_entries: int,
        max_age_s: float,
        max_bytes: int = MAX_BYTES,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._max_entries = max_entries
        self._max_age_s = max_age_s
        self._max_bytes = max_bytes
        self._now_s = now_s
        self._rows: OrderedDict[UUID, _Kept] = OrderedDict()  # the latest read last
        self._has_changed = False

    def __len__(self) -> int:
        return len(self._rows)

    def load(self, *others: Path) -> None:
        """Take in what an earlier run has written, here and in `others`, which the workers beside this one write.

        What cannot be read is left alone, and said. Of a tenant in several files the latest is taken.
        """
        rows = [row for path in (*others, self._path) for row in _read(path)]
        now_s = self._now_s()
        young = [_not_later(row, now_s) for row in rows if row.confirmed_s >= now_s - self._max_age_s]
        kept: OrderedDict[UUID, _Kept] = OrderedDict()
        for row in young:
            known = kept.get(row.id)
            if known is None or (row.version, row.confirmed_s) > (known.version, known.confirmed_s):
                kept[row.id] = row
        while len(kept) > self._max_entries:
            kept.popitem(last=False)
        self._rows = kept
        if rows:
            _log.info("tenants.snapshot_loaded", tenants=len(kept), too_old=len(rows) - len(young))

    def find(self, tenant_id: UUID) -> tuple[TenantRow, float] | None:
        """The row of a tenant and how long ago Postgres confirmed it, in seconds."""
        kept = self._rows.get(tenant_id)
        if kept is None:
            return None
        now_s = self._now_s()
        kept = self._rows[tenant_id] = _not_later(kept, now_s)
        age_s = now_s - kept.confirmed_s
        return (kept.row(), age_s) if age_s <= self._max_age_s else None

    def keep(self, row: TenantRow, parsed: ParsedTenant) -> None:
        """Keep a row that was read and understood a moment ago."""
        if parsed.plaintext:
            return  # it could not be sealed yet; the next reading will
        now_s = self._now_s()
        kept = _Kept(
            id=row.id,
            name=row.name,
            llm_tokens=_sealed_only(row.llm_tokens),
            inference_config=_known_only(row.inference_config),
            version=row.version,
            created_at=row.created_at,
            updated_at=row.updated_at,
            confirmed_s=now_s,
        )
        held = self._rows.get(row.id)
        if held is not None and kept.is_as(held) and not self._wants_confirmation(held, now_s):
            # Every tenant is read again once in a while: with thousands of them the file would never be at rest.
            self._rows.move_to_end(row.id)
            return
        self._rows[row.id] = kept
        self._rows.move_to_end(row.id)
        if len(self._rows) > self._max_entries:
            self._rows.popitem(last=False)
        self._has_changed = True

    def forget(self, tenant_id: UUID) -> None:
        """Drop a tenant that Postgres no longer has."""
        if self._rows.pop(tenant_id, None) is not None:
            self._has_changed = True

    def confirm(self, versions: Mapping[UUID, int], asked: list[UUID]) -> None:
        """Take in which versions Postgres has now, of the tenants that were asked for."""
        now_s = self._now_s()
        for tenant_id in asked:
            kept = self._rows.get(tenant_id)
            if kept is None:
                continue
            if versions.get(tenant_id) != kept.version:
                self.forget(tenant_id)
            elif self._wants_confirmation(kept, now_s):
                self._rows[tenant_id] = msgspec.structs.replace(kept, confirmed_s=now_s)
                self._has_changed = True

    def _wants_confirmation(self, kept: _Kept, now_s: float) -> bool:
        return not 0 <= now_s - kept.confirmed_s <= self._max_age_s / _CONFIRMATION_STEP

    async def save(self) -> None:
        """Replace the file, if anything changed. When that fails the file is as it was, and the next time it is tried
        again.
        """
        if not self._has_changed:
            return
        self._has_changed = False
        rows = list(self._rows.values())  # here, where nobody changes them meanwhile
        try:
            await asyncio.to_thread(self._replace, rows)
        except OSError as error:
            self._has_changed = True
            _log.error("tenants.snapshot_not_written", file=str(self._path), error=error.strerror)

    def _replace(self, rows: Sequence[_Kept]) -> None:
        body = self._body(rows)  # on this thread: of ten thousand rows it takes 30 ms
        draft = self._path.with_name(f".{self._path.name}.{secrets.token_hex(8)}")
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(_head(body) + b"\n" + body)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._path)
        finally:
            draft.unlink(missing_ok=True)

    def _body(self, rows: Sequence[_Kept]) -> bytes:
        """As many rows as fit, the latest read first."""
        parts: list[bytes] = []
        size = 2
        for kept in reversed(rows):
            part = msgspec.json.encode(kept)
            size += len(part) + 1
            if size > self._max_bytes:
                _log.warning("tenants.snapshot_is_full", kept=len(parts), of=len(rows))
                break
            parts.append(part)
        return b"[" + b",".join(reversed(parts)) + b"]"


class SnapshottedTenants:
    """Implements `cache.TenantSource`: Postgres, and what it last said of a tenant while it is away."""

    def __init__(
        self,
        stored: TenantSource,
        snapshot: TenantSnapshot,
        reader: RowReader,
        metrics: TenantMetrics,
        *,
        on_secret: Callable[[str], None],
    ) -> None:
        self._stored = stored
        self._snapshot = snapshot
        self._reader = reader
        self._metrics = metrics
        self._on_secret = on_secret
        self._is_stale = False

    async def tenant(self, tenant_id: UUID) -> Tenant | None:
        """See `cache.TenantSource`. A tenant that only the snapshot knows is as good as any."""
        try:
            tenant = await self._stored.tenant(tenant_id)
        except ServiceError as error:
            if error.reason == CONFIG_INVALID:
                self._snapshot.forget(tenant_id)  # broken since: not to be served as it was before
            if error.reason != "DATABASE_UNAVAILABLE":
                raise
            found = self._snapshot.find(tenant_id)
            if found is None:
                raise
            row, age_s = found
            self._became_stale(age_s)
            tenant = self._reader.read(row).tenant
            for credential in tenant.credentials.values():
                self._on_secret(credential.secret.reveal())
            return tenant
        self._is_stale = False
        self._metrics.snapshot_age.set(0)
        if tenant is None:
            self._snapshot.forget(tenant_id)
        return tenant

    async def versions(self, tenant_ids: list[UUID]) -> Mapping[UUID, int]:
        """See `cache.TenantSource`."""
        versions = await self._stored.versions(tenant_ids)
        self._snapshot.confirm(versions, tenant_ids)
        self._is_stale = False
        self._metrics.snapshot_age.set(0)
        return versions

    def _became_stale(self, age_s: float) -> None:
        self._metrics.snapshot_reads.inc()
        self._metrics.snapshot_age.set(age_s)
        if not self._is_stale:
            self._is_stale = True
            _log.warning("tenants.served_from_snapshot", age_s=round(age_s), remedy="see to it that Postgres answers")


def _not_later(kept: _Kept, now_s: float) -> _Kept:
    """The row, confirmed now at the latest: where the clock was put back, it would else be young for ever."""
    return kept if kept.confirmed_s <= now_s else msgspec.structs.replace(kept, confirmed_s=now_s)


def _read(path: Path) -> list[_Kept]:
    """The rows of a file, whatever their age; none when it is not there or is not whole."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        _log.error("tenants.snapshot_unreadable", file=str(path), error=error.strerror)
        return []
    head, _, body = content.partition(b"\n")
    if head != _head(body):
        _log.error("tenants.snapshot_unreadable", file=str(path), error="its version or checksum is another")
        return []
    return msgspec.json.decode(body, type=list[_Kept])


def _head(body: bytes) -> bytes:
    return f"turnpike tenants {_VERSION} {zlib.crc32(body):08x}".encode()


def _sealed_only(llm_tokens: str) -> str:
    """The sealed keys of a row, and nothing else that may stand there: a mistyped key is a key all the same."""
    sealed: dict[str, object] = {}
    for name, entry in msgspec.json.decode(llm_tokens).items():
        key = entry.get("key") if isinstance(entry, dict) else entry
        if isinstance(key, str) and key.startswith(SEALED_PREFIX):
            sealed[name] = {"key": key}
    return msgspec.json.encode(sealed).decode()


def _known_only(inference_config: str) -> str:
    """The fields that this version understands: what stands in others, nobody has looked at."""
    written = msgspec.json.decode(inference_config)
    return msgspec.json.encode({name: written[name] for name in written if name in _CONFIG_FIELDS}).decode()
